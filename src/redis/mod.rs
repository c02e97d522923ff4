//! Redis: what is true now.
//!
//! Role: the only room that knows fred, Redis keys and Lua. Everything else sees domain types and [`RedisError`].
//!
//! Invariants:
//! - Every transition of a stream is one Lua script (`lua/<verb>.lua`), and so atomic.
//! - Every command has a time limit of its own, kept by this module and not only by the client library, so that no caller
//!   waits on a Redis that hangs. A command is not even queued while the connection is down.
//! - Keys are spelled in `keys.rs` and nowhere else.
//! - Admissions and bulk reads use different connections: a large answer never stands in front of a small one.
//! - Every command names the key that it is about, and `servers/` knows who holds it: in a cluster, several servers do.

mod attempts;
mod batches;
mod call;
mod connection;
mod events;
mod keys;
mod kicks;
mod leases;
mod live;
mod memory;
mod nodes;
mod partitions;
mod pool;
mod projection;
mod rebuild;
mod record;
mod resharding;
mod rush;
mod script;
mod servers;
mod settings;
mod tls;
mod transitions;
mod turns;

use std::{future::Future, sync::Arc, time::Duration};

use fred::{
    clients::{Client, Pipeline},
    error::{Error as FredError, ErrorKind},
    interfaces::KeysInterface,
    types::{Expiration, FromValue, Value},
};
use futures_util::{FutureExt as _, future::join_all};
use tokio::sync::Notify;

use self::{connection::Connection, resharding::Told, rush::Rush, servers::Servers};
use crate::{config::RedisConfig, domain::Partition, lifecycle::Tasks};

pub use batches::Ticket;
pub use events::{Event, EventBatch, EventId, EventKind, LastWords};
pub use kicks::{KickIntent, OwedKicks};
pub use leases::{FencingToken, Lease};
pub use live::{CHANGES_KEPT, Changes, DueStream, Holders, PartitionVersions};
pub use memory::Memory;
pub use nodes::NodeDirectory;
pub use partitions::{Closed, Generations, Opening};
pub use pool::Pool;
pub use projection::{KeyInPlace, KeyProjection, Projected};
pub use rebuild::{FoundKey, HistoryOf, Holding, Listings, RememberedBy, Restore, Restored};
pub use rush::Courtesy;
pub use settings::RedisSettings;
pub use transitions::{
    Admission, AdmitAnswer, AdmitRequest, Afterwards, Confirmation, Description, EndRequest, Ending, Holder,
    Observation, Watcher,
};

/// Why Redis gave no answer that could be used. Never holds a key's secret or an argument of the command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// There is no connection now; reconnecting goes on by itself.
    #[error("Redis is not reachable")]
    Unavailable,
    /// Far more wait for it than it can serve in time. Nothing was sent.
    #[error("too many wait for Redis")]
    Overloaded,
    /// No answer within the time limit. The command may or may not be carried out.
    #[error("Redis did not answer in time")]
    Timeout,
    /// It has lost what it must hold, or may have, and does not have it back yet: see `src/rebuild/`.
    #[error("Redis has lost its memory, which is being brought back")]
    MemoryLost,
    /// Redis answered with an error, such as `OOM` or `READONLY`.
    #[error("Redis refused: {0}")]
    Refused(String),
    /// The answer is not of the form that this version of Onair writes.
    #[error("unexpected answer of Redis: {0}")]
    Protocol(String),
    /// The address or credentials in the configuration cannot be used.
    #[error("the Redis configuration cannot be used: {0}")]
    Configuration(String),
}

impl RedisError {
    /// Whether nobody said anything, in time or at all.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout)
    }

    /// Whether it has no memory left for what would take more. What frees some is still done.
    #[must_use]
    pub fn is_of_full_memory(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason.starts_with("OOM"))
    }

    fn from_fred(error: &FredError) -> Self {
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::Config | ErrorKind::Auth | ErrorKind::Url => Self::Configuration(brief(error)),
            ErrorKind::IO
            | ErrorKind::Canceled
            | ErrorKind::Routing
            | ErrorKind::Backpressure
            | ErrorKind::Cluster
            | ErrorKind::Sentinel => Self::Unavailable,
            ErrorKind::Parse | ErrorKind::Protocol | ErrorKind::NotFound => Self::Protocol(brief(error)),
            _ => Self::Refused(brief(error)),
        }
    }

    fn is_noscript(error: &FredError) -> bool {
        error.details().starts_with("NOSCRIPT")
    }

    fn is_moved(error: &FredError) -> bool {
        error.details().starts_with("MOVED")
    }
}

/// The first words of an error: Redis puts its code there, and never an argument.
fn brief(error: &FredError) -> String {
    error.details().chars().take(120).collect()
}

/// How long the first connections are waited for at the start.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// How long what a sign of life leaves behind is kept.
const PROBE_TTL_MS: i64 = 60_000;

/// The most commands of one pipeline: a larger one would keep Redis from everybody else for too long.
const PIPELINED_MAX: usize = 500;

/// A handle to Redis. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Arc<Servers>,
    /// What keeps the map of the servers right, and carries admissions.
    tasks: Tasks,
    command_timeout: Duration,
    /// Woken where an admission meets a closed partition.
    memory_lost: Notify,
    rush: Rush,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// Which connection a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// For admissions and everything else that is small.
    Quick,
    /// For what may be large.
    Bulk,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Redis(..)")
    }
}

impl Redis {
    /// Opens the connections and loads the scripts.
    ///
    /// Waits for the first connection no longer than the configured limit. A Redis that is away is no error: connecting
    /// goes on in the background, and every command answers [`RedisError::Unavailable`] until it succeeds.
    ///
    /// # Errors
    /// [`RedisError::Configuration`] where the address cannot be understood.
    pub async fn connect(config: &RedisConfig) -> Result<Self, RedisError> {
        let servers = Arc::new(Servers::new(config)?);
        servers.first_connections(FIRST_WAIT).await;
        let tasks = Tasks::new();
        tasks.spawn("redis_servers", Arc::clone(&servers).keep_map(tasks.stopping()));
        let command_timeout = Duration::from_millis(config.command_timeout_ms);
        Ok(Self {
            inner: Arc::new(Inner {
                servers,
                tasks,
                command_timeout,
                memory_lost: Notify::new(),
                rush: Rush::default(),
            }),
        })
    }

    /// Asks for a sign of life: whether Redis takes a write. One that is full or a replica answers a PING and admits nobody. In a
    /// cluster, one server's is enough, for the paths that it holds can be published.
    ///
    /// # Errors
    /// Where none gives one in time.
    pub async fn ping(&self) -> Result<(), RedisError> {
        let probes: Vec<String> = Partition::all().map(keys::probe).collect();
        let together = self.inner.servers.together(&probes);
        let asking = together.iter().map(|places| self.probe(&probes[places[0]]));
        let answers = join_all(asking).await;
        answers.into_iter().min_by_key(Result::is_err).unwrap_or(Err(RedisError::Unavailable))
    }

    async fn probe(&self, key: &str) -> Result<(), RedisError> {
        let connection = self.quick(key)?;
        let expiry = Some(Expiration::PX(PROBE_TTL_MS));
        self.limited(&connection, connection.set::<(), _, _>(key, 1, expiry, None, false)).await
    }

    /// Closes the connections after what is under way.
    pub async fn close(&self) {
        self.inner.tasks.join(self.inner.command_timeout).await;
        self.inner.servers.close().await;
    }

    /// A connection for one small command about `key`.
    fn quick(&self, key: &str) -> Result<Arc<Connection>, RedisError> {
        self.inner.servers.quick(key)
    }

    /// A connection for a command about no key.
    fn any(&self) -> Result<Arc<Connection>, RedisError> {
        self.inner.servers.each().into_iter().find_map(Result::ok).ok_or(RedisError::Unavailable)
    }

    /// A connection for a command about `key` whose answer may be large.
    fn bulk(&self, key: &str) -> Result<Arc<Connection>, RedisError> {
        self.inner.servers.bulk(key)
    }

    /// What a connection answers to a command within the limit.
    fn limited<T>(
        &self,
        connection: &Connection,
        command: impl Future<Output = Result<T, FredError>>,
    ) -> impl Future<Output = Result<T, RedisError>> {
        let answered = self.answered(connection, command);
        async { answered.await.map_err(|error| RedisError::from_fred(&error)) }
    }

    /// The same in the words of the server, for whoever has to tell them apart. A connection that owes an answer for too long is made anew.
    fn answered<T>(
        &self,
        connection: &Connection,
        command: impl Future<Output = Result<T, FredError>>,
    ) -> impl Future<Output = Result<T, FredError>> {
        // fred's futures are so large that moving one costs more than its place.
        let command = Box::pin(command);
        async {
            let timeout = || Err(FredError::new(ErrorKind::Timeout, "no answer in time"));
            let answer = connection.answer(self.inner.command_timeout, command).await.unwrap_or_else(timeout);
            answer.inspect_err(|error| self.inner.servers.failed(error))
        }
    }

    /// Carries out one command for each of `items`, which `put` puts into a pipeline, about the key that `key` makes of it.
    /// Gives the answers in their order. Every server that holds some of the keys is asked once, and all of them at the same
    /// time.
    async fn pipelined<I, T>(
        &self,
        lane: Lane,
        items: &[I],
        key: impl Fn(&I) -> String,
        put: impl Fn(&Pipeline<Client>, &str, &I) -> Result<(), FredError>,
    ) -> Result<Vec<T>, RedisError>
    where
        T: FromValue,
    {
        self.pipelined_apart(lane, items, key, put).await?.into_iter().collect()
    }

    /// As [`Self::pipelined`], with what each answer came to: a server that gives none costs its own only.
    async fn pipelined_apart<I, T>(
        &self,
        lane: Lane,
        items: &[I],
        key: impl Fn(&I) -> String,
        put: impl Fn(&Pipeline<Client>, &str, &I) -> Result<(), FredError>,
    ) -> Result<Vec<Result<T, RedisError>>, RedisError>
    where
        T: FromValue,
    {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = items.iter().map(key).collect();
        let together = self.inner.servers.together(&keys);
        let mut asking = Vec::with_capacity(together.len());
        for places in &together {
            let key = &keys[places[0]];
            let connection = match lane {
                Lane::Quick => self.quick(key),
                Lane::Bulk => self.bulk(key),
            };
            let sent = connection.and_then(|connection| {
                let pipeline = connection.pipeline();
                for &place in places {
                    put(&pipeline, &keys[place], &items[place]).map_err(|error| RedisError::from_fred(&error))?;
                }
                Ok(self.send(connection, pipeline, places.len()))
            });
            asking.push(async { sent?.await });
        }
        // Who holds the others is not known now.
        let mut answers: Vec<Result<T, RedisError>> = keys.iter().map(|_| Err(RedisError::Unavailable)).collect();
        for (places, told) in together.iter().zip(join_all(asking).await) {
            let told = match told {
                Ok(told) => told,
                Err(error) => {
                    for &place in places {
                        answers[place] = Err(error.clone());
                    }
                    continue;
                }
            };
            if told.len() < places.len() {
                return Err(RedisError::Protocol("a pipeline was answered in part".to_owned()));
            }
            for (&place, told) in places.iter().zip(told) {
                let value = match told {
                    Told::Value(value) => Ok(value),
                    Told::AskElsewhere(address) => {
                        self.ask_for(&address, |pipeline| put(pipeline, &keys[place], &items[place])).await
                    }
                };
                let read = |value| T::from_value(value).map_err(|error| RedisError::from_fred(&error));
                answers[place] = value.and_then(read);
            }
        }
        Ok(answers)
    }

    /// Carries out one command as [`Self::pipelined`] does.
    async fn single<T>(
        &self,
        lane: Lane,
        key: String,
        put: impl Fn(&Pipeline<Client>, &str) -> Result<(), FredError>,
    ) -> Result<T, RedisError>
    where
        T: FromValue,
    {
        let answers = self.pipelined(lane, &[key], String::clone, |pipeline, key, _| put(pipeline, key)).await?;
        answers.into_iter().next().ok_or_else(|| RedisError::Protocol("no answer to one command".to_owned()))
    }

    async fn send(
        &self,
        connection: Arc<Connection>,
        pipeline: Pipeline<Client>,
        count: usize,
    ) -> Result<Vec<Told>, RedisError> {
        self.limited(&connection, resharding::told(&pipeline, count)).await
    }
}

/// What those said who gave an answer: a server that is silent, full, or without its replicas, costs its own only. An error where nobody
/// did.
fn answered_at_all<T>(answers: Vec<Result<T, RedisError>>) -> Result<Vec<Option<T>>, RedisError> {
    let nobody = answers.iter().all(Result::is_err);
    let unless_nobody = |answer: Result<T, RedisError>| match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if nobody => Err(error),
        Err(error) => {
            tracing::debug!(%error, "a part of what was asked for was not answered");
            Ok(None)
        }
    };
    answers.into_iter().map(unless_nobody).collect()
}

/// What came of putting a command into a pipeline, which takes it without waiting.
fn queued(putting: impl Future<Output = Result<(), FredError>>) -> Result<(), FredError> {
    let refused = || Err(FredError::new(ErrorKind::Unknown, "a pipeline did not take a command"));
    tokio::task::unconstrained(putting).now_or_never().unwrap_or_else(refused)
}

/// The words and values of a script's answer.
fn answer_parts(answer: Value) -> Result<(String, std::vec::IntoIter<Value>), RedisError> {
    let Value::Array(parts) = answer else {
        return Err(RedisError::Protocol("a script answered with something other than a list".to_owned()));
    };
    let mut parts = parts.into_iter();
    let word = parts.next().and_then(|value| value.as_string());
    word.map(|word| (word, parts)).ok_or_else(|| RedisError::Protocol("a script answered without a word".to_owned()))
}

fn unknown_word(script: &str, word: &str) -> RedisError {
    RedisError::Protocol(format!("{script} answered {:?}", word.chars().take(40).collect::<String>()))
}
