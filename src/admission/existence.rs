//! Which keys exist: those who ask at once ask Postgres together.
//!
//! Role: somebody who tries keys out at random presents another one each time, and nothing that is remembered answers that. So
//! that a thousand of them are told at once, and cost Postgres little, those who come while enough queries are under way are in
//! the next one, all together.
//!
//! Invariants:
//! - Queries are made by tasks of their own, so that a caller who gives up takes nobody's answer along. There are no more of
//!   these tasks than places for queries.
//! - Where somebody waits, a task is under way that sees to them.
//! - Those who wait are asked for in the order in which they came.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot};

use crate::{
    domain::SecretHash,
    lifecycle::Tasks,
    postgres::{Postgres, PostgresError},
};

/// The most keys that are asked for in one query.
const TOGETHER_MAX: usize = 128;
/// The most keys that wait to be asked for. More are refused.
const WAITING_MAX: usize = 10_000;

type Answer = Result<bool, PostgresError>;

struct Waiting {
    secret_hash: SecretHash,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    tasks: usize,
}

/// Knows whether a key was ever made. Cheap to clone.
#[derive(Clone)]
pub(super) struct Existence(Arc<Inner>);

struct Inner {
    postgres: Postgres,
    /// Shared with whatever else is asked of Postgres about keys.
    places: Arc<Semaphore>,
    tasks_max: usize,
    /// What a query may take, its place included: nobody waits longer for it.
    limit: Duration,
    tasks: Tasks,
    queue: Mutex<Queue>,
}

/// One of the tasks. When it is dropped, there is room for another one.
struct Asking {
    existence: Existence,
    has_left: bool,
}

impl Asking {
    async fn until_nobody_waits(mut self) {
        while let Some(asked) = self.take_or_leave() {
            self.existence.ask(asked).await;
        }
    }

    /// Leaves while the queue is locked: whoever comes later finds the room.
    fn take_or_leave(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.existence.queue();
        let asked = queue.take();
        if asked.is_empty() {
            queue.tasks -= 1;
            self.has_left = true;
            return None;
        }
        Some(asked)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.has_left {
            self.existence.queue().tasks -= 1;
        }
    }
}

impl Existence {
    pub(super) fn new(
        postgres: Postgres,
        (places, places_max): (Arc<Semaphore>, usize),
        limit: Duration,
        tasks: Tasks,
    ) -> Self {
        let queue = Mutex::default();
        Self(Arc::new(Inner { postgres, places, tasks_max: places_max, limit, tasks, queue }))
    }

    /// Whether Postgres has a key with this secret.
    pub(super) async fn of(&self, secret_hash: SecretHash) -> Answer {
        let (answered, is_task_due) = self.queue().enter(secret_hash, self.0.tasks_max)?;
        if is_task_due {
            let asking = Asking { existence: self.clone(), has_left: false };
            self.0.tasks.spawn_short("key_look_ups", asking.until_nobody_waits());
        }
        answered.await.unwrap_or_else(|_| Err(PostgresError::Unavailable("a look-up of keys was given up".to_owned())))
    }

    async fn ask(&self, asked: Vec<Waiting>) {
        let hashes: Vec<SecretHash> = asked.iter().map(|waiting| waiting.secret_hash).collect();
        let asking = async {
            let _place = self.0.places.acquire().await.expect("they are never closed");
            self.0.postgres.existing_secrets(&hashes).await
        };
        let existing = tokio::time::timeout(self.0.limit, asking)
            .await
            .unwrap_or_else(|_| Err(PostgresError::Unavailable("no answer about keys in time".to_owned())));
        for Waiting { secret_hash, answer } in asked {
            let exists = existing.as_ref().map(|existing| existing.contains(&secret_hash));
            // Who has hung up meanwhile needs no answer.
            let _ = answer.send(exists.map_err(PostgresError::clone));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whatever panicked elsewhere left it whole: nothing is done halfway here.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
impl Queue {
    /// Lets somebody in; true where a task is due that sees to them, which is counted from now on.
    fn enter(
        &mut self,
        secret_hash: SecretHash,
        tasks_max: usize,
    ) -> Result<(oneshot::Receiver<Answer>, bool), PostgresError> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(PostgresError::Unavailable("too many look-ups of keys wait".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        self.waiting.push_back(Waiting { secret_hash, answer });
        let is_task_due = self.tasks < tasks_max;
        self.tasks += usize::from(is_task_due);
        Ok((answered, is_task_due))
    }

    /// Those who came first, as many as are asked for together; without those who have hung up.
    fn take(&mut self) -> Vec<Waiting> {
        let waiting = std::iter::from_fn(|| self.waiting.pop_front()).filter(|waiting| !waiting.answer.is_closed());
        waiting.take(TOGETHER_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(queue: &mut Queue, number: usize) -> Result<(oneshot::Receiver<Answer>, bool), PostgresError> {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        queue.enter(SecretHash(hash), 2)
    }

    #[test]
    fn those_who_came_first_are_asked_for_together_but_for_who_has_hung_up() {
        let mut queue = Queue::default();
        let mut waiting: Vec<_> = (0..TOGETHER_MAX + 3).map(|number| enter(&mut queue, number).unwrap()).collect();
        drop(waiting.remove(1));
        let first_bytes: Vec<u8> = queue.take().iter().map(|waiting| waiting.secret_hash.0[0]).collect();
        let came_first: Vec<u8> = (0..=128).filter(|number| *number != 1).collect();
        assert_eq!(first_bytes, came_first);
        assert_eq!(queue.take().len(), 2);
        assert!(queue.take().is_empty());
    }

    #[test]
    fn there_are_no_more_tasks_than_may() {
        let mut queue = Queue::default();
        let due: Vec<bool> = (0..4).map(|number| enter(&mut queue, number).unwrap().1).collect();
        assert_eq!(due, [true, true, false, false]);
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut queue = Queue::default();
        let _waiting: Vec<_> = (0..WAITING_MAX).map(|number| enter(&mut queue, number).unwrap()).collect();
        assert!(matches!(enter(&mut queue, WAITING_MAX), Err(PostgresError::Unavailable(_))));
    }
}
