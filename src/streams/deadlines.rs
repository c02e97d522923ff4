//! Deadlines: publishers that never came online, and keys whose time is over while they are on air.
//!
//! Invariant: whether something is due is decided in Redis, by its clock. Every replica looks; who comes second finds
//! nothing to do.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::note_end;
use crate::{
    domain::StreamState,
    lifecycle::{TaskError, every},
    redis::{Ending, Redis, RedisError},
};

/// How often it is looked whether something is due. A key that expires on air must be silent within two seconds.
const PERIOD_MS: u64 = 250;
/// The most that is done in one look for one partition; the rest waits for the next.
const DUE_MAX: i64 = 200;

pub(super) async fn keep(redis: Redis, kick_owed: Arc<Notify>, stopping: CancellationToken) -> Result<(), TaskError> {
    let mut ticker = every(PERIOD_MS, &stopping);
    while ticker.beat().await {
        match end_what_is_due(&redis).await {
            Ok(0) => {}
            Ok(_) => kick_owed.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "deadlines could not be kept; they are kept as soon as Redis is back");
            }
        }
    }
    Ok(())
}

/// How many streams were ended.
async fn end_what_is_due(redis: &Redis) -> Result<u32, RedisError> {
    let mut ended = 0;
    for path in redis.due(DUE_MAX).await? {
        if let Ending::Ended(stream) = redis.expire(&path).await? {
            if let StreamState::Ended { reason, .. } = stream.state {
                note_end(&stream, reason);
            }
            ended += 1;
        }
    }
    Ok(ended)
}
