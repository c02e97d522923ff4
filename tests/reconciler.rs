//! Hooks are hints, the node is the truth: whatever a node does, what is told of it is right within five seconds.

mod support;

use std::time::{Duration, Instant};

use onair::{
    domain::{EndReason, SourceId},
    redis::{Afterwards, EndRequest, Ending, Holder},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    bench::Bench,
    measured::{RIGHT_WITHIN, soon, sources_on, within},
    mediamtx::{HookBehaviour, ListHold, PublishRequest, Publisher, Release},
    raw_redis,
    stack::Stack,
    stores::until,
    stranger::smuggle,
    waiting::id_of,
};

impl Bench {
    /// A service as it is configured by default, and a node without hooks.
    async fn by_polls_alone() -> Self {
        Self::start_on(Stack::start().await, |options| options.hook_behaviour = HookBehaviour::Lost).await
    }

    /// Smuggles a publisher past the service.
    async fn intruder(&self, path: &str) -> Publisher {
        let request = PublishRequest::rtmp_query_key(path, "nobody asked");
        smuggle(&self.node, &self.replica.auth_url("edge-1"), request).await
    }

    async fn until_polls(&self, count: u64) {
        let polls = || self.node.counts().control_calls_to("/v3/paths/list");
        let before = polls();
        until("the node was polled", async || polls() >= before + count).await;
    }
}

#[tokio::test]
async fn where_no_hook_ever_arrives_the_poll_alone_confirms_and_ends() {
    let bench = Bench::by_polls_alone().await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.live_soon("no hooks", &key.path).await;
    publisher.disconnect();
    bench.replica.off_air_soon("no hooks", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "lost");
    bench.replica.stop().await;
}

#[tokio::test]
async fn where_only_the_off_arrives_the_poll_confirms_and_the_hook_ends() {
    let bench = Bench::start_on(Stack::start().await, |options| options.hook_behaviour = HookBehaviour::OnlyOff).await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.live_soon("only off", &key.path).await;
    publisher.disconnect();
    bench.replica.off_air_soon("only off", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "unpublished");
    bench.replica.stop().await;
}

#[tokio::test]
async fn where_only_the_on_arrives_the_hook_confirms_and_the_poll_ends() {
    let bench = Bench::start_on(Stack::start().await, |options| options.hook_behaviour = HookBehaviour::OnlyOn).await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.live_soon("only on", &key.path).await;
    publisher.disconnect();
    bench.replica.off_air_soon("only on", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "lost");
    bench.replica.stop().await;
}

#[tokio::test]
async fn the_off_of_the_old_source_after_the_on_of_the_new_one_changes_nothing() {
    let bench = Bench::start_on(Stack::start().await, |options| options.hook_behaviour = HookBehaviour::Held).await;
    let key = bench.replica.key_with("live/ada", json!({"on_conflict": "take_over"})).await;
    let older = bench.publish(&key).await;
    let older_stream = bench.replica.live_soon("override, the older one", &key.path).await;
    let newer = bench.publish(&key).await;
    assert!(!older.is_connected() && newer.is_online(), "MediaMTX closes the older one itself");
    for hook in [newer.on_hook(), older.off_hook(), older.on_hook(), older.off_hook()] {
        assert_eq!(bench.node.send_hook(&hook).await, Some(200));
    }
    let stream = bench.replica.live_soon("override, the newer one", &key.path).await;
    assert_ne!(stream["id"], older_stream["id"]);
    assert_eq!(bench.replica.end_reason(&older_stream).await, "taken_over");
    bench.until_polls(3).await;
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    assert_eq!(bench.replica.listed_sources().await, sources_on(std::slice::from_ref(&bench.node)));
    bench.replica.stop().await;
}

#[tokio::test]
async fn an_admitted_publisher_whose_connection_is_gone_frees_its_path() {
    let bench = Bench::by_polls_alone().await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.node.publish(key.publisher().stays_connecting()).await.admitted();
    let stream = bench.replica.stream_on(&key.path).await.unwrap();
    assert_eq!(stream["state"], "connecting");
    publisher.disconnect();
    bench.replica.off_air_soon("never online, connection gone", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "never_online");
    bench.replica.stop().await;
}

#[tokio::test]
async fn an_admitted_publisher_that_stays_connected_without_coming_online_is_ended_at_its_deadline_and_kicked() {
    let connecting = Duration::from_millis(2_500);
    let stack = Stack::start_with(|config| config.admission.connecting_timeout_ms = 2_500).await;
    let bench = Bench::start_on(stack, |options| options.hook_behaviour = HookBehaviour::Lost).await;
    let key = bench.replica.key("live/ada").await;
    let asked_at = Instant::now();
    let publisher = bench.node.publish(key.publisher().stays_connecting()).await.admitted();
    let stream = bench.replica.stream_on(&key.path).await.unwrap();
    let what = "never online, still connected: off air (2500 ms of it are its deadline)";
    within(connecting + RIGHT_WITHIN, what, async || {
        bench.replica.stream_on(&key.path).await.is_none() && !publisher.is_connected()
    })
    .await;
    assert!(asked_at.elapsed() >= connecting, "it may still come online until {connecting:?}");
    assert_eq!(bench.replica.end_reason(&stream).await, "never_online");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_killed_node_leaves_its_streams_listed_as_stale_and_a_restart_ends_them() {
    let bench = Bench::start().await;
    let (key, _, stream) = bench.live_and_polled("live/ada").await;
    let connecting_key = bench.replica.key("live/bob").await;
    bench.node.publish(connecting_key.publisher().stays_connecting()).await.admitted();
    bench.node.kill();
    soon("node killed: told as stale", async || {
        let listed = bench.replica.stream_on(&key.path).await.expect("it stays listed");
        listed["stale"] == true
    })
    .await;
    assert_eq!(bench.replica.node("edge-1").await["fault"], "refused");
    bench.node.restart().await;
    bench.replica.off_air_soon("node killed, then started", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "node_restarted");
    bench.replica.off_air_soon("node killed, then started: who was connecting", &connecting_key.path).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_node_that_restarts_between_two_polls_ends_everything_it_had() {
    let bench = Bench::start().await;
    let (key, _, stream) = bench.live_and_polled("live/ada").await;
    bench.node.restart().await;
    bench.replica.off_air_soon("node restarted between two polls", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "node_restarted");
    let again = bench.publish(&key).await;
    bench.replica.live_soon("published again after the restart", &key.path).await;
    assert!(again.is_online());
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_publisher_that_is_back_on_a_restarted_node_is_not_taken_for_the_one_before() {
    let bench = Bench::by_polls_alone().await;
    let key = bench.replica.key_with("live/ada", json!({"on_conflict": "take_over"})).await;
    bench.publish(&key).await;
    let before = bench.replica.live_soon("before the restart", &key.path).await;
    bench.node.restart().await;
    bench.publish(&key).await;
    let after = bench.replica.live_soon("restarted, and published again at once", &key.path).await;
    assert_ne!(after["id"], before["id"]);
    bench.until_polls(3).await;
    assert_eq!(bench.replica.until_live(&key.path).await["id"], after["id"]);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_node_that_was_out_of_reach_keeps_what_it_still_has_and_loses_and_gains_the_rest() {
    let bench = Bench::by_polls_alone().await;
    let (stays, _, staying) = bench.live_and_polled("live/stays").await;
    let (goes, leaver, going) = bench.live_and_polled("live/goes").await;
    let comes = bench.replica.key("live/comes").await;
    bench.node.unreachable();
    soon("node out of reach: told as stale", async || {
        bench.replica.on_air().await.iter().all(|stream| stream["stale"] == true)
    })
    .await;
    leaver.disconnect();
    bench.publish(&comes).await;
    bench.node.reachable().await;
    soon("node back: right about all it has", async || {
        let fresh = bench.replica.on_air().await.iter().all(|stream| stream["stale"] == false);
        fresh && bench.replica.listed_sources().await == sources_on(std::slice::from_ref(&bench.node))
    })
    .await;
    assert_eq!(bench.replica.stream_on(&stays.path).await.unwrap()["id"], staying["id"]);
    assert!(bench.replica.is_live(&comes.path).await);
    assert!(bench.replica.stream_on(&goes.path).await.is_none());
    assert_eq!(bench.replica.end_reason(&going).await, "lost");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_node_that_hangs_is_told_as_out_of_reach_while_it_does_and_all_is_well_when_it_answers() {
    let bench = Bench::start().await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    bench.node.hang();
    soon("node hangs: told as stale", async || bench.replica.stream_on(&key.path).await.unwrap()["stale"] == true)
        .await;
    soon("node hangs: told why", async || bench.replica.node("edge-1").await["fault"] == "timed_out").await;
    publisher.disconnect();
    bench.replica.off_air_soon("node hangs, its hook says off", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "unpublished");
    bench.publish(&key).await;
    bench.node.reachable().await;
    soon("node answers again: live and fresh", async || {
        let listed = bench.replica.stream_on(&key.path).await;
        listed.is_some_and(|stream| stream["state"] == "live" && stream["stale"] == false)
    })
    .await;
    soon("node answers again: told as reachable", async || bench.replica.node("edge-1").await["reachable"] == true)
        .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_publisher_whom_nobody_admitted_is_kicked_and_pulled_sources_are_left_alone() {
    let bench = Bench::by_polls_alone().await;
    bench.node.add_pulled_path("cameras/door", "rtspSource", "");
    bench.node.add_pulled_path("cameras/gate", "srtSource", "0190b7a2-7e1c-7bbb-8b52-6f8a63b0aa10");
    bench.node.add_waiting_path("live/somebody-waits");
    let intruder = bench.intruder("live/intruder").await;
    let elsewhere = bench.intruder(&format!("no/key/is/for/this/{}", "x".repeat(150))).await;
    soon("never admitted: kicked", async || !intruder.is_connected() && !elsewhere.is_connected()).await;
    bench.until_polls(3).await;
    let left: Vec<String> = bench.node.on_air().into_iter().map(|on_air| on_air.path).collect();
    assert_eq!(left, ["cameras/door", "cameras/gate"]);
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    let kicked = bench.node.counts().kicked;
    assert!(kicked.iter().all(|id| [intruder.id(), elsewhere.id()].contains(id)), "{kicked:?}");
    bench.replica.stop().await;
}

/// The cause: a list that was made while it was on air was compared when its hook had already ended it.
#[tokio::test]
async fn a_publisher_that_comes_and_goes_while_a_list_is_on_its_way_is_not_taken_for_an_unadmitted_one() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let held = || bench.node.counts().lists_held;
    bench.node.hold_lists(ListHold::Unmade);
    bench.node.until("a poll is asked", || held() == 1).await;
    let publisher = bench.publish(&key).await;
    bench.replica.live_soon("by its hook", &key.path).await;
    bench.node.hold_lists(ListHold::Made);
    bench.node.until("the answer is made", || held() == 2).await;
    publisher.disconnect();
    bench.replica.off_air_soon("by its hook", &key.path).await;
    let looks = || bench.node.counts().control_calls_to("/v3/paths/get");
    assert_eq!(looks(), 0);
    bench.node.hold_lists(ListHold::Nowhere);
    soon("the list is older than the end: the node is asked again", async || looks() == 1).await;
    bench.until_polls(3).await;
    assert!(bench.node.counts().kicked.is_empty(), "nobody is kicked who is gone");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_publisher_that_took_a_held_path_behind_our_back_is_kicked_and_the_lost_holder_ended() {
    let bench = Bench::by_polls_alone().await;
    let (key, holder, stream) = bench.live_and_polled("live/ada").await;
    let intruder = bench.intruder(&key.path).await;
    assert!(!holder.is_connected(), "MediaMTX closes the holder itself");
    bench.replica.off_air_soon("holder thrown off by an intruder", &key.path).await;
    soon("intruder on a held path: kicked", async || !intruder.is_connected()).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "lost");
    bench.replica.stop().await;
}

#[tokio::test]
async fn streams_that_redis_forgot_are_restored_from_the_history_and_nobody_is_kicked() {
    let bench = Bench::by_polls_alone().await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    until("the history has it", async || bench.replica.app.redis.events_backlog().await == Ok(0)).await;
    raw_redis::forget_everything(&bench.stack.redis).await;
    let refused = bench.node.publish(key.publisher()).await.refused();
    assert!(matches!(refused.status, Some(409 | 503)), "nobody slips in meanwhile: {}", refused.body);
    let restored = bench.replica.live_soon("Redis forgot: restored", &key.path).await;
    assert_eq!(restored["id"], stream["id"]);
    bench.until_polls(3).await;
    assert!(publisher.is_online());
    assert!(bench.node.counts().kicked.is_empty());
    publisher.disconnect();
    bench.replica.off_air_soon("restored, then gone", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "lost");
    bench.replica.stop().await;
}

#[tokio::test]
async fn streams_are_restored_after_a_restart_of_a_redis_that_keeps_nothing() {
    let mut bench = Bench::by_polls_alone().await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    let (stopped_key, stopped_publisher, _) = bench.live_and_polled("live/bob").await;
    bench.replica.api.act(&format!("/v1/stream-keys/{}/revoke", stopped_key.id)).await.expect(200);
    until("the history has it", async || bench.replica.app.redis.events_backlog().await == Ok(0)).await;
    bench.stack.redis.restart().await.unwrap();
    soon("Redis restarted empty: restored", async || {
        let listed = bench.replica.stream_on(&key.path).await;
        listed.is_some_and(|listed| listed["id"] == stream["id"] && listed["stale"] == false)
    })
    .await;
    bench.until_polls(3).await;
    assert!(publisher.is_online() && !stopped_publisher.is_connected());
    assert_eq!(bench.replica.on_air().await.len(), 1);
    bench.replica.stop().await;
}

#[tokio::test]
async fn of_two_nodes_that_claim_one_path_the_higher_epoch_stays_and_the_other_is_kicked() {
    let bench = Bench::by_polls_alone().await;
    let other = bench.replica.mediamtx("edge-2").await;
    let (key, older, older_stream) = bench.live_and_polled("live/ada").await;
    bench.node.unreachable();
    soon("first node out of reach: told as stale", async || {
        bench.replica.stream_on(&key.path).await.unwrap()["stale"] == true
    })
    .await;
    let newer = other.publish(key.publisher()).await.admitted();
    let stream = bench.replica.live_soon("on the second node", &key.path).await;
    assert_eq!(stream["node"], "edge-2");
    assert_eq!(bench.replica.end_reason(&older_stream).await, "node_unreachable");
    assert!(older.is_online(), "the first node still has it");
    bench.node.reachable().await;
    soon("two nodes claim one path: the older is kicked", async || !older.is_connected()).await;
    bench.until_polls(2).await;
    assert!(newer.is_online());
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_publisher_that_an_older_wiring_admitted_beside_the_holder_is_kicked_and_the_holder_stays() {
    let bench = Bench::by_polls_alone().await;
    let other = bench.replica.mediamtx("edge-2").await;
    let key = bench.replica.key("live/ada").await;
    let holder = other.publish(key.publisher()).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    let intruder = bench.intruder(&key.path).await;
    soon("claimed on a second node without asking: kicked", async || !intruder.is_connected()).await;
    assert!(holder.is_online());
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    bench.replica.stop().await;
}

#[tokio::test]
async fn every_page_of_a_long_list_is_read() {
    let stack = Stack::start_with(|config| config.reconciler.page_items = 10).await;
    let bench = Bench::start_on(stack, |options| options.hook_behaviour = HookBehaviour::Lost).await;
    let broadcaster_id = bench.replica.broadcaster("Ada").await;
    let mut publishers = Vec::new();
    for number in 0..35 {
        let settings = json!({"broadcaster_id": broadcaster_id});
        let key = bench.replica.key_with(&format!("live/{number:02}"), settings).await;
        publishers.push(bench.publish(&key).await);
    }
    let is_right = async || bench.replica.listed_sources().await == sources_on(std::slice::from_ref(&bench.node));
    soon("four pages: all live", async || is_right().await && bench.replica.on_air().await.len() == 35).await;
    bench.until_polls(4).await;
    for number in [3, 17, 34] {
        publishers[number].disconnect();
    }
    soon("four pages: three are gone", async || is_right().await && bench.replica.on_air().await.len() == 32).await;
    bench.node.restart().await;
    soon("four pages, restarted: all gone", async || bench.replica.on_air().await.is_empty()).await;
    let ended = bench.replica.until_recorded_all(35).await;
    let count = |reason: &str| ended.iter().filter(|stream| stream["end_reason"] == reason).count();
    assert_eq!((count("lost"), count("node_restarted")), (3, 32));
    bench.replica.stop().await;
}

#[tokio::test]
async fn an_older_node_is_understood_by_its_older_names() {
    let bench = Bench::start_on(Stack::start().await, |options| options.release = Release::V1_15).await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    let details = bench.replica.details(&id_of(&stream)).await;
    assert!(details["inbound_bytes"].as_u64().unwrap() > 0, "{details}");
    assert_eq!(details["tracks"], json!([{"codec": "H264"}, {"codec": "MPEG-4 Audio"}]));
    let wiring = bench.replica.node("edge-1").await["wiring"].clone();
    let codes: Vec<&Value> = wiring.as_array().unwrap().iter().map(|problem| &problem["code"]).collect();
    assert_eq!(codes, ["version_old"], "its hooks are found by their older names");
    bench.node.set_hook_behaviour(HookBehaviour::Lost);
    publisher.disconnect();
    bench.replica.off_air_soon("older node", &key.path).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "lost");
    bench.replica.stop().await;
}

/// The cause: the history was asked whether a source that nobody holds had been admitted, while the end of its stream was still on its way
/// there. The stream came back, held by Redis and ended by the history, and nothing ever made the two agree.
#[tokio::test]
async fn a_source_whose_end_the_history_has_not_heard_of_is_kicked_and_its_stream_does_not_come_back() {
    let bench = Bench::start().await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    let (redis, postgres) = (&bench.replica.app.redis, &bench.stack.config.postgres.url);
    until("the history has it", async || redis.events_backlog().await == Ok(0)).await;
    let mut connection = PgConnection::connect(postgres.reveal()).await.unwrap();
    let mut holder = connection.begin().await.unwrap();
    // It can be read, and nothing is written to it.
    sqlx::query("LOCK TABLE streams IN SHARE MODE").execute(&mut *holder).await.unwrap();
    let (path, node) = (key.path.parse().unwrap(), "edge-1".parse().unwrap());
    let request = EndRequest {
        path: &path,
        holder: Holder::Source(SourceId(publisher.id()), &node),
        reason: EndReason::NodeRemoved,
        afterwards: Afterwards::Gone,
        progress: None,
    };
    assert!(matches!(redis.end(&request).await, Ok(Ending::Ended(_))));
    soon("ended for us, and still on its node: kicked", async || !publisher.is_connected()).await;
    assert!(bench.replica.stream_on(&key.path).await.is_none());
    holder.rollback().await.unwrap();
    assert_eq!(bench.replica.end_reason(&stream).await, "node_removed");
    bench.replica.stop().await;
}
