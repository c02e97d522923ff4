//! Handles of what every call records, kept so that recording does not search for them.
//!
//! Finding a metric by its name and labels takes the recorder some allocations, more than what is recorded costs. Only
//! counters and histograms are kept: a gauge that nobody set for a minute is forgotten, and its handle then leads nowhere.

use std::sync::{PoisonError, RwLock};

/// Handles, each with what its labels are made of. There are few, as labels have few values, and those in use come first.
pub(super) struct Kept<L, H>(RwLock<Vec<(L, H)>>);

impl<L, H> Kept<L, H> {
    pub(super) const fn new() -> Self {
        Self(RwLock::new(Vec::new()))
    }

    /// Records with the handle whose labels are meant, which is found once. Before anything is installed that records, a handle
    /// would record nothing for ever: then nothing is kept.
    pub(super) fn record(&self, is_meant: impl Fn(&L) -> bool, find: impl FnOnce() -> (L, H), record: impl Fn(&H)) {
        if !super::is_installed() {
            return;
        }
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, handle)) = kept.iter().find(|(labels, _)| is_meant(labels)) {
            record(handle);
            return;
        }
        drop(kept);
        let found = find();
        record(&found.1);
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have found it meanwhile: both are handles of the same metric.
        if !kept.iter().any(|(labels, _)| is_meant(labels)) {
            kept.push(found);
        }
    }
}
