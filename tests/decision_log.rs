//! The log that an operator reads: one line for every decision, with everything that is needed to follow it up.

mod support;

use std::sync::Arc;

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use support::{
    api_client::ApiClient,
    mediamtx::{ConnectionKind, MediaMtx, MediaMtxOptions, PublishRequest, ReadRequest},
    service::Service,
    stack::{API_SECRET, Stack, node_password, public_urls},
    stores::until,
};

async fn key(api: &ApiClient, path: &str) -> (String, String) {
    let broadcaster = api.post("/v1/broadcasters", &serde_json::json!({"display_name": "Ada"})).await.expect(201);
    let body = serde_json::json!({"broadcaster_id": broadcaster.text_at("/id"), "path": path});
    let created = api.post("/v1/stream-keys", &body).await.expect(201);
    (created.text_at("/stream_key/id"), created.text_at("/secret"))
}

async fn node(api: &ApiClient, service: &Service) -> Arc<MediaMtx> {
    let auth_url = format!("http://edge-1:{}@{}/v1/mediamtx/auth", node_password("edge-1"), service.address);
    let node = Arc::new(MediaMtx::start(MediaMtxOptions::new("edge-1", auth_url)).await);
    let body = serde_json::json!({"control_url": node.control_url(), "public_urls": public_urls("edge-1")});
    api.put("/v1/nodes/edge-1", &body).await.expect(201);
    node
}

/// Stores, and the service on them, whose log is read.
async fn start() -> (Stack, Service, ApiClient) {
    let stack = Stack::start().await;
    let service = Service::start(&stack.config, &[]).await;
    let api = ApiClient::connect(&service.url(), API_SECRET).await;
    (stack, service, api)
}

#[tokio::test]
async fn every_decision_is_one_line_that_says_who_what_where_and_how_long() {
    let (_stack, service, api) = start().await;
    let node = node(&api, &service).await;
    let (key_id, secret) = key(&api, "live/ada").await;
    let (_, strange) = key(&api, "live/bob").await;

    node.publish(PublishRequest::rtsp("live/ada", "u", &secret)).await.admitted();
    node.publish(PublishRequest::srt_streamid("live/ada", "u", &secret)).await.refused();
    node.publish(PublishRequest::rtmp_query_key("live/ada", &strange)).await.refused();
    node.publish(PublishRequest::rtmp_query_key("live/ada", "letmein")).await.refused();
    node.publish(PublishRequest::rtsp("live/ada", "u", "")).await.refused();
    node.read(ReadRequest::without_credentials("live/ada", ConnectionKind::HlsSession)).await.reading();
    node.read(ReadRequest::without_credentials("live/nobody", ConnectionKind::WebRtcSession)).await.refused();
    let asked = node.auth_log();
    for _ in 0..2 {
        let stranger = api.as_node("edge-1", "no-password-of-its-own");
        stranger.post_raw("/v1/mediamtx/auth", "application/json", "{}").await.expect_problem(401, "node_unauthorized");
    }
    let known = async || service.said().iter().any(|line| line.contains("path_not_on_air"));
    until("the last of them is logged", known).await;
    let (status, said) = service.stop().await;
    assert!(status.success(), "{status}");

    let lines: Vec<Value> = said.iter().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
    assert!(lines.iter().all(|line| line["level"] != "DEBUG" && line["timestamp"].is_string()));
    let as_a_node = lines.iter().filter(|line| line["message"] == "somebody called as a node with a wrong password");
    let as_a_node: Vec<&Value> = as_a_node.collect();
    assert!(matches!(as_a_node[..], [line] if line["node"] == "edge-1"), "once in ten seconds: {as_a_node:#?}");
    assert!(!said.iter().any(|line| line.contains("no-password-of-its-own")));
    let decisions: Vec<&Value> = lines.iter().filter(|line| line["message"] == "decision").collect();
    // The first calls of the RTSP clients and those of our own poller are no events; that one gives a name and no key is.
    assert_eq!(decisions.iter().filter(|line| line["code"] == "credentials_missing").count(), 1);
    let events =
        asked.iter().filter(|asked| asked.call.action != "api" && !asked.answer.body.contains("credentials_missing"));
    let events: Vec<_> = events.collect();
    assert_eq!(events.len(), 6);
    for event in &events {
        let of_this = |line: &&&Value| line["source_id"] == serde_json::json!(event.call.id);
        let lines: Vec<_> = decisions.iter().filter(of_this).collect();
        assert_eq!(lines.len(), 1, "{:?}: {decisions:#?}", event.call.id);
        let line = lines[0];
        let problem: Value = serde_json::from_str(&event.answer.body).unwrap_or_default();
        if event.answer.admits() {
            assert!(matches!(line["code"].as_str(), Some("admitted" | "reader_admitted")), "{line}");
        } else {
            assert_eq!((&line["code"], &line["request_id"]), (&problem["code"], &problem["request_id"]));
        }
        let told = [&line["level"], &line["path"], &line["node"], &line["action"], &line["protocol"]];
        let (path, action, protocol) = (&event.call.path, &event.call.action, &event.call.protocol);
        assert_eq!(told, ["INFO", path, "edge-1", action, protocol]);
        assert!(line["duration_us"].as_u64().is_some_and(|us| us > 0 && us < 1_000_000), "{line}");
        assert!(line["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
    }
    let of_code = |code: &str| decisions.iter().find(|line| line["code"] == code).unwrap_or_else(|| panic!("{code}"));
    for code in ["admitted", "key_in_use"] {
        assert_eq!(of_code(code)["key_id"], key_id, "a known key is named, by its id");
    }
    assert!(of_code("admitted")["stream_id"].is_string());
    assert_eq!(of_code("key_malformed")["key_id"], Value::Null);
}

/// A read leaves nothing in the log, so nothing is carried along for it; but its failure has to be found.
#[tokio::test]
async fn a_read_that_fails_is_one_line_that_says_which_request_it_was() {
    let (stack, service, api) = start().await;
    api.get("/v1/broadcasters").await.expect(200);
    let mut postgres = PgConnection::connect(stack.config.postgres.url.reveal()).await.unwrap();
    sqlx::query("ALTER TABLE broadcasters RENAME TO elsewhere").execute(&mut postgres).await.unwrap();
    let failed = api.get("/v1/broadcasters?limit=7").await;
    assert!(failed.status >= 500, "{}", failed.status);
    let request_id = failed.text_at("/request_id");
    let line_of = |said: &[String]| {
        let lines = said.iter().filter(|line| line.contains(&request_id));
        lines.map(|line| serde_json::from_str(line).expect("every line is JSON")).collect::<Vec<Value>>()
    };
    until("it is logged", async || !line_of(&service.said()).is_empty()).await;
    let (_, said) = service.stop().await;
    let lines = line_of(&said);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let span = &lines[0]["span"];
    assert_eq!((&span["method"], &span["route"]), (&"GET".into(), &"/v1/broadcasters".into()));
    assert!(lines[0]["cause"].is_string(), "{lines:#?}");
    assert_eq!(said.iter().filter(|line| line.contains("/v1/broadcasters")).count(), 1, "what succeeded is not logged");
}

#[tokio::test]
async fn a_stop_is_one_line_that_says_who_and_another_one_where_the_audit_log_does_not_take_it() {
    let (stack, service, api) = start().await;
    let node = node(&api, &service).await;
    let keys = [("live/ada", key(&api, "live/ada").await.1), ("live/bob", key(&api, "live/bob").await.1)];
    let mut request_ids = Vec::new();
    for (path, secret) in keys {
        let _publisher = node.publish(PublishRequest::whip_bearer(path, &secret)).await.admitted();
        let on_air = api.on_air().await;
        let id = on_air.iter().find(|stream| stream["path"] == path).expect("it is listed")["id"].clone();
        let stopped = api.act(&format!("/v1/streams/{}/stop", id.as_str().expect("an id"))).await.expect(200);
        request_ids.push(stopped.headers["x-request-id"].to_str().expect("a text").to_owned());
        let mut postgres = PgConnection::connect(stack.config.postgres.url.reveal()).await.unwrap();
        sqlx::query("ALTER TABLE IF EXISTS audit_log RENAME TO elsewhere").execute(&mut postgres).await.unwrap();
    }
    let lines_of = |said: &[String], request_id: &str| {
        let lines = said.iter().map(|line| serde_json::from_str::<Value>(line).expect("every line is JSON"));
        lines.filter(|line| line["action"] == "stream_stopped" && line["request_id"] == request_id).collect::<Vec<_>>()
    };
    until("the last one is logged", async || lines_of(&service.said(), &request_ids[1]).len() == 2).await;
    let (_, said) = service.stop().await;
    for (request_id, path, levels) in
        [(&request_ids[0], "live/ada", &["INFO"][..]), (&request_ids[1], "live/bob", &["INFO", "WARN"][..])]
    {
        let lines = lines_of(&said, request_id);
        assert_eq!(lines.iter().map(|line| &line["level"]).collect::<Vec<_>>(), levels, "{lines:#?}");
        for line in lines {
            let told = [&line["actor"], &line["path"], &line["node"]];
            assert_eq!(told, ["api-1", path, "edge-1"]);
            assert!(line["stream_id"].is_string(), "{line}");
        }
    }
}
