//! The write-behind: every transition, from the event log in Redis into the history in Postgres.
//!
//! Role: a task of each replica. One of them writes, by a lease; the others stand by.
//!
//! Invariants:
//! - Exactly once in effect: an entry of the log is removed only after its transaction is committed, and a state that is
//!   written again changes nothing. The lease only saves double work; nothing goes wrong where two replicas write.
//! - Admissions, lists and hooks never wait for this. While Postgres is away the log in Redis grows, and nothing is kept
//!   in this process.
//! - One entry never holds up those behind it: what Postgres refuses for what it is, is reported and left out, by itself.
//! - An entry that a newer version wrote is not lost: what this one cannot read whole is set aside, and put back once by
//!   whoever takes over. Written later, it changes nothing that came after it.

mod backlog;
mod pass;

pub use backlog::Backlog;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::HistoryConfig,
    domain::Partition,
    lifecycle::{TaskError, Tasks, every},
    metrics,
    postgres::Postgres,
    redis::{Lease, Redis, RedisError},
    store_error::StoreError,
};

/// How long the writer rests between two batches of a backlog, in times of what the batch took: a storm of publishers makes the
/// history late rather than the admissions slow.
const RESTS_PER_PASS: u32 = 2;

/// The longest rest.
const REST_MAX: Duration = Duration::from_millis(250);

/// How long a replica that fell silent keeps the work. A batch that takes longer is finished by two, which does no harm.
const LEASE_TTL_MS: u64 = 2_500;

/// The first and the longest pause after an error. The longest bounds how late the history resumes when a store is back.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The partitions that one writer takes care of, and the lease that says which replica does.
///
/// There is one share of all partitions: one writer was measured to empty a log at 15,000 transitions a second on two
/// cores, with Redis and Postgres on the same two. More shares are more writers.
#[derive(Debug, Clone)]
struct Share {
    lease: String,
    partitions: Vec<Partition>,
}

impl Share {
    fn of_all() -> Self {
        Self { lease: "history".to_owned(), partitions: Partition::all().collect() }
    }
}

/// Whether this replica is the one that writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Another one does, or none can.
    #[default]
    StandingBy,
    /// It does.
    Writing,
}

/// How the history stands, as this replica knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryReport {
    /// Whether this replica writes.
    pub role: Role,
    /// Entries that wait in the log. Only the writing replica counts them.
    pub backlog_entries: u64,
    /// Entries that this replica has written since it started.
    pub written: u64,
    /// Entries among them that Postgres refused; each is in this replica's log.
    pub left_out: u64,
    /// Entries that this version could not read, and kept for one that can.
    pub set_aside: u64,
    /// Entries that this replica dropped unread because they were too many.
    pub dropped: u64,
    /// Why the last attempt failed; `None` after one that did not.
    pub last_error: Option<String>,
}

/// A handle to the write-behind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    report: Arc<Mutex<HistoryReport>>,
}

impl History {
    /// Starts the task. It runs until `tasks` stop.
    #[must_use]
    pub fn start(redis: Redis, postgres: Postgres, config: &HistoryConfig, replica: Uuid, tasks: &Tasks) -> Self {
        let history = Self { report: Arc::default() };
        let writer = Writer {
            redis,
            postgres,
            config: config.clone(),
            replica,
            share: Share::of_all(),
            history: history.clone(),
        };
        let stopping = tasks.stopping();
        tasks.spawn("history", async move { writer.run(stopping).await });
        history
    }

    /// How the history stands.
    #[must_use]
    pub fn report(&self) -> HistoryReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut HistoryReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One writer: the task of one share.
struct Writer {
    redis: Redis,
    postgres: Postgres,
    config: HistoryConfig,
    replica: Uuid,
    share: Share,
    history: History,
}

impl Writer {
    async fn run(self, stopping: CancellationToken) -> Result<(), TaskError> {
        let mut beats = every(self.config.poll_interval_ms, &stopping);
        let mut pauses = pauses();
        let mut courtesy = self.redis.courtesy();
        while beats.beat().await {
            if courtesy.has_to_wait() {
                continue;
            }
            match self.write_until_empty(&stopping).await {
                Ok(()) => pauses = self::pauses(),
                Err(error) => {
                    self.tell(&error);
                    let pause = pauses.next().unwrap_or(PAUSE_MAX);
                    let _ = tokio::time::timeout(pause, stopping.cancelled()).await;
                }
            }
        }
        self.hand_over().await;
        Ok(())
    }

    /// Writes while there is something to write, if it is this replica's turn.
    async fn write_until_empty(&self, stopping: &CancellationToken) -> Result<(), StoreError> {
        loop {
            if !self.take_turn().await? {
                return Ok(());
            }
            let began = Instant::now();
            let pass = self.write_batch().await?;
            self.history.note(|report| report.last_error = None);
            if pass.remaining_entries == 0 || stopping.is_cancelled() {
                return Ok(());
            }
            let pause = began.elapsed().saturating_mul(RESTS_PER_PASS).min(REST_MAX);
            let _ = tokio::time::timeout(pause, stopping.cancelled()).await;
        }
    }

    /// Takes or keeps the lease.
    async fn take_turn(&self) -> Result<bool, RedisError> {
        let turn = match self.redis.acquire_lease(&self.share.lease, self.replica, LEASE_TTL_MS).await {
            // Nobody gets the lease then. What is written to the history is what frees memory, and two who write harm nothing.
            Err(error) if error.is_of_full_memory() => return Ok(true),
            turn => turn?,
        };
        let role = if let Lease::Held(_) = turn { Role::Writing } else { Role::StandingBy };
        let before = self.history.report().role;
        // Whoever does not get there, because Redis gives no answer, does not write yet, and tries again.
        if (before, role) == (Role::StandingBy, Role::Writing) && self.redis.put_back_events().await? > 0 {
            tracing::info!("entries of the event log that were set aside are read again");
        }
        self.history.note(|report| report.role = role);
        if (before, role) == (Role::Writing, Role::StandingBy) {
            // The successor tells the backlog from now on.
            self.history.note(|report| report.backlog_entries = 0);
            metrics::history_backlog(0, Duration::ZERO);
        }
        Ok(role == Role::Writing)
    }

    /// Writes what this replica's last requests left in the log, and lets another go on without waiting for the lease to
    /// run out.
    async fn hand_over(&self) {
        if self.history.report().role == Role::StandingBy {
            return;
        }
        let last = self.write_batch().await.map(drop);
        let released = self.redis.release_lease(&self.share.lease, self.replica).await;
        if let Err(error) = last.and(released.map_err(StoreError::from)) {
            tracing::debug!(%error, "the history is handed over as it is");
        }
    }

    fn tell(&self, error: &StoreError) {
        let message = error.to_string();
        // Once for each reason: it is tried again every second.
        if self.history.report().last_error.as_ref() != Some(&message) {
            tracing::warn!(%error, "the history waits");
        }
        metrics::history_error();
        self.history.note(|report| report.last_error = Some(message));
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}
