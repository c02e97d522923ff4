//! Batches: admissions that come at once are asked for together.
//!
//! An admission that comes alone is sent at once, by its caller. While enough are under way, others wait, and whoever then carries
//! them takes all along in one EVALSHA, as many as [`BATCH_MAX`]: each command costs Redis, this process and the system
//! between them the same, however many admissions it holds. So the more come, the less each of them costs.
//!
//! A node that comes back sends a thousand encoders in one moment. Were they all handed to Redis as they come, each answer
//! would stand in this process's queue behind the work of all others, later than it is waited for
//! (`redis.command_timeout_ms`), and be taken for that of a Redis that is away. Here they wait in the order in which they
//! came, and Redis has heard nothing of those who give up.
//!
//! Invariants:
//! - Each server has batches of its own, so that one that hangs makes nobody wait who asks another.
//! - Where somebody waits, somebody is under way, who sees to them when it is done, however it ends.
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
use tokio::{runtime::Handle, sync::oneshot};

use super::{Redis, RedisError, call::Call, script, servers::Server};
use crate::domain::{Partition, StreamPath};

/// The most admissions of one batch: Redis does nothing else meanwhile, for some two milliseconds.
const BATCH_MAX: usize = 16;
/// How many batches are under way at once at a server that holds all partitions: enough that it never runs dry.
const UNDER_WAY_MAX: usize = 4;
/// The same in a cluster, where few admissions can share a batch.
const UNDER_WAY_IN_CLUSTER_MAX: usize = 64;
/// The most admissions that wait for one server. More are answered [`RedisError::Overloaded`].
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

enum Entered {
    /// It is under way.
    AtOnce(Call),
    /// Enough are; it will be told.
    Waits(oneshot::Receiver<Result<Value, RedisError>>),
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

    /// Lets an admission in. Whoever is let in at once has to leave again.
    fn enter(&self, partition: Partition, call: Call, ticket: &Ticket) -> Result<Entered, RedisError> {
        let mut queue = self.queue();
        let under_way_max = if self.is_cluster { UNDER_WAY_IN_CLUSTER_MAX } else { UNDER_WAY_MAX };
        if queue.under_way < under_way_max {
            queue.under_way += 1;
            return Ok(Entered::AtOnce(call));
        }
        if queue.waiting.len() >= WAITING_MAX {
            return Err(RedisError::Overloaded);
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push_back(Waiting { partition, call, ticket: ticket.clone(), answer });
        Ok(Entered::Waits(answered))
    }

    /// Frees this slot, unless callers are queued. True where the slot is kept: whoever gets that must work the queue off.
    fn keep_slot_if_queued(&self) -> bool {
        let mut queue = self.queue();
        let is_kept = !queue.waiting.is_empty();
        queue.under_way -= usize::from(!is_kept);
        is_kept
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue().waiting.len()
    }

    fn take(&self) -> Vec<Waiting> {
        self.queue().take(self.is_cluster)
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

/// One of those under way at a server. When it is dropped, another one takes its place as long as somebody waits.
struct UnderWay {
    redis: Redis,
    server: Arc<Server>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Outside of a runtime nobody waits for an answer.
        if self.server.batches.keep_slot_if_queued() && Handle::try_current().is_ok() {
            let (redis, server) = (self.redis.clone(), Arc::clone(&self.server));
            self.redis.inner.tasks.spawn_short("admissions", async move {
                // Made here, where it runs: a runtime that ends drops at once what it is given, and one made before would give it the
                // next, and so on.
                let next = Self { redis, server };
                loop {
                    let batch = next.server.batches.take();
                    if batch.is_empty() {
                        return;
                    }
                    next.redis.carry(batch).await;
                }
            });
        }
    }
}

impl Redis {
    /// Has `admit` called for a path, by itself or together with others.
    pub(super) async fn admit_in_batch(
        &self,
        path: &StreamPath,
        call: Call,
        ticket: &Ticket,
    ) -> Result<Value, RedisError> {
        let partition = path.partition();
        // A key is hashed by what stands between its braces: the bare tag names the server of all keys of the partition.
        let server = self.inner.servers.server(partition.as_str())?;
        match server.batches.enter(partition, call, ticket)? {
            Entered::AtOnce(call) => {
                let _under_way = UnderWay { redis: self.clone(), server };
                if !ticket.take() {
                    return Err(RedisError::Unavailable);
                }
                self.admit_alone(&call).await
            }
            Entered::Waits(answered) => answered.await.unwrap_or(Err(RedisError::Unavailable)),
        }
    }

    async fn carry(&self, batch: Vec<Waiting>) {
        let (calls, callers): (Vec<Call>, Vec<_>) = batch.into_iter().map(|one| (one.call, one.answer)).unzip();
        let mut answers = self.admit_all(&calls).await;
        if calls.len() > 1 && matches!(answers.first(), Some(Err(RedisError::Refused(_)))) {
            // It may have served some before it stumbled over one: who asks again is admitted again.
            answers = join_all(calls.iter().map(|alone| self.admit_alone(alone))).await;
        }
        for (caller, answer) in callers.into_iter().zip(answers) {
            // Who has hung up meanwhile sees to it by itself.
            let _ = caller.send(answer);
        }
    }

    async fn admit_all(&self, calls: &[Call]) -> Vec<Result<Value, RedisError>> {
        if let [alone] = calls {
            return vec![self.admit_alone(alone).await];
        }
        let all = |error| vec![Err(error); calls.len()];
        match self.run_call(&script::ADMIT_EACH, &Call::joined(calls)).await {
            Ok(Value::Array(answers)) if answers.len() == calls.len() => answers.into_iter().map(Ok).collect(),
            Ok(_) => all(RedisError::Protocol("admit did not answer everybody".to_owned())),
            Err(error) => all(error),
        }
    }

    async fn admit_alone(&self, call: &Call) -> Result<Value, RedisError> {
        self.run_call(&script::ADMIT, call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is under way at once.
    fn enter(batches: &Batches, path: &str, ticket: &Ticket) -> Result<bool, RedisError> {
        let partition = path.parse::<StreamPath>().expect("a path").partition();
        let entered = batches.enter(partition, Call::of(&[], &[path.to_owned()]), ticket)?;
        Ok(matches!(entered, Entered::AtOnce(_)))
    }

    /// One at which as many are under way as can be.
    fn full(is_cluster: bool) -> Batches {
        let batches = Batches::new(is_cluster);
        while enter(&batches, "live/a", &Ticket::default()).unwrap() {}
        assert_eq!(batches.take().len(), 1);
        batches
    }

    fn sizes(batches: &Batches) -> Vec<usize> {
        std::iter::from_fn(|| Some(batches.take().len()).filter(|&size| size > 0)).collect()
    }

    #[test]
    fn who_comes_while_enough_are_under_way_is_taken_along() {
        let batches = Batches::new(false);
        let at_once = (0..104).filter(|number| enter(&batches, &format!("live/{number}"), &Ticket::default()).unwrap());
        assert_eq!(at_once.collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(batches.keep_slot_if_queued(), "whoever is done sees to those who wait");
        assert_eq!(sizes(&batches), [16, 16, 16, 16, 16, 16, 4]);
        for _ in 0..UNDER_WAY_MAX {
            assert!(!batches.keep_slot_if_queued());
        }
        assert!(enter(&batches, "live/a", &Ticket::default()).unwrap(), "all have left");
    }

    #[test]
    fn in_a_cluster_a_batch_is_about_one_partition() {
        let batches = full(true);
        for path in ["live/a", "live/a", "live/b", "live/a"] {
            assert!(!enter(&batches, path, &Ticket::default()).unwrap());
        }
        assert_eq!(sizes(&batches), [2, 1, 1]);
    }

    #[test]
    fn who_has_given_up_is_passed_over_and_who_was_sent_cannot_give_up() {
        let batches = full(false);
        let tickets = [Ticket::default(), Ticket::default()];
        for ticket in &tickets {
            enter(&batches, "live/a", ticket).unwrap();
        }
        assert!(tickets[0].take());
        assert_eq!(sizes(&batches), [1]);
        assert!(!tickets[1].take());
    }

    #[test]
    fn no_more_wait_than_may() {
        let batches = full(false);
        for _ in 0..WAITING_MAX {
            enter(&batches, "live/a", &Ticket::default()).unwrap();
        }
        assert_eq!(batches.waiting(), WAITING_MAX);
        assert_eq!(enter(&batches, "live/a", &Ticket::default()), Err(RedisError::Overloaded));
    }
}
