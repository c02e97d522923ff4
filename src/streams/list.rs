//! Pages of what is on air.

use std::{
    cmp::Reverse,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Snapshot,
    index::{InOrder, place},
};
use crate::domain::{BroadcasterId, Cursor, NodeName, Position, Stream, StreamPath, StreamStateWord, Timestamp};

/// Which streams on air are listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListFilter {
    /// Only connecting, or only live ones.
    pub state: Option<StreamStateWord>,
    /// Only those on this node.
    pub node: Option<NodeName>,
    /// Only this broadcaster's.
    pub broadcaster_id: Option<BroadcasterId>,
    /// Only the one on this path.
    pub path: Option<StreamPath>,
    /// At most so many on a page.
    pub items_max: u16,
    /// Behind this place.
    pub after: Option<Cursor<LivePosition>>,
}

impl ListFilter {
    fn lets_through(&self, stream: &Stream) -> bool {
        self.state.is_none_or(|state| state == stream.state.word())
            && self.node.as_ref().is_none_or(|node| *node == stream.node)
            && self.broadcaster_id.is_none_or(|id| id == stream.broadcaster_id)
            && self.path.as_ref().is_none_or(|path| *path == stream.path)
    }

    /// How many properties it asks for; with none, every stream on air is listed.
    #[must_use]
    pub fn properties(&self) -> usize {
        [self.state.is_some(), self.node.is_some(), self.broadcaster_id.is_some(), self.path.is_some()]
            .into_iter()
            .filter(|is_asked_for| *is_asked_for)
            .count()
    }
}

/// A place in the list of what is on air.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LivePosition {
    /// When the last stream was admitted.
    pub admitted_at: Timestamp,
    /// Its path.
    pub path: StreamPath,
}

impl Position for LivePosition {
    const LIST: &'static str = "streams";
}

/// One page of what is on air.
#[derive(Debug, Clone)]
pub struct ListPage {
    /// The streams, newest first.
    pub items: Vec<Arc<Stream>>,
    /// How many streams the filter lets through, over all pages.
    pub total: usize,
    /// Where the next page begins.
    pub next: Option<Cursor<LivePosition>>,
}

/// The page of a snapshot that a filter asks for.
#[must_use]
pub fn page(snapshot: &Snapshot, filter: &ListFilter) -> ListPage {
    let candidates = candidates(snapshot, filter);
    let after = filter.after.as_ref().map(|Cursor(after)| (Reverse(after.admitted_at), after.path.clone()));
    let behind = candidates.range((after.map_or(Unbounded, Excluded), Unbounded));
    let mut behind = behind.map(|(_, stream)| stream).filter(|stream| filter.lets_through(stream));
    let shown: Vec<_> = behind.by_ref().take(filter.items_max.into()).cloned().collect();
    let next = shown
        .last()
        .filter(|_| behind.next().is_some())
        .map(|last| Cursor(LivePosition { admitted_at: last.admitted_at, path: last.path.clone() }));
    // An index holds just the streams with one property.
    let total = if filter.properties() > 1 {
        candidates.values().filter(|stream| filter.lets_through(stream)).count()
    } else {
        candidates.size()
    };
    ListPage { items: shown, total, next }
}

/// The streams that a filter may let through, newest first: as few as the indexes of the snapshot leave.
fn candidates(snapshot: &Snapshot, filter: &ListFilter) -> InOrder {
    let none = InOrder::new_sync;
    let on_path = |path| snapshot.by_path(path).map(|stream| none().insert(place(stream), Arc::clone(stream)));
    let by_property = [
        filter.path.as_ref().map(on_path),
        filter.node.as_ref().map(|node| snapshot.by_node.of(node).cloned()),
        filter.broadcaster_id.as_ref().map(|id| snapshot.by_broadcaster.of(id).cloned()),
        filter.state.as_ref().map(|state| snapshot.by_state.of(state).cloned()),
    ];
    let with_property = by_property.into_iter().flatten().map(|streams| streams.unwrap_or_else(none));
    with_property.min_by_key(InOrder::size).unwrap_or_else(|| snapshot.in_order.clone())
}
