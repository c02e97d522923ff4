//! Who changes something, for the audit log.

use std::fmt;

use super::words::words;

words! {
    /// What was done.
    pub enum AuditAction {
        /// A broadcaster was made.
        BroadcasterCreated = "broadcaster_created",
        /// A broadcaster's name, contact or metadata changed.
        BroadcasterChanged = "broadcaster_changed",
        /// A stream key was made.
        KeyCreated = "key_created",
        /// A stream key's settings changed.
        KeyChanged = "key_changed",
        /// A stream key was disabled.
        KeyDisabled = "key_disabled",
        /// A stream key was enabled again.
        KeyEnabled = "key_enabled",
        /// A stream key was revoked.
        KeyRevoked = "key_revoked",
        /// A node was added.
        NodeAdded = "node_added",
        /// A node's addresses changed.
        NodeChanged = "node_changed",
        /// A node was removed.
        NodeRemoved = "node_removed",
        /// A node's configuration was shown, and its password in it.
        NodeConfigurationShown = "node_configuration_shown",
        /// A stream was taken off air.
        StreamStopped = "stream_stopped",
        /// What viewers are told about a stream changed, or where its recording is.
        StreamChanged = "stream_changed",
    }
}

/// Who acts. It can name no secret: an API secret is told by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The holder of the API secret with this number, from 1, in the order of the configuration.
    ApiSecret(u32),
    /// Somebody at the command line of this machine.
    CommandLine,
    /// The configuration file, as a replica read it at its start.
    Configuration,
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiSecret(number) => write!(formatter, "api-{number}"),
            Self::CommandLine => formatter.write_str("cli"),
            Self::Configuration => formatter.write_str("config"),
        }
    }
}

/// Who asks for a change, and in which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedBy {
    /// Who.
    pub actor: Actor,
    /// The id of the request, where there is one.
    pub request_id: Option<String>,
}

/// The names of the fields that differ, as the audit log has them.
#[must_use]
pub fn names_of_changed<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}
