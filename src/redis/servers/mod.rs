//! The servers that Redis consists of, and which of them holds a key: one that holds everything, the masters of a cluster, or
//! the master that sentinels name.
//!
//! Role: connections to each server, and the map that says whose turn it is. Everything above asks for a connection by key and
//! knows nothing of the form.
//!
//! Invariants:
//! - Each server has connections of its own: one that is away costs the keys that it holds and nobody else's.
//! - A command goes to one server, once. Where that server says that it is another's turn, or gives no answer, the command
//!   fails, and the map is looked at again at once; see `docs/decisions/0001-redis-client.md`.
//! - What a server says of the map is taken at its word, for a wrong one is found out by the next command: a server does not
//!   carry out what is another's.
//! - The connections to a server that is on the map no more are closed with it.

mod discovery;
mod server;

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fred::{
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike as _, KeysInterface as _},
    types::{
        Builder, Expiration,
        cluster::ClusterRouting,
        config::{
            Config, Options, ReconnectError, ReconnectPolicy, Server as Address, ServerConfig, UnresponsiveConfig,
        },
    },
};
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::discovery::Masters;
pub(super) use self::server::Server;
use super::{PROBE_TTL_MS, RedisError, batches::Batches, connection::Connection, keys, tls};
use crate::{
    config::RedisConfig,
    domain::Partition,
    lifecycle::{TaskError, jitter},
};

/// How often the map is looked at while nothing is wrong with it.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How long after a look the next one is made, where something is wrong.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long an attempt to connect, or a step of it, may take, and the longest pause before the next one. An attempt that
/// began while Redis could not be reached may have to run out when Redis is back: together they bound that wait, far below
/// the two seconds that are promised.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(750);
const RECONNECT_PAUSE_MAX_MS: u32 = 500;

/// The most commands that wait to be sent on one connection. More are answered [`RedisError::Unavailable`].
const COMMANDS_WAITING_MAX: usize = 10_000;

/// How long a connection may owe an answer before it is given up: longer than any command is waited for, but not long, for
/// nobody is told when the other side of a connection has vanished.
const SILENCE_MIN: Duration = Duration::from_millis(500);

/// Answers of a server that is no longer the one to ask, such as a master that became a replica: where there is one address,
/// a new connection may lead to its successor, this one never will.
const RECONNECT_ON: [ReconnectError; 4] = [
    ReconnectError::ReadOnly,
    ReconnectError::MasterDown,
    ReconnectError::ClusterDown,
    ReconnectError::Custom("MOVED"),
];

/// How Redis is made up.
enum Form {
    /// One server holds everything.
    Single,
    /// Masters hold some slots each; these servers tell which, besides the masters themselves.
    Cluster(Vec<Address>),
    /// Whom these sentinels name for this service holds everything.
    Sentinels(Vec<Connection>, String),
}

/// Who holds what.
#[derive(Clone)]
struct Map {
    servers: Vec<Arc<Server>>,
    /// Absent where the first server holds everything.
    slots: Option<ClusterRouting>,
}

pub(super) struct Servers {
    form: Form,
    config: Config,
    connections: usize,
    command_timeout: Duration,
    map: RwLock<Arc<Map>>,
    look_again: Notify,
    /// Whether a server said since the last look that it is no master any more.
    is_demoted: AtomicBool,
    /// How many looks there have been.
    looks: watch::Sender<u64>,
    next_asked: AtomicUsize,
}

impl Servers {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        let unusable = |error| RedisError::from_fred(&error);
        if config.url.reveal().starts_with("rediss") {
            // Fails where it is there already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut fred_config = Config::from_url(config.url.reveal()).map_err(unusable)?;
        fred_config.fail_fast = false;
        if let (Some(_), Some(ca_file)) = (&fred_config.tls, &config.ca_file) {
            fred_config.tls = Some(tls::trusting(ca_file)?);
        }
        let mut servers = Self {
            form: Form::Single,
            connections: config.connections,
            command_timeout: Duration::from_millis(config.command_timeout_ms),
            map: RwLock::new(Arc::new(Map { servers: Vec::new(), slots: None })),
            look_again: Notify::new(),
            is_demoted: AtomicBool::new(false),
            looks: watch::Sender::new(0),
            next_asked: AtomicUsize::new(0),
            config: fred_config,
        };
        match servers.config.server.clone() {
            ServerConfig::Clustered { hosts, .. } => servers.form = Form::Cluster(hosts),
            ServerConfig::Sentinel { hosts, service_name, username, password } => {
                let config = Config { username, password, database: None, ..servers.config.clone() };
                let ask = |host| servers.connect_with(&config, ServerConfig::Centralized { server: host });
                let sentinels = hosts.into_iter().map(ask).collect::<Result<_, _>>()?;
                servers.form = Form::Sentinels(sentinels, service_name);
            }
            server => {
                let only = Arc::new(servers.connect_to(server)?);
                servers.replace(Map { servers: vec![only], slots: None });
            }
        }
        Ok(servers)
    }

    /// Waits until the servers are known and connected, at most for `limit`.
    pub(super) async fn first_connections(&self, limit: Duration) {
        let connecting = async {
            while self.map().servers.is_empty() {
                Box::pin(self.look()).await;
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            }
            let map = self.map();
            let all = map.servers.iter().flat_map(|server| server.all());
            join_all(all.map(|one| one.wait_for_connect())).await;
        };
        // Whether they connected shows in every later command; a Redis that is away is no reason not to start.
        let _ = tokio::time::timeout(limit, connecting).await;
    }

    /// A connection to the server that holds `key`, for one small command.
    pub(super) fn quick(&self, key: &str) -> Result<Arc<Connection>, RedisError> {
        let map = self.map();
        self.found(map.holder(key).and_then(|number| map.servers[number].quick()))
    }

    /// A connection to the server that holds `key`, for an answer that may be large.
    pub(super) fn bulk(&self, key: &str) -> Result<Arc<Connection>, RedisError> {
        let map = self.map();
        self.found(map.holder(key).and_then(|number| map.servers[number].bulk()))
    }

    /// The server that holds `key`.
    pub(super) fn server(&self, key: &str) -> Result<Arc<Server>, RedisError> {
        let map = self.map();
        self.found(map.holder(key).map(|number| Arc::clone(&map.servers[number])))
    }

    /// One connection to each server.
    pub(super) fn each(&self) -> Vec<Result<Arc<Connection>, RedisError>> {
        self.map().servers.iter().map(|server| server.quick().ok_or(RedisError::Unavailable)).collect()
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Server>> {
        self.map().servers.clone()
    }

    /// Whether keys are divided into slots.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.form, Form::Cluster(_))
    }

    /// Which of `keys` lie together: their places in the order given, for each server. Those that no server is known for are left out.
    pub(super) fn together(&self, keys: &[String]) -> Vec<Vec<usize>> {
        let map = self.map();
        if map.slots.is_none() {
            return vec![(0..keys.len()).collect()];
        }
        let mut groups = vec![Vec::new(); map.servers.len()];
        for (place, key) in keys.iter().enumerate() {
            if let Ok(server) = self.found(map.holder(key)) {
                groups[server].push(place);
            }
        }
        groups.retain(|group| !group.is_empty());
        groups
    }

    /// A connection to the server that receives a slot. One that holds none yet is not on the map, and is not asked.
    pub(super) fn receiving(&self, address: &Address) -> Result<Arc<Connection>, RedisError> {
        let map = self.map();
        self.found(map.servers.iter().find(|server| server.is_at(address)).and_then(|server| server.quick()))
    }

    fn found<T>(&self, found: Option<T>) -> Result<T, RedisError> {
        if found.is_none() {
            self.look_again.notify_one();
        }
        found.ok_or(RedisError::Unavailable)
    }

    /// A command has failed: where that may be because another server should have been asked, the map is looked at again.
    pub(super) fn failed(&self, error: &FredError) {
        let is_demoted = ["READONLY", "MASTERDOWN"].iter().any(|word| error.details().starts_with(word));
        let is_elsewhere = is_demoted
            || matches!(error.kind(), ErrorKind::Cluster | ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout);
        if is_elsewhere {
            self.look_again.notify_one();
        }
        if is_demoted {
            self.is_demoted.store(true, Ordering::Relaxed);
        }
    }

    /// After a READONLY answer, writes on every connection: fred reconnects only those that get READONLY themselves, and one that is used
    /// for reads alone would stay with the demoted server.
    async fn write_on_all(&self) {
        if !self.is_demoted.swap(false, Ordering::Relaxed) {
            return;
        }
        let key = Partition::all().map(keys::probe).next().unwrap_or_default();
        let map = self.map();
        let writing = map.servers.iter().flat_map(|server| server.all()).map(|connection| {
            let expiry = Some(Expiration::PX(PROBE_TTL_MS));
            let write = connection.set::<(), _, _>(&key, 1, expiry, None, false);
            connection.answer(self.command_timeout, write)
        });
        join_all(writing).await;
    }

    /// Whether another server may hold a key tomorrow.
    pub(super) fn may_change(&self) -> bool {
        !matches!(self.form, Form::Single)
    }

    /// Looks at the map, or waits for somebody else who does, because a server has said that it holds a key no more.
    pub(super) async fn looked_again(&self) {
        let mut looks = self.looks.subscribe();
        self.look_again.notify_one();
        let _ = tokio::time::timeout(self.command_timeout, looks.changed()).await;
    }

    fn map(&self) -> Arc<Map> {
        // It is replaced as a whole, so a panic elsewhere says nothing about it.
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, map: Map) {
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
    }

    /// Keeps the map right until `stopping`.
    pub(super) async fn keep_map(self: Arc<Self>, stopping: CancellationToken) -> Result<(), TaskError> {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                () = self.look_again.notified() => {}
                () = tokio::time::sleep(LOOK_PERIOD.mul_f64(jitter())) => {}
            }
            Box::pin(self.look()).await;
            self.tell_troubles();
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Says why a server cannot be connected to: nobody else hears of it.
    fn tell_troubles(&self) {
        let map = self.map();
        let sentinels = match &self.form {
            Form::Sentinels(sentinels, _) => sentinels.as_slice(),
            Form::Single | Form::Cluster(_) => &[],
        };
        map.servers.iter().for_each(|server| server.tell_trouble());
        sentinels.iter().for_each(Connection::tell_trouble);
    }

    async fn look(&self) {
        let found = match &self.form {
            Form::Single => return self.write_on_all().await,
            Form::Cluster(seeds) => self.masters_of_cluster(seeds).await,
            Form::Sentinels(sentinels, service) => self.master_of_sentinels(sentinels, service).await,
        };
        if let Some(masters) = found {
            self.change_to(masters);
        }
        self.looks.send_modify(|looks| *looks += 1);
    }

    fn change_to(&self, (addresses, slots): Masters) {
        let known = self.map();
        let mut servers = Vec::with_capacity(addresses.len());
        for address in addresses {
            let address = ServerConfig::Centralized { server: address };
            let server = known.servers.iter().find(|server| server.address == address).map(Arc::clone);
            match server.map_or_else(|| self.connect_to(address).map(Arc::new), Ok) {
                Ok(server) => servers.push(server),
                Err(error) => return tracing::error!(%error, "a server of Redis cannot be connected to"),
            }
        }
        let is_same = known.servers.len() == servers.len()
            && known.servers.iter().zip(&servers).all(|(known, server)| Arc::ptr_eq(known, server));
        if !is_same {
            tracing::info!(servers = servers.len(), "Redis has other servers than before");
        }
        self.replace(Map { servers, slots });
    }

    fn connect_to(&self, address: ServerConfig) -> Result<Server, RedisError> {
        let connect = |address: &ServerConfig| self.connect_with(&self.config, address.clone());
        Server::open(address, self.connections, Batches::new(self.is_cluster()), connect)
    }

    fn connect_with(&self, config: &Config, server: ServerConfig) -> Result<Connection, RedisError> {
        let limit = self.command_timeout;
        let silence_max = limit.saturating_mul(2).max(SILENCE_MIN);
        let mut builder = Builder::from_config(Config { server, ..config.clone() });
        builder.set_policy(ReconnectPolicy::new_exponential(0, 50, RECONNECT_PAUSE_MAX_MS, 2));
        builder.with_performance_config(|performance| performance.default_command_timeout = limit);
        builder.with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = COMMANDS_WAITING_MAX;
            connection.tcp.nodelay = Some(true);
            connection.unresponsive = UnresponsiveConfig { max_timeout: Some(silence_max), interval: silence_max / 4 };
            connection.reconnect_errors = match self.form {
                Form::Single => RECONNECT_ON.to_vec(),
                // Another server is asked then.
                Form::Cluster(_) | Form::Sentinels(..) => Vec::new(),
            };
        });
        let options = Options { fail_fast: true, max_attempts: Some(1), timeout: Some(limit), ..Options::default() };
        let client = builder.build().map_err(|error| RedisError::from_fred(&error))?;
        Ok(Connection::open(&client, &options, silence_max))
    }

    /// Closes the connections after what is under way.
    pub(super) async fn close(&self) {
        let map = self.map();
        let all = map.servers.iter().flat_map(|server| server.all());
        join_all(all.map(|one| tokio::time::timeout(self.command_timeout, one.quit()))).await;
    }
}

impl Map {
    fn holder(&self, key: &str) -> Option<usize> {
        let Some(slots) = &self.slots else {
            return (!self.servers.is_empty()).then_some(0);
        };
        let master = slots.get_server(ClusterRouting::hash_key(key.as_bytes()))?;
        self.servers.iter().position(|server| server.is_at(master))
    }
}
