//! What it means that a store gave no answer, for whoever asks both.

use crate::{postgres::PostgresError, redis::RedisError};

/// Why something was not done that takes both stores. What was not finished is begun anew: nothing is half known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Of what is true now.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Of what must not be forgotten.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}
