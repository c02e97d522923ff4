//! Where secrets must never be: a whole day of a service in a few seconds, and then a search of everything that it said, sent
//! and stored, for everything that was told to it in confidence.

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use onair::{
    config::{Config, ConfigSecret},
    dev::servers::{
        Durability, Home, Listen, Persistence, PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions,
    },
    domain::{Secret, SecretHash},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use support::{
    api_client::{Answer, ApiClient},
    mediamtx::{
        AuthCall, ConnectionKind, HookEncoding, HookTarget, MediaMtx, MediaMtxOptions, PublishOutcome, PublishRequest,
        ReadRequest,
    },
    redis_monitor::{RedisMonitor, keyspace},
    service::Service,
    stack::{API_SECRET, NODE_SECRET, TestKey, node_password, public_urls},
    stores::{postgres_at, until},
};
use uuid::Uuid;

/// Stands in query strings, beside the key: the whole query is nobody's business.
const QUERY_MARKER: &str = "marker-in-a-query-string-8d1c";
const SECOND_API_SECRET: &str = "second-api-secret-of-the-tests-0123456789";
const GUESSED_API_SECRET: &str = "guessed-api-secret-guessed-api-secret";
const GUESSED_PASSWORD: &str = "guessed-password-of-a-node";
const VIEWERS_TOKEN: &str = "token-of-a-viewer-3f9a";

/// A secret of the right form that was never made by the service.
fn strange_secret(draw: u8) -> String {
    Secret::from_draws([draw; 28]).unwrap().reveal().to_owned()
}

/// The run: a service with stores of its own, a node, and everything that anybody was answered.
struct Run {
    service: Service,
    api: ApiClient,
    node: Arc<MediaMtx>,
    answers: Mutex<Vec<String>>,
    keys: Mutex<Vec<TestKey>>,
    broadcaster: String,
}

impl Run {
    async fn start(config: &Config) -> Self {
        let variables = [
            ("ONAIR_LOG_FILTER", "trace"),
            ("ONAIR_RECONCILER_POLL_INTERVAL_MS", "100"),
            ("ONAIR_HISTORY_POLL_INTERVAL_MS", "25"),
            ("ONAIR_RECONCILER_COOLDOWN_MS", "100"),
            ("ONAIR_ADMISSION_CONNECTING_TIMEOUT_MS", "3000"),
            ("ONAIR_RENDITIONS_SUFFIXES", "_720p"),
        ];
        let service = Service::start(config, &variables).await;
        let api = ApiClient::connect(&service.url(), API_SECRET).await;
        let password = node_password("edge-1");
        let auth_url = format!("http://edge-1:{password}@{}/v1/mediamtx/auth", service.address);
        let mut options = MediaMtxOptions::new("edge-1", auth_url);
        options.hooks = Some(HookTarget {
            base_url: service.url(),
            user: "edge-1".to_owned(),
            password,
            encoding: HookEncoding::Form,
        });
        let node = Arc::new(MediaMtx::start(options).await);
        let body = json!({"control_url": node.control_url(), "public_urls": public_urls("edge-1")});
        api.put("/v1/nodes/edge-1", &body).await.expect(201);
        let ada = json!({"display_name": "Ada", "contact": "ada@example.org"});
        let broadcaster = api.post("/v1/broadcasters", &ada).await.expect(201).text_at("/id");
        let (answers, keys) = (Mutex::default(), Mutex::default());
        Self { service, api, node, answers, keys, broadcaster }
    }

    /// Keeps an answer for the search.
    fn told(&self, answer: Answer) -> Answer {
        self.answers.lock().unwrap().push(format!("{:?}\n{}", answer.headers, answer.text));
        answer
    }

    async fn key(&self, path: &str, playback: &str) -> TestKey {
        let body = json!({"broadcaster_id": self.broadcaster, "path": path, "playback": playback});
        // The one answer that may hold a secret is not kept.
        let created = self.api.post("/v1/stream-keys", &body).await.expect(201);
        let (id, secret) = (created.text_at("/stream_key/id"), created.text_at("/secret"));
        let key = TestKey { id, secret, path: path.to_owned() };
        self.keys.lock().unwrap().push(key.clone());
        key
    }

    async fn publish(&self, request: PublishRequest) -> PublishOutcome {
        let outcome = self.node.publish(request).await;
        if let PublishOutcome::Refused(answer) = &outcome {
            self.answers.lock().unwrap().push(answer.body.clone());
        }
        outcome
    }

    async fn read(&self, request: ReadRequest) {
        if let support::mediamtx::ReadOutcome::Refused(answer) = self.node.read(request).await {
            self.answers.lock().unwrap().push(answer.body);
        }
    }

    async fn stream_on(&self, path: &str, state: &str) -> String {
        let mut id = String::new();
        until(&format!("{path} is {state}"), async || {
            let listed = self.told(self.api.get(&format!("/v1/streams?path={path}&state={state}")).await.expect(200));
            listed.json["items"][0]["id"].as_str().unwrap_or_default().clone_into(&mut id);
            !id.is_empty()
        })
        .await;
        id
    }

    async fn act(&self, address: &str) {
        self.told(self.api.act(address).await.expect(200));
    }
}

/// How a publisher with this path and key connects.
type Form = fn(&str, &str) -> PublishRequest;

/// Broadcasts over every protocol, watched and described, that end by themselves.
async fn broadcasts(run: &Run) {
    let forms: [Form; 7] = [
        |path, key| PublishRequest::rtmp_query(path, &format!("user=u&pass={key}&viewer={QUERY_MARKER}")),
        |path, key| PublishRequest::rtmp_query(path, &format!("note={QUERY_MARKER}&key={key}")),
        PublishRequest::rtmp_query_token,
        |path, key| PublishRequest::srt_streamid(path, "u", key),
        |path, key| PublishRequest::srt_streamid_query(path, &format!("key={key}&x={QUERY_MARKER}")),
        |path, key| PublishRequest::rtsp(path, "u", key),
        PublishRequest::whip_bearer,
    ];
    join_all(forms.into_iter().enumerate().map(|(number, form)| broadcast(run, number, form))).await;
}

async fn broadcast(run: &Run, number: usize, form: Form) {
    let key = run.key(&format!("live/{number}"), if number.is_multiple_of(2) { "public" } else { "private" }).await;
    run.node.preflight(&form(&key.path, &key.secret)).await;
    let publisher = run.publish(form(&key.path, &key.secret)).await.admitted();
    let id = run.stream_on(&key.path, "live").await;
    run.publish(form(&key.path, &key.secret)).await.refused();
    for reader in [
        ReadRequest::rtmp_query_token(&key.path, VIEWERS_TOKEN),
        ReadRequest::whep_bearer(&key.path, VIEWERS_TOKEN).with_query(&format!("t={QUERY_MARKER}")),
        ReadRequest::rtsp(&key.path, "viewer", &key.secret),
        ReadRequest::rtsp(&key.path, "edge-1", &node_password("edge-1")),
        ReadRequest::without_credentials(&key.path, ConnectionKind::HlsSession),
    ] {
        run.read(reader).await;
    }
    let address = format!("/v1/streams/{id}");
    until("the poller has told of it", async || {
        let details = run.told(run.api.get(&address).await.expect(200));
        details.json["inbound_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    })
    .await;
    run.told(run.api.patch(&address, &json!({"title": "A title"})).await.expect(200));
    publisher.disconnect();
    until("it is in the history", async || {
        let history = run.told(run.api.get(&format!("/v1/streams?state=ended&key_id={}", key.id)).await.expect(200));
        history.json["items"][0]["id"] == id
    })
    .await;
}

/// Everything that broadcasters, viewers and nodes do wrong.
async fn mistakes(run: &Run) {
    let key = run.key("live/mistakes", "public").await;
    let (start, end) = key.secret.split_at(key.secret.len() - 1);
    let mistyped = format!("{start}{}", if end == "x" { "y" } else { "x" });
    for request in [
        PublishRequest::rtmp_query_key(&key.path, &mistyped),
        PublishRequest::rtmp_query_key(&key.path, &strange_secret(1)),
        PublishRequest::rtmp_query_key("live/elsewhere", &key.secret),
        PublishRequest::rtmp_query(&key.path, &format!("key={}&pass={}", key.secret, strange_secret(2))),
        PublishRequest::rtmp_query(&key.path, QUERY_MARKER),
        PublishRequest::rtmp_key_as_path("live", &key.secret),
        PublishRequest::rtmp_key_as_path("live", &mistyped),
        PublishRequest::srt_streamid(&format!("{}/ada", key.secret), "u", &key.secret),
        PublishRequest::rtsp(&key.path, &key.secret, &mistyped),
        PublishRequest::whip_bearer("live/mistakes_720p", &key.secret),
    ] {
        run.publish(request.with_ip("192.0.2.9")).await.refused();
    }
    for (path, kind) in [
        (format!("live/{}", key.secret), ConnectionKind::HlsSession),
        (key.secret.clone(), ConnectionKind::WebRtcSession),
    ] {
        run.read(ReadRequest::without_credentials(&path, kind)).await;
    }
    // Published where Onair was not asked, as before a node was wired: the poller finds it.
    run.node.add_pulled_path(&format!("live/{}", key.secret), "rtmpConn", &Uuid::new_v4().to_string());
    run.node.until("the poller has seen it", || run.node.counts().kicks_to("rtmpconns") > 0).await;
    run.node.remove_path(&format!("live/{}", key.secret));
    run.node.until_hooks_settled().await;

    let node = run.api.as_node("edge-1", &node_password("edge-1"));
    for (end, body) in [
        (
            "publish",
            json!({"path": format!("live/{}", key.secret), "source_type": "rtmpConn", "source_id": Uuid::new_v4()}),
        ),
        ("unpublish", json!({"path": key.path, "source_type": key.secret, "source_id": key.secret})),
        ("unpublish", json!({"path": key.secret, "source_type": "rtmpConn", "source_id": Uuid::new_v4()})),
        ("publish", json!({"path": key.path, "source_type": "rtmpConn", key.secret.clone(): 1})),
        ("publish", json!({"path": format!("live/a?key={}", key.secret), "source_type": "rtmpConn"})),
    ] {
        run.told(node.post(&format!("/v1/hooks/{end}"), &body).await);
    }
    for action in ["api", "metrics", "pprof", "playback", &key.secret] {
        let call = AuthCall::without_client(action, "", "edge-1", GUESSED_PASSWORD);
        let answer = run.node.ask(&call).await;
        run.answers.lock().unwrap().push(answer.body);
    }
    run.told(run.api.as_node("edge-1", GUESSED_PASSWORD).post("/v1/mediamtx/auth", &json!({})).await.expect(401));
    run.told(run.api.as_node(&key.secret, GUESSED_PASSWORD).post("/v1/mediamtx/auth", &json!({})).await.expect(401));
    for body in [format!("{{\"password\": \"{}\"", key.secret), format!("{{\"password\": 7, \"{}\": 1}}", key.secret)] {
        run.told(node.post_raw("/v1/mediamtx/auth", "application/json", &body).await);
    }
}

/// What administrators do, right and wrong.
async fn administration(run: &Run) {
    let key = run.key("live/administered", "public").await;
    let address = format!("/v1/stream-keys/{}", key.id);
    for step in ["disable", "enable", "stop", "revoke"] {
        run.publish(PublishRequest::srt_streamid(&key.path, "u", &key.secret)).await;
        let stop = format!("/v1/streams/{}/stop", run.stream_on(&key.path, "live").await);
        run.act(&if step == "stop" { stop } else { format!("{address}/{step}") }).await;
        if step == "disable" {
            run.publish(PublishRequest::srt_streamid(&key.path, "u", &key.secret)).await.refused();
            run.act(&format!("{address}/enable")).await;
        }
        until("the cool-down is over, or the key is", async || {
            let check = run.node.preflight(&PublishRequest::whip_bearer(&key.path, &key.secret)).await;
            !check.body.contains("cooling_down")
        })
        .await;
    }
    run.publish(PublishRequest::srt_streamid(&key.path, "u", &key.secret)).await.refused();

    let expiring = run.key("live/expiring", "public").await;
    run.publish(PublishRequest::whip_bearer(&expiring.path, &expiring.secret).stays_connecting()).await.admitted();
    run.stream_on(&expiring.path, "ended").await;

    let (api, secret) = (&run.api, &key.secret);
    run.told(
        api.with_secret(SECOND_API_SECRET)
            .patch(&format!("/v1/stream-keys/{}", expiring.id), &json!({"label": "x"}))
            .await,
    );
    run.told(api.with_secret(GUESSED_API_SECRET).get("/v1/streams").await.expect(401));
    for body in [
        json!({"broadcaster_id": run.broadcaster, "path": format!("live/{secret}")}),
        json!({"broadcaster_id": secret, "path": "live/new"}),
        json!({"broadcaster_id": run.broadcaster, "path": format!("live/a?key={secret}")}),
        json!({"broadcaster_id": run.broadcaster, "expires_at": secret, "on_conflict": secret}),
        json!({"broadcaster_id": run.broadcaster, secret.clone(): "live/new"}),
        json!({"broadcaster_id": run.broadcaster, "title": {"text": secret}}),
    ] {
        let answer = run.told(api.post("/v1/stream-keys", &body).await);
        assert_eq!(answer.status, 422, "{}", answer.text);
    }
    for address in [
        format!("/v1/streams/{secret}"),
        format!("/v1/streams?path=live/{secret}"),
        format!("/v1/attempts?path={secret}"),
        format!("/v1/streams?{secret}=1"),
        format!("/v1/streams?limit={secret}&viewer={QUERY_MARKER}"),
        format!("/v1/streams?cursor={secret}"),
        format!("/v1/stream-keys/{secret}"),
        format!("/{secret}?key={secret}&x={QUERY_MARKER}"),
        format!("/v1/nodes/{secret}"),
        "/v1/stream-keys".to_owned(),
        "/v1/nodes".to_owned(),
        "/v1/broadcasters".to_owned(),
        "/v1/attempts?path=live/mistakes".to_owned(),
        format!("/v1/stream-keys/{}/attempts", key.id),
        "/readyz".to_owned(),
    ] {
        run.told(api.get(&address).await);
    }
    run.told(api.post_raw("/v1/stream-keys", "application/json", &format!("{{\"path\": {secret}")).await);
}

/// The stores and the node fail one after another, with everything going on.
async fn outages(run: &Run, redis: &mut PrivateRedis, postgres: &mut PrivatePostgres) {
    let key = run.key("live/outages", "public").await;
    let publish = async || run.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await;
    redis.suspend().unwrap();
    for _ in 0..3 {
        publish().await.refused();
    }
    run.told(run.api.act(&format!("/v1/stream-keys/{}/disable", key.id)).await.expect(503));
    redis.resume().unwrap();
    until("Redis answers again", async || {
        run.api.act(&format!("/v1/stream-keys/{}/enable", key.id)).await.status == 200
    })
    .await;
    until("its publisher is admitted", async || matches!(publish().await, PublishOutcome::Admitted(_))).await;

    // A fast PostgreSQL loses its last commits when it is killed, which is not what is played here.
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.unwrap();
    postgres.kill().await.unwrap();
    run.told(run.api.get("/v1/stream-keys").await.expect(503));
    run.told(run.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(503));
    run.publish(PublishRequest::rtmp_query_key(&key.path, &strange_secret(3)).with_ip("192.0.2.11")).await.refused();
    postgres.restart().await.unwrap();
    until("Postgres answers again", async || run.api.get("/v1/stream-keys").await.status == 200).await;

    run.node.unreachable();
    run.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await;
    run.node.reachable().await;
    run.node.until("the publisher is kicked", || run.node.source_on(&key.path).is_none()).await;
}

impl Run {
    /// Everything that was told to the service in confidence, by what it is.
    fn confidences(&self, config: &Config) -> BTreeMap<String, String> {
        let password = node_password("edge-1");
        let mut confidences = BTreeMap::from(
            [
                ("an API secret", API_SECRET),
                ("another API secret", SECOND_API_SECRET),
                ("a guessed API secret", GUESSED_API_SECRET),
                ("the node secret", NODE_SECRET),
                ("a node's password", &password),
                ("a guessed password", GUESSED_PASSWORD),
                ("a viewer's token", VIEWERS_TOKEN),
                ("a query string", QUERY_MARKER),
            ]
            .map(|(name, text)| (name.to_owned(), text.to_owned())),
        );
        let basic = BASE64_STANDARD.encode(format!("edge-1:{password}"));
        confidences.insert("a node's Basic credentials".to_owned(), basic);
        for (name, url) in [("Redis' password", &config.redis.url), ("Postgres' password", &config.postgres.url)] {
            let url: url::Url = url.reveal().parse().unwrap();
            confidences.insert(name.to_owned(), url.password().expect("it asks for one").to_owned());
        }
        for draw in 1..=3 {
            confidences.insert(format!("strange secret {draw}"), strange_secret(draw));
        }
        // Without its beginning, which says only what it is, and its end, by which people tell keys apart.
        for key in self.keys.lock().unwrap().iter() {
            confidences.insert(format!("the key of {}", key.path), key.secret[3..key.secret.len() - 6].to_owned());
        }
        for asked in self.node.auth_log().into_iter().filter(|asked| asked.call.action == "api") {
            if let Some(signature) = asked.call.token.rsplit('.').next().filter(|text| text.len() == 64) {
                confidences
                    .insert(format!("the signature of a control token, {}", &signature[..6]), signature.to_owned());
            }
        }
        confidences
    }
}

/// Every row of every table, as Postgres shows it.
async fn dump(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL lets us in");
    let tables = sqlx::query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'");
    let tables = tables.fetch_all(&mut connection).await.unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let name: String = table.get("tablename");
        let query = AssertSqlSafe(format!("SELECT row_to_json(t)::text FROM \"{name}\" t"));
        for row in sqlx::query(query).fetch_all(&mut connection).await.unwrap() {
            rows.push(format!("{name}: {}", row.get::<String, _>(0)));
        }
    }
    rows
}

#[track_caller]
fn assert_silent(place: &str, lines: &[String], confidences: &BTreeMap<String, String>) {
    assert!(!lines.is_empty(), "{place}: there is nothing to search");
    let mut leaks = BTreeMap::<String, (usize, &str)>::new();
    for line in lines {
        for (name, _) in confidences.iter().filter(|(_, text)| line.contains(text.as_str())) {
            leaks.entry(name.clone()).or_insert((0, line)).0 += 1;
        }
    }
    assert!(leaks.is_empty(), "{place} tells: {leaks:#?}");
}

#[track_caller]
fn assert_speaks(place: &str, lines: &[String], of: &str) {
    assert!(lines.iter().any(|line| line.contains(of)), "{place} does not hold {of}: the search would find nothing");
}

#[tokio::test]
async fn nothing_that_was_told_in_confidence_is_logged_counted_answered_or_stored() {
    let loopback = Listen::LoopbackPort(None);
    let redis = RedisOptions { home: Home::Scratch, persistence: Persistence::None, listen: loopback };
    let mut redis = PrivateRedis::start(redis).await.unwrap();
    let postgres = PostgresOptions { home: Home::Scratch, durability: Durability::Fast, listen: loopback };
    let mut postgres = PrivatePostgres::start(postgres).await.unwrap();
    postgres_at(&postgres.url()).migrate().await.unwrap();
    let mut config = Config::default();
    config.redis.url = ConfigSecret::new(redis.url());
    config.postgres.url = ConfigSecret::new(postgres.url());
    config.server.api_secrets = [API_SECRET, SECOND_API_SECRET].map(ConfigSecret::new).to_vec();
    config.server.node_secrets = vec![ConfigSecret::new(NODE_SECRET)];
    let monitor = RedisMonitor::start(&redis).await;
    let run = Run::start(&config).await;

    broadcasts(&run).await;
    mistakes(&run).await;
    administration(&run).await;
    outages(&run, &mut redis, &mut postgres).await;

    let metrics = run.api.get("/metrics").await.expect(200).text;
    let (asked, held) = (monitor.heard().await, keyspace(&redis).await);
    let rows = dump(&postgres.url()).await;
    let confidences = run.confidences(&config);
    let (keys, answers) = (run.keys.lock().unwrap().clone(), run.answers.lock().unwrap().clone());
    let (status, said) = run.service.stop().await;
    assert!(status.success(), "{status}");
    assert!(metrics.contains("onair_log_lines_dropped_total 0"), "the log is not whole");

    // Each place is known to hold what may be there, so that finding nothing means something.
    let first = &keys[0];
    let hash: SecretHash = Secret::parse(&first.secret).unwrap().hash();
    for (place, lines, expected) in [
        ("the log", &said, &first.id),
        ("what Redis was asked", &asked, &hash.to_hex()),
        ("what Redis holds", &held, &hash.to_hex()),
        ("Postgres", &rows, &hash.to_hex()),
        ("the answers", &answers, &first.id),
    ] {
        assert_speaks(place, lines, expected);
        assert_silent(place, lines, &confidences);
    }
    assert_silent("the metrics", &[metrics], &confidences);
    assert!(confidences.keys().any(|name| name.starts_with("the signature of a control token")));
    println!(
        "searched for {} secrets: {} log lines, {} commands of Redis, {} keys of Redis, {} rows, {} answers",
        confidences.len(),
        said.len(),
        asked.len(),
        held.len(),
        rows.len(),
        answers.len()
    );
}
