//! A whole Onair whose Redis and PostgreSQL are its own processes, each behind a line that can fail.

use onair::{
    config::{Config, ConfigSecret},
    dev::servers::{
        Durability, Home, Listen, Persistence, PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions,
    },
    postgres::Postgres,
};

use super::{fault_proxy::FaultProxy, stack::Stack};

/// Stores of a test's own, and the lines that lead to them.
pub struct FaultyStack {
    pub stack: Stack,
    pub postgres: PrivatePostgres,
    pub redis_line: FaultProxy,
    pub postgres_line: FaultProxy,
}

impl FaultyStack {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// As [`FaultyStack::start`], with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let (redis, redis_line) = redis().await;
        let (postgres, postgres_line) = postgres().await;
        let mut config = Stack::settings();
        config.redis.url = ConfigSecret::new(redis.url_at_port(redis_line.port()));
        config.postgres.url = ConfigSecret::new(postgres.url_at_port(postgres_line.port()));
        Postgres::new(&config.postgres).expect("a URL").migrate().await.expect("the migrations work");
        change(&mut config);
        Self { stack: Stack { redis: redis.into(), config }, postgres, redis_line, postgres_line }
    }
}

/// A Redis that keeps what it knew over a restart, and the line to it.
pub async fn redis() -> (PrivateRedis, FaultProxy) {
    let listen = Listen::LoopbackPort(None);
    let options = RedisOptions { home: Home::Scratch, persistence: Persistence::AppendOnly, listen };
    let redis = PrivateRedis::start(options).await.expect("Redis starts");
    let line = FaultProxy::before(redis.port().expect("it has a port")).await;
    (redis, line)
}

/// A PostgreSQL that keeps what it committed even when it is killed, and the line to it.
pub async fn postgres() -> (PrivatePostgres, FaultProxy) {
    let options =
        PostgresOptions { home: Home::Scratch, durability: Durability::Durable, listen: Listen::LoopbackPort(None) };
    let postgres = PrivatePostgres::start(options).await.expect("PostgreSQL starts");
    let line = FaultProxy::before(postgres.port().expect("it has a port")).await;
    (postgres, line)
}
