//! Qualities: what a node transcodes a stream into. They come with the node's own password, live and die with their stream,
//! take no slot, and are shown under it.

mod support;

use serde_json::{Value, json};
use support::{
    bench::Bench,
    measured::soon,
    mediamtx::{ConnectionKind, MediaMtx, PublishRequest, Publisher, ReadRequest, Track},
    stack::node_password,
    stores::until,
    waiting::id_of,
};

impl Bench {
    async fn transcoding() -> Self {
        Self::start_with(|config| {
            config.renditions.suffixes = "_720p,_480p".parse().expect("endings");
        })
        .await
    }

    /// What a transcoder on the node publishes.
    async fn transcoded(&self, path: &str, height: u32) -> Publisher {
        self.node.publish(by_node("edge-1", path).tracks(vec![picture(height)])).await.admitted()
    }
}

fn by_node(node: &str, path: &str) -> PublishRequest {
    PublishRequest::rtsp(path, node, &node_password(node)).bytes_per_s(125_000)
}

fn picture(height: u32) -> Track {
    Track::new("H264", json!({"width": height * 16 / 9, "height": height, "profile": "Main", "level": "3.1"}))
}

fn paths_of(stream: &Value) -> Vec<String> {
    let qualities = stream["qualities"].as_array().expect("a list");
    qualities.iter().map(|quality| quality["path"].as_str().expect("a path").to_owned()).collect()
}

#[tokio::test]
async fn the_renditions_of_a_stream_are_shown_under_it_and_nowhere_else() {
    let bench = Bench::transcoding().await;
    let (key, _, stream) = bench.live("live/ada").await;
    bench.transcoded("live/ada_720p", 720).await;
    bench.transcoded("live/ada_480p", 480).await;
    let id = id_of(&stream);
    let is_measured = |stream: &Value| {
        let bits = stream["qualities"][1]["bits_per_second"].as_u64();
        bits.is_some_and(|bits| (900_000..=1_100_000).contains(&bits))
    };
    soon("two renditions: in the list", async || {
        let listed = bench.replica.stream_on(&key.path).await.unwrap();
        paths_of(&listed) == ["live/ada_480p", "live/ada_720p"] && is_measured(&listed)
    })
    .await;
    let mut details = Value::Null;
    soon("two renditions: in the details", async || {
        details = bench.replica.details(&id).await;
        is_measured(&details)
    })
    .await;
    let quality = &details["qualities"][1];
    let shown = [&quality["path"], &quality["width"], &quality["height"], &quality["tracks"][0]["profile"]];
    assert_eq!(shown, [&json!("live/ada_720p"), &json!(1280), &json!(720), &json!("Main")]);
    let hls = quality["playback"]["hls"].as_str().unwrap();
    assert!(hls.contains("live/ada_720p") && hls != details["playback"]["hls"], "{hls}");

    let listed = bench.replica.api.get("/v1/streams").await.expect(200);
    assert_eq!((&listed.json["total"], listed.json["items"].as_array().unwrap().len()), (&json!(1), 1));
    bench.node.add_reader("live/ada_720p", ConnectionKind::HlsSession);
    soon("a viewer of a rendition: counted", async || bench.replica.details(&id).await["viewers"] == 1).await;
    assert!(bench.node.counts().kicked.is_empty());
    bench.replica.stop().await;
}

#[tokio::test]
async fn renditions_that_outlive_their_stream_are_kicked() {
    let bench = Bench::transcoding().await;
    let (key, publisher, _) = bench.live("live/ada").await;
    let renditions = [bench.transcoded("live/ada_720p", 720).await, bench.transcoded("live/ada_480p", 480).await];
    until("they are shown", async || {
        paths_of(&bench.replica.stream_on(&key.path).await.unwrap()).len() == renditions.len()
    })
    .await;
    publisher.disconnect();
    soon("their stream has ended: kicked", async || renditions.iter().all(|it| !it.is_connected())).await;
    assert!(bench.replica.on_air().await.is_empty());
    soon("and nothing is owed", async || bench.replica.app.redis.kicks().await.unwrap().is_empty()).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_rendition_that_ends_by_itself_is_no_longer_shown_and_may_come_again() {
    let bench = Bench::transcoding().await;
    let (key, publisher, _) = bench.live("live/ada").await;
    for _ in 0..2 {
        let rendition = bench.transcoded("live/ada_720p", 720).await;
        let shown = async || paths_of(&bench.replica.stream_on(&key.path).await.unwrap()).len();
        soon("a rendition: shown", async || shown().await == 1).await;
        rendition.disconnect();
        soon("a rendition ended by itself: no longer shown", async || shown().await == 0).await;
    }
    assert!(publisher.is_online());
    bench.replica.stop().await;
}

#[tokio::test]
async fn only_the_node_itself_publishes_renditions_and_only_of_what_is_on_air_there() {
    let bench = Bench::transcoding().await;
    let other = bench.replica.mediamtx("edge-2").await;
    let refused = async |node: &MediaMtx, request: PublishRequest| {
        let answer = node.publish(request).await.refused();
        let problem: Value = serde_json::from_str(&answer.body).expect("a problem");
        problem["code"].as_str().expect("a code").to_owned()
    };
    let early = refused(&bench.node, by_node("edge-1", "live/ada_720p")).await;
    assert_eq!(early, "parent_not_on_air", "before its stream is on air");
    let (key, _, _) = bench.live("live/ada").await;
    let with_key = PublishRequest::rtmp_query_key("live/ada_720p", &key.secret);
    assert_eq!(refused(&bench.node, with_key).await, "rendition_reserved", "with a stream key");
    let of_other = by_node("edge-2", "live/ada_720p");
    assert_eq!(refused(&bench.node, of_other).await, "rendition_reserved", "with another node's password");
    let without = PublishRequest::rtmp_query("live/ada_720p", "");
    assert_eq!(refused(&bench.node, without).await, "credentials_missing");
    let elsewhere = refused(&other, by_node("edge-2", "live/ada_720p")).await;
    assert_eq!(elsewhere, "parent_not_on_air", "its stream is on another node");
    let body = json!({"path": "live/bob_720p", "broadcaster_id": bench.replica.broadcaster("Bob").await});
    let problem = bench.replica.api.post("/v1/stream-keys", &body).await;
    assert_eq!(
        (problem.status, problem.text.contains("path")),
        (422, true),
        "no key is for a rendition: {}",
        problem.text
    );
    bench.replica.stop().await;
}

#[tokio::test]
async fn who_may_watch_a_stream_may_watch_its_renditions() {
    let bench = Bench::transcoding().await;
    for (path, settings, may_watch) in
        [("live/open", json!({}), true), ("live/closed", json!({"playback": "private"}), false)]
    {
        let key = bench.replica.key_with(path, settings).await;
        bench.node.publish(key.publisher()).await.admitted();
        let rendition = format!("{path}_480p");
        bench.transcoded(&rendition, 480).await;
        for watched in [path, rendition.as_str()] {
            let reader = ReadRequest::without_credentials(watched, ConnectionKind::HlsSession);
            let is_let_in = matches!(bench.node.read(reader).await, support::mediamtx::ReadOutcome::Reading(_));
            assert_eq!(is_let_in, may_watch, "{watched}");
        }
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_comeback_keeps_the_renditions_of_the_path() {
    let bench = Bench::transcoding().await;
    let key = bench.replica.key_with("live/ada", json!({"on_conflict": "take_over"})).await;
    bench.node.publish(key.publisher()).await.admitted();
    bench.replica.until_live(&key.path).await;
    let rendition = bench.transcoded("live/ada_720p", 720).await;
    let newer = bench.node.publish(key.publisher()).await.admitted();
    soon("taken over: the rendition is shown under the newer one", async || {
        let listed = bench.replica.stream_on(&key.path).await.unwrap();
        listed["state"] == "live" && paths_of(&listed) == ["live/ada_720p"]
    })
    .await;
    assert!(rendition.is_online() && newer.is_online());
    bench.replica.stop().await;
}
