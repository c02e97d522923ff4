//! One pass over the log: read a batch, write it, remove it.

use std::time::Duration;

use super::{Writer, backlog};
use crate::{
    domain::{Partition, Timestamp},
    metrics,
    postgres::{StreamRecord, Totals},
    redis::{Event, EventId, EventKind, RedisError},
    store_error::StoreError,
};

/// What a pass left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    /// Entries that still wait.
    pub remaining_entries: u64,
}

/// A batch: the oldest entries of every partition that has any.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// What is removed once the events are written.
    entries: Vec<(Partition, Vec<EventId>)>,
    set_aside: u64,
}

impl Writer {
    /// Writes one batch.
    ///
    /// Every partition gets an equal part of it, so that none waits for the backlog of another.
    pub(super) async fn write_batch(&self) -> Result<Pass, StoreError> {
        let mut counts = self.redis.event_counts().await?;
        let dropped = backlog::drop_excess(&self.redis, &self.config, &counts).await?;
        if dropped > 0 {
            self.history.note(|report| report.dropped += dropped);
            counts = self.redis.event_counts().await?;
        }
        let waiting: Vec<(Partition, u64)> = self
            .share
            .partitions
            .iter()
            .filter_map(|&partition| Some((partition, *counts.get(partition.index())?)))
            .filter(|&(_, count)| count > 0)
            .collect();
        let backlog_entries: u64 = waiting.iter().map(|(_, count)| count).sum();
        self.history.note(|report| report.backlog_entries = backlog_entries);
        let Some(part) = self.config.batch_entries_max.checked_div(waiting.len()) else {
            metrics::history_backlog(0, Duration::ZERO);
            return Ok(Pass { remaining_entries: 0 });
        };

        let batch = self.read(&waiting, part.max(1)).await?;
        let oldest = batch.events.iter().map(|event| event.at).min();
        let age_ms = oldest.map_or(0, |at| Timestamp::now().ms_since(at));
        metrics::history_backlog(backlog_entries, Duration::from_millis(age_ms));
        let refused = self.write(&batch.events).await?;
        self.redis.remove_events(&batch.entries).await?;

        let written = batch.events.len() as u64 - refused;
        let remaining_entries =
            backlog_entries.saturating_sub(batch.entries.iter().map(|(_, ids)| ids.len() as u64).sum());
        metrics::history_written(written);
        if remaining_entries == 0 {
            metrics::history_backlog(0, Duration::ZERO);
        }
        self.history.note(|report| {
            report.backlog_entries = remaining_entries;
            report.written += written;
            report.left_out += refused;
            report.set_aside += batch.set_aside;
        });
        Ok(Pass { remaining_entries })
    }

    async fn read(&self, waiting: &[(Partition, u64)], part: usize) -> Result<Batch, RedisError> {
        let mut batch = Batch::default();
        let partitions: Vec<Partition> =
            waiting.iter().take(self.config.batch_entries_max).map(|&(partition, _)| partition).collect();
        let logs = self.redis.read_events_of(&partitions, part).await?;
        for (partition, read) in partitions.into_iter().zip(logs) {
            let ids: Vec<EventId> = read.events.iter().map(|event| event.id.clone()).collect();
            for (id, error) in &read.unreadable {
                tracing::error!(%partition, entry = ?id, %error,
                    "an entry of the event log was written by another version: set aside for one that can read it");
                metrics::history_error();
                batch.set_aside += 1;
            }
            let unreadable: Vec<EventId> = read.unreadable.into_iter().map(|(id, _)| id).collect();
            self.redis.set_events_aside(partition, &unreadable).await?;
            batch.events.extend(read.events);
            batch.entries.push((partition, ids));
        }
        self.complete(&mut batch.events).await?;
        Ok(batch)
    }

    /// Adds the poller's last word about streams whose end came from somebody who did not know it, such as a revocation. It is
    /// kept for a while for this.
    async fn complete(&self, events: &mut [Event]) -> Result<(), RedisError> {
        let mut ends: Vec<&mut Event> =
            events.iter_mut().filter(|event| event.kind == EventKind::Ended && event.last_progress.is_none()).collect();
        if ends.is_empty() {
            return Ok(());
        }
        let sources: Vec<_> = ends.iter().map(|event| (event.stream.node.clone(), event.stream.source.id)).collect();
        for (event, seen) in ends.iter_mut().zip(self.redis.progress_of_sources(&sources).await?) {
            event.last_progress = seen;
        }
        Ok(())
    }

    /// Writes events, and gives the number of those that Postgres refuses for what they are.
    async fn write(&self, events: &[Event]) -> Result<u64, StoreError> {
        let records: Vec<StreamRecord> = events.iter().map(record).collect();
        match self.postgres.record_streams(&records).await {
            Ok(_) => return Ok(0),
            Err(error) if error.is_about_the_data() => {}
            Err(error) => return Err(error.into()),
        }
        // One of them is to blame. Each by itself: the others must not wait for it.
        let mut refused = 0;
        for record in &records {
            match self.postgres.record_streams(std::slice::from_ref(record)).await {
                Ok(_) => {}
                Err(error) if error.is_about_the_data() => {
                    let (stream, revision) = (&record.stream, record.stream.revision.0);
                    tracing::error!(stream_id = %stream.id, path = %stream.path, revision, %error,
                        "a transition is left out of the history");
                    metrics::history_error();
                    refused += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(refused)
    }
}

fn record(event: &Event) -> StreamRecord {
    StreamRecord { stream: event.stream.clone(), totals: event.last_progress.as_ref().map(Totals::from) }
}
