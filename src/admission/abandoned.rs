//! Admissions that Redis may have carried out although their caller was refused: they are taken back, or the path would stay closed
//! to the broadcaster's next try.

use std::{collections::HashSet, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{EndReason, NodeName, SourceId, StreamPath},
    lifecycle::{TaskError, Tasks},
    metrics,
    redis::{AdmitRequest, Afterwards, EndRequest, Ending, Holder, Redis, RedisError},
};

/// The most that are remembered. The connecting deadline frees the paths of further ones all the same, only later.
const ABANDONED_MAX: usize = 10_000;

/// How long it is waited before it is tried again.
const RELEASE_PAUSE: Duration = Duration::from_millis(250);

struct Abandoned {
    path: StreamPath,
    node: NodeName,
    source_id: SourceId,
}

/// Where they are noted.
pub(super) struct Abandonments(mpsc::Sender<Abandoned>);

impl Abandonments {
    /// Starts the task that takes them back.
    pub(super) fn start(redis: Redis, tasks: &Tasks) -> Self {
        let (abandoned, to_release) = mpsc::channel(ABANDONED_MAX);
        tasks.spawn("release_abandoned", release_abandoned(redis, to_release, tasks.stopping()));
        Self(abandoned)
    }

    /// The caller is refused, but Redis may yet give it the path.
    pub(super) fn note(&self, request: &AdmitRequest<'_>) {
        let Some(source_id) = request.source_id else { return };
        let abandoned = Abandoned { path: request.path.clone(), node: request.node.clone(), source_id };
        if self.0.try_send(abandoned).is_err() {
            metrics::queue_dropped(metrics::Queue::Abandoned);
        }
    }
}

/// Takes back what Redis may have given to callers who were refused because it did not answer in time. Tried until Redis
/// answers; what is left when it is time to stop is tried once more, and then left to its deadline.
async fn release_abandoned(
    redis: Redis,
    mut abandoned: mpsc::Receiver<Abandoned>,
    stopping: CancellationToken,
) -> Result<(), TaskError> {
    let mut left: Vec<Abandoned> = Vec::new();
    loop {
        if left.is_empty() {
            let next = tokio::select! {
                next = abandoned.recv() => next,
                () = stopping.cancelled() => abandoned.try_recv().ok(),
            };
            let Some(next) = next else { return Ok(()) };
            left.push(next);
        }
        while left.len() < ABANDONED_MAX
            && let Ok(next) = abandoned.try_recv()
        {
            left.push(next);
        }
        left = release_all(&redis, left).await;
        if !left.is_empty() {
            if stopping.is_cancelled() {
                return Ok(());
            }
            let _ = tokio::time::timeout(RELEASE_PAUSE, stopping.cancelled()).await;
        }
    }
}

/// Takes back what can be, and gives what is left. A partition whose server gives no answer is asked once only, so that the others,
/// which another server of a cluster may have, need not wait for it.
async fn release_all(redis: &Redis, abandoned: Vec<Abandoned>) -> Vec<Abandoned> {
    let (mut silent, mut left) = (HashSet::new(), Vec::new());
    for one in abandoned {
        let partition = one.path.partition();
        if !silent.contains(&partition) {
            let Err(error) = release(redis, &one).await else { continue };
            tracing::debug!(%error, "an abandoned admission is still to be taken back");
            if error.is_silence() {
                silent.insert(partition);
            }
        }
        left.push(one);
    }
    left
}

/// Takes one back. Asked once more where there was nothing to take back: what Redis was sent on several connections while it
/// stood still, it carries out in any order, so that the admission may come right behind the first question. Once that is
/// answered, everything that was sent before it has been carried out.
async fn release(redis: &Redis, abandoned: &Abandoned) -> Result<(), RedisError> {
    let request = EndRequest {
        path: &abandoned.path,
        holder: Holder::Source(abandoned.source_id, &abandoned.node),
        reason: EndReason::NeverOnline,
        afterwards: Afterwards::Kick,
        progress: None,
    };
    if !matches!(redis.end(&request).await?, Ending::Ended(_)) {
        redis.end(&request).await?;
    }
    Ok(())
}
