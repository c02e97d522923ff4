//! API and node secrets are replaced on running replicas, with a publisher on air and callers who never stop.
//!
//! The steps are those of docs/operations.md. After each of them everything is asked for again, with the old secrets and, once
//! all replicas know them, with the new ones.

mod support;

use std::{sync::Arc, time::Instant};

use onair::{
    config::{Config, ConfigSecret},
    node_credentials::NodeCredentials,
};
use serde_json::{Value, json};
use support::{
    mediamtx::{HookEncoding, HookTarget, MediaMtx, PublishRequest},
    stack::{API_SECRET as OLD_API_SECRET, NODE_SECRET as OLD_NODE_SECRET, Replica, Stack, TestKey},
    stores::until,
};

const NEW_API_SECRET: &str = "new-api-secret-of-the-tests-0123456789abcdef";
const NEW_NODE_SECRET: &str = "new-node-secret-of-the-tests-0123456789abcdef";
const NODE: &str = "edge-1";

fn secrets(texts: &[&str]) -> Vec<ConfigSecret> {
    texts.iter().copied().map(ConfigSecret::new).collect()
}

fn password_under(secret: &str) -> String {
    let credentials = NodeCredentials::new(&secrets(&[secret])).expect("there is a secret");
    credentials.password(&NODE.parse().expect("a node name")).reveal().to_owned()
}

/// Wires the node to a replica, as a balancer in front of the replicas would, with its password under a secret.
fn wire(node: &MediaMtx, replica: &Replica, secret: &str) {
    let password = password_under(secret);
    let auth = format!("http://{NODE}:{password}@{}/v1/mediamtx/auth", replica.address);
    let encoding = HookEncoding::Form;
    node.point_at(auth, Some(HookTarget { base_url: replica.url(), user: NODE.to_owned(), password, encoding }));
}

struct Fleet {
    stack: Stack,
    replicas: Vec<Replica>,
    node: Arc<MediaMtx>,
    node_secret: &'static str,
    on_air: TestKey,
    stream_id: Value,
    checks: u32,
}

impl Fleet {
    async fn start() -> (Self, support::mediamtx::Publisher) {
        let stack = Stack::start_with(|config| {
            config.reconciler.poll_interval_ms = 100;
            config.redis.command_timeout_ms = 2_000;
            config.admission.deadline_ms = 3_000;
        })
        .await;
        let replicas = vec![stack.replica().await, stack.replica().await];
        let node = replicas[0].mediamtx(NODE).await;
        let on_air = replicas[0].key("live/ada").await;
        let publisher = node.publish(PublishRequest::rtmp_query_key(&on_air.path, &on_air.secret)).await.admitted();
        let stream_id = replicas[0].until_live(&on_air.path).await["id"].clone();
        (Self { stack, replicas, node, node_secret: OLD_NODE_SECRET, on_air, stream_id, checks: 0 }, publisher)
    }

    /// Replaces the replicas one by one, each when its successor is ready, and asks for everything in between.
    async fn roll(&mut self, change: impl FnOnce(&mut Config), api_secrets: &[&str]) {
        change(&mut self.stack.config);
        for place in 0..self.replicas.len() {
            let newer = self.stack.replica().await;
            let older = std::mem::replace(&mut self.replicas[place], newer);
            wire(&self.node, &self.replicas[place], self.node_secret);
            older.stop().await;
            self.check(api_secrets).await;
        }
    }

    /// Everything works on every replica, with each of these API secrets.
    async fn check(&mut self, api_secrets: &[&str]) {
        for place in 0..self.replicas.len() {
            wire(&self.node, &self.replicas[place], self.node_secret);
            let replica = &self.replicas[place];
            let (began, began_at) = (Instant::now(), onair::domain::Timestamp::now().to_string());
            for secret in api_secrets {
                let api = replica.api.with_secret(secret);
                let listed = api.get("/v1/streams").await.expect(200).json;
                assert_eq!(listed["items"][0]["id"], self.stream_id, "it was taken off air, or another began");
                assert_eq!(listed["items"][0]["stale"], false, "its node was not heard");
            }
            // The pollers, wherever they are, go on hearing the node: it asks this replica about every call of theirs.
            let api = replica.api.with_secret(api_secrets[0]);
            let seen = async || {
                let node = api.get(&format!("/v1/nodes/{NODE}")).await.expect(200).json;
                assert_eq!((&node["reachable"], &node["fault"]), (&json!(true), &Value::Null), "{node}");
                node["last_seen_at"].as_str().expect("it was seen").to_owned()
            };
            until("a poll has come through", async || {
                let node = api.get(&format!("/v1/nodes/{NODE}")).await.expect(200).json;
                node["reachable"] == true && node["last_seen_at"].as_str().is_some_and(|at| at > began_at.as_str())
            })
            .await;
            for _ in 0..3 {
                let before = seen().await;
                until("the node is polled again", async || seen().await != before).await;
            }
            self.checks += 1;
            let path = format!("live/check-{}", self.checks);
            let key = json!({"broadcaster_name": "Bob", "path": path});
            let key = api.post("/v1/stream-keys", &key).await.expect(201).text_at("/secret");
            let publisher = self.node.publish(PublishRequest::rtmp_query_key(&path, &key)).await.admitted();
            until("its hook or a poll has told", async || {
                let listed = api.get(&format!("/v1/streams?path={path}")).await.expect(200).json;
                listed["items"][0]["state"] == "live"
            })
            .await;
            publisher.disconnect();
            until("it is off air again", async || {
                api.get(&format!("/v1/streams?path={path}")).await.expect(200).json["total"] == 0
            })
            .await;
            println!("check {}: all is well on replica {place}, {:?}", self.checks, began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_replaced_without_a_gap() {
    let (mut fleet, publisher) = Fleet::start().await;
    let old = [OLD_API_SECRET];
    fleet.check(&old).await;

    // Known everywhere before anybody uses them: the new node secret behind the old one, which goes on issuing.
    let change = |config: &mut Config| {
        config.server.api_secrets = secrets(&[NEW_API_SECRET, OLD_API_SECRET]);
        config.server.node_secrets = secrets(&[OLD_NODE_SECRET, NEW_NODE_SECRET]);
    };
    fleet.roll(change, &old).await;
    let both = [OLD_API_SECRET, NEW_API_SECRET];
    fleet.check(&both).await;

    // The new one issues: tokens for the nodes' control APIs, and the passwords in their YAML.
    fleet.roll(|config| config.server.node_secrets = secrets(&[NEW_NODE_SECRET, OLD_NODE_SECRET]), &both).await;
    let yaml = format!("/v1/nodes/{NODE}/mediamtx-config");
    let yaml = fleet.replicas[0].api.with_secret(NEW_API_SECRET).get(&yaml).await.expect(200).text;
    assert!(yaml.contains(&password_under(NEW_NODE_SECRET)), "the YAML holds another password");

    // The callers and the nodes move.
    fleet.node_secret = NEW_NODE_SECRET;
    fleet.check(&both).await;

    // The old ones go.
    let change = |config: &mut Config| {
        config.server.api_secrets = secrets(&[NEW_API_SECRET]);
        config.server.node_secrets = secrets(&[NEW_NODE_SECRET]);
    };
    fleet.roll(change, &[NEW_API_SECRET]).await;
    for replica in &fleet.replicas {
        replica.api.with_secret(OLD_API_SECRET).get("/v1/streams").await.expect_problem(401, "unauthorized");
        let node = replica.api.as_node(NODE, &password_under(OLD_NODE_SECRET));
        node.post("/v1/mediamtx/auth", &json!({})).await.expect_problem(401, "node_unauthorized");
    }

    assert!(publisher.is_online(), "it was thrown off");
    let log = fleet.node.auth_log();
    // We ask each node now and then whether it lets anybody in, without credentials: that has to be refused.
    let is_ours = |call: &support::mediamtx::AuthCall| call.action != "api" || !call.token.is_empty();
    let refused = log.iter().filter(|asked| asked.answer.status.is_some_and(|status| status >= 400));
    let refused: Vec<_> = refused.filter(|asked| is_ours(&asked.call)).collect();
    println!(
        "{} auth calls of the node, {} checks; the publisher on {} stayed",
        log.len(),
        fleet.checks,
        fleet.on_air.path
    );
    assert!(refused.is_empty(), "the node was refused: {refused:?}");
    assert_eq!(fleet.node.counts().kicks_to("rtmpconns"), 0);
    for replica in fleet.replicas {
        replica.stop().await;
    }
}

/// What docs/operations.md warns of: where the new node secret issues before all know it, the others do not know its tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_secret_that_issues_before_all_know_it_is_refused_by_the_others() {
    let (mut fleet, publisher) = Fleet::start().await;
    fleet.stack.config.server.node_secrets = secrets(&[NEW_NODE_SECRET, OLD_NODE_SECRET]);
    let hasty = fleet.stack.replica().await;
    let others_password = password_under(OLD_NODE_SECRET);
    hasty
        .api
        .as_node(NODE, &others_password)
        .post("/v1/mediamtx/auth", &json!({}))
        .await
        .expect_problem(403, "action_unknown");
    let issued = fleet.replicas[0].api.as_node(NODE, &password_under(NEW_NODE_SECRET));
    issued.post("/v1/mediamtx/auth", &json!({})).await.expect_problem(401, "node_unauthorized");
    assert!(publisher.is_online());
    fleet.replicas.push(hasty);
    for replica in fleet.replicas {
        replica.stop().await;
    }
}
