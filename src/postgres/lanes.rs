//! Who may hold how many connections, and which connections are worth handing out.
//!
//! Invariants:
//! - No kind of request can take all connections, however slow its statements are: those who read, those who change, and
//!   what runs by itself (the write-behind, the outbox, look-ups of keys) leave room for one another.
//! - Where one connection turns out to be dead, all that were opened before are thrown away unasked. Otherwise each would cost
//!   its own time limit, one after the other, after the network is back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection as _, PgConnection, pool::PoolConnectionMetadata};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// How long an idle connection may take to show that it is alive.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Requests that read: lists, the history, one of something.
    Reading,
    /// Requests that change something.
    Changing,
    /// What runs by itself, and what a publisher waits for. Bounded where it is started.
    Rest,
}

#[derive(Debug)]
pub(super) struct Lanes {
    reading: Semaphore,
    changing: Semaphore,
}

impl Lanes {
    /// Two fifths of the connections for each of the first two lanes.
    pub(super) fn new(connections_max: u32) -> Self {
        let share = usize::try_from(connections_max * 2 / 5).unwrap_or(1).max(1);
        Self { reading: Semaphore::new(share), changing: Semaphore::new(share) }
    }

    /// Waits for a place. The caller has a limit.
    pub(super) async fn enter(&self, lane: Lane) -> Option<SemaphorePermit<'_>> {
        let places = match lane {
            Lane::Reading => &self.reading,
            Lane::Changing => &self.changing,
            Lane::Rest => return None,
        };
        places.acquire().await.ok()
    }
}

/// What is known of the connections' health. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Health {
    began: Instant,
    /// When a connection was last found dead, in milliseconds after `began`; 0 for never.
    dead_at_ms: Arc<AtomicU64>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), dead_at_ms: Arc::default() }
    }

    /// A connection was found dead.
    pub(super) fn note_death(&self) {
        self.dead_at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Whether an idle connection may be handed out.
    pub(super) async fn may_be_used(&self, connection: &mut PgConnection, about: PoolConnectionMetadata) -> bool {
        let age_ms = u64::try_from(about.age.as_millis()).unwrap_or(u64::MAX);
        let opened_at_ms = self.now_ms().saturating_sub(age_ms);
        if opened_at_ms < self.dead_at_ms.load(Ordering::Relaxed) {
            return false;
        }
        let is_alive = matches!(tokio::time::timeout(PROBE_LIMIT, connection.ping()).await, Ok(Ok(())));
        if !is_alive {
            self.note_death();
        }
        is_alive
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
