//! The body of `MediaMTX`'s auth call.

use serde::{Deserialize, Deserializer};

use crate::domain::{SourceId, words};

words! {
    /// What the caller of a node wants to do.
    pub enum Action {
        /// Send a stream to a path.
        Publish = "publish",
        /// Watch a path.
        Read = "read",
        /// Watch a recording.
        Playback = "playback",
        /// Use the node's control API.
        Api = "api",
        /// Read the node's metrics.
        Metrics = "metrics",
        /// Profile the node.
        Pprof = "pprof",
        /// Something that `MediaMTX` learned after this was written.
        Unknown = "unknown",
    }
}

impl Action {
    /// Whether a client wants it who publishes or watches, and not somebody who runs the node.
    #[must_use]
    pub fn is_of_client(self) -> bool {
        matches!(self, Self::Publish | Self::Read | Self::Playback)
    }
}

/// What a node asks. Fields that `MediaMTX` adds later are ignored, and those that an older one does not send are empty.
///
/// It holds secrets, so it has no `Debug`.
#[derive(Default, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct AuthRequest {
    /// The client's IP address as the node saw it.
    #[serde(deserialize_with = "null_is_default")]
    pub ip: String,
    /// User name, as the client claims it. Anybody may claim any.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Password.
    #[serde(deserialize_with = "null_is_default")]
    pub password: String,
    /// Bearer token; otherwise a copy of the password or of a query parameter.
    #[serde(deserialize_with = "null_is_default")]
    pub token: String,
    /// `publish`, `read`, `playback`, `api`, `metrics` or `pprof`.
    #[serde(deserialize_with = "null_is_default")]
    pub action: String,
    /// The path; empty for `api`, `metrics` and `pprof`.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    /// How the client speaks; empty outside publish and read.
    #[serde(deserialize_with = "null_is_default")]
    pub protocol: String,
    /// The id that the source will have. `null` for a preflight or a page: no media follows from such a call.
    pub id: Option<SourceId>,
    /// The query string of the client's URL.
    #[serde(deserialize_with = "null_is_default")]
    pub query: String,
    /// What the client calls itself.
    #[serde(rename = "userAgent", deserialize_with = "null_is_default")]
    pub user_agent: String,
}

fn null_is_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl AuthRequest {
    /// What the client wants to do.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action.parse().unwrap_or(Action::Unknown)
    }

    /// Whether a call that presents no key may be the first of an RTSP client, which shows its credentials when it is asked for
    /// them. One that gives a name is none: its key is missing, or hidden by digest, of which `MediaMTX` passes on the name alone.
    #[must_use]
    pub fn may_be_first_of_rtsp(&self) -> bool {
        self.protocol == "rtsp" && self.user.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mediamtx_may_grow_and_may_be_old() {
        let grown = r#"{"action":"publish","path":"a","id":null,"somethingNew":{"x":1},"user":null}"#;
        let request: AuthRequest = serde_json::from_str(grown).unwrap();
        assert_eq!(request.action(), Action::Publish);
        assert_eq!((request.id, request.user.as_str()), (None, ""));
        assert_eq!(serde_json::from_str::<AuthRequest>("{}").unwrap().action(), Action::Unknown);
    }

    #[test]
    fn an_rtsp_call_with_a_name_is_not_a_clients_first() {
        let call = |protocol: &str, user: &str| AuthRequest {
            protocol: protocol.to_owned(),
            user: user.to_owned(),
            ..AuthRequest::default()
        };
        assert!(call("rtsp", "").may_be_first_of_rtsp());
        assert!(!call("rtsp", "ada").may_be_first_of_rtsp());
        assert!(!call("rtmp", "").may_be_first_of_rtsp());
    }
}
