//! Start, tasks and stop: every task has an owner, and the process ends in order.
//!
//! Role: the only place where tasks are spawned. [`Tasks`] owns them all, tells them to stop, waits for them with a limit,
//! and reports what did not stop.
//!
//! Invariants:
//! - A task that has to run as long as the process ([`Tasks::spawn`]) and ends before it was told to, by an error, a panic
//!   or by itself, stops the process with a failure. A service without its reconciler is worse than one that is restarted.
//! - Two tokens say how urgent it is: *stopping* asks tasks to finish what they have in hand, *aborting* drops them where
//!   they wait. A second signal aborts.
//! - Every wait has a limit; nothing here waits for a task for ever.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod seldom;

pub use seldom::seldom;

/// Why a task failed: any error, as its text goes to the log.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// How long aborted tasks may take to be dropped: only a task that never waits takes longer.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Owner of the tasks of one process, or of one replica in a test. Cheap to clone: all clones are one owner.
#[derive(Clone, Default)]
pub struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tracker: TaskTracker,
    draining: AtomicBool,
    stopping: CancellationToken,
    aborting: CancellationToken,
    next_number: AtomicU64,
    running: Mutex<BTreeMap<u64, &'static str>>,
    failure: OnceLock<TaskFailure>,
}

/// A task that ended before it was told to, and so ended the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// The task's name.
    pub task: &'static str,
    /// How it ended.
    pub cause: String,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "task {} {}", self.task, self.cause)
    }
}

/// How the tasks ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// The task whose end was the reason for stopping, if one was.
    pub failure: Option<TaskFailure>,
    /// Names of the tasks that had to be aborted, each once for every task of that name.
    pub aborted: Vec<&'static str>,
}

/// The tasks did not end as they should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// One of them ended first.
    #[error("{0}")]
    Failed(TaskFailure),
    /// They were still running at the limit.
    #[error("had to be aborted: {}", .0.join(", "))]
    Aborted(Vec<&'static str>),
}

impl Stopped {
    /// Fails unless every task ran until it was told to stop, and then stopped by itself.
    ///
    /// # Errors
    /// With the first task that failed, else with those that did not stop.
    pub fn into_result(self) -> Result<(), StopError> {
        match self.failure {
            Some(failure) => Err(StopError::Failed(failure)),
            None if !self.aborted.is_empty() => Err(StopError::Aborted(self.aborted)),
            None => Ok(()),
        }
    }
}

enum Ending {
    Aborted,
    Returned(Result<(), TaskError>),
    Panicked(String),
}

impl Tasks {
    /// Owns nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that has to run until it is told to stop, and then return `Ok`.
    ///
    /// It is told by [`Tasks::stopping`], and dropped where it waits if it takes too long.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let tasks = self.clone();
        self.start(name, future, move |ending| {
            let cause = match ending {
                Ending::Returned(Err(error)) => format!("failed: {error}"),
                Ending::Panicked(message) => format!("panicked: {message}"),
                Ending::Returned(Ok(())) if !tasks.shared.stopping.is_cancelled() => "ended by itself".to_owned(),
                Ending::Returned(Ok(())) | Ending::Aborted => return,
            };
            tasks.fail(TaskFailure { task: name, cause });
        });
    }

    /// Starts a task that ends when its work is done, such as a connection or a look-up that several callers wait for.
    ///
    /// Its panic is logged and concerns nobody else. It is waited for at the end like every other.
    pub fn spawn_short<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, future.map(Ok), move |ending| {
            if let Ending::Panicked(message) = ending {
                tracing::error!(task = name, panic = message, "a task panicked");
            }
        });
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where tasks are spawned: each has a name, an owner and an end"
    )]
    fn start<F>(&self, name: &'static str, future: F, ended: impl FnOnce(Ending) + Send + 'static)
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        // Entered before the task first runs, so that a join that comes at once knows of it.
        shared.running().insert(number, name);
        let task = async move {
            let ending = tokio::select! {
                biased;
                outcome = AssertUnwindSafe(future).catch_unwind() => match outcome {
                    Ok(result) => Ending::Returned(result),
                    Err(panic) => Ending::Panicked(panic_message(&*panic)),
                },
                () = seldom(shared.aborting.cancelled()) => Ending::Aborted,
            };
            // An aborted task stays listed: that is what the report is made from.
            if !matches!(ending, Ending::Aborted) {
                shared.running().remove(&number);
            }
            ended(ending);
        };
        drop(tokio::spawn(self.shared.tracker.track_future(task)));
    }

    fn fail(&self, failure: TaskFailure) {
        tracing::error!(task = failure.task, cause = failure.cause, "a task ended that should not have");
        // Only the first: the others usually follow from it.
        let _ = self.shared.failure.set(failure);
        self.stop();
    }

    /// The token that asks every task to finish what it has in hand and return.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// True from the first signal on: `/readyz` says no, although requests are still served.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    /// Makes [`Tasks::is_draining`] true without stopping anything.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Asks every task to stop.
    pub fn stop(&self) {
        self.drain();
        self.shared.stopping.cancel();
    }

    /// Drops every task where it waits.
    pub fn abort(&self) {
        self.stop();
        self.shared.aborting.cancel();
    }

    /// Asks every task to stop, waits for them for at most `limit`, and aborts the rest.
    pub async fn join(&self, limit: Duration) -> Stopped {
        self.stop();
        let shared = &self.shared;
        shared.tracker.close();
        tokio::select! {
            () = shared.tracker.wait() => {}
            () = shared.aborting.cancelled() => {}
            () = tokio::time::sleep(limit) => {}
        }
        shared.aborting.cancel();
        // A task that blocks its thread is not dropped; it ends with the process.
        let _ = tokio::time::timeout(ABORT_GRACE, shared.tracker.wait()).await;
        let aborted = shared.running().values().copied().collect();
        Stopped { failure: shared.failure.get().cloned(), aborted }
    }

    /// Runs until a signal comes or a task fails, then drains, stops and joins.
    ///
    /// The first signal makes the service unready and, `drain` later, stops it; the second aborts whatever is still running.
    pub async fn supervise(&self, signals: &mut Signals, drain: Duration, limit: Duration) -> Stopped {
        tokio::select! {
            () = self.shared.stopping.cancelled() => {}
            name = signals.received() => {
                tracing::info!(signal = name, drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX), "stopping; a second signal aborts");
                self.drain();
                tokio::select! {
                    () = tokio::time::sleep(drain) => {}
                    () = self.shared.stopping.cancelled() => {}
                    _ = signals.received() => self.abort(),
                }
            }
        }
        let join = self.join(limit);
        tokio::pin!(join);
        tokio::select! {
            stopped = &mut join => return stopped,
            name = signals.received() => {
                tracing::warn!(signal = name, "aborting");
                self.abort();
            }
        }
        join.await
    }
}

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, &'static str>> {
        // The map is whole after every statement, so a panic elsewhere while it was held says nothing about it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

/// SIGTERM and SIGINT, caught from the moment this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches both from now on, instead of letting them end the process.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them, and names it.
    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A beat for a task that does the same thing again and again, with jitter so that replicas and nodes drift apart.
pub struct Every {
    period: Duration,
    stopping: CancellationToken,
    next: Instant,
}

/// Beats every `period_ms`, give or take a tenth, beginning at once, until `stopping`.
///
/// A beat that was missed because the work took too long is not made up for.
#[must_use]
pub fn every(period_ms: u64, stopping: &CancellationToken) -> Every {
    Every { period: Duration::from_millis(period_ms.max(1)), stopping: stopping.clone(), next: Instant::now() }
}

impl Every {
    /// Waits for the next beat. False once it is time to stop.
    pub async fn beat(&mut self) -> bool {
        self.beat_or(std::future::pending()).await
    }

    /// Waits for the next beat or for `woken`, whichever is first. False once it is time to stop.
    pub async fn beat_or_woken(&mut self, woken: &Notify) -> bool {
        self.beat_or(woken.notified()).await
    }

    async fn beat_or(&mut self, woken: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => return false,
            () = tokio::time::sleep_until(self.next) => {}
            () = woken => {}
        }
        self.next = Instant::now() + self.period.mul_f64(jitter());
        true
    }
}

/// A factor between 0.9 and 1, for what is to be done no later than when it is due.
pub(crate) fn jitter_early() -> f64 {
    rand::random_range(0.9..=1.0)
}

/// A factor between 0.9 and 1.1.
pub(crate) fn jitter() -> f64 {
    rand::random_range(0.9..1.1)
}

#[cfg(test)]
mod tests;
