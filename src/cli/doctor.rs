//! `onair doctor`: looks at everything that the service depends on, and says in words what to change.
//!
//! It uses the service's own configuration, changes nothing, and ends with code 1 where something is a problem. A hint is no
//! problem.

use anyhow::bail;

use super::ConfigOptions;
use crate::{
    config::Config,
    domain::Node,
    node_credentials::NodeCredentials,
    nodes::{Expectation, NodeClient, Severity, check_wiring},
    postgres::{Postgres, SchemaState},
    redis::{Redis, RedisSettings},
};

/// The oldest Redis whose scripts may read the clock before they write.
const REDIS_MAJOR_MIN: u32 = 7;

/// What was found, as it is printed.
#[derive(Default)]
struct Report {
    problems: usize,
}

impl Report {
    fn good(what: &str) {
        println!("ok       {what}");
    }

    fn hint(what: &str) {
        println!("hint     {what}");
    }

    fn problem(&mut self, what: &str) {
        println!("PROBLEM  {what}");
        self.problems += 1;
    }
}

pub(super) async fn run(options: &ConfigOptions) -> anyhow::Result<()> {
    let config = options.load()?;
    let mut report = Report::default();
    Report::good("configuration: can be used");
    let redis = Redis::connect(&config.redis).await?;
    check_redis(&redis, &mut report).await;
    let postgres = Postgres::new(&config.postgres)?;
    check_postgres(&postgres, &mut report).await;
    check_nodes(&config, &redis, &postgres, &mut report).await?;
    tokio::join!(redis.close(), postgres.close());
    match report.problems {
        0 => Ok(()),
        1 => bail!("there is a problem"),
        problems => bail!("there are {problems} problems"),
    }
}

async fn check_redis(redis: &Redis, report: &mut Report) {
    let settings = match redis.settings().await {
        Ok(settings) => settings,
        Err(error) => {
            let advice = "check redis.url (ONAIR_REDIS_URL), and that it runs. Until then every publisher is refused";
            return report.problem(&format!("Redis: {error}; {advice}"));
        }
    };
    let RedisSettings { version, eviction_policy, appends_to_disk } = settings;
    let major = version.split('.').next().and_then(|text| text.parse::<u32>().ok());
    if major.is_some_and(|major| major >= REDIS_MAJOR_MIN) {
        Report::good(&format!("Redis: version {version}"));
    } else {
        report.problem(&format!("Redis: version {version} is too old; {REDIS_MAJOR_MIN} or later is needed"));
    }
    match eviction_policy.as_deref() {
        Some("noeviction") => Report::good("Redis: evicts nothing"),
        Some(policy) => report.problem(&format!(
            "Redis: maxmemory-policy is {policy}, so a full Redis forgets streams and revoked keys. Set maxmemory-policy noeviction"
        )),
        None => Report::hint("Redis: may not be asked for maxmemory-policy; it has to be noeviction"),
    }
    if appends_to_disk {
        Report::good("Redis: writes an append-only file");
    } else {
        Report::hint(
            "Redis: appendonly is off, so a restart forgets what is on air and what is not yet in the history. Set appendonly yes",
        );
    }
}

async fn check_postgres(postgres: &Postgres, report: &mut Report) {
    match postgres.schema().await {
        Ok(SchemaState::Current) => Report::good("Postgres: the database is up to date"),
        Ok(SchemaState::Behind { .. }) => {
            report.problem("Postgres: the database is not up to date. Run `onair migrate`");
        }
        Err(error) => {
            report.problem(&format!("Postgres: {error}; check postgres.url (ONAIR_POSTGRES_URL), and that it runs"));
        }
    }
}

async fn check_nodes(config: &Config, redis: &Redis, postgres: &Postgres, report: &mut Report) -> anyhow::Result<()> {
    let Some(nodes) = known_nodes(redis, postgres).await else {
        report.problem("nodes: neither Redis nor Postgres can tell which there are");
        return Ok(());
    };
    if nodes.is_empty() {
        Report::hint("nodes: there are none yet. Add one with PUT /v1/nodes/{name}, or in the configuration file");
    }
    let Some(credentials) = NodeCredentials::new(&config.server.node_secrets) else {
        bail!("server.node_secrets (ONAIR_SERVER_NODE_SECRETS) is empty");
    };
    let client = NodeClient::new(&config.reconciler, credentials.clone())?;
    let wiring = Expectation { public_url: config.public_url(), credentials };
    for node in &nodes {
        check_node(node, &client, &wiring, report).await;
    }
    Ok(())
}

/// The nodes that Postgres knows; those that Redis knows where Postgres is away.
async fn known_nodes(redis: &Redis, postgres: &Postgres) -> Option<Vec<Node>> {
    if let Ok(nodes) = postgres.nodes().await {
        return Some(nodes);
    }
    let mut nodes: Vec<Node> = redis.nodes().await.ok()?.into_values().collect();
    nodes.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Some(nodes)
}

async fn check_node(node: &Node, client: &NodeClient, wiring: &Expectation, report: &mut Report) {
    let name = &node.name;
    let info = match client.info(node).await {
        Ok(info) => info,
        Err(error) => {
            return report.problem(&format!(
                "node {name}: {error}. Its control URL is {}: see that MediaMTX runs there and can be reached, and that its \
                 configuration says what `onair mediamtx-config {name}` prints",
                node.control_url
            ));
        }
    };
    Report::good(&format!("node {name}: answers, version {}", info.version));
    for found in check_wiring(client, node, wiring, &info.version).await {
        let text = format!("node {name}: {} ({})", found.detail, found.code);
        match found.severity {
            Severity::Problem => report.problem(&text),
            Severity::Hint => Report::hint(&text),
        }
    }
}
