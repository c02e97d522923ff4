//! What a master answered and its replica had not heard of when it took over: Redis replicates after it has answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    failovers::keys_on_master,
    support::{
        hammer::{Hammer, knock},
        measured::{say, sources_on, within},
        mediamtx::{MediaMtx, PublishOutcome, Publisher},
        raw_redis,
        redis_cluster::{ClusterOptions, MASTERS, RedisCluster},
        stack::{Replica, Stack, TestKey},
        stores::until,
        test_redis::TestRedis,
    },
};

/// Publishers that the replica has heard of, and that it has not.
const EACH: usize = 6;
/// Of which two seconds are the cluster's own patience with a silent server.
const RIGHT_AGAIN_WITHIN: Duration = Duration::from_secs(10);

struct Bench {
    stack: Stack,
    replicas: Vec<Replica>,
    nodes: Vec<Arc<MediaMtx>>,
    keys: Vec<TestKey>,
}

impl Bench {
    /// Keys for paths that the first master holds.
    async fn start(settings: &'static str) -> Self {
        let options = ClusterOptions { settings, ..ClusterOptions::failing_over() };
        let redis = TestRedis::Cluster(RedisCluster::start(options).await);
        let stack = Stack::start_on(redis, |config| config.admission.failures_burst = 10_000).await;
        let mut replicas = Vec::new();
        let mut nodes = Vec::new();
        for number in 0..2 {
            let replica = stack.replica().await;
            nodes.push(replica.mediamtx(&format!("edge-{number}")).await);
            replicas.push(replica);
        }
        let keys = keys_on_master(0, &stack, &replicas[0], 2 * EACH).await;
        Self { stack, replicas, nodes, keys }
    }

    async fn publish(&self, key: &TestKey) -> PublishOutcome {
        self.nodes[0].publish(key.publisher()).await
    }

    /// The replica of the first master hears nothing from now on.
    async fn deafen(&self) {
        let servers = self.stack.redis.servers();
        servers[MASTERS].suspend().expect("it stops");
        let cut: u64 = raw_redis::command(&servers[0], &["CLIENT", "KILL", "TYPE", "REPLICA"]).await;
        assert_eq!(cut, 1, "it has one replica");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_whom_the_new_master_has_not_heard_of_stay_on_air_and_nobody_joins_them() {
    let mut bench = Bench::start("").await;
    let (heard, unheard) = bench.keys.split_at(EACH);
    let mut publishers: Vec<Publisher> = Vec::new();
    for key in heard {
        publishers.push(bench.publish(key).await.admitted());
    }
    for key in heard {
        bench.replicas[0].until_live(&key.path).await;
    }
    bench.deafen().await;
    for key in unheard {
        publishers.push(bench.publish(key).await.admitted());
    }
    let died_at = Instant::now();
    bench.stack.redis.server_mut(0).kill().await.expect("it ends");
    bench.stack.redis.servers()[MASTERS].resume().expect("it goes on");
    let both: Vec<&Replica> = bench.replicas.iter().collect();
    let hammer = Hammer::start(&both, "edge-1", &bench.keys);

    until("the replica has taken over", async || bench.stack.redis.masters().await.contains(&MASTERS)).await;
    say(&format!("unheard: a replica took over after {} ms", died_at.elapsed().as_millis()));
    let what = "a master died that had admitted six whom its replica had not heard of: the list is right, and closed to others";
    within(RIGHT_AGAIN_WITHIN, what, async || {
        let on_nodes = sources_on(&bench.nodes);
        let mut right = on_nodes.len() == 2 * EACH;
        for replica in &bench.replicas {
            let view = replica.app.streams.view().await;
            right &= view.is_ok_and(|view| view.stale.is_none()) && replica.listed_sources().await == on_nodes;
        }
        right
    })
    .await;
    say(&format!("unheard: all listed {} ms after the death", died_at.elapsed().as_millis()));
    for (replica, key) in both.iter().flat_map(|replica| bench.keys.iter().map(move |key| (replica, key))) {
        until(&format!("{} is decided about again", key.path), async || {
            let (status, code) = knock(&replica.url(), "edge-1", key).await;
            assert!(status >= 300, "somebody gets in on {}", key.path);
            code == "key_in_use"
        })
        .await;
    }
    let attempts = hammer.stop().await;
    say(&format!("unheard: meanwhile others on the same paths were answered {:?}", attempts.by_answer));
    assert_eq!(attempts.let_in, Vec::<String>::new(), "nobody gets in beside them");
    assert!(publishers.iter().all(Publisher::is_online), "nobody is thrown off");
    for publisher in &publishers {
        publisher.disconnect();
    }
    bench.replicas[0].until_recorded_all(2 * EACH).await;
    for replica in bench.replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_must_have_a_replica_admits_nobody_without_one() {
    let bench = Bench::start("min-replicas-to-write 1\nmin-replicas-max-lag 1\n").await;
    bench.publish(&bench.keys[0]).await.admitted();
    bench.deafen().await;
    for key in &bench.keys[1..EACH] {
        let refusal = bench.publish(key).await.refused();
        assert!(refusal.body.contains("state_unavailable"), "{refusal:?}");
    }
    bench.stack.redis.servers()[MASTERS].resume().expect("it goes on");
    let what = "the replica hears again: publishers are admitted";
    within(RIGHT_AGAIN_WITHIN, what, async || {
        matches!(bench.publish(&bench.keys[1]).await, PublishOutcome::Admitted(_))
    })
    .await;
    for replica in bench.replicas {
        replica.stop().await;
    }
}
