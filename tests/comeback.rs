//! A broadcaster who lost the network is back at once, and nobody takes the path of one who did not.

mod support;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use support::{
    measured::{RIGHT_WITHIN, soon, within},
    mediamtx::{HookBehaviour, MediaMtx, PublishOutcome, PublishRequest, Publisher},
    stack::{Replica, Stack, TestKey},
    stopwatch::Stopwatch,
    stores::until,
    test_redis,
    waiting::id_of,
};

/// A power cut, and one retry of an encoder that tries again every two seconds.
const POWER_CUT: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(2);

struct Bench {
    replica: Replica,
    node: Arc<MediaMtx>,
    other: Arc<MediaMtx>,
    _stack: Stack,
}

impl Bench {
    /// A service as it is configured by default, and two nodes.
    async fn start(hooks: HookBehaviour) -> Self {
        let stack = Stack::start().await;
        let replica = stack.replica().await;
        let node = replica.mediamtx_with("edge-1", |options| options.hook_behaviour = hooks).await;
        let other = replica.mediamtx_with("edge-2", |options| options.hook_behaviour = hooks).await;
        Self { replica, node, other, _stack: stack }
    }

    /// A publisher on the first node, watched for a few polls.
    async fn live(&self, settings: Value) -> (TestKey, Publisher, Value) {
        let key = self.replica.key_with("live/ada", settings).await;
        let publisher = self.node.publish(key.publisher()).await.admitted();
        let stream = self.replica.until_live(&key.path).await;
        let polls = || self.node.counts().control_calls_to("/v3/paths/list");
        let before = polls();
        until("it was watched", async || polls() >= before + 3).await;
        (key, publisher, stream)
    }

    /// The stream on the path, once the newcomer holds it and the node has closed the other.
    async fn in_place_of(&self, older: (&Publisher, &Value), newer: &Publisher, reason: &str) -> Value {
        let (older, older_stream) = older;
        soon(&format!("{reason}: the old source is gone"), async || !older.is_connected()).await;
        let stream = self.replica.live_soon(reason, newer.path()).await;
        assert_ne!(stream["id"], older_stream["id"]);
        let details = self.replica.details(&id_of(&stream)).await;
        assert_eq!(details["source"]["id"], newer.id().to_string());
        let older_details = self.replica.details(&id_of(older_stream)).await;
        assert!(details["epoch"].as_i64() > older_details["epoch"].as_i64(), "the next epoch");
        assert_eq!(self.replica.end_reason(older_stream).await, reason);
        stream
    }
}

/// An encoder that tries until it is let in.
async fn insist(limit: Duration, what: &str, node: &Arc<MediaMtx>, request: &PublishRequest) -> Publisher {
    let mut publisher = None;
    within(limit, what, async || match node.publish(request.clone()).await {
        PublishOutcome::Admitted(admitted) => {
            publisher = Some(admitted);
            true
        }
        PublishOutcome::Refused(answer) => {
            assert_eq!(code(&answer.body), "key_in_use");
            false
        }
    })
    .await;
    publisher.expect("it is let in")
}

fn code(body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("no problem ({error}): {body}"));
    problem["code"].as_str().expect("a code").to_owned()
}

#[tokio::test]
async fn after_a_freeze_the_next_publisher_is_let_in_long_before_mediamtx_gives_the_old_one_up() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, older, older_stream) = bench.live(json!({})).await;
    older.freeze();
    let newer = insist(RIGHT_WITHIN, "frozen: the next is let in", &bench.node, &key.publisher()).await;
    bench.in_place_of((&older, &older_stream), &newer, "stalled").await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn after_a_freeze_the_next_publisher_may_come_through_another_node() {
    let bench = Bench::start(HookBehaviour::Lost).await;
    let (key, older, older_stream) = bench.live(json!({})).await;
    older.freeze();
    let what = "frozen: the next is let in through another node";
    let newer = insist(RIGHT_WITHIN, what, &bench.other, &key.publisher()).await;
    assert_eq!(bench.in_place_of((&older, &older_stream), &newer, "stalled").await["node"], "edge-2");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_power_cut_of_four_seconds_costs_no_more_than_that_and_one_retry() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, older, older_stream) = bench.live(json!({})).await;
    older.freeze();
    let (watch, back) = (Stopwatch::start(), tokio::time::Instant::now() + POWER_CUT);
    let mut tries = 0;
    let mut newer = None;
    while newer.is_none() {
        tokio::time::sleep_until(back + RETRY * tries).await;
        tries += 1;
        newer = match bench.node.publish(key.publisher()).await {
            PublishOutcome::Admitted(publisher) => Some(publisher),
            PublishOutcome::Refused(_) => None,
        };
        let limit = (POWER_CUT + RETRY) * test_redis::crowd();
        assert!(newer.is_some() || watch.elapsed() < limit, "the one retry was refused too");
    }
    bench.in_place_of((&older, &older_stream), &newer.unwrap(), "stalled").await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn while_the_source_is_healthy_the_key_is_in_use_on_every_node() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, publisher, stream) = bench.live(json!({})).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut tries = 0;
    while tokio::time::Instant::now() < until {
        for node in [&bench.node, &bench.other] {
            let refused = node.publish(key.publisher()).await.refused();
            assert_eq!((refused.status, code(&refused.body).as_str()), (Some(409), "key_in_use"));
            tries += 1;
        }
    }
    assert!(tries > 10 && publisher.is_online());
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_publisher_that_delivers_again_after_a_freeze_is_healthy_again() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, publisher, stream) = bench.live(json!({})).await;
    let id = id_of(&stream);
    publisher.freeze();
    let stalled = async || !bench.replica.details(&id).await["stalled_at"].is_null();
    soon("frozen: told as stalled", async || stalled().await).await;
    publisher.thaw();
    soon("thawed: no longer told as stalled", async || !stalled().await).await;
    let refused = bench.node.publish(key.publisher()).await.refused();
    assert_eq!(code(&refused.body), "key_in_use");
    assert!(publisher.is_online());
    bench.replica.stop().await;
}

#[tokio::test]
async fn after_a_lost_connection_of_which_no_hook_told_the_next_publisher_is_let_in() {
    let bench = Bench::start(HookBehaviour::Lost).await;
    let (key, older, older_stream) = bench.live(json!({})).await;
    older.disconnect();
    let newer = insist(RIGHT_WITHIN, "connection gone: the next is let in", &bench.node, &key.publisher()).await;
    bench.in_place_of((&older, &older_stream), &newer, "lost").await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn after_its_node_died_a_broadcaster_is_let_in_through_another() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, older, older_stream) = bench.live(json!({})).await;
    bench.node.kill();
    let newer = insist(RIGHT_WITHIN, "node gone: the next is let in", &bench.other, &key.publisher()).await;
    bench.in_place_of((&older, &older_stream), &newer, "node_unreachable").await;
    bench.node.restart().await;
    soon("the node is back: nothing is owed to it", async || bench.replica.app.redis.kicks().await.unwrap().is_empty())
        .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn with_take_over_the_newer_publisher_wins_over_a_healthy_one() {
    let bench = Bench::start(HookBehaviour::Delivered).await;
    let (key, older, older_stream) = bench.live(json!({"on_conflict": "take_over"})).await;
    // It is not online yet, so MediaMTX has no reason to close the older one by itself.
    let newer = bench.node.publish(key.publisher().stays_connecting()).await.admitted();
    soon("take_over: the healthy one is kicked", async || !older.is_connected()).await;
    let stream = bench.replica.stream_on(&key.path).await.unwrap();
    assert_eq!((stream["state"].as_str(), stream["id"] == older_stream["id"]), (Some("connecting"), false));
    assert_eq!(bench.replica.end_reason(&older_stream).await, "taken_over");
    assert!(newer.is_connected());
    bench.replica.stop().await;
}

#[tokio::test]
async fn with_take_over_the_newer_publisher_wins_across_two_nodes_and_late_hooks_change_nothing() {
    let bench = Bench::start(HookBehaviour::Held).await;
    let (key, older, older_stream) = bench.live(json!({"on_conflict": "take_over"})).await;
    let newer = bench.other.publish(key.publisher()).await.admitted();
    let stream = bench.in_place_of((&older, &older_stream), &newer, "taken_over").await;
    let late = [older.off_hook(), older.on_hook(), older.off_hook()];
    for hook in bench.node.take_held_hooks().iter().chain(&late) {
        assert_eq!(bench.node.send_hook(hook).await, Some(200));
    }
    let polls = || bench.other.counts().control_calls_to("/v3/paths/list");
    let before = polls();
    until("both nodes were polled again", async || polls() >= before + 3).await;
    assert!(newer.is_online());
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    assert_eq!(bench.replica.on_air().await.len(), 1);
    bench.replica.stop().await;
}
