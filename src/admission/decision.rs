//! What admission answers, and in which words.

use crate::{
    domain::{Epoch, KeyId, StreamId, StreamPath, words},
    redis::{Admission, RedisError},
};

words! {
    /// How a call was allowed: in the log and the metrics.
    pub enum Allowance {
        /// The publisher has the path.
        Admitted = "admitted",
        /// The same publisher asked again.
        AdmittedAgain = "admitted_again",
        /// The key would admit; nothing was claimed.
        Checked = "checked",
        /// The node publishes a rendition of a stream that it has on air.
        RenditionAdmitted = "rendition_admitted",
        /// A reader may watch.
        ReaderAdmitted = "reader_admitted",
        /// The caller of the node's own API is Onair, or holds the node's password.
        ControlAdmitted = "control_admitted",
    }
}

words! {
    /// Why a call was refused: the stable code in the answer, the log and the metrics.
    pub enum RefusalCode {
        /// No key anywhere in the call.
        CredentialsMissing = "credentials_missing",
        /// Two different keys in one call.
        CredentialsConflict = "credentials_conflict",
        /// Not of the form of a key, or mistyped.
        KeyMalformed = "key_malformed",
        /// Written in the path, where everybody sees it.
        KeyInPath = "key_in_path",
        /// No such key.
        KeyUnknown = "key_unknown",
        /// The key is dead.
        KeyRevoked = "key_revoked",
        /// The key is switched off.
        KeyDisabled = "key_disabled",
        /// The key's time is over.
        KeyExpired = "key_expired",
        /// The key is for another path.
        PathMismatch = "path_mismatch",
        /// No path that could be on air.
        PathMalformed = "path_malformed",
        /// A rendition's path, which only the node itself publishes to.
        RenditionReserved = "rendition_reserved",
        /// A rendition of a stream that is not on air on this node.
        ParentNotOnAir = "parent_not_on_air",
        /// Nothing to watch there.
        PathNotOnAir = "path_not_on_air",
        /// Not for the public.
        PlaybackPrivate = "playback_private",
        /// Another publisher holds the path.
        KeyInUse = "key_in_use",
        /// The path was stopped a moment ago.
        CoolingDown = "cooling_down",
        /// Too many failures from this address.
        TooManyFailures = "too_many_failures",
        /// The node's own API was called by neither Onair nor the node.
        ControlUnauthorized = "control_unauthorized",
        /// An action that this version does not know.
        ActionUnknown = "action_unknown",
        /// What is true now cannot be known: nobody is let in.
        StateUnavailable = "state_unavailable",
        /// What happens on air could not be kept.
        HistoryBacklogFull = "history_backlog_full",
    }
}

impl RefusalCode {
    /// Whether it tells of a wrong key rather than of a busy or closed path.
    pub(super) fn is_about_the_key(self) -> bool {
        matches!(
            self,
            Self::KeyMalformed
                | Self::KeyUnknown
                | Self::KeyRevoked
                | Self::KeyDisabled
                | Self::KeyExpired
                | Self::PathMismatch
        )
    }
}

/// A refusal. `detail` ends up in `MediaMTX`'s log, where the operator reads it: it says what to do next, and holds no
/// secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// What to do.
    pub detail: String,
    /// When trying again may help, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    pub(super) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after_s: None }
    }

    pub(super) fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_s = Some(ms.div_ceil(1_000).max(1));
        self
    }

    pub(super) fn backlog_full() -> Self {
        let detail = "refused, because the record of it could not be kept: the database has been away for too long; the \
                      operators have to bring it back";
        Self::new(RefusalCode::HistoryBacklogFull, detail).retry_after_ms(5_000)
    }

    pub(super) fn state_unavailable(error: &RedisError) -> Self {
        Self::new(RefusalCode::StateUnavailable, format!("refused to be safe: {error}; try again in a moment"))
            .retry_after_ms(1_000)
    }

    /// How the node is told that `admit` did not admit.
    pub(super) fn of(admission: &Admission) -> Self {
        match admission {
            Admission::KeyAbsent => Self::new(
                RefusalCode::KeyUnknown,
                "no such stream key: it was never made here; create one and put it into the encoder",
            ),
            Admission::PathMismatch => Self::new(
                RefusalCode::PathMismatch,
                "this stream key is for another path: publish to the path that was given with it",
            ),
            Admission::KeyRevoked => {
                Self::new(RefusalCode::KeyRevoked, "this stream key was revoked and stays dead: ask for a new one")
            }
            Admission::KeyDisabled => Self::new(
                RefusalCode::KeyDisabled,
                "this stream key is switched off: an administrator can enable it again",
            ),
            Admission::KeyExpired { since } => Self::new(
                RefusalCode::KeyExpired,
                format!("this stream key expired at {since}: an administrator can give it a later expiry"),
            ),
            Admission::CoolingDown { until, remaining_ms } => Self::new(
                RefusalCode::CoolingDown,
                format!("the stream was stopped by an administrator: the path is closed until {until}"),
            )
            .retry_after_ms(*remaining_ms),
            Admission::KeyInUse { since } => Self::new(
                RefusalCode::KeyInUse,
                format!(
                    "another publisher is on this path since {since}: stop that encoder first, or try again when it is gone"
                ),
            )
            .retry_after_ms(2_000),
            // These three admit; they are listed so that a new word of `admit` is noticed here by the compiler.
            Admission::Admitted { .. } | Admission::AdmittedAgain { .. } | Admission::Checked => {
                Self::state_unavailable(&RedisError::Protocol("an admission was taken for a refusal".to_owned()))
            }
        }
    }
}

/// What was decided about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The source has the path.
    Publishing {
        /// Its stream.
        stream_id: StreamId,
        /// Its epoch.
        epoch: Epoch,
        /// Whether it is new, or was admitted before.
        allowance: Allowance,
    },
    /// Allowed; nothing was claimed.
    Allowed(Allowance),
    /// Refused.
    Refused(Refusal),
}

/// The answer to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The key that was presented, where it is known.
    pub key_id: Option<KeyId>,
    /// The key's own path, where it is another than the one that was asked for.
    pub key_path: Option<StreamPath>,
    /// What was decided.
    pub outcome: Outcome,
}

impl Decision {
    pub(super) fn allowed(allowance: Allowance) -> Self {
        Self { key_id: None, key_path: None, outcome: Outcome::Allowed(allowance) }
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self { key_id: None, key_path: None, outcome: Outcome::Refused(refusal) }
    }

    /// Its word: how it was allowed, or why it was refused.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match &self.outcome {
            Outcome::Publishing { allowance, .. } | Outcome::Allowed(allowance) => allowance.as_str(),
            Outcome::Refused(refusal) => refusal.code.as_str(),
        }
    }
}
