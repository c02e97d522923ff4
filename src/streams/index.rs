//! Streams in the order of every list, all of them or those that have something in common.
//!
//! Invariant: a clone is a reference, and never changes with what it was cloned from.

use std::{cmp::Reverse, hash::Hash, sync::Arc};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use crate::domain::{Stream, StreamPath, Timestamp};

/// The order of every list: who was admitted last comes first, and by path among those of one millisecond. Epochs order the
/// streams of one path only.
pub(super) type Place = (Reverse<Timestamp>, StreamPath);

pub(super) type InOrder = RedBlackTreeMapSync<Place, Arc<Stream>>;

/// Where a stream is in the list.
pub(super) fn place(stream: &Stream) -> Place {
    (Reverse(stream.admitted_at), stream.path.clone())
}

/// Streams by something that several have in common.
#[derive(Debug, Clone)]
pub(super) struct Index<K: Eq + Hash>(HashTrieMapSync<K, InOrder>);

impl<K: Eq + Hash> Default for Index<K> {
    fn default() -> Self {
        Self(HashTrieMapSync::new_sync())
    }
}

impl<K: Eq + Hash + Clone> Index<K> {
    /// Those that have this in common.
    pub(super) fn of(&self, key: &K) -> Option<&InOrder> {
        self.0.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// A stream that was there at its place is there no more.
    pub(super) fn put(&mut self, key: &K, stream: &Arc<Stream>) {
        if let Some(streams) = self.0.get_mut(key) {
            streams.insert_mut(place(stream), Arc::clone(stream));
        } else {
            self.0.insert_mut(key.clone(), InOrder::new_sync().insert(place(stream), Arc::clone(stream)));
        }
    }

    pub(super) fn remove(&mut self, key: &K, stream: &Stream) {
        let Some(streams) = self.0.get_mut(key) else { return };
        streams.remove_mut(&place(stream));
        if streams.is_empty() {
            self.0.remove_mut(key);
        }
    }
}
