//! Whether the partitions hold all that they must, and what closes and opens them.
//!
//! Invariants:
//! - Nobody takes a path in a closed partition (`lua/admit.lua`).
//! - A partition is closed from the moment on in which Redis loses its memory, without anybody having to notice: what says
//!   that it is open is lost with it.
//! - A partition is not opened while a replica that saw it open, or has seen it closed, still has to put back what only it remembers, as
//!   long as that replica is not given up. Where all of Redis' memory was lost, who saw it open is lost with it.
//! - A server that was started, or promoted, admits nobody until its partitions were closed, mended and opened: the script
//!   that admits compares who opened them (`lua/admit.lua`), so it does not matter who asks, and over which connection.

use fred::{
    interfaces::{HashesInterface, KeysInterface},
    types::{Expiration, SetOptions, Value},
};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{
    Lane, Redis, RedisError, answer_parts, answered_at_all, keys, queued, script, transitions::next, unknown_word,
};
use crate::domain::{Epoch, Partition, StreamPath, Timestamp};

/// For how long whoever wants to open a partition waits for other replicas. They take some milliseconds, and a second where their
/// connections have to be made first; one that died a moment before, or cannot reach Postgres, costs this pause.
const AWAITED_MAX_MS: u64 = 2_000;

/// A partition that does not hold all that it must, or may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Which one.
    pub partition: Partition,
    /// For how long it has been known to be closed, in milliseconds.
    pub for_ms: u64,
    /// Everything that was written until then is there, give or take ten seconds. `None` where nothing is known to be.
    pub whole_until: Option<Timestamp>,
    /// Names this closing, so that only what was mended is opened.
    token: String,
}

/// Which memory each partition has: another one after every loss, closing and opening.
///
/// Asked for before Postgres is read, so that what was read before a loss is not written into the memory after it. In a cluster, a server
/// that is away costs its own partitions only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generations(Vec<Option<String>>);

impl Generations {
    pub(super) fn of(&self, partition: Partition) -> Result<&str, RedisError> {
        self.0.get(partition.index()).and_then(Option::as_deref).ok_or(RedisError::Unavailable)
    }
}

/// What opening a partition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It is open.
    Opened,
    /// A replica has not put back yet what it remembers: to be said again in a moment.
    Awaited,
    /// Its memory was lost once more meanwhile: all begins anew.
    LostAgain,
}

fn parse(partition: Partition, answer: Value) -> Result<Option<Closed>, RedisError> {
    let script = &script::CHECK;
    let (word, mut rest) = answer_parts(answer)?;
    match word.as_str() {
        "open" => Ok(None),
        "closed" => {
            let token = next(script, &mut rest)?;
            let for_ms = next(script, &mut rest)?;
            let whole_until: String = next(script, &mut rest)?;
            let whole_until = whole_until.parse().ok().map(Timestamp::from_ms);
            Ok(Some(Closed { partition, for_ms, whole_until, token }))
        }
        word => Err(unknown_word(script.name, word)),
    }
}

fn names(partition: Partition) -> Vec<String> {
    vec![keys::version(partition), keys::memory(partition)]
}

impl Redis {
    /// Returns once an admission has met a closed partition, or has since the last call.
    pub async fn memory_lost(&self) {
        self.inner.memory_lost.notified().await;
    }

    /// The partitions that are closed. Closes those of a server that is not known to be whole. See `lua/check.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn closed_partitions(&self) -> Result<Vec<Closed>, RedisError> {
        self.check_partitions(None).await
    }

    /// As [`Self::closed_partitions`], by a replica that puts back what it remembers: a partition that it has found open or closed is not opened
    /// before it [says that it has](Self::note_put_back), unless it takes two seconds.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn closed_partitions_to_fill(&self, replica: Uuid) -> Result<Vec<Closed>, RedisError> {
        self.check_partitions(Some(replica)).await
    }

    /// Notes that a replica has put back all that it remembers of some partitions: nobody waits for it any more.
    ///
    /// # Errors
    /// Where one of them was not reached. It may be said again.
    pub async fn note_put_back(&self, closed: &[Closed], replica: Uuid) -> Result<(), RedisError> {
        let notes = closed.iter().map(|closed| self.note(closed.partition, replica, &closed.token));
        join_all(notes).await.into_iter().collect()
    }

    /// Has nobody wait for a replica that goes.
    ///
    /// # Errors
    /// Where one partition was not reached. It may be said again.
    pub async fn note_gone(&self, replica: Uuid) -> Result<(), RedisError> {
        join_all(Partition::all().map(|partition| self.note(partition, replica, ""))).await.into_iter().collect()
    }

    /// See `lua/note.lua`.
    async fn note(&self, partition: Partition, replica: Uuid, token: &str) -> Result<(), RedisError> {
        let arguments = vec![replica.simple().to_string(), token.to_owned()];
        self.run(&script::NOTE, vec![keys::memory(partition)], arguments).await.map(drop)
    }

    async fn check_partitions(&self, replica: Option<Uuid>) -> Result<Vec<Closed>, RedisError> {
        let checks = Partition::all().map(|partition| self.check_partition(partition, replica));
        // In a cluster, a server that is away keeps nobody from mending what others have lost.
        Ok(answered_at_all(join_all(checks).await)?.into_iter().flatten().flatten().collect())
    }

    /// Which memory the partitions have now.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn generations(&self) -> Result<Generations, RedisError> {
        let partitions: Vec<Partition> = Partition::all().collect();
        let names = self
            .pipelined_apart(
                Lane::Quick,
                &partitions,
                |&partition| keys::memory(partition),
                |pipeline, key, _| queued(pipeline.hmget(key, vec!["opened", "closed"])),
            )
            .await?;
        let name = |[opened, closed]: [Option<String>; 2]| {
            format!("{}/{}", opened.unwrap_or_default(), closed.unwrap_or_default())
        };
        Ok(Generations(answered_at_all(names)?.into_iter().map(|names| names.map(name)).collect()))
    }

    /// Whether a partition holds all that it must. Closed, where that is not certain, as by [`Self::closed_partitions`].
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn is_open(&self, partition: Partition) -> Result<bool, RedisError> {
        Ok(self.check_partition(partition, None).await?.is_none())
    }

    async fn check_partition(&self, partition: Partition, replica: Option<Uuid>) -> Result<Option<Closed>, RedisError> {
        let replica = replica.map(|replica| replica.simple().to_string()).unwrap_or_default();
        let answer = self.run(&script::CHECK, names(partition), vec![replica]).await?;
        parse(partition, answer)
    }

    /// An admission met a closed partition.
    pub(super) fn closed(&self) -> RedisError {
        self.inner.memory_lost.notify_one();
        RedisError::MemoryLost
    }

    /// Opens a partition that has everything back. See `lua/open.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn open_partition(&self, closed: &Closed, epoch_max: Option<Epoch>) -> Result<Opening, RedisError> {
        let epoch_max = epoch_max.map_or(0, |epoch| epoch.0);
        let arguments = vec![closed.token.clone(), epoch_max.to_string(), AWAITED_MAX_MS.to_string()];
        let answer = self.run(&script::OPEN, names(closed.partition), arguments).await?;
        match answer_parts(answer)?.0.as_str() {
            "opened" => Ok(Opening::Opened),
            "awaited" => Ok(Opening::Awaited),
            "lost_again" => Ok(Opening::LostAgain),
            word => Err(unknown_word("open", word)),
        }
    }

    /// Closes a path until an instant, unless it is closed already.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn close_path(&self, path: &StreamPath, until: Timestamp, for_ms: u64) -> Result<(), RedisError> {
        let connection = self.quick(&keys::cooldown(path))?;
        let expiry = Some(Expiration::PX(i64::try_from(for_ms.max(1)).unwrap_or(i64::MAX)));
        let value = until.as_ms().to_string();
        let closing =
            connection.set::<Option<String>, _, _>(keys::cooldown(path), value, expiry, Some(SetOptions::NX), false);
        self.limited(&connection, closing).await.map(drop)
    }

    /// Where the projection of all keys stands that is under way; an empty text where it has not begun yet.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn projection_position(&self) -> Result<Option<String>, RedisError> {
        let connection = self.quick(keys::PROJECTION)?;
        self.limited(&connection, connection.get(keys::PROJECTION)).await
    }

    /// Notes where the projection of all keys stands; `None` where it is done.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn set_projection_position(&self, position: Option<&str>) -> Result<(), RedisError> {
        let connection = self.quick(keys::PROJECTION)?;
        match position {
            Some(position) => {
                self.limited(&connection, connection.set::<(), _, _>(keys::PROJECTION, position, None, None, false))
                    .await
            }
            None => self.limited(&connection, connection.del::<u64, _>(keys::PROJECTION)).await.map(drop),
        }
    }
}
