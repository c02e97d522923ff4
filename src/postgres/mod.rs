//! Postgres: what must never be forgotten. Broadcasters, stream keys, nodes, the history of streams, the audit log.
//!
//! Role: the only room that knows sqlx and SQL. Everything else sees domain types and [`PostgresError`].
//!
//! Invariants:
//! - Nobody waits without a limit: for a connection, for a lock, for a statement, and (a server that hangs keeps none of
//!   these promises) for a call as a whole.
//! - A connection that was given up in the middle of a call is closed, not handed to the next caller.
//! - Every statement begins with the name of its function, so that Postgres's own logs and views tell who asks.
//! - An error tells codes and names, never a value: values may be hashes of secrets or words of callers.
//! - The admission of a publisher never waits for Postgres, but for a key that Redis has never heard of.

mod audit_log;
mod broadcasters;
mod error;
mod lanes;
mod nodes;
mod rebuild;
mod rows;
mod schema;
mod stream_keys;
mod streams;

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, PgConnection, PgPool, Postgres as PostgresDriver,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use self::lanes::{Health, Lane, Lanes};
use crate::config::PostgresConfig;

pub use audit_log::{AuditEntry, Deed};
pub use broadcasters::BroadcasterPosition;
pub use error::{Constraint, PostgresError};
pub use nodes::NodePut;
pub use schema::{SchemaError, SchemaState};
pub use stream_keys::{InUse, KeyFilter, KeyPosition, KeySettings, KeyWithOwner, NewStreamKey, StatusFilter};
pub use streams::{EndedFilter, EndedPosition, OpenPosition, RecordedStreams, StreamRecord, Totals};

/// The longest that a statement waits for a row that somebody else is changing.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a call may take beyond its statement limit: a transaction has several statements, all of them short.
const CALL_MARGIN: Duration = Duration::from_secs(1);

/// The most items of a page, whatever was asked for.
const PAGE_ITEMS_MAX: u16 = 1000;

/// A handle to Postgres. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
    lanes: Arc<Lanes>,
    health: Health,
    acquire_timeout: Duration,
    call_timeout: Duration,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Postgres(..)")
    }
}

/// What became of a change of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<T, Refusal> {
    /// There is no such row.
    Missing,
    /// The row is in a state that does not allow it. Nothing changed.
    Refused(Refusal),
    /// The row as it is now; the same as before where there was nothing to change.
    Done(T),
}

impl Postgres {
    /// Makes the handle. Connections are opened when they are needed, so a Postgres that is away is no error here.
    ///
    /// # Errors
    /// [`PostgresError::Configuration`] where the address cannot be understood.
    pub fn new(config: &PostgresConfig) -> Result<Self, PostgresError> {
        let statement_timeout = Duration::from_millis(config.statement_timeout_ms);
        let options = PgConnectOptions::from_str(config.url.reveal())
            .map_err(|_| PostgresError::Configuration)?
            .application_name("onair")
            .options([
                ("statement_timeout", in_ms(statement_timeout)),
                ("lock_timeout", in_ms(LOCK_TIMEOUT.min(statement_timeout))),
                ("idle_in_transaction_session_timeout", in_ms(statement_timeout)),
            ])
            // Every statement would be logged with its time; the callers count and log what matters.
            .disable_statement_logging();
        let acquire_timeout = Duration::from_millis(config.acquire_timeout_ms);
        let health = Health::new();
        let looked_after = health.clone();
        let pool = PgPoolOptions::new()
            .max_connections(config.connections_max)
            .acquire_timeout(acquire_timeout)
            // Without a limit of its own, it would take the whole time that a caller has for one dead connection.
            .test_before_acquire(false)
            .before_acquire(move |connection, about| {
                let health = looked_after.clone();
                Box::pin(async move { Ok(health.may_be_used(connection, about).await) })
            })
            .connect_lazy_with(options);
        let lanes = Arc::new(Lanes::new(config.connections_max));
        Ok(Self { pool, lanes, health, acquire_timeout, call_timeout: statement_timeout + CALL_MARGIN })
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// Where Postgres gives none in time.
    pub async fn ping(&self) -> Result<(), PostgresError> {
        self.call(async |connection| sqlx::query("-- ping\nSELECT 1").execute(connection).await.map(drop)).await
    }

    /// How many connections are open, how many of them nobody uses, and how many may be open.
    #[must_use]
    pub fn pool_connections(&self) -> (u64, u64, u64) {
        let max = self.pool.options().get_max_connections();
        (u64::from(self.pool.size()), self.pool.num_idle() as u64, u64::from(max))
    }

    /// Closes the connections, those in use after their call; not longer than a call may take.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(self.call_timeout, self.pool.close()).await;
    }

    /// Runs `work` on a connection, for no longer than a call may take. For what requests ask, see [`Self::call_in`].
    async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, PostgresError> {
        self.call_in(Lane::Rest, work).await
    }

    /// As [`Self::call`], with no more at once than the lane allows.
    async fn call_in<T>(
        &self,
        lane: Lane,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, PostgresError> {
        // A place in the lane and a connection together: who waited for the one has less time for the other.
        let acquiring = async {
            let place = self.lanes.enter(lane).await;
            Ok::<_, PostgresError>((place, self.pool.acquire().await?))
        };
        let acquired = tokio::time::timeout(self.acquire_timeout, acquiring).await;
        let (_place, connection) = acquired
            .map_err(|_| PostgresError::Unavailable("no connection within the time limit".to_owned()))
            .flatten()?;
        let mut lent = Lent { connection, is_usable: false };
        let answer = tokio::time::timeout(self.call_timeout, work(&mut lent.connection)).await;
        let Ok(answer) = answer else {
            // The server would have cancelled the statement by now: it does not speak at all.
            self.health.note_death();
            return Err(PostgresError::Timeout);
        };
        let answer = answer.map_err(PostgresError::from);
        lent.is_usable = !matches!(answer, Err(PostgresError::Unavailable(_)));
        answer
    }
}

/// A connection of the pool during one call.
///
/// Where the call is given up, be it by its time limit or because its caller went away, the state of the connection is
/// unknown, and handing it back would first wait for the rest of the answer, without a limit, in the place of another.
struct Lent {
    connection: PoolConnection<PostgresDriver>,
    is_usable: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_usable {
            self.connection.close_on_drop();
        }
    }
}

fn in_ms(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
