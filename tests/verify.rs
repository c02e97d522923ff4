//! `onair verify` names everything on which Redis, Postgres and the nodes do not agree, and `onair rebuild` makes them agree.

mod support;

use std::time::{Duration, Instant};

use onair::{
    domain::{Partition, StreamPath},
    redis::Redis,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::{
    measured::{say, within},
    mediamtx::{ApiAuth, PublishRequest, Publisher},
    program, raw_redis,
    stack::{Replica, Stack, TestKey},
    stores::{redis_at, until},
    stranger::smuggle,
    waiting::id_of,
};
use uuid::Uuid;

/// Runs a command on the stores of a test.
async fn onair(stack: &Stack, name: &str) -> (Option<i32>, String) {
    program::run(program::onair(&stack.config, &[name])).await
}

async fn sql(stack: &Stack, statement: &'static str) {
    let mut connection = PgConnection::connect(stack.config.postgres.url.reveal()).await.unwrap();
    let done = sqlx::query(statement).execute(&mut connection).await.unwrap();
    assert_eq!(done.rows_affected(), 1, "{statement}");
}

fn in_partition_of(path: &str, name: &str) -> String {
    let partition: Partition = path.parse::<StreamPath>().unwrap().partition();
    format!("onair:{{{partition}}}:{name}")
}

async fn redis(stack: &Stack, command: &[&str]) {
    let _: fred::types::Value = raw_redis::command(&stack.redis, command).await;
}

/// Streams on one node, each for one thing that will differ.
struct Scene {
    stack: Stack,
    replica: Replica,
    node: std::sync::Arc<support::mediamtx::MediaMtx>,
    publishers: Vec<Publisher>,
}

impl Scene {
    async fn start(paths: &[&str]) -> (Self, Vec<TestKey>) {
        let stack = Stack::start().await;
        let replica = stack.replica().await;
        // It can be asked without a replica.
        let node = replica.mediamtx_with("edge-1", |options| options.api_auth = ApiAuth::Excluded).await;
        let (mut keys, mut publishers) = (Vec::new(), Vec::new());
        for path in paths {
            let settings =
                if path.ends_with("undue") { json!({"expires_at": "2090-01-01T00:00:00Z"}) } else { json!({}) };
            let key = replica.key_with(path, settings).await;
            publishers.push(node.publish(key.publisher()).await.admitted());
            replica.until_live(path).await;
            keys.push(key);
        }
        until("the history has everything", async || replica.app.redis.events_backlog().await == Ok(0)).await;
        (Self { stack, replica, node, publishers }, keys)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agrees_is_said_in_one_line_while_the_service_runs() {
    let (scene, _) = Scene::start(&["live/one", "live/two"]).await;
    let spare = scene.replica.key("live/spare").await;
    scene.replica.api.act(&format!("/v1/stream-keys/{}/revoke", spare.id)).await.expect(200);
    let (code, said) = onair(&scene.stack, "verify").await;
    assert_eq!(
        (code, said.trim()),
        (Some(0), "Redis, Postgres and the nodes agree: 3 stream key(s), 2 stream(s) on air, 1 node(s)")
    );
    let (code, said) = onair(&scene.stack, "rebuild").await;
    assert_eq!((code, said.lines().count()), (Some(0), 1), "{said}");
    scene.replica.stop().await;
}

const PATHS: [&str; 10] = [
    "live/missing",
    "live/unrecorded",
    "live/ended",
    "live/state",
    "live/unlisted",
    "live/undue",
    "live/left",
    "live/kicked",
    "live/stranded",
    "live/fine",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_difference_is_named_and_mended() {
    let (scene, _) = Scene::start(&PATHS).await;
    let Scene { stack, replica, node, publishers } = scene;
    let mut keys = Vec::new();
    for name in ["absent", "older", "different", "newer", "dead"] {
        keys.push(replica.key(&format!("keys/{name}")).await);
    }
    replica.add_node("edge-2").await;
    let missing = id_of(&replica.stream_on("live/missing").await.unwrap());
    let kicked = publishers[7].id();
    until("the history has everything", async || replica.app.redis.events_backlog().await == Ok(0)).await;
    let auth_url = replica.auth_url("edge-1");
    // From here on nobody mends anything.
    replica.stop().await;

    break_streams(&stack, &publishers, kicked).await;
    break_keys(&stack, &keys).await;
    break_nodes(&stack).await;
    let intruder = smuggle(&node, &auth_url, PublishRequest::rtmp_query_key("live/intruder", "nobody asked")).await;
    let (closed, aside) = (free_partition(&PATHS, 0), free_partition(&PATHS, 1));
    redis(&stack, &["DEL", &format!("onair:{{{closed}}}:version")]).await;
    redis(&stack, &["XADD", &format!("onair:{{{aside}}}:set_aside"), "*", "event", "from the future"]).await;

    let (code, said) = onair(&stack, "verify").await;
    assert_eq!(code, Some(1), "{said}");
    let expected = [
        format!("partition {closed} is closed"),
        format!("partition {aside}: 1 transition(s) of a newer version wait"),
        format!("stream key {} for keys/absent: Redis does not hold it", keys[0].id),
        format!("stream key {} for keys/older: Redis holds it as it was before its last change", keys[1].id),
        format!("stream key {} for keys/different: Redis holds it with another playback", keys[2].id),
        format!(
            "stream key {} for keys/newer: Redis holds a change of it that Postgres does not know (revision 99)",
            keys[3].id
        ),
        format!("stream key {} for keys/dead: revoked in Redis, and not in Postgres", keys[4].id),
        format!("stream key {STRANGER}: Redis holds it, Postgres does not know it"),
        format!("stream {missing} on live/missing: open in the history, and Redis does not hold it"),
        "path live/missing: Redis lists it as on air, and does not hold it".to_owned(),
        "on live/unrecorded: Redis holds it, and the history does not know it".to_owned(),
        "on live/ended: Redis holds it, and it has ended by the history".to_owned(),
        "on live/state: Redis has its state".to_owned(),
        "path live/unlisted: Redis holds it, and does not list it as on air".to_owned(),
        "path live/undue: Redis does not have noted when something is due on it".to_owned(),
        "path live/nobody: Redis has noted that something is due on it, and does not hold it".to_owned(),
        "on live/left: live by Redis, and node edge-1 does not have it".to_owned(),
        "on live/stranded: its node edge-7 is not of the fleet".to_owned(),
        format!("node edge-1: source {kicked} is on air on live/kicked, and has to be off air"),
        format!("node edge-1: source {} is on air on live/intruder, and nobody admitted it", intruder.id()),
        "node edge-1: Redis does not have it as Postgres does".to_owned(),
        "node edge-9: Redis has it, Postgres does not know it".to_owned(),
        "node edge-2: cannot be asked".to_owned(),
    ];
    for what in &expected {
        assert!(
            said.lines().any(|line| line.starts_with("DIFFERENT") && line.contains(what)),
            "{what:?} is not in:\n{said}"
        );
    }
    assert!(!said.contains("live/fine"), "{said}");
    say(&format!("{} kinds of differences were made, and named in {} lines", expected.len(), said.lines().count() - 1));

    let (code, said) = onair(&stack, "rebuild").await;
    assert_eq!(code, Some(1), "somebody has to look at two of them:\n{said}");
    assert!(said.contains("MENDED  stream key") && said.contains("; the running service acts on it"), "{said}");
    assert!(said.contains("2 differences have to be looked at"), "{said}");
    // Those two, and the node that nobody can ask.
    let dead = raw_redis::stream_key(&stack.redis, &keys[4].id).await;
    redis(&stack, &["HSET", &dead, "status", "active"]).await;
    redis(&stack, &["DEL", &format!("onair:{{{aside}}}:set_aside")]).await;
    let replica = stack.replica().await;
    replica.api.delete("/v1/nodes/edge-2").await.expect(204);
    let began = Instant::now();
    let mut last = String::new();
    within(Duration::from_secs(90), "all agree again", async || {
        let (code, said) = onair(&stack, "verify").await;
        if said != last {
            say(&said);
        }
        last = said;
        code == Some(0)
    })
    .await;
    say(&format!("all agreed {:.1?} after the service was started again: {}", began.elapsed(), last.trim()));
    assert!(publishers[9].is_online() && publishers[0].is_online(), "who was on air by right still is");
    assert!(!intruder.is_connected());
    replica.stop().await;
}

const STRANGER: &str = "01900000-0000-7000-8000-000000000001";

/// A partition that none of these paths is in.
fn free_partition(paths: &[&str], which: usize) -> Partition {
    let taken = |one: &Partition| paths.iter().any(|path| path.parse::<StreamPath>().unwrap().partition() == *one);
    Partition::all().filter(|one| !taken(one)).nth(which).unwrap()
}

async fn break_streams(stack: &Stack, publishers: &[Publisher], kicked: Uuid) {
    redis(stack, &["DEL", &in_partition_of("live/missing", "slot:live/missing")]).await;
    sql(stack, "DELETE FROM streams WHERE path = 'live/unrecorded'").await;
    sql(
        stack,
        "UPDATE streams SET state = 'ended', ended_at = now(), end_reason = 'lost', revision = revision + 5 WHERE path = 'live/ended'",
    )
    .await;
    sql(stack, "UPDATE streams SET revision = revision + 1 WHERE path = 'live/state'").await;
    redis(stack, &["ZREM", &in_partition_of("live/unlisted", "live"), "live/unlisted"]).await;
    redis(stack, &["ZREM", &in_partition_of("live/undue", "deadlines"), "live/undue"]).await;
    redis(stack, &["ZADD", &in_partition_of("live/nobody", "deadlines"), "9000000000000", "live/nobody"]).await;
    redis(stack, &["HSET", &in_partition_of("live/stranded", "slot:live/stranded"), "node", "edge-7"]).await;
    publishers[6].disconnect();
    publishers[6].until_gone().await;
    let owed = json!({"path": "live/kicked", "node": "edge-1", "source_id": kicked, "source_type": "rtmpConn",
        "publisher": "{\"protocol\":\"rtmp\",\"address\":\"\",\"user_agent\":\"\"}", "reason": "a reason of tomorrow", "since_ms": "1"});
    redis(stack, &["HSET", &in_partition_of("live/kicked", "kicks"), &kicked.to_string(), &owed.to_string()]).await;
}

async fn break_keys(stack: &Stack, keys: &[TestKey]) {
    let mut names = Vec::new();
    for key in keys {
        names.push(raw_redis::stream_key(&stack.redis, &key.id).await);
    }
    redis(stack, &["DEL", &names[0]]).await;
    sql(
        stack,
        "UPDATE stream_keys SET title = 'new', revision = revision + 1, updated_at = now() WHERE path = 'keys/older'",
    )
    .await;
    redis(stack, &["HSET", &names[2], "playback", "private"]).await;
    redis(stack, &["HSET", &names[3], "revision", "99"]).await;
    redis(stack, &["HSET", &names[4], "status", "revoked"]).await;
    let stranger = in_partition_of("keys/stranger", &format!("key:{}", "ab".repeat(32)));
    redis(stack, &["HSET", &stranger, "id", STRANGER, "path", "keys/stranger", "status", "active", "revision", "1"])
        .await;
}

async fn break_nodes(stack: &Stack) {
    let directory = "onair:{nodes}:directory";
    let known: String = raw_redis::command(&stack.redis, &["HGET", directory, "edge-1"]).await;
    redis(stack, &["HSET", directory, "edge-9", &known.replace("\"edge-1\"", "\"edge-9\"")]).await;
    redis(stack, &["HDEL", directory, "edge-1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_emptied_while_no_replica_ran_is_filled_by_the_command_alone() {
    let (scene, keys) = Scene::start(&["live/one", "live/two"]).await;
    let Scene { stack, replica, node, publishers } = scene;
    let dead = replica.key("live/dead").await;
    replica.api.act(&format!("/v1/stream-keys/{}/revoke", dead.id)).await.expect(200);
    replica.stop().await;
    // One leaves while nobody looks.
    publishers[1].disconnect();
    publishers[1].until_gone().await;
    raw_redis::forget_everything(&stack.redis).await;
    let began = Instant::now();
    let (code, said) = onair(&stack, "rebuild").await;
    assert_eq!(code, Some(0), "{said}");
    say(&format!("an empty Redis was filled in {:.1?}:\n{said}", began.elapsed()));
    let redis: Redis = redis_at(&stack.redis.url()).await;
    assert!(redis.stream_on(&"live/one".parse().unwrap()).await.unwrap().is_some());
    let (code, said) = onair(&stack, "verify").await;
    assert!(code == Some(0) || said.contains("on live/two: live by Redis, and node edge-1 does not have it"), "{said}");

    let replica = stack.replica().await;
    node.point_at(replica.auth_url("edge-1"), None);
    tokio::time::timeout(Duration::from_secs(10), replica.until_off_air("live/two")).await.unwrap();
    let refused = node.publish(dead.publisher()).await.refused();
    assert!(refused.body.contains("key_revoked"), "{}", refused.body);
    assert_eq!(node.publish(keys[0].publisher()).await.refused().status, Some(409), "its path is held");
    node.publish(keys[1].publisher()).await.admitted();
    assert!(publishers[0].is_online());
    assert_eq!(node.counts().kicked, Vec::<Uuid>::new());
    replica.stop().await;
}
