//! Every word that a decision can have, provoked as a node would see it. A new word has no place here, and does not
//! compile, until somebody says what it looks like from outside.

mod support;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
};

use onair::{
    admission::{Allowance, RefusalCode},
    domain::Timestamp,
    nodes::NodeFault,
};
use serde_json::{Value, json};
use support::{
    api_client::{Answer, ApiClient},
    mediamtx::ReadRequest,
    service::Service,
    stack::{Replica, Stack, TestKey, node_password},
    stores::until,
};
use uuid::Uuid;

const FAILURES_BURST: u32 = 3;

/// One replica, and a node for which the test speaks.
struct Bench {
    stack: Stack,
    replica: Replica,
    node: ApiClient,
    /// Every caller has an address of its own, so that no failure counts for another.
    addresses: AtomicU32,
}

impl Bench {
    async fn start() -> Self {
        let stack = Stack::start_with(|config| {
            config.renditions.suffixes = "_720p".parse().unwrap();
            config.admission.failures_burst = FAILURES_BURST;
            // The test speaks for a node that does not exist: nobody else shall speak for it.
            Stack::leave_nodes_alone(config);
        })
        .await;
        let replica = stack.replica().await;
        replica.add_node("edge-1").await;
        let node = replica.api.as_node("edge-1", &node_password("edge-1"));
        Self { stack, replica, node, addresses: AtomicU32::new(1) }
    }

    fn address(&self) -> String {
        format!("198.51.100.{}", self.addresses.fetch_add(1, Ordering::Relaxed))
    }

    async fn ask(&self, call: Value) -> Answer {
        self.node.post("/v1/mediamtx/auth", &call).await
    }

    /// A publisher from an address of its own, with the key in the query.
    fn publisher(&self, path: &str, secret: &str) -> Value {
        json!({"ip": self.address(), "user": "", "password": "", "token": "", "action": "publish", "path": path,
            "protocol": "rtmp", "id": Uuid::new_v4(), "query": format!("key={secret}"), "userAgent": "an encoder"})
    }

    async fn publish(&self, path: &str, secret: &str) -> Answer {
        self.ask(self.publisher(path, secret)).await
    }

    async fn publish_with(&self, key: &TestKey) -> Answer {
        self.publish(&key.path, &key.secret).await
    }

    async fn read(&self, path: &str, user: &str, password: &str) -> Answer {
        let call = json!({"ip": self.address(), "user": user, "password": password, "token": password, "action": "read",
            "path": path, "protocol": "hls", "id": Uuid::new_v4(), "query": "", "userAgent": "a player"});
        self.ask(call).await
    }

    /// The node itself publishes.
    async fn publish_as_node(&self, path: &str) -> Answer {
        let mut call = self.publisher(path, "");
        call["query"] = json!("");
        for (member, value) in [("user", "edge-1"), ("password", &node_password("edge-1"))] {
            call[member] = json!(value);
        }
        self.ask(call).await
    }

    async fn switch_key(&self, key: &TestKey, to: &str) {
        self.replica.api.act(&format!("/v1/stream-keys/{}/{to}", key.id)).await.expect(200);
    }

    /// What the metrics count for a code of `/v1/mediamtx/auth`, over all actions.
    async fn counted(&self, code: &str) -> u64 {
        let metrics = self.replica.api.get("/metrics").await.expect(200).text;
        let label = format!("code=\"{code}\"");
        let lines = metrics.lines().filter(|line| line.starts_with("onair_auth_decisions_total{"));
        let values = lines.filter(|line| line.contains(&label)).map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<u64>().unwrap()).sum()
    }

    async fn provoke(&self, code: RefusalCode) -> Answer {
        let path = format!("live/{}", code.as_str());
        match code {
            RefusalCode::CredentialsMissing => self.publish(&path, "").await,
            RefusalCode::CredentialsConflict => {
                let mut call = self.publisher(&path, "one");
                call["password"] = json!("another");
                self.ask(call).await
            }
            RefusalCode::KeyMalformed => self.publish(&path, "sk_mistyped").await,
            RefusalCode::KeyInPath => self.publish("live/sk_something", "sk_something").await,
            RefusalCode::KeyUnknown => self.publish(&path, &self.secret_that_was_never_stored()).await,
            RefusalCode::KeyRevoked | RefusalCode::KeyDisabled => {
                let key = self.replica.key(&path).await;
                let to = if code == RefusalCode::KeyRevoked { "revoke" } else { "disable" };
                self.switch_key(&key, to).await;
                self.publish_with(&key).await
            }
            RefusalCode::KeyExpired => self.expired().await,
            RefusalCode::PathMismatch => {
                let key = self.replica.key("live/its-own").await;
                self.publish(&path, &key.secret).await
            }
            RefusalCode::PathMalformed => {
                let key = self.replica.key("live/well-formed").await;
                self.publish("live//ada", &key.secret).await
            }
            RefusalCode::RenditionReserved => {
                let key = self.replica.key(&path).await;
                self.publish(&format!("{path}_720p"), &key.secret).await
            }
            RefusalCode::ParentNotOnAir => self.publish_as_node("live/silent_720p").await,
            RefusalCode::PathNotOnAir => self.read(&path, "", "").await,
            RefusalCode::PlaybackPrivate => {
                let key = self.replica.key_with(&path, json!({"playback": "private"})).await;
                self.publish_with(&key).await.expect(204);
                self.read(&path, "viewer", "whatever").await
            }
            RefusalCode::KeyInUse => {
                let key = self.replica.key(&path).await;
                self.publish_with(&key).await.expect(204);
                self.publish_with(&key).await
            }
            RefusalCode::CoolingDown => self.cooling_down().await,
            RefusalCode::TooManyFailures => {
                let call = self.publisher(&path, "sk_mistyped");
                for _ in 0..FAILURES_BURST {
                    self.ask(call.clone()).await.expect_problem(401, "key_malformed");
                }
                self.ask(call).await
            }
            RefusalCode::ControlUnauthorized => self.ask(json!({"action": "metrics", "user": "somebody"})).await,
            RefusalCode::ActionUnknown => self.ask(json!({"action": "dance"})).await,
            RefusalCode::StateUnavailable => {
                let key = self.replica.key(&path).await;
                self.stack.redis.suspend().unwrap();
                let answer = self.publish_with(&key).await;
                self.stack.redis.resume().unwrap();
                answer
            }
            RefusalCode::HistoryBacklogFull => {
                let key = self.replica.key(&path).await;
                let full = self.replica_without_room_for_history().await;
                let caller = full.api.as_node("edge-1", &node_password("edge-1"));
                let answer = caller.post("/v1/mediamtx/auth", &self.publisher(&key.path, &key.secret)).await;
                full.stop().await;
                answer
            }
        }
    }

    /// Another replica on the same stores, of whose limit an empty backlog is already the whole.
    async fn replica_without_room_for_history(&self) -> Replica {
        let mut config = self.stack.config.clone();
        config.history.backlog_entries_max = 0;
        Stack::replica_with(&config).await
    }

    /// A secret of the right form and with the right checksum.
    fn secret_that_was_never_stored(&self) -> String {
        let draw = u8::try_from(self.addresses.load(Ordering::Relaxed) % 62).unwrap();
        onair::domain::Secret::from_draws([draw; 28]).unwrap().reveal().to_owned()
    }

    async fn expired(&self) -> Answer {
        let soon = Timestamp::now().plus_ms(300).to_string();
        let key = self.replica.key_with("live/expiring", json!({"expires_at": soon})).await;
        let mut check = self.publisher(&key.path, &key.secret);
        check["id"] = Value::Null;
        until("the key's time is over", async || {
            // From another address each time, or they would be too many failures.
            check["ip"] = json!(self.address());
            self.ask(check.clone()).await.status != 204
        })
        .await;
        self.publish_with(&key).await
    }

    async fn cooling_down(&self) -> Answer {
        let key = self.replica.key("live/stopped").await;
        self.publish_with(&key).await.expect(204);
        let stream = self.replica.stream_on(&key.path).await.unwrap();
        let stop = format!("/v1/streams/{}/stop", stream["id"].as_str().unwrap());
        let stopped = self.replica.api.act(&stop).await.expect(200);
        let refused = self.publish_with(&key).await;
        let until = stopped.text_at("/closed_until");
        assert!(refused.text_at("/detail").contains(&until), "not until {until}: {}", refused.text);
        refused
    }

    async fn allow(&self, allowance: Allowance) -> Answer {
        let path = format!("live/{}", allowance.as_str());
        let key = self.replica.key(&path).await;
        match allowance {
            Allowance::Admitted => self.publish_with(&key).await,
            Allowance::AdmittedAgain => {
                let call = self.publisher(&path, &key.secret);
                self.ask(call.clone()).await.expect(204);
                self.ask(call).await
            }
            Allowance::Checked => {
                let mut call = self.publisher(&path, &key.secret);
                call["id"] = Value::Null;
                self.ask(call).await
            }
            Allowance::RenditionAdmitted => {
                self.publish_with(&key).await.expect(204);
                self.publish_as_node(&format!("{path}_720p")).await
            }
            Allowance::ReaderAdmitted => {
                self.publish_with(&key).await.expect(204);
                self.read(&path, "", "").await
            }
            Allowance::ControlAdmitted => {
                let password = node_password("edge-1");
                self.ask(json!({"action": "pprof", "user": "edge-1", "password": password})).await
            }
        }
    }
}

/// What the design promises to those who call: the status of every refusal.
fn status_of(code: RefusalCode) -> u16 {
    match code {
        RefusalCode::CredentialsMissing
        | RefusalCode::CredentialsConflict
        | RefusalCode::KeyMalformed
        | RefusalCode::KeyInPath
        | RefusalCode::KeyUnknown
        | RefusalCode::ControlUnauthorized => 401,
        RefusalCode::KeyRevoked
        | RefusalCode::KeyDisabled
        | RefusalCode::KeyExpired
        | RefusalCode::PathMismatch
        | RefusalCode::RenditionReserved
        | RefusalCode::PlaybackPrivate
        | RefusalCode::ActionUnknown => 403,
        RefusalCode::PathMalformed => 400,
        RefusalCode::PathNotOnAir => 404,
        RefusalCode::KeyInUse | RefusalCode::CoolingDown | RefusalCode::ParentNotOnAir => 409,
        RefusalCode::TooManyFailures => 429,
        RefusalCode::StateUnavailable | RefusalCode::HistoryBacklogFull => 503,
    }
}

/// Those that time alone may mend.
fn passes_by_itself(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::KeyInUse
            | RefusalCode::CoolingDown
            | RefusalCode::TooManyFailures
            | RefusalCode::StateUnavailable
            | RefusalCode::HistoryBacklogFull
    )
}

/// Otherwise `rate` and `increase` do not see the first event of each.
#[tokio::test]
async fn what_is_counted_of_clients_and_nodes_begins_with_0() {
    let bench = Bench::start().await;
    let metrics = bench.replica.api.get("/metrics").await.expect(200).text;
    let decisions = ["publish", "read", "playback"].map(|action| {
        let label = format!("action=\"{action}\"");
        let is_one = |line: &&str| line.starts_with("onair_auth_decisions_total{") && line.contains(&label);
        metrics.lines().filter(is_one).count()
    });
    assert_eq!(decisions, [Allowance::ALL.len() + RefusalCode::ALL.len(); 3], "{metrics}");
    for kind in NodeFault::ALL {
        let line = format!("onair_node_poll_errors_total{{kind=\"{}\"}} ", kind.as_str());
        assert!(metrics.contains(&line), "{line}");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn every_refusal_has_its_status_and_is_a_problem_that_says_what_to_do() {
    let bench = Bench::start().await;
    let mut details = BTreeSet::new();
    for &code in RefusalCode::ALL {
        let word = code.as_str();
        let counted_before = bench.counted(word).await;
        let answer = bench.provoke(code).await.expect_problem(status_of(code), word);
        assert_eq!(answer.media_type(), "application/problem+json");
        assert_eq!(answer.json["status"], status_of(code), "{}", answer.text);
        assert_eq!(answer.text_at("/type"), format!("/docs/errors#{word}"));
        assert_eq!(answer.text_at("/request_id"), answer.headers["x-request-id"].to_str().unwrap());
        assert!(!answer.text_at("/title").is_empty());
        let detail = answer.text_at("/detail");
        assert!(!detail.contains("sk_something") && !detail.contains("sk_mistyped"), "{detail}");
        assert!(details.insert(detail), "another code says the same: {}", answer.text);
        let retry_after = answer.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        assert_eq!(retry_after.is_some(), passes_by_itself(code), "{word}: {retry_after:?}");
        assert!(bench.counted(word).await > counted_before, "{word} is not counted");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn every_way_to_be_let_in_is_an_empty_answer_and_is_counted_by_its_name() {
    let bench = Bench::start().await;
    for &allowance in Allowance::ALL {
        let word = allowance.as_str();
        let counted_before = bench.counted(word).await;
        let answer = bench.allow(allowance).await.expect(204);
        assert_eq!(answer.text, "", "{word}");
        assert!(bench.counted(word).await > counted_before, "{word} is not counted");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_caller_that_is_no_node_of_the_fleet_is_refused_whatever_it_asks() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let api = &bench.replica.api;
    for (who, caller) in [
        ("nobody", api.anonymous()),
        ("an administrator", api.clone()),
        ("a node with a wrong password", api.as_node("edge-1", "wrong")),
        ("a node with no password", api.as_node("edge-1", "")),
        ("a node with another's password", api.as_node("edge-1", &node_password("edge-2"))),
        ("a node with its own password that is not of the fleet", api.as_node("edge-2", &node_password("edge-2"))),
        ("something that can be no node", api.as_node("Edge 1", &node_password("edge-1"))),
    ] {
        let publish = caller.post("/v1/mediamtx/auth", &bench.publisher(&key.path, &key.secret)).await;
        assert_eq!((publish.status, publish.json["code"].as_str()), (401, Some("node_unauthorized")), "{who}");
        let hook = json!({"path": key.path, "source_type": "rtmpConn", "source_id": Uuid::new_v4()});
        for end in ["publish", "unpublish"] {
            let answer = caller.post(&format!("/v1/hooks/{end}"), &hook).await;
            assert_eq!((answer.status, answer.json["code"].as_str()), (401, Some("node_unauthorized")), "{who}");
        }
    }
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());

    // It is let in as soon as it is of the fleet, and refused once it is no more.
    let edge_2 = api.as_node("edge-2", &node_password("edge-2"));
    bench.replica.add_node("edge-2").await;
    edge_2.post("/v1/mediamtx/auth", &bench.publisher(&key.path, &key.secret)).await.expect(204);
    api.delete("/v1/nodes/edge-2").await.expect(204);
    let refused = edge_2.post("/v1/mediamtx/auth", &bench.publisher(&key.path, &key.secret)).await;
    refused.expect_problem(401, "node_unauthorized");
    bench.replica.stop().await;
}

/// In a process of its own: all replicas of a test count together.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_publishers_and_of_viewers_has_its_part_that_is_redis() {
    let stack = Stack::start().await;
    let service = Service::start(&stack.config, &[]).await;
    let (api, node) = (service.api().await, service.mediamtx("edge-1").await);
    let key = api.key("live/ada").await;
    node.publish(key.publisher()).await.admitted();
    node.read(ReadRequest::whep_bearer("live/ada", "whatever")).await;
    node.read(ReadRequest::whep_bearer("live/nobody", "whatever")).await;

    let metrics = api.get("/metrics").await.expect(200).text;
    let sum_of = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!((sum_of("onair_auth_seconds_count"), sum_of("onair_auth_redis_seconds_count")), (3.0, 3.0));
    let (whole, part) = (sum_of("onair_auth_seconds_sum"), sum_of("onair_auth_redis_seconds_sum"));
    assert!(0.0 < part && part < whole, "{part} of {whole}");
    service.stop().await;
}
