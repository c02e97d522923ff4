//! Kicks that are owed: sources that must be off air. Written by the transition that ended their stream, removed only when
//! the node has said that the source is gone.

use std::collections::HashMap;

use fred::interfaces::HashesInterface;
use serde::Deserialize;

use super::{
    Lane, Redis, RedisError, answered_at_all, keys, queued,
    record::{Publisher, to_json},
};
use crate::domain::{EndReason, NodeName, Partition, Protocol, SourceId, SourceType, Stream, StreamPath, Timestamp};

/// A source that must be off air.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KickIntent {
    /// The path it was on.
    pub path: StreamPath,
    /// The node it is on.
    pub node: NodeName,
    /// The source.
    pub source_id: SourceId,
    /// What it is, where that is known.
    pub source_type: Option<SourceType>,
    /// How it publishes: tells what it may be where its type is not known.
    pub protocol: Protocol,
    /// Why.
    pub reason: EndReason,
    /// Since when it is owed.
    pub since: Timestamp,
}

impl KickIntent {
    /// The kick that is owed for the source of a stream that has ended.
    #[must_use]
    pub fn of_ended(stream: &Stream, reason: EndReason, since: Timestamp) -> Self {
        Self {
            path: stream.path.clone(),
            node: stream.node.clone(),
            source_id: stream.source.id,
            source_type: stream.source.source_type,
            protocol: stream.source.protocol,
            reason,
            since,
        }
    }

    /// What the source may be: its type, or all that its protocol allows.
    #[must_use]
    pub fn source_types(&self) -> Vec<SourceType> {
        self.source_type.map_or_else(|| self.protocol.source_types().to_vec(), |known| vec![known])
    }
}

/// As `lua/transition.lua` writes it.
#[derive(Deserialize, serde::Serialize)]
struct Written {
    path: StreamPath,
    node: NodeName,
    source_id: SourceId,
    source_type: String,
    /// What the auth call told, as the slot has it: JSON in a text.
    publisher: String,
    /// A text: a reason that a newer version knows is none to leave somebody on air.
    reason: String,
    since_ms: String,
}

impl From<Written> for KickIntent {
    fn from(written: Written) -> Self {
        Self {
            path: written.path,
            node: written.node,
            source_id: written.source_id,
            source_type: written.source_type.parse().ok(),
            protocol: serde_json::from_str::<Publisher<'_>>(&written.publisher)
                .map_or(Protocol::Other, |publisher| publisher.protocol),
            reason: written.reason.parse().unwrap_or(EndReason::Lost),
            since: Timestamp::from_ms(written.since_ms.parse().unwrap_or_default()),
        }
    }
}

/// The kicks that are owed.
#[derive(Debug, Clone)]
pub struct OwedKicks {
    /// As far as the servers answered.
    pub kicks: Vec<KickIntent>,
    /// Whether all of them did.
    pub are_all: bool,
}

fn readable(text: &str) -> Option<KickIntent> {
    match serde_json::from_str::<Written>(text) {
        Ok(written) => Some(written.into()),
        Err(error) => {
            tracing::error!(%error, "a kick that is owed cannot be read");
            None
        }
    }
}

impl Redis {
    /// Every kick that is owed.
    ///
    /// # Errors
    /// Where Redis gives no answer; in a cluster, any of its servers.
    pub async fn kicks(&self) -> Result<Vec<KickIntent>, RedisError> {
        let owed = self.owed_kicks().await?;
        owed.are_all.then_some(owed.kicks).ok_or(RedisError::Unavailable)
    }

    /// The kicks that are owed; in a cluster, as the servers say that answer.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn owed_kicks(&self) -> Result<OwedKicks, RedisError> {
        let partitions: Vec<Partition> = Partition::all().collect();
        let told: Vec<Result<HashMap<String, String>, RedisError>> = self
            .pipelined_apart(
                Lane::Bulk,
                &partitions,
                |&partition| keys::kicks(partition),
                |pipeline, key, _| queued(pipeline.hgetall(key)),
            )
            .await?;
        let told = answered_at_all(told)?;
        Ok(OwedKicks {
            are_all: told.iter().all(Option::is_some),
            kicks: told.iter().flatten().flat_map(HashMap::values).filter_map(|text| readable(text)).collect(),
        })
    }

    /// Every kick that is owed on the paths of a partition.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn kicks_in(&self, partition: Partition) -> Result<Vec<KickIntent>, RedisError> {
        let owed: HashMap<String, String> =
            self.single(Lane::Quick, keys::kicks(partition), |pipeline, key| queued(pipeline.hgetall(key))).await?;
        Ok(owed.values().filter_map(|text| readable(text)).collect())
    }

    /// Notes that a kick is owed for a source that no transition knows of: a publisher whom nobody admitted.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn owe_kick(&self, kick: &KickIntent) -> Result<(), RedisError> {
        let written = Written {
            path: kick.path.clone(),
            node: kick.node.clone(),
            source_id: kick.source_id,
            source_type: kick.source_type.map_or_else(String::new, |word| word.to_string()),
            publisher: to_json(&Publisher { protocol: kick.protocol, address: "".into(), user_agent: "".into() }),
            reason: kick.reason.to_string(),
            since_ms: kick.since.as_ms().to_string(),
        };
        let key = keys::kicks(kick.path.partition());
        let connection = self.quick(&key)?;
        let field = kick.source_id.to_string();
        let owed = connection.hsetnx::<u64, _, _, _>(key, field, to_json(&written));
        self.limited(&connection, owed).await.map(drop)
    }

    /// Whether a source must be off air.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn owes_kick(&self, path: &StreamPath, source_id: SourceId) -> Result<bool, RedisError> {
        let key = keys::kicks(path.partition());
        let connection = self.quick(&key)?;
        self.limited(&connection, connection.hexists(key, source_id.to_string())).await
    }

    /// Notes that the source is gone. Whether that was not known yet.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn strike_off_kick(&self, kick: &KickIntent) -> Result<bool, RedisError> {
        let key = keys::kicks(kick.path.partition());
        let connection = self.quick(&key)?;
        let field = kick.source_id.to_string();
        Ok(self.limited(&connection, connection.hdel::<u64, _, _>(key, field)).await? > 0)
    }
}
