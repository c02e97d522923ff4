//! Which nodes there are: a copy in memory of what Redis holds, which is a copy of what Postgres holds.
//!
//! Invariants:
//! - A node that was added on another replica is known here within a second, or at once when it calls.
//! - A node that was removed is refused within a second.
//! - The copy outlives both stores: a fleet does not vanish because a database restarts.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use crate::{
    domain::{Node, NodeName},
    postgres::Postgres,
    redis::Redis,
};

/// How often a caller that nobody knows makes this replica look again. It counts for one name, so that a node that was removed
/// and goes on calling does not keep a new one waiting.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Every node by name, as of one moment.
pub type Fleet = HashMap<NodeName, Arc<Node>>;

/// Whether the stores could be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// What is known here is what they said.
    Done,
    /// What is known here is what they said last.
    Failed,
}

/// Whether a node is of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Membership {
    /// It is.
    Member(Arc<Node>),
    /// The stores say that it is not.
    Stranger,
    /// It is not known here, and the stores cannot be asked.
    Unknown,
}

/// The nodes of the fleet.
pub struct Directory {
    redis: Redis,
    postgres: Postgres,
    fleet: RwLock<Arc<Fleet>>,
    looked: Mutex<Option<(NodeName, Instant)>>,
}

impl Directory {
    pub(super) fn new(redis: Redis, postgres: Postgres) -> Self {
        Self { redis, postgres, fleet: RwLock::default(), looked: Mutex::default() }
    }

    /// All nodes.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// One node.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.fleet.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// One node, looked for again where it is not known: it may have been added a moment ago on another replica.
    pub async fn find(&self, name: &NodeName) -> Option<Arc<Node>> {
        if let Some(node) = self.node(name) {
            return Some(node);
        }
        let mut looked = self.looked.lock().await;
        let has_just_looked =
            looked.as_ref().is_some_and(|(looked_for, at)| looked_for == name && at.elapsed() < LOOK_AGAIN_AFTER);
        if !has_just_looked {
            // Boxed, because it is rare and large: every auth call would carry its room.
            Box::pin(self.refresh()).await;
            *looked = Some((name.clone(), Instant::now()));
        }
        self.node(name)
    }

    /// Whether a node is of the fleet, by the stores' own word where it is not known here: for what cannot be taken back.
    pub(super) async fn membership(&self, name: &NodeName) -> Membership {
        if let Some(node) = self.node(name) {
            return Membership::Member(node);
        }
        match (self.refresh().await, self.node(name)) {
            (_, Some(node)) => Membership::Member(node),
            (Refresh::Done, None) => Membership::Stranger,
            (Refresh::Failed, None) => Membership::Unknown,
        }
    }

    /// Reads the directory again: from Redis, or from Postgres where Redis holds none, which then gets it back.
    pub async fn refresh(&self) -> Refresh {
        let nodes = match self.redis.nodes().await {
            Ok(nodes) if !nodes.is_empty() => nodes.into_values().collect(),
            Ok(_) => match self.postgres.nodes().await {
                Ok(nodes) => {
                    if let Err(error) = self.redis.put_nodes(&nodes).await {
                        tracing::debug!(%error, "the directory of nodes could not be put into Redis");
                    }
                    nodes
                }
                Err(error) => return failed(&error),
            },
            Err(error) => return failed(&error),
        };
        let fleet = nodes.into_iter().map(|node: Node| (node.name.clone(), Arc::new(node))).collect();
        *self.fleet.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fleet);
        Refresh::Done
    }
}

fn failed(error: &dyn std::error::Error) -> Refresh {
    tracing::debug!(%error, "the directory of nodes could not be read");
    Refresh::Failed
}
