//! What admission must know of stream keys, as Postgres says it.
//!
//! Invariants:
//! - A projection never overwrites one of a higher revision. One of the same revision is written again: it says the same, unless somebody
//!   tampered with what is in place, or Postgres was restored and counts its changes anew.
//! - What is revoked stays revoked.
//! - What was read from Postgres before Redis lost its memory is not written into the memory after it: revisions compare only
//!   within one.

use fred::interfaces::HashesInterface;

use super::{
    Generations, Lane, PIPELINED_MAX, Redis, RedisError, answer_parts, keys, queued,
    record::to_json,
    script,
    transitions::{next, next_stream},
    unknown_word,
};
use crate::domain::{
    BroadcasterId, KeyId, KeyStatus, Label, OnConflict, Playback, Revision, SecretHash, Stream, StreamInfo, StreamKey,
    StreamPath, Timestamp,
};

/// What admission must know of a stream key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyProjection {
    /// The key.
    pub id: KeyId,
    /// The path it admits to.
    pub path: StreamPath,
    /// SHA-256 of its secret.
    pub secret_hash: SecretHash,
    /// Active, disabled or revoked.
    pub stored_status: KeyStatus,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// Counts its changes: an older one never overwrites a newer.
    pub revision: Revision,
    /// Whose it is.
    pub broadcaster_id: BroadcasterId,
    /// What happens when a second publisher comes.
    pub on_conflict: OnConflict,
    /// Who may watch.
    pub playback: Playback,
    /// What the streams that it starts tell their viewers.
    pub info: StreamInfo,
}

impl KeyProjection {
    /// What admission must know of `key`, whose broadcaster is called `broadcaster_name`.
    #[must_use]
    pub fn new(key: &StreamKey, broadcaster_name: &Label) -> Self {
        Self {
            id: key.id,
            path: key.path.clone(),
            secret_hash: key.secret_hash,
            stored_status: key.stored_status,
            expires_at: key.expires_at,
            revision: key.revision,
            broadcaster_id: key.broadcaster_id,
            on_conflict: key.on_conflict,
            playback: key.playback,
            info: StreamInfo {
                title: key.title.clone(),
                description: key.description.clone(),
                broadcaster_name: broadcaster_name.as_str().to_owned(),
                metadata: key.metadata.clone(),
                recording: None,
            },
        }
    }
}

/// What `project` did.
#[derive(Debug, Clone, PartialEq)]
pub enum Projected {
    /// It is in effect.
    Written {
        /// The stream that this took off air. Its kick is recorded already.
        ended: Option<Box<Stream>>,
    },
    /// Redis holds a newer one, or has the key revoked, and keeps that.
    Kept {
        /// The revision that Redis holds.
        in_place: Revision,
    },
}

impl Projected {
    /// The stream that this took off air.
    #[must_use]
    pub fn ended(self) -> Option<Stream> {
        match self {
            Self::Written { ended } => ended.map(|stream| *stream),
            Self::Kept { .. } => None,
        }
    }
}

/// Which projection of a key is in place, compared with what Postgres says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyInPlace {
    /// Redis does not hold the key. It is looked up when somebody comes with it.
    Absent,
    /// The very same.
    Same,
    /// One from before its last change.
    Older,
    /// Of the same change, with other values in these fields: somebody tampered with it.
    Different(Vec<&'static str>),
    /// One that Postgres does not know: it was restored to an older state.
    Newer(Revision),
    /// Revoked, which Postgres does not know any more. It stays so.
    Revoked,
}

impl KeyProjection {
    /// The fields as they stand in Redis, in the order in which `lua/project.lua` is given them.
    fn fields(&self) -> [(&'static str, String); 9] {
        [
            ("path", self.path.to_string()),
            ("id", self.id.to_string()),
            ("status", self.stored_status.to_string()),
            ("expires_ms", self.expires_at.map_or_else(String::new, |at| at.as_ms().to_string())),
            ("revision", self.revision.0.to_string()),
            ("broadcaster_id", self.broadcaster_id.to_string()),
            ("on_conflict", self.on_conflict.to_string()),
            ("playback", self.playback.to_string()),
            ("info", to_json(&self.info)),
        ]
    }

    fn compare(&self, in_place: &[Option<String>]) -> KeyInPlace {
        let fields = self.fields();
        let of =
            |name: &str| fields.iter().position(|(field, _)| *field == name).and_then(|at| in_place.get(at)?.clone());
        if in_place.iter().all(Option::is_none) {
            return KeyInPlace::Absent;
        }
        if of("status").as_deref() == Some(KeyStatus::Revoked.as_str()) && self.stored_status != KeyStatus::Revoked {
            return KeyInPlace::Revoked;
        }
        let revision = of("revision").and_then(|text| text.parse().ok()).map(Revision);
        match revision {
            Some(revision) if revision > self.revision => return KeyInPlace::Newer(revision),
            Some(revision) if revision < self.revision => return KeyInPlace::Older,
            _ => {}
        }
        let differs =
            |((_, wanted), found): &(&(&'static str, String), &Option<String>)| found.as_ref() != Some(wanted);
        let different: Vec<_> = fields.iter().zip(in_place).filter(differs).map(|((field, _), _)| *field).collect();
        if different.is_empty() { KeyInPlace::Same } else { KeyInPlace::Different(different) }
    }
}

impl Redis {
    /// Brings a key's present state into effect, for a caller who read it nowhere.
    ///
    /// # Errors
    /// As [`Redis::project`].
    pub async fn project_key(&self, key: &KeyProjection) -> Result<Projected, RedisError> {
        self.project(key, &self.generations().await?).await
    }

    /// Brings a key's present state into effect. `before` is the memory that Redis had before Postgres was asked for it. See
    /// `lua/project.lua`.
    ///
    /// # Errors
    /// [`RedisError::MemoryLost`] where Redis has another memory than that: Postgres has to be asked again. Or where Redis
    /// gives no answer; it may be said again.
    pub async fn project(&self, key: &KeyProjection, before: &Generations) -> Result<Projected, RedisError> {
        let partition = key.path.partition();
        let mut keys = keys::transition(&key.path);
        keys.extend([keys::stream_key(&key.path, key.secret_hash), keys::memory(partition)]);
        let mut arguments = vec![String::new()];
        arguments.extend(key.fields().map(|(_, value)| value));
        arguments.push(before.of(partition)?.to_owned());
        let (word, mut rest) = answer_parts(self.run(&script::PROJECT, keys, arguments).await?)?;
        match word.as_str() {
            "written" => Ok(Projected::Written { ended: next_stream(&mut rest)?.map(Box::new) }),
            "kept" => Ok(Projected::Kept { in_place: Revision(next(&script::PROJECT, &mut rest)?) }),
            "forgotten" => Err(RedisError::MemoryLost),
            word => Err(unknown_word("project", word)),
        }
    }

    /// Which projections of some keys are in place, in their order.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn keys_in_place(&self, wanted: &[KeyProjection]) -> Result<Vec<KeyInPlace>, RedisError> {
        let name = |key: &KeyProjection| keys::stream_key(&key.path, key.secret_hash);
        let mut found = Vec::with_capacity(wanted.len());
        for chunk in wanted.chunks(PIPELINED_MAX) {
            let in_place: Vec<Vec<Option<String>>> = self
                .pipelined(Lane::Bulk, chunk, name, |pipeline, name, key| {
                    queued(pipeline.hmget(name, key.fields().map(|(field, _)| field).to_vec()))
                })
                .await?;
            found.extend(chunk.iter().zip(&in_place).map(|(key, in_place)| key.compare(in_place)));
        }
        Ok(found)
    }
}
