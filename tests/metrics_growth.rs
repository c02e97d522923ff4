//! An instance that nobody scrapes does not grow. A program of its own, since its memory is measured.

mod support;

use std::time::Duration;

use onair::metrics;
use support::stack::Stack;

/// How many times are recorded in a round, which takes some 24 MB until somebody looks at them.
const RECORDED: usize = 3_000_000;
/// What a round may leave behind: far less than what it records.
const LEFT_BEHIND_MAX_BYTES: u64 = 10_000_000;
/// Longer than it takes until the upkeep has come by.
const UPKEEP: Duration = Duration::from_millis(6_500);

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: u64 = statm.split(' ').nth(1).expect("a number").parse().expect("a number");
    pages * rustix::param::page_size() as u64
}

async fn record_many() {
    for _ in 0..RECORDED {
        metrics::auth_queue(Duration::from_micros(300));
    }
    // Not until a condition: only a scrape could tell, and that would tidy up by itself.
    tokio::time::sleep(UPKEEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_and_never_scraped_takes_no_memory() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    record_many().await;
    let before = resident_bytes();
    record_many().await;
    record_many().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < LEFT_BEHIND_MAX_BYTES, "{grown} bytes more after two rounds");
    replica.stop().await;
}
