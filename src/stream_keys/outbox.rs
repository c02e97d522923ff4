//! How a change reaches Redis: at once by whoever made it, and again by the outbox until Redis has it.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::{StreamKeys, StreamKeysError};
use crate::{
    domain::{KeyId, Partition, Revision, Stream},
    metrics,
    postgres::{KeyWithOwner, PostgresError},
    redis::{Generations, KeyProjection, Projected, RedisError},
    store_error::StoreError,
    streams::note_end,
};

/// How long a change is left to whoever made it, in milliseconds: longer than a command to Redis may take. Their answer
/// tells which stream the change took off air, and only one projection of a change gets to know.
const LEFT_TO_ITS_MAKER_MS: u32 = 1_000;

/// How many keys are read from the outbox at once.
const BATCH_KEYS_MAX: u16 = 500;

/// How many keys are projected at once.
const PROJECTIONS_IN_FLIGHT_MAX: usize = 32;

/// How many keys that have to wait are read in one look to find others behind them.
const PASSED_OVER_MAX: usize = 10_000;

/// What one look into the outbox did.
#[derive(Debug, Default)]
pub struct ProjectReport {
    /// Changes that Redis has now.
    pub projected: usize,
    /// Streams that they took off air. Their kicks are recorded.
    pub ended: Vec<Stream>,
    /// Why Redis did not take the rest.
    pub stopped_by: Option<RedisError>,
    /// The partitions whose server did not: their keys wait, and those of others behind them do not.
    pub unreached: HashSet<Partition>,
}

impl StreamKeys {
    /// Brings into effect what was changed while Redis was away, or by a replica that died before it told Redis. To be
    /// called every second or so, by any number of replicas. A signal to call it sooner would be of no use: whoever
    /// makes a change tells Redis, and where that failed, Redis is what has to be waited for.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn project_pending(&self) -> Result<ProjectReport, PostgresError> {
        let (mut report, mut passed_over) = (ProjectReport::default(), 0);
        loop {
            let memory = self.redis.generations().await;
            let waiting =
                self.postgres.keys_awaiting_projection(LEFT_TO_ITS_MAKER_MS, passed_over, BATCH_KEYS_MAX).await?;
            let projected_before = report.projected;
            self.project_all(&waiting, memory, &mut report).await?;
            passed_over += waiting.len() - (report.projected - projected_before);
            let is_last = waiting.len() < usize::from(BATCH_KEYS_MAX) || passed_over >= PASSED_OVER_MAX;
            if is_last || report.unreached.len() == usize::from(Partition::COUNT) {
                metrics::outbox_pending(self.postgres.count_keys_awaiting_projection().await?);
                return Ok(report);
            }
        }
    }

    /// Projects keys, and notes what Redis has. In a cluster, those of a server that is away wait, and not the others among them.
    /// `memory` is from before they were read.
    pub(super) async fn project_all(
        &self,
        keys: &[KeyWithOwner],
        memory: Result<Generations, RedisError>,
        report: &mut ProjectReport,
    ) -> Result<(), PostgresError> {
        let memory = match memory {
            Ok(memory) => memory,
            Err(error) => {
                report.stopped_by = Some(error);
                report.unreached.extend(Partition::all());
                return Ok(());
            }
        };
        let mut done: Vec<(KeyId, Revision)> = Vec::with_capacity(keys.len());
        for some in keys.chunks(PROJECTIONS_IN_FLIGHT_MAX) {
            // A server that gives no answer is not asked again for the keys behind.
            let is_reached = |key: &&KeyWithOwner| !report.unreached.contains(&key.key.path.partition());
            let some: Vec<&KeyWithOwner> = some.iter().filter(is_reached).collect();
            let projecting = some.iter().map(|key| self.project_at_last(key, &memory));
            for (key, outcome) in some.iter().zip(join_all(projecting).await) {
                match outcome {
                    Ok((id, revision, ended)) => {
                        done.push((id, revision));
                        report.ended.extend(ended);
                    }
                    Err(StoreError::Redis(error)) => {
                        report.unreached.insert(key.key.path.partition());
                        report.stopped_by = Some(error);
                    }
                    Err(StoreError::Postgres(error)) => return Err(error),
                }
            }
        }
        report.projected += done.len();
        self.postgres.mark_projected(&done).await
    }

    /// Brings a change that was just committed into effect, and gives the stream that it took off air. `memory` is from before
    /// the change.
    pub(super) async fn bring_into_effect(
        &self,
        changed: &KeyWithOwner,
        memory: Result<Generations, RedisError>,
    ) -> Result<Option<Stream>, StreamKeysError> {
        let projected = match memory {
            Ok(memory) => self.project_at_last(changed, &memory).await,
            Err(error) => Err(error.into()),
        };
        let projected = match projected {
            Err(StoreError::Redis(RedisError::MemoryLost)) => self.project_by_id(changed.key.id).await,
            projected => projected,
        };
        let (id, revision, ended) = projected.map_err(|error| {
            tracing::warn!(key_id = %changed.key.id, %error, "a change of a stream key waits for Redis");
            StreamKeysError::RecordedNotYetEffective
        })?;
        // It is in effect, so the answer is success whatever becomes of this note: without it, the outbox projects the
        // key once more, which changes nothing.
        if let Err(error) = self.postgres.mark_projected(&[(id, revision)]).await {
            tracing::debug!(key_id = %id, %error, "a projection could not be noted");
        }
        Ok(ended)
    }

    /// Brings into Redis what Postgres says of a key by now, whatever Redis holds.
    pub(crate) async fn project_by_id(&self, id: KeyId) -> Result<(KeyId, Revision, Option<Stream>), StoreError> {
        let memory = self.redis.generations().await?;
        self.project_at_last(&self.key_by_id(id).await?, &memory).await
    }

    async fn key_by_id(&self, id: KeyId) -> Result<KeyWithOwner, PostgresError> {
        let key = self.postgres.stream_keys_by_id(&[id]).await?.pop();
        key.ok_or_else(|| PostgresError::Protocol("a key that was changed is gone".to_owned()))
    }

    /// Projects a key so that it is in effect, whatever revision Redis holds: a Postgres that was restored to an older state
    /// counts from there, and Redis would take a new change for an old one. Gives the revision that is in effect.
    async fn project_at_last(
        &self,
        key: &KeyWithOwner,
        memory: &Generations,
    ) -> Result<(KeyId, Revision, Option<Stream>), StoreError> {
        let (id, revision) = (key.key.id, key.key.revision);
        let in_place = match self.project(key, memory).await? {
            Projected::Kept { in_place } if in_place > revision => in_place,
            // Also where it is revoked in Redis: so it stays.
            in_effect => return Ok((id, revision, in_effect.ended())),
        };
        let raised = self.postgres.raise_key_revision(id, in_place).await?;
        if raised {
            tracing::warn!(key_id = %id, in_redis = in_place.0, in_postgres = revision.0,
                "Redis held a newer revision of a stream key than Postgres, which seems to have been restored: raised");
        }
        // Where it was not, a later change has come as far: this one is part of it, and it may be one that Redis takes for its own.
        let latest = self.key_by_id(id).await?;
        // Where Redis holds a newer one now, that was written since, by whoever made a change after this one.
        Ok((id, latest.key.revision, self.project(&latest, memory).await?.ended()))
    }

    /// Brings what Postgres says of a key into Redis, unless that knows better. `memory` is from before Postgres was asked.
    pub(crate) async fn project(&self, key: &KeyWithOwner, memory: &Generations) -> Result<Projected, RedisError> {
        let projection = KeyProjection::new(&key.key, &key.broadcaster_name);
        let projected = self.redis.project(&projection, memory).await?;
        if let Projected::Written { ended: Some(stream) } = &projected {
            note_end(stream);
        }
        Ok(projected)
    }
}
