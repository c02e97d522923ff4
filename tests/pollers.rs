//! One replica watches a node, and when it dies another one goes on where it ended.

mod support;

use std::{sync::Arc, time::Duration};

use onair::{config::Config, domain::Timestamp};
use serde_json::{Value, json};
use support::{
    api_client::ApiClient,
    measured::{soon, within},
    mediamtx::{ConnectionKind, HookBehaviour, MediaMtx, MediaMtxOptions, PublishRequest, Publisher},
    raw_redis,
    service::Service,
    stack::{API_SECRET, Replica, Stack, TestKey, node_password},
    stores::until,
    waiting::id_of,
};

/// A dead replica's nodes are watched by another one within this.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(3);

struct Bench {
    stack: Stack,
    owner: Replica,
    heir: Replica,
    node: Arc<MediaMtx>,
}

impl Bench {
    /// A node that the first replica watches, and asks the second one.
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let stack = Stack::start_with(change).await;
        let owner = stack.replica().await;
        let node = owner.mediamtx_with("edge-1", |options| options.hook_behaviour = HookBehaviour::Lost).await;
        until("the first replica watches the node", async || owner.node("edge-1").await["reachable"] == true).await;
        let heir = stack.replica().await;
        node.point_at(heir.auth_url("edge-1"), None);
        until("the second knows the node", async || heir.node("edge-1").await["reachable"] == true).await;
        Self { stack, owner, heir, node }
    }

    async fn live(&self, path: &str) -> (TestKey, Publisher, Value) {
        let key = self.heir.key(path).await;
        let publisher = self.node.publish(key.publisher()).await.admitted();
        let stream = self.heir.until_live(path).await;
        until("the poller has seen it", async || !self.heir.details(&id_of(&stream)).await["inbound_bytes"].is_null())
            .await;
        (key, publisher, stream)
    }

    fn polls(&self) -> u64 {
        self.node.counts().control_calls_to("/v3/paths/list")
    }

    /// Who polls the node, if anybody does.
    async fn holder(&self) -> Option<String> {
        raw_redis::command(&self.stack.redis, &["HGET", "onair:lease:node:edge-1", "holder"]).await
    }

    async fn taken_over(&self, case: &str) {
        let died_at = Timestamp::now();
        within(TAKEN_OVER_WITHIN, &format!("{case}: another watches its node"), async || {
            let node = self.heir.node("edge-1").await;
            Timestamp::parse(node["last_seen_at"].as_str().expect("it was seen")).unwrap() > died_at
        })
        .await;
    }
}

#[tokio::test]
async fn while_two_replicas_run_a_node_is_asked_by_one() {
    let bench = Bench::start().await;
    let before = bench.polls();
    let began = tokio::time::Instant::now();
    until("it was asked five times", async || bench.polls() >= before + 5).await;
    assert!(began.elapsed() > Duration::from_millis(3_500), "five seconds' worth of polls: {:?}", began.elapsed());
    bench.heir.stop().await;
    bench.owner.stop().await;
}

#[tokio::test]
async fn the_nodes_of_a_replica_that_dies_are_taken_over_within_three_seconds() {
    let bench = Bench::start().await;
    let (key, publisher, _) = bench.live("live/ada").await;
    bench.owner.tasks.abort();
    bench.taken_over("replica dead").await;
    publisher.disconnect();
    bench.heir.off_air_soon("watched by the heir", &key.path).await;
    bench.heir.stop().await;
}

#[tokio::test]
async fn what_becomes_wrong_at_the_moment_when_its_replica_dies_is_right_within_five_seconds() {
    let bench = Bench::start().await;
    let (gone_key, gone, gone_stream) = bench.live("live/gone").await;
    let (_, frozen, frozen_stream) = bench.live("live/frozen").await;
    let came_key = bench.heir.key("live/came").await;
    bench.owner.tasks.abort();
    gone.disconnect();
    frozen.freeze();
    bench.node.publish(came_key.publisher()).await.admitted();
    soon("replica dead, one stream gone and one new: right", async || {
        bench.heir.stream_on(&gone_key.path).await.is_none() && bench.heir.is_live(&came_key.path).await
    })
    .await;
    assert_eq!(bench.heir.end_reason(&gone_stream).await, "lost");
    until("the frozen one is told as stalled", async || {
        !bench.heir.details(&id_of(&frozen_stream)).await["stalled_at"].is_null()
    })
    .await;
    bench.heir.stop().await;
}

#[tokio::test]
async fn a_replica_that_stops_in_order_hands_its_nodes_over() {
    let bench = Bench::start().await;
    let Bench { stack: _stack, owner, heir, node } = bench;
    owner.stop().await;
    let polls = || node.counts().control_calls_to("/v3/paths/list");
    let before = polls();
    let what = "replica stopped in order: another watches its node";
    within(TAKEN_OVER_WITHIN, what, async || polls() > before).await;
    heir.stop().await;
}

#[tokio::test]
async fn a_node_that_is_away_is_taken_over_as_soon_when_its_replica_dies() {
    let bench = Bench::start().await;
    let (key, _, _) = bench.live("live/ada").await;
    bench.node.unreachable();
    let is_stale = async || bench.heir.stream_on(&key.path).await.is_some_and(|stream| stream["stale"] == true);
    until("it has been away for a while", async || is_stale().await).await;
    let owner = bench.holder().await;
    bench.owner.tasks.abort();
    within(TAKEN_OVER_WITHIN, "replica dead, its node away: another watches it", async || {
        bench.holder().await.is_some_and(|holder| Some(holder) != owner)
    })
    .await;
    bench.node.reachable().await;
    soon("and the node back: fresh", async || !is_stale().await).await;
    bench.heir.stop().await;
}

/// The cause: a lease was shorter than the pause between two polls of a node that is away, and ran out in between.
#[tokio::test]
async fn a_node_that_is_away_does_not_pass_from_replica_to_replica() {
    let bench = Bench::start_with(|config| config.reconciler.lease_ttl_ms = 1_000).await;
    let owner = bench.holder().await;
    bench.node.unreachable();
    let away_for = async || {
        let since = bench.heir.node("edge-1").await["unreachable_since"].clone();
        since.as_str().map_or(0, |since| Timestamp::now().ms_since(Timestamp::parse(since).unwrap()))
    };
    until("it has been away for ten seconds", async || {
        assert_eq!(bench.holder().await, owner);
        away_for().await >= 10_000
    })
    .await;
    bench.node.reachable().await;
    soon("back: told as reachable", async || bench.heir.node("edge-1").await["reachable"] == true).await;
    assert_eq!(bench.holder().await, owner);
    bench.heir.stop().await;
    bench.owner.stop().await;
}

/// The cause: a replica that had been suspended for longer than `node_lost_after` took its own silence for the node's, and
/// at the first poll that failed ended all its streams.
#[tokio::test]
async fn a_replica_that_stood_still_does_not_take_its_own_silence_for_that_of_its_nodes() {
    let lost_after = Duration::from_secs(6);
    let stack = Stack::start().await;
    let service = Service::start(&stack.config, &[("ONAIR_RECONCILER_NODE_LOST_AFTER_MS", "6000")]).await;
    let api = ApiClient::connect(&service.url(), API_SECRET).await;
    let auth_url = format!("http://edge-1:{}@{}/v1/mediamtx/auth", node_password("edge-1"), service.address);
    let node = MediaMtx::start(MediaMtxOptions::new("edge-1", auth_url)).await;
    let put = json!({"control_url": node.control_url(), "public_urls": {}});
    api.put("/v1/nodes/edge-1", &put).await.expect(201);
    let broadcaster = api.post("/v1/broadcasters", &json!({"display_name": "Ada"})).await.expect(201).text_at("/id");
    let key = json!({"path": "live/ada", "broadcaster_id": broadcaster});
    let secret = api.post("/v1/stream-keys", &key).await.expect(201).text_at("/secret");
    let publisher = node.publish(PublishRequest::rtmp_query_key("live/ada", &secret)).await.admitted();
    let stream = async |api: &ApiClient| api.get("/v1/streams").await.expect(200).json["items"][0].clone();
    until("it is live", async || stream(&api).await["state"] == "live").await;
    let before = stream(&api).await;

    service.pause();
    tokio::time::sleep(lost_after + Duration::from_secs(2)).await;
    node.unreachable();
    service.resume();
    // The connections of before are given up as idle.
    let api = ApiClient::connect(&service.url(), API_SECRET).await;
    let told = async || api.get("/v1/nodes/edge-1").await.expect(200).json;
    until("the node was asked in vain", async || told().await["fault"] == "refused").await;
    assert_eq!(stream(&api).await["id"], before["id"]);
    node.reachable().await;
    soon("stood still, and the node away for a moment: fresh", async || {
        told().await["reachable"] == true && stream(&api).await["stale"] == false
    })
    .await;
    assert_eq!(stream(&api).await["id"], before["id"]);
    assert!(publisher.is_online() && node.counts().kicked.is_empty());
    service.stop().await;
}

/// The cause: a poller that began without a memory counted the most viewers anew, and never removed what its predecessor had
/// written about sources that left while nobody watched.
#[tokio::test]
async fn the_heir_knows_the_most_viewers_so_far_and_removes_what_is_no_longer_needed() {
    let bench = Bench::start().await;
    let (_, publisher, stream) = bench.live("live/ada").await;
    let (_, leaves, _) = bench.live("live/bob").await;
    let readers = [0; 3].map(|_| bench.node.add_reader("live/ada", ConnectionKind::HlsSession));
    let id = id_of(&stream);
    until("three watch", async || bench.heir.details(&id).await["viewers"] == 3).await;
    bench.owner.tasks.abort();
    for reader in &readers[..2] {
        reader.leave();
    }
    leaves.disconnect();
    bench.taken_over("replica dead").await;
    until("one watches", async || bench.heir.details(&id).await["viewers"] == 1).await;
    assert_eq!(bench.heir.details(&id).await["viewers_peak"], 3);
    publisher.disconnect();
    assert_eq!(bench.heir.end_reason(&stream).await, "lost");
    assert_eq!(bench.heir.details(&id).await["viewers_peak"], 3);
    let words = async || raw_redis::command::<u64>(&bench.stack.redis, &["HLEN", "onair:progress:edge-1"]).await;
    until("nothing is left of sources that are gone", async || words().await == 0).await;
    bench.heir.stop().await;
}
