//! Turns: how many readers' calls ask a server at once.
//!
//! A thousand viewers may come in one moment. Were they all handed to Redis as they come, each answer would stand in this process's
//! queue behind the work of all others, later than it is waited for (`redis.command_timeout_ms`), and be taken for that of a
//! Redis that is away. So only some ask at once. The others wait in the order in which they came, within the deadline of
//! their call, and Redis has heard nothing of those who give up. Publishers share what they ask: see `batches.rs`.
//!
//! Invariant: each server has turns of its own, so that one that hangs makes nobody wait who asks another.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Redis, RedisError};
use crate::domain::StreamPath;

/// How many ask at once: enough that neither Redis nor the connections to it ever run dry, and so few that the last of them has its answer
/// after a tenth of what it is waited for.
const AT_ONCE_MAX: usize = 128;

/// The turns of one server.
pub(super) struct Turns(Arc<Semaphore>);

/// It is one's turn until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE_MAX)))
    }
}

impl Turns {
    /// Waits for a turn.
    pub(super) fn take(&self) -> impl Future<Output = Turn> + use<> {
        let permit = Arc::clone(&self.0).acquire_owned();
        async { Turn { _permit: permit.await.expect("it is never closed") } }
    }
}

impl Redis {
    /// Waits for a turn to ask the server that holds `path`.
    ///
    /// # Errors
    /// Where it is not known.
    pub async fn turn(&self, path: &StreamPath) -> Result<Turn, RedisError> {
        // A key is hashed by what stands between its braces: the bare tag names the server of all keys of the partition.
        let turn = self.inner.servers.server(path.partition().as_str())?.turns.take();
        Ok(turn.await)
    }

    /// When the server that holds `path` gave its last answer to a small command, to the millisecond.
    #[must_use]
    pub fn answered_at(&self, path: &StreamPath) -> Option<Instant> {
        self.inner.servers.server(path.partition().as_str()).ok()?.answered_at()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_comes_when_all_turns_are_taken_waits_in_order() {
        let turns = Turns::default();
        let take = || turns.take().now_or_never().expect("a turn is free");
        let mut taken: Vec<Turn> = std::iter::repeat_with(take).take(AT_ONCE_MAX).collect();
        let (mut first, mut second) = (Box::pin(turns.take()), Box::pin(turns.take()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        taken.pop();
        assert!(second.as_mut().now_or_never().is_none(), "another one came before");
        drop(first);
        assert!(second.now_or_never().is_some(), "who gave up is passed over");
    }
}
