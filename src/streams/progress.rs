//! Bytes, viewers and qualities of what is on air, as the pollers wrote them: read again every second while somebody looks.
//!
//! They change all the time and are no transition, so they have no version, and reading them must not make a list wait.
//!
//! Invariant: nobody is shown a word that is older than [`AGE_MAX_MS`] while Redis answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::snapshot::{ProgressBySource, Snapshot};
use crate::{
    domain::{NodeName, Timestamp},
    lifecycle::{TaskError, Tasks, every},
    redis::{Redis, RedisError},
};

const PERIOD_MS: u64 = 1_000;
/// A word older than this is read again before it is shown, which only the first who looks after a while waits for.
const AGE_MAX_MS: u64 = 2_000;
/// For how long after the last look it is read again every second.
const INTEREST_MS: u64 = 5_000;

#[derive(Clone)]
pub(super) struct ProgressView {
    redis: Redis,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    latest: Mutex<Latest>,
    /// The last snapshot that somebody looked at: when, and which nodes it was about. Keeping it costs what changed since.
    looked_at: Mutex<Snapshot>,
}

#[derive(Clone, Default)]
struct Latest {
    at: Option<Timestamp>,
    progress: Arc<ProgressBySource>,
}

impl ProgressView {
    pub(super) fn start(redis: Redis, tasks: &Tasks) -> Self {
        let view = Self { redis, shared: Arc::default() };
        tasks.spawn("progress_view", view.clone().run(tasks.stopping()));
        view
    }

    /// The last words about everything in a snapshot.
    pub(super) async fn latest(&self, snapshot: &Snapshot) -> Result<Arc<ProgressBySource>, RedisError> {
        lock(&self.shared.looked_at).clone_from(snapshot);
        let latest = lock(&self.shared.latest).clone();
        if latest.at.is_some_and(|at| snapshot.as_of.ms_since(at) < AGE_MAX_MS) {
            return Ok(latest.progress);
        }
        self.read(snapshot.nodes()).await
    }

    async fn read(&self, nodes: Vec<NodeName>) -> Result<Arc<ProgressBySource>, RedisError> {
        let at = Timestamp::now();
        let progress = Arc::new(self.redis.progress_of_nodes(&nodes).await?);
        *lock(&self.shared.latest) = Latest { at: Some(at), progress: Arc::clone(&progress) };
        Ok(progress)
    }

    async fn run(self, stopping: CancellationToken) -> Result<(), TaskError> {
        let mut ticker = every(PERIOD_MS, &stopping);
        while ticker.beat().await {
            let looked_at = lock(&self.shared.looked_at).clone();
            if Timestamp::now().ms_since(looked_at.as_of) > INTEREST_MS {
                continue;
            }
            if let Err(error) = self.read(looked_at.nodes()).await {
                tracing::debug!(%error, "what the pollers saw could not be read");
            }
        }
        Ok(())
    }
}

/// Nothing panics while it holds one of these, and what they hold is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
