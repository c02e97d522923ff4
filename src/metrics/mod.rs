//! What can be measured from outside: declared in one place, recorded by typed functions, rendered for Prometheus.
//!
//! Invariants:
//! - Nothing is recorded that is not declared in [`ALL`]; `docs/metrics.md` shows the same list, held by a test.
//! - Label values come from small, closed sets: words of enums, names of nodes, routes. No path, key, id or address.
//! - A gauge is a sample: its owner sets it at least every ten seconds. One that nobody set for a minute disappears, so
//!   that a replica which no longer watches a node stops telling of it.
//! - An instance that nobody scrapes does not grow: [`upkeep`] empties the histograms' buffers.

mod declared;
mod kept;
mod record;

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use metrics_util::MetricKindMask;
use tokio_util::sync::CancellationToken;

pub use declared::{ALL, Metric};
pub use record::*;

use crate::lifecycle::{TaskError, every};

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A sample.
    Gauge,
    /// Times, in seconds, by bucket.
    Histogram,
}

impl Kind {
    /// Prometheus' word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Upper bounds of the histograms, in seconds: close together where an auth call ends, and 300 ms, its deadline, is one.
pub const BUCKETS_SECONDS: [f64; 19] = [
    0.000_25, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

const GAUGE_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
const UPKEEP_INTERVAL_MS: u64 = 5_000;

struct Installed {
    handle: PrometheusHandle,
    process: Collector,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Starts recording in this process. The second and later calls change nothing; before the first, nothing is recorded.
pub fn install() {
    let _ = installed();
}

fn installed() -> &'static Installed {
    INSTALLED.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_SECONDS)
            .expect("there are buckets")
            .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_FORGOTTEN_AFTER))
            .build_recorder();
        let handle = recorder.handle();
        if ::metrics::set_global_recorder(recorder).is_err() {
            tracing::error!("another metrics recorder was installed in this process: /metrics stays empty");
        }
        for metric in ALL {
            match metric.kind {
                Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
                Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
                Kind::Histogram => ::metrics::describe_histogram!(metric.name, ::metrics::Unit::Seconds, metric.help),
            }
        }
        record::counters_begin();
        Installed { handle, process: Collector::new("onair_") }
    })
}

fn is_installed() -> bool {
    INSTALLED.get().is_some()
}

/// Everything recorded so far, in Prometheus' text format (`text/plain; version=0.0.4`).
#[must_use]
pub fn render() -> String {
    let installed = installed();
    installed.process.collect();
    record::process();
    installed.handle.render()
}

/// Keeps what is recorded from growing while nobody scrapes. A task for as long as the process runs.
///
/// # Errors
/// None; the type is that of a task.
pub async fn upkeep(stopping: CancellationToken) -> Result<(), TaskError> {
    let mut every = every(UPKEEP_INTERVAL_MS, &stopping);
    while every.beat().await {
        installed().handle.run_upkeep();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
