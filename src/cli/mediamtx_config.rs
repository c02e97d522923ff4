//! `onair mediamtx-config NODE`: prints what belongs into a node's `mediamtx.yml`, or the file its hooks read.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use url::Url;

use super::ConfigOptions;
use crate::{
    config::{ConfigSecret, NodeConfig, Variables},
    dev::{self, DevCredentials},
    domain::NodeName,
    node_credentials::NodeCredentials,
    nodes::mediamtx_config::{
        CURL_CONFIG_PATH, Hooks, Wiring, WiringError, WiringParts, api_address, usual_api_address,
    },
};

#[derive(Args)]
pub(super) struct Options {
    /// The node's name: 1 to 63 of a-z, 0-9 and '-'
    node: NodeName,
    #[command(flatten)]
    config: ConfigOptions,
    /// Take secret and address from the data directory of `onair dev`, unless a configuration says otherwise
    #[arg(long, value_name = "DIRECTORY", env = "ONAIR_DATA_DIR", default_value = dev::DATA_DIRECTORY)]
    data_dir: PathBuf,
    /// How the node reaches Onair, instead of the configured address
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// What the node's control API listens on [default: as the node's `control_url` in the configuration says, else :9997]
    #[arg(long, value_name = "ADDRESS")]
    api_address: Option<String>,
    /// Leave the hooks out: for an image without curl. Onair then knows a second later
    #[arg(long)]
    no_hooks: bool,
    /// Where the hooks find the file that `--print curlrc` prints
    #[arg(long, value_name = "FILE", default_value = CURL_CONFIG_PATH)]
    curlrc: String,
    /// Which of the two files to print
    #[arg(long, value_enum, default_value_t = Print::Yaml)]
    print: Print,
}

#[derive(Clone, Copy, ValueEnum)]
enum Print {
    /// For mediamtx.yml
    Yaml,
    /// For the file that the hooks' curl reads its password from
    Curlrc,
}

/// What is known of the service that the node will ask.
struct Known {
    node_secrets: Vec<ConfigSecret>,
    url: Url,
    nodes: Vec<NodeConfig>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let known = options.known()?;
    let onair_url = options.public_url.as_ref().unwrap_or(&known.url);
    let configured = known.nodes.iter().find(|node| node.name == options.node);
    let as_known = || configured.map_or_else(usual_api_address, |node| api_address(&node.control_url));
    let api_address = options.api_address.clone().unwrap_or_else(as_known);
    if configured.is_none() {
        eprintln!(
            "Warning: the configuration has no node {node}. Nodes may also be added through the API: then this has to be just \
             its name, and {api_address} what its control API listens on (--api-address).",
            node = options.node
        );
    }
    let credentials = NodeCredentials::new(&known.node_secrets).context("there is no node secret")?;
    let parts = WiringParts {
        node: &options.node,
        password: &credentials.password(&options.node),
        onair_url,
        api_address: &api_address,
        hooks: if options.no_hooks { Hooks::None } else { Hooks::Curl { config_path: &options.curlrc } },
    };
    let hooks = parts.hooks;
    let wiring = Wiring::new(parts).map_err(|error| anyhow!("{}: {error}", said_by(error)))?;
    match options.print {
        Print::Yaml => print!("{}", wiring.yaml()),
        Print::Curlrc => print!("{}", wiring.curl_config()),
    }
    if matches!((options.print, hooks), (Print::Yaml, Hooks::Curl { .. })) {
        eprintln!(
            "The hooks read their password from {path}. Make it, and give it to the user that MediaMTX runs as:\n  \
             umask 077; onair mediamtx-config {node}{source} --print curlrc > {path}",
            path = options.curlrc,
            node = options.node,
            source = options.source(),
        );
    }
    Ok(())
}

/// Which argument or setting it is that cannot be used.
fn said_by(error: WiringError) -> &'static str {
    match error {
        WiringError::OnairUrl => "--public-url, or server.public_url",
        WiringError::ApiAddress => "--api-address",
        WiringError::CurlConfigPath => "--curlrc",
    }
}

impl Options {
    fn is_configured(&self) -> bool {
        let variables = Variables::of_process();
        self.config.config.is_some()
            || ["ONAIR_SERVER_NODE_SECRETS", "ONAIR_SERVER_NODE_SECRETS_FILE"]
                .iter()
                .any(|name| variables.get(name).is_some())
    }

    /// What another call has to say to find the same secret and the same address.
    fn source(&self) -> String {
        let secret = match &self.config.config {
            Some(file) => format!(" --config '{}'", file.display()),
            None if self.is_configured() => String::new(),
            None => format!(" --data-dir '{}'", self.data_dir.display()),
        };
        let address = self.public_url.as_ref().map(|url| format!(" --public-url '{url}'"));
        secret + &address.unwrap_or_default()
    }

    fn known(&self) -> anyhow::Result<Known> {
        if self.is_configured() {
            let config = self.config.load()?;
            let url = config.public_url();
            return Ok(Known { node_secrets: config.server.node_secrets, url, nodes: config.nodes });
        }
        let credentials = read_dev_credentials(&self.data_dir)?.with_context(|| {
            format!(
                "there is neither a configuration (--config, ONAIR_SERVER_NODE_SECRETS) nor the data directory {} of `onair dev`",
                self.data_dir.display()
            )
        })?;
        let nodes = dev::configured_nodes(&credentials)?;
        Ok(Known { node_secrets: vec![credentials.node_secret], url: credentials.api_url, nodes })
    }
}

fn read_dev_credentials(data_directory: &Path) -> anyhow::Result<Option<DevCredentials>> {
    DevCredentials::read(data_directory).context("the credentials of `onair dev` cannot be used")
}
