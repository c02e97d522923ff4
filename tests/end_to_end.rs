//! The same with a real MediaMTX and real encoders. `MEDIAMTX_BIN` names the binary; without it these tests say that they were
//! skipped. What they measure they show, whether they pass or not.

mod support;

use std::time::{Duration, Instant};

use onair::domain::Timestamp;
use serde_json::{Value, json};
use support::{
    measured::{soon, tell, within},
    real_mediamtx::{Encoder, Hooks, Ports, RealMediaMtx, binary},
    stack::{Replica, Stack, TestKey},
    stores::until,
    waiting::id_of,
};

/// MediaMTX looks at what RTMP brings for about two seconds before it is online.
const ONLINE_LIMIT: Duration = Duration::from_secs(8);
/// A refused client is held for up to four seconds before it is told.
const HELD_LIMIT: Duration = Duration::from_secs(10);
/// How long a broadcaster whose line broke may be told that the key is in use.
const COMEBACK_LIMIT: Duration = Duration::from_secs(5);
/// From a revocation to silence.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// A protocol, the type of the source that comes of it, and an encoder that speaks it.
type Protocol = (&'static str, &'static str, fn(Ports, &TestKey) -> Encoder);

async fn until_live(replica: &Replica, path: &str, what: &str) -> Value {
    let mut found = Value::Null;
    within(ONLINE_LIMIT, what, async || {
        found = replica.stream_on(path).await.unwrap_or_default();
        found["state"] == "live"
    })
    .await;
    found
}

/// Bytes of a stream have been seen to arrive twice: from now on standing still is noticed.
async fn until_flowing(replica: &Replica, id: &str) {
    let mut first = None;
    until("its bytes are seen to move", async || {
        let bytes = replica.details(id).await["inbound_bytes"].as_u64().filter(|&bytes| bytes > 0);
        first = first.or(bytes);
        bytes > first
    })
    .await;
}

fn at(time: &Value) -> Timestamp {
    Timestamp::parse(time.as_str().expect("a time")).expect("a time")
}

#[tokio::test]
async fn encoders_go_on_air_a_second_one_is_refused_and_a_revocation_ends_them() {
    let Some(binary) = binary("encoders on a real MediaMTX") else { return };
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = RealMediaMtx::start(binary, &replica, Hooks::Curl).await;
    let wiring = replica.api.get("/v1/nodes/edge-1").await.expect(200).json["wiring"].clone();
    assert!(wiring.as_array().unwrap().iter().all(|problem| problem["severity"] != "problem"), "{wiring}");

    let protocols: [Protocol; 3] =
        [("rtmp", "rtmpConn", Encoder::rtmp), ("rtsp", "rtspSession", Encoder::rtsp), ("srt", "srtConn", Encoder::srt)];
    let mut on_air = Vec::new();
    for (protocol, source_type, start) in protocols {
        let key = replica.key_with(&format!("live/{protocol}"), json!({"title": protocol})).await;
        let encoder = start(node.ports, &key);
        let stream = until_live(&replica, &key.path, &format!("{protocol}: from the encoder's start to live")).await;
        assert_eq!((&stream["title"], &stream["node"]), (&json!(protocol), &json!("edge-1")));
        let details = replica.details(&id_of(&stream)).await;
        assert_eq!((&details["protocol"], &details["source"]["type"]), (&json!(protocol), &json!(source_type)));
        on_air.push((protocol, start, key, encoder, id_of(&stream)));
    }
    until("the hooks that were printed have called", async || {
        let metrics = replica.api.get("/metrics").await.expect(200).text;
        let heard = metrics.lines().filter(|line| line.contains("route=\"/v1/hooks/publish\""));
        heard.filter(|line| line.contains("status=\"200\"")).count() > 0
    })
    .await;
    assert_eq!(replica.on_air().await.len(), 3);

    // One of them is enough: who is second is decided by nobody but Onair.
    let (_, start, key, _, id) = &on_air[0];
    let mut second = start(node.ports, key);
    second.until_ended(HELD_LIMIT).await;
    assert_eq!(replica.stream_on(&key.path).await.unwrap()["id"], json!(id));
    assert!(node.said().contains("key_in_use"), "the operator reads why in MediaMTX's log");

    for (protocol, _, key, mut encoder, id) in on_air {
        until_flowing(&replica, &id).await;
        assert!(!encoder.has_ended() && node.has(&key.path).await);
        let asked_at = Instant::now();
        let revoked = replica.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
        assert_eq!(revoked.text_at("/publisher"), "gone", "{protocol}");
        assert!(!node.has(&key.path).await, "{protocol}: MediaMTX itself has it no more");
        let silence = asked_at.elapsed();
        tell(&format!("{protocol}: from the revocation to silence on MediaMTX"), silence, SILENCE_LIMIT);
        assert!(silence < SILENCE_LIMIT, "{protocol}: {silence:?}");
        assert_eq!(replica.stream_on(&key.path).await, None);
        // Over UDP an encoder does not learn it at once: FFmpeg may go on sending to nobody.
        if protocol != "srt" {
            encoder.until_ended(HELD_LIMIT).await;
        }
        let ended = replica.until_recorded(&id).await;
        assert_eq!(ended["end_reason"], "key_revoked", "{protocol}");
        assert!(replica.details(&id).await["inbound_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    }
    replica.stop().await;
}

#[tokio::test]
async fn who_comes_back_after_a_power_cut_is_on_air_again_within_seconds() {
    let Some(binary) = binary("a frozen encoder on a real MediaMTX") else { return };
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = RealMediaMtx::start(binary, &replica, Hooks::None).await;
    let key = replica.key("live/ada").await;
    let frozen = Encoder::rtmp(node.ports, &key);
    let stream = until_live(&replica, &key.path, "without hooks: from the encoder's start to live").await;
    until_flowing(&replica, &id_of(&stream)).await;

    frozen.freeze();
    let frozen_at = Instant::now();
    // As an impatient broadcaster does it, and not waiting for a refusal to be told.
    let (mut retries, mut admitted) = (Vec::new(), Value::Null);
    let mut is_admitted = false;
    while !is_admitted {
        assert!(frozen_at.elapsed() < HELD_LIMIT, "nobody was admitted");
        retries.push(Encoder::rtsp(node.ports, &key));
        let newcomer = until("a newcomer holds the path", async || {
            admitted = replica.stream_on(&key.path).await.unwrap_or_default();
            admitted["id"].is_string() && admitted["id"] != stream["id"]
        });
        is_admitted = tokio::time::timeout(RETRY_EVERY, newcomer).await.is_ok();
    }
    let silent_for = frozen_at.elapsed();
    let attempts = replica.api.get(&format!("/v1/attempts?path={}", key.path)).await.expect(200);
    let attempts = attempts.json["items"].as_array().unwrap().clone();
    assert!(attempts.iter().all(|attempt| attempt["code"] == "key_in_use"), "{attempts:?}");
    let first_refused = at(&attempts.last().expect("the first of them came too early")["at"]);
    let details = replica.details(&id_of(&admitted)).await;
    let told_in_use = Duration::from_millis(at(&details["admitted_at"]).ms_since(first_refused));
    tell("from the freeze to the newcomer's admission", silent_for, COMEBACK_LIMIT);
    assert!(silent_for < COMEBACK_LIMIT, "{silent_for:?}");
    tell("from the first refusal to the admission", told_in_use, COMEBACK_LIMIT);
    assert!(told_in_use < COMEBACK_LIMIT, "{told_in_use:?}");
    until_live(&replica, &key.path, "from the newcomer's admission to live").await;
    assert_eq!(replica.until_recorded(&id_of(&stream)).await["end_reason"], "stalled");
    replica.stop().await;
}

#[tokio::test]
async fn what_a_node_transcodes_is_shown_under_its_stream_and_ends_with_it() {
    let Some(binary) = binary("a rendition on a real MediaMTX") else { return };
    let stack = Stack::start_with(|config| config.renditions.suffixes = "_small".parse().expect("an ending")).await;
    let replica = stack.replica().await;
    let node = RealMediaMtx::start(binary, &replica, Hooks::Curl).await;
    let key = replica.key("live/ada").await;
    let rendition_path = format!("{}_small", key.path);
    let mut early = Encoder::rendition(node.ports, &rendition_path);
    early.until_ended(HELD_LIMIT).await;
    assert!(node.said().contains("parent_not_on_air"), "the operator reads why in MediaMTX's log");

    let _encoder = Encoder::rtsp(node.ports, &key);
    until_live(&replica, &key.path, "rtsp: to live").await;
    let mut rendition = Encoder::rendition(node.ports, &rendition_path);
    let mut quality = Value::Null;
    within(ONLINE_LIMIT, "from the transcoder's start to a quality with its bitrate", async || {
        quality = replica.stream_on(&key.path).await.expect("it is on air")["qualities"][0].clone();
        quality["bits_per_second"].as_u64().is_some_and(|bits| bits > 0)
    })
    .await;
    assert_eq!(
        (&quality["path"], &quality["width"], &quality["height"]),
        (&json!(rendition_path), &json!(160), &json!(90))
    );
    assert_eq!(replica.on_air().await.len(), 1, "it takes no slot of its own");

    replica.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
    soon("from the revocation of the stream to the end of its rendition", async || !node.has(&rendition_path).await)
        .await;
    rendition.until_ended(HELD_LIMIT).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_is_told_right_within_seconds() {
    let Some(binary) = binary("a killed MediaMTX") else { return };
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let mut node = RealMediaMtx::start(binary, &replica, Hooks::Curl).await;
    let (ada, bob) = (replica.key("live/ada").await, replica.key("live/bob").await);
    let _encoders = [Encoder::rtsp(node.ports, &ada), Encoder::srt(node.ports, &bob)];
    for key in [&ada, &bob] {
        until_live(&replica, &key.path, &format!("{}: to live", key.path)).await;
    }
    let before = replica.on_air().await;

    node.kill();
    soon("from SIGKILL of MediaMTX to a list that says so", async || {
        let now = replica.on_air().await;
        now.len() == 2 && now.iter().all(|stream| stream["stale"] == true)
    })
    .await;
    node.restart().await;
    soon("from MediaMTX's restart to a list without its lost streams", async || replica.on_air().await.is_empty())
        .await;
    for stream in &before {
        assert_eq!(replica.until_recorded(&id_of(stream)).await["end_reason"], "node_restarted");
    }
    let _encoder = Encoder::rtsp(node.ports, &ada);
    let again = until_live(&replica, &ada.path, "on air again after the restart").await;
    assert!(before.iter().all(|stream| stream["id"] != again["id"]) && again["stale"] == false);
    replica.stop().await;
}
