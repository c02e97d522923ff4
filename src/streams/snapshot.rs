//! What was on air at one moment.
//!
//! Invariant: a snapshot that was handed out never changes. The next one shares with it all that is the same, so that making
//! it costs what changed.

use std::{collections::HashMap, sync::Arc};

use rpds::HashTrieMapSync;

use super::index::{InOrder, Index, place};
use crate::{
    domain::{
        BroadcasterId, NodeName, Partition, Progress, SourceId, Stream, StreamId, StreamPath, StreamStateWord,
        Timestamp,
    },
    metrics,
};

/// The pollers' last words, by source.
pub type ProgressBySource = HashMap<SourceId, Progress>;

/// What was on air at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(super) in_order: InOrder,
    by_id: HashTrieMapSync<StreamId, Arc<Stream>>,
    by_path: HashTrieMapSync<StreamPath, Arc<Stream>>,
    pub(super) by_node: Index<NodeName>,
    pub(super) by_broadcaster: Index<BroadcasterId>,
    pub(super) by_state: Index<StreamStateWord>,
    progress: Arc<ProgressBySource>,
    /// When it was last known to be true.
    pub as_of: Timestamp,
    /// Changes with every change of what is on air.
    pub version: u64,
    /// Changes with every reading of what the pollers saw.
    pub progress_version: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            in_order: InOrder::new_sync(),
            by_id: HashTrieMapSync::new_sync(),
            by_path: HashTrieMapSync::new_sync(),
            by_node: Index::default(),
            by_broadcaster: Index::default(),
            by_state: Index::default(),
            progress: Arc::default(),
            as_of: Timestamp::from_ms(0),
            version: 0,
            progress_version: 0,
        }
    }
}

impl Snapshot {
    /// How many streams are on air.
    #[must_use]
    pub fn len(&self) -> usize {
        self.in_order.size()
    }

    /// Whether nothing is on air.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    /// The streams on air, newest first.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.in_order.values()
    }

    /// A stream on air.
    #[must_use]
    pub fn by_id(&self, id: StreamId) -> Option<&Arc<Stream>> {
        self.by_id.get(&id)
    }

    /// The stream that holds a path.
    #[must_use]
    pub fn by_path(&self, path: &StreamPath) -> Option<&Arc<Stream>> {
        self.by_path.get(path)
    }

    /// The streams on a node, newest first.
    pub fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &Arc<Stream>> {
        self.by_node.of(node).into_iter().flat_map(InOrder::values)
    }

    /// The nodes that have something on air.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeName> {
        self.by_node.keys().cloned().collect()
    }

    /// The poller's last word about a stream's source, at most two seconds old.
    #[must_use]
    pub fn progress_of(&self, stream: &Stream) -> Option<&Progress> {
        self.progress.get(&stream.source.id)
    }

    /// Brings the gauges of what is on air up to date, also for nodes that have nothing.
    pub fn count_into_metrics<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeName>) {
        for node in nodes {
            for state in [StreamStateWord::Connecting, StreamStateWord::Live] {
                let count = self.on_node(node).filter(|stream| stream.state.word() == state).count();
                metrics::streams(state, node, count as u64);
            }
            let progress = || self.on_node(node).filter_map(|stream| self.progress_of(stream));
            let viewers = progress().map(|seen| u64::from(seen.viewers())).sum();
            let inbound_bits_per_second = progress().filter_map(|seen| seen.inbound_bits_per_second).sum();
            metrics::traffic(node, viewers, inbound_bits_per_second);
        }
        let stalled = self.streams().filter(|stream| stream.stalled_at.is_some()).count();
        metrics::streams_stalled(stalled as u64);
        let stale = self.streams().filter(|stream| stream.stale_since.is_some()).count();
        metrics::streams_stale(stale as u64);
    }

    pub(super) fn paths_in(&self, partitions: &[Partition]) -> Vec<StreamPath> {
        self.by_path.keys().filter(|path| partitions.contains(&path.partition())).cloned().collect()
    }

    /// What holds a path now.
    pub(super) fn put(&mut self, path: &StreamPath, stream: Option<Arc<Stream>>) {
        if let Some(old) = self.by_path.get(path).cloned() {
            self.remove(&old);
        }
        let Some(stream) = stream else { return };
        self.in_order.insert_mut(place(&stream), Arc::clone(&stream));
        self.by_id.insert_mut(stream.id, Arc::clone(&stream));
        self.by_path.insert_mut(path.clone(), Arc::clone(&stream));
        self.by_node.put(&stream.node, &stream);
        self.by_broadcaster.put(&stream.broadcaster_id, &stream);
        self.by_state.put(&stream.state.word(), &stream);
    }

    fn remove(&mut self, old: &Stream) {
        self.in_order.remove_mut(&place(old));
        self.by_id.remove_mut(&old.id);
        self.by_path.remove_mut(&old.path);
        self.by_node.remove(&old.node, old);
        self.by_broadcaster.remove(&old.broadcaster_id, old);
        self.by_state.remove(&old.state.word(), old);
    }

    pub(super) fn set_progress(&mut self, progress: Arc<ProgressBySource>) {
        if !Arc::ptr_eq(&self.progress, &progress) {
            self.progress = progress;
            self.progress_version += 1;
        }
    }
}
