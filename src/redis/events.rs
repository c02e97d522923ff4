//! The event log: one entry for every transition, written by the script of the transition. It is the outbox of the history.

use std::collections::HashMap;

use fred::{
    interfaces::StreamsInterface,
    types::{Value, streams::XCapKind},
};

use super::{
    Lane, Redis, RedisError, answer_parts, answered_at_all, keys, queued, record::Record, script, unknown_word,
};
use crate::domain::{Partition, Progress, Stream, StreamId, Timestamp, words};

words! {
    /// What happened to a stream.
    pub enum EventKind {
        /// Its publisher was admitted.
        Admitted = "admitted",
        /// It was seen online.
        Confirmed = "confirmed",
        /// What belongs to it changed.
        Updated = "updated",
        /// It ended.
        Ended = "ended",
    }
}

/// How many entries are moved by one script.
const MOVED_AT_ONCE: usize = 32;

/// How many entries of each log are looked through at once.
const LOG_PAGE: u64 = 100;

/// An entry of a log: its id and its fields.
type Entry = (String, HashMap<String, String>);

fn entries(log: Value) -> Result<Vec<Entry>, RedisError> {
    log.into_xread_value().map_err(|error| RedisError::from_fred(&error))
}

/// Redis's id of an entry: its place in the order of its partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventId(String);

/// One transition. It holds the whole stream, so that a reader who missed the earlier ones still knows everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the order.
    pub id: EventId,
    /// What happened.
    pub kind: EventKind,
    /// When, by the clock of Redis.
    pub at: Timestamp,
    /// The stream after it.
    pub stream: Stream,
    /// The poller's last word about the stream, where it ended and there was one.
    pub last_progress: Option<Progress>,
}

impl Event {
    fn from_fields(id: String, fields: HashMap<String, String>) -> Result<Self, RedisError> {
        let record =
            Record::from_map(fields).ok_or_else(|| RedisError::Protocol("an event without fields".to_owned()))?;
        record.refuse_newer_format()?;
        Ok(Self {
            id: EventId(id),
            kind: record.required("event")?,
            at: record.time("at_ms")?,
            stream: record.stream()?,
            last_progress: record.last_progress(),
        })
    }
}

/// What the event logs of some partitions still say about streams, which the history does not know yet.
#[derive(Debug, Default)]
pub struct LastWords {
    /// Whether the last one about a stream is that it has ended.
    has_ended: HashMap<StreamId, bool>,
}

impl LastWords {
    /// Whether there is one about a stream.
    #[must_use]
    pub fn tell_of(&self, stream: StreamId) -> bool {
        self.has_ended.contains_key(&stream)
    }

    /// Whether they say that a stream has ended.
    #[must_use]
    pub fn tell_end_of(&self, stream: StreamId) -> bool {
        self.has_ended.get(&stream).copied().unwrap_or_default()
    }
}

/// What a partition's log holds at its old end.
#[derive(Debug, Default)]
pub struct EventBatch {
    /// The oldest events, in order.
    pub events: Vec<Event>,
    /// Entries among them that this version cannot read whole, with the reason: a newer one wrote them. They are to be set
    /// aside, or they would stand in the way of all that come after.
    pub unreadable: Vec<(EventId, RedisError)>,
}

impl EventBatch {
    fn from_log(log: Value) -> Result<Self, RedisError> {
        let mut batch = Self::default();
        for (id, fields) in entries(log)? {
            match Event::from_fields(id.clone(), fields) {
                Ok(event) => batch.events.push(event),
                Err(error) => batch.unreadable.push((EventId(id), error)),
            }
        }
        Ok(batch)
    }
}

impl Redis {
    /// The oldest events of a partition, at most `count_max`.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn read_events(&self, partition: Partition, count_max: usize) -> Result<EventBatch, RedisError> {
        let mut batches = self.read_events_of(&[partition], count_max).await?;
        Ok(batches.pop().unwrap_or_default())
    }

    /// The oldest events of some partitions, at most `count_max` of each, in one round trip.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn read_events_of(
        &self,
        partitions: &[Partition],
        count_max: usize,
    ) -> Result<Vec<EventBatch>, RedisError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let count = Some(u64::try_from(count_max).unwrap_or(u64::MAX));
        let logs: Vec<Value> = self
            .pipelined(
                Lane::Bulk,
                partitions,
                |&partition| keys::events(partition),
                |pipeline, key, _| queued(pipeline.xrange(key, "-", "+", count)),
            )
            .await?;
        logs.into_iter().map(EventBatch::from_log).collect()
    }

    /// Forgets events that are in the history, in one round trip.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn remove_events(&self, entries: &[(Partition, Vec<EventId>)]) -> Result<(), RedisError> {
        let entries: Vec<_> = entries.iter().filter(|(_, ids)| !ids.is_empty()).collect();
        if entries.is_empty() {
            return Ok(());
        }
        let key = |(partition, _): &&(Partition, Vec<EventId>)| keys::events(*partition);
        let _: Vec<Value> = self
            .pipelined(Lane::Bulk, &entries, key, |pipeline, key, (_, ids)| {
                let ids: Vec<String> = ids.iter().map(|id| id.0.clone()).collect();
                queued(pipeline.xdel(key, ids))
            })
            .await?;
        Ok(())
    }

    /// Takes entries that this version cannot read out of the log, and keeps them for one that can: who reads the log next
    /// puts them back once. See `lua/set_aside.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn set_events_aside(&self, partition: Partition, ids: &[EventId]) -> Result<(), RedisError> {
        self.move_entries(keys::events(partition), keys::set_aside(partition), ids).await
    }

    /// Puts entries that were set aside back into the log. Gives how many.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn put_back_events(&self) -> Result<u64, RedisError> {
        let mut moved = 0;
        let counts = self.lengths(keys::set_aside).await?;
        for (partition, count) in Partition::all().zip(counts.into_iter().map(Option::unwrap_or_default)) {
            // No more than there were, since what nobody can read is set aside again meanwhile.
            let mut left = count;
            while left > 0 {
                let ids = self.first_entries(keys::set_aside(partition), left.min(LOG_PAGE)).await?;
                self.move_entries(keys::set_aside(partition), keys::events(partition), &ids).await?;
                moved += ids.len() as u64;
                left = if ids.is_empty() { 0 } else { left.saturating_sub(ids.len() as u64) };
            }
        }
        Ok(moved)
    }

    async fn first_entries(&self, log: String, count: u64) -> Result<Vec<EventId>, RedisError> {
        let connection = self.bulk(&log)?;
        let page: Value = self.limited(&connection, connection.xrange(&log, "-", "+", Some(count))).await?;
        Ok(entries(page)?.into_iter().map(|(id, _)| EventId(id)).collect())
    }

    async fn move_entries(&self, from: String, to: String, ids: &[EventId]) -> Result<(), RedisError> {
        for some in ids.chunks(MOVED_AT_ONCE) {
            let arguments = some.iter().map(|id| id.0.clone()).collect();
            let (word, _) =
                answer_parts(self.run(&script::SET_ASIDE, vec![from.clone(), to.clone()], arguments).await?)?;
            if word != "moved" {
                return Err(unknown_word(script::SET_ASIDE.name, &word));
            }
        }
        Ok(())
    }

    /// How many entries are set aside in each partition.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn events_set_aside(&self) -> Result<Vec<u64>, RedisError> {
        let lengths = self.lengths(keys::set_aside).await?;
        lengths.into_iter().collect::<Option<_>>().ok_or(RedisError::Unavailable)
    }

    /// How many events wait for the history, over all partitions.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn events_backlog(&self) -> Result<u64, RedisError> {
        Ok(self.event_counts().await?.iter().sum())
    }

    /// How many events wait for the history in each partition. In a cluster, 0 for those of a server that is away: nobody can read them.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn event_counts(&self) -> Result<Vec<u64>, RedisError> {
        Ok(self.lengths(keys::events).await?.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// `None` for those of a server that is away.
    async fn lengths(&self, log: impl Fn(Partition) -> String) -> Result<Vec<Option<u64>>, RedisError> {
        let partitions: Vec<Partition> = Partition::all().collect();
        let lengths = self
            .pipelined_apart(
                Lane::Bulk,
                &partitions,
                |&partition| log(partition),
                |pipeline, key, _| queued(pipeline.xlen(key)),
            )
            .await?;
        answered_at_all(lengths)
    }

    /// Forgets the oldest events of some partitions, unread, until each has at most `length_max`; gives how many they were.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn trim_events(&self, partitions: &[Partition], length_max: u64) -> Result<u64, RedisError> {
        if partitions.is_empty() {
            return Ok(0);
        }
        let length_max = i64::try_from(length_max).unwrap_or(i64::MAX);
        let trimmed: Vec<u64> = self
            .pipelined(
                Lane::Bulk,
                partitions,
                |&partition| keys::events(partition),
                |pipeline, key, _| queued(pipeline.xtrim(key, (XCapKind::MaxLen, length_max))),
            )
            .await?;
        Ok(trimmed.iter().sum())
    }

    /// The newest word of the log about a stream that is no longer on air and not yet in the history. Looks at the newest
    /// `depth_max` events of each partition.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn find_in_log(&self, stream_id: StreamId, depth_max: u64) -> Result<Option<Event>, RedisError> {
        let wanted = stream_id.to_string();
        let partitions: Vec<Partition> = Partition::all().collect();
        let logs: Vec<Value> = self
            .pipelined(
                Lane::Bulk,
                &partitions,
                |&partition| keys::events(partition),
                |pipeline, key, _| queued(pipeline.xrevrange(key, "+", "-", Some(depth_max))),
            )
            .await?;
        for log in logs {
            let found = entries(log)?.into_iter().find(|(_, fields)| fields.get("id") == Some(&wanted));
            if let Some((id, fields)) = found {
                return Event::from_fields(id, fields).map(Some);
            }
        }
        Ok(None)
    }

    /// What waits in the logs of some partitions, also among what is set aside.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn last_words(&self, partitions: &[Partition]) -> Result<LastWords, RedisError> {
        let mut words = LastWords::default();
        let logs = partitions.iter().flat_map(|one| [keys::events(*one), keys::set_aside(*one)]);
        let mut unread: Vec<(String, String)> = logs.map(|log| (log, "-".to_owned())).collect();
        while !unread.is_empty() {
            let pages: Vec<Value> = self
                .pipelined(
                    Lane::Bulk,
                    &unread,
                    |(log, _)| log.clone(),
                    |pipeline, key, (_, from)| queued(pipeline.xrange(key, from, "+", Some(LOG_PAGE))),
                )
                .await?;
            let mut rest = Vec::new();
            for ((log, _), page) in unread.into_iter().zip(pages) {
                let page = entries(page)?;
                if let Some((last, _)) = page.last().filter(|_| page.len() as u64 == LOG_PAGE) {
                    rest.push((log, format!("({last}")));
                }
                for (_, fields) in page {
                    let Some(id) = fields.get("id").and_then(|id| id.parse::<StreamId>().ok()) else { continue };
                    let has_ended = fields.get("event").is_some_and(|kind| kind == EventKind::Ended.as_str());
                    *words.has_ended.entry(id).or_default() |= has_ended;
                }
            }
            unread = rest;
        }
        Ok(words)
    }
}
