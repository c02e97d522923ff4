//! Partitions that do not hold all that they must: who is refused, what comes back to its path, and when they open.

mod support;

use std::time::{Duration, Instant};

use onair::{
    dev::servers::{Membership, Persistence, PrivateRedis, RedisOptions, RedisRole},
    domain::{
        EndReason, Epoch, KeyStatus, NodeName, Partition, Revision, SecretHash, SourceId, SourceType, Stream,
        StreamPath, StreamState, Timestamp,
    },
    redis::{
        Admission, AdmitAnswer, AdmitRequest, Afterwards, Closed, EndRequest, Ending, Holder, KeyProjection, Opening,
        Redis, RedisError, RememberedBy, Restore, Restored,
    },
};
use support::{
    raw_redis,
    records::{admit_request, key_projection},
    stores,
    test_redis::TestRedis,
};
use uuid::Uuid;

fn source() -> SourceId {
    SourceId(Uuid::new_v4())
}

fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

async fn ask(redis: &Redis, key: &KeyProjection, source_id: Option<SourceId>) -> Result<AdmitAnswer, RedisError> {
    let node = node();
    let request =
        AdmitRequest { connecting_timeout_ms: 10_000, ..admit_request(&key.path, key.secret_hash, &node, source_id) };
    redis.admit(&request).await
}

async fn admit(redis: &Redis, key: &KeyProjection) -> Admission {
    ask(redis, key, Some(source())).await.unwrap().admission
}

async fn events(redis: &Redis, path: &StreamPath) -> Vec<Stream> {
    let batch = redis.read_events(path.partition(), 1_000).await.unwrap();
    batch.events.into_iter().map(|event| event.stream).filter(|stream| stream.path == *path).collect()
}

fn restore<'a>(stream: &'a Stream, key: &KeyProjection, remembered_by: RememberedBy) -> Restore<'a> {
    Restore { stream, secret_hash: key.secret_hash, remembered_by, connecting_timeout_ms: 10_000 }
}

/// A stream that was on air on the key's path until a moment ago.
async fn lost_stream(redis: &Redis, key: &KeyProjection) -> Stream {
    let (source_id, node) = (source(), node());
    ask(redis, key, Some(source_id)).await.unwrap();
    redis.confirm(&key.path, &node, (source_id, SourceType::RtmpConn), &[]).await.unwrap();
    let stream = redis.stream_on(&key.path).await.unwrap().unwrap();
    let left = EndRequest {
        path: &key.path,
        holder: Holder::Source(source_id, &node),
        reason: EndReason::Unpublished,
        afterwards: Afterwards::Gone,
        progress: None,
    };
    assert!(matches!(redis.end(&left).await.unwrap(), Ending::Ended(_)));
    stream
}

/// Takes its memory from a partition, as a server that took over would be treated.
async fn close(server: &TestRedis, redis: &Redis, path: &StreamPath) -> Closed {
    let version = format!("onair:{{{}}}:version", path.partition());
    let _: u64 = raw_redis::command(server, &["DEL", &version]).await;
    redis.closed_partitions().await.unwrap().pop().expect("it is closed")
}

#[tokio::test]
async fn a_lost_stream_is_restored_to_a_free_path_and_to_no_other() {
    let (_server, redis) = stores::redis().await;
    let key = key_projection("live/restored");
    redis.project_key(&key).await.unwrap();
    let stream = lost_stream(&redis, &key).await;
    let by_history = restore(&stream, &key, RememberedBy::History);

    assert_eq!(redis.restore(&by_history).await.unwrap(), Restored::Restored);
    assert_eq!(redis.stream_on(&key.path).await.unwrap(), Some(stream.clone()));
    assert!(matches!(admit(&redis, &key).await, Admission::KeyInUse { .. }));
    let Restored::Held(holding) = redis.restore(&by_history).await.unwrap() else { panic!("not held") };
    assert_eq!((holding.id, holding.epoch, holding.revision), (stream.id, stream.epoch, stream.revision));
    assert_eq!(events(&redis, &key.path).await.len(), 3, "what the history remembers is no new event");

    let absent = KeyProjection { secret_hash: SecretHash([7; 32]), ..key.clone() };
    let without_key = redis.restore(&restore(&stream, &absent, RememberedBy::History)).await.unwrap();
    assert_eq!(without_key, Restored::KeyAbsent);
}

#[tokio::test]
async fn a_lost_stream_of_a_dead_key_ends_where_it_would_have_come_back() {
    let (_server, redis) = stores::redis().await;
    let cases = [
        ("live/gone", KeyStatus::Revoked, None, EndReason::KeyRevoked),
        ("live/off", KeyStatus::Disabled, None, EndReason::KeyDisabled),
        ("live/late", KeyStatus::Active, Some(Timestamp::from_ms(1_000)), EndReason::KeyExpired),
    ];
    for (path, stored_status, expires_at, reason) in cases {
        let key = key_projection(path);
        redis.project_key(&key).await.unwrap();
        let stream = lost_stream(&redis, &key).await;
        let changed = KeyProjection { stored_status, expires_at, revision: Revision(2), ..key.clone() };
        redis.project_key(&changed).await.unwrap();
        let restored = redis.restore(&restore(&stream, &key, RememberedBy::History)).await.unwrap();
        let Restored::Ended(ended) = restored else { panic!("{path}: {restored:?}") };
        assert!(matches!(ended.state, StreamState::Ended { reason: why, .. } if why == reason), "{path}");
        assert_eq!(redis.stream_on(&key.path).await.unwrap(), None);
        assert!(redis.owes_kick(&key.path, stream.source.id).await.unwrap(), "{path}: its source may still be there");
    }
}

#[tokio::test]
async fn a_closed_partition_admits_nobody_until_it_is_opened_by_whoever_closed_it() {
    let (server, redis) = stores::redis().await;
    let key = key_projection("live/closed");
    redis.project_key(&key).await.unwrap();
    let before = redis.versions().await.unwrap();
    let closed = close(&server, &redis, &key.path).await;
    assert_eq!(closed.partition, key.path.partition());
    assert!(closed.whole_until.is_some(), "what was there is there");

    for source_id in [Some(source()), None] {
        assert_eq!(ask(&redis, &key, source_id).await, Err(RedisError::MemoryLost));
    }
    assert_eq!(
        redis.playback_of(&key.path).await,
        Err(RedisError::MemoryLost),
        "a viewer is not told that nothing is on air"
    );
    assert_eq!(
        redis.stream_certainly_on(&key.path).await,
        Err(RedisError::MemoryLost),
        "a publisher who is not known is not taken for one whom nobody admitted"
    );
    let unknown = KeyProjection { secret_hash: SecretHash([7; 32]), ..key.clone() };
    let answer = ask(&redis, &unknown, Some(source())).await;
    assert_eq!(answer, Err(RedisError::MemoryLost), "no key is looked up meanwhile");

    assert_eq!(
        redis.closed_partitions().await.unwrap()[0].partition,
        closed.partition,
        "asking again closes nothing anew"
    );
    let epoch_max = Epoch(8_000_000_000_000_000);
    assert_eq!(redis.open_partition(&closed, Some(epoch_max)).await.unwrap(), Opening::Opened);
    assert_eq!(redis.open_partition(&closed, None).await.unwrap(), Opening::LostAgain, "only once");
    let Admission::Admitted { epoch, .. } = admit(&redis, &key).await else { panic!("not admitted") };
    assert!(epoch > epoch_max && epoch.0.unsigned_abs() > before[key.path.partition().index()]);
}

#[tokio::test]
async fn a_partition_stays_closed_while_a_replica_puts_back_what_it_remembers() {
    let (server, redis) = stores::redis().await;
    let path: StreamPath = "live/awaited".parse().unwrap();
    let (quick, dead) = (Uuid::now_v7(), Uuid::now_v7());
    for _ in 0..2 {
        let closed = close(&server, &redis, &path).await;
        redis.closed_partitions_to_fill(quick).await.unwrap();
        assert_eq!(redis.open_partition(&closed, None).await, Ok(Opening::Awaited));
        redis.note_put_back(std::slice::from_ref(&closed), quick).await.unwrap();
        redis.closed_partitions_to_fill(quick).await.unwrap();
        assert_eq!(redis.open_partition(&closed, None).await, Ok(Opening::Opened), "looking again takes nothing back");
    }
    assert_eq!(redis.closed_partitions_to_fill(dead).await, Ok(Vec::new()));
    let memory = format!("onair:{{{}}}:memory", path.partition());
    let seen_ms: i64 = raw_redis::command(&server, &["HGET", &memory, &format!("seen:{}", dead.simple())]).await;
    for (name, ago_ms) in [("before", 11_000), ("long-before", 61_000), ("ahead", -61_000)] {
        let at_ms = (seen_ms - ago_ms).to_string();
        let _: u64 = raw_redis::command(&server, &["HSET", &memory, &format!("seen:{name}"), &at_ms]).await;
    }
    let closed = close(&server, &redis, &path).await;
    let began = Instant::now();
    stores::until("whoever died is given up", async || {
        redis.open_partition(&closed, None).await == Ok(Opening::Opened)
    })
    .await;
    assert!(began.elapsed() >= Duration::from_millis(1_900), "{:?}", began.elapsed());
    let fields: Vec<String> = raw_redis::command(&server, &["HKEYS", &memory]).await;
    assert!(fields.iter().all(|field| !field.starts_with("awaits:")), "nothing of it stays: {fields:?}");

    let (gone, sick) = (Uuid::now_v7(), Uuid::now_v7());
    for replica in [quick, dead, gone] {
        assert_eq!(redis.closed_partitions_to_fill(replica).await, Ok(Vec::new()));
    }
    redis.note_gone(gone).await.unwrap();
    let closed = close(&server, &redis, &path).await;
    redis.closed_partitions_to_fill(sick).await.unwrap();
    for replica in [quick, dead] {
        assert_eq!(
            redis.open_partition(&closed, None).await,
            Ok(Opening::Awaited),
            "who was there before is waited for"
        );
        redis.note_put_back(std::slice::from_ref(&closed), replica).await.unwrap();
    }
    assert_eq!(redis.open_partition(&closed, None).await, Ok(Opening::Awaited));
    redis.note_gone(sick).await.unwrap();
    assert_eq!(redis.open_partition(&closed, None).await, Ok(Opening::Opened), "who had gone long before is not");
}

#[tokio::test]
async fn in_a_closed_partition_the_newest_of_what_is_remembered_stays_whoever_comes_first() {
    let (server, redis) = stores::redis().await;
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let key = key_projection(&format!("live/{order:?}").replace(['[', ']', ',', ' '], ""));
        redis.project_key(&key).await.unwrap();
        let older = lost_stream(&redis, &key).await;
        let newer = lost_stream(&redis, &key).await;
        let connecting = Stream {
            revision: Revision(1),
            state: StreamState::Connecting { deadline: older.admitted_at },
            ..newer.clone()
        };
        let closed = close(&server, &redis, &key.path).await;
        let remembered = [&older, &connecting, &newer];
        for number in order {
            redis.restore(&restore(remembered[number], &key, RememberedBy::Replica)).await.unwrap();
        }
        assert_eq!(redis.stream_on(&key.path).await.unwrap().as_ref(), Some(&newer), "{order:?}");
        redis.open_partition(&closed, None).await.unwrap();
        redis.restore(&restore(&older, &key, RememberedBy::Replica)).await.unwrap();
        assert!(matches!(admit(&redis, &key).await, Admission::KeyInUse { .. }));
        let told = events(&redis, &key.path).await;
        assert!(told.contains(&newer), "the history learns of it: {told:#?}");
    }
}

#[tokio::test]
async fn a_stream_that_was_not_seen_online_gets_its_time_again() {
    let (_server, redis) = stores::redis().await;
    let key = key_projection("live/patience");
    redis.project_key(&key).await.unwrap();
    let lost = lost_stream(&redis, &key).await;
    let stream = Stream { state: StreamState::Connecting { deadline: Timestamp::from_ms(1_000) }, ..lost };
    redis.restore(&restore(&stream, &key, RememberedBy::History)).await.unwrap();
    assert_eq!(redis.expire(&key.path).await.unwrap(), Ending::NotDue, "that it came online may be what was lost");
    assert!(matches!(admit(&redis, &key).await, Admission::KeyInUse { .. }));
}

#[tokio::test]
async fn a_server_that_started_anew_is_not_trusted_to_hold_everything() {
    for persistence in [Persistence::None, Persistence::AppendOnly] {
        let options = RedisOptions { persistence, ..RedisOptions::scratch() };
        let mut server = PrivateRedis::start(options).await.unwrap();
        let redis = stores::redis_at(&server.url()).await;
        stores::open_partitions(&redis).await;
        let key = key_projection("live/restarted");
        redis.project_key(&key).await.unwrap();
        server.restart().await.unwrap();
        stores::until("Redis answers again", async || redis.ping().await.is_ok()).await;
        assert_eq!(
            redis.stream_certainly_on(&key.path).await,
            Err(RedisError::MemoryLost),
            "{persistence:?}: also before anybody has looked, who is not there may only be forgotten"
        );
        assert_eq!(ask(&redis, &key, Some(source())).await, Err(RedisError::MemoryLost), "{persistence:?}");
        let closed = redis.closed_partitions().await.unwrap();
        assert_eq!(closed.len(), usize::from(Partition::COUNT));
        let is_whole = |closed: &Closed| closed.whole_until.is_some() == (persistence == Persistence::AppendOnly);
        assert!(closed.iter().all(is_whole), "{persistence:?}: {closed:?}");
        stores::open_partitions(&redis).await;
        redis.project_key(&key).await.unwrap();
        assert!(matches!(admit(&redis, &key).await, Admission::Admitted { .. }));
    }
}

/// A server that others may follow, and that may follow others.
async fn member(password: &str) -> PrivateRedis {
    let settings = format!("masterauth {password}\nrepl-diskless-sync-delay 0\n");
    let role = RedisRole::Member(Membership { password: password.to_owned(), settings, further_ports: &[] });
    let options = RedisOptions { persistence: Persistence::None, ..RedisOptions::scratch_at_port() };
    PrivateRedis::start_as(role, options).await.unwrap()
}

async fn follow(replica: &PrivateRedis, master: &PrivateRedis) {
    let port = master.port().unwrap().to_string();
    let _: String = raw_redis::command(replica, &["REPLICAOF", "127.0.0.1", &port]).await;
    stores::until("the replica has caught up", async || {
        let report: String = raw_redis::command(replica, &["INFO", "replication"]).await;
        report.contains("master_link_status:up")
    })
    .await;
}

async fn promote(replica: &PrivateRedis) {
    let _: String = raw_redis::command(replica, &["REPLICAOF", "NO", "ONE"]).await;
}

/// It keeps its run id, the scripts and our connections, and it has lost what its successor had not heard of.
#[tokio::test]
async fn a_server_that_was_demoted_and_promoted_again_is_not_trusted_although_it_ran_all_the_time() {
    let password = Uuid::new_v4().simple().to_string();
    let (first, second) = (member(&password).await, member(&password).await);
    follow(&second, &first).await;
    let redis = stores::redis_at(&first.url()).await;
    stores::open_partitions(&redis).await;
    let key = key_projection("live/unheard");
    redis.project_key(&key).await.unwrap();
    assert!(matches!(ask(&redis, &key, None).await.unwrap().admission, Admission::Checked));
    let replicated = async || raw_redis::command::<u64>(&second, &["DBSIZE"]).await;
    let written: u64 = raw_redis::command(&first, &["DBSIZE"]).await;
    stores::until("the replica has heard of the key", async || replicated().await == written).await;

    promote(&second).await;
    let publisher = source();
    assert!(matches!(ask(&redis, &key, Some(publisher)).await.unwrap().admission, Admission::Admitted { .. }));
    follow(&first, &second).await;
    promote(&first).await;

    let slot = format!("onair:{{{}}}:slot:live/unheard", key.path.partition());
    assert_eq!(raw_redis::command::<u64>(&first, &["EXISTS", &slot]).await, 0, "it has lost the publisher");
    assert_eq!(ask(&redis, &key, Some(source())).await, Err(RedisError::MemoryLost), "nobody gets in beside it");
    assert_eq!(ask(&redis, &key, None).await, Err(RedisError::MemoryLost), "nor is it said that anybody might");
    let closed = redis.closed_partitions().await.unwrap();
    assert_eq!(closed.len(), usize::from(Partition::COUNT));
    promote_again(&first, &second).await;
    for closed in &closed {
        let opening = redis.open_partition(closed, None).await;
        assert_eq!(
            opening,
            Ok(Opening::LostAgain),
            "what was mended before it was demoted once more may be lost as well"
        );
    }
    stores::open_partitions(&redis).await;
    assert!(matches!(admit(&redis, &key).await, Admission::Admitted { .. }));
}

async fn promote_again(first: &PrivateRedis, second: &PrivateRedis) {
    follow(second, first).await;
    promote(second).await;
    follow(first, second).await;
    promote(first).await;
}

/// Two versions beside each other: the one before this one names no promotion, and takes no notice of one.
#[tokio::test]
async fn a_partition_that_an_older_version_opened_is_open() {
    let (server, redis) = stores::redis().await;
    let key = key_projection("live/older");
    redis.project_key(&key).await.unwrap();
    let memory = format!("onair:{{{}}}:memory", key.path.partition());
    let opened: String = raw_redis::command(&server, &["HGET", &memory, "opened"]).await;
    let (version, promotion) = opened.split_once(':').unwrap();
    assert_eq!(promotion.len(), 40, "{opened}");
    let _: u64 = raw_redis::command(&server, &["HSET", &memory, "opened", version]).await;
    assert_eq!(redis.closed_partitions().await, Ok(Vec::new()));
    assert!(matches!(admit(&redis, &key).await, Admission::Admitted { .. }));
    let _: u64 = raw_redis::command(&server, &["HSET", &memory, "server", "another"]).await;
    assert_eq!(ask(&redis, &key, None).await, Err(RedisError::MemoryLost));
}
