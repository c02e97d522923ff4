//! Notes who was refused, beside the answer and never before it.
//!
//! Invariant: a full queue or a Redis that is away costs the note, not the answer.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Action, Admission, AuthRequest, Decision, Outcome, RefusalCode, bounded};
use crate::{
    domain::{Attempt, NodeName, Partition, StreamKey, StreamPath, Timestamp},
    lifecycle::TaskError,
    metrics,
    redis::{Redis, RedisError},
};

/// The most refusals that wait to be noted.
pub(super) const WAITING_MAX: usize = 4_096;
/// The most that are noted at once.
const BATCH_MAX: usize = 256;
/// How long a batch is collected: refusals come in bursts.
const COLLECT: Duration = Duration::from_millis(50);

/// A refusal on its way to the partitions where it is looked for.
pub(super) type Noted = (Partition, Attempt);

impl Admission {
    /// The last refusals on a path, the latest first.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn attempts_on(&self, path: &StreamPath) -> Result<Vec<Attempt>, RedisError> {
        let mut attempts = self.inner.redis.attempts(path.partition()).await?;
        attempts.retain(|attempt| attempt.path == *path);
        Ok(attempts)
    }

    /// The last refusals of a key, the latest first.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn attempts_of(&self, key: &StreamKey) -> Result<Vec<Attempt>, RedisError> {
        let mut attempts = self.inner.redis.attempts(key.path.partition()).await?;
        attempts.retain(|attempt| attempt.key_id == Some(key.id));
        Ok(attempts)
    }

    pub(super) fn note_attempt(&self, node: &NodeName, request: &AuthRequest, decision: &Decision) {
        let Outcome::Refused(refusal) = &decision.outcome else { return };
        if !tells_something(request, refusal.code) {
            return;
        }
        let Ok(path) = request.path.parse::<StreamPath>() else { return };
        let here = path.partition();
        let attempt = Attempt {
            at: Timestamp::now(),
            code: refusal.code.as_str().to_owned(),
            path,
            node: node.clone(),
            key_id: decision.key_id,
            protocol: bounded(&request.protocol, 16).to_owned(),
            address: bounded(&request.ip, 64).to_owned(),
            user_agent: bounded(&request.user_agent, 200).to_owned(),
        };
        let elsewhere = decision.key_path.as_ref().map(StreamPath::partition).filter(|partition| *partition != here);
        for partition in std::iter::once(here).chain(elsewhere) {
            if self.inner.attempts.try_send((partition, attempt.clone())).is_err() {
                metrics::queue_dropped(metrics::Queue::Attempts);
            }
        }
    }
}

/// Whether a refusal is news to the broadcaster. The first call of an RTSP client never has credentials; an address that is
/// slowed down has been told before; and a key in the path must not be kept.
fn tells_something(request: &AuthRequest, code: RefusalCode) -> bool {
    let is_first_rtsp_call = code == RefusalCode::CredentialsMissing && request.protocol == "rtsp";
    let is_publisher = request.action() == Action::Publish && request.id.is_some();
    let is_silent = matches!(
        code,
        RefusalCode::TooManyFailures
            | RefusalCode::StateUnavailable
            | RefusalCode::HistoryBacklogFull
            | RefusalCode::KeyInPath
            | RefusalCode::PathMalformed
    );
    is_publisher && !is_first_rtsp_call && !is_silent
}

/// The task that notes refusals.
pub(super) async fn record(
    redis: Redis,
    mut waiting: mpsc::Receiver<Noted>,
    stopping: CancellationToken,
) -> Result<(), TaskError> {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return Ok(()) },
            () = stopping.cancelled() => break,
        }
        write(&redis, &mut batch).await;
        tokio::select! {
            () = tokio::time::sleep(COLLECT) => {}
            () = stopping.cancelled() => break,
        }
    }
    while let Ok(noted) = waiting.try_recv() {
        batch.push(noted);
    }
    write(&redis, &mut batch).await;
    Ok(())
}

async fn write(redis: &Redis, batch: &mut Vec<Noted>) {
    if !batch.is_empty()
        && let Err(error) = redis.record_attempts(batch).await
    {
        tracing::debug!(%error, "refusals could not be noted");
    }
    batch.clear();
}
