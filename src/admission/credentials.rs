//! Where a stream key is found in an auth call.
//!
//! Every protocol carries it elsewhere: as password, as Bearer token, or in the query as `key`, `pass` or `token`; and
//! `MediaMTX` copies some of these into each other. All places are read; they must agree.

use std::borrow::Cow;

use url::form_urlencoded;

use super::{AuthRequest, bounded};
use crate::domain::{Secret, StreamPath};

/// What a client presented.
#[derive(PartialEq, Eq)]
pub enum Credentials {
    /// Nothing at all.
    Missing,
    /// One text, in one place or in several.
    Presented(String),
    /// Two different texts: it is not ours to guess which one is meant.
    Conflicting,
}

/// Names of the query parameters that may hold a key.
const QUERY_NAMES: [&str; 3] = ["key", "pass", "token"];

impl Credentials {
    /// Reads all places of a call where a key may be.
    #[must_use]
    pub fn of(request: &AuthRequest) -> Self {
        let in_query = form_urlencoded::parse(request.query.as_bytes())
            .filter(|(name, _)| QUERY_NAMES.contains(&name.as_ref()))
            .map(|(_, value)| value);
        let fields = [request.password.as_str(), request.token.as_str()].map(std::borrow::Cow::Borrowed);
        let mut found: Option<std::borrow::Cow<'_, str>> = None;
        for text in fields.into_iter().chain(in_query).filter(|text| !text.is_empty()) {
            match &found {
                None => found = Some(text),
                Some(first) if *first == text => {}
                Some(_) => return Self::Conflicting,
            }
        }
        found.map_or(Self::Missing, |text| Self::Presented(text.into_owned()))
    }
}

/// True where a part of a path is a stream key, or what remains of a mistyped one: it would be published with every
/// playback URL.
#[must_use]
pub fn path_holds_a_key(path: &str) -> bool {
    path.split('/').any(Secret::looks_like_one)
}

/// The path for a log line: a part that looks like a key is not shown, nor is what `MediaMTX` would never accept.
#[must_use]
pub fn loggable_path(path: &str) -> Cow<'_, str> {
    let is_shown = |part: &str| {
        !Secret::looks_like_one(part)
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let path = bounded(path, StreamPath::LENGTH_MAX);
    if path.split('/').all(is_shown) {
        return Cow::Borrowed(path);
    }
    let parts: Vec<&str> = path.split('/').map(|part| if is_shown(part) { part } else { "[hidden]" }).collect();
    Cow::Owned(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(request: &AuthRequest) -> Option<String> {
        match Credentials::of(request) {
            Credentials::Presented(text) => Some(text),
            Credentials::Missing | Credentials::Conflicting => None,
        }
    }

    fn request(password: &str, token: &str, query: &str) -> AuthRequest {
        AuthRequest {
            password: password.to_owned(),
            token: token.to_owned(),
            query: query.to_owned(),
            ..AuthRequest::default()
        }
    }

    #[test]
    fn a_key_is_found_wherever_a_protocol_puts_it() {
        for (password, token, query) in [
            ("K", "K", "user=ch1&pass=K"),
            ("", "", "key=K"),
            ("", "K", "token=K"),
            ("K", "K", ""),
            ("", "K", ""),
            ("", "", "?key=%4B&other=1"),
        ] {
            let query = query.trim_start_matches('?');
            assert_eq!(found(&request(password, token, query)).as_deref(), Some("K"), "{password} {token} {query}");
        }
    }

    #[test]
    fn two_different_texts_are_not_guessed_between() {
        for (password, token, query) in
            [("A", "A", "token=B"), ("", "A", "key=B"), ("", "", "key=A&key=B"), ("A", "B", "")]
        {
            assert!(Credentials::of(&request(password, token, query)) == Credentials::Conflicting);
        }
    }

    #[test]
    fn a_first_rtsp_call_presents_nothing() {
        assert!(Credentials::of(&request("", "", "")) == Credentials::Missing);
        assert!(Credentials::of(&request("", "", "viewer=7&key=")) == Credentials::Missing);
    }

    #[test]
    fn a_key_in_the_path_is_noticed_and_never_logged() {
        assert!(path_holds_a_key("live/sk_secret"));
        assert!(!path_holds_a_key("live/ada"));
        assert_eq!(loggable_path("live/sk_secret/x"), "live/[hidden]/x");
        assert_eq!(loggable_path("live/a?key=b"), "live/[hidden]");
    }
}
