//! What the details of a stream show: what its node and its connection tell, while it is on air and afterwards.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    bench::Bench,
    measured::soon,
    mediamtx::{ConnectionKind, PublishRequest, Publisher, Track},
    stack::TestKey,
    stopwatch::Stopwatch,
    stores::until,
    test_redis,
    waiting::id_of,
};

/// How a publisher with this key comes.
type Form = fn(&TestKey) -> PublishRequest;

impl Bench {
    async fn live_as(
        &self,
        path: &str,
        request: impl FnOnce(&TestKey) -> PublishRequest,
    ) -> (TestKey, Publisher, String) {
        let key = self.replica.key(path).await;
        let publisher = self.node.publish(request(&key)).await.admitted();
        let id = id_of(&self.replica.until_live(path).await);
        (key, publisher, id)
    }

    /// The details, once they are as they should be.
    async fn details_once(&self, what: &str, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        soon(what, async || {
            found = self.replica.details(id).await;
            condition(&found)
        })
        .await;
        found
    }
}

#[tokio::test]
async fn viewers_are_counted_by_the_type_of_reader_and_hls_sessions_one_by_one() {
    let bench = Bench::start().await;
    let (key, _, id) = bench.live_as("live/ada", TestKey::publisher).await;
    let kinds = [
        ConnectionKind::HlsSession,
        ConnectionKind::HlsSession,
        ConnectionKind::HlsSession,
        ConnectionKind::WebRtcSession,
        ConnectionKind::WebRtcSession,
        ConnectionKind::RtmpConn,
        ConnectionKind::RtspSession,
        ConnectionKind::SrtConn,
    ];
    let readers = kinds.map(|kind| bench.node.add_reader(&key.path, kind));
    let details = bench.details_once("eight readers: counted", &id, |details| details["viewers"] == 8).await;
    let expected = json!([
        {"type": "hlsSession", "count": 3},
        {"type": "rtmpConn", "count": 1},
        {"type": "rtspSession", "count": 1},
        {"type": "srtConn", "count": 1},
        {"type": "webRTCSession", "count": 2},
    ]);
    assert_eq!(details["readers"], expected);
    soon("eight readers: in the list", async || bench.replica.stream_on(&key.path).await.unwrap()["viewers"] == 8)
        .await;
    for reader in &readers[..6] {
        reader.leave();
    }
    let details = bench.details_once("six of them left: counted", &id, |details| details["viewers"] == 2).await;
    assert_eq!(details["viewers_peak"], 8);
    bench.replica.stop().await;
}

#[tokio::test]
async fn codecs_picture_sound_bytes_and_bitrate_are_told() {
    let bench = Bench::start().await;
    let video = json!({"width": 1920, "height": 1080, "profile": "High", "level": "4"});
    let opus = json!({"channelCount": 2});
    let tracks = vec![Track::new("H264", video), Track::new("Opus", opus), Track::new("VP8", Value::Null)];
    let request = |key: &TestKey| key.publisher().bytes_per_s(625_000).tracks(tracks);
    let (key, _, id) = bench.live_as("live/ada", request).await;
    bench.node.add_reader(&key.path, ConnectionKind::HlsSession);
    let is_measured = |details: &Value| {
        details["inbound_bits_per_second"].as_u64().is_some_and(|bits| (4_500_000..=5_500_000).contains(&bits))
    };
    let details = bench.details_once("bitrate: measured", &id, is_measured).await;
    let expected = json!([
        {"codec": "H264", "width": 1920, "height": 1080, "profile": "High", "level": "4"},
        {"codec": "Opus", "channel_count": 2},
        {"codec": "VP8"},
    ]);
    assert_eq!(details["tracks"], expected);
    for field in ["inbound_bytes", "outbound_bytes"] {
        assert!(details[field].as_u64().unwrap() > 0, "{field}: {details}");
    }
    assert_eq!(details["inbound_frames_in_error"], 0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn round_trip_time_and_loss_are_told_where_the_protocol_has_them() {
    let bench = Bench::start().await;
    let forms: [(&str, Form); 4] = [
        ("srt", |key| PublishRequest::srt_streamid(&key.path, "ada", &key.secret)),
        ("rtsp", |key| PublishRequest::rtsp(&key.path, "ada", &key.secret)),
        ("webrtc", |key| PublishRequest::whip_bearer(&key.path, &key.secret)),
        ("rtmp", TestKey::publisher),
    ];
    for (protocol, form) in forms {
        let (_, _, id) = bench.live_as(&format!("live/{protocol}"), form).await;
        let is_told = |details: &Value| !details["connection"].is_null();
        let details = bench.details_once(&format!("{protocol}: its connection is told"), &id, is_told).await;
        assert_eq!(details["protocol"], protocol);
        let connection = &details["connection"];
        let has = |field: &str| !connection[field].is_null();
        let expected = match protocol {
            "srt" => [true, true, true, false],
            "rtsp" | "webrtc" => [false, true, true, true],
            _ => [false, false, false, false],
        };
        assert_eq!(["rtt_ms", "packets", "packets_lost", "jitter_rtp"].map(has), expected, "{connection}");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn one_connection_is_asked_about_for_the_details_and_none_for_the_list() {
    let bench = Bench::start().await;
    let (_, _, id) = bench.live_as("live/ada", TestKey::publisher).await;
    let asked = || bench.node.counts().control_calls_to("/v3/rtmpconns/get");
    let polls = || bench.node.counts().control_calls_to("/v3/paths/list");
    until("the node is known", async || polls() >= 3).await;
    let others = || bench.node.counts().control_calls - polls();
    let (asked_before, polls_before, others_before) = (asked(), polls(), others());
    until("a few cycles have passed", async || {
        bench.replica.on_air().await;
        polls() >= polls_before + 3
    })
    .await;
    assert_eq!(asked(), asked_before);
    // Its version and start are asked for now and then.
    assert!(others() <= others_before + 1, "a cycle costs one request");
    bench.replica.details(&id).await;
    assert_eq!(asked(), asked_before + 1);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_node_that_hangs_does_not_hold_up_the_details() {
    let bench = Bench::start().await;
    let (_, _, id) = bench.live_as("live/ada", TestKey::publisher).await;
    bench.node.hang();
    let watch = Stopwatch::start();
    let details = bench.replica.details(&id).await;
    assert!(watch.elapsed() < Duration::from_secs(1) * test_redis::crowd(), "{:?}", watch.elapsed());
    assert_eq!((details["state"].as_str(), &details["connection"]), (Some("live"), &Value::Null));
    bench.replica.stop().await;
}

/// The cause: only an end that the poller itself had found brought its last counts into the history.
#[tokio::test]
async fn however_a_stream_ends_the_history_has_its_bytes_and_the_most_viewers() {
    let bench = Bench::start().await;
    let settings = |way: &str| if way == "taken_over" { json!({"on_conflict": "take_over"}) } else { json!({}) };
    for reason in ["unpublished", "key_revoked", "key_disabled", "stopped", "taken_over"] {
        let key = bench.replica.key_with(&format!("live/{reason}"), settings(reason)).await;
        let publisher = bench.node.publish(key.publisher()).await.admitted();
        let stream = bench.replica.until_live(&key.path).await;
        let id = id_of(&stream);
        let readers = [0; 3].map(|_| bench.node.add_reader(&key.path, ConnectionKind::WebRtcSession));
        until("three watch", async || bench.replica.details(&id).await["viewers"] == 3).await;
        readers[0].leave();
        until("two watch", async || bench.replica.details(&id).await["viewers"] == 2).await;
        let api = &bench.replica.api;
        match reason {
            "unpublished" => publisher.disconnect(),
            "key_revoked" => drop(api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200)),
            "key_disabled" => drop(api.act(&format!("/v1/stream-keys/{}/disable", key.id)).await.expect(200)),
            "stopped" => drop(api.act(&format!("/v1/streams/{id}/stop")).await.expect(200)),
            _ => drop(bench.node.publish(key.publisher()).await.admitted()),
        }
        assert_eq!(bench.replica.end_reason(&stream).await, reason);
        let details = bench.replica.details(&id).await;
        assert_eq!((details["state"].as_str(), &details["viewers_peak"]), (Some("ended"), &json!(3)), "{reason}");
        assert!(details["inbound_bytes"].as_u64().unwrap() > 0, "{reason}: {details}");
    }
    bench.replica.stop().await;
}
