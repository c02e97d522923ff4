//! What callers are told when PostgreSQL is away, hangs, refuses writes or is held up, and that it is used again
//! afterwards; and that publishing, lists and hooks do not notice.

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use onair::{
    config::{Config, ConfigSecret, PostgresConfig},
    dev::servers::{PostgresOptions, PrivatePostgres},
    domain::Metadata,
    postgres::{Postgres, PostgresError},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::{
    api_client::ApiClient,
    faulty_stack::FaultyStack,
    measured::{say, within},
    records::{broadcaster, key_for},
    stack::{Replica, Stack, TestKey, node_password},
    stopwatch::Stopwatch,
    stores,
    stores::{by_test, label, until},
};
use uuid::Uuid;

/// Short limits, and few connections, so that a leak of one shows.
fn impatient(url: &str) -> Postgres {
    let config = PostgresConfig {
        url: ConfigSecret::new(url),
        connections_max: 2,
        acquire_timeout_ms: 200,
        statement_timeout_ms: 500,
    };
    Postgres::new(&config).expect("the URL is one")
}

/// The longest that a call of an impatient handle may take: waiting for a connection, and then the call.
const CALL_LIMIT: Duration = Duration::from_millis(200 + 500 + 1000 + 500);

async fn own_server() -> (PrivatePostgres, Postgres) {
    let server = PrivatePostgres::start(PostgresOptions::scratch()).await.expect("PostgreSQL starts");
    let postgres = impatient(&server.url());
    postgres.migrate().await.expect("the migrations work");
    (server, postgres)
}

fn tells_unavailable<T: std::fmt::Debug>(outcome: &Result<T, PostgresError>) -> bool {
    matches!(outcome, Err(PostgresError::Unavailable(_)))
}

#[tokio::test]
async fn a_server_that_is_away_is_told_in_time_and_used_again_when_it_is_back() {
    let (mut server, postgres) = own_server().await;
    server.kill().await.unwrap();
    let watch = Stopwatch::start();
    let outcome = postgres.nodes().await;
    assert!(tells_unavailable(&outcome), "{outcome:?}");
    assert!(watch.elapsed() < CALL_LIMIT, "it took {:?}", watch.elapsed());
    assert!(!format!("{outcome:?}").contains("onair"), "an error tells the address: {outcome:?}");
    server.restart().await.unwrap();
    until("it is used again", async || postgres.nodes().await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_told_in_time_and_no_connection_is_lost_by_it() {
    let (server, postgres) = own_server().await;
    // Both connections are open and idle.
    let (first, second) = tokio::join!(postgres.ping(), postgres.ping());
    first.and(second).unwrap();
    server.suspend().unwrap();
    for _ in 0..3 {
        let watch = Stopwatch::start();
        assert!(postgres.nodes().await.is_err());
        assert!(watch.elapsed() < CALL_LIMIT, "it took {:?}", watch.elapsed());
        // A caller that goes away in the middle, or has an error on a machine that stood still meanwhile.
        let given_up = tokio::time::timeout(Duration::from_millis(50), postgres.nodes()).await;
        assert!(!matches!(given_up, Ok(Ok(_))));
    }
    server.resume().unwrap();
    until("both connections are used again", async || {
        let (first, second) = tokio::join!(postgres.nodes(), postgres.nodes());
        first.is_ok() && second.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_server_that_became_a_standby_is_not_available_rather_than_broken() {
    let (server, postgres) = own_server().await;
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let read_only = "ALTER DATABASE onair SET default_transaction_read_only = on";
    sqlx::raw_sql(read_only).execute(&mut connection).await.unwrap();
    let postgres_again = impatient(&server.url());
    let refused = postgres_again.insert_broadcaster(&label("Ada"), None, &Metadata::new(), &by_test()).await;
    assert!(tells_unavailable(&refused), "{refused:?}");
    assert!(postgres_again.nodes().await.is_ok(), "reading goes on");
    postgres.close().await;
}

#[tokio::test]
async fn a_row_that_somebody_else_holds_is_waited_for_no_longer_than_the_limit() {
    let (server, postgres) = own_server().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let mut holder = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM stream_keys FOR UPDATE").execute(&mut *holder).await.unwrap();
    let watch = Stopwatch::start();
    let outcome = postgres.mark_projected(&[(key.id, key.revision)]).await;
    assert_eq!(outcome, Err(PostgresError::Timeout));
    assert!(watch.elapsed() < CALL_LIMIT, "it took {:?}", watch.elapsed());
    holder.rollback().await.unwrap();
    assert_eq!(postgres.mark_projected(&[(key.id, key.revision)]).await, Ok(()));
}

#[tokio::test]
async fn a_database_without_the_schema_is_told_as_such() {
    let postgres = stores::postgres_at(&stores::database().await);
    let outcome = postgres.nodes().await;
    assert!(matches!(&outcome, Err(PostgresError::Protocol(text)) if text.contains("nodes")), "{outcome:?}");
}

/// What publishers, hooks and lists may take while Postgres is not there, on a busy machine.
const UNTOUCHED: Duration = Duration::from_millis(300);
/// What a stop may take then: its node, which is not there, may be waited for 1.5 s, and the audit log beside it for 0.5 s.
const STOPPED: Duration = Duration::from_secs(3);
/// Waiting for a connection, a statement that is given up, and a busy machine.
const TOLD: Duration = Duration::from_secs(9);
const RECOVERY: Duration = Duration::from_secs(5);

/// As many connections as requests of one kind may have, while many of them wait for a lock.
const HELD_UP: u64 = 4;

/// A replica on stores behind lines that can fail.
struct Bench {
    faulty: FaultyStack,
    replica: Replica,
    caller: ApiClient,
    key: TestKey,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let faulty = FaultyStack::start_with(|config| {
            Stack::leave_nodes_alone(config);
            change(config);
        })
        .await;
        let replica = faulty.stack.replica().await;
        replica.add_node("edge-1").await;
        let caller = replica.api.as_node("edge-1", &node_password("edge-1"));
        let key = replica.key("live/ada").await;
        Self { faulty, replica, caller, key }
    }

    /// Waits until requests of one kind have all connections that they may have, and wait for a lock.
    async fn until_held_up(&self) {
        let mut connection = PgConnection::connect(&self.faulty.postgres.url()).await.unwrap();
        let held_up = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        until("the lock is waited for", async || {
            let waiting: i64 = sqlx::query_scalar(held_up).fetch_one(&mut connection).await.unwrap();
            waiting.unsigned_abs() >= HELD_UP
        })
        .await;
    }

    /// An administrator stops a stream: it is off air, its path closed, and the kick owed.
    async fn stop_a_stream(&self, key: &TestKey) {
        self.caller.post("/v1/mediamtx/auth", &call(key, Uuid::new_v4())).await.expect(204);
        let stream = self.replica.stream_on(&key.path).await.expect("it is on air");
        let stop = format!("/v1/streams/{}/stop", stream["id"].as_str().expect("an id"));
        let watch = Stopwatch::start();
        self.replica.api.act(&stop).await.expect(200);
        assert!(watch.elapsed() < STOPPED, "the audit log was waited for: {:?}", watch.elapsed());
        assert!(self.replica.stream_on(&key.path).await.is_none());
        let again = self.caller.post("/v1/mediamtx/auth", &call(key, Uuid::new_v4())).await;
        again.expect_problem(409, "cooling_down");
        let kicks = self.replica.app.redis.kicks().await.expect("Redis answers");
        assert!(kicks.iter().any(|kick| kick.path.as_str() == key.path), "{kicks:?}");
    }

    /// A whole broadcast as its node and a frontend see it; how long the slowest answer took.
    async fn broadcast(&self) -> Duration {
        let source_id = Uuid::new_v4();
        let call = call(&self.key, source_id);
        let hook = json!({"path": self.key.path, "source_type": "rtmpConn", "source_id": source_id});
        let mut slowest = Duration::ZERO;
        let mut time = |watch: Stopwatch| slowest = slowest.max(watch.elapsed());
        let watch = Stopwatch::start();
        self.caller.post("/v1/mediamtx/auth", &call).await.expect(204);
        time(watch);
        let watch = Stopwatch::start();
        self.caller.post("/v1/hooks/publish", &hook).await.expect(200);
        time(watch);
        let watch = Stopwatch::start();
        let list = self.replica.api.get("/v1/streams").await.expect(200);
        time(watch);
        assert_eq!((&list.json["stale"], &list.json["items"][0]["state"]), (&json!(false), &json!("live")));
        let watch = Stopwatch::start();
        self.caller.post("/v1/hooks/unpublish", &hook).await.expect(200);
        time(watch);
        slowest
    }

    async fn readiness(&self) -> Value {
        self.replica.api.anonymous().get("/readyz").await.expect(200).json
    }

    /// Does something to PostgreSQL, sees what users see, undoes it, and sees how long it takes until all is well.
    async fn promises_hold(
        &mut self,
        what: &str,
        fail: impl AsyncFnOnce(&mut FaultyStack),
        mend: impl AsyncFnOnce(&mut FaultyStack),
    ) {
        let stopped = self.replica.key("live/stopped").await;
        fail(&mut self.faulty).await;
        let api = &self.replica.api;
        // More callers than connections, so that a leak of one shows.
        let asked = join_all((0..20).map(async |number| {
            let watch = Stopwatch::start();
            if number % 2 == 0 {
                api.get("/v1/streams?state=ended").await.expect_problem(503, "history_unavailable");
            } else {
                let body = json!({"display_name": "Ada"});
                api.post("/v1/broadcasters", &body).await.expect_problem(503, "store_unavailable");
            }
            watch.elapsed()
        }));
        let broadcasts = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..20 {
                slowest = slowest.max(self.broadcast().await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            slowest
        };
        let (told, slowest) = tokio::join!(asked, broadcasts);
        self.stop_a_stream(&stopped).await;
        let told = told.into_iter().max().unwrap_or_default();
        assert!(slowest < UNTOUCHED, "{what}: a publisher, hook or list waited {slowest:?}");
        assert!(told < TOLD, "{what}: told after {told:?}");
        let ready = self.readiness().await;
        assert_eq!(ready["status"], "degraded", "{what}: {ready}");
        assert_eq!(ready["dependencies"], json!({"redis": "ok", "postgres": "unavailable"}), "{what}");

        mend(&mut self.faulty).await;
        let back =
            within(RECOVERY, &format!("{what}: the history is read and written, and keys are managed"), async || {
                let name = json!({"display_name": "Ada"});
                let (read, changed) =
                    tokio::join!(api.get("/v1/streams?state=ended"), api.post("/v1/broadcasters", &name));
                let written = self.replica.app.redis.events_backlog().await == Ok(0);
                (read.status, changed.status, written) == (200, 201, true)
            })
            .await;
        let ended = api.get("/v1/streams?state=ended&limit=1000").await.expect(200);
        assert!(ended.json["items"].as_array().unwrap().len() >= 20, "{what}: {}", ended.text);
        assert_eq!(self.readiness().await["status"], "ready");
        say(&format!(
            "{what}: 20 broadcasts untouched, the slowest answer {} ms; 20 callers told, the last after {} ms; all well {} ms \
             after its return",
            slowest.as_millis(),
            told.as_millis(),
            back.as_millis()
        ));
    }
}

fn call(key: &TestKey, source_id: Uuid) -> Value {
    json!({"ip": "192.0.2.1", "user": "", "password": "", "token": "", "action": "publish", "path": key.path,
        "protocol": "rtmp", "id": source_id, "query": format!("key={}", key.secret), "userAgent": "an encoder"})
}

#[tokio::test]
async fn postgres_cut_off_leaves_publishing_alone_and_is_used_again_at_once() {
    let mut bench = Bench::start().await;
    let cut = async |faulty: &mut FaultyStack| faulty.postgres_line.cut();
    let heal = async |faulty: &mut FaultyStack| faulty.postgres_line.heal();
    bench.promises_hold("connections cut", cut, heal).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn postgres_behind_a_black_hole_leaves_publishing_alone_and_is_used_again_soon() {
    let mut bench = Bench::start().await;
    let swallow = async |faulty: &mut FaultyStack| faulty.postgres_line.black_hole();
    let heal = async |faulty: &mut FaultyStack| faulty.postgres_line.heal();
    bench.promises_hold("a black hole", swallow, heal).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn postgres_frozen_leaves_publishing_alone_and_is_used_again_soon() {
    let mut bench = Bench::start().await;
    let freeze = async |faulty: &mut FaultyStack| faulty.postgres.suspend().unwrap();
    let thaw = async |faulty: &mut FaultyStack| faulty.postgres.resume().unwrap();
    bench.promises_hold("SIGSTOP", freeze, thaw).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn postgres_killed_leaves_publishing_alone_and_is_used_again_when_it_is_back() {
    let mut bench = Bench::start().await;
    let kill = async |faulty: &mut FaultyStack| faulty.postgres.kill().await.unwrap();
    let restart = async |faulty: &mut FaultyStack| faulty.postgres.restart().await.unwrap();
    bench.promises_hold("killed", kill, restart).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_request_that_would_wait_too_long_for_postgres_is_given_up_with_a_problem() {
    let bench = Bench::start_with(|config| config.server.request_timeout_ms = 600).await;
    let api = &bench.replica.api;
    let name = json!({"display_name": "Ada"});
    api.post("/v1/broadcasters", &name).await.expect(201);
    bench.faulty.postgres_line.hang();
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let watch = Stopwatch::start();
        api.post("/v1/broadcasters", &name).await.expect_problem(503, "request_timeout");
        slowest = slowest.max(watch.elapsed());
    }
    bench.faulty.postgres_line.heal();
    let back = within(RECOVERY, "a broadcaster is made again", async || {
        api.post("/v1/broadcasters", &name).await.status == 201
    })
    .await;
    say(&format!(
        "given up after {} ms at most; all well {} ms after its return",
        slowest.as_millis(),
        back.as_millis()
    ));
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    bench.replica.stop().await;
}

/// Idle connections that the network forgot cost their time limit once, not once each.
#[tokio::test]
async fn connections_to_postgres_that_the_network_forgot_are_replaced_within_one_request() {
    let bench = Bench::start().await;
    let api = &bench.replica.api;
    // Held up for a moment, so that each of them needs a connection of its own.
    let mut connection = PgConnection::connect(&bench.faulty.postgres.url()).await.unwrap();
    let mut holder = connection.begin().await.unwrap();
    sqlx::query("LOCK TABLE broadcasters").execute(&mut *holder).await.unwrap();
    let hold = async {
        bench.until_held_up().await;
        holder.rollback().await.unwrap();
    };
    let (lists, ()) = tokio::join!(join_all((0..8).map(|_| api.get("/v1/broadcasters"))), hold);
    assert!(lists.iter().all(|list| list.status == 200));
    let (open, _, _) = bench.replica.app.postgres.pool_connections();
    assert!(open >= HELD_UP, "{open} connections are open");
    bench.faulty.postgres_line.half_open();
    let watch = Stopwatch::start();
    for _ in 0..5 {
        api.get("/v1/broadcasters").await.expect(200);
    }
    say(&format!("half-open: {open} connections forgotten, five lists in {} ms", watch.elapsed().as_millis()));
    assert!(watch.elapsed() < Duration::from_millis(1_500), "{:?}", watch.elapsed());
    bench.replica.stop().await;
}

#[tokio::test]
async fn slow_statements_of_one_kind_of_request_leave_connections_for_all_others() {
    let bench = Bench::start().await;
    let api = &bench.replica.api;
    let put_node = async || {
        let watch = Stopwatch::start();
        let answer = api.put("/v1/nodes/edge-2", &json!({"control_url": "http://127.0.0.1:9"})).await;
        assert!(answer.status < 300, "{}", answer.text);
        watch.elapsed()
    };
    let read_history = async || {
        let watch = Stopwatch::start();
        api.get("/v1/streams?state=ended").await.expect(200);
        watch.elapsed()
    };
    put_node().await;
    let mut connection = PgConnection::connect(&bench.faulty.postgres.url()).await.unwrap();

    // Every list of broadcasters waits for a lock, until it is given up.
    let mut holder = connection.begin().await.unwrap();
    sqlx::query("LOCK TABLE broadcasters").execute(&mut *holder).await.unwrap();
    let slow = join_all((0..40).map(|_| api.get("/v1/broadcasters")));
    let others = async {
        bench.until_held_up().await;
        let changed = put_node().await;
        bench.broadcast().await;
        until("the history is written", async || bench.replica.app.redis.events_backlog().await == Ok(0)).await;
        assert_eq!(bench.readiness().await["status"], "ready");
        changed
    };
    let (slow, changed) = tokio::join!(slow, others);
    let told: Vec<_> = slow.into_iter().map(|list| list.expect_problem(503, "store_unavailable")).collect();
    holder.rollback().await.unwrap();
    say(&format!("{} lists were held up and told; a change took {} ms meanwhile", told.len(), changed.as_millis()));
    assert!(changed < Duration::from_secs(1), "{changed:?}");

    // Every change waits for the audit log.
    let mut holder = connection.begin().await.unwrap();
    sqlx::query("LOCK TABLE audit_log").execute(&mut *holder).await.unwrap();
    let name = json!({"display_name": "Ada"});
    let slow = join_all((0..40).map(|_| api.post("/v1/broadcasters", &name)));
    let others = async {
        bench.until_held_up().await;
        let read = read_history().await;
        bench.broadcast().await;
        until("the history is written", async || bench.replica.app.redis.events_backlog().await == Ok(0)).await;
        read
    };
    let (slow, read) = tokio::join!(slow, others);
    let told: Vec<_> = slow.into_iter().map(|answer| answer.expect_problem(503, "store_unavailable")).collect();
    holder.rollback().await.unwrap();
    say(&format!(
        "{} changes were held up and told; reading the history took {} ms meanwhile",
        told.len(),
        read.as_millis()
    ));
    assert!(read < Duration::from_secs(1), "{read:?}");
    bench.replica.stop().await;
}
