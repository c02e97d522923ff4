//! Stream keys: what Postgres says of all of them, held against what Redis has.

use std::collections::HashSet;

use futures_util::future::try_join_all;

use super::Rebuild;
use crate::{
    domain::{KeyId, KeyStatus, Partition, StreamPath, Timestamp},
    postgres::KeyWithOwner,
    redis::{Generations, KeyInPlace, KeyProjection},
    store_error::StoreError,
};

/// How many keys are looked at together.
pub(crate) const PAGE: u16 = 500;
/// How many of them are written at once.
const AT_ONCE: usize = 32;

/// What became of keys that were looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeysReport {
    /// How many were looked at.
    pub checked: u64,
    /// Redis lacked them, or had them from before their last change.
    pub written: u64,
    /// Redis had them with values that nobody had given them.
    pub written_again: u64,
    /// Redis knows a later change of them, which Postgres has lost. It stays in effect.
    pub newer: Vec<(KeyId, StreamPath)>,
    /// Redis knows that they were revoked, which Postgres has lost. They stay revoked.
    pub revoked: Vec<(KeyId, StreamPath)>,
}

/// Which keys are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope<'a> {
    /// Only those of these partitions that Redis has, and has wrong: whoever comes with another is looked up.
    InPlace(&'a [Partition]),
    /// Also those that Redis lacks, unless nobody can publish with them.
    All,
}

impl KeysReport {
    /// Says in the log what was done, and what somebody should look at.
    pub(super) fn tell(&self) {
        tracing::info!(
            checked = self.checked,
            written = self.written,
            again = self.written_again,
            "all stream keys are in Redis"
        );
        for (id, path) in &self.newer {
            tracing::warn!(key_id = %id, %path, "Redis knows a later change of a stream key than Postgres, which was restored: \
                it stays in effect until the key is changed again");
        }
        for (id, path) in &self.revoked {
            tracing::warn!(key_id = %id, %path, "Redis knows that a stream key was revoked and Postgres, which was restored, \
                does not: it stays revoked; revoke it again");
        }
    }
}

impl Rebuild {
    /// Replaces keys of closed partitions that are older than Postgres says: among those that changed since an instant, or,
    /// where nothing is certain, among those that Redis holds. After a loss these are few, however many there are in Postgres.
    /// Those that are `in_place` came back with their stream.
    pub(super) async fn replace_older_keys(
        &self,
        partitions: &[Partition],
        since: Option<Timestamp>,
        in_place: &HashSet<KeyId>,
    ) -> Result<(), StoreError> {
        match since {
            Some(since) => self.replace_changed_keys(partitions, since).await,
            None => self.replace_held_keys(partitions, in_place).await,
        }
    }

    async fn replace_held_keys(&self, partitions: &[Partition], in_place: &HashSet<KeyId>) -> Result<(), StoreError> {
        let found = self.redis.stream_keys_in(partitions.iter().copied()).await?;
        let mut held: Vec<KeyId> = found.into_iter().filter_map(|found| found.id).collect();
        held.retain(|id| !in_place.contains(id));
        let mut report = KeysReport::default();
        for some in held.chunks(usize::from(PAGE)) {
            let memory = self.redis.generations().await?;
            let keys = self.postgres.stream_keys_by_id(some).await?;
            self.project_some(&keys, Scope::InPlace(partitions), &memory, &mut report).await?;
        }
        Ok(())
    }

    async fn replace_changed_keys(&self, partitions: &[Partition], since: Timestamp) -> Result<(), StoreError> {
        let (mut after, mut report) = (None, KeysReport::default());
        loop {
            let memory = self.redis.generations().await?;
            let keys = self.postgres.stream_keys_changed(Some(since), after, PAGE).await?;
            after = keys.last().map(|last| last.key.id);
            let is_last = keys.len() < usize::from(PAGE);
            self.project_some(&keys, Scope::InPlace(partitions), &memory, &mut report).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Projects the keys behind `after`, a page of them. Gives where the next page begins; `None` after the last.
    pub(super) async fn project_page(
        &self,
        after: Option<KeyId>,
        report: &mut KeysReport,
    ) -> Result<Option<KeyId>, StoreError> {
        let memory = self.redis.generations().await?;
        let keys = self.postgres.stream_keys_changed(None, after, PAGE).await?;
        self.project_some(&keys, Scope::All, &memory, report).await?;
        Ok(keys.last().filter(|_| keys.len() == usize::from(PAGE)).map(|last| last.key.id))
    }

    async fn project_some(
        &self,
        keys: &[KeyWithOwner],
        scope: Scope<'_>,
        memory: &Generations,
        report: &mut KeysReport,
    ) -> Result<(), StoreError> {
        let keys: Vec<&KeyWithOwner> = match scope {
            Scope::InPlace(partitions) => {
                keys.iter().filter(|key| partitions.contains(&key.key.path.partition())).collect()
            }
            Scope::All => keys.iter().collect(),
        };
        let projections: Vec<_> = keys.iter().map(|key| KeyProjection::new(&key.key, &key.broadcaster_name)).collect();
        let in_place = self.redis.keys_in_place(&projections).await?;
        report.checked += keys.len() as u64;
        let mut to_write = Vec::new();
        for (key, in_place) in keys.into_iter().zip(in_place) {
            match in_place {
                KeyInPlace::Absent if scope != Scope::All || key.key.stored_status == KeyStatus::Revoked => {}
                KeyInPlace::Absent | KeyInPlace::Older => to_write.push((key, false)),
                KeyInPlace::Different(_) => to_write.push((key, true)),
                KeyInPlace::Same => {}
                KeyInPlace::Newer(_) => report.newer.push((key.key.id, key.key.path.clone())),
                KeyInPlace::Revoked => report.revoked.push((key.key.id, key.key.path.clone())),
            }
        }
        for some in to_write.chunks(AT_ONCE) {
            try_join_all(some.iter().map(|(key, _)| self.stream_keys.project(key, memory))).await?;
            let again = some.iter().filter(|(_, is_again)| *is_again).count() as u64;
            report.written += some.len() as u64 - again;
            report.written_again += again;
        }
        Ok(())
    }
}
