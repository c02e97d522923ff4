//! A real Prometheus for a test: Debian's, on a free port, with nothing left behind.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use super::stores::until;

/// How often it asks the service and its own rules.
pub const INTERVAL: &str = "500ms";

/// Starts that are tried: another process may take the free port first.
const STARTS_MAX: u32 = 3;

/// A running Prometheus. Dropping it ends it.
pub struct Prometheus {
    child: Child,
    url: String,
    http: reqwest::Client,
    _directory: TempDir,
}

/// An alert as Prometheus knows it.
#[derive(Debug)]
pub struct LoadedAlert {
    pub name: String,
    pub query: String,
    /// `ok` once its query was evaluated; else what Prometheus says.
    pub health: String,
    /// `inactive`, `pending` or `firing`.
    pub state: String,
    /// What its instances tell people, templates filled in.
    pub annotations: Vec<String>,
}

/// The program `name`, which comes with Prometheus.
///
/// # Panics
///
/// When it is not installed.
pub fn program(name: &str) -> Command {
    let is_there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(is_there, "{name} is not installed: `scripts/bootstrap test` installs it (Debian's package prometheus)");
    Command::new(name)
}

impl Prometheus {
    /// Starts one that asks `target` as the job `onair`, and evaluates `rules`, a document of alert rules.
    pub async fn start(target: SocketAddr, rules: &Value) -> Self {
        for _ in 1..STARTS_MAX {
            if let Some(started) = Self::try_start(target, rules).await {
                return started;
            }
        }
        Self::try_start(target, rules).await.expect("Prometheus starts")
    }

    async fn try_start(target: SocketAddr, rules: &Value) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let address = free_address();
        write_configuration(directory.path(), target, rules);
        let log = fs::File::create(directory.path().join("log")).expect("a file");
        let child = program("prometheus")
            .arg(format!("--config.file={}", directory.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .env("GOMAXPROCS", "1")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Prometheus can be run");
        let http = super::asked_service::client();
        let mut prometheus = Self { child, url: format!("http://{address}"), http, _directory: directory };
        prometheus.becomes_ready().await.then_some(prometheus)
    }

    /// False where it ended instead.
    async fn becomes_ready(&mut self) -> bool {
        let mut ended = false;
        until("Prometheus is ready", async || {
            ended = self.child.try_wait().expect("it is our child").is_some();
            let ready = self.http.get(format!("{}/-/ready", self.url)).send().await;
            ended || ready.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        !ended
    }

    /// The samples that a query gives now, or why it cannot be answered.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        self.ask("query", &[("query", query)]).await.map(|data| array(&data["result"]))
    }

    /// The values of a label among the series that a selector matches.
    pub async fn label_values(&self, label: &str, selector: &str) -> Result<Vec<Value>, String> {
        self.ask(&format!("label/{label}/values"), &[("match[]", selector)]).await.map(|data| array(&data))
    }

    /// All alerts, in the order of their file.
    pub async fn alerts(&self) -> Vec<LoadedAlert> {
        let data = self.ask("rules", &[("type", "alert")]).await.expect("Prometheus tells its rules");
        array(&data["groups"]).iter().flat_map(|group| array(&group["rules"])).map(|rule| loaded(&rule)).collect()
    }

    /// Waits until an alert fires, and checks that its texts could be made.
    pub async fn until_firing(&self, name: &str) {
        let what = format!("{name} fires");
        self.until_alert(name, &what, |alert| alert.state == "firing").await;
        let alert = self.alert(name).await;
        let broken = |text: &&String| text.contains("error") || text.contains("<no value>");
        assert_eq!(alert.annotations.iter().find(broken), None, "{alert:?}");
    }

    /// Waits until an alert has nothing more to tell.
    pub async fn until_silent(&self, name: &str) {
        self.until_alert(name, &format!("{name} is silent"), |alert| alert.state == "inactive").await;
    }

    async fn until_alert(&self, name: &str, what: &str, condition: impl Fn(&LoadedAlert) -> bool) {
        let asking = async {
            while !condition(&self.alert(name).await) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), asking).await.is_err() {
            let alert = self.alert(name).await;
            panic!("waited in vain until {what}: {alert:?}, {:?}", self.query(&alert.query).await);
        }
    }

    async fn alert(&self, name: &str) -> LoadedAlert {
        let mut alerts = self.alerts().await;
        let place = alerts.iter().position(|alert| alert.name == name);
        alerts.swap_remove(place.unwrap_or_else(|| panic!("there is no alert {name}")))
    }

    async fn ask(&self, endpoint: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut url: Url = format!("{}/api/v1/{endpoint}", self.url).parse().expect("a URL");
        url.query_pairs_mut().extend_pairs(parameters);
        let answer: Value = self.http.get(url).send().await.expect("it answers").json().await.expect("in JSON");
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it listens")
}

/// JSON is YAML too.
fn write_configuration(directory: &Path, target: SocketAddr, rules: &Value) {
    let configuration = json!({
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "onair", "static_configs": [{"targets": [target.to_string()]}]}],
    });
    fs::write(directory.join("prometheus.yml"), configuration.to_string()).expect("it can be written");
    fs::write(directory.join("rules.yml"), rules.to_string()).expect("it can be written");
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn loaded(rule: &Value) -> LoadedAlert {
    let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
    let health = if rule["lastError"].is_string() { text("lastError") } else { text("health") };
    let instances = array(&rule["alerts"]);
    let annotations = instances.iter().filter_map(|instance| instance["annotations"].as_object());
    let annotations = annotations.flat_map(|texts| texts.values()).filter_map(Value::as_str).map(str::to_owned);
    LoadedAlert {
        name: text("name"),
        query: text("query"),
        health,
        state: text("state"),
        annotations: annotations.collect(),
    }
}
