//! A master of a cluster that hangs, before the others give it up.

use onair::domain::Timestamp;
use serde_json::json;

use super::{
    failovers::keys_on_the_first_master,
    support::{
        redis_cluster::{ClusterOptions, RedisCluster},
        stack::Stack,
        stores::{redis_at, until},
        test_redis::TestRedis,
    },
};

/// The cause: what memory all partitions had was asked for in one question, which failed with the one that gave no answer. So did the
/// question for what is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_master_holds_is_revoked_and_expires_as_ever() {
    let redis = TestRedis::Cluster(RedisCluster::start(ClusterOptions::calm()).await);
    let stack = Stack::start_on(redis, |config| config.redis.command_timeout_ms = 200).await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let keys = keys_on_the_first_master(&stack, &replica, 2).await;
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
    let path = expiring.path.parse().expect("a path");
    until("the other has expired", async || matches!(redis.stream_on(&path).await, Ok(None))).await;

    stack.redis.servers()[1].resume().expect("it goes on");
    replica.until_off_air(&expiring.path).await;
    replica.stop().await;
}
