//! Who was admitted a moment ago, as this replica remembers it: what a Redis that loses its memory may have told nobody else.
//!
//! Invariant: no secret. A key is known by its id.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::{
    domain::{Epoch, KeyId, NodeName, Source, StreamId, StreamPath, Timestamp},
    redis::{Admission, AdmitAnswer, AdmitRequest},
};

/// For how long an admission is remembered. The history has it long before that, unless Postgres is away; then the live view
/// has it, which is never older than a second.
const AGE_MAX_MS: u64 = 10_000;
/// How many are remembered at most.
const COUNT_MAX: usize = 20_000;

/// A publisher that was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentAdmission {
    /// The stream that began.
    pub stream_id: StreamId,
    /// Its epoch.
    pub epoch: Epoch,
    /// By which key.
    pub key_id: KeyId,
    /// On which path.
    pub path: StreamPath,
    /// On which node.
    pub node: NodeName,
    /// The publisher.
    pub source: Source,
    /// When, by the clock of this replica.
    pub at: Timestamp,
}

#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<RecentAdmission>>);

impl Recent {
    pub(super) fn note(&self, request: &AdmitRequest<'_>, answer: &AdmitAnswer) {
        let (Admission::Admitted { stream_id, epoch, .. }, Some(key_id), Some(source_id)) =
            (&answer.admission, answer.key_id, request.source_id)
        else {
            return;
        };
        let at = Timestamp::now();
        let admission = RecentAdmission {
            stream_id: *stream_id,
            epoch: *epoch,
            key_id,
            path: request.path.clone(),
            node: request.node.clone(),
            source: Source {
                id: source_id,
                source_type: None,
                protocol: request.protocol,
                address: request.address.to_owned(),
                user_agent: request.user_agent.to_owned(),
            },
            at,
        };
        let mut admissions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |oldest: &RecentAdmission| at.ms_since(oldest.at) > AGE_MAX_MS;
        while admissions.len() >= COUNT_MAX || admissions.front().is_some_and(is_old) {
            admissions.pop_front();
        }
        admissions.push_back(admission);
    }

    pub(super) fn all(&self) -> Vec<RecentAdmission> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
