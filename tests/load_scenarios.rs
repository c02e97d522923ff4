//! The load scenarios, a few seconds of each: they run, what they expect is true, and a broken contract is told as one.
//!
//! Limits of time are loose here, since a machine that tests has other work; everything else is held as it stands.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use support::{
    files,
    stack::{API_SECRET, NODE_SECRET, Replica, Stack},
};
use tempfile::TempDir;
use tokio::process::Command;

/// A data directory as `onair dev` leaves it, for a service at `url`.
fn data_directory(url: &str, api_secret: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials.json");
    let credentials = json!({"api_url": url, "api_secret": api_secret, "node_secret": NODE_SECRET});
    fs::write(&file, credentials.to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    directory
}

async fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(files::path("load/run"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.arg("--data-dir").arg(data).arg("--reports").arg(data.join("reports")).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The thresholds of a report, each with whether it was kept.
fn thresholds(report: &Value) -> Vec<(String, bool)> {
    let of_metric = |(metric, found): (&str, &Value)| {
        let name = metric.to_owned();
        let kept = files::members(&found["thresholds"]).map(|(limit, kept)| (limit.to_owned(), kept["ok"] == true));
        kept.map(|(limit, ok)| (format!("{name}: {limit}"), ok)).collect::<Vec<_>>()
    };
    files::members(&report["metrics"]).flat_map(of_metric).collect()
}

async fn assert_nothing_is_left(replica: &Replica) {
    assert_eq!(replica.on_air().await, Vec::<Value>::new());
    let nodes = replica.api.get("/v1/nodes").await.expect(200);
    assert_eq!(nodes.json["items"], json!([]));
    let keys = replica.api.get("/v1/stream-keys?status=active").await.expect(200);
    assert_eq!(keys.json["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_keeps_its_contract_and_leaves_nothing_behind() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let data = data_directory(&replica.url(), API_SECRET);
    let arguments = ["--seconds", "3", "--scale", "0.25", "--latency-factor", "40", "all"];
    let output = run(data.path(), &arguments).await;
    assert!(output.status.success(), "{}", said(&output));
    for scenario in files::stems("load", ".js") {
        let report = |extension: &str| {
            let path = data.path().join("reports").join(format!("{scenario}.{extension}"));
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let (page, summary) = (report("html"), report("json"));
        for secret in [API_SECRET, NODE_SECRET, "sk_"] {
            assert!(!page.contains(secret) && !summary.contains(secret), "{scenario} tells a secret");
        }
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let thresholds = thresholds(&summary);
        assert!(thresholds.len() >= 3 && thresholds.iter().all(|(_, ok)| *ok), "{scenario}: {thresholds:?}");
        assert!(
            summary["metrics"]["checks"]["values"]["passes"].as_u64() > Some(10),
            "{scenario} checked next to nothing"
        );
    }
    assert_nothing_is_left(&replica).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_contract_is_named_and_ends_non_zero() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let data = data_directory(&replica.url(), API_SECRET);
    let output = run(data.path(), &["--seconds", "2", "--latency-factor", "0.001", "auth_steady"]).await;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("BROKEN  auth_ms: p(95)<=0.05"), "{said}");
    assert!(said.contains("Not as the contract says: auth_steady"), "{said}");
    assert!(said.contains("kept    checks: rate==1"), "{said}");
    assert_nothing_is_left(&replica).await;

    let wrong = data_directory(&replica.url(), "not-the-secret-not-the-secret-not-the-secret");
    let output = run(wrong.path(), &["--seconds", "2", "mixed_day"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(self::said(&output).contains("401 unauthorized"), "{}", self::said(&output));
    assert!(!self::said(&output).contains("not-the-secret"));
}

#[tokio::test]
async fn a_service_on_another_machine_is_left_alone() {
    // One of the addresses that documentation may use: nobody has it.
    let data = data_directory("http://192.0.2.1:8080", API_SECRET);
    let output = run(data.path(), &["--seconds", "2", "auth_steady"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("192.0.2.1 is not this machine"), "{}", said(&output));
    let data = data_directory("http://127.0.0.1:1@192.0.2.1", API_SECRET);
    let output = run(data.path(), &["--seconds", "2", "auth_steady"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("a host and perhaps a port"), "{}", said(&output));
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_told() {
    let data = data_directory("http://127.0.0.1:1", API_SECRET);
    for (arguments, word) in [
        (&["nothing"][..], "there is no scenario nothing"),
        (&["--nothing", "soak"], "there is no option --nothing"),
        (&["--seconds", "soon", "soak"], "--seconds needs a whole number"),
        (&["--seconds"], "--seconds needs a value"),
        (&[], "usage: load/run"),
    ] {
        let output = run(data.path(), arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said(&output).contains(word), "{arguments:?}: {}", said(&output));
    }
}
