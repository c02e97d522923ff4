//! The write-behind: what happens on air is in PostgreSQL a moment later, once, whatever fails in between.

mod support;

use std::time::Duration;

use fred::prelude::{Builder, Client, ClientLike as _, Config, StreamsInterface as _};
use onair::{
    config::{ConfigSecret, HistoryConfig, PostgresConfig},
    dev::servers::{Durability, PostgresOptions, PrivatePostgres},
    domain::{
        Broadcaster, EndReason, KeyId, NodeName, Progress, Renditions, SourceId, SourceType, StreamId, StreamState,
        StreamStateWord, Timestamp,
    },
    history::{History, HistoryReport, Role},
    lifecycle::Tasks,
    postgres::{EndedFilter, Postgres, Totals},
    redis::{Admission, Afterwards, EndRequest, Ending, Event, Holder, Redis},
    stream_keys::{CreatedKey, NewKey, StreamKeys},
};
use support::{
    records::{admit_request, broadcaster, first_page, path, settings},
    stopwatch::Stopwatch,
    stores,
    stores::{by_test, until},
    test_redis::{self, TestRedis},
};
use uuid::Uuid;

struct Bench {
    redis_server: TestRedis,
    redis: Redis,
    postgres: Postgres,
    keys: StreamKeys,
    ada: Broadcaster,
}

async fn bench_with(postgres: Postgres) -> Bench {
    let (redis_server, redis) = stores::redis().await;
    let keys = StreamKeys::new(postgres.clone(), redis.clone(), Renditions::default());
    let ada = broadcaster(&postgres).await;
    Bench { redis_server, redis, postgres, keys, ada }
}

async fn bench() -> Bench {
    bench_with(stores::postgres().await).await
}

/// A history, and the tasks that it runs in.
struct Replica {
    history: History,
    tasks: Tasks,
}

impl Replica {
    async fn stop(self) -> HistoryReport {
        self.tasks.join(Duration::from_secs(20)).await.into_result().expect("it stops in time");
        self.history.report()
    }
}

struct OnAir<'a> {
    bench: &'a Bench,
    key: &'a CreatedKey,
    node: NodeName,
    source_id: SourceId,
    stream_id: StreamId,
}

impl Bench {
    fn replica(&self, config: &HistoryConfig) -> Replica {
        let tasks = Tasks::new();
        let history = History::start(self.redis.clone(), self.postgres.clone(), config, Uuid::now_v7(), &tasks);
        Replica { history, tasks }
    }

    async fn key(&self, text: &str) -> CreatedKey {
        let new = NewKey { broadcaster_id: self.ada.id, path: Some(path(text)), settings: settings() };
        self.keys.create(&new, &by_test()).await.unwrap()
    }

    /// Admits a publisher and says that it is online.
    async fn go_live<'a>(&'a self, key: &'a CreatedKey) -> OnAir<'a> {
        let (node, source_id): (NodeName, _) = ("edge-1".parse().unwrap(), SourceId(Uuid::now_v7()));
        let request = admit_request(&key.key.path, key.secret.hash(), &node, source_id);
        let Admission::Admitted { stream_id, .. } = self.redis.admit(&request).await.unwrap().admission else {
            panic!("{} is not admitted", key.key.path)
        };
        self.redis.confirm(&key.key.path, &node, (source_id, SourceType::RtmpConn), &[]).await.unwrap();
        OnAir { bench: self, key, node, source_id, stream_id }
    }

    async fn uses(&self, id: KeyId) -> i64 {
        self.postgres.stream_key(id).await.unwrap().unwrap().use_count
    }

    async fn until_written(&self) {
        until("the log is written", async || self.redis.events_backlog().await.is_ok_and(|entries| entries == 0)).await;
    }

    async fn state(&self, id: StreamId) -> Option<StreamStateWord> {
        self.postgres.stream(id).await.ok()?.map(|record| record.stream.state.word())
    }

    async fn all_events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for partition in onair::domain::Partition::all() {
            events.extend(self.redis.read_events(partition, 1000).await.unwrap().events);
        }
        events
    }
}

impl OnAir<'_> {
    async fn end(&self) {
        let progress = Progress {
            source_id: self.source_id,
            seen_at: Timestamp::now(),
            inbound_bytes: 1000,
            outbound_bytes: 2000,
            inbound_bits_per_second: None,
            inbound_frames_in_error: 0,
            readers: Vec::new(),
            viewers_peak: 5,
            qualities: Vec::new(),
        };
        let request = EndRequest {
            path: &self.key.key.path,
            holder: Holder::Source(self.source_id, &self.node),
            reason: EndReason::Unpublished,
            afterwards: Afterwards::Gone,
            progress: Some(&progress),
        };
        assert!(matches!(self.bench.redis.end(&request).await, Ok(Ending::Ended(_))));
    }
}

async fn raw_client(server: &TestRedis) -> Client {
    let client = Builder::from_config(Config::from_url(&server.url()).unwrap()).build().unwrap();
    client.init().await.unwrap();
    client
}

#[tokio::test]
async fn a_broadcast_is_in_the_history_from_its_admission_to_its_end_and_counts_as_one_use() {
    let bench = bench().await;
    let replica = bench.replica(&HistoryConfig::default());
    let key = bench.key("live/ada").await;
    let watch = Stopwatch::start();
    let on_air = bench.go_live(&key).await;
    until("the history has it live", async || bench.state(on_air.stream_id).await == Some(StreamStateWord::Live)).await;
    let took = watch.elapsed();
    assert!(took < Duration::from_secs(1) * test_redis::crowd(), "it took {took:?}");
    on_air.end().await;
    until("the history has it ended", async || bench.state(on_air.stream_id).await == Some(StreamStateWord::Ended))
        .await;

    let record = bench.postgres.stream(on_air.stream_id).await.unwrap().unwrap();
    let StreamState::Ended { live_since: Some(_), reason: EndReason::Unpublished, .. } = record.stream.state else {
        panic!("{:?}", record.stream.state)
    };
    assert_eq!(record.totals, Some(Totals { inbound_bytes: 1000, outbound_bytes: 2000, viewers_peak: 5 }));
    assert_eq!((record.stream.key_id, record.stream.broadcaster_id), (key.key.id, bench.ada.id));
    assert_eq!(record.stream.info.broadcaster_name, "Ada");
    assert_eq!(record.stream.source.source_type, Some(SourceType::RtmpConn));
    assert_eq!(record.stream.source.user_agent, "an encoder");
    let used = bench.postgres.stream_key(key.key.id).await.unwrap().unwrap();
    assert_eq!((used.use_count, used.last_used_at), (1, Some(record.stream.admitted_at)));

    bench.until_written().await;
    let report = replica.stop().await;
    assert_eq!((report.backlog_entries, report.left_out, report.last_error), (0, 0, None));
    assert_eq!(report.written, 3);
}

#[tokio::test]
async fn more_than_a_batch_from_all_partitions_is_written_without_waiting_for_the_next_beat() {
    let bench = bench().await;
    let mut keys = Vec::new();
    for number in 0..120 {
        keys.push(bench.key(&format!("live/{number}")).await);
    }
    for key in &keys {
        bench.go_live(key).await.end().await;
    }
    let config = HistoryConfig { batch_entries_max: 40, poll_interval_ms: 60_000, ..HistoryConfig::default() };
    let replica = bench.replica(&config);
    bench.until_written().await;
    let page = bench.postgres.ended_streams(&EndedFilter::default(), &first_page(1000)).await.unwrap();
    assert_eq!(page.items.len(), 120);
    assert_eq!(replica.stop().await.written, 360);
}

#[tokio::test]
async fn what_was_written_before_a_crash_and_not_removed_is_not_counted_twice() {
    let bench = bench().await;
    let key = bench.key("live/ada").await;
    let on_air = bench.go_live(&key).await;
    // As a replica that died between its commit and the removal leaves it.
    let records: Vec<_> = bench
        .all_events()
        .await
        .into_iter()
        .map(|event| onair::postgres::StreamRecord { stream: event.stream, totals: None })
        .collect();
    assert!(records.len() >= 2);
    bench.postgres.record_streams(&records).await.unwrap();
    on_air.end().await;
    let replica = bench.replica(&HistoryConfig::default());
    bench.until_written().await;
    replica.stop().await;
    assert_eq!(bench.uses(key.key.id).await, 1);
    assert_eq!(bench.state(on_air.stream_id).await, Some(StreamStateWord::Ended));
}

#[tokio::test]
async fn one_replica_writes_and_when_it_stops_another_goes_on_at_once() {
    let bench = bench().await;
    let key = bench.key("live/ada").await;
    let first = bench.replica(&HistoryConfig::default());
    until("the first one writes", async || first.history.report().role == Role::Writing).await;
    let second = bench.replica(&HistoryConfig::default());
    bench.go_live(&key).await.end().await;
    bench.until_written().await;
    assert_eq!((second.history.report().role, second.history.report().written), (Role::StandingBy, 0));

    // What was admitted a moment before the stop is still written by it.
    let last = bench.go_live(&key).await;
    let report = first.stop().await;
    assert!(report.written >= 5, "{report:?}");
    assert_eq!(bench.state(last.stream_id).await, Some(StreamStateWord::Live));
    let watch = Stopwatch::start();
    until("the second one writes", async || second.history.report().role == Role::Writing).await;
    let took = watch.elapsed();
    assert!(took < Duration::from_secs(2) * test_redis::crowd(), "it waited for the lease to run out: {took:?}");
    last.end().await;
    until("it is ended", async || bench.state(last.stream_id).await == Some(StreamStateWord::Ended)).await;
    second.stop().await;
    assert_eq!(bench.uses(key.key.id).await, 2);
}

#[tokio::test]
async fn while_postgres_is_away_the_log_keeps_everything_and_afterwards_it_is_all_written() {
    // It is killed, and must still have what it committed.
    let options = PostgresOptions { durability: Durability::Durable, ..PostgresOptions::scratch() };
    let mut server = PrivatePostgres::start(options).await.unwrap();
    let config = PostgresConfig {
        url: ConfigSecret::new(server.url()),
        acquire_timeout_ms: 300,
        statement_timeout_ms: 500,
        ..PostgresConfig::default()
    };
    let postgres = Postgres::new(&config).unwrap();
    postgres.migrate().await.unwrap();
    let bench = bench_with(postgres).await;
    let key = bench.key("live/ada").await;
    let replica = bench.replica(&HistoryConfig::default());
    bench.go_live(&key).await.end().await;
    bench.until_written().await;

    server.kill().await.unwrap();
    for _ in 0..20 {
        bench.go_live(&key).await.end().await;
    }
    until("the history says that it waits", async || replica.history.report().last_error.is_some()).await;
    assert_eq!(bench.redis.events_backlog().await.unwrap(), 60, "the log keeps what Postgres does not have");
    server.restart().await.unwrap();
    bench.until_written().await;
    assert_eq!(bench.uses(key.key.id).await, 21);

    // A server that hangs keeps its connections: the calls end by our own limit.
    server.suspend().unwrap();
    bench.go_live(&key).await.end().await;
    until("the history says that it waits", async || replica.history.report().last_error.is_some()).await;
    server.resume().unwrap();
    bench.until_written().await;
    assert_eq!(bench.uses(key.key.id).await, 22);
    until("it says that all is well", async || replica.history.report().last_error.is_none()).await;
    replica.stop().await;
}

#[tokio::test]
async fn an_entry_that_nobody_can_read_does_not_hold_up_the_others() {
    let bench = bench().await;
    let key = bench.key("live/ada").await;
    let log = format!("onair:{{{}}}:events", key.key.path.partition());
    let raw = raw_client(&bench.redis_server).await;
    let _: String = raw.xadd(log, false, None, "*", ("event", "from the future")).await.unwrap();
    let on_air = bench.go_live(&key).await;
    let replica = bench.replica(&HistoryConfig::default());
    bench.until_written().await;
    assert_eq!(bench.state(on_air.stream_id).await, Some(StreamStateWord::Live));
    assert_eq!(replica.stop().await.set_aside, 1, "it is kept for whoever can read it");
}

#[tokio::test]
async fn an_entry_that_postgres_refuses_does_not_hold_up_the_others() {
    let url = stores::database().await;
    let postgres = stores::postgres_at(&url);
    postgres.migrate().await.unwrap();
    let bench = bench_with(postgres).await;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::raw_sql("ALTER TABLE streams ADD CONSTRAINT a_whim CHECK (path <> 'live/refused')")
        .execute(&mut connection)
        .await
        .unwrap();
    let (refused, good) = (bench.key("live/refused").await, bench.key("live/good").await);
    bench.go_live(&refused).await;
    let on_air = bench.go_live(&good).await;
    let replica = bench.replica(&HistoryConfig::default());
    bench.until_written().await;
    assert_eq!(bench.state(on_air.stream_id).await, Some(StreamStateWord::Live));
    let report = replica.stop().await;
    assert_eq!((report.written, report.left_out), (2, 2));
}

#[tokio::test]
async fn a_redis_that_comes_back_is_written_from_again() {
    let mut bench = bench().await;
    let replica = bench.replica(&HistoryConfig::default());
    until("it writes", async || replica.history.report().role == Role::Writing).await;
    bench.redis_server.kill().await.unwrap();
    until("it says that it waits", async || replica.history.report().last_error.is_some()).await;
    bench.redis_server.restart().await.unwrap();
    until("Redis is back", async || bench.redis.ping().await.is_ok()).await;
    stores::open_partitions(&bench.redis).await;
    let key = bench.key("live/ada").await;
    let on_air = bench.go_live(&key).await;
    until("the history has it", async || bench.state(on_air.stream_id).await == Some(StreamStateWord::Live)).await;
    replica.stop().await;
}
