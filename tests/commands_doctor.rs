//! `onair doctor`: what is right is said to be, and everything that is wrong is named, with what to change.

mod support;

use serde_json::json;
use support::{
    mediamtx::{ApiAuth, MediaMtx},
    program, raw_redis,
    stack::{Replica, Stack},
};

/// Runs the doctor on the stores of a test.
async fn doctor(stack: &Stack, replica: &Replica) -> (Option<i32>, String) {
    let mut command = program::onair(&stack.config, &["doctor"]);
    command.env("ONAIR_SERVER_PUBLIC_URL", replica.url());
    program::run(command).await
}

/// Makes a node's configuration what `onair mediamtx-config` prints.
fn wire(node: &MediaMtx, replica: &Replica) {
    node.set_global_config("authMethod", json!("http"));
    node.set_global_config("authHTTPAddress", json!(replica.auth_url(node.name())));
    node.set_global_config("authHTTPExclude", json!([]));
    node.set_path_defaults("overridePublisher", json!(true));
    let hook = format!("curl {}/v1/hooks/publish", replica.url());
    node.set_path_defaults("runOnOnline", json!(hook));
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_is_right_has_no_problem() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    wire(&node, &replica);
    let (code, said) = doctor(&stack, &replica).await;
    assert_eq!(code, Some(0), "{said}");
    assert_says(
        &said,
        &["Redis: evicts nothing", "the database is up to date", "node edge-1: answers", "appendonly is off"],
    );
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_named_with_what_to_change() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    wire(&node, &replica);
    node.set_global_config("authMethod", json!("internal"));
    node.set_path_defaults("overridePublisher", json!(false));
    replica.add_node("edge-2").await;
    let _wrong = replica
        .mediamtx_with("edge-3", |options| {
            options.version = Some("v1.18.0".to_owned());
            options.api_auth = ApiAuth::Excluded;
            options.auth_url = replica.auth_url("edge-1");
            options.hooks = None;
        })
        .await;
    let _: String = raw_redis::command(&stack.redis, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let (code, said) = doctor(&stack, &replica).await;
    assert_eq!(code, Some(1), "{said}");
    assert_says(
        &said,
        &[
            "Set maxmemory-policy noeviction",
            "(auth_method)",
            "(override_publisher)",
            "node edge-2: refused",
            "(version_old)",
            "(api_open)",
            "(auth_exclude)",
            "(auth_credentials)",
            "(hooks_missing)",
            "there are 8 problems",
        ],
    );
    replica.stop().await;
}
