//! Publishers who must not get in, trying all the time, on several replicas at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::stack::{Replica, TestKey, node_password};

const PAUSE: Duration = Duration::from_millis(2);

/// What came of all attempts, by status and code; and those that got in, by their path.
#[derive(Debug, Default, Clone)]
pub struct Attempts {
    pub by_answer: BTreeMap<String, u32>,
    pub let_in: Vec<String>,
}

impl Attempts {
    fn note(&mut self, status: u16, code: &str, key: &TestKey) {
        *self.by_answer.entry(format!("{status} {code}")).or_default() += 1;
        if status < 300 {
            self.let_in.push(key.path.clone());
        }
    }
}

/// Tries until it is stopped.
pub struct Hammer {
    stopping: Arc<AtomicBool>,
    attempts: Arc<Mutex<Attempts>>,
    tasks: JoinSet<()>,
}

/// One auth call in the name of a node, for a publisher of its own.
pub async fn knock(replica_url: &str, node: &str, key: &TestKey) -> (u16, String) {
    let id = Uuid::new_v4();
    // From everywhere, so that nobody is slowed down.
    let address = std::net::Ipv6Addr::from(Uuid::new_v4().as_u128());
    let call = json!({"ip": address, "user": "", "password": "", "token": "", "action": "publish", "path": key.path,
        "protocol": "rtmp", "id": id, "query": format!("key={}", key.secret), "userAgent": "an encoder"});
    let client = super::asked_service::client_without_pool();
    let request = client.post(format!("{replica_url}/v1/mediamtx/auth")).basic_auth(node, Some(node_password(node)));
    let answer = request.json(&call).send().await.expect("the service answers");
    let status = answer.status().as_u16();
    let problem: Value = answer.json().await.unwrap_or_default();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

impl Hammer {
    /// Tries with these keys, from `node`, on these replicas.
    pub fn start(replicas: &[&Replica], node: &str, keys: &[TestKey]) -> Self {
        let (stopping, attempts) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Attempts>>::default());
        let mut tasks = JoinSet::new();
        for url in replicas.iter().map(|replica| replica.url()) {
            let (stopping, attempts) = (Arc::clone(&stopping), Arc::clone(&attempts));
            let (node, keys) = (node.to_owned(), keys.to_vec());
            tasks.spawn(async move {
                for key in keys.iter().cycle() {
                    if stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    let (status, code) = knock(&url, &node, key).await;
                    attempts.lock().unwrap_or_else(PoisonError::into_inner).note(status, &code, key);
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { stopping, attempts, tasks }
    }

    /// Stops, and gives what came of it.
    pub async fn stop(mut self) -> Attempts {
        self.stopping.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
