//! The task that brings changes of the fleet into effect whose makers could not.

use tokio_util::sync::CancellationToken;

use super::{Nodes, NodesError};
use crate::lifecycle::{TaskError, every};

/// How often Redis is held against Postgres.
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
        // What was on air before the stores are asked: who is admitted on a node that comes back meanwhile stays.
        let view = self.inner.live.now().await?;
        let brought = self.inner.fleet_projection.bring_over(view.snapshot.nodes()).await?;
        if brought.nodes > 0 || !brought.removed.is_empty() {
            self.inner.directory.refresh().await;
            self.inner.fleet_changed.notify_one();
        }
        let mut outcome = Ok(());
        for name in &brought.removed {
            outcome = self.end_streams_of(name, &view.snapshot).await.and(outcome);
        }
        outcome
    }
}
