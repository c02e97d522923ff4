//! What has to hold between the settings.

use std::collections::BTreeSet;

use url::Url;

use super::{Config, ConfigSecret, postgres_url, redis_url};
use crate::domain::Node;

/// The fewest characters of a secret that somebody else could guess at.
const SECRET_CHARACTERS_MIN: usize = 32;

/// What the secrets of `onair.example.toml` begin with, which everybody can read.
const EXAMPLE_SECRET_START: &str = "change-me";

impl Config {
    pub(super) fn check_into(&self, problems: &mut Vec<String>) {
        self.server.check_ranges(problems);
        self.redis.check_ranges(problems);
        self.postgres.check_ranges(problems);
        self.admission.check_ranges(problems);
        self.reconciler.check_ranges(problems);
        self.renditions.check_ranges(problems);
        self.viewing.check_ranges(problems);
        self.history.check_ranges(problems);
        self.log.check_ranges(problems);
        check_secrets(problems, "server.api_secrets (ONAIR_SERVER_API_SECRETS)", &self.server.api_secrets);
        check_secrets(problems, "server.node_secrets (ONAIR_SERVER_NODE_SECRETS)", &self.server.node_secrets);
        if self.server.api_secrets.iter().any(|secret| self.server.node_secrets.contains(secret)) {
            problems.push(
                "server.node_secrets (ONAIR_SERVER_NODE_SECRETS): must not be one of server.api_secrets".to_owned(),
            );
        }
        if let Some(url) = &self.server.public_url {
            check_http(problems, "server.public_url (ONAIR_SERVER_PUBLIC_URL)", url);
        }
        let of_redis = redis_url::problems(self.redis.url.reveal());
        problems.extend(of_redis.into_iter().map(|problem| format!("redis.url (ONAIR_REDIS_URL): {problem}")));
        let of_postgres = postgres_url::problems(self.postgres.url.reveal());
        problems.extend(of_postgres.into_iter().map(|problem| format!("postgres.url (ONAIR_POSTGRES_URL): {problem}")));
        self.check_limits(problems);
        self.check_nodes(problems);
        if self.log.filter.parse::<tracing_subscriber::filter::Targets>().is_err() {
            problems
                .push("log.filter (ONAIR_LOG_FILTER): expected directives such as info,onair::nodes=debug".to_owned());
        }
    }

    fn check_limits(&self, problems: &mut Vec<String>) {
        let reconciler = &self.reconciler;
        let mut below = |(name, value): (&str, u64), (limit_name, limit): (&str, u64), why: &str| {
            if value >= limit {
                problems.push(format!("{name}: must be below {limit_name} ({limit}), {why}"));
            }
        };
        below(
            ("redis.command_timeout_ms (ONAIR_REDIS_COMMAND_TIMEOUT_MS)", self.redis.command_timeout_ms),
            ("admission.deadline_ms", self.admission.deadline_ms),
            "so that an auth call can still be answered",
        );
        below(
            ("server.requests_max (ONAIR_SERVER_REQUESTS_MAX)", self.server.requests_max as u64),
            ("server.connections_max", self.server.connections_max as u64),
            "so that there is always room for auth calls",
        );
        below(
            ("admission.lookups_max (ONAIR_ADMISSION_LOOKUPS_MAX)", self.admission.lookups_max as u64),
            ("postgres.connections_max", u64::from(self.postgres.connections_max)),
            "so that unknown keys cannot keep everybody else from Postgres",
        );
        below(
            ("reconciler.poll_interval_ms (ONAIR_RECONCILER_POLL_INTERVAL_MS)", reconciler.poll_interval_ms),
            ("reconciler.node_stale_after_ms", reconciler.node_stale_after_ms),
            "or every node is stale between two polls",
        );
        below(
            ("reconciler.node_stale_after_ms (ONAIR_RECONCILER_NODE_STALE_AFTER_MS)", reconciler.node_stale_after_ms),
            ("reconciler.node_lost_after_ms", reconciler.node_lost_after_ms),
            "since a node is stale before it is lost",
        );
    }

    fn check_nodes(&self, problems: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for node in &self.nodes {
            if !names.insert(&node.name) {
                problems.push(format!("nodes (ONAIR_NODES): {} is given twice", node.name));
            }
            if let Err((field, problem)) = Node::check(&node.control_url, &node.public_urls) {
                problems.push(format!("nodes (ONAIR_NODES): {field} of {}: {problem}", node.name));
            }
        }
    }
}

fn check_secrets(problems: &mut Vec<String>, place: &str, secrets: &[ConfigSecret]) {
    if secrets.is_empty() {
        problems.push(format!("{place}: at least one is needed; `openssl rand -hex 32` makes one"));
    }
    for (number, secret) in (1..).zip(secrets) {
        let text = secret.reveal();
        if text.chars().count() < SECRET_CHARACTERS_MIN {
            problems.push(format!("{place}: number {number} has fewer than {SECRET_CHARACTERS_MIN} characters"));
        }
        let start = text.get(..EXAMPLE_SECRET_START.len());
        if start.is_some_and(|start| start.eq_ignore_ascii_case(EXAMPLE_SECRET_START)) {
            problems.push(format!("{place}: number {number} is the example's; `openssl rand -hex 32` makes a new one"));
        }
        // A header has to carry it, and a variable parts them by commas.
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            problems.push(format!("{place}: number {number} holds a space, a comma or a character that is not ASCII"));
        }
    }
}

fn check_http(problems: &mut Vec<String>, place: &str, url: &Url) {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        problems.push(format!("{place}: must begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        problems.push(format!("{place}: must hold no user, password, query or fragment"));
    }
}
