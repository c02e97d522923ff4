//! Whether a node is wired as it should be: told in words, seen from outside, and no longer told once it is mended.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    measured::within,
    mediamtx::{ApiAuth, MediaMtx, MediaMtxOptions, Override, Release},
    stack::{Replica, Stack, node_password},
};

/// Some polls have to go by first; nothing is promised of how soon.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(20);

async fn start() -> (Stack, Replica) {
    // A wiring is looked at again after so many polls.
    let stack = Stack::start_with(|config| config.reconciler.poll_interval_ms = 50).await;
    let replica = stack.replica().await;
    (stack, replica)
}

/// What a node is otherwise than usual.
type Change = fn(&mut MediaMtxOptions);

/// Codes and severities of what is told of a node.
type Told = &'static [(&'static str, &'static str)];

/// Codes and severities of what is told of a node, once it has been looked at.
async fn told(replica: &Replica, name: &str) -> Vec<(String, String)> {
    let node = replica.node(name).await;
    let text = |problem: &Value, field: &str| problem[field].as_str().expect("a text").to_owned();
    let problems = node["wiring"].as_array().expect("a list");
    for problem in problems {
        assert!(
            problem["detail"].as_str().is_some_and(|detail| detail.len() > 30),
            "it says what to change: {problem}"
        );
    }
    assert!(
        !node.to_string().contains(&node_password(name)),
        "the password is in its authHTTPAddress, and nowhere else"
    );
    let mut codes: Vec<_> = problems.iter().map(|it| (text(it, "code"), text(it, "severity"))).collect();
    codes.sort();
    codes
}

async fn until_told(replica: &Replica, name: &str, case: &str, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(code, word)| ((*code).to_owned(), (*word).to_owned())).collect();
    let mut last = Vec::new();
    let looked_at = async || {
        let is_seen = !replica.node(name).await["version"].is_null();
        last = told(replica, name).await;
        is_seen && last == expected
    };
    within(LOOKED_AT_WITHIN, &format!("wiring, {case}: told"), looked_at).await;
}

#[tokio::test]
async fn a_node_that_is_wired_right_has_no_problem() {
    let (_stack, replica) = start().await;
    let _node = replica.mediamtx("edge-1").await;
    until_told(&replica, "edge-1", "right", &[]).await;
    replica.stop().await;
}

/// A wrong wire: what sets it, to what, and what is told of it.
struct WrongWire {
    set: fn(&MediaMtx, &str, Value),
    field: &'static str,
    wrong: Value,
    told: (&'static str, &'static str),
}

impl WrongWire {
    fn global(field: &'static str, wrong: Value, code: &'static str) -> Self {
        Self { set: MediaMtx::set_global_config, field, wrong, told: (code, "problem") }
    }

    fn of_paths(field: &'static str, wrong: Value, code: &'static str, severity: &'static str) -> Self {
        Self { set: MediaMtx::set_path_defaults, field, wrong, told: (code, severity) }
    }
}

fn wrong_wires(guessed: &str) -> [WrongWire; 7] {
    [
        WrongWire::global("authMethod", json!("internal"), "auth_method"),
        WrongWire::global("authHTTPAddress", json!(""), "auth_address"),
        WrongWire::global("authHTTPAddress", json!("http://onair/other"), "auth_address"),
        WrongWire::global("authHTTPAddress", json!(guessed), "auth_credentials"),
        WrongWire::global("authHTTPExclude", json!([{"action": "read", "path": ""}]), "auth_exclude"),
        WrongWire::of_paths("overridePublisher", json!(false), "override_publisher", "problem"),
        WrongWire::of_paths("runOnOnline", json!(""), "hooks_missing", "hint"),
    ]
}

#[tokio::test]
async fn every_wrong_wire_is_told_with_what_to_change_and_no_longer_once_it_is_mended() {
    let (_stack, replica) = start().await;
    let guessed = replica.auth_url("edge-0").replace(&node_password("edge-0"), "guess");
    let wires = wrong_wires(&guessed);
    let mut nodes = Vec::new();
    for (number, wire) in wires.iter().enumerate() {
        let node = replica.mediamtx(&format!("edge-{number}")).await;
        until_told(&replica, node.name(), "right at first", &[]).await;
        (wire.set)(&node, wire.field, wire.wrong.clone());
        nodes.push(node);
    }
    for (node, wire) in nodes.iter().zip(&wires) {
        until_told(&replica, node.name(), &format!("{} = {}", wire.field, wire.wrong), &[wire.told]).await;
        let mended = match wire.field {
            "authMethod" => json!("http"),
            "authHTTPAddress" => json!(replica.auth_url(node.name())),
            "authHTTPExclude" => json!([]),
            "overridePublisher" => json!(true),
            _ => json!("curl http://onair/v1/hooks/publish"),
        };
        (wire.set)(node, wire.field, mended);
    }
    for (node, wire) in nodes.iter().zip(&wires) {
        until_told(&replica, node.name(), &format!("{} mended", wire.field), &[]).await;
    }
    replica.stop().await;
}

#[tokio::test]
async fn an_address_other_than_the_services_own_is_a_hint_because_a_proxy_may_be_there() {
    let stack = Stack::start_with(|config| config.server.public_url = Some("http://onair:8080".parse().unwrap())).await;
    let replica = stack.replica().await;
    let _node = replica.mediamtx("edge-1").await;
    until_told(&replica, "edge-1", "another address", &[("auth_address_other", "hint")]).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_control_api_that_answers_without_credentials_is_told_as_a_hole() {
    let (_stack, replica) = start().await;
    let _node = replica.mediamtx_with("edge-1", |options| options.api_auth = ApiAuth::Excluded).await;
    let expected = [("api_open", "problem"), ("auth_exclude", "problem")];
    until_told(&replica, "edge-1", "an open API", &expected).await;
    replica.stop().await;
}

#[tokio::test]
async fn old_versions_and_nodes_without_hooks_are_told() {
    let (_stack, replica) = start().await;
    let nodes: [(&str, Change, Told); 5] = [
        ("old", |options| options.release = Release::V1_15, &[("version_old", "problem")]),
        ("nearly", |options| options.version = Some("v1.19.2".into()), &[("version_old", "problem")]),
        ("just", |options| options.version = Some("v1.19.3".into()), &[]),
        ("quiet", |options| options.hooks = None, &[("hooks_missing", "hint")]),
        ("stubborn", |options| options.override_publisher = Override::No, &[("override_publisher", "problem")]),
    ];
    for (name, change, expected) in nodes {
        let _node = replica.mediamtx_with(name, change).await;
        until_told(&replica, name, name, expected).await;
    }
    let version = replica.node("old").await["version"].clone();
    assert_eq!(version, "v1.15.6");
    replica.stop().await;
}
