//! A master of a cluster that hangs, before the others give it up, or refuses: what others hold goes on as ever.

use std::sync::Arc;

use onair::{
    config::Config,
    dev::servers::PrivateRedis,
    domain::{Partition, StreamPath, Timestamp},
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{
    failovers::{keys_on_master, paths_on_master},
    support::{
        mediamtx::{MediaMtx, PublishOutcome},
        raw_redis,
        redis_cluster::{ClusterOptions, RedisCluster},
        stack::{Replica, Stack, TestKey},
        stores::{redis_at, until},
        test_redis::TestRedis,
    },
};

/// A cluster of three masters, a replica of ours, and a node that asks it.
async fn start(change: impl FnOnce(&mut Config)) -> (Stack, Replica, Arc<MediaMtx>) {
    let redis = TestRedis::Cluster(RedisCluster::start(ClusterOptions::calm()).await);
    let stack = Stack::start_on(redis, change).await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    (stack, replica, node)
}

fn path_of(key: &TestKey) -> StreamPath {
    key.path.parse().expect("a path")
}

fn partition_of(key: &TestKey) -> usize {
    path_of(key).partition().index()
}

/// The cause: what memory all partitions had was asked for in one question, which failed with the one that gave no answer. So did the
/// question for what is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_master_holds_is_revoked_and_expires_as_ever() {
    let (stack, replica, node) = start(|config| config.redis.command_timeout_ms = 200).await;
    let keys = keys_on_master(0, &stack, &replica, 2).await;
    let [revoked, expiring] = &keys[..] else { unreachable!("two were made") };
    let publisher = node.publish(revoked.publisher()).await.admitted();
    let _expiring_publisher = node.publish(expiring.publisher()).await.admitted();
    for key in &keys {
        replica.until_live(&key.path).await;
    }
    let redis = redis_at(&stack.redis.url()).await;
    let expiry = json!({"expires_at": Timestamp::now().plus_ms(3_000).to_string()});
    replica.api.patch(&format!("/v1/stream-keys/{}", expiring.id), &expiry).await.expect(200);

    stack.redis.servers()[1].suspend().expect("it stops");
    replica.api.act(&format!("/v1/stream-keys/{}/revoke", revoked.id)).await.expect(200);
    publisher.until_gone().await;
    let refused = node.publish(revoked.publisher()).await.refused();
    assert!(refused.body.contains("key_revoked"), "{refused:?}");
    let path = path_of(expiring);
    until("the other has expired", async || matches!(redis.stream_on(&path).await, Ok(None))).await;

    stack.redis.servers()[1].resume().expect("it goes on");
    replica.until_off_air(&expiring.path).await;
    replica.stop().await;
}

/// From now on it has no room for another byte.
async fn fill(master: &PrivateRedis) {
    let _: String = raw_redis::command(master, &["CONFIG", "SET", "maxmemory", "1"]).await;
}

/// Has replicas note with the next look that they saw the partitions of a master, which they do every five seconds.
async fn forget_who_looked(master: &PrivateRedis) {
    for partition in Partition::all() {
        let memory = format!("onair:{{{partition}}}:memory");
        // Of a partition that another holds it says so.
        let fields: Vec<String> = raw_redis::try_command(master, &["HKEYS", &memory]).await.unwrap_or_default();
        for field in fields.iter().filter(|field| field.starts_with("seen:")) {
            let _: u64 = raw_redis::command(master, &["HDEL", &memory, field]).await;
        }
    }
}

/// The cause: the first refusal ended the work on all that was due, and what all partitions were asked at once failed with one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_master_is_full_what_another_holds_expires_and_is_mended_as_ever() {
    let (stack, replica, node) = start(|_| ()).await;
    // What is due is worked through in the order of partitions. The second master has the leases: without those nothing is mended.
    let of_full = keys_on_master(2, &stack, &replica, 8).await.into_iter().min_by_key(partition_of).expect("a key");
    let others = keys_on_master(0, &stack, &replica, 8).await;
    let other = others.iter().max_by_key(|key| partition_of(key)).expect("a key");
    assert!(partition_of(&of_full) < partition_of(other));
    let mut publishers = Vec::new();
    let expiry = json!({"expires_at": Timestamp::now().plus_ms(5_000).to_string()});
    for key in [&of_full, other] {
        publishers.push(node.publish(key.publisher()).await.admitted());
        replica.until_live(&key.path).await;
        replica.api.patch(&format!("/v1/stream-keys/{}", key.id), &expiry).await.expect(200);
    }

    let full = &stack.redis.servers()[2];
    fill(full).await;
    forget_who_looked(full).await;
    let redis = redis_at(&stack.redis.url()).await;
    until("the other has expired", async || matches!(redis.stream_on(&path_of(other)).await, Ok(None))).await;
    assert!(
        redis.stream_on(&path_of(&of_full)).await.is_ok_and(|stream| stream.is_some()),
        "its master takes no write"
    );

    raw_redis::forget_everything(&stack.redis.servers()[0]).await;
    let next = others.iter().find(|key| key.path != other.path).expect("there are several");
    let is_admitted = async || matches!(node.publish(next.publisher()).await, PublishOutcome::Admitted(_));
    until("the other master admits again", is_admitted).await;
    let _: String = raw_redis::command(full, &["CONFIG", "SET", "maxmemory", "0"]).await;
    replica.until_off_air(&of_full.path).await;
    replica.stop().await;
}

/// The cause: the oldest changes were read again and again, as many as are read at once, while their master gave no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_behind_hundreds_that_wait_for_a_silent_master_takes_effect() {
    let (stack, replica, node) = start(|config| config.redis.command_timeout_ms = 200).await;
    let key = keys_on_master(0, &stack, &replica, 1).await.remove(0);
    let publisher = node.publish(key.publisher()).await.admitted();
    replica.until_live(&key.path).await;
    let broadcaster = Uuid::parse_str(&replica.broadcaster("Many").await).unwrap();
    let behind = paths_on_master(1, &stack, 600).await;

    stack.redis.servers()[1].suspend().expect("it stops");
    let mut connection = PgConnection::connect(stack.config.postgres.url.reveal()).await.unwrap();
    let rows = "INSERT INTO stream_keys (id, broadcaster_id, path, secret_hash, hint, metadata, on_conflict, playback, status, updated_at)
        SELECT gen_random_uuid(), $1, path, sha256(path::bytea), 'abcd', '{}', 'reject', 'public', 'active', now() - interval '1 minute'
        FROM unnest($2::text[]) AS path";
    sqlx::query(rows).bind(broadcaster).bind(behind).execute(&mut connection).await.unwrap();
    // What a process leaves that is killed after the commit.
    let revoke = "UPDATE stream_keys SET status = 'revoked', revoked_at = now(), revision = revision + 1, updated_at = now() WHERE id = $1";
    sqlx::query(revoke).bind(Uuid::parse_str(&key.id).unwrap()).execute(&mut connection).await.unwrap();
    let redis = redis_at(&stack.redis.url()).await;
    until("it is in effect", async || matches!(redis.stream_on(&path_of(&key)).await, Ok(None))).await;
    publisher.until_gone().await;
    stack.redis.servers()[1].resume().expect("it goes on");
    replica.stop().await;
}
