//! Onair as it is shipped: the release binary as a child process, its stores, and the keys that the calls use.

use std::{ffi::OsStr, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use onair::{
    config::ConfigSecret,
    dev::servers::{
        Home, Listen, Persistence, PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions, free_port,
    },
    domain::Secret,
    node_credentials::NodeCredentials,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use uuid::Uuid;

use crate::{
    generator::{self, Connections, Plan, post},
    mib,
};

const API_SECRET: &str = "api-secret-of-the-bench-0123456789abcdef";
const NODE_SECRET: &str = "node-secret-of-the-bench-0123456789abcdef";
const NODE: &str = "edge-1";

/// A key as the calls use it.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub path: String,
    pub secret: String,
}

/// Processor time of the processes under test. That of a backend of Postgres counts while the backend is there.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub onair: Duration,
    pub floor: Duration,
    pub redis: Duration,
    pub postgres: Duration,
}

impl Cpu {
    /// What was used from `self` to `later`.
    pub fn until(&self, later: &Self) -> Self {
        Self {
            onair: later.onair.saturating_sub(self.onair),
            floor: later.floor.saturating_sub(self.floor),
            redis: later.redis.saturating_sub(self.redis),
            postgres: later.postgres.saturating_sub(self.postgres),
        }
    }
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Floor,
    Onair,
}

/// The time on a processor of all threads that a process has.
fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(schedstat) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds += schedstat.split(' ').next().context("a number")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Both servers under test on the same stores.
pub struct Subject {
    pub onair: SocketAddr,
    floor: SocketAddr,
    authorization: String,
    broadcaster: String,
    pub keys: Vec<Key>,
    process: Child,
    serve: Box<dyn Fn() -> Command>,
    floor_process: Child,
    redis: PrivateRedis,
    postgres: PrivatePostgres,
}

/// A program that is killed when we end, however that is: also where nothing is left of us that could stop it.
fn ends_with_us(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).kill_on_drop(true);
    command
}

impl Subject {
    /// Starts the stores, Onair and the floor, and makes the keys.
    pub async fn start(onair_program: &str, keys: usize) -> anyhow::Result<Self> {
        let redis = PrivateRedis::start(RedisOptions {
            home: Home::Scratch,
            persistence: Persistence::AppendOnly,
            listen: Listen::LoopbackPort(None),
        })
        .await?;
        let postgres = PrivatePostgres::start(PostgresOptions::scratch()).await?;
        let onair: SocketAddr = format!("127.0.0.1:{}", free_port()?).parse()?;
        let variables = [
            ("ONAIR_REDIS_URL", redis.url()),
            ("ONAIR_POSTGRES_URL", postgres.url()),
            ("ONAIR_SERVER_API_SECRETS", API_SECRET.to_owned()),
            ("ONAIR_SERVER_NODE_SECRETS", NODE_SECRET.to_owned()),
            ("ONAIR_SERVER_LISTEN", onair.to_string()),
            // The node of the bench is a name only. A poller that finds it away would mark every stream, beside the calls.
            ("ONAIR_RECONCILER_POLL_INTERVAL_MS", "60000".to_owned()),
            ("ONAIR_RECONCILER_NODE_STALE_AFTER_MS", "600000".to_owned()),
            ("ONAIR_RECONCILER_NODE_LOST_AFTER_MS", "900000".to_owned()),
            ("ONAIR_ADMISSION_CONNECTING_TIMEOUT_MS", "300000".to_owned()),
        ];
        let program = onair_program.to_owned();
        let command = move |verb: &str| {
            let mut command = ends_with_us(&program);
            command.arg(verb).env_clear().envs(variables.clone()).stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        ensure!(command("migrate").status().await?.success(), "onair migrate failed");
        let process = command("serve").spawn().context("onair does not start")?;
        let mut floor_process = ends_with_us(std::env::current_exe()?)
            .args(["floor", &redis.url(), &postgres.url()])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = floor_process.stdout.take().context("no output")?;
        let floor = BufReader::new(output).lines().next_line().await?.context("the floor does not start")?.parse()?;
        let credentials = NodeCredentials::new(&[ConfigSecret::new(NODE_SECRET)]).context("a secret")?;
        let password = credentials.password(&NODE.parse()?).reveal().to_owned();
        let mut subject = Self {
            onair,
            floor,
            authorization: format!("Basic {}", BASE64_STANDARD.encode(format!("{NODE}:{password}"))),
            broadcaster: String::new(),
            keys: Vec::new(),
            process,
            serve: Box::new(move || command("serve")),
            floor_process,
            redis,
            postgres,
        };
        subject.prepare(keys).await?;
        Ok(subject)
    }

    async fn prepare(&mut self, keys: usize) -> anyhow::Result<()> {
        self.until_ready().await?;
        self.api("PUT", &format!("/v1/nodes/{NODE}"), &json!({"control_url": "http://127.0.0.1:9", "public_urls": {}}))
            .await?;
        let broadcaster = self.api("POST", "/v1/broadcasters", &json!({"display_name": "Bench"})).await?;
        self.broadcaster = text(&broadcaster["id"]);
        for number in 0..keys {
            let key = self.add_key(&json!({"path": format!("bench/{number}")})).await?;
            self.keys.push(key);
        }
        Ok(())
    }

    /// Makes a stream key with these settings, which nobody else of the bench uses.
    pub async fn add_key(&self, settings: &Value) -> anyhow::Result<Key> {
        let mut body = settings.clone();
        body["broadcaster_id"] = json!(self.broadcaster);
        let created = self.api("POST", "/v1/stream-keys", &body).await?;
        let key = &created["stream_key"];
        Ok(Key { id: text(&key["id"]), path: text(&key["path"]), secret: text(&created["secret"]) })
    }

    /// Where a server listens.
    pub fn address(&self, server: Server) -> SocketAddr {
        match server {
            Server::Floor => self.floor,
            Server::Onair => self.onair,
        }
    }

    /// Frees the floor's paths.
    pub async fn empty_floor(&self) -> anyhow::Result<()> {
        let empty = Arc::new(vec![post("/empty", None, &Value::Null, Connections::Fresh)]);
        let round = generator::play(self.floor, empty, Plan::never_pausing(1, Connections::Fresh, 204)).await?;
        ensure!(round.unexpected == 0, "the floor's paths could not be freed");
        Ok(())
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        for _ in 0..2_000 {
            if self.api("GET", "/readyz", &Value::Null).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("onair is not ready")
    }

    /// One call of the API, on a connection of its own.
    pub async fn api(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(self.onair).await?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: onair\r\nAuthorization: Bearer {API_SECRET}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {head}\n{body}");
        Ok(serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn raw(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.onair).await?;
        let authorization = api_authorization();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: onair\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// How many transitions the history has written.
    pub async fn written(&self) -> anyhow::Result<u64> {
        let metrics = self.raw("/metrics").await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("onair_history_written_total "));
        Ok(line.context("the history counts nothing")?.parse()?)
    }

    /// Waits until the history has written so many: what it still has to do must not be counted to somebody else's turn.
    pub async fn until_written(&self, transitions: u64) -> anyhow::Result<()> {
        for _ in 0..600 {
            if self.written().await? >= transitions {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the history is not written")
    }

    /// The name of the list that an address gives now.
    pub async fn etag(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.raw(path).await?;
        let etag = answer.lines().find_map(|line| line.strip_prefix("etag: "));
        Ok(etag.context("no ETag")?.trim().to_owned())
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let pid = self.process.id().context("onair has ended")?;
        Ok(std::fs::read_to_string(format!("/proc/{pid}/{file}"))?)
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> anyhow::Result<Cpu> {
        let of = |pid: Option<u32>| cpu_of(pid.context("it has ended")?);
        let postmaster = self.postgres.pid().context("Postgres has ended")?;
        let mut postgres = cpu_of(postmaster)?;
        for backend in
            std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?.split_whitespace()
        {
            postgres += cpu_of(backend.parse()?).unwrap_or_default();
        }
        Ok(Cpu {
            onair: of(self.process.id())?,
            floor: of(self.floor_process.id())?,
            redis: of(self.redis.pid())?,
            postgres,
        })
    }

    /// Resident memory of Onair.
    pub fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(mib(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024))
    }

    /// Makes so many more keys that admit, in Postgres alone: the first who comes with one finds it there.
    pub async fn add_keys(&mut self, count: usize) -> anyhow::Result<()> {
        let (mut hashes, mut ids) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let first = self.keys.len();
        for number in first..first + count {
            let secret = any_secret().context("a secret")?;
            let id = Uuid::new_v4();
            hashes.push(secret.hash().0.to_vec());
            ids.push(id);
            let path = format!("bench/{number}");
            self.keys.push(Key { id: id.to_string(), path, secret: secret.reveal().to_owned() });
        }
        let pool = sqlx::PgPool::connect(&self.postgres.url()).await?;
        sqlx::query(
            "INSERT INTO stream_keys (id, broadcaster_id, path, secret_hash, hint, metadata, status, on_conflict, playback, revision, projected_revision)
             SELECT id, broadcaster_id, 'bench/' || ($3 + n - 1), hash, 'abcd', '{}', 'active', 'reject', 'public', 1, 1
             FROM UNNEST($1::uuid[], $2::bytea[]) WITH ORDINALITY AS made (id, hash, n), (SELECT id AS broadcaster_id FROM broadcasters LIMIT 1) AS anybody",
        )
        .bind(ids)
        .bind(hashes)
        .bind(i64::try_from(first)?)
        .execute(&pool)
        .await?;
        pool.close().await;
        Ok(())
    }

    /// Stops Onair and starts it again; how long it took until it was ready.
    pub async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.process.kill().await?;
        let began = std::time::Instant::now();
        self.process = (self.serve)().spawn()?;
        self.until_ready().await?;
        Ok(began.elapsed())
    }

    /// The auth call of a publisher with one of the keys, each of which comes from an address of its own.
    pub fn auth(&self, key: usize, source: Uuid, connections: Connections) -> Vec<u8> {
        let Key { path, secret, .. } = &self.keys[key];
        self.auth_from(key as u128, (path, secret), source, connections)
    }

    /// The auth call of a publisher with this secret on this path, from one of many addresses.
    pub fn auth_from(
        &self,
        address: u128,
        (path, secret): (&str, &str),
        source: Uuid,
        connections: Connections,
    ) -> Vec<u8> {
        let body = json!({
            "ip": format!("10.{}.{}.{}", address % 250, (address >> 8) % 250, (address >> 16) % 250),
            "user": "", "password": "", "token": "", "action": "publish", "path": path, "protocol": "rtmp", "id": source,
            "query": format!("key={secret}"), "userAgent": "FMLE/3.0 (compatible; Lavf59.27.100)",
        });
        post("/v1/mediamtx/auth", Some(&self.authorization), &body, connections)
    }

    /// Ends what was admitted, so that the paths are free again.
    pub async fn end_all(&self, sources: &[(String, Uuid)]) -> anyhow::Result<()> {
        let hook = |(path, source): &(String, Uuid)| {
            let body = json!({"path": path, "source_type": "rtmpConn", "source_id": source});
            post("/v1/hooks/unpublish", Some(&self.authorization), &body, Connections::Kept)
        };
        let requests = Arc::new(sources.iter().map(hook).collect());
        let round = generator::play(self.onair, requests, Plan::never_pausing(32, Connections::Kept, 200)).await?;
        ensure!(round.unexpected == 0, "{} streams could not be ended", round.unexpected);
        Ok(())
    }
}

/// A text of an answer.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A secret as Onair makes them, of which it knows nothing.
pub fn any_secret() -> Option<Secret> {
    let draws = [Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes).concat();
    Secret::from_draws(std::array::from_fn(|place| draws[place] % 62))
}

/// Who calls the API.
pub fn api_authorization() -> String {
    format!("Bearer {API_SECRET}")
}
