//! `onair` as a process of its own, on the stores of a test.

use std::process::Command;

use onair::config::{Config, ConfigSecret};

use super::stack::{API_SECRET, NODE_SECRET};

/// The program with some arguments: with the stores, the secrets and the time for Redis of `config`, and nothing else of this environment.
pub fn onair(config: &Config, arguments: &[&str]) -> Command {
    let secrets = |all: &[ConfigSecret]| all.iter().map(ConfigSecret::reveal).collect::<Vec<_>>().join(",");
    let mut command = Command::new(env!("CARGO_BIN_EXE_onair"));
    command
        .args(arguments)
        .env_clear()
        .env("ONAIR_SERVER_API_SECRETS", secrets(&config.server.api_secrets))
        .env("ONAIR_SERVER_NODE_SECRETS", secrets(&config.server.node_secrets))
        .env("ONAIR_REDIS_URL", config.redis.url.reveal())
        .env("ONAIR_REDIS_COMMAND_TIMEOUT_MS", config.redis.command_timeout_ms.to_string())
        .env("ONAIR_ADMISSION_DEADLINE_MS", config.admission.deadline_ms.to_string())
        .env("ONAIR_POSTGRES_URL", config.postgres.url.reveal());
    command
}

/// Runs a command to its end, off this thread, which may play the nodes that it asks: its exit code, and all that it said, in which no
/// secret may be.
pub async fn run(mut command: Command) -> (Option<i32>, String) {
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = running.await.expect("it is waited for").expect("it can be started");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for secret in [API_SECRET, NODE_SECRET] {
        assert!(!said.contains(secret), "{said}");
    }
    (output.status.code(), said)
}
