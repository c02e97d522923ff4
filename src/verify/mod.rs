//! What Redis, Postgres and the nodes say, held against each other, and made to agree.
//!
//! Role: two commands for people, `onair verify` and `onair rebuild`. Nothing here runs by itself.
//!
//! Invariants:
//! - Verifying changes nothing.
//! - What is on its way from one store to another is no difference: only what several looks found is told.
//! - Rebuilding mends what verifying finds, and nothing else. It may be cut short and done again, while the service runs.
//! - What a node says is left to the running service, whose next poll acts on it.

mod difference;
mod keys;
mod mend;
mod nodes;
mod streams;

use std::{collections::HashSet, time::Duration};

pub use difference::{Difference, Listing};
pub use mend::Mending;

use crate::{
    config::Config,
    domain::{Partition, Renditions},
    node_credentials::NodeCredentials,
    nodes::NodeClient,
    postgres::Postgres,
    rebuild::Rebuild,
    redis::{Redis, RedisError},
    store_error::StoreError,
};

/// How often it is looked before a difference is one.
const LOOKS: usize = 3;
/// How long between two looks: longer than a poll, an answer of a node and the writing of the history take together.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// How much was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Stream keys in Postgres.
    pub stream_keys: u64,
    /// Streams on air in Redis.
    pub streams: u64,
    /// Nodes that were asked.
    pub nodes: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// How much was compared.
    pub compared: Compared,
    /// What does not agree.
    pub differences: Vec<Difference>,
}

/// Compares the stores and the nodes.
pub struct Verify {
    redis: Redis,
    postgres: Postgres,
    client: NodeClient,
    rebuild: Rebuild,
    renditions: Renditions,
}

/// Why it cannot be looked at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no node secret.
    #[error("server.node_secrets (ONAIR_SERVER_NODE_SECRETS) is empty")]
    NoNodeSecret,
    /// The client for the nodes cannot be set up.
    #[error("the client for the nodes' control APIs cannot be set up: {0}")]
    NodeClient(String),
}

impl Verify {
    /// Makes the capability from its stores.
    ///
    /// # Errors
    /// Where the nodes could not be asked.
    pub fn new(config: &Config, redis: Redis, postgres: Postgres) -> Result<Self, VerifyError> {
        let credentials = NodeCredentials::new(&config.server.node_secrets).ok_or(VerifyError::NoNodeSecret)?;
        let client = NodeClient::new(&config.reconciler, credentials);
        Ok(Self {
            client: client.map_err(|error| VerifyError::NodeClient(error.to_string()))?,
            rebuild: Rebuild::new(config, redis.clone(), postgres.clone()),
            renditions: config.renditions.suffixes.clone(),
            redis,
            postgres,
        })
    }

    /// Compares everything, again and again until nothing is left or what is left stays.
    ///
    /// # Errors
    /// Where a store gives no answer.
    pub async fn findings(&self) -> Result<Findings, StoreError> {
        let mut findings = self.look().await?;
        for _ in 1..LOOKS {
            if findings.differences.is_empty() {
                break;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let before: HashSet<String> = findings.differences.iter().map(ToString::to_string).collect();
            findings = self.look().await?;
            findings.differences.retain(|difference| before.contains(&difference.to_string()));
        }
        Ok(findings)
    }

    /// Compares everything once.
    async fn look(&self) -> Result<Findings, StoreError> {
        let mut findings = Findings::default();
        self.compare_partitions(&mut findings).await?;
        self.compare_keys(&mut findings).await?;
        let held = self.compare_streams(&mut findings).await?;
        self.compare_nodes(&held, &mut findings).await?;
        Ok(findings)
    }

    async fn compare_partitions(&self, findings: &mut Findings) -> Result<(), RedisError> {
        let versions = self.redis.versions().await?;
        let aside = self.redis.events_set_aside().await?;
        for partition in Partition::all() {
            if versions[partition.index()] == 0 {
                findings.differences.push(Difference::PartitionClosed(partition));
            }
            if let Some(&count @ 1..) = aside.get(partition.index()) {
                findings.differences.push(Difference::EventsSetAside(partition, count));
            }
        }
        Ok(())
    }
}
