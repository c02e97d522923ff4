//! `onair ready`: asks a running service whether it is ready. For a container, whose image has nothing else to ask with.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use url::Url;

use super::api::problem;

/// Longer than the service asks its stores, and shorter than whoever starts this waits.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(2_500);

#[derive(Args)]
pub(super) struct Options {
    /// Where the service is
    #[arg(long, value_name = "URL", env = "ONAIR_API_URL", default_value = "http://127.0.0.1:8080")]
    api_url: Url,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut url = options.api_url;
    // Without what somebody may have put before or behind it.
    let address = url.origin().ascii_serialization();
    url.set_path(&format!("{}/readyz", url.path().trim_end_matches('/')));
    let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build()?;
    let response = http.get(url).send().await.map_err(reqwest::Error::without_url);
    let response = response.with_context(|| format!("the service cannot be reached at {address} (--api-url)"))?;
    if !response.status().is_success() {
        bail!("{}", problem(response).await);
    }
    println!("{}", response.text().await.map_err(reqwest::Error::without_url)?);
    Ok(())
}
