//! How long it takes until what is told is right: measured, told, and held under a bound.

use std::{io::Write as _, time::Duration};

use serde_json::Value;

use super::{
    mediamtx::{MediaMtx, PublishRequest},
    stack::{Replica, TestKey},
    stopwatch::Stopwatch,
    stores::is_so,
    test_redis,
    waiting::id_of,
};

/// The promise: right about what is on air within this, whatever happens on MediaMTX's side.
pub const RIGHT_WITHIN: Duration = Duration::from_secs(5);

/// Waits until something is so, at most for `limit` of a machine that runs and has one test at a time (see [`test_redis::crowd`]), and
/// tells how long that took.
pub async fn within(limit: Duration, what: &str, condition: impl AsyncFnMut() -> bool) -> Duration {
    let (watch, limit) = (Stopwatch::start(), limit * test_redis::crowd());
    let overdue = async {
        while watch.elapsed() < limit {
            tokio::time::sleep(limit.saturating_sub(watch.elapsed())).await;
        }
    };
    let came_about = tokio::select! {
        biased;
        () = is_so(condition) => true,
        () = overdue => false,
    };
    assert!(came_about, "not so within {limit:?}: {what}");
    let took = watch.elapsed();
    tell(what, took, limit);
    took
}

/// As [`within`], with the promise as the limit.
pub async fn soon(what: &str, condition: impl AsyncFnMut() -> bool) -> Duration {
    within(RIGHT_WITHIN, what, condition).await
}

/// Shows a measured time, also where the test passes: the test harness holds back only what is printed.
pub fn tell(what: &str, took: Duration, limit: Duration) {
    say(&format!("time to right {:>5} of {:>5} ms: {what}", took.as_millis(), limit.as_millis()));
}

/// Shows a line, also where the test passes.
pub fn say(line: &str) {
    // What cannot be shown is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl TestKey {
    /// An RTMP publisher with this key.
    pub fn publisher(&self) -> PublishRequest {
        PublishRequest::rtmp_query_key(&self.path, &self.secret)
    }
}

impl Replica {
    pub async fn is_live(&self, path: &str) -> bool {
        self.stream_on(path).await.is_some_and(|stream| stream["state"] == "live")
    }

    /// The stream on a path, once it is live, which has to be soon.
    pub async fn live_soon(&self, case: &str, path: &str) -> Value {
        soon(&format!("{case}: live"), async || self.is_live(path).await).await;
        self.stream_on(path).await.expect("it is live")
    }

    /// Returns when nothing holds a path, which has to be soon.
    pub async fn off_air_soon(&self, case: &str, path: &str) {
        soon(&format!("{case}: off air"), async || self.stream_on(path).await.is_none()).await;
    }

    /// Why a stream ended, as the history has it.
    pub async fn end_reason(&self, stream: &Value) -> String {
        let recorded = self.until_recorded(&id_of(stream)).await;
        recorded["end_reason"].as_str().expect("a reason").to_owned()
    }

    /// What is known of a node.
    pub async fn node(&self, name: &str) -> Value {
        self.api.get(&format!("/v1/nodes/{name}")).await.expect(200).json
    }

    /// What is listed, as the stand-ins would tell it: node, path and source of each live stream, sorted.
    pub async fn listed_sources(&self) -> Vec<(String, String, String)> {
        let snapshot = self.app.streams.view().await.expect("a view").snapshot;
        let live = snapshot.streams().filter(|stream| stream.state.live_since().is_some());
        let mut sources: Vec<_> = live
            .map(|stream| (stream.node.to_string(), stream.path.to_string(), stream.source.id.to_string()))
            .collect();
        sources.sort();
        sources
    }
}

/// What is on air on some nodes, by their own account: node, path and source, sorted.
pub fn sources_on(nodes: &[impl AsRef<MediaMtx>]) -> Vec<(String, String, String)> {
    let of_node = |node: &MediaMtx| {
        let name = node.name().to_owned();
        node.on_air().into_iter().map(move |on_air| (name.clone(), on_air.path, on_air.source_id))
    };
    let mut sources: Vec<_> = nodes.iter().flat_map(|node| of_node(node.as_ref())).collect();
    sources.sort();
    sources
}
