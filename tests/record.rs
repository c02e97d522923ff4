//! The record: what was on air, how often a key was used, and who changed it.

mod support;

use std::sync::Arc;

use onair::{
    config::ConfigSecret,
    domain::{AuditAction, KeyId, Timestamp},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    mediamtx::{MediaMtx, PublishRequest},
    stack::{Replica, Stack, TestKey},
    stores::until,
    waiting::id_of,
};
use uuid::Uuid;

const SECOND_SECRET: &str = "another-api-secret-of-the-tests-0123456789";

struct Bench {
    replica: Replica,
    stack: Stack,
}

impl Bench {
    async fn start() -> Self {
        let stack = Stack::start_with(|config| {
            config.reconciler.poll_interval_ms = 100;
            config.history.poll_interval_ms = 25;
            config.server.api_secrets.push(ConfigSecret::new(SECOND_SECRET));
        })
        .await;
        Self { replica: stack.replica().await, stack }
    }

    /// One broadcast from its first to its last moment: the stream's id.
    async fn broadcast(&self, node: &Arc<MediaMtx>, key: &TestKey) -> String {
        let request = PublishRequest::whip_bearer(&key.path, &key.secret);
        let publisher = node.publish(request).await.admitted();
        let id = id_of(&self.replica.until_live(&key.path).await);
        publisher.disconnect();
        self.replica.until_off_air(&key.path).await;
        id
    }

    /// Every page of the history that a query asks for, two streams a page: their ids.
    async fn history(&self, query: &str) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let address = format!("/v1/streams?state=ended&limit=2{query}{cursor}");
            let page = self.replica.api.get(&address).await.expect(200);
            let items = page.json["items"].as_array().unwrap();
            assert!(items.iter().all(|stream| stream["state"] == "ended" && stream["ended_at"].is_string()));
            found.extend(items.iter().map(id_of));
            let Some(next) = page.json["next_cursor"].as_str() else { return found };
            assert_eq!(items.len(), 2, "a page that is not the last is full");
            cursor = format!("&cursor={next}");
        }
    }

    async fn key(&self, key: &TestKey) -> Value {
        self.replica.api.get(&format!("/v1/stream-keys/{}", key.id)).await.expect(200).json
    }
}

#[tokio::test]
async fn the_history_is_paged_by_key_broadcaster_path_node_and_time() {
    let bench = Bench::start().await;
    let (edge_1, edge_2) = (bench.replica.mediamtx("edge-1").await, bench.replica.mediamtx("edge-2").await);
    let bob = bench.replica.broadcaster("Bob").await;
    let ada = bench.replica.key("live/ada").await;
    let bobs = bench.replica.key_with("live/bob", json!({"broadcaster_id": bob})).await;
    let mut all = Vec::new();
    for (node, key) in [(&edge_1, &ada), (&edge_1, &bobs), (&edge_2, &ada), (&edge_2, &bobs), (&edge_1, &bobs)] {
        all.insert(0, bench.broadcast(node, key).await);
    }
    // A second key for the same path, after the first was revoked.
    bench.replica.api.act(&format!("/v1/stream-keys/{}/revoke", ada.id)).await.expect(200);
    let heir = bench.replica.key("live/ada").await;
    all.insert(0, bench.broadcast(&edge_2, &heir).await);
    until("all are in the history", async || bench.history("").await.len() == all.len()).await;

    assert_eq!(bench.history("").await, all, "the one that ended last comes first");
    let pick = |numbers: &[usize]| numbers.iter().map(|&number| all[number].clone()).collect::<Vec<_>>();
    assert_eq!(bench.history(&format!("&key_id={}", ada.id)).await, pick(&[3, 5]));
    assert_eq!(bench.history(&format!("&key_id={}", heir.id)).await, pick(&[0]));
    assert_eq!(bench.history(&format!("&broadcaster_id={bob}")).await, pick(&[1, 2, 4]));
    assert_eq!(bench.history("&path=live/ada").await, pick(&[0, 3, 5]));
    assert_eq!(bench.history("&node=edge-2").await, pick(&[0, 2, 3]));
    assert_eq!(bench.history(&format!("&node=edge-1&broadcaster_id={bob}")).await, pick(&[1, 4]));
    assert_eq!(bench.history(&format!("&key_id={}", Uuid::now_v7())).await, Vec::<String>::new());

    // The third and the fourth of six, by their own times: from is included, before is not.
    let ended_at = async |id: &str| bench.replica.details(id).await["ended_at"].as_str().unwrap().to_owned();
    let (from, before) = (ended_at(&all[3]).await, ended_at(&all[1]).await);
    assert_eq!(bench.history(&format!("&ended_from={from}&ended_before={before}")).await, pick(&[2, 3]));
    assert_eq!(bench.history(&format!("&ended_from={from}&path=live/ada")).await, pick(&[0, 3]));
    assert_eq!(bench.history(&format!("&ended_before={from}")).await, pick(&[4, 5]));
    let misplaced = bench.replica.api.get(&format!("/v1/streams?ended_from={from}")).await;
    misplaced.expect_problem(400, "invalid_query");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_key_tells_when_it_was_last_used_and_how_often() {
    let bench = Bench::start().await;
    let node = bench.replica.mediamtx("edge-1").await;
    let (used, unused) = (bench.replica.key("live/ada").await, bench.replica.key("live/bob").await);
    assert_eq!(
        (&bench.key(&used).await["use_count"], &bench.key(&used).await["last_used_at"]),
        (&json!(0), &Value::Null)
    );
    let before = bench.key(&used).await;
    let mut last_id = String::new();
    for count in 1..=3 {
        last_id = bench.broadcast(&node, &used).await;
        until("the use is counted", async || bench.key(&used).await["use_count"] == count).await;
    }
    let key = bench.key(&used).await;
    assert_eq!(key["last_used_at"], bench.replica.details(&last_id).await["admitted_at"]);
    assert_eq!(key["updated_at"], before["updated_at"], "a use is no change");

    // Refusals and checks are no uses.
    node.preflight(&PublishRequest::whip_bearer(&used.path, &used.secret)).await;
    node.publish(PublishRequest::whip_bearer(&unused.path, &used.secret)).await.refused();
    bench.broadcast(&node, &unused).await;
    until("the other's use is counted", async || bench.key(&unused).await["use_count"] == 1).await;
    assert_eq!(bench.key(&used).await["use_count"], 3);
    bench.replica.stop().await;
}

#[tokio::test]
async fn the_audit_log_holds_who_changed_which_key_when_and_how_without_values() {
    let bench = Bench::start().await;
    let began = Timestamp::now();
    let (one, two) = (bench.replica.api.clone(), bench.replica.api.with_secret(SECOND_SECRET));
    let broadcaster = bench.replica.broadcaster("Ada").await;
    let body = json!({"broadcaster_id": broadcaster, "path": "live/ada", "label": "studio"});
    let created = two.post("/v1/stream-keys", &body).await.expect(201);
    let (key, secret) = (created.text_at("/stream_key/id"), created.text_at("/secret"));
    let address = format!("/v1/stream-keys/{key}");
    let patched = one.patch(&address, &json!({"label": "a private word", "playback": "private"})).await.expect(200);
    let disabled = two.act(&format!("{address}/disable")).await.expect(200);
    let enabled = one.act(&format!("{address}/enable")).await.expect(200);
    // What changes nothing is no line: it is refused, it asks for what is so already, or it only reads.
    one.patch(&address, &json!({"expires_at": "2020-01-01T00:00:00Z"})).await.expect_problem(422, "invalid_input");
    one.act(&format!("{address}/enable")).await.expect(200);
    one.get(&address).await.expect(200);
    let revoked = two.act(&format!("{address}/revoke")).await.expect(200);
    one.act(&format!("{address}/revoke")).await.expect(200);
    one.act(&format!("{address}/enable")).await.expect_problem(409, "key_revoked_is_final");

    let id = KeyId(key.parse().unwrap());
    let mut log = bench.replica.app.postgres.audit_log_of_key(id, 100).await.unwrap();
    log.reverse();
    let expected = [
        (AuditAction::KeyCreated, "api-2", &created),
        (AuditAction::KeyChanged, "api-1", &patched),
        (AuditAction::KeyDisabled, "api-2", &disabled),
        (AuditAction::KeyEnabled, "api-1", &enabled),
        (AuditAction::KeyRevoked, "api-2", &revoked),
    ];
    assert_eq!(log.len(), expected.len(), "{log:#?}");
    for (entry, (action, actor, answer)) in log.iter().zip(expected) {
        assert_eq!((entry.action, entry.actor.as_str()), (action, actor));
        assert_eq!(entry.request_id.as_deref(), answer.headers["x-request-id"].to_str().ok());
        assert_eq!(entry.broadcaster_id.map(|id| id.0.to_string()), Some(broadcaster.clone()));
        assert!(entry.at >= began.plus_ms(-1_000) && entry.at <= Timestamp::now().plus_ms(1_000));
    }
    let details = log.iter().map(|entry| entry.detail.to_string()).collect::<String>();
    assert!(details.contains("label") && details.contains("playback"), "{details}");
    assert!(!details.contains("a private word") && !details.contains(&secret), "{details}");
    bench.replica.stop().await;
}

#[tokio::test]
async fn the_audit_log_holds_who_stopped_or_changed_a_stream_and_who_was_shown_a_nodes_password() {
    let bench = Bench::start().await;
    let (one, two) = (bench.replica.api.clone(), bench.replica.api.with_secret(SECOND_SECRET));
    let node = bench.replica.mediamtx("edge-1").await;
    let key = bench.replica.key("live/ada").await;
    let _publisher = node.publish(PublishRequest::whip_bearer(&key.path, &key.secret)).await.admitted();
    let id = id_of(&bench.replica.until_live(&key.path).await);
    let address = format!("/v1/streams/{id}");
    let patch = json!({"title": "a private word", "metadata": {"season": 2}});
    let changed = two.patch(&address, &patch).await.expect(200);
    // What changes nothing is no line: it says what is so already, or it is refused.
    two.patch(&address, &patch).await.expect(200);
    let stopped = two.act(&format!("{address}/stop")).await.expect(200);
    two.act(&format!("{address}/stop")).await.expect_problem(409, "stream_already_ended");
    bench.replica.until_recorded(&id).await;
    let recorded = one.patch(&address, &json!({"recording": "s3://recordings/1"})).await.expect(200);

    let key_id = KeyId(key.id.parse().unwrap());
    let mut log = bench.replica.app.postgres.audit_log_of_key(key_id, 100).await.unwrap();
    log.reverse();
    let of_stream = |fields: &[&str]| json!({"stream_id": id, "path": key.path, "fields": fields});
    let expected = [
        (AuditAction::StreamChanged, "api-2", &changed, of_stream(&["title", "metadata"])),
        (AuditAction::StreamStopped, "api-2", &stopped, json!({"stream_id": id, "path": key.path})),
        (AuditAction::StreamChanged, "api-1", &recorded, of_stream(&["recording"])),
    ];
    assert_eq!(log.len(), 1 + expected.len(), "the key was made first: {log:#?}");
    for (entry, (action, actor, answer, detail)) in log[1..].iter().zip(expected) {
        assert_eq!((entry.action, entry.actor.as_str()), (action, actor));
        assert_eq!(entry.request_id.as_deref(), answer.headers["x-request-id"].to_str().ok());
        assert_eq!(entry.detail, detail);
        assert!(entry.broadcaster_id.is_some());
    }

    let shown = two.get("/v1/nodes/edge-1/mediamtx-config").await.expect(200);
    let mut postgres = PgConnection::connect(bench.stack.config.postgres.url.reveal()).await.unwrap();
    let lines: Vec<(String, Option<String>, Value)> = sqlx::query_as(
        "SELECT actor, request_id, detail FROM audit_log WHERE node = 'edge-1' AND action = 'node_configuration_shown'",
    )
    .fetch_all(&mut postgres)
    .await
    .unwrap();
    let request_id = shown.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(lines, [("api-2".to_owned(), Some(request_id), json!({}))]);
    bench.replica.stop().await;
}
