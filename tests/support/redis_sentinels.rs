//! A real Redis with replicas, and three sentinels that put a replica in the place of a master that is gone.

use futures_util::future::join_all;
use onair::dev::servers::{Membership, Persistence, PrivateRedis, RedisOptions, RedisRole};
use uuid::Uuid;

use super::{
    raw_redis,
    stores::{AGREED_WITHIN, until_within},
};

const SENTINELS: usize = 3;
const QUORUM: usize = 2;
pub(super) const TLS_PORT: &str = "tls-port";
/// What the sentinels call the service.
const SERVICE: &str = "onair";

/// How they are to be.
#[derive(Clone, Copy, Debug)]
pub struct SentinelOptions {
    pub replicas: usize,
    /// How long the master may be silent before it counts as gone.
    pub down_after_ms: u64,
    /// Further lines of every store's configuration.
    pub settings: &'static str,
}

impl SentinelOptions {
    /// Where nothing fails.
    pub fn calm() -> Self {
        Self { replicas: 1, down_after_ms: 15_000, settings: "" }
    }

    /// Where masters fail, which is noticed soon.
    pub fn failing_over() -> Self {
        Self { replicas: 2, down_after_ms: 1_000, settings: "" }
    }
}

/// The stores and their sentinels. All end when this is dropped.
pub struct RedisSentinels {
    stores: Vec<PrivateRedis>,
    sentinels: Vec<PrivateRedis>,
    password: String,
    sentinel_password: String,
    is_over_tls: bool,
}

impl RedisSentinels {
    pub async fn start(options: SentinelOptions) -> Self {
        Self::start_with(options, None).await
    }

    /// Stores and sentinels that speak TLS with one another and with others, by these lines of their configuration.
    pub async fn start_over_tls(options: SentinelOptions, settings: &str) -> Self {
        Self::start_with(options, Some(settings)).await
    }

    async fn start_with(options: SentinelOptions, tls: Option<&str>) -> Self {
        // Two passwords, as careful operators have it: one of the stores, one of the sentinels.
        let password = Uuid::new_v4().simple().to_string();
        let sentinel_password = Uuid::new_v4().simple().to_string();
        let settings = format!("{}{}", tls_settings(tls), options.settings);
        let master = start_store(&password, tls.is_some(), &settings).await;
        let port = port_of(&master, tls.is_some()).expect("it has one");
        let of_replica = format!("replicaof 127.0.0.1 {port}\n{settings}");
        let starting = (0..options.replicas).map(|_| start_store(&password, tls.is_some(), &of_replica));
        let mut stores = vec![master];
        stores.extend(join_all(starting).await);
        let starting = (0..SENTINELS).map(|_| start_sentinel([&sentinel_password, &password], port, tls, options));
        let sentinels = join_all(starting).await;
        let group = Self { stores, sentinels, password, sentinel_password, is_over_tls: tls.is_some() };
        group.until_whole().await;
        group
    }

    /// Waits until every sentinel knows every other one and every replica, and the replicas have caught up.
    pub async fn until_whole(&self) {
        let replicas = self.stores.iter().filter(|store| store.pid().is_some()).count() - 1;
        let expected = [format!("slaves={replicas},sentinels={SENTINELS}"), "status=ok".to_owned()];
        until_within(AGREED_WITHIN, "the sentinels know one another", async || {
            let reports = join_all(
                self.sentinels.iter().map(|sentinel| raw_redis::try_command::<String>(sentinel, &["INFO", "sentinel"])),
            )
            .await;
            reports.iter().flatten().filter(|report| expected.iter().all(|words| report.contains(words))).count()
                == SENTINELS
        })
        .await;
        until_within(AGREED_WITHIN, "the replicas have caught up", async || {
            let reports = join_all(
                self.stores.iter().map(|store| raw_redis::try_command::<String>(store, &["INFO", "replication"])),
            )
            .await;
            reports.iter().flatten().filter(|report| report.contains("master_link_status:up")).count() >= replicas
        })
        .await;
    }

    /// Where it is, as Onair's configuration has it.
    pub fn url(&self) -> String {
        let ports: Vec<u16> =
            self.sentinels.iter().filter_map(|sentinel| port_of(sentinel, self.is_over_tls)).collect();
        let scheme = if self.is_over_tls { "rediss-sentinel" } else { "redis-sentinel" };
        let others: Vec<String> = ports[1..].iter().map(|port| format!("node=127.0.0.1:{port}")).collect();
        format!(
            "{scheme}://:{}@127.0.0.1:{}?{}&sentinelServiceName={SERVICE}&sentinelPassword={}",
            self.password,
            ports[0],
            others.join("&"),
            self.sentinel_password,
        )
    }

    pub fn stores(&self) -> &[PrivateRedis] {
        &self.stores
    }

    /// The store that the sentinels call the master now.
    pub async fn master(&self) -> usize {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        for sentinel in &self.sentinels {
            if let Ok(address) = raw_redis::try_command::<Vec<String>>(sentinel, &words).await {
                let port = address[1].parse().ok();
                let place = self.stores.iter().position(|store| port_of(store, self.is_over_tls) == port);
                return place.expect("one of ours");
            }
        }
        panic!("no sentinel answers")
    }

    /// Waits until all sentinels name another one than this.
    pub async fn until_replaced(&self, store: usize) {
        let port = port_of(&self.stores[store], self.is_over_tls).expect("it has one").to_string();
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        until_within(AGREED_WITHIN, "all sentinels know that it was replaced", async || {
            let asking = self.sentinels.iter().map(|one| raw_redis::try_command::<Vec<String>>(one, &words));
            join_all(asking).await.iter().all(|address| address.as_ref().is_ok_and(|address| address[1] != port))
        })
        .await;
    }

    pub fn store_mut(&mut self, store: usize) -> &mut PrivateRedis {
        &mut self.stores[store]
    }
}

/// The port at which others know a server.
pub(super) fn port_of(server: &PrivateRedis, is_over_tls: bool) -> Option<u16> {
    if is_over_tls { server.further_port(TLS_PORT) } else { server.port() }
}

fn further_ports(is_over_tls: bool) -> &'static [&'static str] {
    if is_over_tls { &[TLS_PORT] } else { &[] }
}

fn tls_settings(tls: Option<&str>) -> String {
    tls.map_or_else(String::new, |lines| format!("tls-replication yes\n{lines}"))
}

async fn start_store(password: &str, is_over_tls: bool, settings: &str) -> PrivateRedis {
    let settings = format!("masterauth {password}\nrepl-diskless-sync-delay 0\n{settings}");
    let further_ports = further_ports(is_over_tls);
    let role = RedisRole::Member(Membership { password: password.to_owned(), settings, further_ports });
    let options = RedisOptions { persistence: Persistence::None, ..RedisOptions::scratch_at_port() };
    PrivateRedis::start_as(role, options).await.expect("Redis starts")
}

async fn start_sentinel(
    [own, of_stores]: [&str; 2],
    master_port: u16,
    tls: Option<&str>,
    options: SentinelOptions,
) -> PrivateRedis {
    let settings = format!(
        "{}sentinel monitor {SERVICE} 127.0.0.1 {master_port} {QUORUM}\nsentinel auth-pass {SERVICE} {of_stores}\n\
         sentinel sentinel-pass {own}\nsentinel down-after-milliseconds {SERVICE} {}\n\
         sentinel failover-timeout {SERVICE} 4000\nsentinel parallel-syncs {SERVICE} 2\n",
        tls_settings(tls),
        options.down_after_ms,
    );
    let further_ports = further_ports(tls.is_some());
    let role = RedisRole::Sentinel(Membership { password: own.to_owned(), settings, further_ports });
    PrivateRedis::start_as(role, RedisOptions::scratch_at_port()).await.expect("a sentinel starts")
}
