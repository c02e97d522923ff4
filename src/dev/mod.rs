//! `onair dev`: the whole of Onair on one machine, with a Redis and a Postgres of its own, and a page of what to try.
//!
//! Invariants:
//! - Everything it makes is in its data directory; everything it starts has stopped when it ends. Started again, it finds
//!   keys, history and secrets as they were.
//! - The service is the one that `onair serve` runs, with the same checks; only its stores and secrets are made here.

mod credentials;
mod guide;
pub mod servers;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use url::Url;

pub use credentials::DevCredentials;
use servers::{
    ClaimedDirectory, Durability, Home, Listen, Persistence, PostgresOptions, PrivatePostgres, PrivateRedis,
    RedisOptions,
};

use crate::{
    cli::{bind, run_until_stopped},
    config::{Config, ConfigSecret, LogFormat, NodeConfig, Variables},
    domain::PublicUrls,
    lifecycle::Signals,
    logging::Log,
    node_credentials::NodeCredentials,
    nodes::mediamtx_config::{Hooks, Wiring, WiringError, WiringParts, api_address},
    postgres::Postgres,
};

/// Where everything is kept unless something else is wanted.
pub const DATA_DIRECTORY: &str = ".onair";

/// The node that is there from the beginning, unless others are configured: a `MediaMTX` on this machine, on its own default
/// ports.
const NODE: &str = "edge-1";
const NODE_API_ADDRESS: &str = "127.0.0.1:9997";

/// What can be chosen.
#[derive(Args)]
pub struct Options {
    /// Where everything is kept: secrets, keys, history
    #[arg(long, value_name = "DIRECTORY", env = "ONAIR_DATA_DIR", default_value = DATA_DIRECTORY)]
    data_dir: PathBuf,
    /// The address to listen on; port 0 for a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

/// Runs it until it is stopped.
///
/// # Errors
/// Where the data directory or the address is in use, a store does not start or ends, or the service fails.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("signals cannot be caught")?;
    let directory = ClaimedDirectory::claim(&options.data_dir)?;
    let kept = DevCredentials::read(directory.path())?;
    // The address in them is the last run's; the listener tells this one's.
    let mut credentials = match kept {
        Some(credentials) => credentials,
        None => DevCredentials::generate("http://127.0.0.1:8080".parse()?)?,
    };
    let mut config = configure(options.listen, &credentials)?;
    let listener = bind(config.server.listen).context("choose another address with --listen")?;
    config.server.listen = listener.local_addr()?;
    credentials.api_url = config.public_url();
    config.server.public_url = Some(credentials.api_url.clone());
    credentials.write(directory.path())?;
    let files = Files::write(directory.path(), &credentials, &config.nodes)?;
    let guide = guide::text(&options.data_dir, &files, &credentials.api_url, &config.nodes);

    let log = Log::start(&config.log)?;
    let mut stores = tokio::select! {
        stores = Stores::start(directory.path()) => stores?,
        _ = signals.received() => return Ok(()),
    };
    config.redis.url = ConfigSecret::new(stores.redis.url());
    config.postgres.url = ConfigSecret::new(stores.postgres.url());
    let service = async {
        migrate(&config).await?;
        run_until_stopped(config, listener, &mut signals, |_| println!("{guide}")).await
    };
    let outcome = tokio::select! {
        outcome = service => outcome,
        error = stores.until_one_ends() => Err(error),
    };
    let stopped = stores.stop().await;
    log.flush();
    outcome.and(stopped)
}

/// The nodes that `onair dev` with these credentials has from the beginning.
///
/// # Errors
/// Where the variables make no configuration.
pub(crate) fn configured_nodes(credentials: &DevCredentials) -> anyhow::Result<Vec<NodeConfig>> {
    Ok(configure(None, credentials)?.nodes)
}

/// The variables hold here too, except for the stores and the secrets.
fn configure(listen: Option<SocketAddr>, credentials: &DevCredentials) -> anyhow::Result<Config> {
    let variables = Variables::of_process();
    let config = Config::load_with(None, &variables, |config| {
        config.server.api_secrets = vec![credentials.api_secret.clone()];
        config.server.node_secrets = vec![credentials.node_secret.clone()];
        if let Some(listen) = listen {
            config.server.listen = listen;
        }
        if variables.get("ONAIR_LOG_FORMAT").is_none() {
            config.log.format = LogFormat::Pretty;
        }
        if config.nodes.is_empty() {
            config.nodes.push(node_on_this_machine());
        }
    })?;
    Ok(config)
}

fn node_on_this_machine() -> NodeConfig {
    let url = |scheme: &str, port: u16| -> Option<Url> { format!("{scheme}://127.0.0.1:{port}").parse().ok() };
    NodeConfig {
        name: NODE.parse().expect("edge-1 is a node name"),
        control_url: format!("http://{NODE_API_ADDRESS}").parse().expect("an address makes a URL"),
        public_urls: PublicUrls {
            hls: url("http", 8888),
            webrtc: url("http", 8889),
            rtmp: url("rtmp", 1935),
            rtsp: url("rtsp", 8554),
            srt: url("srt", 8890),
        },
    }
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    let postgres = Postgres::new(&config.postgres)?;
    let outcome = postgres.migrate().await.context("the database could not be brought up to date");
    postgres.close().await;
    outcome
}

/// Files for others to read: `curl`'s credentials for the API, and the configuration of every node.
struct Files {
    api_curlrc: PathBuf,
    nodes: Vec<NodeFiles>,
}

/// What a node is started with.
struct NodeFiles {
    path: PathBuf,
    yaml: String,
}

impl Files {
    fn write(directory: &Path, credentials: &DevCredentials, nodes: &[NodeConfig]) -> anyhow::Result<Self> {
        let api_curlrc = directory.join("api.curlrc");
        let authorization = format!("header = \"Authorization: Bearer {}\"\n", credentials.api_secret.reveal());
        credentials::write_private(&api_curlrc, &authorization)?;
        let nodes =
            nodes.iter().map(|node| NodeFiles::write(directory, credentials, node)).collect::<Result<_, _>>()?;
        Ok(Self { api_curlrc, nodes })
    }
}

impl NodeFiles {
    fn write(directory: &Path, credentials: &DevCredentials, node: &NodeConfig) -> anyhow::Result<Self> {
        let node_secrets = [credentials.node_secret.clone()];
        let node_credentials = NodeCredentials::new(&node_secrets).expect("there is one secret");
        let path = directory.join(format!("{}.yml", node.name));
        let node_curlrc = directory.join(format!("{}.curlrc", node.name));
        let config_path = node_curlrc.to_string_lossy();
        let password = node_credentials.password(&node.name);
        let api_address = api_address(&node.control_url);
        let wired = |hooks| {
            let (node, onair_url) = (&node.name, &credentials.api_url);
            Wiring::new(WiringParts { node, password: &password, onair_url, api_address: &api_address, hooks })
        };
        // A hook cannot name every directory. Without hooks Onair knows a second later.
        let wiring = match wired(Hooks::Curl { config_path: &config_path }) {
            Err(WiringError::CurlConfigPath) => wired(Hooks::None)?,
            wiring => wiring?,
        };
        credentials::write_private(&node_curlrc, &wiring.curl_config())?;
        credentials::write_private(&path, &wiring.yaml())?;
        Ok(Self { path, yaml: wiring.yaml() })
    }
}

struct Stores {
    redis: PrivateRedis,
    postgres: PrivatePostgres,
}

impl Stores {
    async fn start(directory: &Path) -> anyhow::Result<Self> {
        let redis = PrivateRedis::start(RedisOptions {
            home: Home::Kept(directory.join("redis")),
            persistence: Persistence::AppendOnly,
            listen: Listen::UnixSocket,
        });
        let postgres = PrivatePostgres::start(PostgresOptions {
            home: Home::Kept(directory.join("postgres")),
            durability: Durability::Durable,
            listen: Listen::UnixSocket,
        });
        let (redis, postgres) = tokio::try_join!(redis, postgres)?;
        Ok(Self { redis, postgres })
    }

    async fn until_one_ends(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.redis.until_it_ends() => error.context("Redis has ended"),
            error = self.postgres.until_it_ends() => error.context("Postgres has ended"),
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        let (redis, postgres) = tokio::join!(self.redis.stop(), self.postgres.stop());
        redis.and(postgres)
    }
}
