//! How Redis is set up: asked by people who check an installation, never by the service.

use std::collections::HashMap;

use fred::{
    interfaces::{ClientLike, ConfigInterface},
    types::InfoKind,
};

use super::{Redis, RedisError};

/// What Redis says of itself; in a cluster, one of its servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// Such as `7.0.15`.
    pub version: String,
    /// What it does when its memory is full; absent where we may not ask.
    pub eviction_policy: Option<String>,
    /// Whether it writes an append-only file.
    pub appends_to_disk: bool,
}

impl Redis {
    /// Asks how Redis is set up.
    ///
    /// # Errors
    /// Where Redis gives no answer, or not that.
    pub async fn settings(&self) -> Result<RedisSettings, RedisError> {
        let connection = self.any()?;
        let server: String = self.limited(&connection, connection.info(Some(InfoKind::Server))).await?;
        let persistence: String = self.limited(&connection, connection.info(Some(InfoKind::Persistence))).await?;
        // A managed Redis often forbids CONFIG: then this one thing is not known, and that is said.
        let policy =
            self.limited(&connection, connection.config_get::<HashMap<String, String>, _>("maxmemory-policy")).await;
        let line = |report: &str, name: &str| {
            report
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        Ok(RedisSettings {
            version: line(&server, "redis_version")
                .ok_or_else(|| RedisError::Protocol("INFO tells no version".to_owned()))?,
            eviction_policy: policy.ok().and_then(|settings| settings.into_values().next()),
            appends_to_disk: line(&persistence, "aof_enabled").as_deref() == Some("1"),
        })
    }
}
