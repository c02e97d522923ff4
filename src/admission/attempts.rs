//! Notes who was refused, beside the answer and never before it.
//!
//! Invariants:
//! - A full queue or a Redis that is away costs the note, not the answer.
//! - An encoder that tries again every few seconds does not take the place of all others: see [`Noticed`].

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Action, Admission, AuthRequest, Decision, Outcome, RefusalCode, bounded};
use crate::{
    domain::{Attempt, KeyId, NodeName, Partition, StreamKey, StreamPath, Timestamp},
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

/// How long a refusal is not noted once more.
const REPEATED_AFTER: Duration = Duration::from_secs(30);
/// The most refusals that are remembered for that.
const REMEMBERED_MAX: usize = 16_384;
/// The part of a place that tells the second: half a year of them.
const SECONDS: u64 = (1 << 24) - 1;

/// What makes a refusal the same as one before: the path, why, the key where it is known, and the address.
type Sameness<'a> = (&'a StreamPath, RefusalCode, Option<KeyId>, &'a str);

/// Which refusals this replica noted in the last half minute. The same one again says nothing new, and what a partition keeps is
/// bounded.
///
/// A table of fixed size without a lock, because a flood of wrong keys passes through it: a refusal has one place, which holds a part of
/// its hash and the second in which it was noted. Two that share a place forget each other, so that one is noted once too often.
pub(super) struct Noticed {
    hasher: RandomState,
    began: Instant,
    places: Box<[AtomicU64]>,
}

impl Noticed {
    pub(super) fn new() -> Self {
        let places = std::iter::repeat_with(AtomicU64::default).take(REMEMBERED_MAX).collect();
        Self { hasher: RandomState::new(), began: Instant::now(), places }
    }

    /// Whether it is another one than those of the last half minute, to which it belongs from now on.
    fn is_news(&self, refusal: &Sameness<'_>) -> bool {
        self.is_news_at(refusal, self.began.elapsed())
    }

    fn is_news_at(&self, refusal: &Sameness<'_>, since_began: Duration) -> bool {
        let (place, mark) = self.place_of(refusal);
        // Not from 0 on: a place that holds 0 is one where nothing was noted.
        let now = (since_began.as_secs() + 1) & SECONDS;
        let noted = place.load(Ordering::Relaxed);
        let is_same = noted != 0 && noted & !SECONDS == mark;
        if is_same && now.wrapping_sub(noted) & SECONDS < REPEATED_AFTER.as_secs() {
            return false;
        }
        place.store(mark | now, Ordering::Relaxed);
        true
    }

    /// It could not be noted: the next one is news again.
    fn forget(&self, refusal: &Sameness<'_>) {
        self.place_of(refusal).0.store(0, Ordering::Relaxed);
    }

    /// Where it is noted, and as what.
    fn place_of(&self, refusal: &Sameness<'_>) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(refusal);
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        let place = &self.places[hash as usize % REMEMBERED_MAX];
        (place, hash & !SECONDS)
    }
}

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
        let same = (&path, refusal.code, decision.key_id, bounded(&request.ip, 64));
        if !self.inner.noticed.is_news(&same) {
            return;
        }
        let here = path.partition();
        let attempt = Attempt {
            at: Timestamp::now(),
            code: refusal.code.as_str().to_owned(),
            path: path.clone(),
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
                self.inner.noticed.forget(&same);
            }
        }
    }
}

/// Whether a refusal is something that the broadcaster should know. The first call of an RTSP client never has credentials; an
/// address that is slowed down has been told before; and a key in the path must not be kept.
fn tells_something(request: &AuthRequest, code: RefusalCode) -> bool {
    let is_first_rtsp_call = code == RefusalCode::CredentialsMissing && request.may_be_first_of_rtsp();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_news_once_and_every_other_at_once() {
        let noticed = Noticed::new();
        let (ada, bob): (StreamPath, StreamPath) = ("live/ada".parse().unwrap(), "live/bob".parse().unwrap());
        let first = (&ada, RefusalCode::KeyUnknown, None, "192.0.2.1");
        assert!(noticed.is_news(&first) && !noticed.is_news(&first));
        for other in [
            (&bob, RefusalCode::KeyUnknown, None, "192.0.2.1"),
            (&ada, RefusalCode::KeyInUse, None, "192.0.2.1"),
            (&ada, RefusalCode::KeyUnknown, None, "192.0.2.2"),
            (&ada, RefusalCode::KeyUnknown, Some(KeyId::generate()), "192.0.2.1"),
        ] {
            assert!(noticed.is_news(&other) && !noticed.is_news(&other));
        }
        noticed.forget(&first);
        assert!(noticed.is_news(&first), "it was not noted");
    }

    #[test]
    fn the_same_refusal_is_news_again_after_a_while() {
        let noticed = Noticed::new();
        let path = "live/ada".parse().unwrap();
        let same = (&path, RefusalCode::KeyUnknown, None, "192.0.2.1");
        // At the start, and where the seconds begin anew.
        for began_s in [0, SECONDS - 10] {
            let is_news = |after_s| noticed.is_news_at(&same, Duration::from_secs(began_s + after_s));
            assert_eq!([0, 1, 29, 30, 31, 60].map(is_news), [true, false, false, true, false, true]);
        }
    }
}
