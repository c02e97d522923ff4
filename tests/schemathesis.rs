//! The whole API under schemathesis: what `/openapi.json` promises is asked for, and what it forbids, with every check.
//!
//! The same requests each time: the seed is fixed, and so are the programs (`scripts/requirements.txt`).

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    files,
    mediamtx::PublishRequest,
    stack::{API_SECRET, Replica, Stack, node_password},
    stores::until,
};
use tempfile::TempDir;
use tokio::process::Command;

/// For each operation and phase.
const EXAMPLES_MAX: &str = "25";
const SEED: &str = "1";
/// Far beyond what it takes: it is there so that a run that hangs is told as one.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// A service with two streams on air, one that has ended, and a broadcaster who is known.
struct Tested {
    _stack: Stack,
    replica: Replica,
    broadcaster: String,
    streams: [String; 3],
    home: TempDir,
}

impl Tested {
    async fn start() -> Self {
        // A busy machine is no fault of the API.
        let stack = Stack::start_with(|config| {
            config.redis.command_timeout_ms = 2_000;
            config.admission.deadline_ms = 3_000;
        })
        .await;
        let replica = stack.replica().await;
        let node = replica.mediamtx("edge-1").await;
        let mut streams = Vec::new();
        for path in ["live/ada", "live/bob", "live/cid"] {
            let key = replica.key(path).await;
            let publisher = node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await.admitted();
            streams.push(files::str_of(&replica.until_live(path).await["id"]).to_owned());
            if path == "live/bob" {
                publisher.disconnect();
                until("it has ended", async || replica.ended_on(path).await.is_some()).await;
            }
        }
        let broadcaster = replica.broadcaster("Ada").await;
        let home = tempfile::tempdir().expect("a directory is made");
        Self { _stack: stack, replica, broadcaster, streams: streams.try_into().expect("there are three"), home }
    }

    async fn document(&self) -> Value {
        let answer = reqwest::get(format!("{}/openapi.json", self.replica.url())).await.expect("it answers");
        answer.json().await.expect("it is JSON")
    }

    async fn schemathesis(&self, document: &str, arguments: &[&str]) -> Output {
        let program: PathBuf = files::path("target/venv/bin/schemathesis");
        assert!(program.exists(), "schemathesis is not installed: scripts/bootstrap test");
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.home.path()).current_dir(self.home.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.envs([
            ("ONAIR_TEST_HOOKS", files::path("tests/schemathesis/hooks.py").to_str().expect("a path of this tree")),
            ("ONAIR_TEST_API_SECRET", API_SECRET),
            ("ONAIR_TEST_NODE", "edge-1"),
            ("ONAIR_TEST_NODE_PASSWORD", &node_password("edge-1")),
            ("ONAIR_TEST_BROADCASTER", &self.broadcaster),
            ("ONAIR_TEST_STREAMS", &self.streams.join(",")),
        ]);
        command.arg("--config-file").arg(files::path("tests/schemathesis/config.toml"));
        command.args(["run", document, "--url", &self.replica.url(), "--checks", "all", "--seed", SEED]);
        command.args(["--max-examples", EXAMPLES_MAX, "--continue-on-failure", "--no-shrink"]).args(arguments);
        let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let ended = tokio::time::timeout(RUN_LIMIT, running).await;
        ended.expect("it ends in time").expect("it can be started")
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How many operations a document holds.
fn operations(document: &Value) -> usize {
    files::members(&document["paths"]).map(|(_, methods)| files::members(methods).count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says_and_nothing_else() {
    let tested = Tested::start().await;
    let document = tested.document().await;
    let began = Instant::now();
    let output = tested.schemathesis(&format!("{}/openapi.json", tested.replica.url()), &[]).await;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let (all, counted) = (operations(&document), text.lines().find(|line| line.contains("generated")));
    assert!(all > 25 && text.contains(&format!("Selected: {all}/{all}")), "not all were asked: {text}");
    assert!(text.contains(&format!("Tested: {all}")), "not all were asked: {text}");
    println!("{all} operations in {:?}: {}", began.elapsed(), counted.unwrap_or_default().trim());
    tested.replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_says_something_else_is_found_out() {
    let tested = Tested::start().await;
    let mut document = tested.document().await;
    for (pointer, lie) in [
        ("/components/schemas/BroadcasterList/properties/items/type", Value::from("object")),
        ("/components/schemas/StreamList/properties/stale/type", Value::from("integer")),
    ] {
        *document.pointer_mut(pointer).unwrap_or_else(|| panic!("nothing is at {pointer}")) = lie;
    }
    let get = |path: &str| document["paths"][path]["get"]["responses"].clone();
    assert!(get("/v1/stream-keys/{id}")["404"].is_object());
    document["paths"]["/v1/stream-keys/{id}"]["get"]["responses"].as_object_mut().expect("an object").remove("404");
    let file = tested.home.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).expect("it is written");
    let arguments =
        ["--include-path-regex", "^/v1/(broadcasters|streams|stream-keys/\\{id\\})$", "--phases", "coverage"];
    let output = tested.schemathesis(as_text(&file), &arguments).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for lie in ["GET /v1/broadcasters", "GET /v1/streams", "GET /v1/stream-keys/{id}", "Undocumented status code"] {
        assert!(text.contains(lie), "{lie} was not found out: {text}");
    }
    tested.replica.stop().await;
}

fn as_text(path: &Path) -> &str {
    path.to_str().expect("it has no odd characters")
}
