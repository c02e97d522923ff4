//! The API as the command line calls it: where it is, its secret, and what its problems say.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Method, Response};
use serde_json::Value;
use url::Url;

use crate::{
    config::{ConfigSecret, Variables, read_secret_file},
    dev::{DATA_DIRECTORY, DevCredentials},
};

/// A revocation waits a moment for the publisher to be gone.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the API is, and what it asks for.
#[derive(Args)]
pub(super) struct ApiOptions {
    /// Where the API is, such as `http://onair.example.org:8080`
    #[arg(long, value_name = "URL", env = "ONAIR_API_URL", global = true)]
    api_url: Option<Url>,
    /// A file with the API secret, mode 600. Or set `ONAIR_API_SECRET`, or `ONAIR_API_SECRET_FILE`
    #[arg(long, value_name = "FILE", env = "ONAIR_API_SECRET_FILE", global = true)]
    api_secret_file: Option<PathBuf>,
    /// Take both from the data directory of `onair dev` where they are not given
    #[arg(long, value_name = "DIRECTORY", env = "ONAIR_DATA_DIR", default_value = DATA_DIRECTORY, global = true)]
    data_dir: PathBuf,
}

/// A client of the API.
pub(super) struct Api {
    http: reqwest::Client,
    url: Url,
    secret: ConfigSecret,
}

impl Api {
    pub(super) fn new(options: &ApiOptions) -> anyhow::Result<Self> {
        let dev = DevCredentials::read(&options.data_dir)?;
        let (dev_url, dev_secret) = dev.map(|dev| (dev.api_url, dev.api_secret)).unzip();
        let secret = match (&options.api_secret_file, Variables::of_process().get("ONAIR_API_SECRET")) {
            // The service's own file may be named, which holds several while one is being replaced: each is valid.
            (Some(file), _) => read_secret_file(Path::new(file))?.lines().next().map(ConfigSecret::new),
            (None, Some(secret)) => Some(ConfigSecret::new(secret)),
            (None, None) => dev_secret,
        };
        let missing = |what: &str| format!("{what}, and there is no {} of `onair dev`", options.data_dir.display());
        Ok(Self {
            http: reqwest::Client::builder()
                // A redirected POST would become a GET, and its answer be taken for the other's.
                .redirect(reqwest::redirect::Policy::none())
                .timeout(REQUEST_TIMEOUT)
                .build()?,
            url: options.api_url.clone().or(dev_url).with_context(|| missing("--api-url is not given"))?,
            secret: secret.with_context(|| missing("neither --api-secret-file nor ONAIR_API_SECRET is given"))?,
        })
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
        self.call(Method::GET, path, query, None).await
    }

    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.call(Method::POST, path, &[], body).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).bearer_auth(self.secret.reveal());
        if let Some(body) = body {
            request = request.json(body);
        }
        // Without its URL, which may hold a password.
        let response = request.send().await.map_err(reqwest::Error::without_url);
        let response = response.with_context(|| format!("{} cannot be reached", self.address()))?;
        if !response.status().is_success() {
            bail!("{}", problem(response).await);
        }
        response.json().await.map_err(reqwest::Error::without_url).context("the answer cannot be understood")
    }

    fn address(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or(""), self.url.port_or_known_default().unwrap_or(0))
    }
}

/// What a problem says, in one line.
pub(super) async fn problem(response: Response) -> String {
    let status = response.status();
    let Ok(problem) = response.json::<Value>().await else { return format!("answered {status}") };
    let text = |name: &str| problem[name].as_str().unwrap_or_default();
    let mut line = format!("{} ({})", text("detail"), text("code"));
    for error in problem["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| error[name].as_str().unwrap_or_default();
        line = format!("{line}; {}: {}", part("field"), part("detail"));
    }
    line
}
