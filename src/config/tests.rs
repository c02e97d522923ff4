use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

use super::*;

const SECRETS: [(&str, &str); 2] = [
    ("ONAIR_SERVER_API_SECRETS", "api-secret-api-secret-api-secret"),
    ("ONAIR_SERVER_NODE_SECRETS", "node-secret-node-secret-node-secret"),
];

fn with_secrets<'a>(more: impl IntoIterator<Item = (&'a str, &'a str)>) -> Variables {
    SECRETS.into_iter().chain(more).collect()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn problems(file: Option<&Path>, variables: &Variables) -> String {
    Config::load(file, variables).unwrap_err().to_string()
}

#[test]
fn two_secrets_are_all_that_is_needed() {
    let config = Config::load(None, &with_secrets([])).unwrap();
    assert_eq!(config.server.api_secrets, [ConfigSecret::new(SECRETS[0].1)]);
    assert_eq!(config.public_url().as_str(), "http://127.0.0.1:8080/");
    assert_eq!(config.admission, AdmissionConfig::default());
}

#[test]
fn every_field_is_named_by_its_variable() {
    for field in Config::fields() {
        let expected = format!("ONAIR_{}_{}", field.section, field.name).to_uppercase();
        assert_eq!(field.variable, expected);
    }
}

#[test]
fn every_variable_reaches_its_field() {
    for field in Config::fields() {
        // No kind of field takes this text unless every text suits it, so a complaint by name shows that it was read.
        let message = problems(None, &[(field.variable, "\u{7}=\u{7}")].into_iter().collect());
        let complained = message.contains(&format!("{field}:"));
        assert!(complained, "{field} was not read: {message}");
    }
}

#[test]
fn a_variable_wins_over_the_file_and_the_command_line_over_both() {
    let file = file("[server]\nlisten = \"127.0.0.1:1\"\n[redis]\nconnections = 7\n");
    let variables = with_secrets([("ONAIR_SERVER_LISTEN", "127.0.0.1:2")]);
    let config = Config::load(Some(file.path()), &variables).unwrap();
    assert_eq!((config.server.listen.port(), config.redis.connections), (2, 7));
    let overridden = |config: &mut Config| config.server.listen.set_port(3);
    assert_eq!(Config::load_with(Some(file.path()), &variables, overridden).unwrap().server.listen.port(), 3);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Config::load(None, &with_secrets([("ONAIR_REDIS_CONNECTIONS", "")])).unwrap();
    assert_eq!(config.redis.connections, RedisConfig::default().connections);
}

#[test]
fn what_nobody_knows_is_an_error() {
    let file = file("stray = 1\n[server]\nlisten_address = \"127.0.0.1:1\"\n[cache]\nsize = 1\n");
    let message = problems(Some(file.path()), &with_secrets([("ONAIR_SERVER_PORT", "80")]));
    for unknown in ["stray", "server.listen_address", "[cache]", "ONAIR_SERVER_PORT"] {
        assert!(message.contains(unknown), "{unknown}: {message}");
    }
}

#[test]
fn what_kubernetes_sets_for_a_service_called_onair_is_no_error() {
    let links = [
        ("ONAIR_SERVICE_HOST", "10.0.0.1"),
        ("ONAIR_SERVICE_PORT_HTTP", "8080"),
        ("ONAIR_PORT", "tcp://10.0.0.1:8080"),
        ("ONAIR_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ONAIR_REDIS_PORT", "tcp://10.0.0.2:6379"),
    ];
    Config::load(None, &with_secrets(links)).unwrap();
}

#[test]
fn all_problems_are_reported_at_once_with_field_and_variable() {
    let file = file(
        "[server]\nlisten = 5\nbody_bytes_max = 1\n[redis]\nurl = \"http://x\"\ncommand_timeout_ms = 300\n\
         [reconciler]\nnode_lost_after_ms = 2000\n",
    );
    let variables = [
        ("ONAIR_SERVER_API_SECRETS", "short-one"),
        ("ONAIR_ADMISSION_LOOKUPS_MAX", "many"),
        ("ONAIR_LOG_FILTER", "onair=louder"),
    ];
    let message = problems(Some(file.path()), &variables.into_iter().collect());
    for part in [
        "server.listen (ONAIR_SERVER_LISTEN)",
        "server.body_bytes_max (ONAIR_SERVER_BODY_BYTES_MAX): must be from 16384 to",
        "server.api_secrets (ONAIR_SERVER_API_SECRETS): number 1 has fewer than 32 characters",
        "server.node_secrets (ONAIR_SERVER_NODE_SECRETS): at least one is needed",
        "redis.url (ONAIR_REDIS_URL)",
        "redis.command_timeout_ms (ONAIR_REDIS_COMMAND_TIMEOUT_MS): must be below admission.deadline_ms",
        "reconciler.node_stale_after_ms (ONAIR_RECONCILER_NODE_STALE_AFTER_MS)",
        "admission.lookups_max (ONAIR_ADMISSION_LOOKUPS_MAX)",
        "log.filter (ONAIR_LOG_FILTER)",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert!(!message.contains("short-one"), "{message}");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    let secret = "hush-hush-hush-hush-hush-hush-hush";
    let wrong = [
        format!("[server]\napi_secrets = \"{secret},x"),
        format!("[server]\nlisten = \"{secret}\""),
        format!("[redis]\nurl = \"{secret}\"\nconnections = \"{secret}\""),
        format!("[server]\napi_secrets = [\"{secret}\" oops]"),
        format!("nodes = \"{secret}\""),
    ];
    for text in wrong {
        let message = problems(Some(file(&text).path()), &Variables::default());
        assert!(!message.contains("hush"), "{text} gave {message}");
    }
    let node = |fields: &str| format!(r#"[{{"name": "edge-1", "control_url": "http://edge-1:9997", {fields}}}]"#);
    let nodes = [
        format!(r#""{secret}""#),
        format!(r#"[{{"name": "edge-1", "control_url": "http://admin:{secret}@edge-1:99999"}}]"#),
        format!(r#"[{{"name": "edge-1", "control_url": "http://admin:{secret}@10.0.0.256"}}]"#),
        format!(r#"[{{"name": "edge-1", "control_url": "http://admin:{secret}@edge-1"}}]"#),
        node(&format!(r#""public_urls": "{secret}""#)),
        node(&format!(r#""public_urls": {{"hls": "https://{secret}@a|b"}}"#)),
        node(&format!(r#""public_urls": {{"rtsp": "rtsp://cam:{secret}@edge-1"}}"#)),
        node(r#""public_urls": {"rtmp": "http://edge-1"}"#),
        node(r#""public_urls": {"hls": "https://edge-1/?a=b"}"#),
    ];
    for text in nodes {
        let message = problems(None, &with_secrets([("ONAIR_NODES", text.as_str())]));
        assert!(message.contains("nodes (ONAIR_NODES)"), "{text} gave {message}");
        assert!(!message.contains("hush"), "{text} gave {message}");
    }
    let in_file = format!("[[nodes]]\nname = \"edge-1\"\ncontrol_url = \"http://admin:{secret}@10.0.0.256\"\n");
    let message = problems(Some(file(&in_file).path()), &with_secrets([]));
    assert!(message.contains("0.control_url: must be an absolute URL") && !message.contains("hush"), "{message}");
}

#[test]
fn a_secret_may_come_from_a_file_that_only_its_owner_reads() {
    let secret = file("first-secret-first-secret-first-secret\nsecond-secret-second-secret-second\n");
    let path = secret.path().to_str().unwrap();
    let variables = || [("ONAIR_SERVER_API_SECRETS_FILE", path), SECRETS[1]].into_iter().collect();
    assert_eq!(Config::load(None, &variables()).unwrap().server.api_secrets.len(), 2);

    let named_in_file = file(&format!("[server]\napi_secrets_file = \"{path}\"\n"));
    let config = Config::load(Some(named_in_file.path()), &[SECRETS[1]].into_iter().collect()).unwrap();
    assert_eq!(config.server.api_secrets.len(), 2);

    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let message = problems(None, &variables());
    assert!(message.contains("server.api_secrets") && message.contains("chmod 600"), "{message}");
    assert_eq!(message.matches("server.api_secrets").count(), 1, "reported twice: {message}");
    assert!(!message.contains("first-secret"), "{message}");
}

#[test]
fn a_secret_given_twice_over_is_an_error() {
    let variables = with_secrets([("ONAIR_SERVER_API_SECRETS_FILE", "/nowhere")]);
    assert!(problems(None, &variables).contains("both as a value and as a file"));
}

#[test]
fn a_configuration_file_with_secrets_that_others_can_read_is_refused() {
    let [api, node] = SECRETS.map(|(_, secret)| secret);
    let file = file(&format!("[server]\napi_secrets = [\"{api}\"]\nnode_secrets = [\"{node}\"]\n"));
    Config::load(Some(file.path()), &Variables::default()).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(problems(Some(file.path()), &Variables::default()).contains("chmod 600"));
}

#[test]
fn nodes_come_from_the_file_or_from_one_variable() {
    let file = file(
        "[[nodes]]\nname = \"edge-1\"\ncontrol_url = \"http://edge-1:9997\"\n\
         public_urls.rtmp = \"rtmp://edge-1.example.org\"\n",
    );
    let config = Config::load(Some(file.path()), &with_secrets([])).unwrap();
    assert_eq!(config.nodes[0].name.as_str(), "edge-1");
    assert_eq!(config.nodes[0].public_urls.rtmp.as_ref().unwrap().as_str(), "rtmp://edge-1.example.org");

    let json = r#"[{"name": "edge-2", "control_url": "http://edge-2:9997"}]"#;
    let config = Config::load(Some(file.path()), &with_secrets([("ONAIR_NODES", json)])).unwrap();
    assert_eq!(config.nodes[0].name.as_str(), "edge-2");

    let bad = r#"[{"name": "edge-2", "control_url": "ftp://edge-2", "port": 1}]"#;
    assert!(problems(None, &with_secrets([("ONAIR_NODES", bad)])).contains("nodes (ONAIR_NODES)"));
}

#[test]
fn the_public_url_of_a_service_that_listens_everywhere_is_one_that_can_be_called() {
    let mut config = Config::default();
    config.server.listen = "0.0.0.0:9000".parse().unwrap();
    assert_eq!(config.public_url().as_str(), "http://127.0.0.1:9000/");
    config.server.listen = "[::]:9000".parse().unwrap();
    assert_eq!(config.public_url().as_str(), "http://[::1]:9000/");
}

/// The example with every setting switched on: a setting's line is a `#` and the setting, without a space between.
fn example_in_use() -> String {
    let is_setting = |rest: &str| rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '[');
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if is_setting(rest) => rest.to_owned(),
        _ => line.to_owned(),
    };
    include_str!("../../onair.example.toml").lines().map(|line| uncomment(line) + "\n").collect()
}

#[test]
fn the_example_names_every_field_with_its_variable_and_default() {
    let text = example_in_use().replace("change-me", "made-here");
    let table: toml::Table = text.parse().unwrap();
    for field in Config::fields() {
        assert!(table[field.section].get(field.name).is_some(), "{field} is not in the example");
    }
    let in_use = file(&text);
    let example = Config::load(Some(in_use.path()), &Variables::default()).unwrap();
    let mut expected = Config::default();
    expected.server.public_url = example.server.public_url.clone();
    expected.server.api_secrets.clone_from(&example.server.api_secrets);
    expected.server.node_secrets.clone_from(&example.server.node_secrets);
    expected.redis.ca_file.clone_from(&example.redis.ca_file);
    expected.nodes.clone_from(&example.nodes);
    assert_eq!(example, expected, "the example gives other defaults than the program has");
    assert_eq!(example.nodes.len(), 1);
}

#[test]
fn the_secrets_of_the_example_are_refused_wherever_they_come_from() {
    let in_use = file(&example_in_use());
    let message = problems(Some(in_use.path()), &Variables::default());
    let capitals = [SECRETS[0], ("ONAIR_SERVER_NODE_SECRETS", "Change-Me-Change-Me-Change-Me-Change-Me")];
    let by_variable = problems(None, &capitals.into_iter().collect());
    let told = [
        ("server.api_secrets (ONAIR_SERVER_API_SECRETS): number 1 is the example's; `openssl rand -hex 32`", &message),
        ("server.node_secrets (ONAIR_SERVER_NODE_SECRETS): number 1 is the example's", &message),
        ("server.node_secrets (ONAIR_SERVER_NODE_SECRETS): number 1 is the example's", &by_variable),
    ];
    for (part, message) in told {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert!(!format!("{message}{by_variable}").to_lowercase().contains("change-me"), "{message}{by_variable}");
}

#[test]
fn the_example_as_it_stands_sets_nothing() {
    let untouched = file(include_str!("../../onair.example.toml"));
    let config = Config::load(Some(untouched.path()), &with_secrets([])).unwrap();
    assert_eq!(config, Config::load(None, &with_secrets([])).unwrap());
}
