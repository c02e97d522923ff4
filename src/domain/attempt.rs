//! Refused publishers, for those who ask why: most encoders cannot show a reason.

use serde::{Deserialize, Serialize};

use super::{KeyId, NodeName, StreamPath, Timestamp};

/// A publisher that was refused. It holds nothing that was sent as credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// Why: the stable word of the refusal.
    pub code: String,
    /// Where it wanted to publish.
    pub path: StreamPath,
    /// The node that asked.
    pub node: NodeName,
    /// The key that was presented, where it is known.
    pub key_id: Option<KeyId>,
    /// How it wanted to publish.
    pub protocol: String,
    /// Its IP address as the node saw it.
    pub address: String,
    /// What the encoder calls itself.
    pub user_agent: String,
}
