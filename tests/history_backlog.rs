//! Postgres away for long: users notice nothing, Redis keeps it all at a known price, everything arrives afterwards, once and
//! in order; and what happens when it is too much.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use onair::{
    config::{HistoryConfig, PostgresConfig, WhenFull},
    domain::{EndReason, NodeName, Partition, Secret, SourceId, SourceType, StreamPath, StreamStateWord},
    history::{History, Role},
    lifecycle::Tasks,
    postgres::Postgres,
    redis::{Admission, AdmitRequest, Afterwards, EndRequest, Ending, Holder, Redis},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use support::{
    api_client::ApiClient,
    fault_proxy::FaultProxy,
    faulty_stack::FaultyStack,
    measured::{say, within},
    raw_redis,
    records::admit_request,
    service::Service,
    stack::{Replica, Stack, TestKey, node_password},
    stores,
    stores::until,
};
use uuid::Uuid;

/// Ten minutes without Postgres at 200 transitions a second. `ONAIR_TEST_BACKLOG_ENTRIES` asks for more or less.
const OUTAGE_ENTRIES: u64 = 10 * 60 * 200;
/// What the documents promise.
const BYTES_PER_ENTRY_MAX: u64 = 1_000;

const PATHS: usize = 64;
/// How fast things happen while latencies are measured.
const TRANSITIONS_PER_SECOND: u32 = 200;
const PROBED: Duration = Duration::from_secs(4);

/// Writes down every change of a stream's row, in the order in which they take effect.
const WITNESS: &str = "
    CREATE TABLE witness (n bigserial, id uuid, path text, epoch bigint, revision bigint,
        transaction xid8 NOT NULL DEFAULT pg_current_xact_id());
    CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO witness (id, path, epoch, revision) VALUES (NEW.id, NEW.path, NEW.epoch, NEW.revision);
        RETURN NULL;
    END $$;
    CREATE TRIGGER witness AFTER INSERT OR UPDATE ON streams FOR EACH ROW EXECUTE FUNCTION witness();";

/// A path, its key, and how many streams it has had.
struct Publisher {
    key: TestKey,
    path: StreamPath,
    secret: Secret,
    streams: u64,
}

impl Publisher {
    fn new(key: TestKey) -> Self {
        let (path, secret) = (key.path.parse().expect("a path"), Secret::parse(&key.secret).expect("a secret"));
        Self { key, path, secret, streams: 0 }
    }

    /// A stream from its admission to its end: three transitions.
    async fn broadcast(&mut self, redis: &Redis, node: &NodeName) {
        let source_id = SourceId(Uuid::now_v7());
        let request = AdmitRequest {
            user_agent: "an encoder of some length, such as OBS 31.0",
            ..admit_request(&self.path, self.secret.hash(), node, source_id)
        };
        let answer = redis.admit(&request).await.expect("Redis answers");
        assert!(matches!(answer.admission, Admission::Admitted { .. }), "{answer:?}");
        redis.confirm(&self.path, node, (source_id, SourceType::RtmpConn), &[]).await.expect("Redis answers");
        let request = EndRequest {
            path: &self.path,
            holder: Holder::Source(source_id, node),
            reason: EndReason::Unpublished,
            afterwards: Afterwards::Gone,
            progress: None,
        };
        assert!(matches!(redis.end(&request).await, Ok(Ending::Ended(_))));
        self.streams += 1;
    }
}

/// How many wrote the history at once.
#[derive(Clone, Copy)]
enum Writers {
    One,
    Several,
}

/// A replica behind lines that can fail, and publishers that come and go beside it.
struct Bench {
    faulty: FaultyStack,
    replica: Replica,
    caller: ApiClient,
    redis: Redis,
    node: NodeName,
    publishers: Vec<Publisher>,
    probe: TestKey,
}

impl Bench {
    async fn start(paths: usize, history: HistoryConfig) -> Self {
        let faulty = FaultyStack::start_with(|config| {
            Stack::leave_nodes_alone(config);
            config.history = history;
            config.postgres.acquire_timeout_ms = 500;
        })
        .await;
        let replica = faulty.stack.replica().await;
        replica.add_node("edge-1").await;
        let caller = replica.api.as_node("edge-1", &node_password("edge-1"));
        let mut publishers = Vec::new();
        for number in 0..paths {
            publishers.push(Publisher::new(replica.key(&format!("live/{number}")).await));
        }
        let probe = replica.key("live/probe").await;
        let redis = stores::redis_at(&faulty.stack.redis.url()).await;
        Self { faulty, replica, caller, redis, node: "edge-1".parse().expect("a name"), publishers, probe }
    }

    async fn execute(&self, statements: &'static str) {
        stores::execute(&self.faulty.postgres.url(), statements).await;
    }

    /// As fast as it goes, until so many wait.
    async fn fill(&mut self, entries: u64) {
        let waiting = self.redis.events_backlog().await.expect("Redis answers");
        let rounds = entries.saturating_sub(waiting).div_ceil(3 * self.publishers.len() as u64);
        let (redis, node) = (&self.redis, &self.node);
        join_all(self.publishers.iter_mut().map(async |publisher| {
            for _ in 0..rounds {
                publisher.broadcast(redis, node).await;
            }
        }))
        .await;
    }

    /// What users wait for while 200 transitions happen a second.
    async fn probe(&mut self) -> Latencies {
        let (redis, node, caller, api, key) = (&self.redis, &self.node, &self.caller, &self.replica.api, &self.probe);
        let until = Instant::now() + PROBED;
        let publishers = &mut self.publishers;
        let happening = async {
            let mut beats = tokio::time::interval(Duration::from_secs(1) * 3 / TRANSITIONS_PER_SECOND);
            for number in (0..publishers.len()).cycle() {
                beats.tick().await;
                if Instant::now() > until {
                    break;
                }
                publishers[number].broadcast(redis, node).await;
            }
        };
        let probing = async {
            let mut latencies = Latencies::default();
            while Instant::now() < until {
                latencies.ask(caller, api, key).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            latencies
        };
        tokio::join!(happening, probing).1
    }

    /// Streams of each key that the history has, as ended; and the uses that were counted.
    async fn recorded(&self) -> BTreeMap<String, (i64, i64)> {
        let mut connection = PgConnection::connect(&self.faulty.postgres.url()).await.expect("PostgreSQL answers");
        let rows = sqlx::query(
            "SELECT path, use_count, (SELECT count(*) FROM streams WHERE key_id = stream_keys.id AND ended_at IS NOT NULL) AS ended
             FROM stream_keys",
        );
        let rows = rows.fetch_all(&mut connection).await.expect("rows");
        rows.iter().map(|row| (row.get("path"), (row.get("ended"), row.get("use_count")))).collect()
    }

    /// Every stream is in the history, ended, and counted once.
    async fn assert_all_recorded(&self) {
        let recorded = self.recorded().await;
        for publisher in &self.publishers {
            let streams = i64::try_from(publisher.streams).expect("not so many");
            assert_eq!(recorded[&publisher.key.path], (streams, streams), "{}", publisher.key.path);
        }
    }

    /// No change took effect twice, no stream went back to an older state, and, where one writer wrote, no transaction came
    /// behind one that told later things of the same path.
    async fn assert_in_order_and_once(&self, writers: Writers) {
        let mut connection = PgConnection::connect(&self.faulty.postgres.url()).await.expect("PostgreSQL answers");
        let row = sqlx::query(
            "WITH streams AS (
                 SELECT revision <= lag(revision) OVER (PARTITION BY id ORDER BY n) AS is_back FROM witness
             ), transactions AS (
                 SELECT path, min(n) AS n, min(epoch * 1000 + revision) AS first, max(epoch * 1000 + revision) AS last
                 FROM witness GROUP BY path, transaction
             ), paths AS (
                 SELECT first <= lag(last) OVER (PARTITION BY path ORDER BY n) AS is_back FROM transactions
             )
             SELECT (SELECT count(*) FROM witness) AS changes,
                 (SELECT count(DISTINCT transaction) FROM witness) AS transactions,
                 (SELECT count(*) FROM streams WHERE is_back) AS streams_back,
                 (SELECT count(*) FROM paths WHERE is_back) AS paths_back",
        );
        let row = row.fetch_one(&mut connection).await.expect("a row");
        let number = |name: &str| row.get::<i64, _>(name);
        assert_eq!(number("streams_back"), 0, "a stream was written twice, or went back");
        if let Writers::One = writers {
            assert_eq!(number("paths_back"), 0, "a transaction came behind a later one of its path");
        }
        say(&format!(
            "{} changes of rows took effect in {} transactions: none twice, none out of order",
            number("changes"),
            number("transactions")
        ));
    }

    async fn used_memory(&self) -> u64 {
        self.redis.memory().await.expect("Redis tells").used_bytes
    }

    async fn publish(&self, key: &TestKey, source_id: Uuid) -> support::api_client::Answer {
        self.caller.post("/v1/mediamtx/auth", &call(key, source_id)).await
    }

    async fn unpublish(&self, key: &TestKey, source_id: Uuid) {
        let gone = json!({"path": key.path, "source_type": "rtmpConn", "source_id": source_id});
        assert_eq!(self.caller.post("/v1/hooks/unpublish", &gone).await.expect(200).json["result"], "ended");
    }

    /// The value of a metric without labels.
    async fn metric(&self, name: &str) -> u64 {
        let metrics = self.replica.api.get("/metrics").await.expect(200).text;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
    }
}

fn call(key: &TestKey, source_id: Uuid) -> Value {
    json!({"ip": "192.0.2.1", "user": "", "password": "", "token": "", "action": "publish", "path": key.path,
        "protocol": "rtmp", "id": source_id, "query": format!("key={}", key.secret), "userAgent": "an encoder"})
}

/// How long answers took.
#[derive(Default)]
struct Latencies {
    admissions: Vec<Duration>,
    hooks: Vec<Duration>,
    lists: Vec<Duration>,
}

impl Latencies {
    /// A broadcast as its node and a frontend see it.
    async fn ask(&mut self, caller: &ApiClient, api: &ApiClient, key: &TestKey) {
        let source_id = Uuid::new_v4();
        let began = Instant::now();
        caller.post("/v1/mediamtx/auth", &call(key, source_id)).await.expect(204);
        self.admissions.push(began.elapsed());
        let hook = json!({"path": key.path, "source_type": "rtmpConn", "source_id": source_id});
        let began = Instant::now();
        caller.post("/v1/hooks/publish", &hook).await.expect(200);
        self.hooks.push(began.elapsed());
        let began = Instant::now();
        let list = api.get("/v1/streams?limit=1000").await.expect(200);
        self.lists.push(began.elapsed());
        assert_eq!(list.json["stale"], false, "{}", list.text);
        let items = list.json["items"].as_array().expect("a list");
        assert!(items.iter().any(|stream| stream["path"] == *key.path), "the list is exact: {}", list.text);
        let began = Instant::now();
        caller.post("/v1/hooks/unpublish", &hook).await.expect(200);
        self.hooks.push(began.elapsed());
    }

    fn medians(&self) -> [Duration; 3] {
        [&self.admissions, &self.hooks, &self.lists].map(|all| {
            let mut sorted = all.clone();
            sorted.sort_unstable();
            sorted[sorted.len() / 2]
        })
    }

    fn tell(&self, when: &str) {
        let [admission, hook, list] = self.medians().map(|median| median.as_secs_f64() * 1_000.0);
        let count = self.admissions.len();
        say(&format!(
            "{when}: medians of {count} probes: admission {admission:.1} ms, hook {hook:.1} ms, list {list:.1} ms"
        ));
    }
}

fn entries_wanted() -> u64 {
    let asked = std::env::var("ONAIR_TEST_BACKLOG_ENTRIES").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(OUTAGE_ENTRIES)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_of_postgres_costs_users_nothing_and_everything_arrives_afterwards_once_and_in_order() {
    let mut bench = Bench::start(PATHS, HistoryConfig::default()).await;
    bench.execute(WITNESS).await;
    let before = bench.probe().await;
    before.tell("with Postgres");
    until("all is written", async || bench.redis.events_backlog().await == Ok(0)).await;

    bench.faulty.postgres_line.cut();
    let memory_before = bench.used_memory().await;
    let began = Instant::now();
    let wanted = entries_wanted();
    bench.fill(wanted).await;
    let entries = bench.redis.events_backlog().await.unwrap();
    let grown = bench.used_memory().await.saturating_sub(memory_before);
    let per_entry = grown / entries;
    say(&format!(
        "{entries} entries made in {:.1} s: {grown} bytes of Redis' memory, {per_entry} an entry; {} MB for {OUTAGE_ENTRIES}",
        began.elapsed().as_secs_f64(),
        per_entry * OUTAGE_ENTRIES / 1_000_000
    ));
    assert!(entries >= wanted && per_entry < BYTES_PER_ENTRY_MAX);

    let during = bench.probe().await;
    during.tell("with that backlog and without Postgres");
    for (now, then) in during.medians().into_iter().zip(before.medians()) {
        assert!(now < then * 2 + Duration::from_millis(10), "{now:?} instead of {then:?}");
    }
    until("the backlog is told", async || bench.metric("onair_history_backlog_entries").await >= wanted).await;

    let waiting = bench.redis.events_backlog().await.unwrap();
    bench.faulty.postgres_line.heal();
    let limit = Duration::from_secs(10) + Duration::from_millis(2 * waiting);
    let took = within(limit, "the history has everything", async || bench.redis.events_backlog().await == Ok(0)).await;
    say(&format!("{waiting} entries written in {:.1} s", took.as_secs_f64()));
    bench.assert_all_recorded().await;
    bench.assert_in_order_and_once(Writers::One).await;
    bench.replica.stop().await;
}

/// A writer of the history on a line of its own.
async fn writer(redis_line: &FaultProxy, bench: &Bench, postgres: &Postgres, batch: usize) -> (History, Tasks) {
    let redis = stores::redis_at(&bench.faulty.stack.redis.single().url_at_port(redis_line.port())).await;
    let tasks = Tasks::new();
    let config = HistoryConfig { poll_interval_ms: 20, batch_entries_max: batch, ..HistoryConfig::default() };
    (History::start(redis, postgres.clone(), &config, Uuid::now_v7(), &tasks), tasks)
}

async fn witnessed(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::query_scalar("SELECT count(*) FROM witness").fetch_one(&mut connection).await.expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_dies_between_commit_and_removal_and_two_owners_at_once_write_nothing_twice() {
    let mut bench = Bench::start(16, HistoryConfig::default()).await;
    bench.execute(WITNESS).await;
    // From here on only the writers of this test write.
    let Bench { replica, .. } = &bench;
    replica.tasks.abort();
    until("the log is left alone", async || {
        let leased: Option<String> =
            raw_redis::command(&bench.faulty.stack.redis, &["HGET", "onair:lease:history", "holder"]).await;
        leased.is_none()
    })
    .await;
    let url = bench.faulty.postgres.url();
    let config = PostgresConfig { url: onair::config::ConfigSecret::new(&url), ..PostgresConfig::default() };
    let postgres = Postgres::new(&config).unwrap();
    bench.fill(480).await;
    let entries = bench.redis.events_backlog().await.unwrap();

    // Its removal is on its way for a second: it is cut off as soon as the commit is seen.
    let port = bench.faulty.stack.redis.single().port().expect("a port");
    let line = FaultProxy::before(port).await;
    let (_, tasks) = writer(&line, &bench, &postgres, 16).await;
    line.slow(Duration::from_secs(1));
    until("a batch is committed", async || witnessed(&url).await > 0).await;
    line.cut();
    tasks.abort();
    let committed = witnessed(&url).await;
    let left = bench.redis.events_backlog().await.unwrap();
    assert_eq!(left, entries, "it was cut off before it removed anything");
    say(&format!(
        "a writer died after {committed} changes were committed and before any of {entries} entries was removed"
    ));

    // Two writers, and a lease that is lost again and again, so that both believe that they own it.
    bench.fill(6_000).await;
    let line = FaultProxy::before(port).await;
    let mut writers = vec![writer(&line, &bench, &postgres, 200).await, writer(&line, &bench, &postgres, 200).await];
    let (mut robbed, mut both, mut killed) = (0, 0, 0);
    let emptied = async {
        while bench.redis.events_backlog().await.unwrap() > 0 {
            let _: i64 = raw_redis::command(&bench.faulty.stack.redis, &["DEL", "onair:lease:history"]).await;
            robbed += 1;
            both += u32::from(writers.iter().all(|(history, _)| history.report().role == Role::Writing));
            if robbed % 20 == 0 {
                writers.remove(0).1.abort();
                writers.push(writer(&line, &bench, &postgres, 200).await);
                killed += 1;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), emptied).await.expect("the log is written in time");
    say(&format!(
        "the lease was taken away {robbed} times, seen with two owners {both} times; {killed} writers were killed"
    ));
    assert!(both > 0, "there never were two owners");
    bench.assert_all_recorded().await;
    bench.assert_in_order_and_once(Writers::Several).await;
    for (_, tasks) in writers {
        tasks.abort();
    }
}

#[tokio::test]
async fn at_the_limit_new_publishers_are_refused_and_those_on_air_stay_until_postgres_is_back() {
    let history = HistoryConfig { backlog_entries_max: 300, ..HistoryConfig::default() };
    let mut bench = Bench::start(4, history).await;
    let held = bench.replica.key("live/held").await;
    let source_id = Uuid::new_v4();
    bench.publish(&held, source_id).await.expect(204);
    bench.faulty.postgres_line.cut();
    bench.fill(300).await;
    let probe = bench.probe.clone();
    let mut admitted = 0;
    let began = Instant::now();
    loop {
        let source_id = Uuid::new_v4();
        let answer = bench.publish(&probe, source_id).await;
        if answer.status != 204 {
            let refused = answer.expect_problem(503, "history_backlog_full");
            assert!(refused.headers.contains_key("retry-after"));
            break;
        }
        admitted += 1;
        bench.unpublish(&probe, source_id).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{admitted} were admitted beyond the limit");
    }
    say(&format!("{admitted} more admitted in the {} ms until the limit was noticed", began.elapsed().as_millis()));
    // The check of a page or preflight claims nothing, and is still answered.
    let mut check = call(&probe, Uuid::new_v4());
    check["id"] = Value::Null;
    bench.caller.post("/v1/mediamtx/auth", &check).await.expect(204);
    assert!(bench.replica.stream_on(&held.path).await.is_some(), "who is on air stays");
    bench.unpublish(&held, source_id).await;
    assert!(bench.replica.stream_on(&held.path).await.is_none(), "and may go");

    bench.faulty.postgres_line.heal();
    within(Duration::from_secs(10), "Postgres is back: a publisher is admitted", async || {
        bench.publish(&probe, Uuid::new_v4()).await.status == 204
    })
    .await;
    until("the log is written", async || bench.redis.events_backlog().await == Ok(0)).await;
    bench.assert_all_recorded().await;
    assert_eq!(bench.metric("onair_history_dropped_total").await, 0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn at_the_limit_the_oldest_transitions_are_dropped_and_counted_where_that_is_wanted() {
    const MAX: u64 = 300;
    let history = HistoryConfig { backlog_entries_max: MAX, when_full: WhenFull::Drop, ..HistoryConfig::default() };
    let mut bench = Bench::start(4, history).await;
    until("all is written", async || bench.redis.events_backlog().await == Ok(0)).await;
    bench.faulty.postgres_line.cut();
    bench.fill(4 * MAX).await;
    until("the log is cut to its limit", async || bench.redis.events_backlog().await.unwrap() <= MAX).await;
    let probe = bench.probe.clone();
    let source_id = Uuid::new_v4();
    bench.publish(&probe, source_id).await.expect(204);
    bench.unpublish(&probe, source_id).await;
    let made: u64 = bench.publishers.iter().map(|publisher| 3 * publisher.streams).sum();
    let dropped = bench.metric("onair_history_dropped_total").await;
    let lengths = bench.redis.event_counts().await.unwrap();
    say(&format!(
        "of {made} transitions {dropped} were dropped; the logs are {:?}",
        lengths.iter().filter(|&&length| length > 0).collect::<Vec<_>>()
    ));
    assert!(dropped + MAX >= made && dropped < made, "{dropped} of {made}");
    // The newest are kept, since each holds the whole stream.
    for partition in Partition::all().filter(|partition| lengths[partition.index()] > 0) {
        let kept = bench.redis.read_events(partition, 10_000).await.unwrap().events;
        assert_eq!(kept.last().map(|event| event.stream.state.word()), Some(StreamStateWord::Ended));
    }
    bench.faulty.postgres_line.heal();
    until("the log is written", async || bench.redis.events_backlog().await == Ok(0)).await;
    let ended: i64 = bench.recorded().await.values().map(|(ended, _)| ended).sum();
    assert!(ended > 0, "what was kept is in the history");
    bench.replica.stop().await;
}

/// The cause: a gauge was told once, at the start. It is forgotten after a minute, and an alert that divides by it never fired.
#[tokio::test]
async fn what_a_service_tells_of_itself_it_still_tells_after_a_minute() {
    let stack = Stack::start().await;
    let service = Service::start(&stack.config, &[]).await;
    let api = service.api().await;
    let gauges = async || -> BTreeSet<String> {
        let metrics = api.get("/metrics").await.expect(200).text;
        metrics
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge"))
            .map(str::to_owned)
            .collect()
    };
    // Every owner tells at least every ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let told = gauges().await;
    assert!(told.contains("onair_history_backlog_entries_max"), "{told:?}");
    tokio::time::sleep(Duration::from_secs(62)).await;
    let missing: Vec<String> = told.difference(&gauges().await).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
    service.stop().await;
}
