//! Time in which the machine ran.
//!
//! A virtual machine stands still now and then, for half a second when its neighbours want much. What is promised is promised for a machine
//! that runs, so the time that it stood still is not counted against it. A service that blocks its own threads has no excuse in this: the
//! meter's threads run beside them.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const NAP: Duration = Duration::from_millis(5);
/// How much later than asked for a nap ends where nothing but other programs is in the way.
const LATE_MIN: Duration = Duration::from_millis(30);

/// How long something takes, without the time in which the machine stood still.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    began: Instant,
    still_before: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { began: Instant::now(), still_before: stood_still() }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed().saturating_sub(stood_still().saturating_sub(self.still_before))
    }
}

/// How long processors stood still since this was asked first, all of them together.
fn stood_still() -> Duration {
    static STILL_MICROS: AtomicU64 = AtomicU64::new(0);
    static METER: OnceLock<()> = OnceLock::new();
    METER.get_or_init(|| {
        let all = sched_getaffinity(None).expect("the system says which processors there are");
        for processor in (0..CpuSet::MAX_CPU).filter(|&processor| all.is_set(processor)) {
            // They end with the process, as the private servers do.
            thread::spawn(move || watch(processor, &STILL_MICROS));
        }
    });
    Duration::from_micros(STILL_MICROS.load(Ordering::Relaxed))
}

/// Naps on one processor, and adds up by how much too late it wakes.
fn watch(processor: usize, still_micros: &AtomicU64) {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).expect("a thread may choose among its processors");
    loop {
        let slept_at = Instant::now();
        thread::sleep(NAP);
        let late = slept_at.elapsed().saturating_sub(NAP);
        if late >= LATE_MIN {
            still_micros.fetch_add(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}
