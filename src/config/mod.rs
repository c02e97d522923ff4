//! The configuration: one TOML file, overlaid with `ONAIR_` variables.
//!
//! Role: turns file and variables into one checked value; everything else takes its limits and addresses from there.
//!
//! Invariants:
//! - Every field has exactly one variable, `ONAIR_<SECTION>_<FIELD>`, and every secret one more that ends in `_FILE`.
//! - What nobody knows (a section, a field, an `ONAIR_` variable) is an error, so that a mistyped name is not a setting
//!   silently ignored.
//! - All problems are reported at once, each with the field and its variable, none with a value.
//! - A file that holds secrets and can be read by others is refused.

mod check;
mod postgres_url;
mod redis_url;
mod secret;
mod sections;
mod setting;

use std::{fmt, net::SocketAddr, path::Path};

use url::Url;

pub use secret::{ConfigSecret, SecretFileError, read_secret_file, refuse_if_readable_by_others};
pub use sections::{
    AdmissionConfig, HistoryConfig, LogConfig, LogFormat, NodeConfig, PostgresConfig, ReconcilerConfig, RedisConfig,
    RenditionsConfig, ServerConfig, ViewingConfig, WhenFull,
};
use setting::Reader;
pub use setting::{Field, Kind, Variables};

use crate::domain::{Wrong, explain};

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// How HTTP is served, and who may call.
    pub server: ServerConfig,
    /// Redis.
    pub redis: RedisConfig,
    /// Postgres.
    pub postgres: PostgresConfig,
    /// The decision who may publish.
    pub admission: AdmissionConfig,
    /// The reconciler and the kicks.
    pub reconciler: ReconcilerConfig,
    /// What nodes transcode streams into.
    pub renditions: RenditionsConfig,
    /// Who may watch.
    pub viewing: ViewingConfig,
    /// The write-behind.
    pub history: HistoryConfig,
    /// The log.
    pub log: LogConfig,
    /// Nodes that are put into the fleet at the start.
    pub nodes: Vec<NodeConfig>,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// One sentence for each problem, beginning with the field and its variable.
    pub problems: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the configuration cannot be used:")?;
        self.problems.iter().try_for_each(|problem| write!(formatter, "\n  - {problem}"))
    }
}

/// The variable that holds `nodes` as a JSON array.
const NODES_VARIABLE: &str = "ONAIR_NODES";

/// Variables that other commands read; `serve` leaves them alone.
const FOREIGN_VARIABLES: [&str; 6] =
    ["ONAIR_CONFIG", "ONAIR_DATA_DIR", "ONAIR_API_URL", "ONAIR_API_SECRET", "ONAIR_API_SECRET_FILE", NODES_VARIABLE];

impl Config {
    /// Every field of every section. `nodes` is not among them.
    pub fn fields() -> impl Iterator<Item = &'static Field> {
        [
            ServerConfig::FIELDS,
            RedisConfig::FIELDS,
            PostgresConfig::FIELDS,
            AdmissionConfig::FIELDS,
            ReconcilerConfig::FIELDS,
            RenditionsConfig::FIELDS,
            ViewingConfig::FIELDS,
            HistoryConfig::FIELDS,
            LogConfig::FIELDS,
        ]
        .into_iter()
        .flatten()
    }

    /// Reads the file, if one is given, and the variables, and checks the outcome.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn load(file: Option<&Path>, variables: &Variables) -> Result<Self, ConfigError> {
        Self::load_with(file, variables, |_| ())
    }

    /// As [`Config::load`], with a last word before the check, for what the command line overrides.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn load_with(
        file: Option<&Path>,
        variables: &Variables,
        override_with: impl FnOnce(&mut Self),
    ) -> Result<Self, ConfigError> {
        let one = |problem| ConfigError { problems: vec![problem] };
        let table = file.map_or_else(|| Ok(toml::Table::new()), read_table).map_err(one)?;
        let mut reader = Reader {
            table,
            directory: file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned(),
            variables,
            problems: Vec::new(),
            file_holds_secrets: false,
        };
        let mut config = Self {
            server: ServerConfig::read(&mut reader),
            redis: RedisConfig::read(&mut reader),
            postgres: PostgresConfig::read(&mut reader),
            admission: AdmissionConfig::read(&mut reader),
            reconciler: ReconcilerConfig::read(&mut reader),
            renditions: RenditionsConfig::read(&mut reader),
            viewing: ViewingConfig::read(&mut reader),
            history: HistoryConfig::read(&mut reader),
            log: LogConfig::read(&mut reader),
            nodes: read_nodes(&mut reader),
        };
        if let (Some(file), true) = (file, reader.file_holds_secrets)
            && let Err(error) = refuse_if_readable_by_others(file)
        {
            reader
                .problems
                .push(format!("{error} (it holds secrets; or let ..._FILE variables name files that hold them)"));
        }
        let mut problems = reader.problems;
        report_unknown(&reader.table, variables, &mut problems);
        override_with(&mut config);
        let mut unmet = Vec::new();
        config.check_into(&mut unmet);
        // What could not be read stands at its default: that the default does not do is no second problem.
        unmet.retain(|problem| !problems.iter().any(|known| place_of(known) == place_of(problem)));
        problems.append(&mut unmet);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// How the nodes reach this service: what was configured, else `http://` and the address it listens on.
    #[must_use]
    pub fn public_url(&self) -> Url {
        self.server.public_url.clone().unwrap_or_else(|| {
            let listen = self.server.listen;
            let host = match listen.ip() {
                ip if !ip.is_unspecified() => ip,
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            plain_http(SocketAddr::new(host, listen.port()))
        })
    }
}

/// The field and its variable, with which every problem of a setting begins.
fn place_of(problem: &str) -> &str {
    problem.split_once("): ").map_or(problem, |(place, _)| place)
}

fn plain_http(address: SocketAddr) -> Url {
    format!("http://{address}").parse().expect("an IP address and a port make a URL")
}

fn read_table(file: &Path) -> Result<toml::Table, String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
    text.parse::<toml::Table>().map_err(|error| {
        // Only the place and the message: the parser's own report quotes the line, and a line may hold a secret.
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        format!("{name}, line {line}: {}", error.message())
    })
}

fn read_nodes(reader: &mut Reader<'_>) -> Vec<NodeConfig> {
    let in_file = reader.table.remove("nodes");
    let read = match (reader.variables.get(NODES_VARIABLE), in_file) {
        (Some(text), _) => nodes_of_json(text).map_err(|wrong| format!("expected a JSON array of nodes: {wrong}")),
        (None, Some(value @ toml::Value::Array(_))) => {
            serde_path_to_error::deserialize(value).map_err(|error| said(error.path(), error.inner().message()))
        }
        (None, Some(_)) => Err("expected a [[nodes]] table for each node".to_owned()),
        (None, None) => Ok(Vec::new()),
    };
    read.unwrap_or_else(|problem| {
        reader.problems.push(format!("nodes ({NODES_VARIABLE}): {problem}"));
        Vec::new()
    })
}

fn nodes_of_json(text: &str) -> Result<Vec<NodeConfig>, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let nodes =
        serde_path_to_error::deserialize(&mut json).map_err(|error| said(error.path(), &error.inner().to_string()))?;
    json.end().map(|()| nodes).map_err(|_| "something follows it".to_owned())
}

/// What is wrong with a field, without its value.
fn said(path: &serde_path_to_error::Path, message: &str) -> String {
    let Wrong { field, detail } = explain(path, message);
    format!("{field}: {detail}")
}

fn report_unknown(left_over: &toml::Table, variables: &Variables, problems: &mut Vec<String>) {
    for (section, value) in left_over {
        match value.as_table() {
            Some(table) if Config::fields().any(|field| field.section == section) => {
                problems.extend(table.keys().map(|name| format!("{section}.{name}: there is no such field")));
            }
            Some(_) => problems.push(format!("[{section}]: there is no such section")),
            None => problems.push(format!("{section}: stands outside of any [section]")),
        }
    }
    for (name, value) in variables.names() {
        let known =
            Config::fields().any(|field| field.variable == name || field.file_variable().as_deref() == Some(name));
        if !known && !FOREIGN_VARIABLES.contains(&name) && !is_service_link(name, value) {
            problems.push(format!("{name}: there is no such variable"));
        }
    }
}

/// Kubernetes sets such variables for every service of a namespace: a service called `onair` or `onair-...` would
/// otherwise keep us from starting.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let after_port = name.split_once("_PORT_").and_then(|(_, rest)| rest.bytes().next());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && is_address
        || after_port.is_some_and(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
