//! The directions between the rooms, as ARCHITECTURE.md has them in its table. The table is read from there, so that the two cannot
//! drift apart.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Who uses whom.
type Edge = (String, String);

/// The rooms, and which of them use which.
struct Rooms {
    names: Vec<String>,
    edges: BTreeSet<Edge>,
}

impl Rooms {
    fn used_by(&self, room: &str) -> BTreeSet<&str> {
        self.edges.iter().filter(|(user, _)| user == room).map(|(_, used)| used.as_str()).collect()
    }

    fn users_of(&self, room: &str) -> BTreeSet<&str> {
        self.edges.iter().filter(|(_, used)| used == room).map(|(user, _)| user.as_str()).collect()
    }

    /// Whom a room uses, and whom those use, and so on.
    fn within_reach_of(&self, room: &str) -> BTreeSet<&str> {
        let mut reached = self.used_by(room);
        loop {
            let further: BTreeSet<&str> = reached.iter().flat_map(|room| self.used_by(room)).collect();
            if further.is_subset(&reached) {
                return reached;
            }
            reached.extend(further);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a directory: where each is, and its code.
fn sources(under: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut directories = vec![root().join(under)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the directory is there") {
            let path: PathBuf = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                files.push((name, code(&fs::read_to_string(&path).expect("it can be read"))));
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

/// Every path in a piece of code, from its `use` items and from where one is written out. A name alone is a path too.
fn paths_in(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(|letter: char| letter.is_alphabetic() || letter == '_') {
        let (found, after) = expanded(&rest[start..]);
        paths.extend(found);
        rest = after;
    }
    paths
}

/// The paths that a text begins with, and what comes after them. Braces are multiplied out: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(text: &str) -> (Vec<String>, &str) {
    if let Some(group) = text.strip_prefix('{') {
        return expanded_group(group);
    }
    let is_of_a_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let end = text.find(|letter: char| !is_of_a_name(letter)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match rest.strip_prefix("::") {
        Some(tail) if tail.starts_with(|letter: char| is_of_a_name(letter) || letter == '{') => {
            let (tails, rest) = expanded(tail);
            (tails.iter().map(|tail| format!("{name}::{tail}")).collect(), rest)
        }
        _ => (vec![name.to_owned()], rest),
    }
}

fn expanded_group(group: &str) -> (Vec<String>, &str) {
    let mut paths = Vec::new();
    let mut rest = group;
    loop {
        rest = rest.trim_start_matches(|letter: char| letter.is_whitespace() || letter == ',');
        if rest.is_empty() || rest.starts_with('}') {
            return (paths, rest.strip_prefix('}').unwrap_or(rest));
        }
        let (found, after) = expanded(rest);
        paths.extend(found);
        // What may follow a name, such as `as _`, is no path.
        rest = &after[after.find([',', '}']).unwrap_or(after.len())..];
    }
}

fn leads_through(path: &str, what: &str) -> bool {
    format!("::{path}::").contains(&format!("::{what}::"))
}

/// The room that a file belongs to.
fn room_of(file: &str) -> &str {
    let below = file.strip_prefix("src/").expect("below src");
    below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
}

/// Where a path of a file goes in from the root of the crate, if it does: by `crate::`, or by so many `super::` that it is at the root.
fn entered<'a>(path: &'a str, file: &str) -> Option<&'a str> {
    let depth = file.trim_end_matches("/mod.rs").split('/').count() - 1;
    let climbs = path.split("::").take_while(|name| *name == "super").count();
    let names_to_root = if climbs >= depth { climbs } else { usize::from(path.starts_with("crate::")) };
    if names_to_root == 0 { None } else { path.split("::").nth(names_to_root) }
}

/// The rooms as they are built. What unit tests use counts as well. `lib.rs` only lists the rooms, and `main.rs` stands before the door.
fn built() -> Rooms {
    let mut files = sources("src");
    files.retain(|(name, _)| name != "src/lib.rs" && name != "src/main.rs");
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| room_of(name)).collect();
    let mut edges = BTreeSet::new();
    for (name, code) in &files {
        let room = room_of(name);
        let paths = paths_in(code);
        let used = paths.iter().filter_map(|path| entered(path, name));
        let others = used.filter(|used| *used != room && names.contains(used));
        edges.extend(others.map(|used| (room.to_owned(), used.to_owned())));
    }
    Rooms { names: names.into_iter().map(str::to_owned).collect(), edges }
}

/// The rooms as ARCHITECTURE.md has them, in its order.
fn drawn() -> Rooms {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it can be read");
    let section = text.split("\n## ").find(|section| section.starts_with("The rooms\n")).expect("it has the rooms");
    let mut rooms = Rooms { names: Vec::new(), edges: BTreeSet::new() };
    for row in section.lines().filter(|line| line.starts_with("| `src/")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [place, _, used] = cells.as_slice() else { panic!("a row has three cells: {row}") };
        let place = code_spans(place).next().expect("the row begins with one");
        let room = room_of(place.trim_end_matches('/')).to_owned();
        rooms.edges.extend(code_spans(used).map(|used| (room.clone(), used.to_owned())));
        rooms.names.push(room);
    }
    rooms
}

/// What stands between backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn assert_only_in(room: &str, what: &str) {
    for (name, code) in sources("src") {
        let is_used = paths_in(&code).iter().any(|path| leads_through(path, what));
        assert!(room_of(&name) == room || !is_used, "{name} uses {what}, which belongs in {room}");
    }
}

fn assert_never(under: &str, words: &[&str]) {
    for (name, code) in sources(under) {
        let paths = paths_in(&code);
        for word in words {
            assert!(!paths.iter().any(|path| leads_through(path, word)), "{name} uses {word}");
        }
    }
}

#[test]
fn a_path_is_seen_in_whatever_form_it_is_written() {
    let text = "
use crate::{
    config::Config,
    redis::{self, Redis, keys::{Keys as Spelled, *}},
};
pub(crate) use http::{HeaderMap, StatusCode as Status};
use super::{super::nodes::Nodes, streams};
#[serde(with = \"crate::domain::url\")]
fn f(app: &crate::app::App) -> Vec<crate::verify::Found> { tokio::task::spawn::<fred::Client>(app) }";
    let paths = paths_in(text);
    for expected in [
        "crate::config::Config",
        "crate::redis::self",
        "crate::redis::Redis",
        "crate::redis::keys::Keys",
        "http::HeaderMap",
        "http::StatusCode",
        "super::super::nodes::Nodes",
        "super::streams",
        "crate::domain::url",
        "crate::app::App",
        "crate::verify::Found",
        "tokio::task::spawn",
        "fred::Client",
    ] {
        assert!(paths.iter().any(|path| path == expected), "{expected} is not in {paths:?}");
    }
    assert!(leads_through("axum::http::StatusCode::OK", "http::StatusCode"));
    assert!(!leads_through("http::StatusCodes", "http::StatusCode"));
    let commented = "//! See crate::http.\n    // use crate::{http, redis};\nafter";
    assert_eq!(paths_in(&code(commented)), ["after"]);
}

#[test]
fn a_path_enters_a_room_by_the_root_of_the_crate() {
    assert_eq!(entered("crate::redis::Redis", "src/http/mod.rs"), Some("redis"));
    assert_eq!(entered("super::redis::Redis", "src/app.rs"), Some("redis"));
    assert_eq!(entered("super::redis::Redis", "src/http/mod.rs"), Some("redis"));
    assert_eq!(entered("super::super::redis::Redis", "src/http/streams.rs"), Some("redis"));
    assert_eq!(entered("super::redis::Redis", "src/http/streams.rs"), None);
    assert_eq!(entered("onair::redis::Redis", "src/http/mod.rs"), None);
}

#[test]
fn rooms_use_each_other_as_the_table_says() {
    let (drawn, built) = (drawn(), built());
    let mut names = drawn.names.clone();
    names.sort_unstable();
    assert_eq!(names, built.names, "the table of ARCHITECTURE.md has every room once");
    let undrawn: Vec<&Edge> = built.edges.difference(&drawn.edges).collect();
    assert!(undrawn.is_empty(), "ARCHITECTURE.md does not allow {undrawn:?}");
    let gone: Vec<&Edge> = drawn.edges.difference(&built.edges).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md still has {gone:?}");
}

#[test]
fn a_room_uses_only_rooms_that_stand_above_it() {
    let drawn = drawn();
    let place = |name: &str| drawn.names.iter().position(|other| other == name);
    let leads_down = |(from, to): &&Edge| place(to) >= place(from);
    let downwards: Vec<&Edge> = drawn.edges.iter().filter(leads_down).collect();
    // The commands: `cli` offers `dev`, which runs the service as `cli` does.
    assert_eq!(downwards, [&("cli".to_owned(), "dev".to_owned())]);
}

#[test]
fn only_redis_knows_fred() {
    assert_only_in("redis", "fred");
}

#[test]
fn only_postgres_knows_sqlx() {
    assert_only_in("postgres", "sqlx");
}

#[test]
fn only_http_knows_axum_and_what_status_an_answer_has() {
    assert_only_in("http", "axum");
    assert_only_in("http", "http::StatusCode");
}

#[test]
fn tasks_are_spawned_by_the_lifecycle_alone() {
    assert_only_in("lifecycle", "tokio::spawn");
    assert_only_in("lifecycle", "tokio::task::spawn");
}

#[test]
fn the_domain_knows_nobody_and_waits_for_nothing() {
    assert_eq!(built().used_by("domain"), BTreeSet::new());
    assert_never("src/domain", &["async", "tokio", "std::fs", "std::net::TcpStream", "std::net::TcpListener"]);
    // Rules are given the time.
    assert_never("src/domain", &["Timestamp::now"]);
}

#[test]
fn the_stores_know_neither_each_other_nor_a_capability() {
    let built = built();
    let below = BTreeSet::from(["config", "domain", "lifecycle"]);
    for store in ["redis", "postgres"] {
        assert!(built.used_by(store).is_subset(&below), "{store} uses {:?}", built.used_by(store));
    }
}

#[test]
fn no_capability_knows_http_or_what_is_assembled_from_it() {
    let built = built();
    assert_eq!(built.users_of("http"), BTreeSet::from(["fuzz_targets", "replica"]));
    assert_eq!(built.users_of("app"), BTreeSet::from(["http", "replica"]));
}

#[test]
fn an_auth_call_never_reaches_a_nodes_control_api() {
    let built = built();
    assert!(!built.within_reach_of("admission").contains("nodes"), "{:?}", built.within_reach_of("admission"));
    assert_never("src/admission", &["NodeClient", "kick_and_wait", "reqwest"]);
}

#[test]
fn every_script_has_a_header_and_builds_no_key() {
    let directory = root().join("lua");
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
