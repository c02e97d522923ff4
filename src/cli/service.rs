//! `onair serve`, and what it shares with `onair dev`: listening, running, stopping in order.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::net::{TcpListener, TcpSocket};

use super::ConfigOptions;
use crate::{
    config::Config,
    lifecycle::{Signals, Tasks},
    logging::Log,
    replica,
};

/// Connections that may wait to be accepted: a node that restarts sends all its clients at once, each on its own connection.
const BACKLOG_CONNECTIONS: u32 = 4096;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigOptions,
    /// Say whether the configuration can be used, and end
    #[arg(long)]
    check: bool,
    /// The address to listen on, instead of the configured one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

pub(super) async fn serve(options: Options) -> anyhow::Result<()> {
    let config = options.config.load_listening_on(options.listen)?;
    if options.check {
        println!("{}", summary(&config));
        return Ok(());
    }
    let mut signals = Signals::catch().context("signals cannot be caught")?;
    let log = Log::start(&config.log)?;
    let outcome = match bind(config.server.listen) {
        Ok(listener) => run_until_stopped(config, listener, &mut signals, |_| ()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &outcome {
        tracing::error!(cause = format!("{error:#}"), "ended");
    }
    log.flush();
    outcome
}

/// What a configuration amounts to, without its secrets.
fn summary(config: &Config) -> String {
    format!(
        "The configuration can be used: listens on {}, reached by nodes at {}, {} API secret(s), {} node secret(s), {} node(s).",
        config.server.listen,
        config.public_url(),
        config.server.api_secrets.len(),
        config.server.node_secrets.len(),
        config.nodes.len(),
    )
}

/// Listens on an address.
///
/// # Errors
/// Where it is taken or not ours; the error names it.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A service that was stopped leaves connections behind for a minute, and is started again within it.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG_CONNECTIONS)
    };
    listen().with_context(|| format!("cannot listen on {address}"))
}

/// Runs one replica until a signal comes or something fails, and stops it in order. Calls `started` with the address once
/// it serves.
///
/// # Errors
/// Where it cannot start, a task of it failed, or it did not stop in time.
pub(crate) async fn run_until_stopped(
    config: Config,
    listener: TcpListener,
    signals: &mut Signals,
    started: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let drain = Duration::from_millis(config.server.drain_ms);
    let limit = Duration::from_millis(config.server.shutdown_timeout_ms);
    let address = listener.local_addr()?;
    let starting = replica::serve(config, listener, &tasks);
    let app = tokio::select! {
        outcome = starting => match outcome {
            Ok(app) => app,
            Err(error) => {
                tasks.join(limit).await;
                return Err(error.into());
            }
        },
        signal = signals.received() => {
            tracing::info!(signal, "stopped before it had started");
            tasks.join(limit).await;
            return Ok(());
        }
    };
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");
    started(address);
    let stopped = tasks.supervise(signals, drain, limit).await;
    // Only now: tasks that finish what they have in hand need the stores.
    tokio::join!(app.redis.close(), app.postgres.close());
    stopped.into_result()?;
    tracing::info!("stopped");
    Ok(())
}
