//! Which keys exist: those who ask at once ask Postgres together.
//!
//! Role: somebody who tries keys out at random presents another one each time, and nothing that is remembered answers that. So
//! that a thousand of them are told at once, and cost Postgres little, whoever has a place asks for all who wait by then.
//!
//! Invariants:
//! - No more ask at once than there are places. The others wait in the order in which they came, within the deadline of
//!   their call.
//! - Whoever asks for others may be given up by its own caller meanwhile: they notice, and ask again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, oneshot};

use crate::{
    domain::SecretHash,
    postgres::{Postgres, PostgresError},
};

/// The most keys that are asked for in one query.
const TOGETHER_MAX: usize = 128;
/// The most keys that wait to be asked for. More are refused.
const WAITING_MAX: usize = 10_000;

struct Waiting {
    secret_hash: SecretHash,
    answer: oneshot::Sender<Result<bool, PostgresError>>,
}

#[derive(Default)]
struct Queue(VecDeque<Waiting>);

/// Knows whether a key was ever made.
pub(super) struct Existence {
    postgres: Postgres,
    places: Arc<Semaphore>,
    queue: Mutex<Queue>,
}

impl Existence {
    pub(super) fn new(postgres: Postgres, places: Arc<Semaphore>) -> Self {
        Self { postgres, places, queue: Mutex::default() }
    }

    /// Whether Postgres has a key with this secret.
    pub(super) async fn of(&self, secret_hash: SecretHash) -> Result<bool, PostgresError> {
        let mut answered = self.queue().enter(secret_hash)?;
        loop {
            tokio::select! {
                biased;
                answer = &mut answered => match answer {
                    Ok(answer) => return answer,
                    Err(_) => answered = self.queue().enter(secret_hash)?,
                },
                place = self.places.acquire() => {
                    let _place = place.expect("they are never closed");
                    self.ask().await;
                }
            }
        }
    }

    /// Asks for those who wait.
    async fn ask(&self) {
        let asked = self.queue().take();
        if asked.is_empty() {
            return;
        }
        let hashes: Vec<SecretHash> = asked.iter().map(|waiting| waiting.secret_hash).collect();
        let existing = self.postgres.existing_secrets(&hashes).await;
        for Waiting { secret_hash, answer } in asked {
            let exists = existing.as_ref().map(|existing| existing.contains(&secret_hash));
            // Who has hung up meanwhile needs no answer.
            let _ = answer.send(exists.map_err(PostgresError::clone));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whatever panicked elsewhere left it whole: nothing is done halfway here.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn enter(
        &mut self,
        secret_hash: SecretHash,
    ) -> Result<oneshot::Receiver<Result<bool, PostgresError>>, PostgresError> {
        if self.0.len() >= WAITING_MAX {
            self.0.retain(|waiting| !waiting.answer.is_closed());
        }
        if self.0.len() >= WAITING_MAX {
            return Err(PostgresError::Unavailable("too many look-ups of keys wait".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        self.0.push_back(Waiting { secret_hash, answer });
        Ok(answered)
    }

    /// Those who came first, as many as are asked for together; without those who have hung up.
    fn take(&mut self) -> Vec<Waiting> {
        let waiting = std::iter::from_fn(|| self.0.pop_front()).filter(|waiting| !waiting.answer.is_closed());
        waiting.take(TOGETHER_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: usize) -> SecretHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        SecretHash(hash)
    }

    #[test]
    fn those_who_came_first_are_asked_for_together_but_for_who_has_hung_up() {
        let mut queue = Queue::default();
        let mut waiting: Vec<_> = (0..TOGETHER_MAX + 3).map(|number| queue.enter(of(number)).unwrap()).collect();
        drop(waiting.remove(1));
        let asked: Vec<SecretHash> = queue.take().iter().map(|waiting| waiting.secret_hash).collect();
        let first: Vec<SecretHash> = (0..=TOGETHER_MAX).filter(|number| *number != 1).map(of).collect();
        assert_eq!(asked, first);
        assert_eq!(queue.take().len(), 2);
        assert!(queue.take().is_empty());
    }

    #[test]
    fn no_more_wait_than_may_and_who_has_hung_up_takes_no_room() {
        let mut queue = Queue::default();
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|number| queue.enter(of(number)).unwrap()).collect();
        assert!(matches!(queue.enter(of(WAITING_MAX)), Err(PostgresError::Unavailable(_))));
        waiting.pop();
        assert!(queue.enter(of(WAITING_MAX)).is_ok());
    }
}
