//! A broadcast as the platform sees it: from the reservation over the list and the details to its end.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use onair::config::Config;
use serde_json::{Value, json};
use support::{
    mediamtx::{ConnectionKind, HookBehaviour, MediaMtx, PublishRequest},
    stack::{Replica, Stack, TestKey, node_password},
    stopwatch::Stopwatch,
    stores::until,
    waiting::id_of,
};
use uuid::Uuid;

const CONNECTING_TIMEOUT: Duration = Duration::from_millis(1_500);

struct Bench {
    replica: Replica,
    /// On the same stores.
    other: Replica,
    node: Arc<MediaMtx>,
    _stack: Stack,
}

impl Bench {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let stack = Stack::start_with(|config| {
            config.reconciler.poll_interval_ms = 100;
            config.history.poll_interval_ms = 25;
            change(config);
        })
        .await;
        let (replica, other) = (stack.replica().await, stack.replica().await);
        let node = replica.mediamtx("edge-1").await;
        // Within a second every replica has heard of a node that was added to one; before, it offers no addresses there.
        until("the other has heard of the node", async || other.api.get("/v1/nodes/edge-1").await.status == 200).await;
        Self { replica, other, node, _stack: stack }
    }

    async fn stop(self) {
        self.replica.stop().await;
        self.other.stop().await;
    }

    async fn publish(&self, key: &TestKey) -> support::mediamtx::Publisher {
        self.node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await.admitted()
    }
}

#[tokio::test]
async fn a_reservation_that_never_goes_online_ends_by_its_deadline_and_leaves_the_path_free() {
    let timeout_ms = u64::try_from(CONNECTING_TIMEOUT.as_millis()).unwrap();
    let bench = Bench::start(|config| config.admission.connecting_timeout_ms = timeout_ms).await;
    let key = bench.replica.key("live/ada").await;
    let silent = PublishRequest::rtmp_query_key(&key.path, &key.secret).stays_connecting();
    let (asked_at, watch) = (Instant::now(), Stopwatch::start());
    let publisher = bench.node.publish(silent).await.admitted();
    let stream = bench.other.stream_on(&key.path).await.unwrap();
    assert_eq!(stream["state"], "connecting");
    // It is there and may still come online: until the deadline its path is its own.
    let second = bench.node.publish(PublishRequest::srt_streamid(&key.path, "ada", &key.secret)).await.refused();
    assert!(second.body.contains("key_in_use"), "{second:?}");

    bench.replica.until_off_air(&key.path).await;
    assert!(asked_at.elapsed() >= CONNECTING_TIMEOUT, "{:?}", asked_at.elapsed());
    assert!(watch.elapsed() < CONNECTING_TIMEOUT * 2, "{:?}", watch.elapsed());
    let recorded = bench.other.until_recorded(&id_of(&stream)).await;
    assert_eq!((&recorded["end_reason"], &recorded["duration_seconds"]), (&json!("never_online"), &json!(0)));
    publisher.until_gone().await;

    bench.publish(&key).await;
    assert_ne!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    bench.stop().await;
}

#[tokio::test]
async fn a_reservation_whose_connection_is_gone_does_not_wait_for_its_deadline() {
    let bench = Bench::start(|config| config.admission.connecting_timeout_ms = 60_000).await;
    bench.node.set_hook_behaviour(HookBehaviour::Lost);
    let key = bench.replica.key("live/ada").await;
    let silent = PublishRequest::whip_bearer(&key.path, &key.secret).stays_connecting();
    let publisher = bench.node.publish(silent).await.admitted();
    let stream = bench.replica.stream_on(&key.path).await.unwrap();
    publisher.disconnect();
    bench.replica.until_off_air(&key.path).await;
    let recorded = bench.replica.until_recorded(&id_of(&stream)).await;
    assert_eq!(recorded["end_reason"], "never_online");
    bench.stop().await;
}

#[tokio::test]
async fn the_very_next_list_of_every_replica_is_right_after_each_change() {
    let bench = Bench::start(Stack::leave_nodes_alone).await;
    // Spoken for by the test, so that nothing but the call itself lies between a change and the list.
    bench.replica.add_node("edge-9").await;
    let password = node_password("edge-9");
    let nodes = [&bench.replica, &bench.other].map(|replica| replica.api.as_node("edge-9", &password));
    let key = bench.replica.key("live/ada").await;
    let listed = async |replica: &Replica| {
        let found = replica.api.get("/v1/streams?path=live/ada").await.expect(200);
        assert_eq!(found.json["stale"], false);
        (found.json["items"][0]["state"].as_str().map(str::to_owned), found.json["total"].as_u64().unwrap())
    };
    for round in 0..30 {
        let source_id = Uuid::new_v4();
        let call = json!({"action": "publish", "path": key.path, "protocol": "srt", "id": source_id,
            "ip": "192.0.2.1", "password": key.secret});
        nodes[round % 2].post("/v1/mediamtx/auth", &call).await.expect(204);
        for replica in [&bench.other, &bench.replica] {
            assert_eq!(listed(replica).await, (Some("connecting".into()), 1), "round {round}");
        }
        let hook = json!({"path": key.path, "source_type": "srtConn", "source_id": source_id});
        nodes[(round + 1) % 2].post("/v1/hooks/publish", &hook).await.expect(200);
        for replica in [&bench.replica, &bench.other] {
            assert_eq!(listed(replica).await, (Some("live".into()), 1), "round {round}");
        }
        nodes[round % 2].post("/v1/hooks/unpublish", &hook).await.expect(200);
        for replica in [&bench.other, &bench.replica] {
            assert_eq!(listed(replica).await, (None, 0), "round {round}");
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_stream_is_told_in_full_while_it_is_live_and_after_it_has_ended() {
    let bench = Bench::start(|_| ()).await;
    let broadcaster = bench.replica.broadcaster("Ada Lovelace").await;
    let settings = json!({"title": "Engines", "description": "On notes", "metadata": {"season": 3},
        "broadcaster_id": broadcaster});
    let key = bench.replica.key_with("live/ada", settings).await;
    let request = PublishRequest::srt_streamid(&key.path, "ada", &key.secret).with_ip("192.0.2.77");
    let publisher = bench.node.publish(request).await.admitted();
    for kind in [ConnectionKind::HlsSession, ConnectionKind::HlsSession, ConnectionKind::WebRtcSession] {
        bench.node.add_reader(&key.path, kind);
    }
    let listed = bench.replica.until_live(&key.path).await;
    let id = id_of(&listed);
    let mut live = Value::Null;
    until("the poller has told of it", async || {
        live = bench.other.details(&id).await;
        live["viewers"] == 3 && live["inbound_bits_per_second"].as_u64().is_some_and(|bits| bits > 0)
    })
    .await;

    assert_described(&live, &listed, &broadcaster);
    assert_eq!(live["key_id"], key.id);
    assert_eq!(live["source"]["id"], json!(publisher.id()));
    assert_eq!((&live["source"]["type"], &live["source"]["address"]), (&json!("srtConn"), &json!("192.0.2.77")));
    assert_eq!((&live["protocol"], &live["node"], &live["state"]), (&json!("srt"), &json!("edge-1"), &json!("live")));
    assert_eq!(live["playback"], playback("live/ada"));
    assert_eq!((&live["tracks"][0]["codec"], &live["tracks"][0]["width"]), (&json!("H264"), &json!(320)));
    assert!(live["connection"]["rtt_ms"].is_number(), "{live}");
    assert!(live["epoch"].as_u64().unwrap() > 0 && live["end_reason"].is_null() && live["ended_at"].is_null());
    let readers = live["readers"].as_array().unwrap();
    assert_eq!(readers.iter().map(|reader| reader["count"].as_u64().unwrap_or(1)).sum::<u64>(), 3, "{live}");

    publisher.disconnect();
    bench.replica.until_recorded(&id).await;
    let ended = bench.other.details(&id).await;
    assert_described(&ended, &listed, &broadcaster);
    for member in ["key_id", "epoch", "source", "tracks", "started_at", "admitted_at", "protocol", "node"] {
        assert_eq!(ended[member], live[member], "{member}");
    }
    assert_eq!((&ended["state"], &ended["end_reason"]), (&json!("ended"), &json!("unpublished")));
    assert_eq!((&ended["viewers"], &ended["viewers_peak"]), (&json!(0), &json!(3)));
    assert!(ended["inbound_bytes"].as_u64().unwrap() >= live["inbound_bytes"].as_u64().unwrap());
    assert!(ended["ended_at"].as_str().unwrap() >= ended["started_at"].as_str().unwrap());
    bench.replica.api.get(&format!("/v1/streams/{}", Uuid::now_v7())).await.expect_problem(404, "stream_not_found");
    bench.stop().await;
}

/// What viewers are told is as the key says, in the list, in the details and afterwards.
#[track_caller]
fn assert_described(details: &Value, listed: &Value, broadcaster: &str) {
    for shown in [details, listed] {
        assert_eq!((&shown["title"], &shown["description"]), (&json!("Engines"), &json!("On notes")));
        assert_eq!(shown["metadata"], json!({"season": 3}));
        assert_eq!(shown["broadcaster"], json!({"id": broadcaster, "display_name": "Ada Lovelace"}));
        assert_eq!(shown["id"], listed["id"]);
    }
}

fn playback(path: &str) -> Value {
    let node = "edge-1.example.org";
    json!({
        "hls": format!("https://{node}:8888/{path}/index.m3u8"),
        "webrtc": format!("https://{node}:8889/{path}/whep"),
        "rtmp": format!("rtmp://{node}:1935/{path}"),
        "rtsp": format!("rtsp://{node}:8554/{path}"),
        "srt": format!("srt://{node}:8890?streamid=read:{path}"),
    })
}

#[tokio::test]
async fn a_new_title_is_in_the_next_list_and_the_next_stream_has_the_keys_own() {
    let bench = Bench::start(|_| ()).await;
    let key = bench.replica.key_with("live/ada", json!({"title": "From the key", "metadata": {"a": 1}})).await;
    let publisher = bench.publish(&key).await;
    let id = id_of(&bench.replica.until_live(&key.path).await);
    for number in 0..10 {
        let title = format!("Part {number}");
        let patch = json!({"title": title, "description": null, "metadata": {"part": number}});
        let patched = bench.replica.api.patch(&format!("/v1/streams/{id}"), &patch).await.expect(200);
        assert_eq!(patched.json["title"], title);
        for replica in [&bench.other, &bench.replica] {
            let listed = replica.stream_on(&key.path).await.unwrap();
            assert_eq!((&listed["title"], &listed["metadata"]), (&json!(title), &json!({"part": number})));
        }
    }
    for (wrong, field) in [(json!({"title": "x".repeat(201)}), "title"), (json!({"viewers": 1}), "viewers")] {
        let refused = bench.replica.api.patch(&format!("/v1/streams/{id}"), &wrong).await;
        assert_eq!(refused.expect_problem(422, "invalid_input").text_at("/errors/0/field"), field);
    }
    publisher.disconnect();
    assert_eq!(bench.replica.until_recorded(&id).await["title"], "Part 9", "as it was at the end");

    bench.publish(&key).await;
    assert_eq!(bench.replica.until_live(&key.path).await["title"], "From the key");
    bench.stop().await;
}

#[tokio::test]
async fn the_list_is_filtered_and_paged_newest_first() {
    let bench = Bench::start(|_| ()).await;
    let edge_2 = bench.other.mediamtx("edge-2").await;
    let bob = bench.replica.broadcaster("Bob").await;
    let (mut expected, mut first) = (Vec::new(), None);
    for number in 0..7 {
        let path = format!("live/{number}");
        let (key, node) = match number % 2 {
            0 => (bench.replica.key(&path).await, &bench.node),
            _ => (bench.replica.key_with(&path, json!({"broadcaster_id": bob})).await, &edge_2),
        };
        let mut request = PublishRequest::srt_streamid(&path, "u", &key.secret);
        if number == 6 {
            request = request.stays_connecting();
        }
        let publisher = node.publish(request).await.admitted();
        if number < 6 {
            bench.other.until_live(&path).await;
        }
        expected.insert(0, path);
        first.get_or_insert((key, publisher));
    }
    let paths = async |query: &str| {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = bench.other.api.get(&format!("/v1/streams?limit=2{query}{cursor}")).await.expect(200);
            let items = page.json["items"].as_array().unwrap();
            found.extend(items.iter().map(|stream| stream["path"].as_str().unwrap().to_owned()));
            let Some(next) = page.json["next_cursor"].as_str() else {
                assert_eq!(page.json["total"], found.len(), "{query}");
                return found;
            };
            assert_eq!(items.len(), 2);
            cursor = format!("&cursor={next}");
        }
    };
    assert_eq!(paths("").await, expected);
    assert_eq!(paths("&node=edge-2").await.len(), 3);
    assert_eq!(paths(&format!("&broadcaster_id={bob}")).await.len(), 3);
    assert_eq!(paths("&state=connecting").await, ["live/6"]);
    assert_eq!(paths("&state=live").await.len(), 6);
    assert_eq!(paths("&path=live/3").await, ["live/3"]);
    assert_eq!(paths(&format!("&node=edge-1&broadcaster_id={bob}")).await, Vec::<String>::new());

    // Who leaves and comes back is the newest, however long the path has been in use.
    let (key, publisher) = first.expect("somebody was first");
    publisher.disconnect();
    bench.other.until_off_air(&key.path).await;
    bench.publish(&key).await;
    expected.rotate_right(1);
    assert_eq!(paths("").await, expected);
    bench.stop().await;
}
