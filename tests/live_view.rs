//! The live view: exact after every change, however it got there.

mod support;

use std::{collections::BTreeMap, io::Read as _};

use futures_util::future::join_all;
use onair::{
    domain::{
        BroadcasterId, EndReason, NodeName, OnConflict, Protocol, SourceId, SourceType, Stream, StreamState,
        StreamStateWord,
    },
    lifecycle::Tasks,
    redis::{AdmitRequest, Afterwards, EndRequest, Holder, KeyProjection, Redis, RedisError},
    streams::{ListFilter, LiveView, Snapshot, page},
};
use support::{
    raw_redis,
    records::{admit_request, key_projection},
    redis_monitor::RedisMonitor,
    stack::Stack,
    stores,
};
use uuid::Uuid;

const PATHS: usize = 60;

/// The key of a path, of one of four broadcasters.
fn key(path: usize) -> KeyProjection {
    let broadcaster_id = BroadcasterId(Uuid::from_u128(path as u128 % 4));
    KeyProjection { broadcaster_id, on_conflict: OnConflict::TakeOver, ..key_projection(&format!("live/{path}")) }
}

/// One publisher comes, goes live or leaves, as `step` says.
async fn change(redis: &Redis, keys: &[KeyProjection], on: &mut BTreeMap<usize, SourceId>, step: usize) {
    let node: NodeName = format!("edge-{}", step % 3).parse().unwrap();
    let path = (step * 7) % keys.len();
    let key = &keys[path];
    if let Some(source_id) = on.remove(&path) {
        let request = EndRequest {
            path: &key.path,
            holder: Holder::Stream(redis.stream_on(&key.path).await.unwrap().expect("it is held").id),
            reason: EndReason::Unpublished,
            afterwards: Afterwards::Gone,
            progress: None,
        };
        redis.end(&request).await.unwrap();
        assert_ne!(source_id, SourceId(Uuid::nil()));
        return;
    }
    let source_id = SourceId(Uuid::new_v4());
    let request =
        AdmitRequest { protocol: Protocol::Srt, ..admit_request(&key.path, key.secret_hash, &node, source_id) };
    redis.admit(&request).await.unwrap();
    if step.is_multiple_of(2) {
        redis.confirm(&key.path, &node, (source_id, SourceType::SrtConn), &[]).await.unwrap();
    }
    on.insert(path, source_id);
}

fn shown(snapshot: &Snapshot) -> Vec<(String, SourceId, bool)> {
    let shown: Vec<_> = snapshot
        .streams()
        .map(|stream| (stream.path.to_string(), stream.source.id, matches!(stream.state, StreamState::Live { .. })))
        .collect();
    for stream in snapshot.streams() {
        assert_eq!(snapshot.by_id(stream.id), Some(stream));
        assert_eq!(snapshot.by_path(&stream.path), Some(stream));
        assert!(snapshot.on_node(&stream.node).any(|other| other.id == stream.id));
    }
    assert_eq!(shown.len(), snapshot.len());
    lists_agree(snapshot);
    shown
}

const EVERYTHING: ListFilter =
    ListFilter { state: None, node: None, broadcaster_id: None, path: None, items_max: 1_000, after: None };

/// Whatever is asked for by some property is what has it, in the same order.
fn lists_agree(snapshot: &Snapshot) {
    let agree = |filter: ListFilter, has_it: &dyn Fn(&Stream) -> bool| {
        let having: Vec<_> = snapshot.streams().filter(|stream| has_it(stream)).map(|stream| stream.id).collect();
        let listed = page(snapshot, &filter);
        assert_eq!(listed.items.iter().map(|stream| stream.id).collect::<Vec<_>>(), having, "{filter:?}");
        assert_eq!(listed.total, having.len(), "{filter:?}");
        let first = page(snapshot, &ListFilter { items_max: 1, ..filter.clone() });
        assert_eq!(first.next.is_some(), having.len() > 1, "{filter:?}");
        let rest = first.next.map(|after| page(snapshot, &ListFilter { after: Some(after), ..filter }).items);
        let rest: Vec<_> = rest.unwrap_or_default().iter().map(|stream| stream.id).collect();
        assert_eq!(rest, having.get(1..).unwrap_or_default());
    };
    agree(EVERYTHING, &|_| true);
    for state in [StreamStateWord::Connecting, StreamStateWord::Live] {
        agree(ListFilter { state: Some(state), ..EVERYTHING }, &|stream| stream.state.word() == state);
        for node in snapshot.nodes() {
            let filter = ListFilter { state: Some(state), node: Some(node.clone()), ..EVERYTHING };
            agree(filter, &|stream| stream.state.word() == state && stream.node == node);
        }
    }
    for any in snapshot.streams().take(3) {
        let by_broadcaster = ListFilter { broadcaster_id: Some(any.broadcaster_id), ..EVERYTHING };
        agree(by_broadcaster.clone(), &|stream| stream.broadcaster_id == any.broadcaster_id);
        agree(ListFilter { path: Some(any.path.clone()), ..EVERYTHING }, &|stream| stream.path == any.path);
        let elsewhere = ListFilter { path: Some("live/nowhere".parse().unwrap()), ..by_broadcaster };
        agree(elsewhere, &|_| false);
    }
}

#[tokio::test]
async fn a_view_that_followed_every_change_equals_one_that_reads_everything() {
    let (_server, redis) = stores::redis().await;
    let tasks = Tasks::new();
    let keys: Vec<_> = (0..PATHS).map(key).collect();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    let followed = LiveView::start(redis.clone(), &tasks);
    let mut on = BTreeMap::new();
    for step in 0..600 {
        change(&redis, &keys, &mut on, step).await;
        let view = followed.now().await.unwrap();
        assert!(view.stale.is_none());
        assert_eq!(view.snapshot.len(), on.len(), "step {step}: the very next view is exact");
        if step % 100 == 99 {
            let fresh = LiveView::start(redis.clone(), &tasks).now().await.unwrap();
            assert_eq!(shown(&view.snapshot), shown(&fresh.snapshot), "step {step}");
        }
    }
    tasks.abort();
}

/// How many commands about versions Redis was sent since its monitors listen: one about all of them, or one for each in a cluster.
async fn checks_heard(monitors: &[RedisMonitor]) -> usize {
    let heard = join_all(monitors.iter().map(RedisMonitor::heard)).await.concat();
    heard.iter().filter(|line| line.contains(":version\"") && !line.contains("[0 lua]")).count()
}

#[tokio::test]
async fn all_who_ask_at_once_share_the_round_trips_of_one() {
    let (server, redis) = stores::redis().await;
    let tasks = Tasks::new();
    let view = LiveView::start(redis, &tasks);
    // A Redis that was started a moment ago is sent the scripts themselves, once.
    view.now().await.unwrap();
    let monitors = join_all(server.servers().iter().map(RedisMonitor::start)).await;
    view.now().await.unwrap();
    let of_one = checks_heard(&monitors).await;
    assert!(of_one > 0, "it asks Redis, however little has changed");
    for found in join_all((0..1_000).map(|_| view.now())).await {
        assert_eq!(found.unwrap().stale, None);
    }
    let of_thousand = checks_heard(&monitors).await - of_one;
    assert!((1..=2 * of_one).contains(&of_thousand), "{of_thousand} commands for a thousand, {of_one} for one");
    tasks.abort();
}

#[tokio::test]
async fn a_view_that_slept_through_thousands_of_changes_reads_everything_again() {
    let (_server, redis) = stores::redis().await;
    let tasks = Tasks::new();
    // Few paths, so that each partition that is concerned changes far more often than Redis keeps track of.
    let keys: Vec<_> = (0..3).map(key).collect();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    let sleeper = LiveView::start(redis.clone(), &tasks);
    let mut on = BTreeMap::new();
    change(&redis, &keys, &mut on, 0).await;
    assert_eq!(sleeper.now().await.unwrap().snapshot.len(), 1);
    for step in 1..2_600 {
        change(&redis, &keys, &mut on, step).await;
    }
    let fresh = LiveView::start(redis.clone(), &tasks).now().await.unwrap();
    assert_eq!(shown(&sleeper.now().await.unwrap().snapshot), shown(&fresh.snapshot));
    tasks.abort();
}

#[tokio::test]
async fn a_redis_that_lost_its_memory_is_not_taken_for_one_where_nothing_changed() {
    let (mut server, redis) = stores::redis().await;
    let tasks = Tasks::new();
    let keys: Vec<_> = (0..4).map(key).collect();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    let view = LiveView::start(redis.clone(), &tasks);
    let mut on = BTreeMap::new();
    for step in 0..4 {
        change(&redis, &keys, &mut on, step).await;
    }
    assert_eq!(view.now().await.unwrap().snapshot.len(), 4);

    server.restart().await.unwrap();
    stores::until("Redis answers again", async || redis.ping().await.is_ok()).await;
    let remembered = view.now().await.unwrap();
    assert_eq!((remembered.snapshot.len(), remembered.stale), (4, Some(RedisError::MemoryLost)));
    stores::open_partitions(&redis).await;
    let mut on = BTreeMap::new();
    for key in &keys {
        redis.project_key(key).await.unwrap();
    }
    change(&redis, &keys, &mut on, 0).await;
    assert_eq!(view.now().await.unwrap().snapshot.len(), 1, "only what this Redis knows");
    tasks.abort();
}

#[tokio::test]
async fn a_redis_that_lost_its_last_writes_is_not_believed_that_a_stream_is_gone() {
    let (server, redis) = stores::redis().await;
    let tasks = Tasks::new();
    let keys = [key(0)];
    redis.project_key(&keys[0]).await.unwrap();
    let path = keys[0].path.to_string();
    let of_partition = |name: &str| format!("onair:{{{}}}:{name}", keys[0].path.partition());
    let version: String = raw_redis::command(&server, &["GET", &of_partition("version")]).await;
    let view = LiveView::start(redis.clone(), &tasks);
    change(&redis, &keys, &mut BTreeMap::new(), 0).await;
    assert_eq!(view.now().await.unwrap().snapshot.len(), 1);

    // As a replica that takes over has it that did not hear of the admission.
    let _: u64 = raw_redis::command(&server, &["DEL", &of_partition(&format!("slot:{path}"))]).await;
    for list in ["live", "changes"] {
        let _: u64 = raw_redis::command(&server, &["ZREM", &of_partition(list), &path]).await;
    }
    let _: String = raw_redis::command(&server, &["SET", &of_partition("version"), &version]).await;
    let _: u64 = raw_redis::command(&server, &["HSET", &of_partition("memory"), "server", "another"]).await;
    for _ in 0..2 {
        let remembered = view.now().await.unwrap();
        assert_eq!((remembered.snapshot.len(), remembered.stale), (1, Some(RedisError::MemoryLost)));
    }

    // Opened again, by a clock that is far behind, after nobody remembered it.
    stores::open_partitions(&redis).await;
    let _: String = raw_redis::command(&server, &["SET", &of_partition("version"), "1000"]).await;
    let whole = view.now().await.unwrap();
    assert_eq!((whole.snapshot.len(), whole.stale), (0, None));
    tasks.abort();
}

#[tokio::test]
async fn the_same_list_is_not_sent_twice_and_is_compressed_for_those_who_take_it() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let mut keys = Vec::new();
    for number in 0..5 {
        let key = replica.key(&format!("live/{number}")).await;
        let publish = support::mediamtx::PublishRequest::rtmp_query_key(&key.path, &key.secret);
        keys.push(node.publish(publish).await.admitted());
    }
    stores::until("all are live", async || replica.on_air().await.iter().all(|stream| stream["state"] == "live")).await;

    let ask = async |name: &'static str, value: String| {
        let request = replica.api.request(reqwest::Method::GET, "/v1/streams").header(name, value);
        replica.api.send(request).await
    };
    let first = replica.api.get("/v1/streams").await.expect(200);
    let etag = first.headers["etag"].to_str().unwrap().to_owned();
    let again = ask("if-none-match", etag.clone()).await.expect(304);
    assert_eq!(again.text, "");
    assert_eq!(again.headers["etag"].to_str().unwrap(), etag);

    let other = stack.replica().await;
    let elsewhere = other.api.get("/v1/streams").await.expect(200);
    assert_eq!(elsewhere.headers["etag"].to_str().unwrap(), etag, "every replica gives the same name to the same list");

    // Not through the client that reads every answer: it takes no compressed ones.
    let compressed = replica.api.request(reqwest::Method::GET, "/v1/streams").header("accept-encoding", "gzip");
    let compressed = compressed.send().await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    let mut text = String::new();
    let bytes = compressed.bytes().await.unwrap();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["items"], first.json["items"]);

    keys[0].disconnect();
    keys[0].until_gone().await;
    stores::until("the list is another", async || ask("if-none-match", etag.clone()).await.status == 200).await;
    for replica in [replica, other] {
        replica.stop().await;
    }
}
