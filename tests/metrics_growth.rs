//! An instance that nobody scrapes does not grow. A program of its own, since its memory is measured.

mod support;

use std::time::Duration;

use onair::metrics;
use support::stack::Stack;

/// How many times are recorded in a second, for as many seconds as `SECONDS`: some 16 bytes each until somebody looks at
/// them, 320 MB in all.
const RECORDED: usize = 500_000;
/// Several times what lies between two visits of the upkeep.
const SECONDS: usize = 40;
/// With the upkeep, what came since its last visit is there, an eighth, and as much of the allocator's as that took at its most:
/// twice that.
const GROWN_MAX_BYTES: u64 = 160_000_000;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: u64 = statm.split(' ').nth(1).expect("a number").parse().expect("a number");
    pages * rustix::param::page_size() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_and_never_scraped_takes_no_memory() {
    let stack = Stack::start().await;
    let replica = stack.replica().await;
    let before = resident_bytes();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..SECONDS {
        seconds.tick().await;
        for _ in 0..RECORDED {
            metrics::auth_queue(Duration::from_micros(300));
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < GROWN_MAX_BYTES, "{grown} bytes more after {SECONDS} seconds");
    let recorded = format!("onair_auth_queue_seconds_count {}", RECORDED * SECONDS);
    assert!(metrics::render().lines().any(|line| line == recorded), "not all was recorded");
    replica.stop().await;
}
