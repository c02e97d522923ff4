//! Batches: admissions that come at once are asked for together.
//!
//! An admission that comes alone is sent at once. While some are under way, others wait, and whoever then carries takes all of
//! them along in one EVALSHA, as many as [`BATCH_MAX`]: each command costs Redis, this process and the system between them
//! the same, however many admissions it holds. So the more come, the less each of them costs.
//!
//! A node that comes back sends a thousand encoders in one moment. Were they all handed to Redis as they come, each answer
//! would stand in this process's queue behind the work of all others, later than it is waited for
//! (`redis.command_timeout_ms`), and be taken for that of a Redis that is away. Here they wait in the order in which they
//! came, and Redis has heard nothing of those who give up.
//!
//! Invariants:
//! - Each server has batches of its own, so that one that hangs makes nobody wait who asks another.
//! - An admission is either sent or given up by its caller, never both: whoever takes its [`Ticket`] first says which.
//! - In a cluster, a batch is about one partition, for Redis takes no script about several.
//! - One admission that Redis stumbles over refuses nobody else.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use fred::types::Value;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::{Redis, RedisError, call::Call, script, servers::Server};
use crate::domain::{Partition, StreamPath};

/// The most admissions of one batch: Redis does nothing else meanwhile, for some two milliseconds.
const BATCH_MAX: usize = 16;
/// How many batches are under way at once at a server that holds all partitions: enough that it never runs dry.
const UNDER_WAY_MAX: usize = 4;
/// The same in a cluster, where few admissions can share a batch.
const UNDER_WAY_IN_CLUSTER_MAX: usize = 64;
/// The most admissions that wait for one server. More are answered [`RedisError::Unavailable`].
const WAITING_MAX: usize = 10_000;

/// Says who has an admission in hand: taken by whoever sends it, or by its caller, who gives it up.
#[derive(Debug, Clone, Default)]
pub struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Whether nobody had taken it.
    #[must_use]
    pub fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

struct Waiting {
    partition: Partition,
    call: Call,
    ticket: Ticket,
    answer: oneshot::Sender<Result<Value, RedisError>>,
}

/// The admissions of one server.
pub(super) struct Batches {
    is_cluster: bool,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    under_way: usize,
}

impl Batches {
    pub(super) fn new(is_cluster: bool) -> Self {
        Self { is_cluster, queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Whatever panicked elsewhere left it whole: nothing is done halfway here.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in. Whether somebody has to come and carry it.
    fn put(&self, waiting: Waiting) -> Result<bool, RedisError> {
        let mut queue = self.queue();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(RedisError::Unavailable);
        }
        queue.waiting.push_back(waiting);
        let under_way_max = if self.is_cluster { UNDER_WAY_IN_CLUSTER_MAX } else { UNDER_WAY_MAX };
        let has_room = queue.under_way < under_way_max;
        queue.under_way += usize::from(has_room);
        Ok(has_room)
    }
}

impl Queue {
    /// Those who came first, as many as can be asked for together.
    fn take(&mut self, is_cluster: bool) -> Vec<Waiting> {
        let mut batch: Vec<Waiting> = Vec::new();
        while batch.len() < BATCH_MAX {
            let fits =
                |next: &Waiting| !is_cluster || batch.first().is_none_or(|first| first.partition == next.partition);
            if !self.waiting.front().is_some_and(fits) {
                break;
            }
            batch.extend(self.waiting.pop_front().filter(|next| next.ticket.take()));
        }
        batch
    }
}

/// One who carries batches to a server, as long as there are any.
struct Carrier {
    server: Arc<Server>,
    has_left: bool,
}

impl Carrier {
    /// The next batch. None where nobody waits: then it has left.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let batches = &self.server.batches;
        let mut queue = batches.queue();
        let batch = queue.take(batches.is_cluster);
        if batch.is_empty() {
            // Under the same lock, so that whoever comes now knows that nobody will carry it.
            queue.under_way -= 1;
            self.has_left = true;
        }
        (!batch.is_empty()).then_some(batch)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if !self.has_left {
            self.server.batches.queue().under_way -= 1;
        }
    }
}

impl Redis {
    /// Has `admit` called for a path, together with others.
    pub(super) async fn admit_in_batch(
        &self,
        path: &StreamPath,
        call: Call,
        ticket: &Ticket,
    ) -> Result<Value, RedisError> {
        let partition = path.partition();
        // A key is hashed by what stands between its braces: the bare tag names the server of all keys of the partition.
        let server = self.inner.servers.server(partition.as_str())?;
        let (answer, answered) = oneshot::channel();
        if server.batches.put(Waiting { partition, call, ticket: ticket.clone(), answer })? {
            let redis = self.clone();
            let mut carrier = Carrier { server, has_left: false };
            self.inner.tasks.spawn_short("admissions", async move {
                while let Some(batch) = carrier.next() {
                    redis.carry(batch).await;
                }
            });
        }
        answered.await.unwrap_or(Err(RedisError::Unavailable))
    }

    async fn carry(&self, batch: Vec<Waiting>) {
        let (calls, callers): (Vec<Call>, Vec<_>) = batch.into_iter().map(|one| (one.call, one.answer)).unzip();
        let mut answers = self.admit_all(&calls).await;
        if calls.len() > 1 && matches!(answers.first(), Some(Err(RedisError::Refused(_)))) {
            // It may have served some before it stumbled over one: who asks again is admitted again.
            answers = join_all(calls.chunks(1).map(|alone| self.admit_all(alone))).await.concat();
        }
        for (caller, answer) in callers.into_iter().zip(answers) {
            // Who has hung up meanwhile sees to it by itself.
            let _ = caller.send(answer);
        }
    }

    async fn admit_all(&self, calls: &[Call]) -> Vec<Result<Value, RedisError>> {
        let all = |error| vec![Err(error); calls.len()];
        match self.run_call(&script::ADMIT, &Call::joined(calls)).await {
            Ok(Value::Array(answers)) if answers.len() == calls.len() => answers.into_iter().map(Ok).collect(),
            Ok(_) => all(RedisError::Protocol("admit did not answer everybody".to_owned())),
            Err(error) => all(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(path: &str, ticket: &Ticket) -> Waiting {
        let partition = path.parse::<StreamPath>().expect("a path").partition();
        let (answer, _) = oneshot::channel();
        Waiting { partition, call: Call::of(&[], &[path.to_owned()]), ticket: ticket.clone(), answer }
    }

    fn sizes(batches: &Batches) -> Vec<usize> {
        let mut queue = batches.queue();
        std::iter::from_fn(|| Some(queue.take(batches.is_cluster).len()).filter(|&size| size > 0)).collect()
    }

    #[test]
    fn who_comes_while_enough_are_under_way_is_taken_along() {
        let batches = Batches::new(false);
        let carried =
            (0..100).filter(|number| batches.put(waiting(&format!("live/{number}"), &Ticket::default())).unwrap());
        assert_eq!(carried.collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(sizes(&batches), [16, 16, 16, 16, 16, 16, 4]);
    }

    #[test]
    fn in_a_cluster_a_batch_is_about_one_partition() {
        let batches = Batches::new(true);
        for path in ["live/a", "live/a", "live/b", "live/a"] {
            batches.put(waiting(path, &Ticket::default())).unwrap();
        }
        assert_eq!(sizes(&batches), [2, 1, 1]);
    }

    #[test]
    fn who_has_given_up_is_passed_over_and_who_was_sent_cannot_give_up() {
        let batches = Batches::new(false);
        let tickets = [Ticket::default(), Ticket::default()];
        for ticket in &tickets {
            batches.put(waiting("live/a", ticket)).unwrap();
        }
        assert!(tickets[0].take());
        assert_eq!(sizes(&batches), [1]);
        assert!(!tickets[1].take());
    }

    #[test]
    fn no_more_wait_than_may() {
        let batches = Batches::new(false);
        for _ in 0..WAITING_MAX {
            batches.put(waiting("live/a", &Ticket::default())).unwrap();
        }
        assert_eq!(batches.put(waiting("live/a", &Ticket::default())), Err(RedisError::Unavailable));
    }
}
