//! Reading what is on air: versions, whole partitions, single paths, and what is due.

use std::collections::HashMap;

use fred::{
    interfaces::{ClientLike, HashesInterface, KeysInterface, SortedSetsInterface},
    types::{CustomCommand, Value},
};

use super::{
    Lane, PIPELINED_MAX, Redis, RedisError, answer_parts, answered_at_all, call::Call, keys, queued, record::Record,
    script, unknown_word,
};
use crate::domain::{NodeName, Partition, Playback, Progress, SourceId, Stream, StreamPath};

/// The version of every partition, by its number: equal versions mean that nothing on air has changed. 0: the partition is
/// closed, and what Redis holds of it is not all.
pub type PartitionVersions = [u64; Partition::COUNT as usize];

/// How many versions back `lua/transition.lua` keeps the paths that changed.
pub const CHANGES_KEPT: u64 = 1_000;

/// Up to so many small reads take the connections of admissions. More would keep those waiting; so few would wait themselves behind
/// what the history reads.
const QUICK_MAX: usize = 16;

fn lane_for(reads: usize) -> Lane {
    if reads <= QUICK_MAX { Lane::Quick } else { Lane::Bulk }
}

/// A path whose stream something is due to happen to.
pub type DueStream = StreamPath;

fn path_of(text: &str) -> Result<StreamPath, RedisError> {
    text.parse().map_err(|_| RedisError::Protocol("a listed path is no path".to_owned()))
}

fn paths_of(listings: Vec<Vec<String>>) -> Result<Vec<StreamPath>, RedisError> {
    listings.into_iter().flatten().map(|path| path_of(&path)).collect()
}

/// How many changes are read together with the versions that tell of them: what happens on air while a list is sent.
const CHANGES_TOLD_MAX: usize = 64;

/// What holds some paths.
pub type Holders = Vec<(StreamPath, Option<Stream>)>;

/// What has changed on air since a reader looked.
#[derive(Debug)]
pub struct Changes {
    /// As they are now.
    pub versions: PartitionVersions,
    /// What holds the paths that changed, of the same moment. Partitions of which too much changed are missing, and all of
    /// a cluster: these are still to be read.
    pub told: Vec<(Partition, Holders)>,
}

type Slot = HashMap<String, String>;

/// The stream of a slot; none, and a word in the log, where this version cannot read it.
fn readable_stream(path: &StreamPath, slot: Option<Record>) -> Option<Stream> {
    let stream = slot.map(|record| record.stream()).transpose();
    stream.unwrap_or_else(|error| {
        tracing::error!(%path, %error, "a stream on air was written by another version, and is not listed by this one");
        None
    })
}

fn versions_of(answers: Vec<Option<u64>>) -> PartitionVersions {
    let mut versions = [0; Partition::COUNT as usize];
    for (version, answer) in versions.iter_mut().zip(answers) {
        *version = answer.unwrap_or(0);
    }
    versions
}

fn changes_of(rest: &mut impl Iterator<Item = Value>) -> Result<Changes, RedisError> {
    let mut next = || match rest.next() {
        Some(Value::Array(values)) => Ok(values),
        _ => Err(RedisError::Protocol("changes answered without a list that belongs to its word".to_owned())),
    };
    let versions = Value::Array(next()?).convert().map_err(|error| RedisError::from_fred(&error))?;
    let (mut told, mut partitions) = (Vec::new(), next()?.into_iter());
    while let (Some(number), Some(slots)) = (partitions.next(), partitions.next()) {
        let partition = number.as_usize().and_then(|number| Partition::all().nth(number.checked_sub(1)?));
        let partition = partition.ok_or_else(|| RedisError::Protocol("changes named no partition".to_owned()))?;
        told.push((partition, holders_of(slots.into_array())?));
    }
    Ok(Changes { versions: versions_of(versions), told })
}

fn holders_of(slots: Vec<Value>) -> Result<Holders, RedisError> {
    let (mut holders, mut slots) = (Vec::with_capacity(slots.len() / 2), slots.into_iter());
    while let (Some(path), Some(slot)) = (slots.next(), slots.next()) {
        let path: StreamPath = path_of(&path.as_string().unwrap_or_default())?;
        let stream = readable_stream(&path, Record::from_pairs(slot)?);
        holders.push((path, stream));
    }
    Ok(holders)
}

/// What a pipeline asks for.
enum Asked<'a> {
    Slot(&'a StreamPath),
    Version(Partition),
}

impl Asked<'_> {
    fn key(&self) -> String {
        match self {
            Self::Slot(path) => keys::slot(path),
            Self::Version(partition) => keys::version(*partition),
        }
    }
}

impl Redis {
    /// What has changed since a reader knew these versions, in one round trip. See `lua/changes.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn changes_since(&self, known: &PartitionVersions) -> Result<Changes, RedisError> {
        if self.inner.servers.is_cluster() {
            return Ok(Changes { versions: self.versions().await?, told: Vec::new() });
        }
        let text = |version: &u64| if *version == 0 { String::new() } else { version.to_string() };
        let texts: Vec<String> = known.iter().map(text).collect();
        let keys: Vec<String> = Partition::all().map(keys::version).collect();
        let mut arguments = vec![texts.join(","), CHANGES_TOLD_MAX.to_string()];
        arguments.extend(keys::ENDS_OF_CHANGES.map(str::to_owned));
        let call = Call::of(&keys, &arguments);
        let (word, mut rest) = answer_parts(self.run_call(&script::CHANGES, &call).await?)?;
        match word.as_str() {
            "same" => Ok(Changes { versions: *known, told: Vec::new() }),
            "changed" => changes_of(&mut rest),
            word => Err(unknown_word(script::CHANGES.name, word)),
        }
    }

    /// The versions of all partitions, in one round trip.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn versions(&self) -> Result<PartitionVersions, RedisError> {
        let keys: Vec<String> = Partition::all().map(keys::version).collect();
        let answers = if self.inner.servers.is_cluster() {
            // A cluster takes no command about keys of several slots.
            self.pipelined(Lane::Quick, &keys, String::clone, |pipeline, key, _| queued(pipeline.get(key))).await?
        } else {
            self.versions_on_one(keys).await?
        };
        Ok(versions_of(answers))
    }

    /// Every list waits for this, and fred hands each command of a pipeline to the system by itself.
    async fn versions_on_one(&self, keys: Vec<String>) -> Result<Vec<Option<u64>>, RedisError> {
        let connection = self.quick(&keys[0])?;
        self.limited(&connection, connection.mget(keys)).await
    }

    /// The streams of a partition, newest first.
    ///
    /// Each is read after the list of paths was, so it is at least as new as a version that was read before.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn streams_of(&self, partition: Partition) -> Result<Vec<Stream>, RedisError> {
        let paths = self.held_paths(&[partition]).await?;
        Ok(self.streams_on(&paths).await?.into_iter().flatten().collect())
    }

    /// The held paths of some partitions, newest first in each.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn held_paths(&self, partitions: &[Partition]) -> Result<Vec<StreamPath>, RedisError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let listings: Vec<Vec<String>> = self
            .pipelined(
                Lane::Bulk,
                partitions,
                |&partition| keys::live(partition),
                |pipeline, key, _| queued(pipeline.zrange(key, 0, -1, None, true, None, false)),
            )
            .await?;
        paths_of(listings)
    }

    /// The paths that changed in some partitions after the version given with each, which are about `count`. Whole as long as no
    /// more than [`CHANGES_KEPT`] versions have passed since.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn changed_paths(&self, since: &[(Partition, u64)], count: u64) -> Result<Vec<StreamPath>, RedisError> {
        if since.is_empty() {
            return Ok(Vec::new());
        }
        let lane = lane_for(usize::try_from(count).unwrap_or(usize::MAX));
        let key = |(partition, _): &(Partition, u64)| keys::changes(*partition);
        let listings: Vec<Vec<String>> = self
            .pipelined(lane, since, key, |pipeline, key, (_, version)| {
                queued(pipeline.zrangebyscore(key, format!("({version}"), "+inf", false, None))
            })
            .await?;
        paths_of(listings)
    }

    /// The streams that hold some paths, in their order. One that this version cannot read, because a newer one wrote it, is
    /// left out: it must not take all others from the list. Whoever is about to act on a path asks [`Redis::stream_on`], which
    /// fails there.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn streams_on(&self, paths: &[StreamPath]) -> Result<Vec<Option<Stream>>, RedisError> {
        let mut streams = Vec::with_capacity(paths.len());
        for chunk in paths.chunks(PIPELINED_MAX) {
            let slots: Vec<Slot> =
                self.pipelined(Lane::Bulk, chunk, keys::slot, |pipeline, key, _| queued(pipeline.hgetall(key))).await?;
            streams.extend(chunk.iter().zip(slots).map(|(path, slot)| readable_stream(path, Record::from_map(slot))));
        }
        Ok(streams)
    }

    /// What [`Redis::streams_on`] gives, and then the versions of some partitions. Every server is asked in this order: one that
    /// had lost its memory when it told the streams does not tell an old version afterwards.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn streams_then_versions(
        &self,
        paths: &[StreamPath],
        partitions: &[Partition],
    ) -> Result<(Vec<Option<Stream>>, Vec<u64>), RedisError> {
        let (most, last) = paths.split_at(paths.len().saturating_sub(PIPELINED_MAX));
        let mut streams = self.streams_on(most).await?;
        let versions = partitions.iter().map(|&partition| Asked::Version(partition));
        let asked: Vec<Asked> = last.iter().map(Asked::Slot).chain(versions).collect();
        let mut answers = self
            .pipelined::<_, Value>(lane_for(asked.len()), &asked, Asked::key, |pipeline, key, asked| match asked {
                Asked::Slot(_) => queued(pipeline.hgetall(key)),
                Asked::Version(_) => queued(pipeline.get(key)),
            })
            .await?;
        let versions = answers.split_off(last.len());
        for (path, slot) in last.iter().zip(answers) {
            let slot = slot.convert().map_err(|error| RedisError::from_fred(&error))?;
            streams.push(readable_stream(path, Record::from_map(slot)));
        }
        let version = |answer: Value| answer.convert().map(Option::unwrap_or_default);
        let versions = versions.into_iter().map(version).collect::<Result<_, _>>();
        Ok((streams, versions.map_err(|error| RedisError::from_fred(&error))?))
    }

    /// The stream that holds a path.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn stream_on(&self, path: &StreamPath) -> Result<Option<Stream>, RedisError> {
        let fields: HashMap<String, String> =
            self.single(Lane::Quick, keys::slot(path), |pipeline, key| queued(pipeline.hgetall(key))).await?;
        Record::from_map(fields).map(|record| record.stream()).transpose()
    }

    /// The stream that holds a path; `None` where certainly none does.
    ///
    /// # Errors
    /// Where Redis gives no answer, or does not hold all that it must: then who is not there may only be forgotten.
    pub async fn stream_certainly_on(&self, path: &StreamPath) -> Result<Option<Stream>, RedisError> {
        // Before, for what is put back is there before the partition opens; and after, for it may be lost in between.
        self.must_be_whole(path.partition()).await?;
        let stream = self.stream_on(path).await?;
        self.must_be_whole(path.partition()).await?;
        Ok(stream)
    }

    /// Also a partition that nobody has closed yet may lack the last that was written: a server that took over a moment ago has its version.
    async fn must_be_whole(&self, partition: Partition) -> Result<(), RedisError> {
        if self.is_open(partition).await? { Ok(()) } else { Err(self.closed()) }
    }

    async fn must_be_open(&self, partition: Partition) -> Result<(), RedisError> {
        let version = keys::version(partition);
        let is_open: bool = self.single(Lane::Quick, version, |pipeline, key| queued(pipeline.exists(key))).await?;
        if is_open { Ok(()) } else { Err(self.closed()) }
    }

    /// Who may watch a path; `None` where it is not on air.
    ///
    /// # Errors
    /// Where Redis gives no answer, or does not hold all that it must: then who is not there may only be forgotten.
    pub async fn playback_of(&self, path: &StreamPath) -> Result<Option<Playback>, RedisError> {
        let word: Option<String> =
            self.single(Lane::Quick, keys::slot(path), |pipeline, key| queued(pipeline.hget(key, "playback"))).await?;
        if word.is_none() {
            self.must_be_open(path.partition()).await?;
        }
        word.map(|word| word.parse().map_err(|_| RedisError::Protocol("playback is no word of ours".to_owned())))
            .transpose()
    }

    /// Paths whose deadline has passed by the clock of Redis, at most `count_max` of each partition. In a cluster, those of the servers
    /// that answer.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn due(&self, count_max: i64) -> Result<Vec<DueStream>, RedisError> {
        let partitions: Vec<Partition> = Partition::all().collect();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this era fit a double exactly")]
        let until = self.time_ms().await? as f64;
        let due: Vec<Result<Vec<String>, RedisError>> = self
            .pipelined_apart(
                Lane::Bulk,
                &partitions,
                |&partition| keys::deadlines(partition),
                |pipeline, key, _| queued(pipeline.zrangebyscore(key, 0.0, until, false, Some((0, count_max)))),
            )
            .await?;
        let due = answered_at_all(due)?.into_iter().flatten().flatten();
        Ok(due.filter_map(|path| path.parse().ok()).collect())
    }

    /// The time of Redis, in milliseconds. In a cluster, clocks differ by a little: a script that is told too early says so.
    async fn time_ms(&self) -> Result<i64, RedisError> {
        let mut outcome = Err(RedisError::Unavailable);
        for connection in self.inner.servers.each().into_iter().flatten() {
            let time = CustomCommand::new_static("TIME", None, false);
            let told = self.limited(&connection, connection.custom::<(i64, i64), _>(time, Vec::<String>::new())).await;
            outcome = told.map(|(seconds, microseconds)| seconds * 1_000 + microseconds / 1_000);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Replaces what the poller saw of a node's sources.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn write_progress(
        &self,
        node: &NodeName,
        seen: &[Progress],
        gone: &[SourceId],
    ) -> Result<(), RedisError> {
        let key = keys::progress(node);
        let connection = self.bulk(&key)?;
        if !gone.is_empty() {
            let fields: Vec<String> = gone.iter().map(ToString::to_string).collect();
            self.limited(&connection, connection.hdel::<u64, _, _>(&key, fields)).await?;
        }
        if seen.is_empty() {
            return Ok(());
        }
        let fields: HashMap<String, String> =
            seen.iter().map(|progress| (progress.source_id.to_string(), super::record::to_json(progress))).collect();
        self.limited(&connection, connection.hset::<u64, _, _>(&key, fields)).await.map(drop)
    }

    /// What the poller saw last of all sources of some nodes.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn progress_of_nodes(&self, nodes: &[NodeName]) -> Result<HashMap<SourceId, Progress>, RedisError> {
        if nodes.is_empty() {
            return Ok(HashMap::new());
        }
        let answers: Vec<HashMap<String, String>> =
            self.pipelined(Lane::Bulk, nodes, keys::progress, |pipeline, key, _| queued(pipeline.hgetall(key))).await?;
        let read = |text: &String| serde_json::from_str::<Progress>(text).ok();
        let all = answers.iter().flat_map(HashMap::values).filter_map(read);
        Ok(all.map(|progress| (progress.source_id, progress)).collect())
    }

    /// What the pollers saw last of some sources, in their order.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn progress_of_sources(
        &self,
        sources: &[(NodeName, SourceId)],
    ) -> Result<Vec<Option<Progress>>, RedisError> {
        let key = |(node, _): &(NodeName, SourceId)| keys::progress(node);
        let mut seen = Vec::with_capacity(sources.len());
        for chunk in sources.chunks(PIPELINED_MAX) {
            let texts: Vec<Option<String>> = self
                .pipelined(Lane::Bulk, chunk, key, |pipeline, key, (_, source_id)| {
                    queued(pipeline.hget(key, source_id.to_string()))
                })
                .await?;
            seen.extend(texts.iter().map(|text| serde_json::from_str(text.as_deref()?).ok()));
        }
        Ok(seen)
    }

    /// What the poller saw last of one source.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn progress(&self, node: &NodeName, source_id: SourceId) -> Result<Option<Progress>, RedisError> {
        let key = keys::progress(node);
        let connection = self.quick(&key)?;
        let text: Option<String> = self.limited(&connection, connection.hget(key, source_id.to_string())).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Forgets what was seen of a node's sources.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn forget_progress(&self, node: &NodeName) -> Result<(), RedisError> {
        let key = keys::progress(node);
        let connection = self.quick(&key)?;
        self.limited(&connection, connection.del::<u64, _>(key)).await.map(drop)
    }
}
