//! The alerts: each can be understood, has a runbook and a played case, and fires when its fault is made.

mod support;

use std::{collections::BTreeSet, sync::Arc};

use onair::{
    config::{Config, ConfigSecret},
    dev::servers::{PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions},
};
use serde_json::{Value, json};
use support::{
    files::{items, path, stems, str_of, text, yaml},
    mediamtx::{KickBehaviour, MediaMtx, PublishRequest},
    prometheus::{Prometheus, program},
    raw_redis,
    stack::{API_SECRET, NODE_SECRET, Replica, Stack, TestKey},
    stores,
};

const RULES: &str = "grafana/prometheus/alerts.yml";
const RUNBOOKS: &str = "docs/runbooks";

fn alerts() -> Vec<Value> {
    let rules = yaml(RULES);
    items(&rules["groups"]).iter().flat_map(|group| items(&group["rules"])).cloned().collect()
}

fn names() -> BTreeSet<String> {
    alerts().iter().map(|alert| str_of(&alert["alert"]).to_owned()).collect()
}

#[test]
fn every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on() {
    for alert in alerts() {
        let (name, annotations) = (str_of(&alert["alert"]), &alert["annotations"]);
        let severity = str_of(&alert["labels"]["severity"]);
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        assert!(str_of(&annotations["summary"]).len() > 10, "{name}");
        assert!(str_of(&annotations["description"]).ends_with('.'), "{name}");
        assert_eq!(str_of(&annotations["runbook_url"]), format!("{RUNBOOKS}/{name}.md"));

        let runbook = text(&format!("{RUNBOOKS}/{name}.md"));
        let severity = format!("**{}{}.** ", severity[..1].to_uppercase(), &severity[1..]);
        for part in [&*format!("# {name}\n\n{severity}"), "## What users see", "## How to look", "## How to mend"] {
            assert!(runbook.contains(part), "{name}.md has no {part:?}");
        }
    }
}

#[test]
fn there_is_no_runbook_without_an_alert() {
    let mut runbooks: BTreeSet<_> = stems(RUNBOOKS, ".md").into_iter().collect();
    assert!(runbooks.remove("README"));
    assert_eq!(runbooks, names());
}

#[test]
fn the_commands_and_addresses_of_the_runbooks_exist() {
    let document = serde_json::to_value(onair::http::document()).expect("JSON");
    let templates: Vec<&String> = document["paths"].as_object().expect("paths").keys().collect();
    let commands = std::process::Command::new(env!("CARGO_BIN_EXE_onair")).arg("--help").output().expect("it runs");
    let commands = String::from_utf8(commands.stdout).expect("text");
    for name in stems(RUNBOOKS, ".md") {
        let runbook = text(&format!("{RUNBOOKS}/{name}.md"));
        for address in runbook.split("/v1/").skip(1) {
            let end = |letter: char| letter.is_whitespace() || "`\"'?)".contains(letter);
            let address = format!("/v1/{}", address.split(end).next().unwrap_or_default());
            assert!(templates.iter().any(|template| is_at(template, &address)), "{name}: {address}");
        }
        for command in runbook.split("`onair ").skip(1) {
            let command = command.split([' ', '`']).next().unwrap_or_default();
            assert!(commands.contains(&format!("\n  {command} ")), "{name}: onair {command}");
        }
    }
}

/// Whether an address, or a template as people write it, is one of the API.
fn is_at(template: &str, address: &str) -> bool {
    let (template, address): (Vec<_>, Vec<_>) = (template.split('/').collect(), address.split('/').collect());
    template.len() == address.len()
        && template
            .iter()
            .zip(&address)
            .all(|(part, given)| part == given || part.starts_with('{') && !given.is_empty())
}

#[test]
fn promtool_accepts_configuration_and_rules_and_plays_a_case_for_each() {
    let mut configuration = program("promtool");
    configuration.args(["check", "config", "--syntax-only", "prometheus.yml"]);
    let (mut rules, mut cases) = (program("promtool"), program("promtool"));
    rules.args(["check", "rules", "alerts.yml"]);
    cases.args(["test", "rules", "alerts_test.yml"]);
    for command in [&mut configuration, &mut rules, &mut cases] {
        let output = command.current_dir(path("grafana/prometheus")).output().expect("it runs");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{said}");
    }
    let tests = yaml("grafana/prometheus/alerts_test.yml");
    for name in names() {
        let about_it = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}");
        let cases = || items(&tests["tests"]).iter().flat_map(|case| items(&case["promql_expr_test"]));
        let fires = |case: &&Value| !items(&case["exp_samples"]).is_empty();
        let (firing, silent): (Vec<_>, Vec<_>) =
            cases().filter(|case| case["expr"] == about_it.as_str()).partition(fires);
        assert!(!firing.is_empty() && silent.len() >= 2, "{name}: when does it fire, and when does it not any more?");
    }
}

/// The rules, with as much patience as a test has. What they ask and compare stays as it is.
fn impatient_rules() -> Value {
    let mut rules = yaml(RULES);
    for group in rules["groups"].as_array_mut().expect("groups") {
        for rule in group["rules"].as_array_mut().expect("rules") {
            let windows = ["[2m]", "[5m]", "[10m]", "[15m]"];
            let query = windows.iter().fold(str_of(&rule["expr"]).to_owned(), |query, it| query.replace(it, "[10s]"));
            rule["expr"] = json!(query);
            if rule.get("for").is_some() {
                rule["for"] = json!("1s");
            }
        }
    }
    rules
}

/// A service whose stores can be taken away.
struct Bench {
    stack: Stack,
    postgres: PrivatePostgres,
    replica: Replica,
    prometheus: Prometheus,
}

impl Bench {
    async fn start() -> Self {
        let redis = PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts");
        let postgres = PrivatePostgres::start(PostgresOptions::scratch()).await.expect("Postgres starts");
        stores::postgres_at(&postgres.url()).migrate().await.expect("the migrations work");
        let mut config = Config::default();
        config.redis.url = ConfigSecret::new(redis.url());
        config.postgres.url = ConfigSecret::new(postgres.url());
        config.server.api_secrets = vec![ConfigSecret::new(API_SECRET)];
        config.server.node_secrets = vec![ConfigSecret::new(NODE_SECRET)];
        config.reconciler.poll_interval_ms = 100;
        let stack = Stack { redis: redis.into(), config };
        let replica = stack.replica().await;
        let prometheus = Prometheus::start(replica.address, &impatient_rules()).await;
        Self { stack, postgres, replica, prometheus }
    }

    /// Somebody who tries again and again until an alert fires.
    async fn trying_until_firing(&self, node: &MediaMtx, publisher: impl Fn() -> PublishRequest, name: &str) {
        let trying = async {
            loop {
                node.publish(publisher()).await.refused();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = self.prometheus.until_firing(name) => {}
            () = trying => {}
        }
    }

    async fn nodes_can_be_lost_and_miswired(&self, edge_1: &MediaMtx, edge_2: &Arc<MediaMtx>) {
        let bob = self.replica.key("live/bob").await;
        edge_2.publish(publisher(&bob)).await.admitted();
        edge_2.set_kick_behaviour(KickBehaviour::Ignored);
        self.replica.api.act(&format!("/v1/stream-keys/{}/revoke", bob.id)).await.expect(200);
        edge_1.set_global_config("authMethod", json!("internal"));
        self.prometheus.until_firing("OnairKicksPending").await;
        edge_2.kill();
        self.prometheus.until_firing("OnairNodeUnreachable").await;
        self.prometheus.until_firing("OnairNodeWiring").await;

        edge_1.set_global_config("authMethod", json!("http"));
        edge_2.set_kick_behaviour(KickBehaviour::Obeyed);
        edge_2.restart().await;
        for name in ["OnairNodeUnreachable", "OnairKicksPending", "OnairNodeWiring"] {
            self.prometheus.until_silent(name).await;
        }
    }

    async fn redis_can_be_lost(&self, node: &MediaMtx, key: &TestKey) {
        self.stack.redis.suspend().expect("it stops");
        self.trying_until_firing(node, || publisher(key), "OnairAuthUnavailable").await;
        self.prometheus.until_firing("OnairRedisDown").await;
        self.stack.redis.resume().expect("it goes on");
        self.prometheus.until_silent("OnairRedisDown").await;
        self.prometheus.until_silent("OnairAuthUnavailable").await;
    }

    async fn postgres_can_be_lost(&self) {
        self.postgres.suspend().expect("it stops");
        self.prometheus.until_firing("OnairPostgresDown").await;
        raw_redis::forget_everything(&self.stack.redis).await;
        self.prometheus.until_firing("OnairPartitionsClosed").await;
        self.postgres.resume().expect("it goes on");
        self.prometheus.until_silent("OnairPartitionsClosed").await;
        self.prometheus.until_silent("OnairPostgresDown").await;
    }

    async fn publishers_can_be_a_nuisance(&self, node: &MediaMtx, held: &TestKey) {
        let guess = || PublishRequest::rtmp_query_key("live/ada", "sk_guess").with_ip("192.0.2.3");
        self.trying_until_firing(node, guess, "OnairKeyGuessing").await;
        let second = || publisher(held).with_ip("192.0.2.4");
        self.trying_until_firing(node, second, "OnairKeysInUse").await;
    }
}

fn publisher(key: &TestKey) -> PublishRequest {
    PublishRequest::rtmp_query_key(&key.path, &key.secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_when_their_fault_is_made_and_fall_silent_when_it_is_mended() {
    let bench = Bench::start().await;
    let edge_1 = bench.replica.mediamtx("edge-1").await;
    let edge_2 = bench.replica.mediamtx("edge-2").await;
    let ada = bench.replica.key("live/ada").await;
    let eve = bench.replica.key("live/eve").await;
    edge_1.publish(publisher(&ada)).await.admitted();
    stores::until("Prometheus has seen the service", async || {
        let up = bench.prometheus.query("up == 1 and on () onair_redis_up == 1").await;
        up.is_ok_and(|samples| !samples.is_empty())
    })
    .await;

    bench.nodes_can_be_lost_and_miswired(&edge_1, &edge_2).await;
    bench.redis_can_be_lost(&edge_1, &eve).await;
    bench.postgres_can_be_lost().await;
    bench.publishers_can_be_a_nuisance(&edge_1, &ada).await;

    let Bench { replica, prometheus, .. } = bench;
    replica.stop().await;
    prometheus.until_firing("OnairReplicaDown").await;
    prometheus.until_firing("OnairDown").await;
}
