//! Whether the publisher that a call took off air is gone already.

use std::time::Duration;

use crate::{
    app::App,
    domain::{Stream, StreamPath, words},
    nodes::KickOutcome,
};

/// How long an answer waits for the publisher to be gone. A kick takes a few milliseconds where the node is well; where it
/// is not, the kick goes on after the answer.
const KICK_WAIT: Duration = Duration::from_millis(1_500);

words! {
    /// What became of the publisher.
    pub enum PublisherWord {
        /// Nobody was on air.
        None = "none",
        /// Its node no longer has it.
        Gone = "gone",
        /// Its node still has it, or cannot be asked. It is kicked until it is gone.
        Leaving = "leaving",
    }
}

/// Kicks the source of a stream that has just ended, and tells whether it is gone. Where nothing ended now, the publisher
/// that an earlier call took off this path may still be leaving.
pub async fn see_off(app: &App, path: &StreamPath, ended: Option<&Stream>) -> PublisherWord {
    let Some(stream) = ended else {
        return match app.nodes.owes_kick_on(path).await {
            Ok(true) => PublisherWord::Leaving,
            Ok(false) | Err(_) => PublisherWord::None,
        };
    };
    match app.nodes.kick_and_wait(stream, KICK_WAIT).await {
        KickOutcome::Gone => PublisherWord::Gone,
        KickOutcome::Pending => PublisherWord::Leaving,
    }
}
