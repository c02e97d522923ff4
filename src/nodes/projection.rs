//! The fleet in Redis, as Postgres has it.
//!
//! Role: whoever changes the fleet tells Postgres first and then Redis. Where Redis did not hear of it, or whoever told it died in
//! between, this task of each replica brings it about.
//!
//! Invariants:
//! - A node leaves the fleet only where Postgres says that somebody removed it: a database that is empty, or older than Redis, takes
//!   nobody off air.
//! - Of two versions of a node the later one stands.
//! - Everything may be done twice, by any number of replicas, and be cut short anywhere.

use std::collections::HashSet;

use tokio_util::sync::CancellationToken;

use super::{Nodes, NodesError};
use crate::{
    domain::{Node, NodeName},
    lifecycle::{TaskError, every},
};

/// How often the two are held against each other.
const PERIOD_MS: u64 = 1_000;

pub(super) async fn keep(nodes: Nodes, stopping: CancellationToken) -> Result<(), TaskError> {
    let mut ticker = every(PERIOD_MS, &stopping);
    while ticker.beat().await {
        if let Err(error) = nodes.project_fleet().await {
            tracing::debug!(%error, "the fleet could not be brought to Redis; it is tried again");
        }
    }
    Ok(())
}

impl Nodes {
    async fn project_fleet(&self) -> Result<(), NodesError> {
        // In this order: a node that only the first two have was of the fleet before Postgres was asked.
        let view = self.inner.live.now().await?;
        let in_redis = self.inner.redis.nodes().await?;
        let nodes = self.inner.postgres.nodes().await?;
        let is_older = |node: &&Node| in_redis.get(&node.name).is_none_or(|known| known.updated_at < node.updated_at);
        let missing: Vec<Node> = nodes.iter().filter(is_older).cloned().collect();
        if !missing.is_empty() {
            self.inner.redis.put_nodes(&missing).await?;
            self.inner.fleet_changed.notify_one();
        }
        let known: HashSet<NodeName> = nodes.into_iter().map(|node| node.name).collect();
        let strangers: HashSet<NodeName> =
            in_redis.into_keys().chain(view.snapshot.nodes()).filter(|name| !known.contains(name)).collect();
        for name in self.inner.postgres.removed_among(strangers).await? {
            self.take_out(&name).await?;
        }
        Ok(())
    }
}
