//! One replica: the application and the HTTP in front of it.

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::{
    app::{App, StartError},
    config::Config,
    http,
    lifecycle::Tasks,
    metrics,
};

/// Starts a replica that serves on `listener` until `tasks` are told to stop.
///
/// # Errors
/// Where the configuration or the database cannot be used. A store that is away is no reason not to start.
pub async fn serve(mut config: Config, listener: TcpListener, tasks: &Tasks) -> Result<Arc<App>, StartError> {
    metrics::install();
    // A port that the system chose is part of how nodes reach us.
    config.server.listen = listener.local_addr()?;
    let app = App::start(config, tasks).await?;
    http::start(&app, listener, tasks);
    Ok(app)
}
