//! Deadlines: publishers that never came online, and keys whose time is over while they are on air.
//!
//! Invariant: whether something is due is decided in Redis, by its clock. Every replica looks; who comes second finds
//! nothing to do.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::note_end;
use crate::{
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
        if let Err(error) = end_what_is_due(&redis, &kick_owed).await {
            tracing::debug!(%error, "deadlines could not be kept; they are kept as soon as Redis is back");
        }
    }
    Ok(())
}

/// Ends the streams whose time is over. In a cluster, those of a server that is away, or refuses, wait, and nobody waits for them.
async fn end_what_is_due(redis: &Redis, kick_owed: &Notify) -> Result<(), RedisError> {
    let (mut unreached, mut outcome) = (HashSet::new(), Ok(()));
    for path in redis.due(DUE_MAX).await? {
        let partition = path.partition();
        if unreached.contains(&partition) {
            continue;
        }
        match redis.expire(&path).await {
            Ok(Ending::Ended(stream)) => {
                note_end(&stream);
                kick_owed.notify_one();
            }
            Ok(Ending::OtherSource | Ending::NotHeld | Ending::NotDue) => {}
            Err(error) => {
                unreached.insert(partition);
                outcome = Err(error);
            }
        }
    }
    outcome
}
