//! The directions between the rooms, as ARCHITECTURE.md draws them.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(under: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut directories = vec![root.join(under)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the directory is there") {
            let path: PathBuf = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("below the root").display().to_string();
                files.push((name, fs::read_to_string(&path).expect("it can be read")));
            }
        }
    }
    assert!(!files.is_empty(), "{under} has no sources");
    files
}

/// The code of a file without its comments: a word in a comment is no dependency.
fn code(text: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn assert_only_in(rooms: &[&str], word: &str) {
    for (name, text) in sources("src") {
        let allowed = rooms.iter().any(|room| name.starts_with(room));
        assert!(allowed || !code(&text).contains(word), "{name} uses {word}, which belongs in {rooms:?}");
    }
}

fn assert_never(room: &str, words: &[&str]) {
    for (name, text) in sources(room) {
        for word in words {
            assert!(!code(&text).contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn only_redis_knows_fred() {
    assert_only_in(&["src/redis/"], "fred::");
}

#[test]
fn only_postgres_knows_sqlx() {
    assert_only_in(&["src/postgres/"], "sqlx::");
}

#[test]
fn only_http_knows_axum_and_what_status_an_answer_has() {
    assert_only_in(&["src/http/"], "axum::");
    assert_only_in(&["src/http/"], "http::StatusCode");
}

#[test]
fn tasks_are_spawned_by_the_lifecycle_alone() {
    assert_only_in(&["src/lifecycle"], "tokio::spawn");
}

#[test]
fn the_domain_knows_nobody_and_waits_for_nothing() {
    let rooms = [
        "admission",
        "streams",
        "stream_keys",
        "nodes",
        "history",
        "rebuild",
        "verify",
        "http",
        "redis",
        "postgres",
        "app",
        "config",
        "lifecycle",
    ];
    let words: Vec<String> = rooms.iter().map(|room| format!("crate::{room}")).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["async fn", "tokio::", "std::fs", "std::net::Tcp"]);
    assert_never("src/domain", &words);
}

#[test]
fn the_stores_know_no_capability() {
    let words = [
        "crate::admission",
        "crate::streams",
        "crate::stream_keys",
        "crate::nodes",
        "crate::history",
        "crate::rebuild",
        "crate::verify",
        "crate::http",
        "crate::app",
    ];
    assert_never("src/redis", &words);
    assert_never("src/postgres", &words);
    assert_never("src/redis", &["crate::postgres"]);
    assert_never("src/postgres", &["crate::redis"]);
}

#[test]
fn no_capability_knows_http() {
    for room in
        ["src/admission", "src/streams", "src/stream_keys", "src/nodes", "src/history", "src/rebuild", "src/verify"]
    {
        assert_never(room, &["crate::http", "crate::app"]);
    }
}

#[test]
fn an_auth_call_never_reaches_a_nodes_control_api() {
    for (name, text) in sources("src/admission") {
        for word in ["NodeClient", "crate::nodes::Nodes", "kick_and_wait", "reqwest"] {
            assert!(!code(&text).contains(word), "{name} uses {word}");
        }
    }
}

#[test]
fn every_script_has_a_header_and_builds_no_key() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("lua");
    let mut scripts = 0;
    for entry in fs::read_dir(directory).expect("the scripts are there") {
        let path = entry.expect("it can be listed").path();
        let text = fs::read_to_string(&path).expect("it can be read");
        let name = path.display();
        assert!(text.starts_with("-- "), "{name} begins with its purpose");
        assert!(text.contains("-- KEYS 1"), "{name} says what its keys are");
        for spelled in ["'onair:", "'slot:"] {
            assert!(!text.contains(spelled), "{name} spells a key");
        }
        scripts += 1;
    }
    assert!(scripts >= 10);
}
