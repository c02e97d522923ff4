//! A Redis that loses its memory, all of it or the last of it: whoever is on air stays there, nobody else gets in, keys work
//! again, dead ones stay dead, the list is right within five seconds, and the history is complete.

mod support;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onair::{
    config::Config,
    dev::servers::{Membership, Persistence, PrivateRedis, RedisOptions, RedisRole},
    domain::{StreamPath, StreamStateWord},
    postgres::EndedFilter,
};
use serde_json::json;
use support::{
    hammer::Hammer,
    measured::{RIGHT_WITHIN, say, soon, sources_on, tell},
    mediamtx::{Going, KickBehaviour, MediaMtx, PublishOutcome, Publisher},
    raw_redis,
    records::first_page,
    stack::{Replica, Stack, TestKey},
    stopwatch::Stopwatch,
    stores::until,
    waiting::id_of,
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// On each of the two nodes.
const ON_AIR: usize = 12;
const COMING: usize = 6;

/// Two replicas, each with a node that asks it.
struct Bench {
    stack: Stack,
    replicas: Vec<Replica>,
    nodes: Vec<Arc<MediaMtx>>,
}

impl Bench {
    async fn start(redis: RedisOptions) -> Self {
        let settings = |config: &mut Config| config.reconciler.poll_interval_ms = 500;
        let redis = PrivateRedis::start(redis).await.expect("Redis starts");
        let stack = Stack::start_on(redis, settings).await;
        let replicas = vec![stack.replica().await, stack.replica().await];
        let mut nodes = Vec::new();
        for (number, replica) in replicas.iter().enumerate() {
            nodes.push(replica.mediamtx(&format!("edge-{}", number + 1)).await);
        }
        until("both replicas know both nodes", async || {
            replicas.iter().all(|replica| replica.app.nodes.fleet().len() == 2)
        })
        .await;
        Self { stack, replicas, nodes }
    }

    fn one(&self) -> &Replica {
        &self.replicas[0]
    }

    fn both(&self) -> Vec<&Replica> {
        self.replicas.iter().collect()
    }

    async fn keys(&self, prefix: &str, count: usize) -> Vec<TestKey> {
        let broadcaster = self.one().broadcaster(prefix).await;
        let mut keys = Vec::new();
        for number in 0..count {
            let settings = json!({"broadcaster_id": broadcaster});
            keys.push(self.one().key_with(&format!("{prefix}/{number}"), settings).await);
        }
        keys
    }

    /// Brings a publisher on air for each key, on the nodes in turn.
    async fn publish(&self, keys: &[TestKey], going: Going) -> Vec<Publisher> {
        let mut publishers = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let node = &self.nodes[number % self.nodes.len()];
            publishers.push(node.publish(key.publisher().going(going)).await.admitted());
        }
        publishers
    }

    /// Whether what both replicas list is what the nodes have on air, and not the last that was known.
    async fn list_is_right(&self) -> bool {
        let truth = sources_on(&self.nodes);
        for replica in &self.replicas {
            let Ok(view) = replica.app.streams.view().await else { return false };
            if view.stale.is_some()
                || view.snapshot.streams().any(|stream| stream.state.word() != StreamStateWord::Live)
            {
                return false;
            }
            if replica.listed_sources().await != truth {
                return false;
            }
        }
        true
    }

    async fn until_written(&self) {
        until("the history has everything", async || self.one().app.redis.events_backlog().await == Ok(0)).await;
    }

    /// The sources of all streams that have ended by the history.
    async fn ended_sources(&self) -> HashSet<Uuid> {
        let page = first_page(1_000);
        let ended = self.one().app.postgres.ended_streams(&EndedFilter::default(), &page).await.unwrap();
        assert!(ended.next.is_none(), "all on one page");
        ended.items.iter().map(|record| record.stream.source.id.0).collect()
    }

    async fn stop(self) {
        for replica in self.replicas {
            replica.stop().await;
        }
    }
}

/// Publishers who come and go all the time, each on a path of its own.
struct Traffic {
    tasks: JoinSet<()>,
    admitted: Arc<Mutex<Vec<Uuid>>>,
    stopping: Arc<AtomicBool>,
}

impl Traffic {
    fn start(bench: &Bench, keys: &[TestKey]) -> Self {
        let (admitted, stopping) = (Arc::<Mutex<Vec<Uuid>>>::default(), Arc::default());
        let mut tasks = JoinSet::new();
        for (number, key) in keys.iter().cloned().enumerate() {
            let node = Arc::clone(&bench.nodes[number % bench.nodes.len()]);
            let (admitted, stopping) = (Arc::clone(&admitted), Arc::clone(&stopping));
            tasks.spawn(come_and_go(node, key, admitted, stopping));
        }
        Self { tasks, admitted, stopping }
    }

    /// Gives the sources that were admitted.
    async fn stop(mut self) -> Vec<Uuid> {
        self.stopping.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn come_and_go(node: Arc<MediaMtx>, key: TestKey, admitted: Arc<Mutex<Vec<Uuid>>>, stopping: Arc<AtomicBool>) {
    while !stopping.load(Ordering::Relaxed) {
        if let PublishOutcome::Admitted(publisher) = node.publish(key.publisher()).await {
            admitted.lock().unwrap_or_else(PoisonError::into_inner).push(publisher.id());
            tokio::time::sleep(Duration::from_millis(150)).await;
            publisher.disconnect();
            publisher.until_gone().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How a Redis loses its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    FlushAll,
    Restart,
}

async fn lose_memory(loss: Loss) {
    let mut bench = Bench::start(RedisOptions::scratch()).await;
    let held = bench.keys("held", 2 * ON_AIR).await;
    let coming = bench.keys("coming", 2 * COMING).await;
    let dead = bench.keys("dead", 4).await;
    let passing = bench.keys("passing", 4).await;
    let fresh = bench.keys("fresh", 1).await.remove(0);
    for key in &dead {
        bench.one().api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
    }
    let mut publishers = bench.publish(&held, Going::Online).await;
    soon("everybody is on air", async || bench.list_is_right().await).await;
    bench.until_written().await;
    let before: BTreeSet<String> = bench.one().on_air().await.iter().map(id_of).collect();
    let traffic = Traffic::start(&bench, &passing);

    // Admitted a moment ago: the history has not heard of the last of them, and nobody has seen them online.
    publishers.extend(bench.publish(&coming, Going::OnlineAfter(Duration::from_millis(700))).await);
    let all_held: Vec<TestKey> = held.iter().chain(&coming).cloned().collect();
    let at_held_paths = Hammer::start(&bench.both(), "edge-1", &all_held);
    let with_dead_keys = Hammer::start(&bench.both(), "edge-2", &dead);
    let since_the_loss = Stopwatch::start();
    match loss {
        Loss::FlushAll => raw_redis::forget_everything(&bench.stack.redis).await,
        Loss::Restart => bench.stack.redis.restart().await.unwrap(),
    }
    let mut newcomer = None;
    soon(&format!("{loss:?}: a new publisher gets in"), async || {
        let outcome = bench.nodes[1].publish(fresh.publisher()).await;
        newcomer = if let PublishOutcome::Admitted(publisher) = outcome { Some(publisher) } else { None };
        newcomer.is_some()
    })
    .await;
    publishers.extend(newcomer);
    let passed = traffic.stop().await;
    soon(&format!("{loss:?}: the list is right"), async || bench.list_is_right().await).await;
    let took = since_the_loss.elapsed();
    tell(&format!("{loss:?}: all of that, from the loss on"), took, RIGHT_WITHIN);
    assert!(took < RIGHT_WITHIN, "{took:?}");

    // Another look, long after everything is back: what a poller would find wrong, it has found by now.
    let polls = bench.nodes[0].counts().control_calls;
    until("the nodes were polled again and again", async || bench.nodes[0].counts().control_calls > polls + 6).await;
    let (at_held_paths, with_dead_keys) = (at_held_paths.stop().await, with_dead_keys.stop().await);
    say(&format!("{loss:?}: on held paths {:?}", at_held_paths.by_answer));
    say(&format!("{loss:?}: with dead keys {:?}", with_dead_keys.by_answer));
    assert_eq!((at_held_paths.let_in, with_dead_keys.let_in), (Vec::<String>::new(), Vec::new()));
    assert!(publishers.iter().all(Publisher::is_online), "nobody on air was thrown off");
    for node in &bench.nodes {
        assert_eq!(node.counts().kicked, Vec::<Uuid>::new(), "nobody was kicked");
    }
    let after: BTreeSet<String> = bench.one().on_air().await.iter().map(id_of).collect();
    assert!(after.is_superset(&before), "they are the same streams");

    for publisher in &publishers {
        publisher.disconnect();
    }
    soon(&format!("{loss:?}: everybody is off air"), async || bench.one().on_air().await.is_empty()).await;
    bench.until_written().await;
    let ended = bench.ended_sources().await;
    let everybody = publishers.iter().map(Publisher::id).chain(passed);
    let forgotten: Vec<Uuid> = everybody.filter(|source| !ended.contains(source)).collect();
    assert_eq!(forgotten, Vec::<Uuid>::new(), "the history is complete");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_gets_everything_back_and_nobody_notices_but_newcomers() {
    lose_memory(Loss::FlushAll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_empty_gets_everything_back() {
    lose_memory(Loss::Restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_with_its_append_only_file_is_back_after_the_pause() {
    let options = RedisOptions { persistence: Persistence::AppendOnly, ..RedisOptions::scratch() };
    let mut bench = Bench::start(options).await;
    let held = bench.keys("held", 2 * ON_AIR).await;
    let spare = bench.keys("spare", 1).await.remove(0);
    let publishers = bench.publish(&held, Going::Online).await;
    soon("everybody is on air", async || bench.list_is_right().await).await;
    bench.until_written().await;
    let before: Vec<_> = bench.one().on_air().await.iter().map(id_of).collect();
    let hammer = Hammer::start(&bench.both(), "edge-1", &held);

    bench.stack.redis.restart().await.unwrap();
    soon("restart with its file: a new publisher gets in", async || {
        matches!(bench.nodes[1].publish(spare.publisher()).await, PublishOutcome::Admitted(_))
    })
    .await;
    soon("restart with its file: the list is right", async || bench.list_is_right().await).await;
    let attempts = hammer.stop().await;
    say(&format!("restart with its file: on held paths {:?}", attempts.by_answer));
    assert_eq!(attempts.let_in, Vec::<String>::new());
    assert!(publishers.iter().all(Publisher::is_online));
    let after: Vec<_> = bench.one().on_air().await.iter().map(id_of).filter(|id| before.contains(id)).collect();
    assert_eq!(after.len(), before.len());
    bench.until_written().await;
    assert!(bench.ended_sources().await.is_empty(), "nothing ended");
    bench.stop().await;
}

/// A replica of a server that was alone so far.
async fn first_replica_of(server: &PrivateRedis) -> PrivateRedis {
    let url = server.url();
    let password = url.split([':', '@']).nth(2).unwrap().to_owned();
    let settings =
        format!("replicaof 127.0.0.1 {}\nmasterauth {password}\nrepl-diskless-sync-delay 0\n", server.port().unwrap());
    let role = RedisRole::Member(Membership { password, settings, further_ports: &[] });
    let options = RedisOptions { persistence: Persistence::None, ..RedisOptions::scratch_at_port() };
    PrivateRedis::start_as(role, options).await.unwrap()
}

/// Redis begins another history then, as after a promotion, and Onair cannot know that nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_replica_that_joins_costs_newcomers_a_pause_and_nobody_else_anything() {
    let bench = Bench::start(RedisOptions::scratch_at_port()).await;
    let held = bench.keys("held", 4).await;
    let spare = bench.keys("spare", 1).await.remove(0);
    let publishers = bench.publish(&held, Going::Online).await;
    soon("everybody is on air", async || bench.list_is_right().await).await;
    bench.until_written().await;
    let memory = format!("onair:{{{}}}:memory", spare.path.parse::<StreamPath>().unwrap().partition());
    let opened = async || raw_redis::command::<String>(&bench.stack.redis, &["HGET", &memory, "opened"]).await;
    let before = opened().await;

    let replica = first_replica_of(bench.stack.redis.single()).await;
    soon("a first replica has joined: the partition was closed and opened", async || opened().await != before).await;
    soon("a first replica has joined: a new publisher gets in", async || {
        matches!(bench.nodes[1].publish(spare.publisher()).await, PublishOutcome::Admitted(_))
    })
    .await;
    soon("a first replica has joined: the list is right", async || bench.list_is_right().await).await;
    assert!(publishers.iter().all(Publisher::is_online));
    bench.until_written().await;
    assert!(bench.ended_sources().await.is_empty(), "nothing ended");
    bench.stop().await;
    drop(replica);
}

/// As after a failover to a replica that lagged behind, or the start from an old snapshot: Redis holds what was true then.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_the_last_of_its_memory_believes_none_of_it_until_it_is_mended() {
    let mut bench = Bench::start(RedisOptions::scratch()).await;
    let stays = bench.keys("stays", 4).await;
    let leaves = bench.keys("leaves", 4).await;
    let comes = bench.keys("comes", 4).await;
    let dies = bench.keys("dies", 4).await;
    let staying = bench.publish(&stays, Going::Online).await;
    let leaving = bench.publish(&leaves, Going::Online).await;
    let dying = bench.publish(&dies, Going::Online).await;
    soon("everybody is on air", async || bench.list_is_right().await).await;
    bench.until_written().await;
    let _: String = raw_redis::command(&bench.stack.redis, &["SAVE"]).await;

    for publisher in &leaving {
        publisher.disconnect();
    }
    for key in &dies {
        bench.one().api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
    }
    let coming = bench.publish(&comes, Going::Online).await;
    soon("some came, some left", async || bench.list_is_right().await).await;
    bench.until_written().await;
    let at_held_paths = Hammer::start(&bench.both(), "edge-1", &[stays.clone(), comes.clone()].concat());
    let with_dead_keys = Hammer::start(&bench.both(), "edge-2", &dies);
    bench.stack.redis.kill().await.unwrap();
    bench.stack.redis.restart().await.unwrap();

    soon("old snapshot: the list is right", async || bench.list_is_right().await).await;
    soon("old snapshot: who left may come back", async || {
        matches!(bench.nodes[0].publish(leaves[0].publisher()).await, PublishOutcome::Admitted(_))
    })
    .await;
    let (at_held_paths, with_dead_keys) = (at_held_paths.stop().await, with_dead_keys.stop().await);
    say(&format!("old snapshot: on held paths {:?}", at_held_paths.by_answer));
    say(&format!("old snapshot: with dead keys {:?}", with_dead_keys.by_answer));
    assert_eq!((at_held_paths.let_in, with_dead_keys.let_in), (Vec::<String>::new(), Vec::new()));
    assert!(staying.iter().chain(&coming).all(Publisher::is_online), "nobody on air was thrown off");
    assert!(!dying.iter().any(Publisher::is_connected));
    bench.stop().await;
}

#[tokio::test]
async fn a_path_that_was_stopped_stays_closed_for_its_time() {
    let bench = Bench::start(RedisOptions::scratch()).await;
    let key = bench.keys("stopped", 1).await.remove(0);
    bench.publish(std::slice::from_ref(&key), Going::Online).await;
    let stream = bench.one().until_live(&key.path).await;
    bench.one().api.act(&format!("/v1/streams/{}/stop", id_of(&stream))).await.expect(200);
    bench.until_written().await;
    raw_redis::forget_everything(&bench.stack.redis).await;
    soon("emptied: the path is closed again", async || {
        bench.nodes[0].publish(key.publisher()).await.refused().body.contains("cooling_down")
    })
    .await;
    bench.stop().await;
}

#[tokio::test]
async fn a_kick_that_was_owed_is_carried_out_although_redis_forgot_it() {
    let bench = Bench::start(RedisOptions::scratch()).await;
    let keys = bench.keys("owed", 2).await;
    let publishers = bench.publish(&keys, Going::Online).await;
    soon("everybody is on air", async || bench.list_is_right().await).await;
    bench.until_written().await;
    for node in &bench.nodes {
        node.set_kick_behaviour(KickBehaviour::Failing);
    }
    for key in &keys {
        let revoked = bench.one().api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
        assert_eq!(revoked.json["publisher"], "leaving");
    }
    // Of one the history knows the end; of the other, maybe not.
    raw_redis::forget_everything(&bench.stack.redis).await;
    for node in &bench.nodes {
        node.set_kick_behaviour(KickBehaviour::Obeyed);
    }
    soon("emptied: who was revoked before is off air", async || !publishers.iter().any(Publisher::is_connected)).await;
    soon("emptied: the list is right", async || bench.list_is_right().await).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_change_of_a_key_takes_effect_although_postgres_was_restored_to_an_older_state() {
    let bench = Bench::start(RedisOptions::scratch()).await;
    // What Redis would hold of changes that the restored Postgres does not know: of many, and of one, which the next change counts like.
    for (key, revision) in bench.keys("restored", 2).await.into_iter().zip(["9", "2"]) {
        let in_redis = raw_redis::stream_key(&bench.stack.redis, &key.id).await;
        let _: u64 = raw_redis::command(&bench.stack.redis, &["HSET", &in_redis, "revision", revision]).await;
        bench.one().api.act(&format!("/v1/stream-keys/{}/disable", key.id)).await.expect(200);
        let refused = bench.nodes[0].publish(key.publisher()).await.refused();
        assert!(refused.body.contains("key_disabled"), "{revision}: {}", refused.body);
        bench.one().api.act(&format!("/v1/stream-keys/{}/enable", key.id)).await.expect(200);
        bench.nodes[0].publish(key.publisher()).await.admitted();
    }
    bench.stop().await;
}

#[tokio::test]
async fn nobody_is_admitted_while_redis_is_empty_and_postgres_away() {
    let bench = Bench::start(RedisOptions::scratch()).await;
    let key = bench.keys("waiting", 1).await.remove(0);
    bench.publish(std::slice::from_ref(&key), Going::Online).await;
    let stream = bench.one().until_live(&key.path).await;
    // A replica that cannot reach Postgres, and no other.
    let mut stack = bench.stack;
    for replica in bench.replicas {
        replica.stop().await;
    }
    stack.config.postgres.url = onair::config::ConfigSecret::new("postgres://onair@127.0.0.1:9/onair");
    stack.config.postgres.acquire_timeout_ms = 200;
    let replica = stack.replica().await;
    assert_eq!(id_of(&replica.until_live(&key.path).await), id_of(&stream));
    raw_redis::forget_everything(&stack.redis).await;
    until("the list says that it is stale", async || replica.api.get("/v1/streams").await.json["stale"] == true).await;
    assert_eq!(id_of(&replica.on_air().await[0]), id_of(&stream), "it is still the last that was known");
    let (status, code) = support::hammer::knock(&replica.url(), "edge-1", &key).await;
    assert_eq!((status, code.as_str()), (503, "state_unavailable"));
    replica.stop().await;
}
