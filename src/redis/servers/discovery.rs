//! Who the masters are, as a cluster or its sentinels say.

use std::sync::atomic::Ordering;

use fred::{
    interfaces::ClientLike as _,
    types::{
        CustomCommand, Value,
        cluster::ClusterRouting,
        config::{Server as Address, ServerConfig},
    },
};

use super::{CONNECT_TIMEOUT, Connection, Servers};

/// The masters, and which of them has which slots, where these are divided.
pub(super) type Masters = (Vec<Address>, Option<ClusterRouting>);

impl Servers {
    /// What one of the masters says, or one of the seeds. Another one is asked each time, so that one that is mistaken is not
    /// believed for long.
    pub(super) async fn masters_of_cluster(&self, seeds: &[Address]) -> Option<Masters> {
        let map = self.map();
        let first = self.next_asked.fetch_add(1, Ordering::Relaxed);
        for number in 0..map.servers.len() {
            let server = &map.servers[first.wrapping_add(number) % map.servers.len()];
            if let (Some(connection), ServerConfig::Centralized { server }) = (server.quick(), &server.address)
                && let Some(routing) = self.routing(&connection, server).await
            {
                return Some(routing);
            }
        }
        for number in 0..seeds.len() {
            let seed = &seeds[first.wrapping_add(number) % seeds.len()];
            let Ok(one) = self.connect_with(&self.config, ServerConfig::Centralized { server: seed.clone() }) else {
                continue;
            };
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, one.wait_for_connect()).await;
            if matches!(connected, Ok(Ok(())))
                && let Some(routing) = self.routing(&one, seed).await
            {
                return Some(routing);
            }
        }
        None
    }

    async fn routing(&self, connection: &Connection, asked: &Address) -> Option<Masters> {
        let answer = self.ask(connection, "CLUSTER", ["SLOTS"]).await?;
        let routing = ClusterRouting::from_cluster_slots(answer, asked.host.clone()).ok()?;
        let masters = routing.unique_primary_nodes();
        (!masters.is_empty()).then_some((masters, Some(routing)))
    }

    pub(super) async fn master_of_sentinels(&self, sentinels: &[Connection], service: &str) -> Option<Masters> {
        let first = self.next_asked.fetch_add(1, Ordering::Relaxed);
        for number in 0..sentinels.len() {
            let sentinel = &sentinels[first.wrapping_add(number) % sentinels.len()];
            if !sentinel.is_connected() {
                continue;
            }
            let answer = self.ask(sentinel, "SENTINEL", ["GET-MASTER-ADDR-BY-NAME", service]).await;
            if let Some((host, port)) = answer.and_then(|answer| answer.convert::<(String, u16)>().ok()) {
                return Some((vec![Address::new(host, port)], None));
            }
        }
        None
    }

    async fn ask<const N: usize>(
        &self,
        connection: &Connection,
        name: &'static str,
        words: [&str; N],
    ) -> Option<Value> {
        let words: Vec<String> = words.map(str::to_owned).into();
        let asking = connection.custom::<Value, _>(CustomCommand::new_static(name, None, false), words);
        connection.answer(self.command_timeout, asking).await?.ok()
    }
}
