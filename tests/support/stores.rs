//! Real stores for tests: one PostgreSQL for a test binary with a database for each test, and a Redis for each test.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use onair::{
    config::{ConfigSecret, PostgresConfig, RedisConfig},
    dev::servers::{PostgresOptions, PrivatePostgres},
    domain::{Actor, ChangedBy, Label},
    postgres::Postgres,
    redis::{Opening, Redis},
};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::OnceCell;

use super::test_redis::TestRedis;

/// Does something to a database, past the service.
pub async fn execute(url: &str, statements: &'static str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL lets us in");
    sqlx::raw_sql(statements).execute(&mut connection).await.expect(statements);
    connection.close().await.expect("it says goodbye");
}

/// The URL of an empty database of the test's own.
pub async fn database() -> String {
    // It ends with the process: see the invariants of the private servers.
    static SERVER: OnceCell<PrivatePostgres> = OnceCell::const_new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let start = async || PrivatePostgres::start(PostgresOptions::scratch()).await.expect("PostgreSQL starts");
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    SERVER.get_or_init(start).await.create_database(&name).await.expect("a database is made")
}

/// A handle to the database at `url`, as it is.
pub fn postgres_at(url: &str) -> Postgres {
    let config = PostgresConfig { url: ConfigSecret::new(url), ..PostgresConfig::default() };
    Postgres::new(&config).expect("the URL is one")
}

/// A database of the test's own, with the schema in it.
pub async fn postgres() -> Postgres {
    let postgres = postgres_at(&database().await);
    postgres.migrate().await.expect("the migrations work");
    postgres
}

/// A handle to the Redis at `url`.
pub async fn redis_at(url: &str) -> Redis {
    // Tests share a machine with the builds of others: a slow answer is not what they are about.
    let config = RedisConfig { url: ConfigSecret::new(url), command_timeout_ms: 5_000, ..RedisConfig::default() };
    Redis::connect(&config).await.expect("the URL is one")
}

/// A Redis of the test's own, which lives as long as the first value. Its partitions are open.
pub async fn redis() -> (TestRedis, Redis) {
    let server = TestRedis::start().await;
    let redis = redis_at(&server.url()).await;
    open_partitions(&redis).await;
    (server, redis)
}

/// Opens an empty Redis, as a rebuild does when there is nothing to bring back.
pub async fn open_partitions(redis: &Redis) {
    for closed in redis.closed_partitions().await.expect("Redis answers") {
        assert_eq!(redis.open_partition(&closed, None).await, Ok(Opening::Opened));
    }
}

/// Who changes things in tests.
pub fn by_test() -> ChangedBy {
    ChangedBy { actor: Actor::ApiSecret(1), request_id: Some("test-request".to_owned()) }
}

pub fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

/// How long the servers of a cluster, or sentinels, may take to agree among themselves. Sentinels look at a store that has come back every ten
/// seconds, and make it a replica only when it has called itself a master for eight.
pub const AGREED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until something is so. Fails with its name when it does not come about.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(Duration::from_secs(20), what, condition).await;
}

/// As [`until`], for what others take their time for.
pub async fn until_within(limit: Duration, what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(tokio::time::timeout(limit, is_so(condition)).await.is_ok(), "waited in vain until {what}");
}

/// Waits until something is so, however long that takes.
pub async fn is_so(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
