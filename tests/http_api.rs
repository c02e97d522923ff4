//! The API as its callers see it: every endpoint once, every kind of bad request, and the documents.

mod support;

use onair::config::ConfigSecret;
use serde_json::{Value, json};
use support::{
    api_client::{Answer, ApiClient},
    stack::{Replica, Stack, node_password},
    stores::until,
};
use uuid::Uuid;

/// A caller with the credentials of a node that is in the fleet, at an address where nobody listens.
async fn node(replica: &Replica, name: &str) -> ApiClient {
    replica.add_node(name).await;
    replica.api.as_node(name, &node_password(name))
}

/// A new key: the answer to its creation.
async fn created_key(replica: &Replica, path: &str) -> Answer {
    let body = json!({"broadcaster_id": replica.broadcaster("Ada").await, "path": path, "title": "Ada live"});
    replica.api.post("/v1/stream-keys", &body).await.expect(201)
}

fn publish_call(path: &str, secret: &str, source_id: Uuid) -> Value {
    json!({
        "ip": "192.0.2.7", "user": "", "password": secret, "token": secret, "action": "publish", "path": path,
        "protocol": "srt", "id": source_id, "query": "", "userAgent": "", "aFieldOfTomorrow": true
    })
}

#[tokio::test]
async fn a_broadcast_from_key_to_stop_through_the_api() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let (api, node) = (&replica.api, node(&replica, "edge-1").await);
    let empty = api.get("/v1/streams").await.expect(200);
    assert_eq!((&empty.json["items"], &empty.json["total"]), (&json!([]), &json!(0)));
    assert!(empty.json["message"].is_string());

    let created = created_key(&replica, "live/ada").await;
    assert_eq!(created.headers["cache-control"], "no-store");
    let (secret, key) = (created.text_at("/secret"), created.text_at("/stream_key/id"));
    assert_eq!(created.json["publish"][0]["node"], "edge-1");
    let source_id = Uuid::now_v7();
    node.post("/v1/mediamtx/auth", &publish_call("live/ada", &secret, source_id)).await.expect(204);
    let other = publish_call("live/ada", &secret, Uuid::now_v7());
    node.post("/v1/mediamtx/auth", &other).await.expect_problem(409, "key_in_use");

    let listed = api.get("/v1/streams?state=connecting&node=edge-1").await.expect(200);
    assert_eq!(listed.json["items"][0]["path"], "live/ada");
    assert_eq!(listed.json["items"][0]["broadcaster"]["display_name"], "Ada");
    assert_eq!(listed.json["items"][0]["playback"]["hls"], "https://edge-1.example.org:8888/live/ada/index.m3u8");
    let stream = listed.text_at("/items/0/id");
    let shown = api.get(&format!("/v1/stream-keys/{key}")).await.expect(200);
    assert_eq!((&shown.json["in_use"], shown.text_at("/stream_id")), (&json!(true), stream.clone()));
    assert_eq!(api.get("/v1/stream-keys?in_use=false").await.expect(200).json["items"], json!([]));

    let hook = format!("path=live/ada&source_type=srtConn&source_id={source_id}");
    let confirmed = node.post_form("/v1/hooks/publish", &hook).await.expect(200);
    assert_eq!(confirmed.json["result"], "confirmed");
    let patch = json!({"title": null, "recording": "s3://recordings/1", "metadata": {"season": 2}});
    let patched = api.patch(&format!("/v1/streams/{stream}"), &patch).await.expect(200);
    assert_eq!((&patched.json["title"], &patched.json["metadata"]["season"]), (&Value::Null, &json!(2)));
    let details = api.get(&format!("/v1/streams/{stream}")).await.expect(200);
    assert_eq!((details.text_at("/state"), details.text_at("/source/type")), ("live".into(), "srtConn".into()));

    let stopped = api.act(&format!("/v1/streams/{stream}/stop")).await.expect(200);
    assert_eq!(stopped.text_at("/stream/end_reason"), "stopped");
    api.act(&format!("/v1/streams/{stream}/stop")).await.expect_problem(409, "stream_already_ended");
    node.post("/v1/mediamtx/auth", &other).await.expect_problem(409, "cooling_down");
    let history = format!("/v1/streams?state=ended&key_id={key}");
    until("the history has it", async || api.get(&history).await.expect(200).json["items"][0]["id"] == stream).await;
    let recorded =
        api.patch(&format!("/v1/streams/{stream}"), &json!({"recording": "s3://recordings/2"})).await.expect(200);
    assert_eq!(
        (recorded.text_at("/state"), recorded.text_at("/recording")),
        ("ended".into(), "s3://recordings/2".into())
    );
    let details = api.get(&format!("/v1/streams/{stream}")).await.expect(200);
    assert_eq!(details.text_at("/recording"), "s3://recordings/2");
    replica.stop().await;
}

#[tokio::test]
async fn a_key_is_changed_disabled_enabled_and_revoked() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let (api, created) = (&replica.api, created_key(&replica, "live/ada").await);
    let key = format!("/v1/stream-keys/{}", created.text_at("/stream_key/id"));
    let patch = json!({"label": "studio", "title": null, "expires_at": "2999-01-01T00:00:00Z", "playback": "private"});
    let patched = api.patch(&key, &patch).await.expect(200);
    assert_eq!((&patched.json["title"], patched.text_at("/playback")), (&Value::Null, "private".into()));
    assert_eq!(patched.text_at("/expires_at"), "2999-01-01T00:00:00.000Z");
    assert_eq!(api.patch(&key, &json!({"expires_at": null})).await.expect(200).json["expires_at"], Value::Null);

    let disabled = api.act(&format!("{key}/disable")).await.expect(200);
    assert_eq!(
        (disabled.text_at("/stream_key/status"), disabled.text_at("/publisher")),
        ("disabled".into(), "none".into())
    );
    api.act(&format!("{key}/enable")).await.expect(200);
    assert_eq!(api.get("/v1/stream-keys?status=active&limit=1").await.expect(200).json["items"][0]["label"], "studio");
    for _ in 0..2 {
        assert_eq!(api.act(&format!("{key}/revoke")).await.expect(200).text_at("/stream_key/status"), "revoked");
    }
    api.act(&format!("{key}/enable")).await.expect_problem(409, "key_revoked_is_final");
    api.patch(&key, &json!({"label": null})).await.expect_problem(409, "key_revoked_is_final");
    replica.stop().await;
}

#[tokio::test]
async fn bad_input_names_the_field_and_changes_nothing() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let (api, broadcaster) = (&replica.api, replica.broadcaster("Ada").await);
    created_key(&replica, "live/taken").await;
    let before = api.get("/v1/stream-keys").await.expect(200).text;
    let cases = [
        ("path", json!("live/a b"), 422, "invalid_input"),
        ("path", json!("live/taken"), 409, "path_taken"),
        ("expires_at", json!("2020-01-01T00:00:00Z"), 422, "invalid_input"),
        ("expires_at", json!("tomorrow"), 422, "invalid_input"),
        ("broadcaster_id", json!(Uuid::now_v7()), 422, "broadcaster_unknown"),
        ("broadcaster_id", json!(7), 422, "invalid_input"),
        ("title", json!("x".repeat(201)), 422, "invalid_input"),
        ("metadata", json!({"a": "x".repeat(9000)}), 422, "invalid_input"),
        ("metadata", json!({"a": "\u{0}"}), 422, "invalid_input"),
        ("on_conflict", json!("whatever"), 422, "invalid_input"),
        ("titel", json!("Ada"), 422, "invalid_input"),
    ];
    for (field, value, status, code) in cases {
        let mut body = json!({"broadcaster_id": broadcaster, "path": "live/new"});
        body[field] = value.clone();
        let problem = api.post("/v1/stream-keys", &body).await.expect_problem(status, code);
        assert_eq!(problem.text_at("/errors/0/field"), field, "{}", problem.text);
        assert!(value.as_str().is_none_or(|value| !problem.text.contains(value)), "{}", problem.text);
    }
    api.post("/v1/stream-keys", &json!({})).await.expect_problem(422, "invalid_input");
    assert_eq!(api.get("/v1/stream-keys").await.text, before);
    let node = json!({"control_url": "http://a:9997", "public_urls": {"hls": "rtmp://a"}});
    let problem = api.put("/v1/nodes/edge-9", &node).await.expect_problem(422, "invalid_input");
    assert_eq!(problem.text_at("/errors/0/field"), "public_urls.hls");
    let problem = api.put("/v1/nodes/edge-9", &json!({"control_url": "http://a", "public_urls": []})).await;
    assert_eq!(problem.expect_problem(422, "invalid_input").text_at("/errors/0/field"), "public_urls");
    replica.stop().await;
}

#[tokio::test]
async fn a_key_and_its_new_broadcaster_are_made_together_or_not_at_all() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let api = &replica.api;
    let body = json!({"broadcaster_name": "Ada", "path": "live/ada"});
    let made = api.post("/v1/stream-keys", &body).await.expect(201);
    let listed = api.get("/v1/broadcasters").await.expect(200);
    let (broadcaster, name) = (listed.text_at("/items/0/id"), listed.text_at("/items/0/display_name"));
    assert_eq!((name.as_str(), listed.json["items"].as_array().unwrap().len()), ("Ada", 1));
    assert_eq!(made.text_at("/stream_key/broadcaster_id"), broadcaster);

    let before = api.get("/v1/broadcasters").await.expect(200).text;
    let refused = async |body: Value, status: u16, code: &str| {
        api.post("/v1/stream-keys", &body).await.expect_problem(status, code);
    };
    refused(json!({"broadcaster_name": "Bob", "path": "live/ada"}), 409, "path_taken").await;
    refused(json!({"broadcaster_name": "Bob", "path": "live/a b"}), 422, "invalid_input").await;
    refused(json!({"broadcaster_name": " ", "path": "live/bob"}), 422, "invalid_input").await;
    refused(json!({"broadcaster_name": "Bob", "broadcaster_id": broadcaster}), 422, "invalid_input").await;
    refused(json!({"path": "live/bob"}), 422, "invalid_input").await;
    assert_eq!(api.get("/v1/broadcasters").await.expect(200).text, before, "something is left behind");
    replica.stop().await;
}

#[tokio::test]
async fn every_kind_of_bad_request_is_a_documented_problem() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let api = &replica.api;
    let unknown = Uuid::now_v7();
    for (collection, code) in
        [("streams", "stream_not_found"), ("stream-keys", "key_not_found"), ("broadcasters", "broadcaster_not_found")]
    {
        api.get(&format!("/v1/{collection}/{unknown}")).await.expect_problem(404, code);
        api.patch(&format!("/v1/{collection}/{unknown}"), &json!({})).await.expect_problem(404, code);
        api.get(&format!("/v1/{collection}/7")).await.expect_problem(400, "id_malformed");
        api.get(&format!("/v1/{collection}?cursor=x")).await.expect_problem(400, "invalid_cursor");
        for query in ["limit=0", "limit=1001", "limit=x", "page=2"] {
            api.get(&format!("/v1/{collection}?{query}")).await.expect_problem(400, "invalid_query");
        }
        api.anonymous().get(&format!("/v1/{collection}")).await.expect_problem(401, "unauthorized");
        api.with_secret("another").get(&format!("/v1/{collection}")).await.expect_problem(401, "unauthorized");
        let wrong_method = api.delete(&format!("/v1/{collection}")).await.expect_problem(405, "method_not_allowed");
        assert!(wrong_method.headers.contains_key("allow"));
    }
    api.get("/v1/streams?key_id=0199b1f2-c0de-7a3e-9d5c-1b2a3f4e5d6c").await.expect_problem(400, "invalid_query");
    api.get("/v1/nodes/edge-9").await.expect_problem(404, "node_not_found");
    api.get("/v1/nodes/EDGE").await.expect_problem(400, "id_malformed");
    api.get("/v2").await.expect_problem(404, "route_not_found");
    let raw = async |body: &str| api.post_raw("/v1/broadcasters", "application/json", body).await;
    raw("{").await.expect_problem(400, "body_malformed");
    raw(&"x".repeat(100_000)).await.expect_problem(413, "body_too_large");
    api.post_form("/v1/broadcasters", "display_name=Ada").await.expect_problem(415, "unsupported_media_type");
    api.post("/v1/mediamtx/auth", &json!({})).await.expect_problem(401, "node_unauthorized");
    api.as_node("edge-1", "wrong").post("/v1/mediamtx/auth", &json!({})).await.expect_problem(401, "node_unauthorized");
    let node = node(&replica, "edge-1").await;
    let refused = async |body: Value, status: u16, code: &str| {
        node.post("/v1/mediamtx/auth", &body).await.expect_problem(status, code);
    };
    refused(publish_call("live/ada", "", Uuid::now_v7()), 401, "credentials_missing").await;
    refused(publish_call("live/ada", "letmein", Uuid::now_v7()), 401, "key_malformed").await;
    refused(json!({"action": "read", "path": "live/nobody"}), 404, "path_not_on_air").await;
    refused(json!({"action": "api"}), 401, "control_unauthorized").await;
    refused(json!({"action": "dance"}), 403, "action_unknown").await;
    replica.stop().await;
}

#[tokio::test]
async fn pages_follow_each_other() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let mut made: Vec<String> = Vec::new();
    for _ in 0..3 {
        made.insert(0, replica.broadcaster("Ada").await);
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = replica.api.get(&format!("/v1/broadcasters?limit=2{cursor}")).await.expect(200);
        found.extend(page.json["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        let Some(next) = page.json["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, made);
    replica.stop().await;
}

#[tokio::test]
async fn a_node_is_added_shown_wired_and_removed() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let api = &replica.api;
    node(&replica, "edge-1").await;
    let body = json!({"control_url": "http://127.0.0.1:9"});
    assert_eq!(api.put("/v1/nodes/edge-1", &body).await.expect(200).json["public_urls"]["hls"], Value::Null);
    let shown = async || api.get("/v1/nodes/edge-1").await.expect(200).json;
    until("the poller says why", async || shown().await["fault"] == "refused").await;
    assert_eq!(api.get("/v1/nodes").await.expect(200).json["items"][0]["reachable"], false);
    let hidden = json!({"control_url": "http://admin:hidden@10.0.0.256:9997"});
    let refused = api.put("/v1/nodes/edge-1", &hidden).await.expect_problem(422, "invalid_input");
    assert!(!refused.text.contains("hidden"), "{}", refused.text);
    let strange = api.request(reqwest::Method::GET, "/v1/nodes/edge-1/mediamtx-config").header("host", "[");
    api.send(strange).await.expect_problem(400, "request_malformed");
    // What would be a variable in a hook, and what would stand in its command line, which everybody can read.
    for host in ["onair$HOME", "ada:secret@onair"] {
        let strange = api.request(reqwest::Method::GET, "/v1/nodes/edge-1/mediamtx-config").header("host", host);
        let refused = api.send(strange).await.expect_problem(400, "request_malformed");
        assert!(refused.text_at("/detail").contains("Host") && !refused.text.contains(host), "{}", refused.text);
    }
    let printed = async || api.get("/v1/nodes/edge-1/mediamtx-config?hooks=none").await.expect(200).text;
    let yaml = printed().await;
    assert!(yaml.contains(&format!("@{}/v1/mediamtx/auth", replica.address)), "{yaml}");
    for (control_url, address) in [
        ("http://127.0.0.1:10997", "127.0.0.1:10997"),
        ("http://192.0.2.1:11997", ":11997"),
        ("https://192.0.2.1", ":9997"),
    ] {
        api.put("/v1/nodes/edge-1", &json!({"control_url": control_url})).await.expect(200);
        let yaml = printed().await;
        assert!(yaml.contains(&format!("apiAddress: \"{address}\"\n")), "{control_url}: {yaml}");
    }
    api.delete("/v1/nodes/edge-1").await.expect(204);
    api.delete("/v1/nodes/edge-1").await.expect_problem(404, "node_not_found");
    replica.stop().await;
}

#[tokio::test]
async fn the_open_endpoints_need_no_credentials() {
    let mut stack = Stack::start().await;
    let replica = stack.replica().await;
    let api = replica.api.anonymous();
    assert_eq!(api.get("/healthz").await.expect(200).json["status"], "ok");
    assert_eq!(api.get("/readyz").await.expect(200).json["status"], "ready");
    assert!(api.get("/metrics").await.expect(200).text.contains("onair_http_requests_total"));
    assert!(api.get("/docs/errors").await.expect(200).text.contains("id=\"key_in_use\""));
    let page = reqwest::get(format!("http://{}/docs", replica.address)).await.unwrap();
    assert!(page.text().await.unwrap().contains("swagger-ui"));
    let no_text = api.get("/docs/%FF").await;
    let no_text = no_text.expect_problem(404, "route_not_found");
    assert_eq!(no_text.headers.get_all("content-type").iter().collect::<Vec<_>>(), ["application/problem+json"]);

    // What is told while Redis is away is the last that was known, so something has to be known.
    assert_eq!(replica.api.get("/v1/streams").await.expect(200).json["stale"], false);
    node(&replica, "edge-1").await;
    let reachable = async || replica.api.get("/v1/nodes").await.expect(200).json["items"][0]["reachable"].clone();
    until("the node was asked", async || reachable().await.is_boolean()).await;
    stack.redis.kill().await.unwrap();
    assert_eq!(reachable().await, Value::Null, "nobody knows");
    let unready = api.get("/readyz").await.expect_problem(503, "not_ready");
    assert_eq!(unready.json["dependencies"], json!({"redis": "unavailable", "postgres": "ok"}));
    assert_eq!(replica.api.get("/v1/streams").await.expect(200).json["stale"], true);
    stack.redis.restart().await.unwrap();
    until("it is ready again", async || api.get("/readyz").await.status == 200).await;
    replica.stop().await;
}

#[tokio::test]
async fn without_postgres_the_live_list_goes_on_and_management_says_why_it_does_not() {
    let stack = Stack::start().await;
    // A Redis that nothing has been brought into yet is not believed that nothing is on air.
    stack.replica().await.stop().await;
    let mut config = stack.config.clone();
    config.postgres.url = ConfigSecret::new("postgres://onair@127.0.0.1:9/onair");
    config.postgres.acquire_timeout_ms = 100;
    let replica = Stack::replica_with(&config).await;
    let api = &replica.api;
    assert_eq!(api.get("/v1/streams").await.expect(200).json["stale"], false);
    assert_eq!(api.get("/readyz").await.expect(200).json["status"], "degraded");
    let unavailable = api.post("/v1/broadcasters", &json!({"display_name": "Ada"})).await;
    let unavailable = unavailable.expect_problem(503, "store_unavailable");
    assert_eq!(unavailable.headers["retry-after"], "1");
    api.get("/v1/stream-keys").await.expect_problem(503, "store_unavailable");
    api.put("/v1/nodes/edge-1", &json!({"control_url": "http://a"})).await.expect_problem(503, "store_unavailable");
    api.get("/v1/streams?state=ended").await.expect_problem(503, "history_unavailable");
    api.get(&format!("/v1/streams/{}", Uuid::now_v7())).await.expect_problem(503, "history_unavailable");
    replica.stop().await;
}
