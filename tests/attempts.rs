//! Why was I refused? What encoders do not show can be read, by path and by key, without anything secret in it.

mod support;

use onair::domain::{Attempt, Timestamp};
use serde_json::{Value, json};
use support::{bench::Bench, mediamtx::PublishRequest, stack::TestKey, stores::until};

impl Bench {
    async fn of_path(&self, path: &str) -> Vec<Value> {
        self.read(&format!("/v1/attempts?path={path}")).await
    }

    async fn of_key(&self, key: &TestKey) -> Vec<Value> {
        self.read(&format!("/v1/stream-keys/{}/attempts", key.id)).await
    }

    async fn read(&self, address: &str) -> Vec<Value> {
        let answer = self.replica.api.get(address).await.expect(200);
        assert!(!answer.text.contains("sk_"), "no key in it: {}", answer.text);
        answer.json["items"].as_array().expect("a list").clone()
    }

    /// The refusals of a path, once there are so many.
    async fn until_noted(&self, path: &str, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        until(&format!("{count} refusals are noted on {path}"), async || {
            found = self.of_path(path).await;
            found.len() == count
        })
        .await;
        found
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_time_code_address_protocol_and_encoder() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    bench.node.publish(key.publisher()).await.admitted();
    let before = Timestamp::now();
    let request = key.publisher().with_ip("192.0.2.7").user_agent("OBS Studio/30.2");
    bench.node.publish(request).await.refused();
    let attempts = bench.until_noted(&key.path, 1).await;
    let at = Timestamp::parse(attempts[0]["at"].as_str().unwrap()).unwrap();
    assert!(at >= before && at <= Timestamp::now());
    let expected = json!({
        "at": attempts[0]["at"], "code": "key_in_use", "path": "live/ada", "node": "edge-1", "key_id": key.id,
        "protocol": "rtmp", "address": "192.0.2.7", "user_agent": "OBS Studio/30.2",
    });
    assert_eq!(attempts, [expected]);
    assert_eq!(bench.of_key(&key).await, attempts);
    bench.replica.stop().await;
}

#[tokio::test]
async fn every_reason_of_a_broadcaster_is_found_under_its_path_the_latest_first() {
    let bench = Bench::start().await;
    let path = "live/ada";
    let revoked = bench.replica.key(path).await;
    bench.replica.api.act(&format!("/v1/stream-keys/{}/revoke", revoked.id)).await.expect(200);
    bench.node.publish(revoked.publisher()).await.refused();
    let disabled = bench.replica.key(path).await;
    bench.replica.api.act(&format!("/v1/stream-keys/{}/disable", disabled.id)).await.expect(200);
    bench.node.publish(disabled.publisher()).await.refused();
    let mistyped = format!("{}x", disabled.secret);
    bench.node.publish(PublishRequest::rtmp_query_key(path, &mistyped)).await.refused();
    bench.node.publish(PublishRequest::rtmp_query(path, "")).await.refused();
    // From another address: the same refusal of the same one would be no news.
    bench.node.publish(PublishRequest::rtsp(path, "ada", &mistyped).with_ip("192.0.2.8")).await.refused();
    let attempts = bench.until_noted(path, 5).await;
    let codes: Vec<&str> = attempts.iter().map(|attempt| attempt["code"].as_str().unwrap()).collect();
    // Of the RTSP client's two calls only the one that showed a key is news.
    assert_eq!(codes, ["key_malformed", "credentials_missing", "key_malformed", "key_disabled", "key_revoked"]);
    assert_eq!(bench.of_key(&revoked).await.len(), 1);
    assert_eq!(bench.of_key(&disabled).await.len(), 1);
    assert_eq!(bench.of_path("live/nobody").await, Vec::<Value>::new());
    bench.replica.stop().await;
}

#[tokio::test]
async fn an_encoder_that_tries_again_and_again_is_listed_once_and_takes_no_place_of_others() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    bench.node.publish(key.publisher()).await.admitted();
    let stubborn = || key.publisher().with_ip("192.0.2.7");
    for _ in 0..5 {
        bench.node.publish(stubborn()).await.refused();
    }
    // Another address, and another reason of the same one, are listed at once.
    bench.node.publish(key.publisher().with_ip("192.0.2.8")).await.refused();
    let mistyped = PublishRequest::rtmp_query_key(&key.path, "sk_mistyped").with_ip("192.0.2.7");
    bench.node.publish(mistyped).await.refused();
    bench.node.publish(stubborn()).await.refused();
    let attempts = bench.until_noted(&key.path, 3).await;
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt["code"].as_str().unwrap(), attempt["address"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("key_malformed", "192.0.2.7"), ("key_in_use", "192.0.2.8"), ("key_in_use", "192.0.2.7")]);
    let metrics = bench.replica.api.get("/metrics").await.expect(200).text;
    let counted = metrics.lines().find(|line| {
        line.starts_with("onair_auth_decisions_total{")
            && line.contains("action=\"publish\"")
            && line.contains("code=\"key_in_use\"")
    });
    let count: f64 = counted.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap();
    assert!(count >= 7.0, "the metrics count each of them: {counted:?}");
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_user_name_without_a_key_is_no_first_call_of_an_rtsp_client() {
    let bench = Bench::start().await;
    bench.node.publish(PublishRequest::rtsp_without_credentials("live/ada")).await.refused();
    // So comes a client that answers by digest, and one whose address has a name and no password.
    let answer = bench.node.publish(PublishRequest::rtsp("live/ada", "ada", "")).await.refused();
    assert!(answer.body.contains("digest"), "it says what to change: {}", answer.body);
    // The queue is worked through in order: once this one is there, the others would be.
    bench.node.publish(PublishRequest::rtmp_query_key("live/ada", "sk_mistyped")).await.refused();
    let attempts = bench.until_noted("live/ada", 2).await;
    let told: Vec<_> = attempts.iter().map(|attempt| (&attempt["code"], &attempt["protocol"])).collect();
    assert_eq!(told, [(&json!("key_malformed"), &json!("rtmp")), (&json!("credentials_missing"), &json!("rtsp"))]);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_key_that_is_tried_on_another_path_is_found_under_that_path_and_under_the_key() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    bench.node.publish(PublishRequest::rtmp_query_key("live/bob", &key.secret)).await.refused();
    let attempts = bench.until_noted("live/bob", 1).await;
    assert_eq!((&attempts[0]["code"], &attempts[0]["key_id"]), (&json!("path_mismatch"), &json!(key.id)));
    assert_eq!(bench.of_key(&key).await, attempts);
    assert_eq!(bench.of_path("live/ada").await, Vec::<Value>::new());
    bench.replica.stop().await;
}

#[tokio::test]
async fn admitted_publishers_readers_and_keys_in_paths_leave_no_trace() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    bench.node.publish(key.publisher()).await.admitted();
    bench.node.read(support::mediamtx::ReadRequest::hls("live/nobody", "", "")).await.refused();
    bench.node.publish(PublishRequest::rtmp_key_as_path("live", &key.secret)).await.refused();
    bench.node.preflight(&PublishRequest::whip_without_credentials("live/ada")).await;
    // The queue is worked through in order: once this one is there, the others would be.
    bench.node.publish(key.publisher()).await.refused();
    let attempts = bench.until_noted("live/ada", 1).await;
    assert_eq!(attempts[0]["code"], "key_in_use");
    assert_eq!(bench.of_path("live/nobody").await, Vec::<Value>::new());
    bench.replica.stop().await;
}

#[tokio::test]
async fn no_more_than_fifty_are_told_and_none_older_than_a_day() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let path: onair::domain::StreamPath = key.path.parse().unwrap();
    let attempt = |at| Attempt {
        at,
        code: "key_in_use".to_owned(),
        path: path.clone(),
        node: "edge-1".parse().unwrap(),
        key_id: Some(key.id.parse().unwrap()),
        protocol: "rtmp".to_owned(),
        address: "192.0.2.7".to_owned(),
        user_agent: String::new(),
    };
    let note = async |attempt| {
        bench.replica.app.redis.record_attempts(&[(path.partition(), attempt)]).await.expect("it is noted");
    };
    let day_ms = 24 * 3_600_000;
    note(attempt(Timestamp::now().plus_ms(-day_ms - 60_000))).await;
    assert_eq!(bench.of_path("live/ada").await, Vec::<Value>::new(), "none is younger, and it is still too old");
    note(attempt(Timestamp::now().plus_ms(60_000 - day_ms))).await;
    assert_eq!(bench.of_path("live/ada").await.len(), 1);
    for _ in 0..60 {
        note(attempt(Timestamp::now())).await;
    }
    assert_eq!(bench.of_path("live/ada").await.len(), 50);
    assert_eq!(bench.of_key(&key).await.len(), 50);
    bench.replica.api.get("/v1/stream-keys/0190b7a2-7e1c-7bbb-8b52-6f8a63b0aa10/attempts").await.expect(404);
    bench.replica.api.get("/v1/attempts").await.expect(400);
    bench.replica.stop().await;
}
