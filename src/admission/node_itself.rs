//! Readers, the node itself, and callers of its API.

use super::{Admission, Allowance, AuthRequest, Credentials, Deadline, Decision, Refusal, RefusalCode};
use crate::{
    domain::{NodeName, Playback, StreamPath, Timestamp},
    redis::RedisError,
};

impl Admission {
    /// Readers are admitted for paths that are on air, unless the path's key says that it is private, and for those that the
    /// configuration opens. The node itself, by its own password, reads everything: that is how it transcodes, records and takes
    /// snapshots.
    pub(super) async fn decide_read(
        &self,
        deadline: &mut Deadline,
        node: &NodeName,
        request: &AuthRequest,
    ) -> Decision {
        if self.is_the_node_itself(node, request) {
            return Decision::allowed(Allowance::ReaderAdmitted);
        }
        let path = match request.path.parse::<StreamPath>() {
            Ok(path) if self.inner.open_paths.contains(&path) => return Decision::allowed(Allowance::ReaderAdmitted),
            Ok(path) => self.inner.renditions.parent_of(&path).unwrap_or(path),
            Err(_) => return Decision::refused(not_on_air()),
        };
        match self.in_time(deadline, &path, self.playback_of(&path)).await {
            Ok(Some(Playback::Public)) => Decision::allowed(Allowance::ReaderAdmitted),
            Ok(Some(Playback::Private)) => Decision::refused(private(request)),
            Ok(None) => Decision::refused(not_on_air()),
            Err(error) => Decision::refused(Refusal::state_unavailable(&error)),
        }
    }

    async fn playback_of(&self, path: &StreamPath) -> Result<Option<Playback>, RedisError> {
        let _turn = self.inner.redis.turn(path).await?;
        self.inner.redis.playback_of(path).await
    }

    /// A rendition is published by the node itself, by its own password, while its stream is on air there. It takes no slot:
    /// it ends with its stream, and the poller kicks it if it does not.
    pub(super) async fn decide_rendition(
        &self,
        deadline: &mut Deadline,
        node: &NodeName,
        parent: &StreamPath,
        request: &AuthRequest,
    ) -> Decision {
        if !self.is_the_node_itself(node, request) {
            if Credentials::of(request) == Credentials::Missing {
                return Decision::refused(Refusal::new(
                    RefusalCode::CredentialsMissing,
                    "a rendition is published with the node's own name and password",
                ));
            }
            return Decision::refused(Refusal::new(
                RefusalCode::RenditionReserved,
                "this path is kept for a rendition of another stream: only its node publishes there, with its own name and password",
            ));
        }
        match self.in_time(deadline, parent, self.inner.redis.stream_on(parent)).await {
            Ok(Some(stream)) if stream.node == *node => Decision::allowed(Allowance::RenditionAdmitted),
            Ok(_) => Decision::refused(Refusal::new(
                RefusalCode::ParentNotOnAir,
                "the stream that this is a rendition of is not on air on this node",
            )),
            Err(error) => Decision::refused(Refusal::state_unavailable(&error)),
        }
    }

    /// The callers of a node's API, metrics and profiler are ourselves, with a short-lived token, or an operator's tools
    /// with the node's own password. Checked here without any I/O, because a node asks for every such call.
    pub(super) fn decide_control(&self, node: &NodeName, request: &AuthRequest) -> Decision {
        let now = Timestamp::now();
        let token_is_ours = [&request.token, &request.password]
            .into_iter()
            .any(|token| self.inner.credentials.verify_control_token(token, node, now));
        if token_is_ours || self.is_the_node_itself(node, request) {
            return Decision::allowed(Allowance::ControlAdmitted);
        }
        Decision::refused(Refusal::new(
            RefusalCode::ControlUnauthorized,
            "only Onair, or the node's own name and password, may use this node's API, metrics and profiler",
        ))
    }

    fn is_the_node_itself(&self, node: &NodeName, request: &AuthRequest) -> bool {
        request.user == node.as_str()
            && self.inner.credentials.verify_password(&request.user, &request.password).as_ref() == Some(node)
    }
}

fn not_on_air() -> Refusal {
    Refusal::new(RefusalCode::PathNotOnAir, "nothing is on air on this path")
}

/// A client that gave nothing is asked for credentials, as its protocol expects; one that gave some is told.
fn private(request: &AuthRequest) -> Refusal {
    if Credentials::of(request) == Credentials::Missing {
        return Refusal::new(RefusalCode::CredentialsMissing, "this stream is private");
    }
    Refusal::new(RefusalCode::PlaybackPrivate, "this stream is private: its stream key says so")
}
