//! The last refused publishers of every partition: a log of bounded length.

use std::collections::HashMap;

use fred::{
    interfaces::StreamsInterface,
    types::{
        Value,
        streams::{XCap, XCapKind, XCapTrim},
    },
};

use super::{Lane, Redis, RedisError, keys, queued, record::to_json};
use crate::domain::{Attempt, Partition, Timestamp};

/// How many refusals a partition keeps, give or take what Redis keeps in one block.
const KEPT_MAX: i64 = 1_000;
/// How old a refusal that is told may be.
const AGE_MAX_MS: u64 = 24 * 3_600_000;

const FIELD: &str = "attempt";

fn cap() -> Result<XCap, RedisError> {
    (XCapKind::MaxLen, XCapTrim::AlmostExact, KEPT_MAX, None).try_into().map_err(|error| RedisError::from_fred(&error))
}

impl Redis {
    /// Notes refusals, each in the given partition.
    ///
    /// # Errors
    /// Where Redis gives no answer: then they are not noted.
    pub async fn record_attempts(&self, attempts: &[(Partition, Attempt)]) -> Result<(), RedisError> {
        let cap = cap()?;
        let key = |(partition, _): &(Partition, Attempt)| keys::attempts(*partition);
        let _: Vec<Value> = self
            .pipelined(Lane::Bulk, attempts, key, |pipeline, key, (_, attempt)| {
                queued(pipeline.xadd(key, false, cap.clone(), "*", vec![(FIELD, to_json(attempt))]))
            })
            .await?;
        Ok(())
    }

    /// The refusals of a partition that are kept, the last one first.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn attempts(&self, partition: Partition) -> Result<Vec<Attempt>, RedisError> {
        let key = keys::attempts(partition);
        let connection = self.bulk(&key)?;
        let entries: Vec<(String, HashMap<String, String>)> = self
            .limited(&connection, async {
                connection.xrevrange::<Value, _, _, _>(key, "+", "-", None).await?.into_xread_value()
            })
            .await?;
        let read = |(_, fields): (String, HashMap<String, String>)| serde_json::from_str(fields.get(FIELD)?).ok();
        let now = Timestamp::now();
        let is_fresh = |attempt: &Attempt| now.ms_since(attempt.at) <= AGE_MAX_MS;
        Ok(entries.into_iter().filter_map(read).filter(is_fresh).collect())
    }
}
