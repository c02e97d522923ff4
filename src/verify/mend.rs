//! Making them agree.

use super::{Difference, Verify, streams::beyond};
use crate::{
    domain::{EndReason, Revision, Stream},
    nodes::contract::{OnlineSource, PathItem},
    redis::{Afterwards, EndRequest, FoundKey, HistoryOf, Holder, KeyInPlace, RedisError},
    store_error::StoreError,
};

/// What became of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mending {
    /// There is none any more.
    Mended,
    /// The running service takes care of it, by what it polls.
    LeftToTheService,
    /// Somebody has to decide.
    Left,
}

impl Verify {
    /// Makes the stores agree on one thing.
    ///
    /// # Errors
    /// Where a store gives no answer. It may be done again.
    pub async fn mend(&self, difference: &Difference) -> Result<Mending, StoreError> {
        match self.mend_once(difference).await {
            // The service opened the partition while Postgres was read.
            Err(StoreError::Redis(RedisError::MemoryLost)) => self.mend_once(difference).await,
            outcome => outcome,
        }
    }

    async fn mend_once(&self, difference: &Difference) -> Result<Mending, StoreError> {
        match difference {
            Difference::PartitionClosed(_) => self.rebuild.open_what_is_closed().await?,
            Difference::EventsSetAside(..) | Difference::Key(_, _, KeyInPlace::Revoked) => return Ok(Mending::Left),
            Difference::Key(id, ..) => self.rebuild.project_anew(*id).await?,
            Difference::KeyUnknown(found) => return self.remove_if_unknown(found).await,
            Difference::StreamNotHeld(stream) => self.bring_back(stream).await?,
            Difference::StreamUnrecorded(stream) => self.tell_history(stream, Revision(0)).await?,
            Difference::StreamEnded(stream, row) | Difference::StreamState(stream, row) => {
                self.tell_history(stream, *row).await?;
            }
            Difference::Listed(path, _) => self.redis.mend(path, HistoryOf::Known).await?,
            Difference::NodeNotInRedis(_) | Difference::NodeUnknown(_) => self.rebuild.bring_back_nodes().await?,
            // Nobody would ever ask whether it is still there.
            Difference::NodeGone(stream) => self.end(stream, EndReason::NodeRemoved).await?,
            Difference::NodeSilent(..)
            | Difference::NotAdmitted(..)
            | Difference::NotKicked(..)
            | Difference::NotOnAir(_) => return Ok(Mending::LeftToTheService),
        }
        Ok(Mending::Mended)
    }

    /// Puts a stream of the history back, and ends it where its node says that it does not have it.
    async fn bring_back(&self, stream: &Stream) -> Result<(), StoreError> {
        self.rebuild.restore(stream).await?;
        let fleet = self.postgres.nodes().await?;
        let node = fleet.iter().find(|node| node.name == stream.node && stream.state.live_since().is_some());
        let Some(node) = node else { return Ok(()) };
        // A node that cannot be asked may have it.
        let Ok(paths) = self.client.paths(node).await else { return Ok(()) };
        let has_it = |source: OnlineSource<'_>| source.id == Some(stream.source.id);
        if paths.items.iter().filter_map(PathItem::online_source).any(has_it) {
            return Ok(());
        }
        self.end(stream, EndReason::Lost).await
    }

    async fn end(&self, stream: &Stream, reason: EndReason) -> Result<(), StoreError> {
        let request = EndRequest {
            path: &stream.path,
            holder: Holder::Source(stream.source.id, &stream.node),
            reason,
            afterwards: Afterwards::Gone,
            progress: None,
        };
        Ok(self.redis.end(&request).await.map(drop)?)
    }

    /// Lets the history learn what Redis says of a stream, as something newer than its row.
    async fn tell_history(&self, stream: &Stream, row: Revision) -> Result<(), StoreError> {
        Ok(self.redis.mend(&stream.path, HistoryOf::ToBeTold { revision_min: beyond(row) }).await?)
    }

    async fn remove_if_unknown(&self, found: &FoundKey) -> Result<Mending, StoreError> {
        if let Some(id) = found.id
            && !self.postgres.stream_keys_by_id(&[id]).await?.is_empty()
        {
            return Ok(Mending::Mended);
        }
        self.redis.remove_stream_key(found).await?;
        Ok(Mending::Mended)
    }
}
