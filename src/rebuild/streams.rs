//! Open streams on their way back to their paths, each together with its key.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Rebuild;
use crate::{
    domain::{
        Cursor, EndReason, KeyId, NodeName, PageRequest, Partition, Revision, Stream, StreamId, StreamPath,
        StreamState, Timestamp,
    },
    postgres::{KeyWithOwner, OpenPosition, Postgres, StreamRecord},
    redis::{Holding, KeyInPlace, KeyProjection, LastWords, Redis, RedisError, RememberedBy, Restore, Restored},
    store_error::StoreError,
    streams::note_end,
};

/// How many streams are looked at together.
const BATCH: u16 = 500;
/// How many of them are put back at once: not so many that admissions would wait for them.
const AT_ONCE: usize = 32;
/// While some are put back, Postgres is asked about the next ones.
const BATCHES_AT_ONCE: usize = 2;

/// What became of streams that were to be put back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// They hold their path again.
    pub restored: u64,
    /// Their key no longer admits: they have ended, and their source is owed a kick.
    pub ended: u64,
    /// They are over, as it turned out, and the history knows it now.
    pub written_off: u64,
    /// Redis had them.
    pub held: u64,
    /// They have ended, which waits in the log: they stay where they are.
    pub ending: u64,
    /// The keys of those that Redis had not: it has them as Postgres says.
    pub keys: HashSet<KeyId>,
}

impl std::ops::AddAssign for RestoreReport {
    fn add_assign(&mut self, other: Self) {
        self.restored += other.restored;
        self.ended += other.ended;
        self.written_off += other.written_off;
        self.held += other.held;
        self.ending += other.ending;
        self.keys.extend(other.keys);
    }
}

/// Puts open streams back on their paths. Cheap to clone.
#[derive(Clone)]
pub struct Restorer {
    redis: Redis,
    postgres: Postgres,
    connecting_timeout_ms: u64,
}

/// What Postgres says about some streams.
struct Known {
    over: HashSet<StreamId>,
    keys: HashMap<KeyId, KeyWithOwner>,
    fleet: HashSet<NodeName>,
}

/// What became of one stream.
enum Fate {
    Restored,
    Ended(Box<Stream>),
    Over(EndReason),
    Held,
}

impl Restorer {
    /// `connecting_timeout_ms`: how long a stream that was not seen online may still take.
    #[must_use]
    pub fn new(redis: Redis, postgres: Postgres, connecting_timeout_ms: u64) -> Self {
        Self { redis, postgres, connecting_timeout_ms }
    }

    /// Puts streams back, as many at a time as harms nobody; none whose end waits in the log.
    ///
    /// # Errors
    /// Where a store gives no answer. Some may be back; it may be done again.
    pub async fn restore(&self, streams: &[Stream], by: RememberedBy) -> Result<RestoreReport, StoreError> {
        let partitions: HashSet<Partition> = streams.iter().map(|stream| stream.path.partition()).collect();
        let last_words = self.redis.last_words(&partitions.into_iter().collect::<Vec<_>>()).await?;
        self.restore_by(&last_words, streams, by).await
    }

    /// As [`Self::restore`], where the logs of their partitions were read before: a stream whose end waits there is open by the history,
    /// and must not come back. An end that was written until then is found in the history, which is asked once more.
    async fn restore_by(
        &self,
        last_words: &LastWords,
        streams: &[Stream],
        by: RememberedBy,
    ) -> Result<RestoreReport, StoreError> {
        let open: Vec<&Stream> = streams.iter().filter(|stream| !last_words.tell_end_of(stream.id)).collect();
        let batches: Vec<_> = open.chunks(usize::from(BATCH)).map(|batch| self.restore_batch(batch, by)).collect();
        let mut batches = stream::iter(batches).buffered(BATCHES_AT_ONCE);
        let mut report = RestoreReport { ending: (streams.len() - open.len()) as u64, ..RestoreReport::default() };
        while let Some(batch) = batches.next().await {
            report += batch?;
        }
        Ok(report)
    }

    async fn restore_batch(&self, streams: &[&Stream], by: RememberedBy) -> Result<RestoreReport, StoreError> {
        let mut report = RestoreReport::default();
        let paths: Vec<StreamPath> = streams.iter().map(|stream| stream.path.clone()).collect();
        let holdings = self.redis.holdings(&paths).await?;
        let is_there = |stream: &Stream, holding: &Option<Holding>| {
            holding.is_some_and(|holding| holding.id == stream.id && holding.revision >= stream.revision)
        };
        let missing: Vec<&Stream> = streams
            .iter()
            .zip(&holdings)
            .filter_map(|(&stream, holding)| (!is_there(stream, holding)).then_some(stream))
            .collect();
        report.held += (streams.len() - missing.len()) as u64;
        if missing.is_empty() {
            return Ok(report);
        }
        let known = self.learn_of(&missing).await?;
        let deciding: Vec<_> = missing.iter().map(|stream| self.decide(stream, &known, by)).collect();
        let fates: Vec<Fate> = stream::iter(deciding).buffered(AT_ONCE).try_collect().await?;
        let mut over = Vec::new();
        for (stream, fate) in missing.into_iter().zip(fates) {
            match fate {
                Fate::Restored => report.restored += 1,
                Fate::Held => report.held += 1,
                Fate::Ended(ended) => {
                    report.ended += 1;
                    note_end(&ended);
                }
                Fate::Over(reason) => over.push((stream, reason)),
            }
        }
        if by == RememberedBy::History {
            report.written_off += over.len() as u64;
            self.write_off(&over).await?;
        }
        report.keys.extend(known.keys.into_keys());
        Ok(report)
    }

    async fn learn_of(&self, streams: &[&Stream]) -> Result<Known, StoreError> {
        let ids: Vec<StreamId> = streams.iter().map(|stream| stream.id).collect();
        let (over, keys) =
            tokio::try_join!(async { Ok(self.postgres.over_among(&ids).await?) }, self.project_keys_of(streams))?;
        // Also who is of the fleet by Redis alone: it was not removed, see `fleet.rs`.
        let mut fleet: HashSet<NodeName> = self.redis.nodes().await?.into_keys().collect();
        fleet.extend(self.postgres.nodes().await?.into_iter().map(|node| node.name));
        Ok(Known { over, keys, fleet })
    }

    async fn decide(&self, stream: &Stream, known: &Known, by: RememberedBy) -> Result<Fate, StoreError> {
        if known.over.contains(&stream.id) {
            return Ok(Fate::Over(EndReason::Lost));
        }
        // Nobody would ever ask whether it is still there.
        if !known.fleet.contains(&stream.node) {
            return Ok(Fate::Over(EndReason::NodeRemoved));
        }
        match known.keys.get(&stream.key_id) {
            Some(key) => self.restore_one(stream, key, by).await,
            // It was admitted by a key that does not exist: what cannot be known is refused.
            None => Ok(Fate::Over(EndReason::Lost)),
        }
    }

    /// Brings the keys of streams into Redis as Postgres says they are: a stream comes back only beside its key.
    async fn project_keys_of(&self, streams: &[&Stream]) -> Result<HashMap<KeyId, KeyWithOwner>, StoreError> {
        let ids: HashSet<KeyId> = streams.iter().map(|stream| stream.key_id).collect();
        let memory = self.redis.generations().await?;
        let keys = self.postgres.stream_keys_by_id(&ids.into_iter().collect::<Vec<_>>()).await?;
        let projections: Vec<_> = keys.iter().map(|key| KeyProjection::new(&key.key, &key.broadcaster_name)).collect();
        let in_place = self.redis.keys_in_place(&projections).await?;
        let to_bring = projections.iter().zip(in_place).filter_map(|(projection, in_place)| match in_place {
            KeyInPlace::Same | KeyInPlace::Newer(_) | KeyInPlace::Revoked => None,
            KeyInPlace::Absent | KeyInPlace::Older | KeyInPlace::Different(_) => Some(projection),
        });
        let bringing: Vec<_> = to_bring.map(|projection| self.redis.project(projection, &memory)).collect();
        let mut bringing = stream::iter(bringing).buffered(AT_ONCE);
        while let Some(brought) = bringing.next().await {
            if let Some(stream) = brought?.ended() {
                note_end(&stream);
            }
        }
        Ok(keys.into_iter().map(|key| (key.key.id, key)).collect())
    }

    async fn restore_one(&self, stream: &Stream, key: &KeyWithOwner, by: RememberedBy) -> Result<Fate, StoreError> {
        let restore = Restore {
            stream,
            secret_hash: key.key.secret_hash,
            remembered_by: by,
            connecting_timeout_ms: self.connecting_timeout_ms,
        };
        match self.redis.restore(&restore).await? {
            Restored::Restored => {
                tracing::info!(stream_id = %stream.id, path = %stream.path, node = %stream.node, "a stream is back on its path");
                Ok(Fate::Restored)
            }
            Restored::Ended(ended) if ended.end_reason().is_some() => Ok(Fate::Ended(ended)),
            Restored::Ended(_) => Err(RedisError::Protocol("a stream that ended has not".to_owned()).into()),
            // It was there a moment ago: so was all the rest.
            Restored::KeyAbsent => Err(RedisError::MemoryLost.into()),
            Restored::Held(by) if by.id != stream.id && by.epoch > stream.epoch => Ok(Fate::Over(EndReason::Lost)),
            Restored::Held(_) => Ok(Fate::Held),
        }
    }

    /// Tells the history of ends whose events are lost and that nobody else will ever tell.
    async fn write_off(&self, over: &[(&Stream, EndReason)]) -> Result<(), StoreError> {
        let at = Timestamp::now();
        let ended = |(stream, reason): &(&Stream, EndReason)| {
            let state = StreamState::Ended { live_since: stream.state.live_since(), at, reason: *reason };
            let revision = Revision(stream.revision.0 + 1);
            StreamRecord { stream: Stream { revision, state, ..Stream::clone(stream) }, totals: None }
        };
        let records: Vec<StreamRecord> = over.iter().map(ended).collect();
        self.postgres.record_streams(&records).await?;
        for record in &records {
            note_end(&record.stream);
        }
        Ok(())
    }
}

impl Rebuild {
    /// Puts back every open stream of closed partitions that the history knows.
    pub(super) async fn bring_back_streams(&self, partitions: &[Partition]) -> Result<RestoreReport, StoreError> {
        let last_words = self.redis.last_words(partitions).await?;
        let (mut report, mut pages) = (RestoreReport::default(), self.open_streams());
        while let Some(mut streams) = pages.next().await? {
            streams.retain(|stream| partitions.contains(&stream.path.partition()));
            report += self.restorer.restore_by(&last_words, &streams, RememberedBy::History).await?;
        }
        Ok(report)
    }

    /// Every stream that is open by the history.
    pub(crate) fn open_streams(&self) -> OpenStreams<'_> {
        OpenStreams { postgres: &self.postgres, next: Next::First }
    }
}

/// The open streams, page by page.
pub(crate) struct OpenStreams<'a> {
    postgres: &'a Postgres,
    next: Next,
}

enum Next {
    First,
    After(Cursor<OpenPosition>),
    Nothing,
}

impl OpenStreams<'_> {
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Stream>>, StoreError> {
        let after = match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::First => None,
            Next::After(place) => Some(place),
            Next::Nothing => return Ok(None),
        };
        let page = self.postgres.open_streams(None, &PageRequest { after, items_max: BATCH }).await?;
        self.next = page.next.map_or(Next::Nothing, Next::After);
        Ok(Some(page.items.into_iter().map(|record| record.stream).collect()))
    }
}

/// The newest state of each of some streams.
pub(super) fn newest_of_each(streams: impl IntoIterator<Item = Stream>) -> Vec<Stream> {
    let mut newest = HashMap::<StreamId, Stream>::new();
    for stream in streams {
        match newest.get(&stream.id) {
            Some(known) if known.revision >= stream.revision => {}
            _ => drop(newest.insert(stream.id, stream)),
        }
    }
    newest.into_values().collect()
}
