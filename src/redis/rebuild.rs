//! What a rebuild does that no transition does, and what it has to see for that.

use std::{collections::HashSet, time::Duration};

use fred::{
    interfaces::{HashesInterface, KeysInterface, SortedSetsInterface},
    types::Value,
};
use futures_util::StreamExt as _;

use super::{
    Lane, PIPELINED_MAX, Redis, RedisError, answer_parts, keys, queued,
    record::slot_fields,
    script,
    transitions::{next, next_stream},
    unknown_word,
};
use crate::domain::{Epoch, KeyId, Partition, Revision, SecretHash, Stream, StreamId, StreamPath, Timestamp};

/// How long it may take to look at every key of Redis.
const SCAN_LIMIT: Duration = Duration::from_secs(60);
/// How many keys Redis looks at in one go.
const SCAN_STEP: u32 = 500;

/// Who remembers a stream that Redis does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RememberedBy {
    /// The history has it in this state.
    History,
    /// A replica saw it, and the history may not know.
    Replica,
}

/// An open stream that is to be put back on its path.
#[derive(Debug, Clone)]
pub struct Restore<'a> {
    /// The stream.
    pub stream: &'a Stream,
    /// Of its key, which Redis has to hold.
    pub secret_hash: SecretHash,
    /// Who remembers it.
    pub remembered_by: RememberedBy,
    /// How long it may still take to come online, in milliseconds: that it did may be what was lost.
    pub connecting_timeout_ms: u64,
}

/// What `restore` did.
#[derive(Debug, Clone, PartialEq)]
pub enum Restored {
    /// It holds its path again.
    Restored,
    /// Its key no longer admits: it has ended, and a kick is owed.
    Ended(Box<Stream>),
    /// Redis does not hold its key: nothing was changed.
    KeyAbsent,
    /// The path is held, by itself or another. Nothing was changed.
    Held(Holding),
}

/// What holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The stream.
    pub id: StreamId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its revision.
    pub revision: Revision,
}

/// Whether the history knows the state of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryOf {
    /// It does.
    Known,
    /// It does not: an event tells it.
    ToBeTold {
        /// The least revision that the history takes for news.
        revision_min: Revision,
    },
}

/// A projection of a stream key as it was found, whoever's it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundKey {
    name: String,
    /// The key.
    pub id: Option<KeyId>,
}

/// What the lists of the partitions say.
#[derive(Debug, Default)]
pub struct Listings {
    /// The paths that are listed as held, with the epoch of their stream.
    pub live: Vec<(StreamPath, Epoch)>,
    /// The paths that something is due to happen on, and when.
    pub deadlines: Vec<(StreamPath, Timestamp)>,
}

fn scored(listings: Vec<Vec<(String, f64)>>) -> impl Iterator<Item = (StreamPath, i64)> {
    #[expect(clippy::cast_possible_truncation, reason = "epochs and milliseconds are whole numbers below 2^53")]
    let read = |(path, score): (String, f64)| Some((path.parse().ok()?, score as i64));
    listings.into_iter().flatten().filter_map(read)
}

impl Redis {
    /// Puts an open stream back on its path. See `lua/restore.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn restore(&self, restore: &Restore<'_>) -> Result<Restored, RedisError> {
        let stream = restore.stream;
        let mut keys = keys::transition(&stream.path);
        keys.push(keys::stream_key(&stream.path, restore.secret_hash));
        keys.push(keys::memory(stream.path.partition()));
        let remembered_by = match restore.remembered_by {
            RememberedBy::History => "history",
            RememberedBy::Replica => "replica",
        };
        let mut arguments = vec![
            String::new(),
            stream.path.to_string(),
            stream.id.to_string(),
            stream.epoch.0.to_string(),
            stream.revision.0.to_string(),
            restore.connecting_timeout_ms.to_string(),
            remembered_by.to_owned(),
        ];
        arguments.extend(slot_fields(stream));
        let (word, mut rest) = answer_parts(self.run(&script::RESTORE, keys, arguments).await?)?;
        match word.as_str() {
            "restored" => Ok(Restored::Restored),
            "ended" => match next_stream(&mut rest)? {
                Some(stream) => Ok(Restored::Ended(Box::new(stream))),
                None => Err(RedisError::Protocol("restore answered without the stream".to_owned())),
            },
            "key_absent" => Ok(Restored::KeyAbsent),
            "held" => {
                let script = &script::RESTORE;
                let id = next(script, &mut rest)?;
                let epoch = Epoch(next(script, &mut rest)?);
                Ok(Restored::Held(Holding { id, epoch, revision: Revision(next(script, &mut rest)?) }))
            }
            word => Err(unknown_word("restore", word)),
        }
    }

    /// What holds some paths, in their order.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn holdings(&self, paths: &[StreamPath]) -> Result<Vec<Option<Holding>>, RedisError> {
        let mut found = Vec::with_capacity(paths.len());
        for chunk in paths.chunks(PIPELINED_MAX) {
            let slots: Vec<(Option<String>, Option<i64>, Option<i64>)> = self
                .pipelined(Lane::Bulk, chunk, keys::slot, |pipeline, key, _| {
                    queued(pipeline.hmget(key, vec!["id", "epoch", "revision"]))
                })
                .await?;
            found.extend(slots.into_iter().map(|(id, epoch, revision)| {
                Some(Holding { id: id?.parse().ok()?, epoch: Epoch(epoch?), revision: Revision(revision?) })
            }));
        }
        Ok(found)
    }

    /// Makes the lists of a partition agree with what holds a path. See `lua/mend.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn mend(&self, path: &StreamPath, history: HistoryOf) -> Result<(), RedisError> {
        let revision_min = match history {
            HistoryOf::Known => String::new(),
            HistoryOf::ToBeTold { revision_min } => revision_min.0.to_string(),
        };
        let arguments = vec![String::new(), path.to_string(), revision_min];
        match answer_parts(self.run(&script::MEND, keys::transition(path), arguments).await?)?.0.as_str() {
            "held" | "not_held" => Ok(()),
            word => Err(unknown_word("mend", word)),
        }
    }

    /// What the lists of all partitions say.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn listings(&self) -> Result<Listings, RedisError> {
        let lists: Vec<String> =
            Partition::all().map(keys::live).chain(Partition::all().map(keys::deadlines)).collect();
        let mut listings: Vec<Vec<(String, f64)>> = self
            .pipelined(Lane::Bulk, &lists, String::clone, |pipeline, key, _| {
                queued(pipeline.zrange(key, 0, -1, None, false, None, true))
            })
            .await?;
        let deadlines = listings.split_off(usize::from(Partition::COUNT).min(listings.len()));
        Ok(Listings {
            live: scored(listings).map(|(path, epoch)| (path, Epoch(epoch))).collect(),
            deadlines: scored(deadlines).map(|(path, at)| (path, Timestamp::from_ms(at))).collect(),
        })
    }

    /// The paths that are held, whatever the lists say. Looks at every key of Redis, a part at a time: for commands of people.
    ///
    /// # Errors
    /// Where Redis gives no answer, or has too many keys.
    pub async fn slots(&self) -> Result<Vec<StreamPath>, RedisError> {
        let names = self.scan(keys::EVERY_SLOT, Partition::all()).await?;
        Ok(names.iter().filter_map(|name| keys::path_of_slot(name)).collect())
    }

    /// Every projection of a stream key. Looks at every key of Redis, a part at a time: for commands of people.
    ///
    /// # Errors
    /// As [`Redis::slots`].
    pub async fn stream_keys(&self) -> Result<Vec<FoundKey>, RedisError> {
        self.stream_keys_in(Partition::all()).await
    }

    /// Every projection of a stream key in some partitions. Looks at every key of the servers that hold these: for those that have lost their
    /// memory and hold little.
    ///
    /// # Errors
    /// As [`Redis::slots`].
    pub async fn stream_keys_in(
        &self,
        partitions: impl Iterator<Item = Partition>,
    ) -> Result<Vec<FoundKey>, RedisError> {
        let partitions: Vec<Partition> = partitions.collect();
        let beginnings: Vec<String> = partitions.iter().map(|&partition| keys::beginning(partition)).collect();
        let mut names = self.scan(keys::EVERY_STREAM_KEY, partitions.into_iter()).await?;
        names.retain(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)));
        self.identify(names.into_iter().collect()).await
    }

    /// The names of all keys that are like `pattern`, and lie on the servers that hold some partitions.
    async fn scan(
        &self,
        pattern: &str,
        partitions: impl Iterator<Item = Partition>,
    ) -> Result<HashSet<String>, RedisError> {
        let beginnings: Vec<String> = partitions.map(keys::beginning).collect();
        let together = self.inner.servers.together(&beginnings);
        if together.iter().map(Vec::len).sum::<usize>() < beginnings.len() {
            return Err(RedisError::Unavailable);
        }
        let reading = async {
            let mut names = HashSet::new();
            for places in &together {
                let connection = self.bulk(&beginnings[places[0]])?;
                let mut found = std::pin::pin!(connection.scan_buffered(pattern, Some(SCAN_STEP), None));
                // A key may be told twice.
                while let Some(key) = found.next().await {
                    names.extend(key.map_err(|error| RedisError::from_fred(&error))?.into_string());
                }
            }
            Ok(names)
        };
        tokio::time::timeout(SCAN_LIMIT, reading).await.map_err(|_| RedisError::Timeout)?
    }

    async fn identify(&self, names: Vec<String>) -> Result<Vec<FoundKey>, RedisError> {
        let mut found = Vec::with_capacity(names.len());
        for chunk in names.chunks(PIPELINED_MAX) {
            let ids: Vec<Option<String>> = self
                .pipelined(Lane::Bulk, chunk, String::clone, |pipeline, name, _| queued(pipeline.hget(name, "id")))
                .await?;
            let ids = ids.into_iter().map(|id| id.and_then(|id| id.parse().ok()));
            found.extend(chunk.iter().zip(ids).map(|(name, id)| FoundKey { name: name.clone(), id }));
        }
        Ok(found)
    }

    /// Takes a stream key out that Postgres does not know: it admits nobody any more.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn remove_stream_key(&self, key: &FoundKey) -> Result<(), RedisError> {
        let connection = self.quick(&key.name)?;
        self.limited(&connection, connection.del::<Value, _>(key.name.as_str())).await.map(drop)
    }
}
