//! The codes of all problems: what a program goes by, and what people read about it in the docs.
//!
//! Invariants:
//! - A code, once released, keeps its word and its meaning. Clients branch on it.
//! - This table alone says a code's status and documentation; `docs/errors.md`, the page at `/docs/errors` and the OpenAPI document
//!   are made from it. It alone spells a code, but for those of admission: the log and the metrics have them from
//!   [`RefusalCode`](crate::admission::RefusalCode), and `tests/admission_codes.rs` holds that the answers say the same.

use http::StatusCode;

macro_rules! codes {
    ($($variant:ident = $word:literal $status:ident $title:literal $advice:literal)+) => {
        /// What went wrong, as a stable word.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the docs.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the problem's `code`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The status of every answer with this code.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// The problem's `title`: the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What it means and what to do next. The problem's `detail`, where the occurrence has nothing to add.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)+ }
            }
        }
    };
}

codes! {
    // The decision about a publisher or reader. MediaMTX copies the whole answer into its log.
    CredentialsMissing = "credentials_missing" UNAUTHORIZED "No stream key was sent"
        "Send the stream key: as ?key=KEY behind the path (RTMP, WHIP), as the password (RTSP, SRT) or as Bearer token (WHIP)."
    KeyMalformed = "key_malformed" UNAUTHORIZED "This is not a stream key"
        "The key has the wrong form or a mistyped character. Copy it again from where it was created."
    KeyUnknown = "key_unknown" UNAUTHORIZED "The stream key is unknown"
        "No such key exists here. Check that it belongs to this platform, or create a new one."
    KeyInPath = "key_in_path" UNAUTHORIZED "The stream key stands in the path"
        "The path is public, so a key in it is seen by every viewer. Write the path as it was given with the key, and the key behind it as ?key=KEY. Consider this key leaked: revoke it."
    CredentialsConflict = "credentials_conflict" UNAUTHORIZED "Two different keys were sent"
        "Password, token and query hold different keys. Send one key in one place."
    PathMalformed = "path_malformed" BAD_REQUEST "The path has a wrong form"
        "A path has 1 to 128 letters, digits, '_', '-', '.' and '/', does not begin or end with '/', and no part of it is empty, '.' or '..'."
    KeyRevoked = "key_revoked" FORBIDDEN "The stream key was revoked"
        "This key is dead for ever. Create a new one."
    KeyDisabled = "key_disabled" FORBIDDEN "The stream key is disabled"
        "An administrator has to enable this key again before it admits anybody."
    KeyExpired = "key_expired" FORBIDDEN "The stream key has expired"
        "Its time is over. Set a later expires_at, or create a new key."
    PathMismatch = "path_mismatch" FORBIDDEN "The stream key belongs to another path"
        "A key admits to its own path only. Publish to the path that was given with it."
    RenditionReserved = "rendition_reserved" FORBIDDEN "The path is kept for a rendition"
        "Only the node itself publishes there, with its own name and password. Choose a path without such an ending."
    ParentNotOnAir = "parent_not_on_air" CONFLICT "The rendition's stream is not on air"
        "A rendition can be published only while its stream is on air on the same node."
    PlaybackPrivate = "playback_private" FORBIDDEN "This path may not be watched"
        "Its key says that playback is private."
    ActionUnknown = "action_unknown" FORBIDDEN "The action is unknown"
        "This MediaMTX asks about an action that this version of Onair does not know."
    ControlUnauthorized = "control_unauthorized" UNAUTHORIZED "The node's own API is not for you"
        "Only Onair, with a token of its own, and the node's own name and password open its control API, metrics and profiles."
    PathNotOnAir = "path_not_on_air" NOT_FOUND "Nothing is on air on this path"
        "Wait until it is live, or check the path."
    KeyInUse = "key_in_use" CONFLICT "The path is held by another publisher"
        "A healthy stream holds the path. Stop the other encoder, stop the stream, or wait until it ends."
    CoolingDown = "cooling_down" CONFLICT "The path was stopped a moment ago"
        "An administrator stopped this stream; the path is closed for a short time so that an encoder's reconnect does not undo it."
    TooManyFailures = "too_many_failures" TOO_MANY_REQUESTS "Too many failed attempts"
        "Many attempts from this address failed. Correct the key, and try again after the time in Retry-After."
    StateUnavailable = "state_unavailable" SERVICE_UNAVAILABLE "The state cannot be read"
        "Redis did not answer in time, so nobody is admitted. Streams on air are not touched. Try again in a moment."
    HistoryBacklogFull = "history_backlog_full" SERVICE_UNAVAILABLE "The record cannot be kept"
        "The database has been away for so long that no more can be kept for it, so nobody new is admitted. Streams on air are not touched. The operators have to bring the database back."

    // Who is calling.
    Unauthorized = "unauthorized" UNAUTHORIZED "No valid API secret was sent"
        "Send 'Authorization: Bearer <API secret>'."
    NodeUnauthorized = "node_unauthorized" UNAUTHORIZED "The node's credentials are wrong"
        "Nodes call with HTTP Basic: their name and their password. 'onair mediamtx-config NODE' prints both, ready to paste."

    // The request.
    RouteNotFound = "route_not_found" NOT_FOUND "There is no such address"
        "The addresses are listed in /openapi.json and /docs."
    MethodNotAllowed = "method_not_allowed" METHOD_NOT_ALLOWED "The method is not allowed here"
        "The methods of this address are in the header Allow."
    IdMalformed = "id_malformed" BAD_REQUEST "The id in the address has a wrong form"
        "Ids are UUIDs; a node's name is 1 to 63 of a-z, 0-9 and '-'."
    InvalidQuery = "invalid_query" BAD_REQUEST "A query parameter is wrong"
        "The member errors names the parameter and what it should be."
    InvalidCursor = "invalid_cursor" BAD_REQUEST "The cursor is not one of ours"
        "Pass next_cursor as it was given, with the same filters, or begin without a cursor."
    BodyMalformed = "body_malformed" BAD_REQUEST "The body cannot be read"
        "The body is not valid JSON, or not a valid form where forms are accepted."
    BodyTooLarge = "body_too_large" PAYLOAD_TOO_LARGE "The body is too large"
        "Send a smaller body."
    BodyTooSlow = "body_too_slow" REQUEST_TIMEOUT "The body came too slowly"
        "Send the whole body at once."
    UnsupportedMediaType = "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The content type is not supported"
        "Send 'Content-Type: application/json'."
    InvalidInput = "invalid_input" UNPROCESSABLE_ENTITY "A field is wrong"
        "The member errors names the field and what it should be. Nothing was changed."
    RequestMalformed = "request_malformed" BAD_REQUEST "This is not HTTP"
        "The request line or a header cannot be read."
    UriTooLong = "uri_too_long" URI_TOO_LONG "The address is too long"
        "Send a shorter address."
    HeadersTooLarge = "headers_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "The headers are too large"
        "Send fewer or shorter headers."

    // The things that are managed.
    StreamNotFound = "stream_not_found" NOT_FOUND "There is no such stream"
        "Neither on air nor in the history."
    KeyNotFound = "key_not_found" NOT_FOUND "There is no such stream key"
        "Check the id; GET /v1/stream-keys lists them."
    BroadcasterNotFound = "broadcaster_not_found" NOT_FOUND "There is no such broadcaster"
        "Check the id; GET /v1/broadcasters lists them."
    NodeNotFound = "node_not_found" NOT_FOUND "There is no such node"
        "Check the name; GET /v1/nodes lists them."
    BroadcasterUnknown = "broadcaster_unknown" UNPROCESSABLE_ENTITY "The broadcaster does not exist"
        "Create the broadcaster first, or correct broadcaster_id. Nothing was changed."
    PathTaken = "path_taken" CONFLICT "Another key has this path"
        "Every path has at most one key that is not revoked. Choose another path, or revoke the other key."
    KeyRevokedIsFinal = "key_revoked_is_final" CONFLICT "A revoked key cannot be changed"
        "Revocation is final. Create a new key."
    StreamAlreadyEnded = "stream_already_ended" CONFLICT "The stream has ended"
        "What has ended cannot be stopped."
    StreamContended = "stream_contended" CONFLICT "Others change the stream at the same time"
        "Nothing was changed. Try again."

    // Us.
    StoreUnavailable = "store_unavailable" SERVICE_UNAVAILABLE "The database cannot be reached"
        "Nothing was changed. Publishing, lists and hooks go on without it. Try again in a moment."
    RecordedNotYetEffective = "recorded_not_yet_effective" SERVICE_UNAVAILABLE "Recorded, but not yet in effect"
        "The change is safe in the database and will take effect as soon as Redis can be reached. Repeating the call is harmless."
    HistoryUnavailable = "history_unavailable" SERVICE_UNAVAILABLE "The history cannot be read"
        "Ended streams are in the database, which cannot be reached. What is on air can still be listed."
    NotReady = "not_ready" SERVICE_UNAVAILABLE "Not ready"
        "The member dependencies says what is missing."
    RequestTimeout = "request_timeout" SERVICE_UNAVAILABLE "The answer took too long"
        "Given up after the time limit. A change may or may not have been made: look before repeating it."
    Overloaded = "overloaded" SERVICE_UNAVAILABLE "Too busy"
        "Too many connections at once. Try again after the time in Retry-After."
    Internal = "internal" INTERNAL_SERVER_ERROR "Something is broken on our side"
        "It was logged with this request_id. Please tell the operators."
}

impl Code {
    /// The problem's `type`: resolves to the code's entry on the docs page.
    #[must_use]
    pub fn type_uri(self) -> String {
        format!("/docs/errors#{}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_an_error_and_a_word_of_its_own() {
        let words: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{code:?}");
            assert!(!code.title().ends_with('.') && code.advice().ends_with('.'), "{code:?}");
        }
    }
}
