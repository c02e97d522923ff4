//! How many transitions wait for Postgres, and what happens when they are too many.
//!
//! Role: a figure that every replica reads from Redis each second, so that an admission looks at a number in memory and
//! still costs one script; and the removal of the oldest entries, where the configuration wants that.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio_util::sync::CancellationToken;

use crate::{
    config::{HistoryConfig, WhenFull},
    domain::Partition,
    lifecycle::{TaskError, Tasks, every},
    metrics,
    redis::{Redis, RedisError},
};

/// How often the log is counted. In between, it may grow beyond its limit by what happens in this time.
const PERIOD_MS: u64 = 1_000;

/// What one replica knows of the backlog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backlog {
    entries: Arc<AtomicU64>,
    entries_max: u64,
    when_full: WhenFull,
}

impl Backlog {
    /// Starts the task that counts. It runs until `tasks` stop.
    #[must_use]
    pub fn watch(redis: Redis, config: &HistoryConfig, tasks: &Tasks) -> Self {
        let backlog =
            Self { entries: Arc::default(), entries_max: config.backlog_entries_max, when_full: config.when_full };
        tasks.spawn("history_backlog", backlog.clone().count(redis, tasks.stopping()));
        backlog
    }

    /// Whether nobody new may be admitted, because its transitions could not be recorded.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.when_full == WhenFull::Refuse && self.entries.load(Ordering::Relaxed) >= self.entries_max
    }

    fn tell(&self, entries: u64) {
        if self.refuses() {
            tracing::error!(entries, "the history's backlog is full: new publishers are refused");
        } else {
            tracing::warn!(entries, "the history's backlog is no longer full");
        }
    }

    async fn count(self, redis: Redis, stopping: CancellationToken) -> Result<(), TaskError> {
        let mut beats = every(PERIOD_MS, &stopping);
        while beats.beat().await {
            metrics::history_backlog_max(self.entries_max);
            // While Redis is away nobody is admitted anyway, and the last figure is as good as any.
            if let Ok(entries) = redis.events_backlog().await {
                let was_full = self.refuses();
                self.entries.store(entries, Ordering::Relaxed);
                if self.refuses() != was_full {
                    self.tell(entries);
                }
            }
        }
        Ok(())
    }
}

/// Drops the oldest entries beyond the limit, where the configuration wants that, and gives how many they were. The longest
/// logs are cut, to one length, so that a busy partition does not cost a quiet one its history.
pub(super) async fn drop_excess(redis: &Redis, config: &HistoryConfig, counts: &[u64]) -> Result<u64, RedisError> {
    let total: u64 = counts.iter().sum();
    if config.when_full == WhenFull::Refuse || total <= config.backlog_entries_max {
        return Ok(0);
    }
    let length_max = longest_allowed(counts, config.backlog_entries_max);
    let too_long: Vec<Partition> = Partition::all()
        .zip(counts)
        .filter(|&(_, &count)| count > length_max)
        .map(|(partition, _)| partition)
        .collect();
    let dropped = redis.trim_events(&too_long, length_max).await?;
    metrics::history_dropped(dropped);
    tracing::error!(dropped, "the history's backlog is full: its oldest transitions are dropped");
    Ok(dropped)
}

/// The length to which logs of these lengths have to be cut so that they are `total_max` together.
fn longest_allowed(lengths: &[u64], total_max: u64) -> u64 {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let (mut room, mut logs) = (total_max, sorted.len() as u64);
    for length in sorted {
        if length.saturating_mul(logs) >= room {
            return room / logs;
        }
        room -= length;
        logs -= 1;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_logs_are_cut_and_the_others_left() {
        assert_eq!(longest_allowed(&[10, 10, 10], 30), 10);
        assert_eq!(longest_allowed(&[10, 10, 10], 29), 9);
        assert_eq!(longest_allowed(&[0, 5, 100], 50), 45);
        assert_eq!(longest_allowed(&[0, 90, 100], 100), 50);
        assert_eq!(longest_allowed(&[1, 2, 3], 100), u64::MAX);
        assert_eq!(longest_allowed(&[7, 8], 0), 0);
        for (lengths, max) in [([3, 50, 7, 9], 20), ([1, 1, 1, 400], 40), ([9, 9, 9, 9], 10)] {
            let cut = longest_allowed(&lengths, max);
            let total: u64 = lengths.iter().map(|&length: &u64| length.min(cut)).sum();
            assert!(total <= max && total + 4 > max, "{lengths:?} cut to {cut}: {total} of {max}");
        }
    }
}
