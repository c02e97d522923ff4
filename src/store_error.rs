//! What it means that a store gave no answer, for whoever asks both.

use crate::{postgres::PostgresError, redis::RedisError};

/// Why something was not done, or not to its end, that takes both stores. It may be done again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Redis gave no answer.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Postgres gave no answer.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}
