//! Who goes live.

use serde::{Deserialize, Serialize};

use super::{BroadcasterId, Label, Metadata, Timestamp};

/// A person or organisation that goes live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Broadcaster {
    /// Its id.
    pub id: BroadcasterId,
    /// What viewers see.
    pub display_name: Label,
    /// How the operators reach them; shown to administrators only.
    pub contact: Option<String>,
    /// Free data.
    pub metadata: Metadata,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}
