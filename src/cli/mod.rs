//! What can be typed: one command for each role of the program.
//!
//! Role: reads arguments and starts the rooms that do the work. A failed command says why on standard error, in one
//! sentence for each cause, and ends with code 1; a wrong argument with code 2.
//!
//! Invariant: no secret is an argument, since every user of the machine can read the arguments of every process.

mod api;
mod doctor;
mod keys;
mod mediamtx_config;
mod migrate;
mod ready;
mod rebuild;
mod service;
mod verify;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, Variables},
    dev,
};

pub(crate) use service::{bind, run_until_stopped};

/// Decides who may go on air on a fleet of `MediaMTX` servers, knows what is on air, and keeps the record.
#[derive(Parser)]
#[command(name = "onair", version, about, propagate_version = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Serve(service::Options),
    /// Run the service with a private Redis and Postgres, and say what to try
    Dev(dev::Options),
    /// Bring the database up to date
    Migrate(ConfigOptions),
    /// Check Redis, Postgres and every node's wiring, and say what to change; fails where something is a problem
    Doctor(ConfigOptions),
    /// Compare Redis, Postgres and the nodes; prints every difference, and fails where there is one
    Verify(ConfigOptions),
    /// Make Redis agree with Postgres and the nodes, while the service runs; prints what was different
    Rebuild(ConfigOptions),
    /// Ask a running service whether it is ready; fails where it is not
    Ready(ready::Options),
    /// Create, list, revoke, disable and enable stream keys, through the API
    Keys(keys::Options),
    /// Print what belongs into a node's mediamtx.yml
    MediamtxConfig(mediamtx_config::Options),
}

/// Where the configuration is.
#[derive(Args, Clone)]
pub(crate) struct ConfigOptions {
    /// The TOML file; without one, variables and defaults are all there is
    #[arg(long, value_name = "FILE", env = "ONAIR_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigOptions {
    fn load(&self) -> Result<Config, ConfigError> {
        self.load_listening_on(None)
    }

    fn load_listening_on(&self, listen: Option<SocketAddr>) -> Result<Config, ConfigError> {
        Config::load_with(self.config.as_deref(), &Variables::of_process(), |config| {
            if let Some(listen) = listen {
                config.server.listen = listen;
            }
        })
    }
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Two libraries want TLS and would have to choose; a second choice, made by a test before us, is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::anyhow!(error).context("the runtime cannot be started")),
    };
    match runtime.block_on(arguments.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(options) => service::serve(options).await,
            Self::Dev(options) => dev::run(options).await,
            Self::Migrate(options) => migrate::run(&options).await,
            Self::Doctor(options) => doctor::run(&options).await,
            Self::Verify(options) => verify::run(&options).await,
            Self::Rebuild(options) => rebuild::run(&options).await,
            Self::Ready(options) => ready::run(options).await,
            Self::Keys(options) => keys::run(options).await,
            Self::MediamtxConfig(options) => mediamtx_config::run(&options),
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("onair: {error:#}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
