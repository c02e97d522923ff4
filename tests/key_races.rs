//! Changes of keys against everything that could undo them: admissions on another replica, slow look-ups, a process that dies
//! at the wrong moment, a Redis that loses its memory.

mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use onair::{
    admission::{AuthRequest, Outcome, RefusalCode},
    domain::{BroadcasterId, KeyStatus, NodeName, Revision, SourceId, StreamPath},
    redis::{Admission, KeyProjection, RedisError},
    stream_keys::{CreatedKey, NewKey},
};
use support::{
    measured::{say, within},
    raw_redis,
    records::{admit_request, insert_key, set_status, settings},
    stack::{Replica, Stack},
    stores,
    stores::by_test,
};
use uuid::Uuid;

const ROUNDS: u32 = 1_000;
const ROUNDS_AT_ONCE: usize = 16;
/// How long all rounds may take.
const LIMIT: Duration = Duration::from_secs(300);

fn knock(created: &CreatedKey) -> AuthRequest {
    AuthRequest {
        // From everywhere, so that nobody is slowed down.
        ip: std::net::Ipv6Addr::from(Uuid::new_v4().as_u128()).to_string(),
        action: "publish".to_owned(),
        path: created.key.path.to_string(),
        protocol: "rtmp".to_owned(),
        id: Some(SourceId(Uuid::new_v4())),
        query: format!("key={}", created.secret.reveal()),
        ..AuthRequest::default()
    }
}

#[derive(Default)]
struct Counts {
    admitted_before: AtomicU32,
    refused_before: AtomicU32,
    refused_after: AtomicU32,
    looked_up: AtomicU32,
}

/// Admissions on one replica, a revocation on the other.
async fn race(round: u32, broadcaster_id: BroadcasterId, stack: &Stack, replicas: &[Replica; 2], counts: &Counts) {
    let [revoking, admitting] = replicas;
    let node: NodeName = "edge-1".parse().unwrap();
    let path: StreamPath = format!("race/{round}").parse().unwrap();
    let new = NewKey { broadcaster_id, path: Some(path.clone()), settings: settings() };
    let created = revoking.app.stream_keys.create(&new, &by_test()).await.unwrap();
    // In every second round Redis does not hold the key, so that a look-up in Postgres races as well.
    if round.is_multiple_of(2) {
        let name = format!("onair:{{{}}}:key:{}", path.partition(), created.secret.hash().to_hex());
        let _: u64 = raw_redis::command(&stack.redis, &["DEL", &name]).await;
        counts.looked_up.fetch_add(1, Ordering::Relaxed);
    }
    let is_answered = AtomicBool::new(false);
    let knocking = async {
        let mut after = 0;
        while after < 3 {
            let asked_after = is_answered.load(Ordering::SeqCst);
            let decision = admitting.app.admission.decide(&node, &knock(&created)).await;
            match &decision.outcome {
                Outcome::Publishing { .. } => {
                    assert!(!asked_after, "round {round}: admitted after the revocation was answered");
                    counts.admitted_before.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Refused(refusal) if asked_after => {
                    assert_eq!(refusal.code, RefusalCode::KeyRevoked, "round {round}: {refusal:?}");
                    counts.refused_after.fetch_add(1, Ordering::Relaxed);
                    after += 1;
                }
                _ => drop(counts.refused_before.fetch_add(1, Ordering::Relaxed)),
            }
        }
    };
    let revocation = async {
        // Anywhere between before the first admission and long after it.
        tokio::time::sleep(Duration::from_micros(u64::from(round % 25) * 100)).await;
        let revoked = revoking.app.stream_keys.revoke(created.key.id, &by_test()).await;
        is_answered.store(true, Ordering::SeqCst);
        revoked.unwrap()
    };
    let (revoked, (), ()) = tokio::join!(revocation, knocking, async {
        // A second caller, so that admissions also overlap.
        while !is_answered.load(Ordering::SeqCst) {
            let _ = admitting.app.admission.decide(&node, &knock(&created)).await;
        }
    });
    assert_eq!(revoked.key.stored_status, KeyStatus::Revoked);
    assert_eq!(
        admitting.app.redis.stream_on(&path).await.unwrap(),
        None,
        "round {round}: whoever was admitted is off air"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_revocation_is_answered_no_other_replica_admits_in_a_thousand_races() {
    let stack = Stack::start_with(|config| {
        config.admission.deadline_ms = 5_000;
        // The test speaks for a node that does not exist: nobody shall find it silent.
        Stack::leave_nodes_alone(config);
    })
    .await;
    let replicas = [stack.replica().await, stack.replica().await];
    replicas[0].add_node("edge-1").await;
    let broadcaster_id: BroadcasterId = replicas[0].broadcaster("Ada").await.parse().unwrap();
    let (began, counts) = (Instant::now(), Counts::default());
    stream::iter(0..ROUNDS)
        .for_each_concurrent(ROUNDS_AT_ONCE, |round| race(round, broadcaster_id, &stack, &replicas, &counts))
        .await;
    let took = began.elapsed();
    let of = |count: &AtomicU32| count.load(Ordering::Relaxed);
    say(&format!(
        "{ROUNDS} revocations raced in {took:.1?}, {} of them with a look-up: admitted before the answer {}, refused before it {}, \
         asked after it and refused {}, admitted after it 0",
        of(&counts.looked_up),
        of(&counts.admitted_before),
        of(&counts.refused_before),
        of(&counts.refused_after),
    ));
    assert!(of(&counts.admitted_before) > ROUNDS / 10, "they did race");
    assert_eq!(of(&counts.refused_after), 3 * ROUNDS);
    assert!(took < LIMIT, "{took:?}");
    for replica in replicas {
        replica.stop().await;
    }
}

async fn admit(redis: &onair::redis::Redis, key: &KeyProjection) -> Admission {
    let node: NodeName = "edge-1".parse().unwrap();
    let request = admit_request(&key.path, key.secret_hash, &node, SourceId(Uuid::new_v4()));
    redis.admit(&request).await.unwrap().admission
}

#[tokio::test]
async fn what_was_read_before_redis_lost_its_memory_is_not_written_into_the_next() {
    let (server, redis) = stores::redis().await;
    let postgres = stores::postgres().await;
    let broadcaster = support::records::broadcaster(&postgres).await;
    let key = insert_key(&postgres, broadcaster.id, &"live/slow".parse().unwrap(), &settings()).await.unwrap();
    let as_read = KeyProjection::new(&key, &stores::label("Ada"));

    // A slow caller reads the key, and does not come to write it.
    let before = redis.generations().await.unwrap();
    // Meanwhile it is revoked, that is in effect, and Redis loses its memory and has it back, without keys.
    let revoked = KeyProjection { stored_status: KeyStatus::Revoked, revision: Revision(2), ..as_read.clone() };
    redis.project_key(&revoked).await.unwrap();
    raw_redis::forget_everything(&server).await;
    let closed = redis.generations().await.unwrap();
    stores::open_partitions(&redis).await;

    for (when, memory) in [("before the loss", &before), ("before it was back", &closed)] {
        let late = redis.project(&as_read, memory).await;
        assert_eq!(late, Err(RedisError::MemoryLost), "read {when}");
    }
    assert_eq!(admit(&redis, &as_read).await, Admission::KeyAbsent, "so it is looked up, and found to be revoked");
    let now = redis.generations().await.unwrap();
    redis.project(&revoked, &now).await.unwrap();
    assert_eq!(admit(&redis, &as_read).await, Admission::KeyRevoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_maker_died_before_redis_was_told_is_brought_into_effect_by_another_replica() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let key = replica.key("live/orphan").await;
    let publisher = node.publish(key.publisher()).await.admitted();
    replica.until_live("live/orphan").await;

    // What a process leaves that is killed after the commit.
    let began = Instant::now();
    set_status(&replica.app.postgres, key.id.parse().unwrap(), KeyStatus::Revoked).await;
    within(Duration::from_secs(5), "its publisher is off air", async || !publisher.is_connected()).await;
    let refused = node.publish(key.publisher()).await.refused();
    assert!(refused.body.contains("key_revoked"), "{}", refused.body);
    say(&format!("a revocation whose maker died was in effect after {:.1?}", began.elapsed()));
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_not_undone_by_a_redis_that_hangs_and_loses_its_memory_meanwhile() {
    let mut stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let key = replica.key("live/hangs").await;
    stack.redis.suspend().unwrap();
    let recorded = replica.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await;
    assert_eq!((recorded.status, recorded.json["code"].as_str()), (503, Some("recorded_not_yet_effective")));
    stack.redis.kill().await.unwrap();
    stack.redis.restart().await.unwrap();
    let began = Instant::now();
    within(Duration::from_secs(5), "the key is refused as revoked", async || {
        node.publish(key.publisher()).await.refused().body.contains("key_revoked")
    })
    .await;
    let again = replica.api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await;
    assert_eq!(again.status, 200, "{}", again.text);
    say(&format!(
        "after Redis was back without its memory, the key was refused as revoked within {:.1?}",
        began.elapsed()
    ));
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_a_hundred_thousand_keeps_another_waiting_while_all_come_back() {
    let stack = Stack::start_with(|config| config.admission.deadline_ms = 2_000).await;
    let replica = stack.replica().await;
    replica.add_node("edge-1").await;
    let broadcaster = replica.broadcaster("Ada").await;
    let mut connection =
        <sqlx::PgConnection as sqlx::Connection>::connect(stack.config.postgres.url.reveal()).await.unwrap();
    let rows = "INSERT INTO stream_keys (id, broadcaster_id, path, secret_hash, hint, metadata, on_conflict, playback, status,
            projected_revision)
        SELECT gen_random_uuid(), $1::uuid, 'many/' || n, sha256(n::text::bytea), 'abcd', '{}', 'reject', 'public', 'active', 1
        FROM generate_series(1, 100000) AS n";
    sqlx::query(rows).bind(Uuid::parse_str(&broadcaster).unwrap()).execute(&mut connection).await.unwrap();
    let mut keys = Vec::new();
    let new = |number: u32| NewKey {
        broadcaster_id: broadcaster.parse().unwrap(),
        path: Some(format!("known/{number}").parse().unwrap()),
        settings: settings(),
    };
    for number in 0..200 {
        keys.push(replica.app.stream_keys.create(&new(number), &by_test()).await.unwrap());
    }

    raw_redis::forget_everything(&stack.redis).await;
    let (node, began): (NodeName, _) = ("edge-1".parse().unwrap(), Instant::now());
    let admit = async |key: &CreatedKey| {
        let asked = Instant::now();
        let decision = replica.app.admission.decide(&node, &knock(key)).await;
        (matches!(decision.outcome, Outcome::Publishing { .. }), asked.elapsed())
    };
    within(Duration::from_secs(5), "100,000 keys: the first publisher gets in", async || admit(&keys[0]).await.0).await;
    let mut took = Vec::new();
    for key in &keys[1..] {
        let (is_admitted, time) = admit(key).await;
        assert!(is_admitted, "{} was refused", key.key.path);
        took.push(time);
    }
    took.sort();
    say(&format!(
        "100,000 keys: {} publishers whose keys were looked up meanwhile, the median in {:.1?}, the slowest in {:.1?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    ));
    within(Duration::from_secs(300), "100,000 keys: all are back", async || {
        replica.app.redis.projection_position().await == Ok(None)
    })
    .await;
    let held: u64 = raw_redis::command(&stack.redis, &["DBSIZE"]).await;
    say(&format!("100,000 keys: Redis held {held} entries after {:.1?}", began.elapsed()));
    assert!(held >= 100_200, "{held}");
    replica.stop().await;
}
