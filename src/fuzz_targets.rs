//! What `fuzz/` runs: everything that reads what strangers send, with what has to hold of it whatever was sent.
//!
//! Each target panics where something does not hold. The tests run the same functions over the kept corpus
//! (`tests/fuzz_corpus.rs`), so that what was found once stays found without a nightly compiler.

use crate::{
    admission::{AuthRequest, Credentials, loggable_path},
    domain::{Cursor, Secret, StreamPath},
    http::fuzzed,
    streams::LivePosition,
};

/// A target, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 4] =
    [("auth_body", auth_body), ("credentials", credentials), ("hook_body", hook_body), ("list_query", list_query)];

/// The body of an auth call.
pub fn auth_body(bytes: &[u8]) {
    match fuzzed::auth_body(bytes) {
        Ok(request) => check_request(&request),
        Err(problem) => check_problem(bytes, &problem),
    }
}

/// Password, token and query of an auth call, each behind a zero byte.
pub fn credentials(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    check_credentials(&AuthRequest { password: part(), token: part(), query: part(), ..AuthRequest::default() });
}

fn check_credentials(request: &AuthRequest) {
    let presented = plainly_presented(request);
    match Credentials::of(request) {
        Credentials::Missing => assert!(presented.is_empty(), "something was presented"),
        Credentials::Presented(text) => {
            assert!(
                presented.iter().all(|other| *other == text) && !presented.is_empty(),
                "another text was presented"
            );
        }
        Credentials::Conflicting => assert!(presented.iter().any(|text| *text != presented[0]), "there is no conflict"),
    }
}

/// The body of a hook, as JSON and as a form.
pub fn hook_body(bytes: &[u8]) {
    for problem in fuzzed::hook_body(bytes).into_iter().flatten() {
        check_problem(bytes, &problem);
    }
}

/// The query of the list of streams, with its cursor.
pub fn list_query(bytes: &[u8]) {
    match fuzzed::list_query(bytes) {
        Ok(Some(cursor)) => {
            let again = cursor.to_string().parse::<Cursor<LivePosition>>();
            assert!(again == Ok(cursor), "a cursor is not what it was");
        }
        Ok(None) => {}
        Err(problem) => check_problem(bytes, &problem),
    }
}

/// What [`Credentials::of`] has to find, taken apart by hand.
fn plainly_presented(request: &AuthRequest) -> Vec<String> {
    let mut found = vec![request.password.clone(), request.token.clone()];
    for pair in request.query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if ["key", "pass", "token"].contains(&plain(name).as_str()) {
            found.push(plain(value));
        }
    }
    found.retain(|text| !text.is_empty());
    found
}

fn plain(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn check_request(request: &AuthRequest) {
    let _ = request.action();
    check_credentials(request);
    let shown = loggable_path(&request.path);
    assert!(!shown.split('/').any(Secret::looks_like_one), "a key would be logged");
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "the log is not plain");
    if let Ok(path) = request.path.parse::<StreamPath>() {
        assert!(path.as_str() == request.path && shown == request.path, "a path is not what it was");
    }
    if let Ok(secret) = Secret::parse(&request.password) {
        assert!(secret.reveal() == request.password, "a secret is not what it was");
    }
}

/// What was sent, and could be a secret, is not said back.
fn check_problem(sent: &[u8], problem: &str) {
    assert!(serde_json::from_str::<serde_json::Value>(problem).is_ok(), "a problem is no JSON");
    let sent = String::from_utf8_lossy(sent);
    for (at, prefix) in sent.match_indices(Secret::PREFIX) {
        let end = sent[at + prefix.len()..].find(|c: char| !c.is_ascii_alphanumeric());
        let text = &sent[at..end.map_or(sent.len(), |end| at + prefix.len() + end)];
        assert!(text.len() < Secret::LENGTH || !problem.contains(text), "what was sent is said back");
    }
}
