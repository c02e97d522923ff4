//! The fleet in Redis, as Postgres has it.
//!
//! Role: whoever changes the fleet tells Postgres first and then Redis. Where Redis did not hear of it, whoever told it died in between, or
//! Redis lost it, this brings it over.
//!
//! Invariants:
//! - A node leaves the fleet only where Postgres says that somebody removed it, and not before Redis' node was added: a database that is
//!   empty, or older than Redis, takes nobody off air.
//! - Of two versions of a node the later one stands.
//! - Everything may be done twice, by any number of replicas, and be cut short anywhere.

use std::collections::{HashMap, HashSet};

use crate::{
    domain::{Node, NodeName, Timestamp},
    postgres::Postgres,
    redis::Redis,
    store_error::StoreError,
};

/// Brings the fleet over. Cheap to clone.
#[derive(Clone)]
pub struct FleetProjection {
    redis: Redis,
    postgres: Postgres,
}

/// What that did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BroughtOver {
    /// How many nodes Redis has, or has as they are, since then.
    pub nodes: usize,
    /// Who is no longer of the fleet.
    pub removed: Vec<NodeName>,
}

impl FleetProjection {
    /// Makes it from its stores.
    #[must_use]
    pub fn new(redis: Redis, postgres: Postgres) -> Self {
        Self { redis, postgres }
    }

    /// Makes the fleet in Redis that of Postgres. `on_air`: the nodes on which something is on air, as far as that was asked before; who
    /// of them was removed is told, also where Redis has forgotten the node.
    ///
    /// # Errors
    /// Where a store gives no answer.
    pub async fn bring_over(&self, on_air: Vec<NodeName>) -> Result<BroughtOver, StoreError> {
        // Redis first: what is in there and not in Postgres afterwards has been removed, and not just been added.
        let in_redis = self.redis.nodes().await?;
        let nodes = self.postgres.nodes().await?;
        let is_behind = |node: &&Node| {
            let known = in_redis.get(&node.name);
            known.is_none_or(|known| known != *node && known.updated_at <= node.updated_at)
        };
        let behind: Vec<Node> = nodes.iter().filter(is_behind).cloned().collect();
        self.redis.put_nodes(&behind).await?;
        let known: HashSet<NodeName> = nodes.into_iter().map(|node| node.name).collect();
        let added = in_redis.into_iter().map(|(name, node)| (name, Some(node.created_at)));
        // Those of Redis last: of them it is known since when they are of the fleet.
        let mut strangers: HashMap<NodeName, Option<Timestamp>> = on_air.into_iter().map(|name| (name, None)).collect();
        strangers.extend(added);
        strangers.retain(|name, _| !known.contains(name));
        let removed = self.postgres.removed_among(strangers).await?;
        for name in &removed {
            self.redis.remove_node(name).await?;
        }
        Ok(BroughtOver { nodes: behind.len(), removed })
    }
}
