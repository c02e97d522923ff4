//! The live view: what is on air, exact, kept in memory.
//!
//! Role: every list, every look-up by id and every belief of the reconciler is read from here.
//!
//! Invariants:
//! - Exact: a view that is handed out was checked against Redis after it was asked for. All who ask while a check is under
//!   way share the next one, so ten thousand callers cost as many round trips as ten.
//! - Only what changed is read again, and only that is put into the view: a check costs what has changed, not what is on air.
//!   Where it is little, it comes in the same round trip in which it is found.
//! - A Redis that lost its memory, or the last of it, is not believed that nothing is on air: until it has it back, the last view
//!   stands for what is missing, marked as stale. What a replica remembers so is put back by the rebuild.
//! - Without Redis the last view is handed out, marked as stale: it is never empty because something is away. Before the
//!   first one there is none.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{progress::ProgressView, snapshot::Snapshot};
use crate::{
    domain::{Partition, StreamPath, Timestamp},
    lifecycle::{TaskError, Tasks},
    metrics,
    redis::{CHANGES_KEPT, Changes, Holders, PartitionVersions, Redis, RedisError},
};

/// The most callers that wait for one check. More are refused: the process is far beyond what it can serve.
const WAITING_MAX: usize = 100_000;
/// How long nobody may have asked, after it is time to stop, before the view is given up.
const IDLE_BEFORE_END: Duration = Duration::from_millis(500);
/// The version of a partition that does not hold all that it must.
const CLOSED: u64 = 0;
/// How long a caller waits for a check; longer than the check's own limits, which the commands to Redis have.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A snapshot as it is handed out.
#[derive(Debug, Clone)]
pub struct View {
    /// What was on air.
    pub snapshot: Arc<Snapshot>,
    /// Set where Redis could not be asked: the snapshot is the last one there was.
    pub stale: Option<RedisError>,
}

/// A handle to the live view. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveView {
    waiting: mpsc::Sender<oneshot::Sender<View>>,
}

/// There is no view: Redis has not been reached since the start, the process is stopping, or far too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is on air cannot be read now")]
pub struct ViewUnavailable;

impl LiveView {
    /// Starts the tasks that keep the view.
    #[must_use]
    pub fn start(redis: Redis, tasks: &Tasks) -> Self {
        let (waiting, receiver) = mpsc::channel(WAITING_MAX);
        let progress = ProgressView::start(redis.clone(), tasks);
        tasks.spawn("live_view", keep(Keeper::new(redis, progress), receiver, tasks.stopping()));
        Self { waiting }
    }

    /// What is on air now.
    ///
    /// # Errors
    /// Where there is no view at all. A Redis that went away is no error: see [`View::stale`].
    pub async fn now(&self) -> Result<View, ViewUnavailable> {
        let (answer, view) = oneshot::channel();
        self.waiting.try_send(answer).map_err(|_| ViewUnavailable)?;
        tokio::time::timeout(ANSWER_LIMIT, view).await.map_err(|_| ViewUnavailable)?.map_err(|_| ViewUnavailable)
    }
}

async fn keep(
    mut keeper: Keeper,
    mut waiting: mpsc::Receiver<oneshot::Sender<View>>,
    stopping: CancellationToken,
) -> Result<(), TaskError> {
    let mut callers = Vec::new();
    loop {
        let count = tokio::select! {
            biased;
            count = waiting.recv_many(&mut callers, WAITING_MAX) => count,
            // Requests that came before the signal are still answered, and may still ask.
            () = stopped_and_idle(&stopping) => return Ok(()),
        };
        if count == 0 {
            return Ok(());
        }
        let Some(view) = keeper.check().await else {
            callers.clear();
            continue;
        };
        for caller in callers.drain(..) {
            // A caller that went away needs no answer.
            let _ = caller.send(view.clone());
        }
    }
}

async fn stopped_and_idle(stopping: &CancellationToken) {
    stopping.cancelled().await;
    tokio::time::sleep(IDLE_BEFORE_END).await;
}

struct Keeper {
    redis: Redis,
    progress: ProgressView,
    versions: PartitionVersions,
    current: Arc<Snapshot>,
    has_read: bool,
}

/// What has to be read again to know what is on air.
#[derive(Default)]
struct Changed {
    /// Partitions of which only some paths changed, and since when.
    since: Vec<(Partition, u64)>,
    /// How many changes those are.
    count: u64,
    /// Partitions of which too much changed, or of which nothing is known.
    whole: Vec<Partition>,
}

impl Changed {
    fn partitions(&self) -> Vec<Partition> {
        self.since.iter().map(|(partition, _)| *partition).chain(self.whole.iter().copied()).collect()
    }
}

impl Keeper {
    fn new(redis: Redis, progress: ProgressView) -> Self {
        let versions = [0; Partition::COUNT as usize];
        Self { redis, progress, versions, current: Arc::default(), has_read: false }
    }

    /// The view, checked; `None` where none was ever read.
    async fn check(&mut self) -> Option<View> {
        let stale = self.refresh().await.err();
        if let Some(error) = &stale {
            tracing::debug!(%error, "the live view could not be checked");
        }
        if !self.has_read {
            return None;
        }
        metrics::list_snapshot_age(Duration::from_millis(Timestamp::now().ms_since(self.current.as_of)));
        Some(View { snapshot: Arc::clone(&self.current), stale })
    }

    async fn refresh(&mut self) -> Result<(), RedisError> {
        let as_of = Timestamp::now();
        let Changes { versions: told, told: few } = self.redis.changes_since(&self.versions).await?;
        let (mut versions, mut is_whole) = (told, true);
        for partition in Partition::all() {
            let (version, known) = (&mut versions[partition.index()], self.versions[partition.index()]);
            // A version goes back where writes were lost. Then its partition is closed by now, or was opened anew by a clock that is behind.
            if *version == CLOSED || (*version < known && !self.redis.is_open(partition).await?) {
                // What was known of it is still the best that there is.
                (*version, is_whole) = (known, false);
            }
        }
        if !is_whole && !self.has_read {
            return Err(RedisError::MemoryLost);
        }
        let changed = self.changed(&versions, &few);
        let mut next = Snapshot::clone(&self.current);
        if is_whole {
            next.as_of = as_of;
        }
        let mut paths = self.held_anew(&changed.whole, &mut next).await?;
        paths.extend(self.redis.changed_paths(&changed.since, changed.count).await?);
        let mut holders = self.read_paths(paths, &changed.partitions(), &told).await?;
        holders.extend(few.into_iter().flat_map(|(_, holders)| holders));
        next.version += u64::from(!holders.is_empty());
        for (path, stream) in holders {
            next.put(&path, stream.map(Arc::new));
        }
        next.set_progress(self.progress.latest(&next).await?);
        // Only now, since what was read is in the view only now: after a failure it is read again.
        self.versions = versions;
        self.current = Arc::new(next);
        if !is_whole {
            return Err(RedisError::MemoryLost);
        }
        self.has_read = true;
        Ok(())
    }

    /// What is to be read, beside what was told already.
    fn changed(&self, versions: &PartitionVersions, told: &[(Partition, Holders)]) -> Changed {
        let mut changed = Changed::default();
        for partition in Partition::all() {
            let (known, now) = (self.versions[partition.index()], versions[partition.index()]);
            if now == known || told.iter().any(|(of, _)| *of == partition) {
                continue;
            }
            match now.checked_sub(known) {
                Some(count @ 1..=CHANGES_KEPT) => {
                    changed.since.push((partition, known));
                    changed.count += count;
                }
                _ => changed.whole.push(partition),
            }
        }
        changed
    }

    /// The paths that are held in some partitions, of which nothing else stays in the view.
    async fn held_anew(&self, partitions: &[Partition], next: &mut Snapshot) -> Result<Vec<StreamPath>, RedisError> {
        let held = self.redis.held_paths(partitions).await?;
        if !partitions.is_empty() {
            for path in &next.paths_in(partitions) {
                next.put(path, None);
            }
            next.version += 1;
        }
        Ok(held)
    }

    /// What holds some paths of some partitions.
    async fn read_paths(
        &self,
        paths: Vec<StreamPath>,
        partitions: &[Partition],
        told: &PartitionVersions,
    ) -> Result<Holders, RedisError> {
        let (streams, versions) = self.redis.streams_then_versions(&paths, partitions).await?;
        // Redis may have lost its memory between the question what changed and the answers: then these say that nothing is there.
        if partitions.iter().zip(versions).any(|(partition, version)| version < told[partition.index()]) {
            return Err(RedisError::MemoryLost);
        }
        Ok(paths.into_iter().zip(streams).collect())
    }
}
