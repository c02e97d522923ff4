//! What the poller saw of a node: kept in Redis, so that every replica can tell.

use serde::{Deserialize, Serialize};

use super::client::{NodeError, NodeFault};
use crate::domain::{Timestamp, words};

/// What is known of a node now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Whether the last poll got an answer.
    pub reachable: bool,
    /// When it last answered.
    pub seen_at: Option<Timestamp>,
    /// When it was last asked.
    pub polled_at: Option<Timestamp>,
    /// Since when it has not answered.
    pub unreachable_since: Option<Timestamp>,
    /// Since when it has been asked without a longer break.
    pub asked_since: Option<Timestamp>,
    /// Why it gave no answer.
    pub fault: Option<NodeFault>,
    /// The same in a sentence.
    pub fault_detail: String,
    /// Such as `v1.20.1`.
    pub version: String,
    /// When its process started, as it says: changes with every restart.
    pub started: String,
    /// What is wrong with its wiring, in words that say what to change.
    pub problems: Vec<WiringProblem>,
}

words! {
    /// How bad a wiring problem is.
    pub enum Severity {
        /// Something does not work or is not safe.
        Problem = "problem",
        /// It works; it could be better.
        Hint = "hint",
    }
}

/// Something in a node's configuration that should be otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WiringProblem {
    /// A stable word for it.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What to change, and why. Holds no secret.
    pub detail: String,
}

impl NodeStatus {
    /// The node answered.
    pub(super) fn answered(&mut self, now: Timestamp) {
        self.reachable = true;
        self.seen_at = Some(now);
        self.polled_at = Some(now);
        self.unreachable_since = None;
        self.fault = None;
        self.fault_detail.clear();
    }

    /// The node gave no usable answer.
    pub(super) fn failed(&mut self, now: Timestamp, error: &NodeError) {
        self.reachable = false;
        self.polled_at = Some(now);
        self.unreachable_since.get_or_insert(self.seen_at.unwrap_or(now));
        self.fault = Some(error.fault);
        self.fault_detail.clone_from(&error.detail);
    }

    /// It is asked from now on, and was not before, or not for longer than `break_ms_max`.
    pub(super) fn note_asked(&mut self, now: Timestamp, break_ms_max: u64) {
        if self.polled_at.is_none_or(|polled_at| now.ms_since(polled_at) > break_ms_max) {
            self.asked_since = Some(now);
        }
    }

    /// Since when it has been out of reach, as far as it was asked.
    pub(super) fn unheard_since(&self) -> Option<Timestamp> {
        self.unreachable_since.map(|since| self.asked_since.map_or(since, |asked| asked.max(since)))
    }

    /// For how long that has been.
    pub(super) fn silence_ms(&self, now: Timestamp) -> u64 {
        self.unheard_since().map_or(0, |since| now.ms_since(since))
    }
}
