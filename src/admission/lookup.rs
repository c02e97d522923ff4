//! A key that Redis does not hold is looked up in Postgres once, and brought into Redis.
//!
//! Role: Redis may never have had this key, or may not have it back yet. This is the only way from admission to Postgres, and it is
//! not on the path of a key that Redis knows.
//!
//! Invariants:
//! - For one key there is one look-up at a time, whoever waits for it; what was found is remembered for a moment, so that a
//!   wrong key that is tried again and again does not reach Postgres each time.
//! - The number of queries at once is limited. Who finds no place waits no longer than the call's deadline.
//! - In a partition that lacks more than this key nobody is admitted (`src/redis/partitions.rs`), and nothing is looked up. So
//!   whoever is admitted by a key that was brought in here meets every stream that is on air.

use std::{sync::Arc, time::Duration};

use moka::future::Cache;
use tokio::sync::Semaphore;

use super::existence::Existence;
use crate::{
    config::AdmissionConfig,
    domain::{KeyId, SecretHash, StreamPath},
    lifecycle::Tasks,
    postgres::{Postgres, PostgresError},
    redis::{KeyProjection, Redis, RedisError},
};

/// The most keys whose look-up is remembered at once.
const REMEMBERED_MAX: u64 = 100_000;

/// Why a look-up has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LookupError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("a key that Redis does not hold could not be looked up: Postgres is away")]
    Postgres,
}

impl From<PostgresError> for LookupError {
    fn from(error: PostgresError) -> Self {
        tracing::warn!(%error, "looking up a stream key failed");
        Self::Postgres
    }
}

/// What Postgres knows of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Unknown,
    /// It is for another path than the one that was asked for.
    ForOtherPath(KeyId, StreamPath),
    /// Redis holds it now.
    Installed,
}

/// Looks keys up in Postgres.
pub(super) struct Lookup {
    postgres: Postgres,
    redis: Redis,
    places: Arc<Semaphore>,
    existence: Existence,
    remembered: Cache<SecretHash, Option<(KeyId, StreamPath)>>,
}

impl Lookup {
    pub(super) fn new(postgres: Postgres, redis: Redis, config: &AdmissionConfig, tasks: &Tasks) -> Self {
        let places = Arc::new(Semaphore::new(config.lookups_max));
        Self {
            existence: Existence::new(
                postgres.clone(),
                (Arc::clone(&places), config.lookups_max),
                Duration::from_millis(config.deadline_ms),
                tasks.clone(),
            ),
            postgres,
            redis,
            places,
            remembered: Cache::builder()
                .max_capacity(REMEMBERED_MAX)
                .time_to_live(Duration::from_millis(config.unknown_key_cache_ms))
                .build(),
        }
    }

    /// Looks a key up that Redis does not hold for `path`.
    pub(super) async fn find(&self, path: &StreamPath, secret_hash: SecretHash) -> Result<Found, LookupError> {
        let known = self.remembered.try_get_with(secret_hash, Box::pin(self.ask(secret_hash))).await;
        Ok(match known.map_err(|error| LookupError::clone(&error))? {
            None => Found::Unknown,
            Some((key_id, key_path)) if key_path != *path => Found::ForOtherPath(key_id, key_path),
            Some(_) => Found::Installed,
        })
    }

    async fn ask(&self, secret_hash: SecretHash) -> Result<Option<(KeyId, StreamPath)>, LookupError> {
        // Most of these keys nobody has made, and whoever tries them out should cost no more than this.
        if !self.existence.of(secret_hash).await? {
            return Ok(None);
        }
        let _place = self.places.acquire().await.map_err(|_| LookupError::Postgres)?;
        // The key is read behind this: a revocation in between must not be undone in a Redis that has lost it.
        let memory = self.redis.generations().await?;
        let Some(found) = self.postgres.stream_key_by_secret(secret_hash).await? else {
            return Ok(None);
        };
        let key = found.key;
        let projection = KeyProjection::new(&key, &found.broadcaster_name);
        self.redis.project(&projection, &memory).await?;
        Ok(Some((key.id, key.path)))
    }

    /// Forgets what was remembered of a key, since Redis has lost it meanwhile.
    pub(super) async fn forget(&self, secret_hash: SecretHash) {
        self.remembered.invalidate(&secret_hash).await;
    }
}
