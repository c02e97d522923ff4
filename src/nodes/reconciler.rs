//! The reconciler: hooks are hints, the node is the truth.
//!
//! Role: polls every node and makes what we believe equal to what the node says.
//!
//! Invariants:
//! - One replica at a time polls a node: it holds the node's lease, renews it while it waits, and concludes nothing once it
//!   has lost it. It knows by the fencing token, which is another one after every break.
//! - What is concluded is carried out by scripts that name the source, so that even a poller that slept through its lease
//!   changes nothing about a newer stream. What may become untrue again (stalled, stale) is written with the token.
//! - What we believe is read before the node is asked, and again after it has answered: only who was believed to be there
//!   before can be missing, and only who is unknown after can be unadmitted.
//! - A node that is out of reach keeps its streams, marked as stale, until it has been silent for too long. While nobody asked,
//!   it was not silent; and about a stream it was not when it asked for its publisher, however long its control API has been.

mod carry_out;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Nodes,
    client::{NodeError, Paths},
    compare::{Beliefs, Finding, Memory},
    directory::Fleet,
    status::{NodeStatus, Severity},
    wiring,
};
use crate::{
    domain::{EndReason, Node, NodeName, Stream, StreamPath, Timestamp},
    lifecycle::{TaskError, Tasks, every, jitter_early},
    metrics,
    redis::{Afterwards, FencingToken, Lease, Observation, RedisError},
    streams::Snapshot,
};

/// How often the list of nodes is looked at.
const FLEET_PERIOD_MS: u64 = 1_000;
/// The longest pause between two polls of a node that does not answer. It is right within five seconds of its return, even
/// where that takes two polls and the machine is busy.
const BACKOFF_MAX_MS: u64 = 2_000;
/// How long one poll asks a node for anything besides what it has on air. It answers within milliseconds, or it hangs, and
/// that has to be noticed soon. What is left is found again by the next poll.
const ASIDE_LIMIT: Duration = Duration::from_secs(1);
/// A break in the asking that is longer than this part of what makes a node lost is no silence of the node.
const BREAK_PART: u64 = 4;
/// How much later than it is due something is looked for: no clock is exact.
const DUE_MARGIN: Duration = Duration::from_millis(2);
/// After how many polls the node is asked for its version and start, where nothing asked for it before.
const INFO_EVERY: u64 = 10;
/// After how many polls a node's wiring is checked again.
const WIRING_EVERY: u64 = 60;

/// Keeps one poller for every node of the fleet.
pub(super) async fn watch_fleet(nodes: Nodes, tasks: Tasks) -> Result<(), TaskError> {
    let stopping = tasks.stopping();
    let mut ticker = every(FLEET_PERIOD_MS, &stopping);
    let mut pollers = HashMap::<NodeName, (Arc<Node>, CancellationToken)>::new();
    while ticker.beat_or_woken(&nodes.inner.fleet_changed).await {
        nodes.inner.directory.refresh().await;
        let fleet = nodes.inner.directory.fleet();
        stop_pollers_of_changed_nodes(&mut pollers, &fleet);
        for (name, node) in fleet.iter() {
            if !pollers.contains_key(name) {
                let stop = stopping.child_token();
                pollers.insert(name.clone(), (Arc::clone(node), stop.clone()));
                tasks.spawn_short("node_poller", Poller::new(nodes.clone(), Arc::clone(node)).run(stop));
            }
        }
    }
    Ok(())
}

fn stop_pollers_of_changed_nodes(pollers: &mut HashMap<NodeName, (Arc<Node>, CancellationToken)>, fleet: &Fleet) {
    pollers.retain(|name, (node, stop)| {
        let is_unchanged = fleet.get(name).is_some_and(|current| current.control_url == node.control_url);
        if !is_unchanged {
            stop.cancel();
        }
        is_unchanged
    });
}

struct Poller {
    nodes: Nodes,
    node: Arc<Node>,
    holder: Uuid,
    memory: Memory,
    status: NodeStatus,
    polls: u64,
    restarted_in_poll: Option<u64>,
    failures: u32,
    ownership: Ownership,
    /// Until when the lease is held for certain.
    held_until: Instant,
    /// Since when this replica polls the node. A node that nobody asked was not silent.
    watching_since: Timestamp,
}

/// Whether this replica polls the node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ownership {
    Mine(FencingToken),
    /// Not this replica, at least for so long.
    Others(Duration),
}

/// The lease was lost while the node was asked, be it for a moment: nothing may be concluded.
struct LeaseLost;

impl Poller {
    fn new(nodes: Nodes, node: Arc<Node>) -> Self {
        let holder = nodes.inner.replica;
        let (memory, status) = (Memory::default(), NodeStatus::default());
        let ownership = Ownership::Others(Duration::ZERO);
        Self {
            nodes,
            node,
            holder,
            memory,
            status,
            polls: 0,
            restarted_in_poll: None,
            failures: 0,
            ownership,
            held_until: Instant::now(),
            watching_since: Timestamp::now(),
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let started = Instant::now();
            // Dropped where it waits when it is time to stop: everything that a cycle does may be done again.
            tokio::select! {
                () = self.cycle() => {}
                () = stop.cancelled() => break,
            }
            let next = self.next_cycle(started);
            tokio::select! {
                () = self.rest_until(next) => {}
                () = stop.cancelled() => break,
            }
        }
        if self.is_mine() {
            // Given back, so that another replica takes over at once.
            let _ = self.nodes.inner.redis.release_lease(&self.lease(), self.holder).await;
        }
    }

    fn lease(&self) -> String {
        format!("node:{}", self.node.name)
    }

    fn is_mine(&self) -> bool {
        matches!(self.ownership, Ownership::Mine(_))
    }

    /// When to look again: sooner than usual where something is due before.
    fn next_cycle(&self, started: Instant) -> Instant {
        let now = Instant::now();
        let usual = (started + self.pause()).max(now);
        let due = match self.ownership {
            Ownership::Mine(_) => {
                let stall_after_ms = self.nodes.inner.stall_after_ms;
                self.memory.ms_until_a_stall(Timestamp::now(), stall_after_ms).map(Duration::from_millis)
            }
            Ownership::Others(remaining) => Some(remaining),
        };
        due.map_or(usual, |due| usual.min(now + due + DUE_MARGIN))
    }

    /// Waits, and keeps the lease meanwhile: a pause may be longer than that.
    async fn rest_until(&mut self, next: Instant) {
        while self.is_mine() && next > Instant::now() + self.renewal() {
            tokio::time::sleep(self.renewal()).await;
            self.take_lease().await;
        }
        tokio::time::sleep_until(next).await;
    }

    fn renewal(&self) -> Duration {
        Duration::from_millis(self.nodes.inner.config.lease_ttl_ms / 3)
    }

    fn pause(&self) -> Duration {
        let interval_ms = self.nodes.inner.config.poll_interval_ms;
        let backoff_ms = interval_ms.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX_MS.max(interval_ms));
        let backoff = Duration::from_millis(backoff_ms).mul_f64(jitter_early());
        // However long the pauses have grown: its streams become stale when they are due to.
        let silence_ms = self.status.silence_ms(Timestamp::now());
        match self.nodes.inner.config.node_stale_after_ms.checked_sub(silence_ms) {
            Some(until_stale_ms) if silence_ms > 0 => backoff.min(Duration::from_millis(until_stale_ms + 1)),
            _ => backoff,
        }
    }

    async fn cycle(&mut self) {
        if !self.take_lease().await {
            return;
        }
        let started = Instant::now();
        let Ok(before) = self.nodes.inner.live.now().await else { return };
        if before.stale.is_some() {
            // Without Redis there is nothing to hold the node's word against, and nowhere to write what follows.
            return;
        }
        let client = self.nodes.inner.client.clone();
        let node = Arc::clone(&self.node);
        let Ok(answer) = self.while_holding_the_lease(&before.snapshot, client.paths(&node)).await else { return };
        match answer {
            Ok(paths) => {
                self.answered(&before.snapshot, &paths).await;
                metrics::node_poll(started.elapsed());
            }
            Err(error) => self.failed(&before.snapshot, &error).await,
        }
        self.report().await;
    }

    async fn take_lease(&mut self) -> bool {
        let ttl_ms = self.nodes.inner.config.lease_ttl_ms;
        let asked_at = Instant::now();
        let held = self.nodes.inner.redis.acquire_lease(&self.lease(), self.holder, ttl_ms).await;
        let mut ownership = match held {
            Ok(Lease::Held(token)) => Ownership::Mine(token),
            Ok(Lease::Other { remaining_ms }) => Ownership::Others(Duration::from_millis(remaining_ms)),
            Err(_) => Ownership::Others(Duration::from_millis(ttl_ms)),
        };
        let is_new = ownership != self.ownership && matches!(ownership, Ownership::Mine(_));
        if is_new && let Err(error) = self.take_over().await {
            tracing::debug!(%error, node = %self.node.name, "what the poller before saw cannot be read");
            ownership = Ownership::Others(self.renewal());
        }
        self.ownership = ownership;
        self.held_until = asked_at + Duration::from_millis(ttl_ms);
        self.is_mine()
    }

    /// Whether the lease has been held without a break since it was held as `before`. A replica that was stopped for a while
    /// finds out here.
    async fn still_holds(&mut self, before: Ownership) -> bool {
        if Instant::now() >= self.held_until {
            self.take_lease().await;
        }
        self.is_mine() && self.ownership == before
    }

    /// Begins where the last poller of the node ended, be it this one before a break. Not without its last words: nobody would
    /// ever forget what is left over among them.
    async fn take_over(&mut self) -> Result<(), RedisError> {
        self.polls = 0;
        self.restarted_in_poll = None;
        self.failures = 0;
        self.watching_since = Timestamp::now();
        let redis = &self.nodes.inner.redis;
        let seen = redis.progress_of_nodes(std::slice::from_ref(&self.node.name)).await?;
        self.memory = Memory::of(seen.into_values());
        let statuses = redis.node_statuses::<NodeStatus>().await?;
        self.status = statuses.get(&self.node.name).cloned().unwrap_or_default();
        self.status.note_asked(self.watching_since, self.nodes.inner.config.node_lost_after_ms / BREAK_PART);
        tracing::debug!(node = %self.node.name, "this replica polls the node now");
        Ok(())
    }

    /// Waits for the node, renewing the lease meanwhile. A node that hangs is marked as out of reach while it does.
    async fn while_holding_the_lease<T>(
        &mut self,
        believed: &Snapshot,
        answer: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<Result<T, NodeError>, LeaseLost> {
        tokio::pin!(answer);
        let (asked_at, ownership) = (Timestamp::now(), self.ownership);
        loop {
            tokio::select! {
                answer = &mut answer => return if self.still_holds(ownership).await { Ok(answer) } else { Err(LeaseLost) },
                () = tokio::time::sleep(self.renewal()) => {}
            }
            self.take_lease().await;
            if !self.still_holds(ownership).await {
                return Err(LeaseLost);
            }
            let (seen_at, now) = (self.status.seen_at.unwrap_or(asked_at), Timestamp::now());
            let unheard_since = seen_at.max(self.watching_since);
            if now.ms_since(unheard_since) >= self.nodes.inner.config.node_stale_after_ms {
                self.status.failed(now, &NodeError::no_answer_yet());
                self.report().await;
                for stream in believed.on_node(&self.node.name) {
                    self.mark_if_stale(stream, seen_at, silence_ms(stream, unheard_since, now)).await;
                }
            }
        }
    }

    async fn answered(&mut self, before: &Snapshot, paths: &Paths) {
        let now = Timestamp::now();
        let was_reachable = self.status.reachable;
        self.status.answered(now);
        self.failures = 0;
        let Ok(after) = self.nodes.inner.live.now().await else { return };
        let holder_now = |path: &StreamPath| after.snapshot.by_path(path).cloned();
        let beliefs = Beliefs {
            node: &self.node.name,
            before: before.on_node(&self.node.name).cloned().collect(),
            holder_now: &holder_now,
            now,
            stall_after_ms: self.nodes.inner.stall_after_ms,
            renditions: &self.nodes.inner.renditions,
        };
        let found = self.memory.compare(paths, &beliefs);
        let is_gone = |finding: &Finding| matches!(finding, Finding::Gone { .. } | Finding::PerhapsGone { .. });
        let somebody_is_gone = found.to_do.iter().any(is_gone);
        if !was_reachable || somebody_is_gone || self.polls.is_multiple_of(INFO_EVERY) {
            let ownership = self.ownership;
            self.ask_info().await;
            // A node that hangs from now on uses up three limits, and a lease is shorter than that.
            self.take_lease().await;
            if !self.still_holds(ownership).await {
                return;
            }
        }
        self.carry_out(found).await;
        if !was_reachable || self.polls.is_multiple_of(WIRING_EVERY) {
            let (client, expectation) = (&self.nodes.inner.client, &self.nodes.inner.wiring);
            let check = wiring::check(client, &self.node, expectation, &self.status.version);
            if let Ok(problems) = tokio::time::timeout(ASIDE_LIMIT, check).await {
                self.status.problems = problems;
            }
        }
        self.polls += 1;
    }

    async fn failed(&mut self, before: &Snapshot, error: &NodeError) {
        let now = Timestamp::now();
        if self.status.reachable || self.failures == 0 {
            tracing::warn!(node = %self.node.name, %error, "a node cannot be reached; its streams stay listed");
        }
        metrics::node_poll_error(error.fault.as_str());
        self.failures = self.failures.saturating_add(1);
        self.status.failed(now, error);
        let seen_at = self.status.unreachable_since.unwrap_or(now);
        let unheard_since = self.status.unheard_since().unwrap_or(now);
        for stream in before.on_node(&self.node.name) {
            let silence_ms = silence_ms(stream, unheard_since, now);
            if silence_ms >= self.nodes.inner.config.node_lost_after_ms {
                self.end(stream, EndReason::NodeLost, Afterwards::Kick).await;
            } else {
                self.mark_if_stale(stream, seen_at, silence_ms).await;
            }
        }
    }

    async fn mark_if_stale(&self, stream: &Stream, seen_at: Timestamp, silence_ms: u64) {
        if silence_ms >= self.nodes.inner.config.node_stale_after_ms && stream.stale_since.is_none() {
            self.observe(stream, &[Observation::Stale(Some(seen_at.max(told_at(stream))))]).await;
        }
    }

    async fn ask_info(&mut self) {
        let asked = tokio::time::timeout(ASIDE_LIMIT, self.nodes.inner.client.info(&self.node)).await;
        let Ok(Ok(info)) = asked else { return };
        if !self.status.started.is_empty() && self.status.started != info.started {
            tracing::warn!(node = %self.node.name, started = info.started, "a node has restarted");
            self.restarted_in_poll = Some(self.polls);
        }
        self.status.version = info.version;
        self.status.started = info.started;
    }

    /// Why a stream is gone that the node no longer has. A poller that never saw it there takes two polls to believe it.
    fn gone_because(&self) -> EndReason {
        match self.restarted_in_poll {
            Some(poll) if self.polls - poll <= 1 => EndReason::NodeRestarted,
            _ => EndReason::Lost,
        }
    }

    async fn report(&self) {
        if self.status.reachable {
            metrics::node_up(&self.node.name);
        } else {
            metrics::node_down(&self.node.name);
        }
        if let Some(seen_at) = self.status.seen_at {
            metrics::node_last_word_age(&self.node.name, Duration::from_millis(Timestamp::now().ms_since(seen_at)));
        }
        for severity in Severity::ALL {
            let count = self.status.problems.iter().filter(|problem| problem.severity == *severity).count();
            metrics::node_wiring_problems(&self.node.name, *severity, count as u64);
        }
        report_error(self.nodes.inner.redis.write_node_status(&self.node.name, &self.status).await);
    }
}

/// When the node spoke of a stream by itself, in an auth call or a hook. By the clock of Redis.
fn told_at(stream: &Stream) -> Timestamp {
    stream.state.live_since().unwrap_or(stream.admitted_at)
}

/// For how long nothing was heard of a stream on a node that has been silent since then.
fn silence_ms(stream: &Stream, unheard_since: Timestamp, now: Timestamp) -> u64 {
    now.ms_since(unheard_since.max(told_at(stream)))
}

/// The next poll finds the same again, so a failure is only worth a word.
fn report_error(result: Result<(), RedisError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "what the poller found could not be carried out; the next poll finds it again");
    }
}
