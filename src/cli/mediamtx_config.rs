//! `onair mediamtx-config NODE`: prints what belongs into a node's `mediamtx.yml`, or the file its hooks read.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use url::Url;

use super::ConfigOptions;
use crate::{
    config::{ConfigSecret, Variables},
    dev::{self, DevCredentials},
    domain::NodeName,
    nodes::{
        credentials::NodeCredentials,
        mediamtx_config::{CURL_CONFIG_PATH, Hooks, Wiring, is_hook_word},
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
    /// What the node's control API listens on
    #[arg(long, value_name = "ADDRESS", default_value = ":9997")]
    api_address: String,
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

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (secrets, configured_url) = options.secrets_and_url()?;
    let onair_url = options.public_url.clone().unwrap_or(configured_url);
    if !is_hook_word(onair_url.as_str()) || onair_url.host().is_none() {
        bail!("the address of Onair must be like http://onair.example.org:8080, without '$', quotes or '?'");
    }
    if !is_hook_word(&options.curlrc) || !is_hook_word(&options.api_address) {
        bail!("--curlrc and --api-address must hold no spaces, quotes or '$': MediaMTX would change them");
    }
    let credentials = NodeCredentials::new(&secrets).context("there is no node secret")?;
    let wiring = Wiring {
        node: &options.node,
        password: &credentials.password(&options.node),
        onair_url: &onair_url,
        api_address: &options.api_address,
        hooks: if options.no_hooks { Hooks::None } else { Hooks::Curl { config_path: &options.curlrc } },
    };
    match options.print {
        Print::Yaml => print!("{}", wiring.yaml()),
        Print::Curlrc => print!("{}", wiring.curl_config()),
    }
    if matches!((options.print, wiring.hooks), (Print::Yaml, Hooks::Curl { .. })) {
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

    fn secrets_and_url(&self) -> anyhow::Result<(Vec<ConfigSecret>, Url)> {
        if self.is_configured() {
            let config = self.config.load()?;
            return Ok((config.server.node_secrets.clone(), config.public_url()));
        }
        let credentials = read_dev_credentials(&self.data_dir)?.with_context(|| {
            format!(
                "there is neither a configuration (--config, ONAIR_SERVER_NODE_SECRETS) nor the data directory {} of `onair dev`",
                self.data_dir.display()
            )
        })?;
        Ok((vec![credentials.node_secret], credentials.api_url))
    }
}

fn read_dev_credentials(data_directory: &Path) -> anyhow::Result<Option<DevCredentials>> {
    DevCredentials::read(data_directory).context("the credentials of `onair dev` cannot be used")
}
