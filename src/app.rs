//! One replica, assembled: which capability gets which store, and which task runs by itself.
//!
//! Role: the only place that knows all capabilities and stores. Handlers get [`App`]; nothing here decides anything.

use std::{fmt::Display, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    admission::Admission,
    config::Config,
    history::{Backlog, History},
    lifecycle::{TaskError, Tasks, every},
    metrics,
    node_credentials::NodeCredentials,
    nodes::{Expectation, NodeClient, Nodes, NodesParts},
    postgres::{Postgres, PostgresError, SchemaError, SchemaState},
    rebuild::{Rebuild, Restorer, Watch, WatchParts},
    redis::{Redis, RedisError},
    stream_keys::StreamKeys,
    streams::{LiveView, Streams},
};

/// How often key changes that Redis does not have yet are tried again.
const OUTBOX_PERIOD_MS: u64 = 1_000;
/// How often gauges are brought up to date.
const GAUGES_PERIOD_MS: u64 = 5_000;

/// How long a store may take to say that it is there. Who has to wait for another's question first waits twice as long.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether the stores answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoresAnswer {
    /// Redis does.
    pub redis: bool,
    /// Postgres does.
    pub postgres: bool,
}

/// Everything that a handler may use.
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// Who may publish and watch.
    pub admission: Admission,
    /// What is on air and what was.
    pub streams: Streams,
    /// Keys and broadcasters.
    pub stream_keys: StreamKeys,
    /// The way of transitions into Postgres.
    pub history: History,
    /// The fleet.
    pub nodes: Nodes,
    /// Passwords of nodes.
    pub credentials: NodeCredentials,
    /// What is true now.
    pub redis: Redis,
    /// What must not be forgotten.
    pub postgres: Postgres,
    /// The tasks of this replica, and whether it is stopping.
    pub tasks: Tasks,
    /// When the stores were asked last, and what they said.
    answered: Mutex<Option<(Instant, StoresAnswer)>>,
}

/// Why a replica cannot start. That a store is away is none of these: the replica starts and waits for it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No node secret is configured.
    #[error("server.node_secrets (ONAIR_SERVER_NODE_SECRETS) is empty")]
    NoNodeSecret,
    /// The Redis address cannot be understood.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The Postgres address cannot be understood.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The database is not of the form that this version works with.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database has no tables of ours, or those of an older version.
    #[error("the database is not up to date: run `onair migrate` first")]
    NotMigrated,
    /// The TLS library cannot be set up.
    #[error("the client for the nodes' control APIs cannot be set up: {0}")]
    NodeClient(String),
    /// The listener has no address.
    #[error("the listener has no address: {0}")]
    Listener(#[from] std::io::Error),
}

impl App {
    /// Assembles a replica that is reached at `config.server.listen`, and starts what runs by itself. All of it runs until
    /// `tasks` are told to stop.
    ///
    /// # Errors
    /// Where the configuration or the database cannot be used. A store that is away is no reason not to start.
    pub async fn start(config: Config, tasks: &Tasks) -> Result<Arc<Self>, StartError> {
        let app = assemble(config, tasks).await?;
        run_in_background(&app, tasks);
        Ok(app)
    }

    /// Whether the stores answer. They are asked by one at a time, for all who came before: everybody may ask, and the connections to
    /// Postgres are few.
    pub async fn stores_answer(&self) -> StoresAnswer {
        let came_at = Instant::now();
        let mut answered = self.answered.lock().await;
        if let Some((asked_at, found)) = *answered
            && asked_at >= came_at
        {
            return found;
        }
        let asked_at = Instant::now();
        let (redis, postgres) = tokio::join!(answers(self.redis.ping()), answers(self.postgres.ping()));
        let found = StoresAnswer { redis, postgres };
        *answered = Some((asked_at, found));
        found
    }
}

async fn answers<E: Display>(ping: impl Future<Output = Result<(), E>>) -> bool {
    match tokio::time::timeout(PING_TIMEOUT, ping).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a store does not answer");
            false
        }
        Err(_) => false,
    }
}

async fn assemble(config: Config, tasks: &Tasks) -> Result<Arc<App>, StartError> {
    let config = Arc::new(config);
    let replica = Uuid::now_v7();
    let credentials = NodeCredentials::new(&config.server.node_secrets).ok_or(StartError::NoNodeSecret)?;
    let redis = Redis::connect(&config.redis).await?;
    let postgres = Postgres::new(&config.postgres)?;
    check_schema(&postgres).await?;

    let live = LiveView::start(redis.clone(), tasks);
    let kick_owed = Arc::new(Notify::new());
    let client = NodeClient::new(&config.reconciler, credentials.clone())
        .map_err(|error| StartError::NodeClient(error.to_string()))?;
    let nodes = Nodes::start(
        NodesParts {
            config: config.reconciler.clone(),
            stall_after_ms: config.admission.stall_after_ms,
            renditions: config.renditions.suffixes.clone(),
            restorer: Restorer::new(redis.clone(), postgres.clone(), config.admission.connecting_timeout_ms),
            replica,
            redis: redis.clone(),
            postgres: postgres.clone(),
            live: live.clone(),
            client,
            kick_owed: Arc::clone(&kick_owed),
            wiring: Expectation { public_url: config.public_url(), credentials: credentials.clone() },
        },
        tasks,
    );
    let stores = || (redis.clone(), postgres.clone());
    let backlog = Backlog::watch(redis.clone(), &config.history, tasks);
    let admission = Admission::new(&config, credentials.clone(), stores(), (Arc::clone(&kick_owed), backlog), tasks);
    let mut watch = Watch::new(WatchParts {
        rebuild: Rebuild::new(&config, redis.clone(), postgres.clone()),
        live: live.clone(),
        admission: admission.clone(),
        replica,
    });
    let streams = Streams::start(stores(), live, kick_owed, config.reconciler.cooldown_ms, tasks);
    let stream_keys = StreamKeys::new(postgres.clone(), redis.clone(), config.renditions.suffixes.clone());
    let history = History::start(redis.clone(), postgres.clone(), &config.history, replica, tasks);
    Box::pin(watch.at_start()).await;
    tasks.spawn("watch_memory", watch.run(tasks.stopping()));
    let tasks = tasks.clone();
    let answered = Mutex::new(None);
    Ok(Arc::new(App {
        config,
        admission,
        streams,
        stream_keys,
        history,
        nodes,
        credentials,
        redis,
        postgres,
        tasks,
        answered,
    }))
}

/// A database that is away may be right; it is checked by everyone who uses it. One that is there must be.
async fn check_schema(postgres: &Postgres) -> Result<(), StartError> {
    match postgres.schema().await {
        Ok(SchemaState::Current) => Ok(()),
        Ok(_) => Err(StartError::NotMigrated),
        Err(SchemaError::Postgres(error)) => {
            tracing::warn!(%error, "Postgres is away: starting without it");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn run_in_background(app: &Arc<App>, tasks: &Tasks) {
    tasks.spawn("configured_nodes", put_configured_nodes(Arc::clone(app)));
    tasks.spawn("outbox", project_pending_keys(Arc::clone(app)));
    tasks.spawn("gauges", keep_gauges(Arc::clone(app)));
    tasks.spawn("metrics_upkeep", metrics::upkeep(tasks.stopping()));
}

/// Puts the nodes of the configuration file into the fleet, as soon as Postgres can be asked.
async fn put_configured_nodes(app: Arc<App>) -> Result<(), TaskError> {
    let stopping = app.tasks.stopping();
    let mut ticker = every(OUTBOX_PERIOD_MS, &stopping);
    let mut is_told = false;
    while ticker.beat().await {
        let Err(error) = app.nodes.put_configured(&app.config.nodes).await else { break };
        if !is_told {
            tracing::warn!(%error, "the nodes of the configuration could not be stored yet; it is tried each second");
            is_told = true;
        }
    }
    stopping.cancelled().await;
    Ok(())
}

/// Repeats the key changes that Redis did not take, until it has them.
async fn project_pending_keys(app: Arc<App>) -> Result<(), TaskError> {
    let mut ticker = every(OUTBOX_PERIOD_MS, &app.tasks.stopping());
    while ticker.beat().await {
        match app.stream_keys.project_pending().await {
            Ok(report) => {
                if !report.ended.is_empty() {
                    app.nodes.wake_kicker();
                }
                if let Some(error) = report.stopped_by {
                    tracing::debug!(%error, "key changes still wait for Redis");
                }
            }
            Err(error) => tracing::debug!(%error, "key changes that wait could not be looked for"),
        }
    }
    Ok(())
}

async fn keep_gauges(app: Arc<App>) -> Result<(), TaskError> {
    let mut ticker = every(GAUGES_PERIOD_MS, &app.tasks.stopping());
    let mut courtesy = app.redis.courtesy();
    while ticker.beat().await {
        let answering = app.stores_answer().await;
        if answering.redis {
            metrics::redis_up();
        } else {
            metrics::redis_down();
        }
        // Not told where Redis is away, or does not let us ask.
        if let Ok(memory) = app.redis.memory().await {
            metrics::redis_memory(memory.used_bytes, memory.max_bytes);
        }
        let pool = app.redis.pool();
        metrics::redis_pool(pool.connected, pool.max, pool.admissions_waiting);
        let (open, idle, max) = app.postgres.pool_connections();
        metrics::postgres_pool(open, idle, max);
        if answering.postgres {
            metrics::postgres_up();
        } else {
            metrics::postgres_down();
        }
        // Whoever counts what is on air reads all that has changed.
        if !courtesy.has_to_wait()
            && let Ok(view) = app.streams.view().await
        {
            view.snapshot.count_into_metrics(app.nodes.fleet().keys());
        }
    }
    Ok(())
}
