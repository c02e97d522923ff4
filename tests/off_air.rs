//! Off air means off air: stopped, revoked, disabled and expired streams, also where their node cannot be reached.

mod support;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use onair::{
    config::{Config, ConfigSecret},
    dev::servers::{Home, Listen, Persistence, PrivateRedis, RedisOptions},
    domain::Timestamp,
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    api_client::Answer,
    mediamtx::{AuthAnswer, ConnectionKind, HookBehaviour, KickBehaviour, MediaMtx, PublishRequest, Publisher},
    stack::{Replica, Stack, TestKey, public_urls},
    stores::{self, until},
    waiting::id_of,
};

const COOLDOWN: Duration = Duration::from_millis(1_500);

/// When replicas last asked who of the missing nodes was removed, as far as they have asked nothing else since.
const LOOKS_FOR_THE_REMOVED: &str = "
    SELECT query_start::text FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'idle' AND query LIKE '-- removed_among%'";

struct Bench {
    replica: Replica,
    /// On the same stores; changes are made here, while publishers are admitted by the first. It may not have heard of the
    /// node yet: once it took that for a node that is not of the fleet, and a publisher on air for gone.
    other: Replica,
    node: Arc<MediaMtx>,
    stack: Stack,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let stack = Stack::start_with(|config| {
            config.reconciler.poll_interval_ms = 100;
            config.reconciler.cooldown_ms = u64::try_from(COOLDOWN.as_millis()).unwrap();
            config.history.poll_interval_ms = 25;
            change(config);
        })
        .await;
        let (replica, other) = (stack.replica().await, stack.replica().await);
        let node = replica.mediamtx("edge-1").await;
        Self { replica, other, node, stack }
    }

    async fn stop(self) {
        self.replica.stop().await;
        self.other.stop().await;
    }

    fn publisher(key: &TestKey) -> PublishRequest {
        PublishRequest::rtmp_query_key(&key.path, &key.secret)
    }

    /// A live stream of a new key.
    async fn on_air(&self, path: &str) -> (TestKey, Publisher, String) {
        let key = self.replica.key(path).await;
        let publisher = self.node.publish(Self::publisher(&key)).await.admitted();
        let stream = self.replica.until_live(path).await;
        (key, publisher, id_of(&stream))
    }

    async fn switch(&self, key: &TestKey, to: &str) -> Answer {
        self.other.api.act(&format!("/v1/stream-keys/{}/{to}", key.id)).await.expect(200)
    }

    async fn refused(&self, key: &TestKey) -> Value {
        let AuthAnswer { status, body } = self.node.publish(Self::publisher(key)).await.refused();
        assert!(matches!(status, Some(403 | 409)), "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn a_stopped_stream_is_gone_and_its_path_is_closed_for_the_cool_down() {
    let bench = Bench::start().await;
    let (key, publisher, id) = bench.on_air("live/ada").await;
    let stopped_at = Instant::now();
    let stopped = bench.other.api.act(&format!("/v1/streams/{id}/stop")).await.expect(200);
    assert_eq!(stopped.text_at("/publisher"), "gone");
    assert!(!publisher.is_connected() && bench.node.source_on(&key.path).is_none());
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    let closed_until = stopped.text_at("/closed_until");

    // The encoder comes back by itself, at once and again and again, and is told until when.
    let mut refusals = 0;
    let back = loop {
        match bench.node.publish(Bench::publisher(&key)).await {
            support::mediamtx::PublishOutcome::Admitted(publisher) => break publisher,
            support::mediamtx::PublishOutcome::Refused(answer) => {
                let problem: Value = serde_json::from_str(&answer.body).unwrap();
                assert_eq!(problem["code"], "cooling_down");
                assert!(problem["detail"].as_str().unwrap().contains(&closed_until), "{problem}");
                refusals += 1;
            }
        }
        assert!(stopped_at.elapsed() < COOLDOWN * 3, "its key stays valid");
    };
    assert!(refusals > 0 && stopped_at.elapsed() >= COOLDOWN, "{refusals} in {:?}", stopped_at.elapsed());
    assert_ne!(id_of(&bench.replica.until_live(&key.path).await), id);
    assert!(back.is_online());
    assert_eq!(bench.replica.until_recorded(&id).await["end_reason"], "stopped");
    bench.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_off_air_before_the_answer_and_for_ever() {
    let bench = Bench::start().await;
    let (key, publisher, id) = bench.on_air("live/ada").await;
    let viewer = bench.node.add_reader(&key.path, ConnectionKind::WebRtcSession);
    let revoked = bench.switch(&key, "revoke").await;
    // Looked at without waiting: this is what was true when the answer was sent.
    assert!(!publisher.is_connected() && bench.node.source_on(&key.path).is_none() && !viewer.is_connected());
    assert_eq!((revoked.text_at("/publisher"), revoked.text_at("/stream_id")), ("gone".into(), id.clone()));
    assert_eq!(revoked.text_at("/stream_key/status"), "revoked");
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    assert_eq!(bench.refused(&key).await["code"], "key_revoked");
    assert_eq!(bench.replica.until_recorded(&id).await["end_reason"], "key_revoked");
    bench
        .other
        .api
        .act(&format!("/v1/stream-keys/{}/enable", key.id))
        .await
        .expect_problem(409, "key_revoked_is_final");

    // Its path is free for another key, and a late word about the old publisher does not touch the new one.
    let (_, newer, _) = bench.on_air("live/ada").await;
    bench.node.send_hook(&publisher.off_hook()).await;
    assert_eq!(bench.replica.stream_on("live/ada").await.unwrap()["state"], "live");
    let again = bench.switch(&key, "revoke").await;
    assert_eq!((again.text_at("/publisher"), &again.json["stream_id"]), ("none".into(), &Value::Null));
    assert!(newer.is_online());
    bench.stop().await;
}

#[tokio::test]
async fn a_publisher_that_is_still_connecting_is_closed_as_well() {
    let bench = Bench::start().await;
    let key = bench.replica.key("live/ada").await;
    let connecting = PublishRequest::srt_streamid(&key.path, "ada", &key.secret).stays_connecting();
    let publisher = bench.node.publish(connecting).await.admitted();
    assert_eq!(bench.switch(&key, "revoke").await.text_at("/publisher"), "gone");
    assert!(!publisher.is_connected());
    bench.stop().await;
}

#[tokio::test]
async fn where_the_node_is_out_of_reach_the_publisher_is_leaving_and_is_kicked_when_it_returns() {
    let bench = Bench::start().await;
    let (key, publisher, id) = bench.on_air("live/ada").await;
    bench.node.unreachable();
    let revoked = bench.switch(&key, "revoke").await;
    assert_eq!(revoked.text_at("/publisher"), "leaving");
    assert!(publisher.is_online(), "nobody could close it");
    // For everybody else it is over: the list, the history, and whoever comes with this key.
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    assert_eq!(bench.refused(&key).await["code"], "key_revoked");
    assert_eq!(bench.replica.until_recorded(&id).await["end_reason"], "key_revoked");
    assert_eq!(bench.switch(&key, "revoke").await.text_at("/publisher"), "leaving");

    bench.node.reachable().await;
    publisher.until_gone().await;
    until("nothing is owed any more", async || bench.switch(&key, "revoke").await.text_at("/publisher") == "none")
        .await;
    bench.stop().await;
}

#[tokio::test]
async fn a_kick_that_fails_or_does_nothing_is_repeated_until_the_source_is_gone() {
    let bench = Bench::start().await;
    for (path, behaviour) in [("live/ada", KickBehaviour::Failing), ("live/bob", KickBehaviour::Ignored)] {
        let (key, publisher, id) = bench.on_air(path).await;
        bench.node.set_kick_behaviour(behaviour);
        let stopped = bench.other.api.act(&format!("/v1/streams/{id}/stop")).await.expect(200);
        assert_eq!(stopped.text_at("/publisher"), "leaving", "{behaviour:?}: \"ok\" is not gone");
        assert!(publisher.is_online());
        let kicks = bench.node.counts().kicks_to("rtmpconns");
        bench.node.until("it is kicked again", || bench.node.counts().kicks_to("rtmpconns") > kicks).await;
        assert_eq!(bench.replica.stream_on(&key.path).await, None, "the poller does not bring it back");
        bench.node.set_kick_behaviour(KickBehaviour::Obeyed);
        publisher.until_gone().await;
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_disabled_key_is_off_air_until_it_is_enabled() {
    let bench = Bench::start().await;
    let (key, publisher, id) = bench.on_air("live/ada").await;
    let disabled = bench.switch(&key, "disable").await;
    assert!(!publisher.is_connected());
    assert_eq!((disabled.text_at("/publisher"), disabled.text_at("/stream_id")), ("gone".into(), id.clone()));
    assert_eq!(bench.refused(&key).await["code"], "key_disabled");
    assert_eq!(bench.replica.until_recorded(&id).await["end_reason"], "key_disabled");

    assert_eq!(bench.switch(&key, "enable").await.text_at("/publisher"), "none");
    bench.node.publish(Bench::publisher(&key)).await.admitted();
    bench.replica.until_live(&key.path).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_key_that_expires_on_air_takes_its_stream_with_it_and_not_before() {
    let bench = Bench::start().await;
    bench.node.set_hook_behaviour(HookBehaviour::OnlyOn);
    let (key, publisher, id) = bench.on_air("live/ada").await;
    let address = format!("/v1/stream-keys/{}", key.id);
    let expires_in = async |ms: i64| {
        let at = Timestamp::now().plus_ms(ms);
        bench.other.api.patch(&address, &json!({"expires_at": at.to_string()})).await.expect(200);
        at
    };
    // Sooner, and later again before that comes: what counts is the last word.
    expires_in(1_000).await;
    let at = expires_in(2_000).await;
    let details = bench.replica.details(&id).await;
    assert_eq!(details["key_expires_at"], at.to_string());

    bench.replica.until_off_air(&key.path).await;
    let now = Timestamp::now();
    assert!(now >= at && now < at.plus_ms(2_000), "due at {at}, over at {now}");
    publisher.until_gone().await;
    let recorded = bench.replica.until_recorded(&id).await;
    assert_eq!(recorded["end_reason"], "key_expired");
    assert!(recorded["ended_at"].as_str().unwrap() >= at.to_string().as_str());
    assert_eq!(bench.refused(&key).await["code"], "key_expired");
    assert_eq!(bench.replica.api.get(&address).await.expect(200).text_at("/status"), "expired");

    bench.other.api.patch(&address, &json!({"expires_at": null})).await.expect(200);
    bench.node.publish(Bench::publisher(&key)).await.admitted();
    bench.stop().await;
}

#[tokio::test]
async fn a_revocation_that_redis_did_not_hear_of_is_said_to_be_recorded_and_takes_effect_by_itself() {
    let mut bench = Bench::start_on_a_redis_that_keeps_its_data().await;
    let (key, publisher, id) = bench.on_air("live/ada").await;
    bench.stack.redis.kill().await.unwrap();
    let revoked = bench.other.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await;
    revoked.expect_problem(503, "recorded_not_yet_effective");
    let unavailable = bench.node.publish(Bench::publisher(&key)).await.refused();
    assert_eq!(unavailable.status, Some(503), "{unavailable:?}");
    assert!(publisher.is_online(), "what is on air is not touched while nothing is known");

    bench.stack.redis.restart().await.unwrap();
    publisher.until_gone().await;
    bench.replica.until_off_air(&key.path).await;
    assert_eq!(bench.replica.until_recorded(&id).await["end_reason"], "key_revoked");
    assert_eq!(bench.refused(&key).await["code"], "key_revoked");
    bench.stop().await;
}

/// A database that was put back from yesterday, or is another one.
#[tokio::test]
async fn a_database_that_does_not_have_a_node_and_was_not_told_to_remove_it_takes_nobody_off_air() {
    let bench = Bench::start().await;
    // That it was removed once says nothing of the one that was added since.
    bench.replica.api.delete("/v1/nodes/edge-1").await.expect(204);
    let body = json!({"control_url": bench.node.control_url(), "public_urls": public_urls("edge-1")});
    bench.replica.api.put("/v1/nodes/edge-1", &body).await.expect(201);
    let (key, publisher, id) = bench.on_air("live/ada").await;
    let database = bench.stack.config.postgres.url.reveal();
    stores::execute(database, "DELETE FROM nodes").await;
    let mut connection = PgConnection::connect(database).await.unwrap();
    let mut looks = BTreeSet::new();
    until("the tasks that would do it have looked, each some times", async || {
        let found: Vec<String> = sqlx::query_scalar(LOOKS_FOR_THE_REMOVED).fetch_all(&mut connection).await.unwrap();
        looks.extend(found);
        looks.len() >= 6
    })
    .await;
    assert_eq!(bench.replica.until_live(&key.path).await["id"], id);
    assert!(publisher.is_online());
    bench.replica.api.get("/v1/nodes/edge-1").await.expect(200);
    bench.stop().await;
}

impl Bench {
    async fn start_on_a_redis_that_keeps_its_data() -> Self {
        let options =
            RedisOptions { home: Home::Scratch, persistence: Persistence::AppendOnly, listen: Listen::UnixSocket };
        let redis = PrivateRedis::start(options).await.unwrap();
        let url = redis.url();
        let mut bench = Self::start_with(|config| config.redis.url = ConfigSecret::new(url)).await;
        bench.stack.redis = redis.into();
        bench
    }
}
