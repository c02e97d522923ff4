//! Pages of what is on air.

use std::{cmp::Reverse, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Snapshot;
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

    /// Whether every stream on air is listed.
    #[must_use]
    pub fn lets_everything_through(&self) -> bool {
        self.state.is_none() && self.node.is_none() && self.broadcaster_id.is_none() && self.path.is_none()
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
    let place = filter.after.as_ref().map(|Cursor(after)| (Reverse(after.admitted_at), after.path.clone()));
    let items_max = usize::from(filter.items_max);
    let mut shown = Vec::with_capacity(items_max.min(snapshot.len()));
    let more_follow = match &place {
        None => take(candidates(snapshot, filter), filter, &mut shown),
        Some(place) if filter.path.is_none() && filter.node.is_none() => {
            take(snapshot.streams_after(place), filter, &mut shown)
        }
        Some((admitted_at, path)) => {
            let is_behind = |stream: &&Arc<Stream>| (Reverse(stream.admitted_at), &stream.path) > (*admitted_at, path);
            take(candidates(snapshot, filter).filter(is_behind), filter, &mut shown)
        }
    };
    let total = if filter.lets_everything_through() {
        snapshot.len()
    } else {
        candidates(snapshot, filter).filter(|stream| filter.lets_through(stream)).count()
    };
    let next = shown
        .last()
        .filter(|_| more_follow)
        .map(|last: &Arc<Stream>| Cursor(LivePosition { admitted_at: last.admitted_at, path: last.path.clone() }));
    ListPage { items: shown, total, next }
}

/// The streams that a filter may let through, newest first: as few as the indexes of the snapshot leave.
fn candidates<'a>(snapshot: &'a Snapshot, filter: &'a ListFilter) -> Box<dyn Iterator<Item = &'a Arc<Stream>> + 'a> {
    match (&filter.path, &filter.node) {
        (Some(path), _) => Box::new(snapshot.by_path(path).into_iter()),
        (None, Some(node)) => Box::new(snapshot.on_node(node)),
        (None, None) => Box::new(snapshot.streams()),
    }
}

/// Takes a page of what the filter lets through. True where more follows.
fn take<'a>(
    mut streams: impl Iterator<Item = &'a Arc<Stream>>,
    filter: &ListFilter,
    shown: &mut Vec<Arc<Stream>>,
) -> bool {
    streams.any(|stream| {
        let is_listed = filter.lets_through(stream);
        let page_is_full = shown.len() == usize::from(filter.items_max);
        if is_listed && !page_is_full {
            shown.push(Arc::clone(stream));
        }
        is_listed && page_is_full
    })
}
