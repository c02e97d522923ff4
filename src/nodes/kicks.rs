//! Off air means off air: closing sources, again and again, until their node says that they are gone.
//!
//! Invariants:
//! - What must be off air is written in Redis by the transition that decided it, before anybody kicks: a crash loses nothing.
//! - A source is gone when the node no longer knows it, not when the node said "ok" to a kick.
//! - A node that is out of reach keeps its kicks until it returns, and delays those of no other node.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    client::{Kicked, NodeClient, NodeError, QUICK_LIMIT},
    directory::{Directory, Membership},
};
use crate::{
    domain::{EndReason, Node, NodeName, SourceId, Stream, StreamState, Timestamp},
    lifecycle::{TaskError, every},
    metrics,
    redis::{KickIntent, Lease, Redis},
};

/// How often the kicks that are owed are looked through.
const PERIOD_MS: u64 = 500;
/// How often one round kicks a source before it leaves it to the next round.
const TRIES_A_ROUND: u32 = 3;
/// How many sources of one node are kicked at once.
const AT_ONCE: usize = 4;
/// How long a node that gave no answer is left alone, or a source that a round of kicks did not close.
const REST: Duration = Duration::from_secs(2);
const LEASE: &str = "kicks";
const LEASE_TTL_MS: u64 = 2_000;

/// Whether a source is off air.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KickOutcome {
    /// Its node no longer has it.
    Gone,
    /// Not yet; it is kicked until it is gone.
    Pending,
}

/// The node of a kick gave no answer of its own: it would not answer another kick either.
struct NodeIsAway;

/// What is left alone for a moment, and until when.
#[derive(Default)]
struct Resting {
    nodes: HashMap<NodeName, Instant>,
    sources: HashMap<SourceId, Instant>,
}

impl Resting {
    fn begin(&mut self, node: NodeName, left: Result<Vec<SourceId>, NodeIsAway>) {
        let until = Instant::now() + REST;
        match left {
            Ok(sources) => self.sources.extend(sources.into_iter().map(|source_id| (source_id, until))),
            Err(NodeIsAway) => drop(self.nodes.insert(node, until)),
        }
    }

    fn end_what_is_over(&mut self) {
        let now = Instant::now();
        self.nodes.retain(|_, until| *until > now);
        self.sources.retain(|_, until| *until > now);
    }

    fn contains(&self, kick: &KickIntent) -> bool {
        self.nodes.contains_key(&kick.node) || self.sources.contains_key(&kick.source_id)
    }
}

/// Closes sources that must be off air.
#[derive(Clone)]
pub struct Kicks {
    redis: Redis,
    client: NodeClient,
    directory: Arc<Directory>,
    owed: Arc<Notify>,
    replica: Uuid,
}

impl Kicks {
    pub(super) fn new(
        redis: Redis,
        client: NodeClient,
        directory: Arc<Directory>,
        owed: Arc<Notify>,
        replica: Uuid,
    ) -> Self {
        Self { redis, client, directory, owed, replica }
    }

    /// Kicks the source of a stream that has ended, and waits at most `limit` for it to be gone.
    pub async fn kick_and_wait(&self, ended: &Stream, limit: Duration) -> KickOutcome {
        let StreamState::Ended { reason, at, .. } = ended.state else { return KickOutcome::Pending };
        let kick = KickIntent::of_ended(ended, reason, at);
        let carried_out = tokio::time::timeout(limit, self.carry_out(&kick)).await;
        let outcome = carried_out.unwrap_or(Err(NodeIsAway)).unwrap_or(KickOutcome::Pending);
        if outcome == KickOutcome::Pending {
            self.owed.notify_one();
        }
        outcome
    }

    /// Kicks a publisher whom nobody admitted, and remembers that until it is gone.
    pub(super) async fn kick_unadmitted(&self, kick: &KickIntent) {
        if let Err(error) = self.redis.owe_kick(kick).await {
            tracing::warn!(%error, "a kick could not be noted; the next poll finds the source again");
        }
        // Where it fails, it stays owed.
        let _ = self.carry_out(kick).await;
    }

    /// The task that carries out every kick that is owed. One replica at a time does it by the clock; a replica that made
    /// one necessary does not wait for that.
    pub(super) async fn run(self, stopping: CancellationToken) -> Result<(), TaskError> {
        let mut ticker = every(PERIOD_MS, &stopping);
        let mut rounds = FuturesUnordered::new();
        let (mut busy, mut resting) = (HashSet::<NodeName>::new(), Resting::default());
        loop {
            let woken = tokio::select! {
                beats = ticker.beat() => { if !beats { return Ok(()) } false }
                () = self.owed.notified() => true,
                Some((node, left)) = rounds.next() => {
                    busy.remove(&node);
                    resting.begin(node, left);
                    continue;
                }
            };
            if !woken && !self.is_mine().await {
                continue;
            }
            resting.end_what_is_over();
            for (node, owed) in self.owed_by_node(&resting, !woken).await {
                if busy.insert(node.clone()) {
                    rounds.push(self.round(node, owed));
                }
            }
        }
    }

    async fn is_mine(&self) -> bool {
        matches!(self.redis.acquire_lease(LEASE, self.replica, LEASE_TTL_MS).await, Ok(Lease::Held(_)))
    }

    /// What is owed and may be tried now. Whoever holds the lease tells how many they are: others look once, and would go on telling
    /// of what is long done.
    async fn owed_by_node(&self, resting: &Resting, holds_lease: bool) -> HashMap<NodeName, Vec<KickIntent>> {
        let mut by_node = HashMap::<_, Vec<_>>::new();
        match self.redis.owed_kicks().await {
            Ok(owed) => {
                // Nobody knows how many a silent server of a cluster has.
                if owed.are_all && holds_lease {
                    metrics::kicks_pending(owed.kicks.len() as u64);
                }
                for kick in owed.kicks.into_iter().filter(|kick| !resting.contains(kick)) {
                    by_node.entry(kick.node.clone()).or_default().push(kick);
                }
            }
            Err(error) => tracing::debug!(%error, "the kicks that are owed could not be read"),
        }
        by_node
    }

    /// Carries out what one node owes, and gives up where it does not answer: the others would only wait for the same.
    async fn round(&self, node: NodeName, owed: Vec<KickIntent>) -> (NodeName, Result<Vec<SourceId>, NodeIsAway>) {
        let kicks = stream::iter(owed).map(|kick| async move { (kick.source_id, self.carry_out(&kick).await) });
        let mut outcomes = kicks.buffer_unordered(AT_ONCE);
        let mut left = Vec::new();
        while let Some((source_id, outcome)) = outcomes.next().await {
            match outcome {
                Ok(KickOutcome::Gone) => {}
                Ok(KickOutcome::Pending) => left.push(source_id),
                Err(NodeIsAway) => return (node, Err(NodeIsAway)),
            }
        }
        (node, Ok(left))
    }

    /// Kicks until the node says that the source is gone, a few times at most.
    async fn carry_out(&self, kick: &KickIntent) -> Result<KickOutcome, NodeIsAway> {
        let node = match self.directory.membership(&kick.node).await {
            Membership::Member(node) => node,
            // A node that is no longer of the fleet is not ours to speak to, and its publishers are refused everywhere.
            Membership::Stranger => {
                self.done(kick).await;
                return Ok(KickOutcome::Gone);
            }
            Membership::Unknown => return Ok(KickOutcome::Pending),
        };
        for _ in 0..TRIES_A_ROUND {
            match self.kick_once(&node, kick).await {
                Ok(Kicked::Unknown) => {
                    self.done(kick).await;
                    return Ok(KickOutcome::Gone);
                }
                // Closed: asked again, because only "no such source" says that it is gone.
                Ok(Kicked::Closed) => metrics::kick(kick.reason.as_str(), metrics::KickOutcome::Kicked),
                Err(error) => {
                    metrics::kick(kick.reason.as_str(), metrics::KickOutcome::Failed);
                    if error.is_about_the_node() {
                        // Its poller says so, once and not for each kick and round.
                        tracing::debug!(node = %kick.node, path = %kick.path, source_id = %kick.source_id, %error, "a kick waits for its node");
                        return Err(NodeIsAway);
                    }
                    tracing::warn!(node = %kick.node, path = %kick.path, source_id = %kick.source_id, %error, "a kick failed; it stays owed");
                    return Ok(KickOutcome::Pending);
                }
            }
        }
        Ok(KickOutcome::Pending)
    }

    async fn kick_once(&self, node: &Node, kick: &KickIntent) -> Result<Kicked, NodeError> {
        for source_type in kick.source_types() {
            if self.client.kick(node, source_type, kick.source_id, QUICK_LIMIT).await? == Kicked::Closed {
                return Ok(Kicked::Closed);
            }
        }
        Ok(Kicked::Unknown)
    }

    async fn done(&self, kick: &KickIntent) {
        match self.redis.strike_off_kick(kick).await {
            Ok(true) => {}
            // Somebody else carried it out as well, and has told of it.
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%error, "a kick that is done could not be struck off; it is kicked once more");
                return;
            }
        }
        let silence_ms = Timestamp::now().ms_since(kick.since);
        metrics::kick(kick.reason.as_str(), metrics::KickOutcome::Gone);
        if matches!(
            kick.reason,
            EndReason::KeyRevoked | EndReason::KeyDisabled | EndReason::KeyExpired | EndReason::Stopped
        ) {
            metrics::revoke_to_silence(Duration::from_millis(silence_ms));
        }
        tracing::info!(
            node = %kick.node, path = %kick.path, source_id = %kick.source_id, reason = %kick.reason, silence_ms,
            "a source is off air"
        );
    }
}
