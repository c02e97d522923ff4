//! Masters of Redis die under load, one after the other, and replicas take their place: in a cluster and under sentinels.
//!
//! What is asserted: nobody stays on air beside another on the same path; what was answered once a failover had settled is
//! in the history, once and with its end; nothing grows. What is printed: how long whom was refused, and what Redis'
//! asynchronous replication lost. `ONAIR_FAILOVER_SECONDS` says for how long each runs. The seed is fixed.

#[path = "../support/mod.rs"]
mod support;

mod failovers;
mod hanging;
mod resources;
mod unheard;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use support::{
    broadcaster::broadcast,
    ledger::{Ledger, fates},
    measured::sources_on,
    mediamtx::MediaMtx,
    redis_cluster::{ClusterOptions, RedisCluster},
    redis_sentinels::{RedisSentinels, SentinelOptions},
    service::Service,
    stack::Stack,
    stores::{AGREED_WITHIN, redis_at, until, until_within},
    test_redis::TestRedis,
};
use tokio::task::JoinSet;

use failovers::{Failover, account, key_of};
use resources::{Course, Resources};

const SEED: u64 = 0xFA11_04E2;
const BROADCASTERS: usize = 24;
const VARIABLES: [(&str, &str); 2] = [
    // All of them share one address.
    ("ONAIR_ADMISSION_FAILURES_BURST", "10000"),
    ("ONAIR_ADMISSION_CONNECTING_TIMEOUT_MS", "4000"),
];
/// After a replica has taken over and Onair is served by it, how long until everything has to be as ever.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// When all have left, how long until nobody is listed.
const EMPTY_WITHIN: Duration = Duration::from_secs(20);
/// How long it is quiet between two deaths.
const PEACE: Duration = Duration::from_secs(4);

fn duration() -> Duration {
    let seconds = std::env::var("ONAIR_FAILOVER_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(25))
}

/// Two replicas, each a process of its own; two nodes, and everybody who broadcasts.
struct World {
    stack: Stack,
    services: Vec<Service>,
    nodes: Vec<Arc<MediaMtx>>,
    ledger: Arc<Ledger>,
    failovers: Vec<Failover>,
    broadcasters: JoinSet<()>,
}

impl World {
    async fn start(redis: TestRedis) -> Self {
        let stack = Stack::start_on(redis, Stack::keep_the_promised_time).await;
        let mut services = Vec::new();
        let mut nodes = Vec::new();
        for number in 0..2 {
            let service = Service::start(&stack.config, &VARIABLES).await;
            nodes.push(service.mediamtx(&format!("edge-{number}")).await);
            services.push(service);
        }
        let api = services[0].api().await;
        let ledger = Arc::<Ledger>::default();
        let mut broadcasters = JoinSet::new();
        for number in 0..BROADCASTERS {
            let key = api.key(&format!("live/{number:02}")).await;
            broadcasters.spawn(broadcast(nodes.clone(), key, Arc::clone(&ledger), SEED + number as u64));
        }
        Self { stack, services, nodes, ledger, failovers: Vec::new(), broadcasters }
    }

    /// The master of a key dies; returns once its place is taken and everything is whole again.
    async fn a_master_dies(&mut self, key: &str) {
        let victim = self.stack.redis.master_of(key).await;
        let mut affected = Vec::new();
        for path in self.ledger.paths() {
            if self.stack.redis.master_of(&key_of(&path)).await == victim {
                affected.push(path);
            }
        }
        let died_at = Instant::now();
        self.stack.redis.server_mut(victim).kill().await.expect("it ends");
        until_within(AGREED_WITHIN, "a replica has taken its place", async || {
            !self.stack.redis.masters().await.contains(&victim)
        })
        .await;
        let taken_over_at = Instant::now();
        until_within(AGREED_WITHIN, "everybody is served again", async || {
            self.ledger.served_since(taken_over_at, &affected)
        })
        .await;
        let settled_at = Instant::now() + SETTLED_AFTER;
        self.failovers.push(Failover { affected, died_at, taken_over_at, settled_at });
        tokio::time::sleep(SETTLED_AFTER).await;
        self.stack.redis.until_replaced(victim).await;
        self.stack.redis.server_mut(victim).restart().await.expect("it starts again");
        self.stack.redis.until_whole().await;
    }

    async fn resources(&self) -> Resources {
        Resources::taken(&self.services, &self.stack.redis).await
    }

    /// Everybody leaves: what is listed and what the history has is right.
    async fn end(mut self, form: &str) {
        self.ledger.end();
        while let Some(ended) = self.broadcasters.join_next().await {
            ended.expect("nobody fails");
        }
        let api = self.services[0].api().await;
        let redis = redis_at(&self.stack.redis.url()).await;
        let began = Instant::now();
        loop {
            let (on_nodes, listed) = (sources_on(&self.nodes), api.on_air().await);
            if on_nodes.is_empty() && listed.is_empty() {
                break;
            }
            let closed = redis.closed_partitions().await;
            let rest = format!("on the nodes {on_nodes:?}, listed {listed:#?}, closed partitions {closed:?}");
            assert!(began.elapsed() < EMPTY_WITHIN, "{form}: everybody has left, and still: {rest}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until("the history has everything", async || redis.events_backlog().await == Ok(0)).await;
        let fates = fates(self.stack.config.postgres.url.reveal()).await;
        account(form, &self.failovers, &self.ledger, &fates);
        self.ledger.close(form);
        for service in self.services {
            let (status, said) = service.stop().await;
            let last: Vec<&String> = said.iter().rev().take(5).collect();
            assert!(status.success(), "{form}: {status}: {last:#?}");
        }
    }
}

async fn masters_die(form: &str, redis: TestRedis) {
    let began = Instant::now();
    let mut world = World::start(redis).await;
    tokio::time::sleep(PEACE).await;
    let mut course = Course::begin(form, world.resources().await);
    for number in 0.. {
        world.a_master_dies(&format!("onair:{{{:02}}}:live", (number * 11) % 32)).await;
        tokio::time::sleep(PEACE).await;
        course.note(world.resources().await);
        if began.elapsed() > duration() {
            break;
        }
    }
    world.end(form).await;
    course.assert_steady();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_masters_die_under_load() {
    let cluster = RedisCluster::start(ClusterOptions::failing_over()).await;
    masters_die("cluster", TestRedis::Cluster(cluster)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_sentinels_masters_die_under_load() {
    let group = RedisSentinels::start(SentinelOptions::failing_over()).await;
    masters_die("sentinels", TestRedis::Sentinels(group)).await;
}
