//! Streams as a list shows them, ready-made: while streams come and go, a page is put together from items that are there already, and
//! only those are made that changed. Whoever asks next waits for the page, so what it takes is what a change costs everybody.
//!
//! Invariants:
//! - An item is given for what it was made of only: the very stream, in the setting that all kept items have.
//! - About [`KEPT_BYTES_MAX`] are kept at most. What ended is forgotten with the setting, which lasts a second or two.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use super::streams_dto::StreamSummary;
use crate::{
    domain::{Stream, StreamId},
    nodes::Fleet,
    streams::View,
};

/// How large the kept items may be together. One of a plain stream has half a kilobyte.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What an item is made of besides its stream.
#[derive(Debug, Clone)]
pub struct Setting {
    progress_version: u64,
    is_stale: bool,
    fleet: Arc<Fleet>,
}

impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        (self.progress_version, self.is_stale) == (other.progress_version, other.is_stale)
            && Arc::ptr_eq(&self.fleet, &other.fleet)
    }
}

impl Setting {
    /// That of a view.
    pub fn of(view: &View, fleet: &Arc<Fleet>) -> Self {
        Self {
            progress_version: view.snapshot.progress_version,
            is_stale: view.stale.is_some(),
            fleet: Arc::clone(fleet),
        }
    }

    #[cfg(test)]
    pub fn empty() -> Self {
        Self { progress_version: 1, is_stale: false, fleet: Arc::default() }
    }
}

/// A stream of a list, as it is sent.
#[derive(Debug, Clone)]
pub struct ListItem(Arc<Made>);

#[derive(Debug)]
struct Made {
    json: Box<RawValue>,
    digest: [u8; 32],
}

impl ListItem {
    /// Makes it.
    pub fn new(summary: &StreamSummary) -> Self {
        let json = to_raw_value(summary).expect("a stream has no map keys other than texts");
        let digest = Sha256::digest(json.get()).into();
        Self(Arc::new(Made { json, digest }))
    }

    /// The SHA-256 of what is sent.
    pub fn digest(&self) -> &[u8; 32] {
        &self.0.digest
    }

    fn bytes(&self) -> usize {
        self.0.json.get().len()
    }
}

impl Serialize for ListItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.json.serialize(serializer)
    }
}

/// The items that were made in one setting.
#[derive(Default)]
pub struct ListItems(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    items: HashMap<StreamId, (Arc<Stream>, ListItem)>,
    bytes: usize,
}

impl ListItems {
    /// The item of a stream, made by `show` if that was not done yet. Two who ask at once may both make it.
    pub fn get(&self, stream: &Arc<Stream>, show: impl FnOnce() -> StreamSummary) -> ListItem {
        let ready = |kept: &Kept| {
            let (of, item) = kept.items.get(&stream.id)?;
            Arc::ptr_eq(of, stream).then(|| item.clone())
        };
        if let Some(item) = ready(&self.kept()) {
            return item;
        }
        let item = ListItem::new(&show());
        self.keep(stream, &item);
        item
    }

    fn keep(&self, stream: &Arc<Stream>, item: &ListItem) {
        let mut kept = self.kept();
        if kept.bytes + item.bytes() > KEPT_BYTES_MAX {
            *kept = Kept::default();
        }
        kept.bytes += item.bytes();
        if let Some((_, old)) = kept.items.insert(stream.id, (Arc::clone(stream), item.clone())) {
            kept.bytes -= old.bytes();
        }
    }

    /// Nothing panics while it holds them.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Timestamp, http::streams_dto::Seen};

    fn stream(path: &str, title: &str) -> Arc<Stream> {
        let mut stream = Stream::admitted(path, Timestamp::from_ms(1));
        stream.info.title = Some(title.to_owned());
        Arc::new(stream)
    }

    /// Whether the item of a stream had to be made, and its text.
    fn item(items: &ListItems, stream: &Arc<Stream>) -> (bool, String) {
        let mut was_made = false;
        let item = items.get(stream, || {
            was_made = true;
            StreamSummary::new(&Seen { stream, progress: None, stale: false }, &Fleet::default())
        });
        (was_made, serde_json::to_string(&item).unwrap())
    }

    #[test]
    fn an_item_is_made_once_for_each_stream_and_again_when_that_changed() {
        let (items, ada, eve) = (ListItems::default(), stream("live/ada", "Ada"), stream("live/eve", "Eve"));
        let (made, text) = item(&items, &ada);
        let whole = StreamSummary::new(&Seen { stream: &ada, progress: None, stale: false }, &Fleet::default());
        assert_eq!((made, &text), (true, &serde_json::to_string(&whole).unwrap()));
        assert!(item(&items, &eve).0);
        assert_eq!(item(&items, &ada), (false, text));
        let mut renamed = Stream::clone(&ada);
        renamed.info.title = Some("Ada live".to_owned());
        let (made, text) = item(&items, &Arc::new(renamed));
        assert!(made && text.contains("Ada live"));
        assert!(!item(&items, &eve).0);
        assert!(item(&items, &ada).0, "what it was before is another one");
    }

    #[test]
    fn items_that_grow_too_large_together_are_forgotten() {
        let (items, large) = (ListItems::default(), "x".repeat(KEPT_BYTES_MAX / 3));
        let streams = ["live/a", "live/b", "live/c"].map(|path| stream(path, &large));
        let [first, second, third] = streams.each_ref();
        assert!(item(&items, first).0 && item(&items, second).0);
        assert!(!item(&items, first).0 && !item(&items, second).0);
        assert!(item(&items, third).0);
        assert_eq!(items.kept().items.len(), 1);
        for _ in 0..3 {
            let again = Arc::new(Stream::clone(third));
            assert!(item(&items, &again).0);
        }
        let kept = items.kept();
        assert_eq!(kept.bytes, kept.items.values().map(|(_, item)| item.bytes()).sum::<usize>());
    }
}
