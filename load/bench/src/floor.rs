//! What an admission cannot cost less than: axum, one EVALSHA, one reply, nothing else. There are two of them, and beside
//! them what people do today, one Postgres query for each call.
//!
//! - The *floor* runs Onair's own `admit.lua`, on keys and arguments that were made beforehand: what is left is what the
//!   machine, the HTTP server, the Redis client and an atomic transition with its record and its event cost.
//! - The *bare floor* takes a path with `SET NX`: no key is looked up, nothing is recorded.
//!
//! Neither authenticates, parses, has a deadline, logs or counts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Context as _;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use fred::{
    clients::Pool,
    interfaces::{ClientLike as _, HashesInterface as _, KeysInterface as _, LuaInterface as _},
    types::{Builder, Key, Value, config::Config},
    util::sha1_hash,
};
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::OnceCell};
use uuid::Uuid;

const BARE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 60000) then return 1 end return 0";
const ADMIT: &str = concat!(include_str!("../../../lua/transition.lua"), include_str!("../../../lua/admit.lua"));

/// As many as Onair has.
const PARTITIONS: usize = 32;
/// As many as Onair opens unless told otherwise.
const REDIS_CONNECTIONS: usize = 4;

/// One admission, ready to be sent.
struct Prepared {
    keys: Vec<Key>,
    arguments: Vec<Value>,
}

struct Floor {
    redis: Pool,
    postgres: PgPool,
    bare_sha1: String,
    admit_sha1: String,
    prepared: Vec<Prepared>,
    calls: AtomicUsize,
    bare_calls: AtomicUsize,
    /// Hashes of the secrets of Onair's keys, which are made after the floor has started.
    secret_hashes: OnceCell<Vec<Vec<u8>>>,
    queries: AtomicUsize,
}

/// Serves until it is killed; prints its address first.
pub async fn serve(redis_url: &str, postgres_url: &str, admissions: usize) -> anyhow::Result<()> {
    let redis = Builder::from_config(Config::from_url(redis_url)?).build_pool(REDIS_CONNECTIONS)?;
    redis.init().await?;
    for script in [BARE, ADMIT] {
        let _: String = redis.script_load(script).await?;
    }
    let floor = Arc::new(Floor {
        postgres: PgPool::connect(postgres_url).await.context("Postgres")?,
        bare_sha1: sha1_hash(BARE),
        admit_sha1: sha1_hash(ADMIT),
        prepared: prepare(&redis, admissions).await?,
        calls: AtomicUsize::new(0),
        bare_calls: AtomicUsize::new(0),
        secret_hashes: OnceCell::new(),
        queries: AtomicUsize::new(0),
        redis,
    });
    floor.empty().await?;
    let router = Router::new()
        .route("/v1/mediamtx/auth", post(one_evalsha))
        .route("/bare", post(one_bare_evalsha))
        .route("/postgres", post(one_query))
        .route("/empty", post(empty))
        .with_state(floor);
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener: TcpListener = socket.listen(4096)?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

/// A key of a partition of the floor's own, of the same length as Onair's.
fn key(partition: usize, name: &str) -> String {
    format!("floor:{{{partition:02}}}:{name}")
}

/// Makes the stream keys, with what Onair keeps of one, and the calls.
async fn prepare(redis: &Pool, admissions: usize) -> anyhow::Result<Vec<Prepared>> {
    open_partitions(redis).await?;
    let mut prepared = Vec::with_capacity(admissions);
    for number in 0..admissions {
        let (partition, path) = (number % PARTITIONS, format!("bench/{number}"));
        let stream_key = key(partition, &format!("key:{number:064x}"));
        let info = r#"{"title":null,"description":null,"broadcaster_name":"Bench","metadata":{},"recording":null}"#;
        let fields: Vec<(&str, String)> = vec![
            ("id", Uuid::new_v4().to_string()),
            ("path", path.clone()),
            ("status", "active".to_owned()),
            ("expires_ms", String::new()),
            ("revision", "1".to_owned()),
            ("broadcaster_id", Uuid::new_v4().to_string()),
            ("on_conflict", "reject".to_owned()),
            ("playback", "public".to_owned()),
            ("info", info.to_owned()),
        ];
        let _: () = redis.hset(&stream_key, fields).await?;
        let keys = [
            key(partition, &format!("slot:{path}")),
            key(partition, "live"),
            key(partition, "deadlines"),
            key(partition, "version"),
            key(partition, "events"),
            key(partition, "kicks"),
            key(partition, "changes"),
            stream_key,
            key(partition, &format!("cooldown:{path}")),
            key(partition, "memory"),
        ];
        let publisher =
            r#"{"protocol":"rtmp","address":"10.0.0.1","user_agent":"FMLE/3.0 (compatible; Lavf59.27.100)"}"#;
        let arguments = [
            String::new(),
            path,
            "edge-1".to_owned(),
            Uuid::new_v4().to_string(),
            publisher.to_owned(),
            Uuid::new_v4().to_string(),
            "300000".to_owned(),
        ];
        // Shared bytes: a call copies none of them.
        prepared.push(Prepared {
            keys: keys.into_iter().map(|key| Key::from(Bytes::from(key))).collect(),
            arguments: arguments.into_iter().map(|text| Value::Bytes(Bytes::from(text))).collect(),
        });
    }
    Ok(prepared)
}

/// Notes who opened the partitions: the server that there is.
async fn open_partitions(redis: &Pool) -> anyhow::Result<()> {
    let promotion = "return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')";
    let promotion: String = redis.eval(promotion, Vec::<String>::new(), Vec::<String>::new()).await?;
    for partition in 0..PARTITIONS {
        let _: () = redis.hset(key(partition, "memory"), ("opened", format!("1:{promotion}"))).await?;
    }
    Ok(())
}

impl Floor {
    /// Takes everything off air, without a record.
    async fn empty(&self) -> anyhow::Result<()> {
        for slots in self.prepared.chunks(PARTITIONS) {
            for prepared in slots {
                let _: () = self.redis.del(&prepared.keys[0]).await?;
            }
        }
        for partition in 0..PARTITIONS {
            for name in ["live", "deadlines", "events", "changes"] {
                let _: () = self.redis.del(key(partition, name)).await?;
            }
            let _: () = self.redis.set(key(partition, "version"), 1_764_000_000_000_i64, None, None, false).await?;
        }
        self.calls.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl Floor {
    /// The look-up that auth hooks do today: the key's row by its secret. Whether there is one.
    async fn query(&self) -> Result<bool, sqlx::Error> {
        let made = || sqlx::query_scalar("SELECT secret_hash FROM stream_keys ORDER BY id").fetch_all(&self.postgres);
        let hashes = self.secret_hashes.get_or_try_init(made).await?;
        let number = self.queries.fetch_add(1, Ordering::Relaxed);
        let Some(hash) = number.checked_rem(hashes.len()).and_then(|number| hashes.get(number)) else {
            return Ok(false);
        };
        let row = sqlx::query("SELECT id, path, status, expires_at FROM stream_keys WHERE secret_hash = $1")
            .bind(hash)
            .fetch_optional(&self.postgres)
            .await?;
        Ok(row.is_some())
    }
}

async fn one_evalsha(State(floor): State<Arc<Floor>>, _body: Bytes) -> StatusCode {
    let call = floor.calls.fetch_add(1, Ordering::Relaxed);
    let Some(prepared) = floor.prepared.get(call) else { return StatusCode::CONFLICT };
    let (keys, arguments) = (prepared.keys.clone(), prepared.arguments.clone());
    match floor.redis.evalsha::<Value, _, _, _>(floor.admit_sha1.as_str(), keys, arguments).await {
        Ok(Value::Array(answer)) if answer.first().and_then(Value::as_str).as_deref() == Some("admitted") => {
            StatusCode::NO_CONTENT
        }
        Ok(_) => StatusCode::CONFLICT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn one_bare_evalsha(State(floor): State<Arc<Floor>>, body: Bytes) -> StatusCode {
    let call = floor.bare_calls.fetch_add(1, Ordering::Relaxed);
    let key = format!("floor:{}:{}:{call}", body.len(), std::process::id());
    let taken: Result<i64, _> = floor.redis.evalsha(floor.bare_sha1.as_str(), key, "source").await;
    match taken {
        Ok(1) => StatusCode::NO_CONTENT,
        Ok(_) => StatusCode::CONFLICT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn one_query(State(floor): State<Arc<Floor>>, _body: Bytes) -> StatusCode {
    match floor.query().await {
        Ok(true) => StatusCode::NO_CONTENT,
        Ok(false) => StatusCode::UNAUTHORIZED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn empty(State(floor): State<Arc<Floor>>) -> StatusCode {
    match floor.empty().await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
