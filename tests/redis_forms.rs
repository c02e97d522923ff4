//! The forms that Redis may have, on real servers: that they form, and that Onair speaks to each.

mod support;

use std::time::Duration;

use onair::domain::StreamPath;
use support::{
    redis_cluster::{ClusterOptions, RedisCluster},
    redis_sentinels::{RedisSentinels, SentinelOptions},
    stack::Stack,
    stores::redis_at,
    test_redis::TestRedis,
};

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
