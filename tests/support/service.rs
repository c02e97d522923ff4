//! `onair serve` as a process of its own, with everything that it says.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use onair::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

use super::{
    api_client::ApiClient,
    mediamtx::{HookEncoding, HookTarget, MediaMtx, MediaMtxOptions},
    program,
    stack::{API_SECRET, node_password, public_urls},
    stores::until,
};

const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running service. Killed when it is dropped.
pub struct Service {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    listening: Vec<JoinHandle<()>>,
    pub address: SocketAddr,
}

impl Service {
    /// Starts it on the stores, with the secrets and with the time for Redis of `config`, on a free port, with nothing else of this
    /// environment.
    pub async fn start(config: &Config, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::from(program::onair(config, &["serve", "--listen", "127.0.0.1:0"]));
        command.kill_on_drop(true).envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
        let said = Arc::<Mutex<Vec<String>>>::default();
        let out = listen(child.stdout.take().expect("it is piped"), &said);
        let err = listen(child.stderr.take().expect("it is piped"), &said);
        let mut address = None;
        until("the service says where it listens", async || {
            address = lines(&said).iter().find_map(|line| serving_at(line));
            address.is_some()
        })
        .await;
        Self { child, said, listening: vec![out, err], address: address.expect("it was waited for") }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// A caller of its API.
    pub async fn api(&self) -> ApiClient {
        ApiClient::connect(&self.url(), API_SECRET).await
    }

    /// The `authHTTPAddress` of a node.
    pub fn auth_url(&self, node: &str) -> String {
        format!("http://{node}:{}@{}/v1/mediamtx/auth", node_password(node), self.address)
    }

    /// Where the hooks of a node call.
    pub fn hooks(&self, node: &str) -> HookTarget {
        let (base_url, password) = (self.url(), node_password(node));
        HookTarget { base_url, user: node.to_owned(), password, encoding: HookEncoding::Form }
    }

    /// Starts a stand-in for MediaMTX that asks this service, and adds it to the fleet.
    pub async fn mediamtx(&self, name: &str) -> Arc<MediaMtx> {
        let mut options = MediaMtxOptions::new(name, self.auth_url(name));
        options.hooks = Some(self.hooks(name));
        let node = Arc::new(MediaMtx::start(options).await);
        let body = json!({"control_url": node.control_url(), "public_urls": public_urls(name)});
        self.api().await.put(&format!("/v1/nodes/{name}"), &body).await.expect(201);
        node
    }

    /// Every line so far, of both outputs.
    pub fn said(&self) -> Vec<String> {
        lines(&self.said)
    }

    /// SIGKILL: it is gone afterwards.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// It stands still, as on a machine that is suspended.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("an id of a process")).expect("not zero");
        kill_process(pid, signal).expect("it can be told");
    }

    /// SIGTERM, and the wait for its end: how it ended, and everything that it said.
    pub async fn stop(mut self) -> (ExitStatus, Vec<String>) {
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let status = ended.expect("it stops in time").expect("it can be waited for");
        for reader in self.listening.drain(..) {
            reader.await.expect("what it said was read to the end");
        }
        (status, lines(&self.said))
    }
}

fn lines(said: &Mutex<Vec<String>>) -> Vec<String> {
    said.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn serving_at(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == "serving").then(|| line["address"].as_str()?.parse().ok())?
}

fn listen(output: impl AsyncRead + Send + Unpin + 'static, said: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let said = Arc::clone(said);
    let mut output = BufReader::new(output).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = output.next_line().await {
            said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}
