//! A whole Onair for a test: real Redis, real Postgres, and any number of replicas in this process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use onair::{
    app::App,
    config::{Config, ConfigSecret},
    domain::{NodeName, PublicUrls},
    lifecycle::Tasks,
    node_credentials::NodeCredentials,
    replica,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    api_client::ApiClient,
    mediamtx::{HookEncoding, HookTarget, MediaMtx, MediaMtxOptions},
    stores,
    test_redis::TestRedis,
};

pub const API_SECRET: &str = "api-secret-of-the-tests-0123456789abcdef";
pub const NODE_SECRET: &str = "node-secret-of-the-tests-0123456789abcdef";

/// Stores of a test's own, and what replicas on them are started with.
pub struct Stack {
    pub redis: TestRedis,
    pub config: Config,
}

/// One replica. Stopped in order when the test calls [`Replica::stop`]; aborted when it is dropped.
pub struct Replica {
    pub address: SocketAddr,
    pub app: Arc<App>,
    pub tasks: Tasks,
    pub api: ApiClient,
}

/// A stream key as a test uses it.
#[derive(Debug, Clone)]
pub struct TestKey {
    pub id: String,
    pub secret: String,
    pub path: String,
}

impl Stack {
    /// Redis and a migrated database.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// As [`Stack::start`], with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_on(TestRedis::start().await, change).await
    }

    /// As [`Stack::start_with`], on a Redis of the test's choice.
    pub async fn start_on(redis: impl Into<TestRedis>, change: impl FnOnce(&mut Config)) -> Self {
        let redis = redis.into();
        let database = stores::database().await;
        stores::postgres_at(&database).migrate().await.expect("the migrations work");
        let mut config = Self::settings();
        config.redis.url = ConfigSecret::new(redis.url());
        config.postgres.url = ConfigSecret::new(database);
        change(&mut config);
        Self { redis, config }
    }

    /// Gives Redis the time that it has by default: for tests of how long an answer takes when Redis gives none.
    pub fn keep_the_promised_time(config: &mut Config) {
        let promised = Config::default();
        config.redis.command_timeout_ms = promised.redis.command_timeout_ms;
        config.admission.deadline_ms = promised.admission.deadline_ms;
    }

    /// Has nodes left alone: for tests that speak for them themselves, so that no poll finds that they are not there.
    pub fn leave_nodes_alone(config: &mut Config) {
        config.reconciler.poll_interval_ms = 60_000;
    }

    /// The defaults and the secrets of the tests, but more time for Redis, see [`Stack::keep_the_promised_time`]: what most tests are about
    /// is what is answered, also on a machine that stands still for a moment.
    pub fn settings() -> Config {
        let mut config = Config::default();
        config.redis.command_timeout_ms = 2_000;
        config.admission.deadline_ms = 3_000;
        config.server.api_secrets = vec![ConfigSecret::new(API_SECRET)];
        config.server.node_secrets = vec![ConfigSecret::new(NODE_SECRET)];
        config
    }

    /// Another replica on the same stores.
    pub async fn replica(&self) -> Replica {
        Self::replica_with(&self.config).await
    }

    /// A replica with certain settings.
    pub async fn replica_with(config: &Config) -> Replica {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let tasks = Tasks::new();
        let app = replica::serve(config.clone(), listener, &tasks).await.expect("the replica starts");
        let api = ApiClient::connect(&format!("http://{address}"), API_SECRET).await;
        Replica { address, app, tasks, api }
    }
}

impl Replica {
    /// Where this replica answers.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the replica in order, as a signal would.
    pub async fn stop(self) {
        let stopped = self.tasks.join(Duration::from_secs(10)).await;
        stopped.into_result().expect("every task stops by itself");
    }

    /// The `authHTTPAddress` of a node.
    pub fn auth_url(&self, node: &str) -> String {
        format!("http://{node}:{}@{}/v1/mediamtx/auth", node_password(node), self.address)
    }

    /// Adds a node that exists only as a name: for tests that speak for it themselves.
    pub async fn add_node(&self, name: &str) {
        self.put_node(name, "http://127.0.0.1:9").await;
    }

    async fn put_node(&self, name: &str, control_url: &str) {
        let body = json!({"control_url": control_url, "public_urls": public_urls(name)});
        let answer = self.api.put(&format!("/v1/nodes/{name}"), &body).await;
        assert!(answer.status < 300, "{}", answer.text);
    }

    /// Starts a stand-in for MediaMTX that asks this replica, and adds it to the fleet.
    pub async fn mediamtx(&self, name: &str) -> Arc<MediaMtx> {
        self.mediamtx_with(name, |_| ()).await
    }

    /// As [`Replica::mediamtx`], behaving otherwise.
    pub async fn mediamtx_with(&self, name: &str, change: impl FnOnce(&mut MediaMtxOptions)) -> Arc<MediaMtx> {
        let mut options = MediaMtxOptions::new(name, self.auth_url(name));
        options.hooks = Some(HookTarget {
            base_url: self.url(),
            user: name.to_owned(),
            password: node_password(name),
            encoding: HookEncoding::Form,
        });
        change(&mut options);
        let node = Arc::new(MediaMtx::start(options).await);
        self.put_node(name, &node.control_url()).await;
        node
    }

    /// A broadcaster of the test's own.
    pub async fn broadcaster(&self, name: &str) -> String {
        self.api.post("/v1/broadcasters", &json!({"display_name": name})).await.expect(201).text_at("/id")
    }

    /// A key for a path.
    pub async fn key(&self, path: &str) -> TestKey {
        self.key_with(path, json!({})).await
    }

    /// A key for a path, with other settings beside it.
    pub async fn key_with(&self, path: &str, settings: Value) -> TestKey {
        let mut body = settings;
        body["path"] = json!(path);
        if body.get("broadcaster_id").is_none() {
            body["broadcaster_id"] = json!(self.broadcaster("Ada").await);
        }
        let created = self.api.post("/v1/stream-keys", &body).await.expect(201);
        TestKey { id: created.text_at("/stream_key/id"), secret: created.text_at("/secret"), path: path.to_owned() }
    }

    /// What is on air, as the frontend sees it.
    pub async fn on_air(&self) -> Vec<Value> {
        self.api.on_air().await
    }

    /// The stream on a path, as the frontend sees it.
    pub async fn stream_on(&self, path: &str) -> Option<Value> {
        self.on_air().await.into_iter().find(|stream| stream["path"] == path)
    }

    /// The last stream that ended on a path, from the history.
    pub async fn ended_on(&self, path: &str) -> Option<Value> {
        let answer = self.api.get(&format!("/v1/streams?state=ended&path={path}")).await.expect(200);
        answer.json["items"].as_array()?.first().cloned()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// The password that a node has under the secret of the tests.
pub fn node_password(name: &str) -> String {
    let credentials = NodeCredentials::new(&[ConfigSecret::new(NODE_SECRET)]).expect("there is a secret");
    let name: NodeName = name.parse().expect("a node name");
    credentials.password(&name).reveal().to_owned()
}

/// Where viewers would reach a node.
pub fn public_urls(name: &str) -> PublicUrls {
    let url = |text: String| Some(text.parse().expect("a URL"));
    PublicUrls {
        hls: url(format!("https://{name}.example.org:8888")),
        webrtc: url(format!("https://{name}.example.org:8889")),
        rtmp: url(format!("rtmp://{name}.example.org:1935")),
        rtsp: url(format!("rtsp://{name}.example.org:8554")),
        srt: url(format!("srt://{name}.example.org:8890")),
    }
}
