//! Off air means off air: whatever ended a stream for us, its source is kicked until its node no longer has it.

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use onair::domain::Timestamp;
use serde_json::{Value, json};
use support::{
    bench::Bench,
    measured::{soon, tell, within},
    mediamtx::{HookBehaviour, KickBehaviour, PublishRequest, Publisher},
    stack::TestKey,
    stopwatch::Stopwatch,
    stores::until,
    test_redis,
    waiting::id_of,
};

/// How late the end of a key may be told and its source be off air.
const EXPIRY_WITHIN: Duration = Duration::from_secs(2);
const EXPIRES_IN_MS: i64 = 2_000;
/// How long an answer waits to tell that the publisher is gone.
const KICK_WAIT: Duration = Duration::from_millis(1_500);
/// From the revocation to silence, where the node is well.
const SILENCE_WITHIN: Duration = Duration::from_secs(1);

/// How a publisher with this key comes.
type Form = fn(&TestKey) -> PublishRequest;

/// A publisher of each type, with the part of the control API that kicks it.
const KINDS: [(&str, Form); 6] = [
    ("rtmpconns", TestKey::publisher),
    ("rtmpsconns", |key| key.publisher().over_tls()),
    ("rtspsessions", |key| PublishRequest::rtsp(&key.path, "ada", &key.secret)),
    ("rtspssessions", |key| PublishRequest::rtsp(&key.path, "ada", &key.secret).over_tls()),
    ("srtconns", |key| PublishRequest::srt_streamid(&key.path, "ada", &key.secret)),
    ("webrtcsessions", |key| PublishRequest::whip_bearer(&key.path, &key.secret)),
];

/// What takes a stream off air, and the reason that it is told with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Revoked,
    Disabled,
    Expired,
    Stopped,
    TakenOver,
}

impl Way {
    const ALL: [Self; 5] = [Self::Revoked, Self::Disabled, Self::Expired, Self::Stopped, Self::TakenOver];

    fn reason(self) -> &'static str {
        match self {
            Self::Revoked => "key_revoked",
            Self::Disabled => "key_disabled",
            Self::Expired => "key_expired",
            Self::Stopped => "stopped",
            Self::TakenOver => "taken_over",
        }
    }

    /// How long after it was asked for it comes into effect.
    fn delay(self) -> Duration {
        if self == Self::Expired { Duration::from_millis(EXPIRES_IN_MS.unsigned_abs()) } else { Duration::ZERO }
    }

    fn limit(self) -> Duration {
        let limit = if self == Self::Expired { EXPIRY_WITHIN } else { SILENCE_WITHIN };
        limit * test_redis::crowd()
    }
}

impl Bench {
    /// Takes a stream off air. The answer, where there is one, tells what became of the publisher.
    async fn take(&self, way: Way, key: &TestKey, stream: &Value) -> Option<String> {
        let api = &self.replica.api;
        let answer = match way {
            Way::Revoked => api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await,
            Way::Disabled => api.act(&format!("/v1/stream-keys/{}/disable", key.id)).await,
            Way::Stopped => api.act(&format!("/v1/streams/{}/stop", id_of(stream))).await,
            Way::Expired => {
                self.expires_soon(key).await;
                return None;
            }
            Way::TakenOver => {
                self.node.publish(key.publisher().stays_connecting()).await.admitted();
                return None;
            }
        };
        Some(answer.expect(200).text_at("/publisher"))
    }

    async fn expires_soon(&self, key: &TestKey) {
        let patch = json!({"expires_at": Timestamp::now().plus_ms(EXPIRES_IN_MS).to_string()});
        self.replica.api.patch(&format!("/v1/stream-keys/{}", key.id), &patch).await.expect(200);
    }

    async fn owed(&self) -> usize {
        self.replica.app.redis.kicks().await.unwrap().len()
    }
}

#[tokio::test]
async fn every_way_off_air_kicks_every_type_of_source_through_its_own_endpoint() {
    let bench = Bench::start().await;
    for way in Way::ALL {
        let silence = join_all(KINDS.map(async |(collection, request)| {
            let key = bench.replica.key_with(&format!("live/{way:?}-{collection}"), conflict(way)).await;
            let publisher = bench.node.publish(request(&key)).await.admitted();
            let stream = bench.replica.until_live(&key.path).await;
            let (before, watch, began) = (bench.node.counts(), Stopwatch::start(), Instant::now());
            let word = bench.take(way, &key, &stream).await;
            until(&format!("{way:?} {collection}: silence"), async || !publisher.is_connected()).await;
            let (took, in_all) = (watch.elapsed().saturating_sub(way.delay()), began.elapsed());
            assert!(word.is_none_or(|word| word == "gone" || in_all >= KICK_WAIT), "{way:?} {collection}");
            assert_eq!(bench.replica.end_reason(&stream).await, way.reason());
            assert!(bench.node.counts().kicks_to(collection) > before.kicks_to(collection));
            took
        }))
        .await;
        let slowest = *silence.iter().max().expect("six types");
        assert!(slowest < way.limit(), "{way:?}: {silence:?}");
        tell(&format!("{way:?}, six types of source at once: silence of the slowest"), slowest, way.limit());
    }
    soon("thirty sources: nothing is owed any more", async || bench.owed().await == 0).await;
    // Each once, and once more to hear that it is gone: nobody was looked for in the wrong part.
    let counts = bench.node.counts();
    let kicks: BTreeMap<_, _> =
        KINDS.iter().map(|(collection, _)| (*collection, counts.kicks_to(collection))).collect();
    assert!(kicks.values().all(|&count| (5..=30).contains(&count)), "{kicks:?}");
    bench.replica.stop().await;
}

fn conflict(way: Way) -> Value {
    if way == Way::TakenOver { json!({"on_conflict": "take_over"}) } else { json!({}) }
}

#[tokio::test]
async fn a_source_whose_exact_type_nobody_told_is_found_in_every_part_that_its_protocol_may_have() {
    let bench = Bench::start().await;
    for (collection, request) in KINDS {
        let key = bench.replica.key(&format!("live/{collection}")).await;
        let publisher = bench.node.publish(request(&key).stays_connecting()).await.admitted();
        let stream = bench.replica.stream_on(&key.path).await.unwrap();
        let word = bench.take(Way::Revoked, &key, &stream).await;
        assert_eq!((word.as_deref(), publisher.is_connected()), (Some("gone"), false), "{collection}");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn from_the_revocation_to_silence_it_takes_less_than_a_second_and_the_metric_tells() {
    let bench = Bench::start().await;
    let (key, publisher, stream) = bench.live("live/ada").await;
    let began = Stopwatch::start();
    assert_eq!(bench.take(Way::Revoked, &key, &stream).await.as_deref(), Some("gone"));
    assert!(!publisher.is_connected() && began.elapsed() < SILENCE_WITHIN);
    tell("revoked: silence", began.elapsed(), SILENCE_WITHIN);
    let metrics = bench.replica.api.anonymous().get("/metrics").await.text;
    let counted = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(counted("onair_revoke_to_silence_seconds_count") >= 1.0);
    assert!(counted("onair_kicks_total{reason=\"key_revoked\",outcome=\"gone\"}") >= 1.0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_kick_that_fails_or_does_nothing_is_repeated_until_the_source_is_gone() {
    let bench = Bench::start().await;
    for behaviour in [KickBehaviour::Failing, KickBehaviour::Ignored] {
        bench.node.set_kick_behaviour(behaviour);
        let (key, publisher, stream) = bench.live(&format!("live/{behaviour:?}")).await;
        assert_eq!(bench.take(Way::Revoked, &key, &stream).await.as_deref(), Some("leaving"));
        assert!(bench.replica.stream_on(&key.path).await.is_none(), "it has ended for everybody else");
        let again = bench.replica.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
        assert_eq!(again.text_at("/publisher"), "leaving", "repeating the call tells how it stands");
        let tries = || bench.node.counts().kicks_to("rtmpconns");
        let before = tries();
        until("it was tried again", async || tries() >= before + 2).await;
        assert!(publisher.is_online());
        assert_eq!(bench.owed().await, 1);
        bench.node.set_kick_behaviour(KickBehaviour::Obeyed);
        soon(&format!("kicks {behaviour:?}, then obeyed: silence"), async || !publisher.is_connected()).await;
        soon("and known to be", async || bench.owed().await == 0).await;
        assert_eq!(bench.replica.end_reason(&stream).await, "key_revoked");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn what_must_be_off_air_is_remembered_while_its_node_is_away_and_its_replica_dies() {
    let bench = Bench::start().await;
    let (key, publisher, stream) = bench.live("live/ada").await;
    let (stopped_key, stopped, stopped_stream) = bench.live("live/bob").await;
    bench.node.unreachable();
    assert_eq!(bench.take(Way::Revoked, &key, &stream).await.as_deref(), Some("leaving"));
    assert_eq!(bench.take(Way::Stopped, &stopped_key, &stopped_stream).await.as_deref(), Some("leaving"));
    bench.replica.tasks.abort();
    let successor = bench.stack.replica().await;
    bench.node.point_at(successor.auth_url("edge-1"), None);
    assert!(successor.on_air().await.is_empty());
    assert!(publisher.is_online() && stopped.is_online(), "the node still has both");
    bench.node.reachable().await;
    soon("node back, another replica: silence", async || !publisher.is_connected() && !stopped.is_connected()).await;
    soon("and known to be", async || successor.app.redis.kicks().await.unwrap().is_empty()).await;
    successor.stop().await;
}

#[tokio::test]
async fn a_key_that_expires_on_air_is_off_air_within_two_seconds_of_the_instant() {
    let bench = Bench::start().await;
    let expires_at = Timestamp::now().plus_ms(2_000);
    let key = bench.replica.key_with("live/ada", json!({"expires_at": expires_at.to_string()})).await;
    let publisher = bench.node.publish(key.publisher()).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    until("the instant has come", async || Timestamp::now() >= expires_at).await;
    within(EXPIRY_WITHIN, "key expired: silence, and off the list", async || {
        !publisher.is_connected() && bench.replica.stream_on(&key.path).await.is_none()
    })
    .await;
    assert_eq!(bench.replica.end_reason(&stream).await, "key_expired");
    let refused = bench.node.publish(key.publisher()).await.refused();
    assert!(refused.body.contains("key_expired"), "{}", refused.body);
    bench.replica.stop().await;
}

/// The cause: one round carried out the kicks of all nodes, and ended only when the slowest node had been given up.
#[tokio::test]
async fn a_node_that_hangs_delays_no_kick_on_another() {
    let bench = Bench::start().await;
    let other = bench.replica.mediamtx("edge-2").await;
    let mut hanging = Vec::new();
    let mut keys = Vec::new();
    for number in 0..40 {
        let key = bench.replica.key(&format!("live/hangs-{number}")).await;
        hanging.push(bench.node.publish(key.publisher()).await.admitted());
        keys.push(key);
    }
    bench.node.hang();
    for key in keys {
        bench.expires_soon(&key).await;
    }
    until("many kicks are owed to the node that hangs", async || bench.owed().await == 40).await;
    for number in 0..3 {
        let expires_at = Timestamp::now().plus_ms(EXPIRES_IN_MS);
        let settings = json!({"expires_at": expires_at.to_string()});
        let key = bench.replica.key_with(&format!("live/well-{number}"), settings).await;
        let publisher = other.publish(key.publisher()).await.admitted();
        until("the instant has come", async || Timestamp::now() >= expires_at).await;
        let what = "key expired while another node hangs: silence";
        within(EXPIRY_WITHIN, what, async || !publisher.is_connected()).await;
    }
    assert!(hanging.iter().all(Publisher::is_online));
    bench.node.reachable().await;
    let what = "the node that hung answers: its forty are silent too";
    soon(what, async || hanging.iter().all(|publisher| !publisher.is_connected())).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_stopped_path_stays_closed_for_the_cool_down_so_that_an_encoders_reconnect_does_not_undo_it() {
    let bench = Bench::start_with(|config| config.reconciler.cooldown_ms = 2_000).await;
    let (key, publisher, stream) = bench.live("live/ada").await;
    // An encoder that is back the very moment it is thrown out.
    let reconnecting = async {
        publisher.until_gone().await;
        bench.node.publish(key.publisher()).await.refused()
    };
    let stop = format!("/v1/streams/{}/stop", id_of(&stream));
    let (refused, stopped) = tokio::join!(reconnecting, bench.replica.api.act(&stop));
    let stopped = stopped.expect(200);
    let problem: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!((refused.status, problem["code"].as_str()), (Some(409), Some("cooling_down")));
    let closed_until = Timestamp::parse(&stopped.text_at("/closed_until")).unwrap();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&closed_until.to_string()), "it says until when: {detail}");
    assert_eq!(bench.replica.end_reason(&stream).await, "stopped");
    within(Duration::from_secs(3), "stopped: open again (2000 ms of it are the cool-down)", async || {
        let outcome = bench.node.publish(key.publisher()).await;
        matches!(outcome, support::mediamtx::PublishOutcome::Admitted(_))
    })
    .await;
    assert!(Timestamp::now() >= closed_until);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_kicked_sources_late_hooks_bring_nothing_back() {
    let bench = Bench::start().await;
    bench.node.set_hook_behaviour(HookBehaviour::Held);
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.node.publish(key.publisher()).await.admitted();
    let stream = bench.replica.until_live(&key.path).await;
    bench.take(Way::Disabled, &key, &stream).await;
    for hook in bench.node.take_held_hooks().iter().chain([&publisher.on_hook(), &publisher.off_hook()]) {
        assert_eq!(bench.node.send_hook(hook).await, Some(200));
    }
    assert!(bench.replica.on_air().await.is_empty());
    assert_eq!(bench.replica.end_reason(&stream).await, "key_disabled");
    bench.replica.api.act(&format!("/v1/stream-keys/{}/enable", key.id)).await.expect(200);
    bench.node.publish(key.publisher()).await.admitted();
    bench.replica.live_soon("enabled again", &key.path).await;
    bench.replica.stop().await;
}
