//! Redis away, slow, hanging or forgotten by the network: nobody slips in, nobody waits, the list is served, and everything
//! works again by itself as soon as Redis does.

mod support;

use std::time::Duration;

use onair::{
    config::Config,
    dev::servers::{Home, Listen, Persistence, PrivateRedis, RedisOptions},
};
use serde_json::{Value, json};
use support::{
    api_client::{Answer, ApiClient},
    faulty_stack::FaultyStack,
    measured::{say, within},
    odd_redis::OddRedis,
    raw_redis,
    stack::{Replica, Stack, TestKey, node_password},
    stopwatch::Stopwatch,
    stores::until,
};
use uuid::Uuid;

/// What is promised, and what a busy machine may add to it before these tests speak of a broken promise.
const DEADLINE: Duration = Duration::from_millis(300);
const RECOVERY: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_millis(300);

/// How many publishers ask at once while Redis is not there.
const ASKING: usize = 20;

struct Bench {
    faulty: FaultyStack,
    replica: Replica,
    caller: ApiClient,
    /// Nobody uses it but the questions of these tests.
    key: TestKey,
    /// Is on air all the while, and its source.
    on_air: String,
    source: Uuid,
}

impl Bench {
    /// With the time for Redis that it has by default: what comes of it is what is promised.
    async fn start() -> Self {
        Self::start_with(Stack::keep_the_promised_time).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let faulty = FaultyStack::start_with(|config| {
            Stack::leave_nodes_alone(config);
            change(config);
        })
        .await;
        let replica = faulty.stack.replica().await;
        replica.add_node("edge-1").await;
        let caller = replica.api.as_node("edge-1", &node_password("edge-1"));
        let (key, held) = (replica.key("live/asking").await, replica.key("live/on-air").await);
        let source_id = Uuid::new_v4();
        until("it is let in", async || ask(&caller, &held, source_id).await.status == 204).await;
        let online = json!({"path": held.path, "source_type": "rtmpConn", "source_id": source_id});
        until("it is on air", async || caller.post("/v1/hooks/publish", &online).await.status == 200).await;
        let stream = replica.stream_on(&held.path).await.expect("it is on air");
        Self { faulty, replica, caller, key, on_air: support::waiting::id_of(&stream), source: source_id }
    }

    /// Does something to Redis, after which nobody can be admitted, sees what users see, undoes it, and sees how long it takes until all is well.
    async fn promises_hold(
        &mut self,
        (what, shown): (&str, List),
        fail: impl AsyncFnOnce(&mut FaultyStack),
        mend: impl AsyncFnOnce(&mut FaultyStack),
    ) {
        fail(&mut self.faulty).await;
        let mut refused_in = Duration::ZERO;
        let mut listed_in = Duration::ZERO;
        for _ in 0..3 {
            let questions = (0..ASKING).map(async |_| {
                let watch = Stopwatch::start();
                ask(&self.caller, &self.key, Uuid::new_v4()).await.expect_problem(503, "state_unavailable");
                watch.elapsed()
            });
            let slowest = futures_util::future::join_all(questions).await.into_iter().max().unwrap_or_default();
            refused_in = refused_in.max(slowest);
            let watch = Stopwatch::start();
            let list = self.replica.api.get("/v1/streams").await.expect(200);
            listed_in = listed_in.max(watch.elapsed());
            assert!(shown.may_be(&list.json["stale"]), "{what}: {}", list.text);
            assert_eq!(list.json["items"][0]["id"], self.on_air, "{what}: {}", list.text);
        }
        assert!(refused_in < DEADLINE + MARGIN, "{what}: refused after {refused_in:?}");
        let ready = self.replica.api.anonymous().get("/readyz").await.expect_problem(503, "not_ready");
        assert_eq!(ready.json["dependencies"], json!({"redis": "unavailable", "postgres": "ok"}), "{what}");

        mend(&mut self.faulty).await;
        let back = self.recovers(what).await;
        say(&format!(
            "{what}: {} publishers refused, the slowest after {} ms; list in {} ms; all well {} ms after its return",
            3 * ASKING,
            refused_in.as_millis(),
            listed_in.as_millis(),
            back.as_millis()
        ));
    }

    /// Until it is heard: one of several connections may still be of the time before, and the path would stay held.
    async fn leave(&self, source_id: Uuid) {
        let gone = json!({"path": self.key.path, "source_type": "rtmpConn", "source_id": source_id});
        until("it has left", async || self.caller.post("/v1/hooks/unpublish", &gone).await.status == 200).await;
    }

    /// Waits until all is well, which has to be soon.
    async fn recovers(&self, what: &str) -> Duration {
        let what = format!("{what}: a publisher is admitted, the list is fresh, and it says that it is ready");
        let took = within(RECOVERY + MARGIN, &what, async || {
            let source_id = Uuid::new_v4();
            if ask(&self.caller, &self.key, source_id).await.status != 204 {
                return false;
            }
            self.leave(source_id).await;
            let list = self.replica.api.get("/v1/streams").await.expect(200);
            list.json["stale"] == false && self.replica.api.anonymous().get("/readyz").await.status == 200
        })
        .await;
        let list = self.replica.api.get("/v1/streams").await.expect(200);
        let ids: Vec<&Value> = list.json["items"].as_array().expect("a list").iter().map(|item| &item["id"]).collect();
        assert!(ids.contains(&&json!(self.on_air)), "{what}: who was on air is still: {}", list.text);
        took
    }
}

/// How the list has to be while nobody can be admitted.
#[derive(Clone, Copy)]
enum List {
    Stale,
    /// Redis can still be read.
    Fresh,
    /// Now this, now that.
    Either,
}

impl List {
    fn may_be(self, stale: &Value) -> bool {
        match self {
            Self::Stale => stale == true,
            Self::Fresh => stale == false,
            Self::Either => stale.is_boolean(),
        }
    }
}

async fn ask(caller: &ApiClient, key: &TestKey, source_id: impl Into<Option<Uuid>>) -> Answer {
    let source_id: Option<Uuid> = source_id.into();
    let call = json!({"ip": "192.0.2.1", "user": "", "password": "", "token": "", "action": "publish", "path": key.path,
        "protocol": "rtmp", "id": source_id, "query": format!("key={}", key.secret), "userAgent": "an encoder"});
    caller.post("/v1/mediamtx/auth", &call).await
}

#[tokio::test]
async fn redis_that_is_cut_off_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let cut = async |faulty: &mut FaultyStack| faulty.redis_line.cut();
    bench.promises_hold(("connections cut", List::Stale), cut, heal).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_behind_a_network_that_hangs_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let hang = async |faulty: &mut FaultyStack| faulty.redis_line.hang();
    bench.promises_hold(("the network hangs", List::Stale), hang, heal).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_behind_a_black_hole_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let swallow = async |faulty: &mut FaultyStack| faulty.redis_line.black_hole();
    bench.promises_hold(("a black hole", List::Stale), swallow, heal).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_is_too_slow_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let slow = async |faulty: &mut FaultyStack| faulty.redis_line.slow(Duration::from_millis(150));
    bench.promises_hold(("300 ms slower", List::Stale), slow, heal).await;
    bench.replica.stop().await;
}

/// A Redis that is busy is not away: its answers to those who came before put off the deadline of those who wait.
#[tokio::test]
async fn redis_that_answers_others_is_waited_for_beyond_the_deadline() {
    // Long, so that a machine that stands still for a moment is not taken for a silent Redis.
    let deadline = Duration::from_millis(2_200);
    let bench = Bench::start_with(|config| {
        config.redis.command_timeout_ms = 2_000;
        config.admission.deadline_ms = 2_200;
        config.admission.busy_deadline_ms = 9_000;
    })
    .await;
    bench.faulty.redis_line.slow(Duration::from_millis(200));
    let questions = (0..400).map(async |_| {
        let watch = Stopwatch::start();
        ask(&bench.caller, &bench.key, None).await.expect(204);
        watch.elapsed()
    });
    let slowest = futures_util::future::join_all(questions).await.into_iter().max().unwrap_or_default();
    assert!(slowest > deadline, "nobody had to wait for longer: {slowest:?}");
    say(&format!("400 at once: all admitted, the slowest after {} ms", slowest.as_millis()));
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_is_frozen_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let freeze = async |faulty: &mut FaultyStack| faulty.stack.redis.suspend().unwrap();
    let thaw = async |faulty: &mut FaultyStack| faulty.stack.redis.resume().unwrap();
    bench.promises_hold(("SIGSTOP", List::Stale), freeze, thaw).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_is_killed_refuses_in_time_and_is_used_again_when_it_is_back_with_its_file() {
    let mut bench = Bench::start().await;
    bench.recovers("before").await;
    until("all of it is in its file", async || {
        let report: String = raw_redis::command(&bench.faulty.stack.redis, &["INFO", "persistence"]).await;
        report.contains("aof_buffer_length:0\r\n")
    })
    .await;
    let kill = async |faulty: &mut FaultyStack| faulty.stack.redis.kill().await.unwrap();
    let restart = async |faulty: &mut FaultyStack| faulty.stack.redis.restart().await.unwrap();
    bench.promises_hold(("killed", List::Stale), kill, restart).await;
    bench.replica.stop().await;
}

/// Nobody tells a client that its connections are gone: it has to notice, also while it is busy.
#[tokio::test]
async fn connections_that_the_network_forgot_are_made_anew_within_two_seconds_under_load() {
    let bench = Bench::start().await;
    let opened = bench.faulty.redis_line.opened();
    bench.faulty.redis_line.half_open();
    let mut refused = 0;
    let what = "half-open connections: publishers are told twenty times in a row that they may";
    let mut allowed = 0;
    let took = within(RECOVERY + MARGIN, what, async || {
        let watch = Stopwatch::start();
        // One that claims nothing, or a hook that is lost would keep the path closed for the next.
        let answer = ask(&bench.caller, &bench.key, None).await;
        assert!(watch.elapsed() < DEADLINE + MARGIN, "{:?}", watch.elapsed());
        if answer.status == 204 {
            allowed += 1;
        } else {
            answer.expect_problem(503, "state_unavailable");
            (refused, allowed) = (refused + 1, 0);
        }
        allowed == 20
    })
    .await;
    assert!(refused > 0, "nothing was lost");
    let anew = bench.faulty.redis_line.opened() - opened;
    say(&format!("half-open: {refused} refused, {anew} connections made anew, all well after {} ms", took.as_millis()));
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_is_full_refuses_publishers_and_still_tells_what_is_on_air() {
    let mut bench = Bench::start().await;
    let fill = async |faulty: &mut FaultyStack| set(faulty.stack.redis.single(), "maxmemory", "1").await;
    let make_room = async |faulty: &mut FaultyStack| set(faulty.stack.redis.single(), "maxmemory", "0").await;
    bench.promises_hold(("OOM", List::Fresh), fill, make_room).await;

    // An end has to be written too: it is told as not done, and done when it is said again.
    set(bench.faulty.stack.redis.single(), "maxmemory", "1").await;
    let gone = json!({"path": "live/on-air", "source_type": "rtmpConn", "source_id": bench.source});
    bench.caller.post("/v1/hooks/unpublish", &gone).await.expect_problem(503, "state_unavailable");
    assert!(bench.replica.stream_on("live/on-air").await.is_some());
    set(bench.faulty.stack.redis.single(), "maxmemory", "0").await;
    assert_eq!(bench.caller.post("/v1/hooks/unpublish", &gone).await.expect(200).json["result"], "ended");
    assert!(bench.replica.stream_on("live/on-air").await.is_none());
    bench.replica.stop().await;
}

/// What is written to the history is what frees memory: it has to go on where nothing else can be written, not even a lease.
#[tokio::test]
async fn redis_that_is_full_of_history_is_emptied_when_postgres_is_back() {
    let bench = Bench::start().await;
    bench.faulty.postgres_line.cut();
    for _ in 0..3 {
        let source_id = Uuid::new_v4();
        until("it is let in", async || ask(&bench.caller, &bench.key, source_id).await.status == 204).await;
        bench.leave(source_id).await;
    }
    set(bench.faulty.stack.redis.single(), "maxmemory", "1").await;
    // Longer than a lease lasts.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(bench.replica.app.redis.events_backlog().await.expect("Redis answers") > 0);
    bench.faulty.postgres_line.heal();
    until("the log is empty", async || bench.replica.app.redis.events_backlog().await == Ok(0)).await;
    set(bench.faulty.stack.redis.single(), "maxmemory", "0").await;
    let ended = bench.replica.api.get("/v1/streams?state=ended").await.expect(200);
    assert_eq!(ended.json["items"].as_array().map(Vec::len), Some(3), "{}", ended.text);
    bench.replica.stop().await;
}

/// A failover behind one address: the connections lead to the old master, which is a replica now; who connects anew gets to
/// the new one.
#[tokio::test]
async fn redis_that_became_a_replica_refuses_publishers_and_the_new_master_is_found_without_a_cut() {
    let mut bench = Bench::start().await;
    let listen = Listen::LoopbackPort(None);
    let options = RedisOptions { home: Home::Scratch, persistence: Persistence::None, listen };
    let other = PrivateRedis::start(options).await.unwrap();
    let (old, new) = (bench.faulty.stack.redis.single(), &other);
    let password = |redis: &PrivateRedis| redis.url().parse::<url::Url>().unwrap().password().unwrap().to_owned();
    set(new, "masterauth", &password(old)).await;
    set(old, "masterauth", &password(old)).await;
    follow(new, old).await;
    let old_password = password(old);
    let swap = async |faulty: &mut FaultyStack| {
        let _: String = raw_redis::command(&other, &["REPLICAOF", "NO", "ONE"]).await;
        set(&other, "requirepass", &old_password).await;
        let port = other.port().unwrap().to_string();
        let _: String = raw_redis::command(&faulty.stack.redis, &["REPLICAOF", "127.0.0.1", &port]).await;
    };
    let lead_on = async |faulty: &mut FaultyStack| faulty.redis_line.lead_to(other.port().unwrap());
    bench.promises_hold(("READONLY", List::Either), swap, lead_on).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_is_loading_refuses_in_time_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let odd = OddRedis::that_says("LOADING Redis is loading the dataset in memory").await;
    let begin = async |faulty: &mut FaultyStack| {
        faulty.redis_line.lead_to(odd.port());
        faulty.redis_line.cut_once();
    };
    let end = async |faulty: &mut FaultyStack| {
        faulty.redis_line.lead_to(faulty.stack.redis.single().port().unwrap());
        faulty.redis_line.cut_once();
    };
    bench.promises_hold(("LOADING", List::Stale), begin, end).await;
    assert!(odd.refused() > 0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_says_it_moved_is_asked_for_anew_without_a_cut() {
    let mut bench = Bench::start().await;
    let odd = OddRedis::that_says("MOVED 3999 127.0.0.1:1").await;
    let begin = async |faulty: &mut FaultyStack| {
        faulty.redis_line.lead_to(odd.port());
        faulty.redis_line.cut_once();
    };
    let end = async |faulty: &mut FaultyStack| faulty.redis_line.lead_to(faulty.stack.redis.single().port().unwrap());
    bench.promises_hold(("MOVED", List::Stale), begin, end).await;
    assert!(odd.refused() > 0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn redis_that_forgot_the_scripts_is_told_them_and_nobody_notices() {
    let bench = Bench::start_with(|_| ()).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let _: String = raw_redis::command(&bench.faulty.stack.redis, &["SCRIPT", "FLUSH"]).await;
        let source_id = Uuid::new_v4();
        let watch = Stopwatch::start();
        ask(&bench.caller, &bench.key, source_id).await.expect(204);
        slowest = slowest.max(watch.elapsed());
        bench.leave(source_id).await;
    }
    say(&format!("NOSCRIPT: 20 times, everybody admitted, the slowest after {} ms", slowest.as_millis()));
    assert!(slowest < DEADLINE);
    bench.replica.stop().await;
}

/// The cause: nothing repeated a change of the fleet that Redis had not heard of. A node that was removed was asked for on, and what was
/// on air there stayed so for ever.
#[tokio::test]
async fn a_change_of_the_fleet_that_redis_did_not_hear_of_takes_effect_by_itself() {
    let bench = Bench::start_with(|_| ()).await;
    let api = &bench.replica.api;
    bench.replica.add_node("edge-2").await;
    let moved = json!({"control_url": "http://127.0.0.1:10"});
    bench.faulty.redis_line.cut();
    api.delete("/v1/nodes/edge-1").await.expect_problem(503, "recorded_not_yet_effective");
    for node in ["edge-2", "edge-3"] {
        api.put(&format!("/v1/nodes/{node}"), &moved).await.expect_problem(503, "recorded_not_yet_effective");
    }
    bench.faulty.redis_line.heal();
    until("the fleet is what it was made", async || {
        let fleet = api.get("/v1/nodes").await;
        let nodes = fleet.json["items"].as_array().cloned().unwrap_or_default();
        let nodes = nodes.iter().map(|node| (node["name"].as_str().unwrap(), node["control_url"].as_str().unwrap()));
        nodes.collect::<Vec<_>>() == [("edge-2", "http://127.0.0.1:10/"), ("edge-3", "http://127.0.0.1:10/")]
    })
    .await;
    until("what was on air on the node that was removed has ended", async || {
        let stream = api.get(&format!("/v1/streams/{}", bench.on_air)).await;
        stream.json["end_reason"] == "node_removed"
    })
    .await;
    bench.replica.stop().await;
}

async fn heal(faulty: &mut FaultyStack) {
    faulty.redis_line.heal();
}

async fn set(redis: &PrivateRedis, name: &str, value: &str) {
    let _: String = raw_redis::command(redis, &["CONFIG", "SET", name, value]).await;
}

/// Makes one the replica of another, and waits until it has everything.
async fn follow(replica: &PrivateRedis, master: &PrivateRedis) {
    let port = master.port().expect("it has a port").to_string();
    let _: String = raw_redis::command(replica, &["REPLICAOF", "127.0.0.1", &port]).await;
    until("the replica has everything", async || {
        let report: String = raw_redis::command(replica, &["INFO", "replication"]).await;
        report.contains("master_link_status:up")
    })
    .await;
}
