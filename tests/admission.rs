//! Who is let in: every way in which a protocol carries a key, readers, and callers of a node's own API.

mod support;

use onair::{config::ConfigSecret, domain::Timestamp, node_credentials::NodeCredentials};
use serde_json::{Value, json};
use support::{
    api_client::ApiClient,
    bench::Bench,
    mediamtx::{AuthCall, ConnectionKind, PublishRequest, ReadRequest},
    stack::{NODE_SECRET, Stack, node_password},
    stores::until,
    waiting::id_of,
};
use uuid::Uuid;

/// How a publisher with this path and key connects.
type Form = fn(&str, &str) -> PublishRequest;

/// Every row of the contract's table of credentials, with the type of the source that comes of it.
const FORMS: &[(&str, &str, Form)] = &[
    ("RTMP ?user=&pass=", "rtmpConn", |path, key| PublishRequest::rtmp_user_pass(path, "ada", key)),
    ("RTMP or OBS ?key=", "rtmpConn", PublishRequest::rtmp_query_key),
    ("RTMP ?token=", "rtmpConn", PublishRequest::rtmp_query_token),
    ("RTMP, key among others", "rtmpConn", |path, key| PublishRequest::rtmp_query(path, &format!("a=1&key={key}&b=2"))),
    ("RTMPS ?key=", "rtmpsConn", |path, key| PublishRequest::rtmp_query_key(path, key).over_tls()),
    ("SRT streamid u:p", "srtConn", |path, key| PublishRequest::srt_streamid(path, "ada", key)),
    ("SRT streamid query", "srtConn", |path, key| PublishRequest::srt_streamid_query(path, &format!("key={key}"))),
    ("RTSP u:p@", "rtspSession", |path, key| PublishRequest::rtsp(path, "ada", key)),
    ("RTSPS u:p@", "rtspsSession", |path, key| PublishRequest::rtsp(path, "ada", key).over_tls()),
    ("RTSP ?token=", "rtspSession", PublishRequest::rtsp_query_token),
    ("WHIP Bearer", "webRTCSession", PublishRequest::whip_bearer),
    ("WHIP Bearer u:p", "webRTCSession", |path, key| PublishRequest::whip_bearer(path, &format!("ada:{key}"))),
    ("WHIP Basic", "webRTCSession", |path, key| PublishRequest::whip_basic(path, "ada", key)),
    ("WHIP ?key=", "webRTCSession", PublishRequest::whip_query_key),
];

impl Bench {
    /// The node as a caller whose calls are written by hand.
    fn by_hand(&self) -> ApiClient {
        self.replica.api.as_node("edge-1", &node_password("edge-1"))
    }

    async fn ask(&self, call: &Value) -> u16 {
        self.by_hand().post("/v1/mediamtx/auth", call).await.status
    }
}

#[track_caller]
fn assert_refused(answer: &support::mediamtx::AuthAnswer, status: u16, code: &str) {
    let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    assert_eq!((answer.status, problem["code"].as_str()), (Some(status), Some(code)), "{}", answer.body);
}

#[tokio::test]
async fn a_key_is_admitted_in_every_form_in_which_a_protocol_carries_it() {
    let bench = Bench::start().await;
    let stranger = bench.replica.key("live/stranger").await;
    for (number, (name, source_type, form)) in (0..).zip(FORMS) {
        let key = bench.replica.key(&format!("live/{number}")).await;
        let address = format!("192.0.2.{number}");
        let wrong = bench.node.publish(form(&key.path, &stranger.secret).with_ip(&address)).await;
        assert_refused(&wrong.refused(), 403, "path_mismatch");

        let publisher = bench.node.publish(form(&key.path, &key.secret).with_ip(&address)).await.admitted();
        let stream = bench.replica.until_live(&key.path).await;
        let details = bench.replica.details(&id_of(&stream)).await;
        let source = json!({"id": publisher.id(), "type": source_type, "address": address});
        for member in ["id", "type", "address"] {
            assert_eq!(details["source"][member], source[member], "{name}: {details}");
        }
        assert_eq!(details["key_id"], key.id, "{name}");
    }
    assert_eq!(bench.replica.on_air().await.len(), FORMS.len());
    bench.replica.stop().await;
}

#[tokio::test]
async fn two_different_secrets_in_one_call_are_refused_though_each_is_good() {
    let bench = Bench::start().await;
    let (ada, bob) = (bench.replica.key("live/ada").await, bench.replica.key("live/bob").await);
    let (one, other) = (&ada.secret, &bob.secret);
    for query in [format!("user=ada&pass={one}&key={other}"), format!("key={other}&token={one}")] {
        let refused = bench.node.publish(PublishRequest::rtmp_query("live/ada", &query)).await.refused();
        assert_refused(&refused, 401, "credentials_conflict");
        assert!(!refused.body.contains(one) && !refused.body.contains(other));
    }
    for (password, token, query) in [(one, other, ""), (one, one, other), (other, one, one)] {
        let query = if query.is_empty() { String::new() } else { format!("key={query}") };
        let call = json!({"action": "publish", "path": "live/ada", "protocol": "webrtc", "id": Uuid::new_v4(),
            "ip": "192.0.2.1", "password": password, "token": token, "query": query});
        let refused = bench.by_hand().post("/v1/mediamtx/auth", &call).await;
        refused.expect_problem(401, "credentials_conflict");
    }
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());

    let everywhere = format!("user=ada&pass={one}&key={one}&token={one}");
    bench.node.publish(PublishRequest::rtmp_query("live/ada", &everywhere)).await.admitted();
    bench.replica.stop().await;
}

#[tokio::test]
async fn empty_first_rtsp_calls_are_answered_without_asking_anybody_and_are_no_failures() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    // Nothing that Redis would have to be asked for can be answered with anything but state_unavailable now.
    bench.stack.redis.suspend().unwrap();
    for _ in 0..1_000 {
        let first = bench.node.publish(PublishRequest::rtsp_without_credentials(&key.path)).await.refused();
        assert_refused(&first, 401, "credentials_missing");
    }
    bench.stack.redis.resume().unwrap();

    let stranger = bench.replica.key("live/stranger").await;
    let wrong = async || bench.node.publish(PublishRequest::rtsp(&key.path, "ada", &stranger.secret)).await.refused();
    let mut answer = wrong().await;
    until("Redis is asked again", async || {
        answer = wrong().await;
        answer.status != Some(503)
    })
    .await;
    assert_refused(&answer, 403, "path_mismatch");
    bench.node.publish(PublishRequest::rtsp(&key.path, "ada", &key.secret)).await.admitted();
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_call_without_an_id_checks_the_key_and_claims_nothing() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let with_key = PublishRequest::whip_bearer(&key.path, &key.secret);
    for _ in 0..3 {
        assert_eq!(bench.node.preflight(&with_key).await.status, Some(204));
    }
    let without = bench.node.preflight(&PublishRequest::whip_without_credentials(&key.path)).await;
    assert_refused(&without, 401, "credentials_missing");
    let wrong = bench.node.preflight(&PublishRequest::whip_bearer(&key.path, "sk_wrong")).await;
    assert_refused(&wrong, 401, "key_malformed");
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());

    let publisher = bench.node.publish(with_key.clone()).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    assert_eq!(bench.node.preflight(&with_key).await.status, Some(204), "a page may be opened while it is on air");
    assert_eq!(bench.replica.until_live(&key.path).await["id"], stream["id"]);
    publisher.disconnect();
    let used = bench.replica.until_recorded(&id_of(&stream)).await;
    assert_eq!(used["path"], key.path);
    let key = bench.replica.api.get(&format!("/v1/stream-keys/{}", key.id)).await.expect(200);
    assert_eq!(key.json["use_count"], 1, "a check is no use");
    bench.replica.stop().await;
}

#[tokio::test]
async fn the_same_source_is_admitted_again_and_has_one_stream() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.node.publish(PublishRequest::whip_bearer(&key.path, &key.secret)).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    let again = bench.node.auth_log().into_iter().find(|asked| asked.call.action == "publish").unwrap().call;
    assert_eq!(again.id, Some(publisher.id()));
    for _ in 0..5 {
        assert_eq!(bench.node.ask(&again).await.status, Some(204));
    }
    let other_source = AuthCall { id: Some(Uuid::new_v4()), ..again.clone() };
    assert_refused(&bench.node.ask(&other_source).await, 409, "key_in_use");
    // The same number from another node is another connection.
    let elsewhere = bench.replica.mediamtx("edge-2").await;
    assert_refused(&elsewhere.ask(&again).await, 409, "key_in_use");

    let now = bench.replica.on_air().await;
    assert_eq!((now.len(), &now[0]["id"], &now[0]["started_at"]), (1, &stream["id"], &stream["started_at"]));
    bench.replica.stop().await;
}

#[tokio::test]
async fn readers_are_admitted_only_to_what_is_on_air() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let readers = |path: &str| {
        let anonymous = [ConnectionKind::HlsSession, ConnectionKind::WebRtcSession, ConnectionKind::SrtConn];
        let mut readers: Vec<_> =
            anonymous.into_iter().map(|kind| ReadRequest::without_credentials(path, kind)).collect();
        readers.push(ReadRequest::rtsp(path, "viewer", "whatever"));
        readers.push(ReadRequest::rtmp_query_token(path, "whatever"));
        readers.push(ReadRequest::whep_bearer(path, "whatever"));
        readers
    };
    let all_are_refused = async |path: &str| {
        for reader in readers(path) {
            assert_refused(&bench.node.read(reader).await.refused(), 404, "path_not_on_air");
        }
        let recording = AuthCall::without_client("playback", path, "", "");
        assert_refused(&bench.node.ask(&recording).await, 404, "path_not_on_air");
    };
    all_are_refused(&key.path).await;

    let publisher = bench.node.publish(PublishRequest::srt_streamid(&key.path, "ada", &key.secret)).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    for reader in readers(&key.path) {
        bench.node.read(reader).await.reading();
    }
    assert_eq!(bench.node.ask(&AuthCall::without_client("playback", &key.path, "", "")).await.status, Some(204));
    all_are_refused("live/unknown").await;
    until("its viewers are counted", async || bench.replica.details(&id_of(&stream)).await["viewers"] == 6).await;

    publisher.disconnect();
    bench.replica.until_off_air(&key.path).await;
    all_are_refused(&key.path).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn what_the_configuration_opens_is_watched_by_anybody_also_while_redis_is_away() {
    let mut stack = Stack::start_with(|config| config.viewing.open_paths = "lobby,cameras/".parse().unwrap()).await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let watch = async |path: &str| node.ask(&AuthCall::without_client("read", path, "", "")).await;
    let fetch = async |path: &str| node.ask(&AuthCall::without_client("playback", path, "", "")).await;
    assert_refused(&watch("live/ada").await, 404, "path_not_on_air");
    assert_refused(&watch("camera").await, 404, "path_not_on_air");
    stack.redis.kill().await.unwrap();
    for path in ["lobby", "cameras/1", "cameras/yard/2"] {
        assert_eq!(watch(path).await.status, Some(204), "{path}");
        assert_eq!(fetch(path).await.status, Some(204), "{path}");
    }
    assert_refused(&watch("lobby/2").await, 503, "state_unavailable");
    let publisher = PublishRequest::rtmp_query_key("lobby", "sk_not_a_key_of_anybody");
    assert_refused(&node.publish(publisher).await.refused(), 401, "key_malformed");
    replica.stop().await;
}

#[tokio::test]
async fn a_private_path_is_watched_by_its_node_alone() {
    let bench = Bench::start().await;
    let key = bench.replica.key_with("live/ada", json!({"playback": "private"})).await;
    bench.node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await.admitted();
    bench.replica.until_live(&key.path).await;

    let anonymous = ReadRequest::without_credentials(&key.path, ConnectionKind::HlsSession);
    assert_refused(&bench.node.read(anonymous.clone()).await.refused(), 401, "credentials_missing");
    let with_key = ReadRequest::srt(&key.path, "ada", &key.secret);
    assert_refused(&bench.node.read(with_key).await.refused(), 403, "playback_private");
    let claims_to_be_the_node = ReadRequest::rtsp(&key.path, "edge-1", &node_password("edge-2"));
    assert_refused(&bench.node.read(claims_to_be_the_node).await.refused(), 403, "playback_private");
    bench.node.read(ReadRequest::rtsp(&key.path, "edge-1", &node_password("edge-1"))).await.reading();

    // The key's word about it counts from now on, for the stream that is on air too.
    let opened = json!({"playback": "public"});
    bench.replica.api.patch(&format!("/v1/stream-keys/{}", key.id), &opened).await.expect(200);
    bench.node.read(anonymous).await.reading();
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_nodes_own_api_is_opened_by_our_token_and_the_nodes_password_and_nothing_else() {
    let bench = Bench::start().await;
    bench.replica.add_node("edge-2").await;
    let key = bench.replica.key("live/ada").await;
    let signed = |node: &str, secret: &str, age_s: i64| {
        let credentials = NodeCredentials::new(&[ConfigSecret::new(secret)]).unwrap();
        let now = Timestamp::now().plus_ms(-1_000 * age_s);
        credentials.control_token(&node.parse().unwrap(), now).reveal().to_owned()
    };
    let ours = signed("edge-1", NODE_SECRET, 0);
    let password = node_password("edge-1");
    let others = node_password("edge-2");
    for action in ["api", "metrics", "pprof"] {
        let call = |user: &str, password: &str, token: &str| {
            json!({"action": action, "user": user, "password": password, "token": token, "path": "", "protocol": "",
                "ip": "192.0.2.1", "id": null, "query": ""})
        };
        for (user, secret, token) in [("", "", &ours), ("", &ours, &ours), ("edge-1", &password, &password)] {
            assert_eq!(bench.ask(&call(user, secret, token)).await, 204, "{action}");
        }
        for (user, secret, token) in [
            ("", "", String::new()),
            ("", "", signed("edge-2", NODE_SECRET, 0)),
            ("", "", signed("edge-1", NODE_SECRET, 61)),
            ("", "", signed("edge-1", "another-secret-another-secret-another", 0)),
            ("", "", format!("{ours}0")),
            ("", "", key.secret.clone()),
            ("", "", password.clone()),
            ("", password.as_str(), password.clone()),
            ("edge-2", password.as_str(), password.clone()),
            ("edge-1", others.as_str(), others.clone()),
            ("edge-2", others.as_str(), others.clone()),
            ("", "", support::stack::API_SECRET.to_owned()),
        ] {
            let refused = bench.by_hand().post("/v1/mediamtx/auth", &call(user, secret, &token)).await;
            refused.expect_problem(401, "control_unauthorized");
        }
    }
    // The poller's own calls are let in by the same door.
    until("the node is polled", async || {
        let node = bench.replica.api.get("/v1/nodes/edge-1").await.expect(200);
        node.json["reachable"] == true && bench.node.counts().auth_calls_of("api") > 0
    })
    .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn mediamtx_may_send_more_and_may_send_less() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let tomorrow = json!({
        "ip": "2001:db8::7", "user": "", "password": "", "token": "", "action": "publish", "path": key.path,
        "protocol": "moq", "id": Uuid::new_v4(), "query": format!("key={}", key.secret), "userAgent": "OBS 99",
        "tls": {"version": "1.3"}, "labels": ["a"], "priority": 7, "session": null
    });
    assert_eq!(bench.ask(&tomorrow).await, 204);
    assert_eq!(bench.replica.stream_on(&key.path).await.unwrap()["state"], "connecting");

    let other = bench.replica.key("live/bob").await;
    let query = format!("key={}", other.secret);
    let yesterday = json!({"action": "publish", "path": other.path, "id": Uuid::new_v4(), "query": query});
    assert_eq!(bench.ask(&yesterday).await, 204);
    let empty =
        json!({"action": "publish", "path": other.path, "query": query, "ip": null, "user": null, "token": null});
    assert_eq!(bench.ask(&empty).await, 204, "a missing id is as good as null");
    for nothing in [json!({}), json!({"action": null}), json!({"action": "publish"})] {
        let answer = bench.by_hand().post("/v1/mediamtx/auth", &nothing).await;
        assert!(matches!(answer.status, 401 | 403), "{nothing}: {}", answer.text);
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_key_in_the_path_is_refused_and_told_how_to_be_written() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let cut = &key.secret[..key.secret.len() - 1];
    for request in [
        PublishRequest::rtmp_key_as_path("live", &key.secret),
        PublishRequest::rtmp_key_as_path("live", cut),
        PublishRequest::rtmp_query_key(&format!("live/{}/ada", key.secret), &key.secret),
        PublishRequest::whip_bearer(&key.secret, &key.secret),
    ] {
        let refused = bench.node.publish(request).await.refused();
        assert_refused(&refused, 401, "key_in_path");
        let detail: Value = serde_json::from_str(&refused.body).unwrap();
        let detail = detail["detail"].as_str().unwrap();
        for part in ["?key=<stream key>", "OBS", "revoke"] {
            assert!(detail.contains(part), "it does not tell of {part}: {detail}");
        }
        assert!(!refused.body.contains(cut), "the key comes back: {}", refused.body);
    }
    let watched = ReadRequest::without_credentials(&format!("live/{}", key.secret), ConnectionKind::HlsSession);
    let refused = bench.node.read(watched).await.refused();
    assert_refused(&refused, 404, "path_not_on_air");
    assert!(!refused.body.contains(cut));
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    bench.replica.stop().await;
}
