//! The fleet as Redis holds it: the directory of nodes, so that a replica can start without Postgres, and what the poller
//! saw of each.

use std::collections::HashMap;

use fred::interfaces::HashesInterface;
use serde::{Serialize, de::DeserializeOwned};

use super::{Redis, RedisError, keys, record::to_json};
use crate::domain::{Node, NodeName};

/// Every node by name.
pub type NodeDirectory = HashMap<NodeName, Node>;

impl Redis {
    /// The nodes that Redis holds.
    ///
    /// # Errors
    /// Where Redis gives no answer, or a node cannot be read.
    pub async fn nodes(&self) -> Result<NodeDirectory, RedisError> {
        let connection = self.quick(keys::NODES)?;
        let texts: HashMap<String, String> = self.limited(&connection, connection.hgetall(keys::NODES)).await?;
        texts
            .values()
            .map(|text| serde_json::from_str::<Node>(text).map(|node| (node.name.clone(), node)))
            .collect::<Result<_, _>>()
            .map_err(|error| RedisError::Protocol(format!("a node: {error}")))
    }

    /// Puts nodes into the directory.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn put_nodes(&self, nodes: &[Node]) -> Result<(), RedisError> {
        if nodes.is_empty() {
            return Ok(());
        }
        let fields: HashMap<String, String> = nodes.iter().map(|node| (node.name.to_string(), to_json(node))).collect();
        let connection = self.quick(keys::NODES)?;
        self.limited(&connection, connection.hset::<u64, _, _>(keys::NODES, fields)).await.map(drop)
    }

    /// Takes a node out of the directory. What was seen of its sources is left: see [`Self::forget_progress`].
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn remove_node(&self, name: &NodeName) -> Result<(), RedisError> {
        let connection = self.quick(keys::NODES)?;
        self.limited(&connection, connection.hdel::<u64, _, _>(keys::NODES, name.as_str())).await?;
        self.limited(&connection, connection.hdel::<u64, _, _>(keys::NODE_STATUS, name.as_str())).await.map(drop)
    }

    /// Notes what the poller saw of a node.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn write_node_status<T: Serialize>(&self, name: &NodeName, status: &T) -> Result<(), RedisError> {
        let connection = self.quick(keys::NODE_STATUS)?;
        let written = connection.hset::<u64, _, _>(keys::NODE_STATUS, (name.as_str(), to_json(status)));
        self.limited(&connection, written).await.map(drop)
    }

    /// What the pollers saw last of every node. A word that this version cannot read is left out: the next poll replaces it.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn node_statuses<T: DeserializeOwned>(&self) -> Result<HashMap<NodeName, T>, RedisError> {
        let connection = self.quick(keys::NODE_STATUS)?;
        let texts: HashMap<String, String> = self.limited(&connection, connection.hgetall(keys::NODE_STATUS)).await?;
        let read = |(name, text): (String, String)| Some((name.parse().ok()?, serde_json::from_str(&text).ok()?));
        Ok(texts.into_iter().filter_map(read).collect())
    }
}
