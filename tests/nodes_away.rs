//! A node that cannot be reached: its streams stay listed as what they are, the last that was known, until it has been away
//! for too long, and it is told why.

mod support;

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use onair::domain::Timestamp;
use serde_json::{Value, json};
use support::{
    bench::Bench,
    measured::{RIGHT_WITHIN, soon, within},
    mediamtx::{ListHold, MediaMtx, PublishOutcome},
    stack::public_urls,
    stores::until,
    stranger::Stranger,
    waiting::id_of,
};

impl Bench {
    async fn is_stale(&self, path: &str) -> bool {
        self.replica.stream_on(path).await.expect("it stays listed")["stale"] == true
    }
}

#[tokio::test]
async fn while_its_node_is_away_a_stream_is_told_as_it_was_seen_last() {
    let bench = Bench::start().await;
    let (key, _, stream) = bench.live_and_polled("live/ada").await;
    let id = id_of(&stream);
    let before = Timestamp::now();
    bench.node.unreachable();
    soon("out of reach: listed as stale", async || bench.is_stale(&key.path).await).await;
    let listed = bench.replica.stream_on(&key.path).await.unwrap();
    let details = bench.replica.details(&id).await;
    for told in [&listed, &details] {
        assert_eq!((told["state"].as_str(), &told["stale"]), (Some("live"), &json!(true)));
        let seen_at = Timestamp::parse(told["seen_at"].as_str().expect("a time")).unwrap();
        assert!(seen_at <= before.plus_ms(100) && before.ms_since(seen_at) < 1_500, "{seen_at} {before}");
    }
    assert!(details["inbound_bytes"].as_u64().unwrap() > 0, "what was known stays");
    assert_eq!(details["connection"], Value::Null, "nobody is asked who does not answer");

    let node = bench.replica.node("edge-1").await;
    assert_eq!((&node["reachable"], node["fault"].as_str()), (&json!(false), Some("refused")));
    assert!(node["unreachable_since"].is_string() && node["last_seen_at"].is_string(), "{node}");
    assert_eq!(node["streams"], 1);
    bench.node.reachable().await;
    soon("back: fresh", async || !bench.is_stale(&key.path).await).await;
    let fresh = bench.replica.stream_on(&key.path).await.unwrap();
    assert_eq!((&fresh["id"], &fresh["seen_at"]), (&stream["id"], &Value::Null));
    soon("back: told as reachable", async || {
        let node = bench.replica.node("edge-1").await;
        node["reachable"] == true && node["fault"].is_null() && node["unreachable_since"].is_null()
    })
    .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn the_streams_of_a_node_that_stays_away_end_as_node_lost_and_are_kicked_when_it_returns() {
    let lost_after = Duration::from_secs(6);
    let bench = Bench::start_with(|config| config.reconciler.node_lost_after_ms = 6_000).await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    bench.node.unreachable();
    soon("out of reach: listed as stale", async || bench.is_stale(&key.path).await).await;
    let what = "away for too long: off air (6000 ms of it are node_lost_after)";
    within(lost_after + RIGHT_WITHIN, what, async || bench.replica.stream_on(&key.path).await.is_none()).await;
    assert_eq!(bench.replica.end_reason(&stream).await, "node_lost");
    let totals = bench.replica.details(&id_of(&stream)).await;
    assert!(totals["inbound_bytes"].as_u64().unwrap() > 0, "{totals}");
    assert!(publisher.is_online());
    bench.node.reachable().await;
    soon("back after node_lost: its source is off air", async || !publisher.is_connected()).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_node_that_returns_before_keeps_its_streams() {
    let bench = Bench::start_with(|config| config.reconciler.node_lost_after_ms = 8_000).await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    for _ in 0..2 {
        bench.node.unreachable();
        until("it has been away for a while", async || {
            let node = bench.replica.node("edge-1").await;
            let since = node["unreachable_since"].as_str().map(|text| Timestamp::parse(text).unwrap());
            since.is_some_and(|since| Timestamp::now().ms_since(since) >= 4_500)
        })
        .await;
        assert!(bench.is_stale(&key.path).await);
        bench.node.reachable().await;
        soon("back in time: fresh", async || !bench.is_stale(&key.path).await).await;
        until("and told as back", async || bench.replica.node("edge-1").await["unreachable_since"].is_null()).await;
    }
    assert!(publisher.is_online());
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    bench.replica.stop().await;
}

/// The cause: the next poll of a node that was silent already marked as stale whom the node had asked about a moment before, and the next
/// caller took the path.
#[tokio::test]
async fn who_is_admitted_while_its_node_is_silent_has_the_path_to_itself_as_long_as_anybody_else() {
    let stale_after = Duration::from_millis(onair::config::Config::default().reconciler.node_stale_after_ms);
    let bench = Bench::start().await;
    let (seen, _, _) = bench.live_and_polled("live/seen").await;
    bench.node.unreachable();
    soon("out of reach: listed as stale", async || bench.is_stale(&seen.path).await).await;

    let key = bench.replica.key("live/ada").await;
    let asked_at = Instant::now();
    let first = bench.publish(&key).await;
    let stream = bench.replica.until_live(&key.path).await;
    assert_eq!(stream["stale"], false, "its node has just spoken of it");
    let mut in_use = 0;
    let what =
        "silent for as long since it spoke of the stream: the next is let in (3000 ms of it are node_stale_after)";
    within(stale_after + RIGHT_WITHIN, what, async || match bench.node.publish(key.publisher()).await {
        PublishOutcome::Admitted(_) => true,
        PublishOutcome::Refused(answer) => {
            assert!(answer.body.contains("key_in_use"), "{answer:?}");
            in_use += 1;
            false
        }
    })
    .await;
    let alone = asked_at.elapsed();
    assert!(alone >= stale_after && in_use > 0, "{alone:?}, {in_use} were refused");
    assert_eq!(bench.replica.end_reason(&stream).await, "node_unreachable");
    drop(first);
    bench.replica.stop().await;
}

#[tokio::test]
async fn who_is_admitted_while_its_node_is_silent_is_given_up_as_long_after_that_as_anybody_else() {
    let lost_after = Duration::from_secs(6);
    let bench = Bench::start_with(|config| config.reconciler.node_lost_after_ms = 6_000).await;
    let (seen, _, first) = bench.live_and_polled("live/seen").await;
    bench.node.unreachable();
    soon("out of reach: listed as stale", async || bench.is_stale(&seen.path).await).await;

    let key = bench.replica.key("live/ada").await;
    let asked_at = Instant::now();
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.until_live(&key.path).await;
    let what = "silent for as long since it spoke of the stream: off air (6000 ms of it are node_lost_after)";
    within(lost_after + RIGHT_WITHIN, what, async || bench.replica.stream_on(&key.path).await.is_none()).await;
    assert!(asked_at.elapsed() >= lost_after, "{:?}", asked_at.elapsed());
    for lost in [&first, &stream] {
        assert_eq!(bench.replica.end_reason(lost).await, "node_lost");
    }
    assert!(publisher.is_online());
    bench.replica.stop().await;
}

/// The cause: a poll that asked about single connections was not over before each had timed out, one after the other.
#[tokio::test]
async fn a_node_that_hangs_while_it_is_asked_about_single_connections_is_noticed_as_soon() {
    let bench = Bench::start_with(|config| config.admission.connecting_timeout_ms = 60_000).await;
    let (key, _, _) = bench.live_and_polled("live/ada").await;
    let broadcaster_id = bench.replica.broadcaster("Ada").await;
    for number in 0..100 {
        let settings = json!({"broadcaster_id": broadcaster_id});
        let connecting = bench.replica.key_with(&format!("live/connecting-{number}"), settings).await;
        bench.node.publish(connecting.publisher().stays_connecting()).await.admitted();
    }
    let looked = || bench.node.counts().control_calls_to("/v3/rtmpconns/get");
    let before = looked();
    bench.node.until("single connections are asked about", || looked() > before).await;
    bench.node.hang();
    soon("hangs while single connections are asked about: stale", async || bench.is_stale(&key.path).await).await;
    bench.node.reachable().await;
    soon("answers again: fresh", async || !bench.is_stale(&key.path).await).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn nodes_that_hang_do_not_keep_others_from_being_asked() {
    let bench = Bench::start().await;
    let (key, _, _) = bench.live_and_polled("live/ada").await;
    let mut hanging = Vec::new();
    for number in 0..70 {
        let node = bench.replica.mediamtx(&format!("hangs-{number}")).await;
        node.hang();
        hanging.push(node);
    }
    let polls = || bench.node.counts().control_calls_to("/v3/paths/list");
    let before = polls();
    let what = "seventy nodes hang: another one was asked eight times more";
    within(Duration::from_secs(12), what, async || {
        assert!(!bench.is_stale(&key.path).await, "it is well");
        polls() >= before + 8
    })
    .await;
    bench.replica.stop().await;
}

/// `MediaMTX` lists nothing while its path loop waits for an auth call, which may be for its `readTimeout` of ten seconds.
#[tokio::test]
async fn a_node_that_answers_only_after_its_read_timeout_is_heard() {
    let bench = Bench::start().await;
    let (key, publisher, stream) = bench.live_and_polled("live/ada").await;
    let held = || bench.node.counts().lists_held;
    bench.node.hold_lists(ListHold::Unmade);
    bench.node.until("a poll is asked", || held() == 1).await;
    tokio::time::sleep(bench.node.read_timeout() + Duration::from_millis(500)).await;
    assert!(held() == 1 && bench.is_stale(&key.path).await, "it is waited for, and nobody is told that all is well");
    bench.node.hold_lists(ListHold::Nowhere);
    soon("answered after 10.5 s: fresh", async || !bench.is_stale(&key.path).await).await;
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    assert!(publisher.is_online() && bench.node.counts().kicked.is_empty());
    bench.replica.stop().await;
}

#[tokio::test]
async fn over_all_nodes_no_more_requests_are_in_flight_than_may_be() {
    const IN_FLIGHT_MAX: u64 = 3;
    let bench = Bench::start_with(|config| config.reconciler.requests_in_flight_max = 3).await;
    let mut nodes = Vec::new();
    for number in 0..8 {
        nodes.push(bench.replica.mediamtx(&format!("busy-{number}")).await);
    }
    let polls = |node: &MediaMtx| node.counts().control_calls_to("/v3/paths/list");
    until("all are watched", async || nodes.iter().all(|node| polls(node) > 0)).await;
    for node in &nodes {
        node.hold_lists(ListHold::Unmade);
    }
    let held = || nodes.iter().map(|node| node.counts().lists_held).sum::<u64>();
    until("as many wait as may", async || held() == IN_FLIGHT_MAX).await;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert_eq!(held(), IN_FLIGHT_MAX);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for node in &nodes {
        node.hold_lists(ListHold::Nowhere);
    }
    let before: Vec<u64> = nodes.iter().map(|node| polls(node)).collect();
    soon("they are answered: all are asked again", async || {
        nodes.iter().zip(&before).all(|(node, &before)| polls(node) > before)
    })
    .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn it_is_told_in_a_word_and_a_sentence_why_a_node_cannot_be_used() {
    let bench = Bench::start().await;
    let page = Stranger::saying(StatusCode::OK, "<html>Welcome to nginx!</html>").await;
    let old = Stranger::saying(StatusCode::NOT_FOUND, "404 page not found").await;
    let away = bench.replica.mediamtx("away").await;
    away.unreachable();
    let hangs = bench.replica.mediamtx("hangs").await;
    hangs.hang();
    // It asks another service who may use its control API, and that one has never heard of us.
    let refusing = Stranger::saying(StatusCode::UNAUTHORIZED, "").await;
    let elsewhere = bench.replica.mediamtx_with("elsewhere", |options| options.auth_url = refusing.url()).await;
    for (name, url) in [("page", page.url()), ("old", old.url())] {
        let node = json!({"control_url": url, "public_urls": public_urls(name)});
        bench.replica.api.put(&format!("/v1/nodes/{name}"), &node).await.expect(201);
    }
    let expected = [
        ("away", "refused"),
        ("hangs", "timed_out"),
        ("elsewhere", "unauthorized"),
        ("page", "wrong_version"),
        ("old", "wrong_version"),
    ];
    for (name, fault) in expected {
        soon(&format!("node {name}: told as {fault}"), async || bench.replica.node(name).await["fault"] == fault).await;
        let told = bench.replica.node(name).await;
        assert_eq!(told["reachable"], false);
        assert!(told["fault_detail"].as_str().is_some_and(|detail| detail.len() > 10), "{told}");
    }
    let detail = bench.replica.node("elsewhere").await["fault_detail"].clone();
    assert!(detail.as_str().unwrap().contains("authHTTPAddress"), "it says what to look at: {detail}");
    assert_eq!(bench.replica.node("edge-1").await["reachable"], true);
    assert!(elsewhere.counts().control_calls > 0);
    let text = bench.replica.api.get("/v1/nodes").await.expect(200).text;
    assert!(!text.contains(support::stack::node_password("elsewhere").as_str()));
    drop(bench.stack);
}
