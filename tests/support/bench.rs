//! What most tests begin with: one replica, and one node that asks it.

use std::sync::Arc;

use onair::config::Config;
use serde_json::Value;

use super::{
    mediamtx::{MediaMtx, MediaMtxOptions, Publisher},
    stack::{Replica, Stack, TestKey},
    stores::until,
    waiting::id_of,
};

/// The node is called `edge-1`. A test adds in its own file what only it does with them.
pub struct Bench {
    pub replica: Replica,
    pub node: Arc<MediaMtx>,
    /// Dropped last: the others need it.
    pub stack: Stack,
}

impl Bench {
    /// As everything is by default.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// With other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_on(Stack::start_with(change).await, |_| ()).await
    }

    /// On stores that are there, with a node that behaves otherwise.
    pub async fn start_on(stack: Stack, change: impl FnOnce(&mut MediaMtxOptions)) -> Self {
        let replica = stack.replica().await;
        let node = replica.mediamtx_with("edge-1", change).await;
        Self { replica, node, stack }
    }

    /// Publishes with a key that is let in.
    pub async fn publish(&self, key: &TestKey) -> Publisher {
        self.node.publish(key.publisher()).await.admitted()
    }

    /// A publisher on air, with a key of its own, as the list shows it.
    pub async fn live(&self, path: &str) -> (TestKey, Publisher, Value) {
        let key = self.replica.key(path).await;
        let publisher = self.publish(&key).await;
        let stream = self.replica.until_live(path).await;
        (key, publisher, stream)
    }

    /// As [`Bench::live`], once the node was polled with it.
    pub async fn live_and_polled(&self, path: &str) -> (TestKey, Publisher, Value) {
        let live = self.live(path).await;
        self.until_polled(&live.2).await;
        live
    }

    /// Until a poll of the node has told of a stream.
    pub async fn until_polled(&self, stream: &Value) {
        let id = id_of(stream);
        until("the poller has seen it", async || !self.replica.details(&id).await["inbound_bytes"].is_null()).await;
    }
}
