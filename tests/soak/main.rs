//! Three minutes in which everything that can go wrong does, again and again: 300 broadcasters on five nodes who come, freeze,
//! leave and are taken off air; nodes that crash, hang and vanish; hooks that are lost, doubled and late; replicas that die.
//! At every moment what is listed is right within five seconds, and afterwards nothing is left of it.
//!
//! `ONAIR_SOAK_SECONDS` says for how long. The seed is fixed, so every run decides the same.

#[path = "../support/mod.rs"]
mod support;

mod encoder;
mod observer;
mod trouble;
mod world;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use onair::{domain::PageRequest, postgres::EndedFilter};
use support::{
    measured::{RIGHT_WITHIN, say, tell},
    raw_redis,
    stack::Stack,
    stopwatch::Stopwatch,
    stores::until,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use world::World;

const SEED: u64 = 0x00A1_4A14;
const BROADCASTERS: usize = 300;
const QUIET_POINTS: u32 = 4;
/// How long a node keeps a silent publisher: MediaMTX's `readTimeout`, shortened.
const READ_TIMEOUT: Duration = Duration::from_secs(6);

fn duration() -> Duration {
    let seconds = std::env::var("ONAIR_SOAK_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(180))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_everything_that_can_go_wrong_what_is_listed_is_what_the_nodes_have() {
    let stack = Stack::start_with(|config| {
        config.reconciler.cooldown_ms = 1_000;
        config.admission.connecting_timeout_ms = 4_000;
        // All broadcasters of this test share one address.
        config.admission.failures_burst = 10_000;
    })
    .await;
    let world = Arc::new(World::start(stack).await);
    let mut tasks = JoinSet::new();
    tasks.spawn(observer::observe(Arc::clone(&world)));
    for number in 0..world.edges.len() {
        tasks.spawn(trouble::trouble_a_node(Arc::clone(&world), number, SEED + 1_000 + number as u64));
    }
    tasks.spawn(trouble::trouble_the_replicas(Arc::clone(&world), SEED + 2_000));
    for number in 0..BROADCASTERS {
        tasks.spawn(encoder::broadcast(Arc::clone(&world), number, SEED + number as u64));
    }

    let stretch = duration() / QUIET_POINTS;
    for number in 1..=QUIET_POINTS {
        let end = Instant::now() + stretch;
        while Instant::now() < end && !tasks.is_empty() {
            let ended = tokio::time::timeout(end.duration_since(Instant::now()), tasks.join_next()).await;
            if let Ok(Some(ended)) = ended {
                ended.expect("nobody fails");
            }
            world.assert_no_violation();
        }
        quiet_point(&world, number).await;
    }
    world.end();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("nobody fails");
    }
    everybody_has_left(&world).await;
    world.report();
    world.assert_no_violation();
}

/// Waits for what has to be right soon, and says what differs where it does not become so.
async fn right_soon(world: &World, what: &str, mut is_right: impl AsyncFnMut() -> bool) {
    let watch = Stopwatch::start();
    while !is_right().await {
        assert!(watch.elapsed() < RIGHT_WITHIN, "{what}: {}", world.differences().await.join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell(what, watch.elapsed(), RIGHT_WITHIN);
}

/// Nothing is done for a moment: what is listed becomes what the nodes have, and Redis holds nothing else.
async fn quiet_point(world: &World, number: u32) {
    let quiet = world.quiet().await;
    let what = format!("quiet point {number}: the list is what the nodes have");
    right_soon(world, &what, async || world.is_right().await && world.owed_kicks().await == 0).await;
    until("Redis holds what is listed and nothing else", async || {
        let listed = world.listed_paths().await;
        let slots = keys(world, "onair:{*}:slot:*").await;
        let held = members(world, "live").await;
        let deadlines = members(world, "deadlines").await;
        slots.len() == listed.len() && held == listed && deadlines.iter().all(|path| listed.contains(path))
    })
    .await;
    say(&format!("quiet point {number}: {} on air", world.listed_paths().await.len()));
    drop(quiet);
}

async fn keys(world: &World, pattern: &str) -> Vec<String> {
    raw_redis::command(&world.stack.redis, &["KEYS", pattern]).await
}

/// The members of a sorted set of every partition.
async fn members(world: &World, name: &str) -> Vec<String> {
    let mut members = Vec::new();
    for key in keys(world, &format!("onair:{{*}}:{name}")).await {
        members.extend(raw_redis::command::<Vec<String>>(&world.stack.redis, &["ZRANGE", &key, "0", "-1"]).await);
    }
    members.sort();
    members
}

/// All have left: nothing is listed, nothing is owed, Redis holds nothing of it, and the history has one end of each.
async fn everybody_has_left(world: &World) {
    right_soon(world, "everybody has left: nothing is listed, nothing is owed", async || {
        world.is_right().await && world.listed_paths().await.is_empty() && world.owed_kicks().await == 0
    })
    .await;
    for pattern in ["onair:{*}:slot:*", "onair:{*}:live", "onair:{*}:deadlines", "onair:{*}:kicks", "onair:progress:*"]
    {
        until(&format!("nothing is left of {pattern}"), async || keys(world, pattern).await.is_empty()).await;
    }
    let redis = &world.replica(0).app.redis;
    until("the history has everything", async || redis.events_backlog().await == Ok(0)).await;
    every_admission_has_one_end(world).await;
}

async fn every_admission_has_one_end(world: &World) {
    let postgres = world.replica(0).app.postgres.clone();
    let open = postgres.open_streams(None, &PageRequest { after: None, items_max: 10 }).await.unwrap();
    assert!(open.items.is_empty(), "still open: {:?}", open.items);
    let (mut ends, mut after) = (HashMap::<Uuid, Vec<String>>::new(), None);
    loop {
        let page =
            postgres.ended_streams(&EndedFilter::default(), &PageRequest { after, items_max: 1_000 }).await.unwrap();
        for record in page.items {
            ends.entry(record.stream.source.id.0).or_default().push(format!("{:?}", record.stream.state));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let admitted = world.books.admitted();
    for source_id in &admitted {
        assert_eq!(ends.get(source_id).map(Vec::len), Some(1), "{source_id}: {:?}", ends.get(source_id));
    }
    // Whoever got no answer may have been admitted all the same, and was then ended like everybody else.
    let unheard = ends.len() - admitted.len();
    assert!(unheard as u64 <= world.books.unanswered(), "{unheard} admissions that nobody heard of");
    world.books.note_ends(ends.into_values().flatten());
}
