//! Two versions of Onair beside each other on the same stores, as while an upgrade rolls: what a newer one writes is neither
//! lost nor in the way of an older one, and an older one that could not work refuses to start.

mod support;

use std::collections::HashMap;

use onair::{app::StartError, domain::StreamPath, lifecycle::Tasks, postgres::SchemaError, replica};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    raw_redis,
    stack::{Replica, Stack},
    stores::until,
    waiting::id_of,
};
use tokio::net::TcpListener;

fn in_partition_of(path: &str, name: &str) -> String {
    format!("onair:{{{}}}:{name}", path.parse::<StreamPath>().unwrap().partition())
}

/// The fields of a stream that is on air, as an event would have them.
async fn event_of(stack: &Stack, path: &str) -> HashMap<String, String> {
    let slot = in_partition_of(path, &format!("slot:{path}"));
    let mut fields: HashMap<String, String> = raw_redis::command(&stack.redis, &["HGETALL", &slot]).await;
    fields.extend([("event".to_owned(), "updated".to_owned()), ("at_ms".to_owned(), "1800000000000".to_owned())]);
    fields
}

fn titled(known: &HashMap<String, String>, title: &str) -> String {
    let mut info: Value = serde_json::from_str(&known["info"]).unwrap();
    info["title"] = json!(title);
    info.to_string()
}

async fn append(stack: &Stack, log: &str, fields: &HashMap<String, String>) {
    let mut words = vec!["XADD", log, "*"];
    words.extend(fields.iter().flat_map(|(field, value)| [field.as_str(), value.as_str()]));
    let _: String = raw_redis::command(&stack.redis, &words).await;
}

async fn length(stack: &Stack, log: &str) -> u64 {
    raw_redis::command(&stack.redis, &["XLEN", log]).await
}

async fn title(replica: &Replica, id: &str) -> Option<String> {
    let row = replica.app.postgres.stream(id.parse().unwrap()).await.unwrap()?;
    row.stream.info.title
}

#[tokio::test(flavor = "multi_thread")]
async fn transitions_of_a_newer_version_are_kept_for_it_and_hold_up_nobody() {
    let stack = Stack::start().await;
    let old = stack.replica().await;
    let node = old.mediamtx("edge-1").await;
    let key = old.key("live/ada").await;
    let _publisher = node.publish(key.publisher()).await.admitted();
    let id = id_of(&old.until_live("live/ada").await);
    let (log, aside) = (in_partition_of("live/ada", "events"), in_partition_of("live/ada", "set_aside"));
    let known = event_of(&stack, "live/ada").await;
    let with = |field: &str, value: &str| {
        let mut fields = known.clone();
        fields.insert(field.to_owned(), value.to_owned());
        fields
    };
    // A kind, a state and a format that this version does not know: more of them than a batch has room for.
    for _ in 0..300 {
        append(&stack, &log, &with("event", "paused")).await;
        append(&stack, &log, &with("state", "paused")).await;
        append(&stack, &log, &with("format", "2")).await;
    }
    let mut read = with("revision", "50");
    read.insert("info".to_owned(), titled(&known, "behind them"));
    append(&stack, &log, &read).await;
    until("what came behind them is written", async || title(&old, &id).await.as_deref() == Some("behind them")).await;
    until("the log is empty", async || length(&stack, &log).await == 0).await;
    assert_eq!(length(&stack, &aside).await, 900, "none is lost");
    println!("900 transitions of a newer version were set aside, and the one behind them written");

    // The newer version takes over. What it can read, it writes; the rest it keeps as well.
    let mut of_the_newer = with("revision", "60");
    of_the_newer.insert("info".to_owned(), titled(&known, "kept"));
    append(&stack, &aside, &of_the_newer).await;
    let new = stack.replica().await;
    old.stop().await;
    until("what it can read is written", async || title(&new, &id).await.as_deref() == Some("kept")).await;
    until("the rest is kept", async || length(&stack, &aside).await == 900 && length(&stack, &log).await == 0).await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_newer_version_takes_no_other_from_the_list_and_nobody_off_air() {
    let stack = Stack::start_with(|config| config.reconciler.poll_interval_ms = 200).await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let (strange, plain) = (replica.key("live/strange").await, replica.key("live/plain").await);
    let newer = node.publish(strange.publisher()).await.admitted();
    let older = node.publish(plain.publisher()).await.admitted();
    replica.until_live("live/strange").await;
    replica.until_live("live/plain").await;
    until("the history has both", async || replica.app.redis.events_backlog().await == Ok(0)).await;
    let slot = in_partition_of("live/strange", "slot:live/strange");
    let _: u64 = raw_redis::command(&stack.redis, &["HSET", &slot, "state", "paused"]).await;
    let _: u64 = raw_redis::command(&stack.redis, &["INCR", &in_partition_of("live/strange", "version")]).await;
    // A replica that reads it anew.
    let other = stack.replica().await;
    node.point_at(other.auth_url("edge-1"), None);
    replica.stop().await;
    assert!(other.stream_on("live/plain").await.is_some());
    let polls = node.counts().control_calls_to("/v3/paths/list");
    until("it was polled", async || node.counts().control_calls_to("/v3/paths/list") > polls + 10).await;
    let listed = other.api.get("/v1/streams").await.expect(200);
    assert_eq!((listed.json["stale"].as_bool(), listed.json["total"].as_u64()), (Some(false), Some(1)));
    assert!(newer.is_online() && older.is_online());
    assert_eq!(node.counts().kicked, Vec::<uuid::Uuid>::new());
    assert_eq!(node.publish(strange.publisher()).await.refused().status, Some(409), "its path is held");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_goes_on_beside_a_newer_schema_and_refuses_to_start_on_it() {
    let stack = Stack::start().await;
    let running = stack.replica().await;
    let node = running.mediamtx("edge-1").await;
    let key = running.key("live/ada").await;
    let mut connection = PgConnection::connect(stack.config.postgres.url.reveal()).await.unwrap();
    // A step as a newer version may take it: what it adds has a default, and nothing is taken away.
    for step in [
        "ALTER TABLE streams ADD COLUMN region text",
        "ALTER TABLE stream_keys ADD COLUMN region text NOT NULL DEFAULT 'eu'",
        "CREATE TABLE regions (name text PRIMARY KEY)",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
            SELECT max(version) + 1, 'regions', true, '\\x00', 0 FROM _sqlx_migrations",
    ] {
        sqlx::query(step).execute(&mut connection).await.unwrap();
    }
    let publisher = node.publish(key.publisher()).await.admitted();
    let stream = running.until_live("live/ada").await;
    let another = running.key("live/grace").await;
    running.api.act(&format!("/v1/stream-keys/{}/revoke", another.id)).await.expect(200);
    publisher.disconnect();
    assert_eq!(running.until_recorded(&id_of(&stream)).await["path"], "live/ada");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = replica::serve(stack.config.clone(), listener, &Tasks::new()).await.err().expect("it refuses");
    assert!(matches!(&refused, StartError::Schema(SchemaError::Newer { .. })), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("made by a newer Onair") && said.contains("Start the newer Onair"), "{said}");
    println!("the older version: {said}");
    running.stop().await;
}
