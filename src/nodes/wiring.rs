//! Whether a node is wired to us as it should be, and in words what to change.
//!
//! Invariant: a node's `authHTTPAddress` comes back from its API with the password in clear; nothing of it is ever repeated,
//! stored or logged.

use std::{cmp::Ordering, fmt::Write as _};

use serde_json::Value;
use url::Url;

use super::{
    client::NodeClient,
    mediamtx_config::endpoint,
    status::{Severity, WiringProblem},
};
use crate::{domain::Node, node_credentials::NodeCredentials};

/// The path of the auth call on our side.
pub const AUTH_PATH: &str = "/v1/mediamtx/auth";
/// The path of the hook that says that a publisher is online.
pub const PUBLISH_HOOK_PATH: &str = "/v1/hooks/publish";
/// The path of the hook that says that a publisher is gone.
pub const UNPUBLISH_HOOK_PATH: &str = "/v1/hooks/unpublish";

/// The oldest version whose auth call gives RTSP publishers the id that the control API knows them by.
const VERSION_MIN: [u64; 3] = [1, 19, 3];

const HOOK_FIELDS: [&str; 3] = ["runOnOnline", "runOnAvailable", "runOnReady"];

/// What a node's wiring is held against.
#[derive(Clone)]
pub struct Expectation {
    /// How nodes reach us.
    pub public_url: Url,
    /// Tells a right password from a wrong one.
    pub credentials: NodeCredentials,
}

/// Asks a node for its configuration and says what should be otherwise. Where the node does not answer, nothing is said:
/// that it is out of reach is known from the poll.
pub async fn check(client: &NodeClient, node: &Node, expectation: &Expectation, version: &str) -> Vec<WiringProblem> {
    let mut problems = Vec::new();
    if matches!(client.is_open_to_anybody(node).await, Ok(true)) {
        problems.push(problem(
            "api_open",
            "the control API answers without credentials: whoever reaches it can publish, kick and read keys. Have the node ask \
             Onair about it (authMethod: http, and no `api` in authHTTPExclude), and keep its port inside",
        ));
    }
    problems.extend(check_version(version));
    if let Ok(global) = client.document(node, "/v3/config/global/get").await {
        check_global(&global, node, expectation, &mut problems);
    }
    if let Ok(defaults) = client.document(node, "/v3/config/pathdefaults/get").await {
        let others = client.document(node, "/v3/config/paths/get/all_others").await.unwrap_or(Value::Null);
        check_paths(&defaults, &others, &mut problems);
    }
    problems
}

fn problem(code: &str, detail: impl Into<String>) -> WiringProblem {
    WiringProblem { code: code.to_owned(), severity: Severity::Problem, detail: detail.into() }
}

fn hint(code: &str, detail: impl Into<String>) -> WiringProblem {
    WiringProblem { code: code.to_owned(), severity: Severity::Hint, detail: detail.into() }
}

fn check_version(version: &str) -> Option<WiringProblem> {
    let numbers: Vec<u64> =
        version.trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    let is_old = numbers.len() >= 3 && numbers[..3].cmp(&VERSION_MIN[..]) == Ordering::Less;
    is_old.then(|| {
        let mut detail =
            "MediaMTX before v1.19.3 names RTSP publishers differently when it asks and when it tells, so they \
                          cannot be followed: upgrade"
                .to_owned();
        let _ = write!(detail, " (it runs {})", version.chars().take(20).collect::<String>());
        problem("version_old", detail)
    })
}

fn check_global(global: &Value, node: &Node, expectation: &Expectation, problems: &mut Vec<WiringProblem>) {
    if global.get("authMethod").and_then(Value::as_str) != Some("http") {
        problems.push(problem(
            "auth_method",
            "authMethod is not `http`: this node lets publishers in without asking. Set authMethod: http",
        ));
    }
    let address = global.get("authHTTPAddress").and_then(Value::as_str).unwrap_or("");
    problems.extend(check_address(address, node, expectation));
    let excluded: Vec<&str> = global
        .get("authHTTPExclude")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("action").and_then(Value::as_str))
        .collect();
    if !excluded.is_empty() {
        let actions =
            excluded.iter().map(|action| action.chars().take(16).collect::<String>()).collect::<Vec<_>>().join(", ");
        problems.push(problem(
            "auth_exclude",
            format!("authHTTPExclude lets everybody do this without asking: {actions}. Set authHTTPExclude: []"),
        ));
    }
}

fn check_address(address: &str, node: &Node, expectation: &Expectation) -> Option<WiringProblem> {
    let Ok(url) = address.parse::<Url>() else {
        return Some(problem(
            "auth_address",
            format!("authHTTPAddress is not set: print it with `onair mediamtx-config {}`", node.name),
        ));
    };
    // What comes before it is looked at below: a proxy may have a path of its own.
    if !url.path().ends_with(AUTH_PATH) {
        return Some(problem(
            "auth_address",
            format!(
                "authHTTPAddress does not end with {AUTH_PATH}: print it with `onair mediamtx-config {}`",
                node.name
            ),
        ));
    }
    let password = url.password().unwrap_or("");
    if url.username() != node.name.as_str()
        || expectation.credentials.verify_password(url.username(), password).is_none()
    {
        return Some(problem(
            "auth_credentials",
            format!(
                "authHTTPAddress does not hold this node's own name and password: print it with `onair mediamtx-config {}`",
                node.name
            ),
        ));
    }
    let expected = endpoint(&expectation.public_url, AUTH_PATH);
    let same_service = url.host_str() == expected.host_str()
        && url.port_or_known_default() == expected.port_or_known_default()
        && url.path() == expected.path();
    (!same_service).then(|| {
        hint(
            "auth_address_other",
            "authHTTPAddress names another host, port or path than server.public_url: fine behind a proxy, wrong otherwise",
        )
    })
}

fn check_paths(defaults: &Value, others: &Value, problems: &mut Vec<WiringProblem>) {
    let setting = |name: &str| others.get(name).or_else(|| defaults.get(name));
    if setting("overridePublisher").and_then(Value::as_bool) == Some(false) {
        problems.push(problem(
            "override_publisher",
            "overridePublisher is off: a broadcaster who lost the network cannot come back until MediaMTX notices, about 10 s. \
             Leave it on; Onair keeps strangers out",
        ));
    }
    let hook = |name: &str| {
        let command =
            |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        command(others.get(name)).or_else(|| command(defaults.get(name)))
    };
    let hooks: Vec<String> = HOOK_FIELDS.iter().filter_map(|name| hook(name)).collect();
    if !hooks.iter().any(|command| command.contains(PUBLISH_HOOK_PATH)) {
        problems.push(hint(
            "hooks_missing",
            "no hook tells when a publisher comes and goes: everything still works, found by polling, up to two seconds later",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::ConfigSecret,
        domain::{PublicUrls, Timestamp},
    };

    fn node() -> Node {
        Node {
            name: "edge-1".parse().unwrap(),
            control_url: "http://127.0.0.1:9997".parse().unwrap(),
            public_urls: PublicUrls::default(),
            created_at: Timestamp::from_ms(0),
            updated_at: Timestamp::from_ms(0),
        }
    }

    fn expectation() -> Expectation {
        let credentials = NodeCredentials::new(&[ConfigSecret::new("x".repeat(32))]).unwrap();
        Expectation { public_url: "http://onair:8080".parse().unwrap(), credentials }
    }

    fn codes(global: &Value, paths: &Value) -> Vec<String> {
        let mut problems = Vec::new();
        check_global(global, &node(), &expectation(), &mut problems);
        check_paths(paths, &Value::Null, &mut problems);
        problems.into_iter().map(|problem| problem.code).collect()
    }

    fn right_address() -> String {
        let password = expectation().credentials.password(&node().name);
        format!("http://edge-1:{}@onair:8080/v1/mediamtx/auth", password.reveal())
    }

    #[test]
    fn a_node_that_is_wired_right_has_no_problem() {
        let global = json!({"authMethod": "http", "authHTTPAddress": right_address(), "authHTTPExclude": []});
        let paths = json!({"overridePublisher": true, "runOnOnline": "curl http://onair:8080/v1/hooks/publish"});
        assert_eq!(codes(&global, &paths), Vec::<String>::new());
    }

    #[test]
    fn an_address_below_another_path_than_ours_is_pointed_out() {
        let ours = Expectation { public_url: "http://onair:8080/onair/".parse().unwrap(), ..expectation() };
        let code = |below: &str| {
            let address = right_address().replace("/v1/", &format!("{below}/v1/"));
            check_address(&address, &node(), &ours).map(|problem| problem.code)
        };
        assert_eq!(code("/onair"), None);
        for other in ["", "/other", "/onair/onair"] {
            assert_eq!(code(other).as_deref(), Some("auth_address_other"), "{other}");
        }
    }

    #[test]
    fn every_wrong_wire_is_named() {
        let global = json!({"authMethod": "internal", "authHTTPAddress": "", "authHTTPExclude": [{"action": "api"}]});
        let paths = json!({"overridePublisher": false});
        assert_eq!(
            codes(&global, &paths),
            ["auth_method", "auth_address", "auth_exclude", "override_publisher", "hooks_missing"]
        );
        let wrong_password =
            json!({"authMethod": "http", "authHTTPAddress": "http://edge-1:guess@onair:8080/v1/mediamtx/auth"});
        assert_eq!(codes(&wrong_password, &json!({"runOnReady": "x /v1/hooks/publish"})), ["auth_credentials"]);
    }

    #[test]
    fn an_old_version_is_named_and_an_unknown_one_is_not_judged() {
        assert!(check_version("v1.19.2").is_some());
        assert!(check_version("v1.19.3").is_none());
        assert!(check_version("v2.0.0-rc1").is_none());
        assert!(check_version("").is_none());
    }
}
