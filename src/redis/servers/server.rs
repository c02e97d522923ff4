//! The connections to one server.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use fred::{
    interfaces::ClientLike as _,
    types::config::{Server as Address, ServerConfig},
};
use tokio::time::Instant;

use crate::redis::{RedisError, batches::Batches, connection::Connection, turns::Turns};

/// A server, and what waits for it.
pub(in crate::redis) struct Server {
    pub(super) address: ServerConfig,
    quick: Box<[Arc<Connection>]>,
    bulk: Arc<Connection>,
    next: AtomicUsize,
    pub(in crate::redis) turns: Turns,
    pub(in crate::redis) batches: Batches,
}

impl Server {
    /// Begins so many connections for small commands, and one for large answers, each made by `connect`.
    pub(super) fn open(
        address: ServerConfig,
        connections: usize,
        batches: Batches,
        connect: impl Fn(&ServerConfig) -> Result<Connection, RedisError>,
    ) -> Result<Self, RedisError> {
        let one = || connect(&address).map(Arc::new);
        let (quick, bulk) = (iter::repeat_with(one).take(connections).collect::<Result<_, _>>()?, one()?);
        Ok(Self { address, quick, bulk, next: AtomicUsize::new(0), turns: Turns::default(), batches })
    }

    pub(super) fn is_at(&self, address: &Address) -> bool {
        matches!(&self.address, ServerConfig::Centralized { server } if server == address)
    }

    /// One of those for small commands, each in its turn. One that owes an answer only where none is better.
    pub(super) fn quick(&self) -> Option<Arc<Connection>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.quick.len();
        let mut in_turn = (0..count).map(|offset| &self.quick[start.wrapping_add(offset) % count]);
        let best = in_turn.clone().find(|connection| connection.is_promising());
        best.or_else(|| in_turn.find(|connection| connection.is_connected())).cloned()
    }

    /// When it answered one of those last.
    pub(in crate::redis) fn answered_at(&self) -> Option<Instant> {
        self.quick.iter().filter_map(|connection| connection.answered_at()).max()
    }

    /// The one for large answers.
    pub(super) fn bulk(&self) -> Option<Arc<Connection>> {
        self.bulk.is_connected().then(|| Arc::clone(&self.bulk))
    }

    pub(in crate::redis) fn all(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.quick.iter().chain(iter::once(&self.bulk))
    }

    /// Says why it cannot be connected to.
    pub(super) fn tell_trouble(&self) {
        self.bulk.tell_trouble();
    }
}
