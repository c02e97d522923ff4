//! One broadcaster: goes on air and leaves again and again, while somebody else tries to get in with the same key.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{
    ledger::{Answer, Ledger},
    mediamtx::{AuthAnswer, MediaMtx, PublishOutcome, Publisher},
    stack::TestKey,
};

/// How long two may be on air on one path before it counts as survived.
const DOUBLE_MAX: Duration = Duration::from_secs(10);

pub async fn broadcast(nodes: Vec<Arc<MediaMtx>>, key: TestKey, ledger: Arc<Ledger>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    pause(&mut rng, 0, 1_500).await;
    while !ledger.is_over() {
        let node = rng.random_range(0..nodes.len());
        let Some(publisher) = go_on_air(&nodes[node], &key, &ledger).await else {
            pause(&mut rng, 50, 150).await;
            continue;
        };
        pause(&mut rng, 300, 900).await;
        let is_alone = !publisher.is_connected();
        let other = go_on_air(&nodes[(node + 1) % nodes.len()], &key, &ledger).await;
        if is_alone {
            ledger.thrown_out();
        }
        if let Some(other) = other {
            if !is_alone {
                until_one_is_left(&publisher, &other, &ledger).await;
            }
            other.disconnect();
        }
        pause(&mut rng, 200, 900).await;
        publisher.disconnect();
        pause(&mut rng, 50, 300).await;
    }
}

async fn pause(rng: &mut StdRng, from_ms: u64, to_ms: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(from_ms..to_ms))).await;
}

async fn go_on_air(node: &MediaMtx, key: &TestKey, ledger: &Ledger) -> Option<Publisher> {
    let outcome = node.publish(key.publisher()).await;
    let (answer, publisher) = match outcome {
        PublishOutcome::Admitted(publisher) => (Answer::Admitted(publisher.id()), Some(publisher)),
        PublishOutcome::Refused(answer) => (Answer::Refused(code(&answer)), None),
    };
    ledger.answered(&key.path, answer);
    publisher
}

fn code(answer: &AuthAnswer) -> String {
    let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    problem["code"].as_str().unwrap_or("nobody answered").to_owned()
}

/// Two were admitted on one path: one of them has to go.
async fn until_one_is_left(first: &Publisher, second: &Publisher, ledger: &Ledger) {
    let began = tokio::time::Instant::now();
    while first.is_online() && second.is_online() {
        if began.elapsed() > DOUBLE_MAX {
            ledger.violate(format!("two stay on air on one path: {first:?} and {second:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger.double(first.id(), began.elapsed());
}
