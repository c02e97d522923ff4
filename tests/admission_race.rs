//! One key, two hundred publishers at once, two replicas: one of them goes on air.

mod support;

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;
use support::stack::{Replica, Stack, node_password};
use uuid::Uuid;

const ROUNDS: u32 = 100;
const CALLERS: usize = 200;

/// A caller's answer: its status, and its code where it is a problem.
async fn ask(http: &reqwest::Client, replica: &Replica, password: &str, secret: &str, source: Uuid) -> (u16, String) {
    let call = json!({
        "ip": "192.0.2.1", "user": "", "password": "", "token": "", "action": "publish", "path": "live/race",
        "protocol": "rtmp", "id": source, "query": format!("key={secret}"), "userAgent": "a test",
    });
    let url = format!("{}/v1/mediamtx/auth", replica.url());
    let answer = http.post(url).basic_auth("edge-1", Some(password)).json(&call).send().await.expect("an answer");
    let status = answer.status().as_u16();
    let body: serde_json::Value = answer.json().await.unwrap_or_default();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn of_two_hundred_publishers_on_two_replicas_exactly_one_is_admitted() {
    let stack = Stack::start_with(|config| {
        config.admission.deadline_ms = 5_000;
        // The test speaks for a node that does not exist: nobody shall find it silent.
        Stack::leave_nodes_alone(config);
    })
    .await;
    let replicas = [stack.replica().await, stack.replica().await];
    replicas[0].add_node("edge-1").await;
    let key = replicas[0].key("live/race").await;
    let password = node_password("edge-1");
    let http = reqwest::Client::new();
    let began = Instant::now();
    for round in 0..ROUNDS {
        let sources: Vec<Uuid> = (0..CALLERS).map(|_| Uuid::new_v4()).collect();
        let calls = sources
            .iter()
            .enumerate()
            .map(|(number, source)| ask(&http, &replicas[number % 2], &password, &key.secret, *source));
        let answers = join_all(calls).await;
        let admitted: Vec<usize> = (0..CALLERS).filter(|&number| answers[number].0 == 204).collect();
        assert_eq!(admitted.len(), 1, "round {round}: {answers:?}");
        let in_use = answers.iter().filter(|(status, code)| *status == 409 && code == "key_in_use").count();
        assert_eq!(in_use, CALLERS - 1, "round {round}: {answers:?}");

        // The winner leaves, so that the next round finds the path free.
        let winner = sources[admitted[0]];
        let gone = json!({"path": "live/race", "source_type": "rtmpConn", "source_id": winner});
        let node = replicas[1].api.as_node("edge-1", &password);
        assert_eq!(node.post("/v1/hooks/unpublish", &gone).await.expect(200).json["result"], "ended");
    }
    println!("{ROUNDS} rounds of {CALLERS} publishers on 2 replicas in {:?}: one admitted in each", began.elapsed());
    for replica in replicas {
        replica.stop().await;
    }
}
