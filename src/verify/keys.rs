//! Stream keys: Postgres's word against what Redis holds.

use std::collections::{HashMap, HashSet};

use super::{Difference, Findings, Verify};
use crate::{
    domain::{KeyId, KeyStatus},
    rebuild::PAGE,
    redis::{FoundKey, KeyInPlace, KeyProjection},
    store_error::StoreError,
};

impl Verify {
    pub(super) async fn compare_keys(&self, findings: &mut Findings) -> Result<(), StoreError> {
        let mut known = HashSet::new();
        let mut after = None;
        loop {
            let keys = self.postgres.stream_keys_changed(None, after, PAGE).await?;
            let projections: Vec<_> =
                keys.iter().map(|key| KeyProjection::new(&key.key, &key.broadcaster_name)).collect();
            let in_place = self.redis.keys_in_place(&projections).await?;
            for (key, in_place) in keys.iter().map(|key| &key.key).zip(in_place) {
                known.insert(key.id);
                // Nobody publishes with a revoked key, so it need not be there.
                let is_fine = in_place == KeyInPlace::Same
                    || (in_place == KeyInPlace::Absent && key.stored_status == KeyStatus::Revoked);
                if !is_fine {
                    findings.differences.push(Difference::Key(key.id, key.path.clone(), in_place));
                }
            }
            after = keys.last().map(|last| last.key.id);
            if keys.len() < usize::from(PAGE) {
                break;
            }
        }
        findings.compared.stream_keys = known.len() as u64;
        self.find_unknown_keys(&known, findings).await
    }

    async fn find_unknown_keys(&self, known: &HashSet<KeyId>, findings: &mut Findings) -> Result<(), StoreError> {
        let mut strangers: HashMap<Option<KeyId>, FoundKey> = HashMap::new();
        for found in self.redis.stream_keys().await? {
            if found.id.is_none_or(|id| !known.contains(&id)) {
                strangers.insert(found.id, found);
            }
        }
        // Those that were made since the pages were read are no strangers.
        let ids: Vec<KeyId> = strangers.keys().flatten().copied().collect();
        for some in ids.chunks(usize::from(PAGE)) {
            for made in self.postgres.stream_keys_by_id(some).await? {
                strangers.remove(&Some(made.key.id));
            }
        }
        findings.differences.extend(strangers.into_values().map(Difference::KeyUnknown));
        Ok(())
    }
}
