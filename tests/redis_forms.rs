//! The forms that Redis may have, on real servers: that they form, and that Onair speaks to each.

mod support;

use std::time::Duration;

use onair::{
    domain::{EndReason, NodeName, SourceId, StreamPath},
    redis::{Afterwards, EndRequest, Holder, KeyProjection, Redis},
};
use support::{
    records::{admit_request, key_projection},
    redis_cluster::{ClusterOptions, RedisCluster},
    redis_sentinels::{RedisSentinels, SentinelOptions},
    stack::Stack,
    stores::{self, redis_at},
    test_redis::TestRedis,
};
use uuid::Uuid;

async fn publishes(stack: Stack) {
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let mut publishers = Vec::new();
    for number in 0..40 {
        let key = replica.key(&format!("live/{number}")).await;
        publishers.push(node.publish(key.publisher()).await.admitted());
    }
    assert_eq!(replica.on_air().await.len(), 40);
    for publisher in publishers {
        publisher.disconnect();
    }
    replica.until_recorded_all(40).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_cluster_serves_publishers_of_all_its_partitions() {
    let began = std::time::Instant::now();
    let cluster = RedisCluster::start(ClusterOptions::failing_over()).await;
    println!("three masters and their replicas: {:?}", began.elapsed());
    publishes(Stack::start_on(TestRedis::Cluster(cluster), |_| ()).await).await;
}

#[tokio::test]
async fn a_master_that_sentinels_name_serves_publishers() {
    let began = std::time::Instant::now();
    let group = RedisSentinels::start(SentinelOptions::calm()).await;
    println!("a master, a replica and three sentinels: {:?}", began.elapsed());
    publishes(Stack::start_on(TestRedis::Sentinels(group), |_| ()).await).await;
}

/// Publishers whose server hangs wait for it with all the turns that there are to ask it. The others must not hear of that.
#[tokio::test]
async fn a_server_of_which_all_turns_are_taken_makes_nobody_wait_who_asks_another() {
    let cluster = RedisCluster::start(ClusterOptions::calm()).await;
    let redis = redis_at(&cluster.url()).await;
    let mut of_masters: Vec<(usize, StreamPath)> = Vec::new();
    for number in 0.. {
        let path: StreamPath = format!("live/{number}").parse().unwrap();
        let master = cluster.master_of(&format!("onair:{{{}}}:version", path.partition())).await;
        if !of_masters.iter().any(|(known, _)| *known == master) {
            of_masters.push((master, path));
        }
        if of_masters.len() == 3 {
            break;
        }
    }
    let turn =
        async |path| tokio::time::timeout(Duration::from_millis(200), redis.turn(path)).await.ok().map(Result::unwrap);
    let mut taken = Vec::new();
    while let Some(turn) = turn(&of_masters[0].1).await {
        taken.push(turn);
    }
    assert!(taken.len() >= 100, "{}", taken.len());
    for (_, path) in &of_masters[1..] {
        assert!(turn(path).await.is_some(), "{path} waits for another server");
    }
    taken.pop();
    assert!(turn(&of_masters[0].1).await.is_some());
}

/// A publisher comes.
async fn come(redis: &Redis, key: &KeyProjection) -> SourceId {
    let (node, source_id): (NodeName, _) = ("edge-1".parse().unwrap(), SourceId(Uuid::new_v4()));
    let request = admit_request(&key.path, key.secret_hash, &node, source_id);
    redis.admit(&request).await.unwrap();
    source_id
}

/// A publisher goes.
async fn go(redis: &Redis, key: &KeyProjection, source_id: SourceId) {
    let request = EndRequest {
        path: &key.path,
        holder: Holder::Source(source_id, &"edge-1".parse().unwrap()),
        reason: EndReason::Unpublished,
        afterwards: Afterwards::Gone,
        progress: None,
    };
    redis.end(&request).await.unwrap();
}

/// Which is what keeps a list that meets a change from waiting twice.
#[tokio::test]
async fn one_server_tells_what_changed_in_the_answer_that_tells_that_something_did() {
    let (_server, redis) = stores::redis().await;
    let keys: Vec<KeyProjection> = (0..40).map(|number| key_projection(&format!("live/{number}"))).collect();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    let before = redis.versions().await.unwrap();
    let mut sources = Vec::new();
    for key in &keys {
        sources.push(come(&redis, key).await);
    }
    go(&redis, &keys[7], sources[7]).await;
    let changes = redis.changes_since(&before).await.unwrap();
    assert_eq!(changes.versions, redis.versions().await.unwrap());
    let mut holders: Vec<_> = changes.told.into_iter().flat_map(|(_, holders)| holders).collect();
    holders.sort_by_key(|(path, _)| keys.iter().position(|key| key.path == *path));
    assert_eq!(holders.len(), keys.len());
    for (number, (path, stream)) in holders.into_iter().enumerate() {
        assert_eq!(path, keys[number].path);
        assert_eq!(stream.map(|stream| stream.source.id), (number != 7).then_some(sources[number]));
    }

    let after = changes.versions;
    let unchanged = redis.changes_since(&after).await.unwrap();
    assert!(unchanged.versions == after && unchanged.told.is_empty(), "{unchanged:?}");

    // So many changes that they would keep others waiting are left to be read.
    for _ in 0..40 {
        let source = come(&redis, &keys[7]).await;
        go(&redis, &keys[7], source).await;
    }
    come(&redis, &keys[7]).await;
    go(&redis, &keys[8], sources[8]).await;
    let changes = redis.changes_since(&after).await.unwrap();
    assert_eq!(changes.versions, redis.versions().await.unwrap());
    let told: Vec<_> = changes.told.iter().map(|(partition, _)| *partition).collect();
    assert_eq!(told, [keys[8].path.partition()]);
}
