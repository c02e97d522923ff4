//! Replicas as processes of their own: killed at random, and replaced one by one.

mod support;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use onair::config::Config;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use support::{
    broadcaster::broadcast,
    ledger::{Answer, Ledger, fates, reasons},
    measured::{say, tell},
    service::Service,
    stack::{API_SECRET, Stack},
    stopwatch::Stopwatch,
    stores::until,
};
use tokio::task::JoinSet;

const SEED: u64 = 0x0D1E_5EED;
const REPLICAS: usize = 3;
const BROADCASTERS: usize = 24;
const VARIABLES: [(&str, &str); 3] = [
    ("ONAIR_ADMISSION_FAILURES_BURST", "10000"),
    ("ONAIR_ADMISSION_CONNECTING_TIMEOUT_MS", "4000"),
    ("ONAIR_SERVER_DRAIN_MS", "1500"),
];

fn duration() -> Duration {
    let seconds = std::env::var("ONAIR_KILLS_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(20))
}

async fn serving(config: &Config) -> Service {
    Service::start(config, &VARIABLES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_killed_at_random_lose_nothing_and_admit_nobody_twice() {
    let stack = Stack::start().await;
    let mut services = Vec::new();
    for _ in 0..REPLICAS {
        services.push(serving(&stack.config).await);
    }
    let mut nodes = Vec::new();
    for (number, service) in services.iter().enumerate() {
        nodes.push(service.mediamtx(&format!("edge-{number}")).await);
    }
    let first = services[0].api().await;
    let ledger = Arc::<Ledger>::default();
    let mut broadcasters = JoinSet::new();
    for number in 0..BROADCASTERS {
        let key = first.key(&format!("live/{number:02}")).await;
        broadcasters.spawn(broadcast(nodes.clone(), key, Arc::clone(&ledger), SEED + number as u64));
    }

    let mut rng = StdRng::seed_from_u64(SEED);
    let began = Instant::now();
    let mut kills = 0;
    // Which service each node asks.
    let mut asked: Vec<usize> = (0..REPLICAS).collect();
    while began.elapsed() < duration() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..900))).await;
        let number = rng.random_range(0..REPLICAS);
        services[number].kill().await;
        kills += 1;
        // As a balancer would.
        let other = (number + 1) % REPLICAS;
        for node in (0..REPLICAS).filter(|node| asked[*node] == number) {
            let name = format!("edge-{node}");
            nodes[node].point_at(services[other].auth_url(&name), Some(services[other].hooks(&name)));
        }
        for asked in asked.iter_mut().filter(|asked| **asked == number) {
            *asked = other;
        }
        services[number] = serving(&stack.config).await;
    }
    ledger.end();
    while let Some(ended) = broadcasters.join_next().await {
        ended.expect("nobody fails");
    }

    let last = services[0].api().await;
    until("nobody is on air", async || {
        nodes.iter().all(|node| node.on_air().is_empty()) && last.on_air().await.is_empty()
    })
    .await;
    let redis = support::stores::redis_at(&stack.redis.url()).await;
    until("the history has everything", async || redis.events_backlog().await == Ok(0)).await;
    let fates = fates(stack.config.postgres.url.reveal()).await;
    let mut told = HashSet::new();
    for entry in ledger.entries() {
        let Answer::Admitted(source) = entry.answer else { continue };
        told.insert(source);
        match fates.get(&source) {
            Some(fate) if fate.is_whole() => {}
            Some(fate) => ledger.violate(format!("{source} on {}: {fate}", entry.path)),
            None => ledger.violate(format!("{source} on {} is not in the history", entry.path)),
        }
    }
    // Redis had admitted them when their replica was killed, and nobody was told.
    let untold: Vec<_> = fates.iter().filter(|(source, _)| !told.contains(source)).collect();
    for (source, fate) in untold.iter().filter(|(_, fate)| !fate.is_whole()) {
        ledger.violate(format!("{source}, whom nobody told that it was admitted: {fate}"));
    }
    let (admitted, untold) = (told.len(), untold.len());
    say(&format!("{kills} kills: {admitted} admitted, each in the history once with its end; {untold} answers lost"));
    assert!(kills > 5 && admitted > 50, "that was no test");
    let doubles = reasons(stack.config.postgres.url.reveal(), &ledger.doubles()).await;
    assert_eq!(doubles, Vec::new(), "nobody is admitted beside another");
    ledger.close("replicas killed");
}

/// Asks one replica without a pause, on connections of its own and on one that is kept, until nobody listens any more.
async fn caller(service_url: String, is_gone: Arc<AtomicBool>, answered: Arc<AtomicUsize>, kept: bool) {
    let mut client = reqwest::Client::new();
    while !is_gone.load(Ordering::Relaxed) {
        if !kept {
            client = reqwest::Client::new();
        }
        let asking = client.get(format!("{service_url}/v1/streams")).bearer_auth(API_SECRET).send();
        match asking.await {
            Ok(answer) => {
                assert_eq!(answer.status().as_u16(), 200, "every request that is taken is answered");
                answer.text().await.expect("whole");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert!(error.is_connect(), "a request was cut: {error:?}");
                is_gone.store(true, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_told_to_stop_is_unready_first_cuts_no_request_and_hands_over_at_once() {
    let stack = Stack::start().await;
    let old = serving(&stack.config).await;
    let node = old.mediamtx("edge-1").await;
    let key = old.api().await.key("live/ada").await;
    let polls = || node.counts().control_calls_to("/v3/paths/list");
    until("the first replica watches the node", async || polls() > 2).await;
    let new = serving(&stack.config).await;
    let heir = new.api().await;

    let (is_gone, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let mut callers = JoinSet::new();
    for number in 0..4 {
        callers.spawn(caller(old.url(), Arc::clone(&is_gone), Arc::clone(&answered), number % 2 == 0));
    }
    until("they ask", async || answered.load(Ordering::Relaxed) > 50).await;

    let told = Stopwatch::start();
    let url = old.url();
    let mut stopping = JoinSet::new();
    stopping.spawn(old.stop());
    let ready = async || reqwest::get(format!("{url}/readyz")).await.map(|answer| answer.status().as_u16());
    until("it says that it is not ready", async || matches!(ready().await, Ok(503))).await;
    let unready_after = told.elapsed();
    let answered_then = answered.load(Ordering::Relaxed);
    assert!(!is_gone.load(Ordering::Relaxed), "it is unready before it refuses anybody");
    // While it drains, the balancer that has not noticed yet may still send it a publisher.
    let publisher = node.publish(key.publisher()).await.admitted();
    node.point_at(new.auth_url("edge-1"), Some(new.hooks("edge-1")));

    let (status, said) = stopping.join_next().await.expect("it is told to stop").expect("it stops");
    let stopped_after = told.elapsed();
    let stopped = Stopwatch::start();
    assert!(status.success(), "{status}: {said:#?}");
    while let Some(ended) = callers.join_next().await {
        ended.expect("no request is cut");
    }
    let served = answered.load(Ordering::Relaxed);
    assert!(served > answered_then, "it goes on answering while it drains");

    let polled = polls();
    until("the heir watches the node", async || polls() > polled).await;
    let watched_after = stopped.elapsed();
    publisher.disconnect();
    let ended_at = Instant::now();
    until("the heir writes the history", async || {
        let ended = heir.get("/v1/streams?state=ended").await.expect(200);
        ended.json["items"].as_array().is_some_and(|items| items.len() == 1)
    })
    .await;
    let limit = Duration::from_millis(1_500);
    tell("unready after SIGTERM", unready_after, limit);
    tell("stopped after SIGTERM, of which 1.5 s are the drain", stopped_after, Duration::from_secs(5));
    tell("the node is watched by the heir after the end of the other", watched_after, limit);
    tell("the heir has written an end", ended_at.elapsed(), Duration::from_secs(2));
    say(&format!("{served} requests answered, none cut"));
    assert!(unready_after < limit && watched_after < limit, "{unready_after:?}, {watched_after:?}");
    let (status, _) = new.stop().await;
    assert!(status.success());
}
