//! What can wait waits while publishers come in a rush.
//!
//! A node that restarts sends all its encoders at once. The history, what this replica remembers of what is on air, and the count of
//! that for the metrics cost as much for each of them as the admission itself, and would be paid for by those who wait. So they
//! keep still, for a moment: a rush that goes on for longer has to bear them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Redis;

/// From how many admissions a second on, by one replica, it is a rush.
const ADMISSIONS_PER_SECOND: f64 = 400.0;
/// How long what can wait keeps still at most.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Over less time than this no rate is told.
const OBSERVED_MIN: Duration = Duration::from_millis(20);

/// The admissions of this replica.
#[derive(Clone, Default)]
pub(super) struct Rush(Arc<AtomicU64>);

impl Rush {
    pub(super) fn note_admission(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn admissions(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// For one who can wait. It asks again and again.
pub struct Courtesy {
    rush: Rush,
    seen: u64,
    seen_at: Instant,
    is_rush: bool,
    waits_since: Option<Instant>,
}

impl Redis {
    /// For work that can wait while publishers come in a rush.
    #[must_use]
    pub fn courtesy(&self) -> Courtesy {
        Courtesy::new(self.inner.rush.clone())
    }
}

impl Courtesy {
    fn new(rush: Rush) -> Self {
        let seen = rush.admissions();
        Self { rush, seen, seen_at: Instant::now(), is_rush: false, waits_since: None }
    }

    /// Whether to wait a little, and ask again. Never true for longer than two seconds.
    pub fn has_to_wait(&mut self) -> bool {
        let now = Instant::now();
        self.observe(now);
        if !self.is_rush {
            self.waits_since = None;
            return false;
        }
        let since = *self.waits_since.get_or_insert(now);
        now.duration_since(since) < WAIT_MAX
    }

    fn observe(&mut self, now: Instant) {
        let observed = now.duration_since(self.seen_at);
        if observed < OBSERVED_MIN {
            return;
        }
        let admissions = self.rush.admissions();
        #[expect(clippy::cast_precision_loss, reason = "a count of admissions")]
        let rate = (admissions - self.seen) as f64 / observed.as_secs_f64();
        self.is_rush = rate > ADMISSIONS_PER_SECOND;
        (self.seen, self.seen_at) = (admissions, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(rush: &Rush, admissions: u64) {
        for _ in 0..admissions {
            rush.note_admission();
        }
        tokio::time::advance(Duration::from_millis(250)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_is_waited_for_but_not_for_ever() {
        let rush = Rush::default();
        let mut courtesy = Courtesy::new(rush.clone());
        pass(&rush, 10).await;
        assert!(!courtesy.has_to_wait(), "a few admissions are no rush");
        for _ in 0..8 {
            pass(&rush, 1_000).await;
            assert!(courtesy.has_to_wait());
        }
        for _ in 0..8 {
            pass(&rush, 1_000).await;
            assert!(!courtesy.has_to_wait(), "it has waited long enough");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_rush_the_next_one_is_waited_for_as_well() {
        let rush = Rush::default();
        let mut courtesy = Courtesy::new(rush.clone());
        for _ in 0..3 {
            pass(&rush, 1_000).await;
            assert!(courtesy.has_to_wait());
            pass(&rush, 0).await;
            assert!(!courtesy.has_to_wait());
        }
    }
}
