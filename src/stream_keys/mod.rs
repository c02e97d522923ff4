//! The management of stream keys and of the broadcasters they belong to.
//!
//! Role: what an administrator may do, as one error enum and a few verbs. Admission is not here: it asks Redis.
//!
//! Invariants:
//! - A change is committed in Postgres first, with its line in the audit log, and brought into effect in Redis before it is
//!   answered. So a revocation that was answered with success admits nobody any more, on any replica.
//! - A change that Redis could not take is answered as [`StreamKeysError::RecordedNotYetEffective`]. It is not lost: the
//!   row says that Redis has not heard of it, and [`StreamKeys::project_pending`] repeats it until Redis has.
//! - Every verb may be repeated. A second revocation changes nothing, writes nothing into the audit log, and makes sure
//!   once more that Redis knows.
//! - A secret exists in this process only between its making and the answer that shows it.

mod broadcasters;
mod invalid;
mod keys;
mod outbox;
mod secrets;

use crate::{
    domain::Renditions,
    postgres::{Postgres, PostgresError},
    redis::Redis,
};

pub use broadcasters::{BroadcasterPatch, NewBroadcaster};
pub use invalid::{
    CONTACT_CHARACTERS_MAX, DESCRIPTION_CHARACTERS_MAX, FieldProblem, InvalidField, TITLE_CHARACTERS_MAX,
    check_metadata,
};
pub use keys::{ChangedKey, CreatedKey, KeyPatch, ListKeys, NewKey};
pub use outbox::ProjectReport;

/// What administrators do with keys and broadcasters.
#[derive(Debug, Clone)]
pub struct StreamKeys {
    postgres: Postgres,
    redis: Redis,
    renditions: Renditions,
}

impl StreamKeys {
    /// Makes the capability from its stores. Keys are never for the path of a rendition.
    #[must_use]
    pub fn new(postgres: Postgres, redis: Redis, renditions: Renditions) -> Self {
        Self { postgres, redis, renditions }
    }
}

/// Why a change or a question about keys and broadcasters was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamKeysError {
    /// What was asked for is wrong, and nothing changed.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// There is no key with this id.
    #[error("no such stream key")]
    NoSuchKey,
    /// There is no broadcaster with this id.
    #[error("no such broadcaster")]
    NoSuchBroadcaster,
    /// Another key that is not revoked admits to this path.
    #[error("another stream key has this path")]
    PathTaken,
    /// The key is revoked, which is final.
    #[error("the stream key is revoked, which is final")]
    KeyIsRevoked,
    /// The change is recorded and will come into effect, but Redis could not be told yet. Repeating the call is safe, and
    /// succeeds as soon as it is in effect.
    #[error("the change is recorded, but is not in effect yet")]
    RecordedNotYetEffective,
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    NoRandomness,
    /// Postgres did not do it.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

/// What becomes of a field that may be empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Edit<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is emptied.
    Clear,
    /// It gets this value.
    Set(T),
}

impl<T> Edit<T> {
    fn value(&self) -> Option<&T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Keep | Self::Clear => None,
        }
    }

    fn apply(self, field: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}
