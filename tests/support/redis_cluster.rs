//! A real Redis Cluster: three masters, each with the replicas that a test wants.

use fred::types::Value;
use futures_util::future::{join_all, try_join_all};
use onair::dev::servers::{Membership, Persistence, PrivateRedis, RedisOptions, RedisRole};
use uuid::Uuid;

use super::{
    raw_redis,
    redis_sentinels::{TLS_PORT, port_of},
    stores::{AGREED_WITHIN, until_within},
};

const SLOTS: usize = 16_384;
/// The setting of the port on which the servers speak with one another.
const BUS_PORT: &str = "cluster-port";
/// The first servers are the masters, and those behind them their replicas in the same order.
pub const MASTERS: usize = 3;

/// How a cluster is to be.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    pub replicas_of_each: usize,
    /// How long a server may be silent before the others hold it for dead.
    pub node_timeout_ms: u64,
    pub persistence: Persistence,
    /// Further lines of every server's configuration.
    pub settings: &'static str,
}

impl ClusterOptions {
    /// Where nothing fails: as few servers as there can be.
    pub fn calm() -> Self {
        Self { replicas_of_each: 0, node_timeout_ms: 15_000, persistence: Persistence::None, settings: "" }
    }

    /// Where masters fail: each has a replica, and its death is noticed soon.
    pub fn failing_over() -> Self {
        Self { replicas_of_each: 1, node_timeout_ms: 2_000, persistence: Persistence::None, settings: "" }
    }
}

/// The cluster. Its servers end when it is dropped.
pub struct RedisCluster {
    servers: Vec<PrivateRedis>,
    password: String,
    is_over_tls: bool,
}

impl RedisCluster {
    pub async fn start(options: ClusterOptions) -> Self {
        Self::start_with(options, None).await
    }

    /// One whose servers speak TLS with one another and with others, by these lines of their configuration.
    pub async fn start_over_tls(options: ClusterOptions, settings: &str) -> Self {
        Self::start_with(options, Some(settings)).await
    }

    async fn start_with(options: ClusterOptions, tls: Option<&str>) -> Self {
        let password = Uuid::new_v4().simple().to_string();
        let starting = (0..MASTERS * (1 + options.replicas_of_each)).map(|_| start_server(options, &password, tls));
        let cluster = Self { servers: join_all(starting).await, password, is_over_tls: tls.is_some() };
        cluster.introduce().await;
        cluster.add_replicas().await;
        cluster
    }

    /// Deals out the slots, and has everybody meet everybody.
    async fn introduce(&self) {
        let first = &self.servers[0];
        for (number, master) in self.servers[..MASTERS].iter().enumerate() {
            let (from, to) = (SLOTS * number / MASTERS, SLOTS * (number + 1) / MASTERS - 1);
            say(master, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            say(master, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
        }
        for other in &self.servers[1..] {
            let (port, bus_port) =
                (other.port().expect("it has one"), other.further_port(BUS_PORT).expect("and another one"));
            say(first, &["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), &bus_port.to_string()]).await;
        }
        until_within(AGREED_WITHIN, "the cluster has formed", async || {
            let states = join_all(self.servers.iter().map(cluster_info)).await;
            let known = format!("cluster_known_nodes:{}", self.servers.len());
            states.iter().all(|info| info.contains("cluster_state:ok") && info.lines().any(|line| line.trim() == known))
        })
        .await;
    }

    async fn add_replicas(&self) {
        let replicas = &self.servers[MASTERS..];
        if replicas.is_empty() {
            return;
        }
        for (number, replica) in replicas.iter().enumerate() {
            let master: String = raw_redis::command(&self.servers[number % MASTERS], &["CLUSTER", "MYID"]).await;
            until_within(AGREED_WITHIN, "a replica knows its master", async || {
                raw_redis::try_command::<String>(replica, &["CLUSTER", "REPLICATE", &master]).await.is_ok()
            })
            .await;
        }
        self.until_replicated(&replicas.iter().collect::<Vec<_>>()).await;
    }

    /// Waits until these replicas have everything that their masters have.
    async fn until_replicated(&self, replicas: &[&PrivateRedis]) {
        until_within(AGREED_WITHIN, "the replicas have caught up", async || {
            let report = |&replica| raw_redis::try_command::<String>(replica, &["INFO", "replication"]);
            let reports = join_all(replicas.iter().map(report)).await;
            reports.iter().all(|report| report.as_ref().is_ok_and(|text| text.contains("master_link_status:up")))
        })
        .await;
    }

    /// Where it is, as Onair's configuration has it.
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.servers.iter().filter_map(|server| port_of(server, self.is_over_tls)).collect();
        let others: Vec<String> = ports[1..].iter().map(|port| format!("node=127.0.0.1:{port}")).collect();
        let scheme = if self.is_over_tls { "rediss-cluster" } else { "redis-cluster" };
        format!("{scheme}://:{}@127.0.0.1:{}?{}", self.password, ports[0], others.join("&"))
    }

    pub fn servers(&self) -> &[PrivateRedis] {
        &self.servers
    }

    /// The servers that are masters of slots now, by what a living one says.
    pub async fn masters(&self) -> Vec<usize> {
        let map = self.slots().await;
        let mut masters: Vec<usize> = map.into_iter().map(|(_, _, server)| server).collect();
        masters.sort_unstable();
        masters.dedup();
        masters
    }

    /// Which server is the master of a key now.
    pub async fn master_of(&self, key: &str) -> usize {
        let slot = i64::from(fred::util::redis_keyslot(key.as_bytes()));
        let map = self.slots().await;
        let (_, _, server) =
            map.iter().find(|(from, to, _)| (*from..=*to).contains(&slot)).expect("it covers all slots");
        *server
    }

    async fn slots(&self) -> Vec<(i64, i64, usize)> {
        for server in self.servers.iter().filter(|server| server.pid().is_some()) {
            let Ok(map) = raw_redis::try_command::<Value>(server, &["CLUSTER", "SLOTS"]).await else { continue };
            let number = |port| self.servers.iter().position(|server| server.port().map(i64::from) == Some(port));
            let slots = rows(map).into_iter();
            return slots.map(|(from, to, port)| (from, to, number(port).expect("one of ours"))).collect();
        }
        panic!("no server of the cluster answers")
    }

    /// Waits until every server that runs says that this one is the master of nothing.
    pub async fn until_replaced(&self, server: usize) {
        let port = i64::from(self.servers[server].port().expect("it has one"));
        until_within(AGREED_WITHIN, "all servers know that it was replaced", async || {
            let running = self.servers.iter().filter(|server| server.pid().is_some());
            let maps = join_all(running.map(|server| raw_redis::try_command::<Value>(server, &["CLUSTER", "SLOTS"])));
            maps.await.into_iter().flatten().flat_map(rows).all(|(_, _, master)| master != port)
        })
        .await;
    }

    pub fn server_mut(&mut self, server: usize) -> &mut PrivateRedis {
        &mut self.servers[server]
    }

    /// Waits until every server that runs calls the cluster whole, and all replicas have caught up.
    pub async fn until_whole(&self) {
        let running: Vec<&PrivateRedis> = self.servers.iter().filter(|server| server.pid().is_some()).collect();
        until_within(AGREED_WITHIN, "the cluster is whole", async || {
            let states = join_all(running.iter().map(|server| cluster_info(server))).await;
            states.iter().all(|info| info.contains("cluster_state:ok") && info.contains("cluster_slots_fail:0"))
        })
        .await;
        let masters = self.masters().await;
        let is_replica = |number: &usize| !masters.contains(number) && self.servers[*number].pid().is_some();
        let replicas = (0..self.servers.len()).filter(is_replica).map(|number| &self.servers[number]);
        self.until_replicated(&replicas.collect::<Vec<_>>()).await;
    }

    pub async fn kill_all(&mut self) {
        for server in &mut self.servers {
            server.kill().await.expect("it ends");
        }
    }

    pub async fn restart_all(&mut self) {
        try_join_all(self.servers.iter_mut().map(PrivateRedis::restart)).await.expect("they start again");
        self.until_whole().await;
    }
}

/// First slot, last slot and the port of their master.
fn rows(map: Value) -> Vec<(i64, i64, i64)> {
    let number = |value: &Value| value.as_i64().expect("a number");
    let row = |row: Value| {
        let row = row.into_array();
        (number(&row[0]), number(&row[1]), number(&row[2].clone().into_array()[1]))
    };
    map.into_array().into_iter().map(row).collect()
}

async fn start_server(options: ClusterOptions, password: &str, tls: Option<&str>) -> PrivateRedis {
    let (further_ports, tls): (&'static [&'static str], _) = match tls {
        Some(lines) => (&[BUS_PORT, TLS_PORT], format!("tls-cluster yes\ntls-replication yes\n{lines}")),
        None => (&[BUS_PORT], String::new()),
    };
    let settings = format!(
        "masterauth {password}\ncluster-enabled yes\ncluster-config-file nodes.conf\n\
         cluster-node-timeout {}\ncluster-replica-validity-factor 0\ncluster-replica-no-failover no\n\
         cluster-migration-barrier 99\nrepl-diskless-sync-delay 0\n{tls}{}",
        options.node_timeout_ms, options.settings,
    );
    let role = RedisRole::Member(Membership { password: password.to_owned(), settings, further_ports });
    let options = RedisOptions { persistence: options.persistence, ..RedisOptions::scratch_at_port() };
    PrivateRedis::start_as(role, options).await.expect("Redis starts")
}

async fn cluster_info(server: &PrivateRedis) -> String {
    raw_redis::try_command(server, &["CLUSTER", "INFO"]).await.unwrap_or_default()
}

async fn say(server: &PrivateRedis, words: &[&str]) {
    let answer: String = raw_redis::command(server, words).await;
    assert_eq!(answer, "OK", "{words:?}");
}
