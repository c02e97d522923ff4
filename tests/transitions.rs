//! The transitions as Redis makes them: each verb's happy way, its races, its replays, and expiry to the millisecond.

mod support;

use std::collections::HashSet;

use futures_util::future::join_all;
use onair::{
    domain::{
        EndReason, KeyStatus, NodeName, OnConflict, Partition, Revision, SourceId, SourceType, StreamInfo, StreamPath,
        StreamState, StreamStateWord, Timestamp,
    },
    redis::{
        Admission, AdmitAnswer, AdmitRequest, Afterwards, Confirmation, Description, EndRequest, Ending, EventKind,
        FencingToken, Holder, KeyInPlace, KeyProjection, Lease, Observation, Projected, Redis, RedisError, Ticket,
        Watcher,
    },
};
use support::{
    raw_redis,
    records::{admit_request, key_projection},
    redis_monitor::RedisMonitor,
    stores,
};
use uuid::Uuid;

const NOW: i64 = 1_800_000_000_000;

/// An instant on the tests' own clock, as the transitions take it.
#[expect(clippy::unnecessary_wraps, reason = "what takes it may also go by the clock of Redis")]
fn at(ms: i64) -> Option<Timestamp> {
    Some(Timestamp::from_ms(NOW + ms))
}

fn source() -> SourceId {
    SourceId(Uuid::new_v4())
}

fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

fn key(path: &str) -> KeyProjection {
    let info = StreamInfo { title: Some("A title".to_owned()), ..StreamInfo::default() };
    KeyProjection { info, ..key_projection(path) }
}

async fn admit(redis: &Redis, key: &KeyProjection, source_id: SourceId, now: Option<Timestamp>) -> Admission {
    admit_to(redis, key, &key.path, Some(source_id), now).await
}

async fn admit_to(
    redis: &Redis,
    key: &KeyProjection,
    path: &StreamPath,
    source_id: Option<SourceId>,
    now: Option<Timestamp>,
) -> Admission {
    try_admit_to(redis, key, path, source_id, now).await.unwrap().admission
}

async fn try_admit_to(
    redis: &Redis,
    key: &KeyProjection,
    path: &StreamPath,
    source_id: Option<SourceId>,
    now: Option<Timestamp>,
) -> Result<AdmitAnswer, RedisError> {
    let node = node();
    let request =
        AdmitRequest { connecting_timeout_ms: 10_000, ..admit_request(path, key.secret_hash, &node, source_id) };
    redis.admit_with(&request, &Ticket::default(), now).await
}

fn is_admitted(admission: &Admission) -> bool {
    matches!(admission, Admission::Admitted { .. })
}

fn watcher(node: &NodeName, token: i64) -> Watcher<'_> {
    Watcher { node, token: FencingToken(token) }
}

fn end<'a>(path: &'a StreamPath, source_id: SourceId, node: &'a NodeName) -> EndRequest<'a> {
    EndRequest {
        path,
        holder: Holder::Source(source_id, node),
        reason: EndReason::Unpublished,
        afterwards: Afterwards::Gone,
        progress: None,
    }
}

async fn kinds(redis: &Redis, path: &StreamPath) -> Vec<EventKind> {
    let batch = redis.read_events(path.partition(), 1000).await.unwrap();
    assert!(batch.unreadable.is_empty(), "{:?}", batch.unreadable);
    batch.events.into_iter().filter(|event| event.stream.path == *path).map(|event| event.kind).collect()
}

#[tokio::test]
async fn a_stream_is_admitted_confirmed_and_ended_with_one_event_each() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id, node) = (key("live/ada"), source(), node());
    assert_eq!(redis.project_key(&key).await.unwrap(), Projected::Written { ended: None });

    assert!(is_admitted(&admit(&redis, &key, source_id, None).await));
    let held = redis.stream_on(&key.path).await.unwrap().unwrap();
    assert_eq!((held.state.word(), held.key_id, held.source.id), (StreamStateWord::Connecting, key.id, source_id));
    assert_eq!(held.info, key.info);

    let confirmed = redis.confirm(&key.path, &node, (source_id, SourceType::RtmpConn), &[]).await.unwrap();
    assert_eq!(confirmed, Confirmation::Confirmed);
    let live = redis.stream_on(&key.path).await.unwrap().unwrap();
    assert_eq!((live.state.word(), live.source.source_type), (StreamStateWord::Live, Some(SourceType::RtmpConn)));

    let Ending::Ended(ended) = redis.end(&end(&key.path, source_id, &node)).await.unwrap() else { panic!("not ended") };
    assert!(matches!(ended.state, StreamState::Ended { reason: EndReason::Unpublished, .. }));
    assert_eq!(redis.stream_on(&key.path).await.unwrap(), None);
    assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted, EventKind::Confirmed, EventKind::Ended]);
    assert_eq!(redis.kicks().await.unwrap(), [], "a source that left needs no kick");
}

#[tokio::test]
async fn of_two_hundred_callers_one_takes_the_path() {
    let (_server, redis) = stores::redis().await;
    let key = key("live/race");
    redis.project_key(&key).await.unwrap();
    let calls = (0..200).map(|_| admit(&redis, &key, source(), None));
    let answers = join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| is_admitted(answer)).count(), 1);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Admission::KeyInUse { .. })).count(), 199);
    assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted]);
}

#[tokio::test]
async fn admissions_that_come_at_once_share_scripts() {
    let (server, redis) = stores::redis().await;
    let key = key("live/shared");
    redis.project_key(&key).await.unwrap();
    assert!(is_admitted(&admit(&redis, &key, source(), None).await));
    let monitors = join_all(server.servers().iter().map(RedisMonitor::start)).await;
    join_all((0..200).map(|_| admit(&redis, &key, source(), None))).await;
    let heard = join_all(monitors.iter().map(RedisMonitor::heard)).await.concat();
    let scripts = heard.iter().filter(|line| line.contains("\"EVALSHA\"") && line.contains("live/shared")).count();
    assert!((1..100).contains(&scripts), "{scripts} scripts for 200 admissions");
}

/// What Redis cannot carry out for one, it refuses as a whole: the others are asked for again, by themselves.
#[tokio::test]
async fn an_admission_that_redis_stumbles_over_refuses_nobody_else() {
    let (server, redis) = stores::redis().await;
    let keys: Vec<KeyProjection> = (0..100).map(|number| key(&format!("live/{number}"))).collect();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    let broken = &keys[50];
    let slot = format!("onair:{{{}}}:slot:{}", broken.path.partition(), broken.path);
    let _: String = raw_redis::command(&server, &["SET", &slot, "no record"]).await;
    let answers = keys.iter().map(|key| try_admit_to(&redis, key, &key.path, Some(source()), None));
    for (key, answer) in keys.iter().zip(join_all(answers).await) {
        if key.path == broken.path {
            assert!(matches!(&answer, Err(RedisError::Refused(why)) if why.starts_with("WRONGTYPE")), "{answer:?}");
            continue;
        }
        // Again, where it was carried out before Redis stumbled.
        let is_in = |answer: &AdmitAnswer| {
            matches!(answer.admission, Admission::Admitted { .. } | Admission::AdmittedAgain { .. })
        };
        assert!(answer.as_ref().is_ok_and(is_in), "{}: {answer:?}", key.path);
        assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted]);
    }
}

#[tokio::test]
async fn the_same_source_is_admitted_again_and_changes_nothing() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id) = (key("live/again"), source());
    redis.project_key(&key).await.unwrap();
    let Admission::Admitted { stream_id, epoch, .. } = admit(&redis, &key, source_id, None).await else { panic!() };
    for _ in 0..3 {
        assert_eq!(admit(&redis, &key, source_id, None).await, Admission::AdmittedAgain { stream_id, epoch });
    }
    assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted]);
}

#[tokio::test]
async fn a_call_without_an_id_checks_and_claims_nothing() {
    let (_server, redis) = stores::redis().await;
    let key = key("live/preflight");
    redis.project_key(&key).await.unwrap();
    assert_eq!(admit_to(&redis, &key, &key.path, None, None).await, Admission::Checked);
    assert_eq!(redis.stream_on(&key.path).await.unwrap(), None);
    assert!(is_admitted(&admit(&redis, &key, source(), None).await));
    assert_eq!(admit_to(&redis, &key, &key.path, None, None).await, Admission::Checked);
}

#[tokio::test]
async fn every_reason_to_refuse_has_its_word() {
    let (_server, redis) = stores::redis().await;
    let of_status = |path: &str, stored_status| KeyProjection { stored_status, ..key(path) };
    let revoked = of_status("live/revoked", KeyStatus::Revoked);
    let disabled = of_status("live/disabled", KeyStatus::Disabled);
    let absent = key("live/absent");
    for key in [&revoked, &disabled] {
        redis.project_key(key).await.unwrap();
    }
    assert_eq!(admit(&redis, &revoked, source(), None).await, Admission::KeyRevoked);
    assert_eq!(admit(&redis, &disabled, source(), None).await, Admission::KeyDisabled);
    assert_eq!(admit(&redis, &absent, source(), None).await, Admission::KeyAbsent);

    // Two paths of one partition: the key is found, but it is for the other.
    let here = key("live/here");
    redis.project_key(&here).await.unwrap();
    let neighbour = (0..).map(|n| format!("live/{n}").parse::<StreamPath>().unwrap());
    let neighbour = neighbour.into_iter().find(|path| path.partition() == here.path.partition()).unwrap();
    assert_eq!(admit_to(&redis, &here, &neighbour, Some(source()), None).await, Admission::PathMismatch);
    assert_eq!(redis.stream_on(&neighbour).await.unwrap(), None);
}

#[tokio::test]
async fn a_key_expires_to_the_millisecond() {
    let (_server, redis) = stores::redis().await;
    let key = KeyProjection { expires_at: at(1_000), ..key("live/expiring") };
    redis.project_key(&key).await.unwrap();
    assert_eq!(admit(&redis, &key, source(), at(1_000)).await, Admission::KeyExpired { since: at(1_000).unwrap() });
    assert!(is_admitted(&admit(&redis, &key, source(), at(999)).await));

    assert_eq!(redis.expire_at(&key.path, at(999)).await.unwrap(), Ending::NotDue);
    let Ending::Ended(ended) = redis.expire_at(&key.path, at(1_000)).await.unwrap() else { panic!("not ended") };
    assert!(matches!(ended.state, StreamState::Ended { reason: EndReason::KeyExpired, .. }));
    let kicks = redis.kicks().await.unwrap();
    assert_eq!(kicks.len(), 1, "its source must go");
    let struck_off = [redis.strike_off_kick(&kicks[0]).await, redis.strike_off_kick(&kicks[0]).await];
    assert_eq!(struck_off, [Ok(true), Ok(false)], "one of those who carry it out tells of it");
    assert_eq!(redis.expire_at(&key.path, at(1_000)).await.unwrap(), Ending::NotHeld);
}

#[tokio::test]
async fn a_reservation_that_never_goes_online_ends_at_its_deadline() {
    let (_server, redis) = stores::redis().await;
    let key = key("live/never");
    redis.project_key(&key).await.unwrap();
    assert!(is_admitted(&admit(&redis, &key, source(), at(0)).await));
    assert!(matches!(admit(&redis, &key, source(), at(9_999)).await, Admission::KeyInUse { .. }));
    assert_eq!(redis.expire_at(&key.path, at(9_999)).await.unwrap(), Ending::NotDue);
    assert!(matches!(redis.expire_at(&key.path, at(10_000)).await.unwrap(), Ending::Ended(_)));
    assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted, EventKind::Ended]);
    assert!(is_admitted(&admit(&redis, &key, source(), at(10_000)).await));
}

#[tokio::test]
async fn a_confirmed_stream_outlives_the_connecting_deadline() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id) = (key("live/stays"), source());
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, source_id, at(0)).await;
    redis.confirm(&key.path, &node(), (source_id, SourceType::SrtConn), &[]).await.unwrap();
    assert_eq!(redis.expire_at(&key.path, at(1_000_000)).await.unwrap(), Ending::NotDue);
    assert_eq!(redis.due(10).await.unwrap(), Vec::<StreamPath>::new());
}

#[tokio::test]
async fn the_next_publisher_takes_the_place_of_a_dead_holder() {
    let (_server, redis) = stores::redis().await;
    let cases = [
        ("live/late", None, EndReason::NeverOnline),
        ("live/stalled", Some(Observation::Stalled(at(1))), EndReason::Stalled),
        ("live/stale", Some(Observation::Stale(at(1))), EndReason::NodeUnreachable),
    ];
    for (path, observation, reason) in cases {
        let (key, old, new, node) = (key(path), source(), source(), node());
        redis.project_key(&key).await.unwrap();
        let Admission::Admitted { epoch: old_epoch, .. } = admit(&redis, &key, old, at(0)).await else { panic!() };
        if let Some(observation) = observation {
            redis.confirm(&key.path, &node, (old, SourceType::RtmpConn), &[]).await.unwrap();
            assert!(matches!(admit(&redis, &key, new, at(20_000)).await, Admission::KeyInUse { .. }), "healthy");
            redis.observe(&key.path, watcher(&node, 1), old, &[observation]).await.unwrap();
        }
        let Admission::Admitted { epoch, replaced, .. } = admit(&redis, &key, new, at(20_000)).await else {
            panic!("{path}: not admitted");
        };
        let replaced = replaced.expect("the old stream is told");
        assert!(matches!(replaced.state, StreamState::Ended { reason: why, .. } if why == reason), "{path}");
        assert!(epoch > old_epoch);
        let kicks = redis.kicks().await.unwrap();
        assert!(kicks.iter().any(|kick| kick.source_id == old && kick.reason == reason), "{path}: {kicks:?}");

        // Late words of the old source change nothing about the new one.
        let late = redis.confirm(&key.path, &node, (old, SourceType::RtmpConn), &[]).await.unwrap();
        assert_eq!(late, Confirmation::OtherSource);
        assert_eq!(redis.end(&end(&key.path, old, &node)).await.unwrap(), Ending::OtherSource);
        assert_eq!(redis.stream_on(&key.path).await.unwrap().unwrap().source.id, new);
    }
}

#[tokio::test]
async fn a_poller_that_slept_through_its_lease_notes_nothing_once_its_successor_has() {
    let (_server, redis) = stores::redis().await;
    let (key, old, new, node) = (key("live/ada"), source(), source(), node());
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, old, at(0)).await;
    redis.confirm(&key.path, &node, (old, SourceType::RtmpConn), &[]).await.unwrap();
    let stalled = async |token, since| {
        redis.observe(&key.path, watcher(&node, token), old, &[Observation::Stalled(since)]).await.unwrap();
    };
    stalled(2, at(1)).await;
    stalled(2, None).await;
    stalled(1, at(2)).await;
    assert!(
        matches!(admit(&redis, &key, new, at(3)).await, Admission::KeyInUse { .. }),
        "the older word came too late"
    );
    stalled(3, at(4)).await;
    assert!(is_admitted(&admit(&redis, &key, new, at(5)).await), "the newer one counts");
}

#[tokio::test]
async fn with_take_over_the_newer_publisher_wins_over_a_healthy_one() {
    let (_server, redis) = stores::redis().await;
    let key = KeyProjection { on_conflict: OnConflict::TakeOver, ..key("live/takeover") };
    let (old, new) = (source(), source());
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, old, None).await;
    redis.confirm(&key.path, &node(), (old, SourceType::RtmpConn), &[]).await.unwrap();
    assert!(is_admitted(&admit(&redis, &key, new, None).await));
    let owed: Vec<_> = redis.kicks().await.unwrap().into_iter().map(|kick| (kick.source_id, kick.reason)).collect();
    assert_eq!(owed, [(old, EndReason::TakenOver)]);
}

#[tokio::test]
async fn revoking_ends_the_stream_and_is_never_undone_by_an_older_word() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id) = (key("live/revoke"), source());
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, source_id, None).await;
    let revoked = KeyProjection { stored_status: KeyStatus::Revoked, revision: Revision(2), ..key.clone() };
    let projected = redis.project_key(&revoked).await.unwrap();
    let ended = projected.ended().expect("the stream is taken off air");
    assert!(matches!(ended.state, StreamState::Ended { reason: EndReason::KeyRevoked, .. }));
    assert!(redis.owes_kick(&key.path, source_id).await.unwrap());

    assert_eq!(redis.project_key(&key).await.unwrap(), Projected::Kept { in_place: Revision(2) });
    assert_eq!(admit(&redis, &key, source(), None).await, Admission::KeyRevoked);
    assert_eq!(redis.project_key(&revoked).await.unwrap().ended(), None, "ending twice is one event");
    assert_eq!(kinds(&redis, &key.path).await, [EventKind::Admitted, EventKind::Ended]);
}

#[tokio::test]
async fn a_new_expiry_reaches_the_stream_that_is_on_air() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id) = (key("live/prolonged"), source());
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, source_id, None).await;
    redis.confirm(&key.path, &node(), (source_id, SourceType::RtmpConn), &[]).await.unwrap();
    let soon = KeyProjection { expires_at: at(5_000), revision: Revision(2), ..key.clone() };
    assert_eq!(redis.project_key(&soon).await.unwrap().ended(), None);
    assert!(matches!(redis.expire_at(&key.path, at(5_000)).await.unwrap(), Ending::Ended(_)));
}

#[tokio::test]
async fn a_stop_closes_the_path_for_the_cool_down() {
    let (_server, redis) = stores::redis().await;
    let (key, source_id, node) = (key("live/stopped"), source(), node());
    redis.project_key(&key).await.unwrap();
    let Admission::Admitted { stream_id, .. } = admit(&redis, &key, source_id, None).await else { panic!() };
    let stop = EndRequest {
        holder: Holder::Stream(stream_id),
        reason: EndReason::Stopped,
        afterwards: Afterwards::KickAndCoolDown(60_000),
        ..end(&key.path, source_id, &node)
    };
    assert!(matches!(redis.end(&stop).await.unwrap(), Ending::Ended(_)));
    let refused = admit(&redis, &key, source(), None).await;
    assert!(matches!(refused, Admission::CoolingDown { remaining_ms: 1..=60_000, .. }), "{refused:?}");
    assert_eq!(redis.end(&stop).await.unwrap(), Ending::NotHeld);
}

#[tokio::test]
async fn a_description_is_changed_only_from_what_was_read() {
    let (_server, redis) = stores::redis().await;
    let key = key("live/described");
    redis.project_key(&key).await.unwrap();
    admit(&redis, &key, source(), None).await;
    let read = redis.stream_on(&key.path).await.unwrap().unwrap();
    let info = StreamInfo { title: Some("Another".to_owned()), ..read.info.clone() };
    let Description::Written(written) = redis.describe(&read, &info).await.unwrap() else { panic!("not written") };
    assert_eq!(written.info, info);
    assert_eq!(redis.describe(&read, &info).await.unwrap(), Description::ChangedMeanwhile);
    assert_eq!(redis.describe(&written, &info).await.map(|d| matches!(d, Description::Written(_))), Ok(true));
}

#[tokio::test]
async fn what_is_revoked_stays_revoked_and_what_is_newer_is_told() {
    let (_server, redis) = stores::redis().await;
    let key = key("live/final");
    let of = |revision, stored_status| KeyProjection { revision: Revision(revision), stored_status, ..key.clone() };
    redis.project_key(&of(5, KeyStatus::Active)).await.unwrap();
    let older = redis.project_key(&of(3, KeyStatus::Disabled)).await.unwrap();
    assert_eq!(older, Projected::Kept { in_place: Revision(5) });
    let same = redis.project_key(&of(5, KeyStatus::Active)).await.unwrap();
    assert_eq!(same, Projected::Written { ended: None });
    redis.project_key(&of(6, KeyStatus::Revoked)).await.unwrap();
    let later = redis.project_key(&of(7, KeyStatus::Active)).await.unwrap();
    assert_eq!(later, Projected::Kept { in_place: Revision(6) });
    assert_eq!(admit(&redis, &key, source(), None).await, Admission::KeyRevoked);
    let wanted = [of(7, KeyStatus::Active), of(6, KeyStatus::Revoked), of(5, KeyStatus::Revoked)];
    let expected = [KeyInPlace::Revoked, KeyInPlace::Same, KeyInPlace::Newer(Revision(6))];
    assert_eq!(redis.keys_in_place(&wanted).await.unwrap(), expected);
}

#[tokio::test]
async fn the_version_moves_with_every_change_and_the_partition_lists_what_is_on_air() {
    let (_server, redis) = stores::redis().await;
    let keys: Vec<_> = (0..40).map(|n| key(&format!("live/{n}"))).collect();
    let before = redis.versions().await.unwrap();
    for key in &keys {
        redis.project_key(key).await.unwrap();
        admit(&redis, key, source(), None).await;
    }
    let after = redis.versions().await.unwrap();
    let touched: HashSet<usize> = keys.iter().map(|key| key.path.partition().index()).collect();
    for partition in Partition::all() {
        let index = partition.index();
        assert_eq!(before[index] != after[index], touched.contains(&index), "partition {partition}");
        let listed = redis.streams_of(partition).await.unwrap();
        assert_eq!(listed.len(), keys.iter().filter(|key| key.path.partition() == partition).count());
        assert!(listed.is_sorted_by(|left, right| left.epoch > right.epoch), "newest first");
    }
}

#[tokio::test]
async fn a_lease_has_one_holder_and_its_token_grows() {
    let (_server, redis) = stores::redis().await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let acquire = async |holder| redis.acquire_lease("job", holder, 60_000).await.unwrap();
    let is_others = |lease| matches!(lease, Lease::Other { remaining_ms: 1..=60_000 });
    let Lease::Held(first) = acquire(one).await else { panic!("it is free") };
    assert!(is_others(acquire(two).await));
    assert_eq!(acquire(one).await, Lease::Held(first), "renewed");
    redis.release_lease("job", two).await.unwrap();
    assert!(is_others(acquire(two).await), "only its holder gives it back");
    redis.release_lease("job", one).await.unwrap();
    let Lease::Held(second) = acquire(two).await else { panic!("it was given back") };
    assert!(second > first);
}

#[tokio::test]
async fn a_script_that_redis_forgot_is_sent_again() {
    let (server, redis) = stores::redis().await;
    let key = key("live/forgotten");
    redis.project_key(&key).await.unwrap();
    let _: String = raw_redis::command(&server, &["SCRIPT", "FLUSH"]).await;
    assert!(is_admitted(&admit(&redis, &key, source(), None).await));
}
