//! The fleet, the replicas, the gate through which everybody acts, and the books.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};
use uuid::Uuid;

use super::{
    READ_TIMEOUT,
    support::{
        measured::{RIGHT_WITHIN, say, sources_on},
        mediamtx::{HookEncoding, HookTarget, MediaMtx},
        stack::{Replica, Stack, node_password},
    },
};

const NODES: usize = 5;
const REPLICAS: usize = 2;

/// Node, path and source.
pub type Source = (String, String, String);

/// A node, and whether it is in trouble.
pub struct Edge {
    pub node: Arc<MediaMtx>,
    /// Whether its process is gone, so that nobody can connect to it.
    pub is_dead: AtomicBool,
    /// Since when it is well; `None` while it is not.
    well_since: Mutex<Option<Instant>>,
}

impl AsRef<MediaMtx> for Edge {
    fn as_ref(&self) -> &MediaMtx {
        &self.node
    }
}

impl Edge {
    pub fn trouble_begins(&self) {
        *lock(&self.well_since) = None;
    }

    pub fn trouble_ends(&self) {
        *lock(&self.well_since) = Some(Instant::now());
    }

    /// Nobody has to be right about it before so long after this.
    fn is_excused_for(&self, time: Duration) {
        let mut well_since = lock(&self.well_since);
        *well_since = well_since.map(|_| Instant::now() + time);
    }

    pub fn well_since(&self) -> Option<Instant> {
        *lock(&self.well_since)
    }

    pub fn is_well_for(&self, time: Duration) -> bool {
        self.well_since().is_some_and(|since| Instant::now().saturating_duration_since(since) >= time)
    }
}

pub struct World {
    pub stack: Stack,
    pub edges: Vec<Edge>,
    pub books: Books,
    pub broadcaster_id: String,
    replicas: Mutex<Vec<Arc<Replica>>>,
    /// Held to read while somebody looks at what a replica lists, and to write while one dies.
    looks: RwLock<()>,
    gate: RwLock<()>,
    /// True while nobody may begin anything.
    hush: watch::Sender<bool>,
    is_over: AtomicBool,
}

impl World {
    pub async fn start(stack: Stack) -> Self {
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(Arc::new(stack.replica().await));
        }
        let mut edges = Vec::new();
        for number in 0..NODES {
            let replica = &replicas[number % REPLICAS];
            let change = |options: &mut super::support::mediamtx::MediaMtxOptions| options.read_timeout = READ_TIMEOUT;
            let node = replica.mediamtx_with(&format!("edge-{number}"), change).await;
            let well_since = Mutex::new(Some(Instant::now()));
            edges.push(Edge { node, is_dead: AtomicBool::new(false), well_since });
        }
        let broadcaster_id = replicas[0].broadcaster("Everybody").await;
        Self {
            stack,
            edges,
            books: Books::default(),
            broadcaster_id,
            replicas: Mutex::new(replicas),
            looks: RwLock::new(()),
            gate: RwLock::new(()),
            hush: watch::Sender::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    pub fn replica(&self, number: usize) -> Arc<Replica> {
        Arc::clone(&lock(&self.replicas)[number % REPLICAS])
    }

    /// Waits for the right to do something.
    pub async fn may_act(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Nobody does anything while this lives.
    pub async fn quiet(&self) -> Quiet<'_> {
        self.hush.send_replace(true);
        Quiet { _gate: self.gate.write().await, hush: &self.hush }
    }

    /// Waits, but no longer than until it is to be quiet or over.
    pub async fn rest(&self, time: Duration) {
        let mut hush = self.hush.subscribe();
        // It is over when the sender says nothing new any more: then the time is waited for.
        let _ = tokio::time::timeout(time, hush.wait_for(|hush| *hush)).await;
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.hush.send_replace(true);
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A replica dies, and another one is there in its place. Nobody may be calling it.
    pub async fn replace_replica(&self, number: usize) {
        let quiet = self.quiet().await;
        let successor = Arc::new(self.stack.replica().await);
        for (edge, _) in self.edges.iter().zip(0..).filter(|(_, index)| index % REPLICAS == number) {
            let name = edge.node.name();
            let hooks = HookTarget {
                base_url: successor.url(),
                user: name.to_owned(),
                password: node_password(name),
                encoding: HookEncoding::Form,
            };
            edge.node.point_at(successor.auth_url(name), Some(hooks));
        }
        for edge in &self.edges {
            edge.is_excused_for(Duration::from_secs(3));
        }
        let nobody_looks = self.looks.write().await;
        let dead = std::mem::replace(&mut lock(&self.replicas)[number], successor);
        dead.tasks.abort();
        drop((nobody_looks, quiet));
    }

    pub async fn is_right(&self) -> bool {
        self.differences().await.is_empty()
    }

    /// What a replica lists that does not die meanwhile.
    pub async fn listed_sources(&self) -> Vec<Source> {
        let _it_lives = self.looks.read().await;
        self.replica(0).listed_sources().await
    }

    /// What is listed and not on air, and what is on air and not listed.
    pub async fn differences(&self) -> Vec<String> {
        let (listed, on_air) = (self.listed_sources().await, sources_on(&self.edges));
        let only = |ours: &[Source], others: &[Source], what: &str| -> Vec<String> {
            ours.iter().filter(|it| !others.contains(it)).map(|it| format!("{what}: {it:?}")).collect()
        };
        let mut differences = only(&listed, &on_air, "listed, not on air");
        differences.extend(only(&on_air, &listed, "on air, not listed"));
        differences
    }

    pub async fn listed_paths(&self) -> Vec<String> {
        let snapshot = self.replica(0).app.streams.view().await.expect("a view").snapshot;
        let mut paths: Vec<_> = snapshot.streams().map(|stream| stream.path.to_string()).collect();
        paths.sort();
        paths
    }

    pub async fn owed_kicks(&self) -> usize {
        self.replica(0).app.redis.kicks().await.map_or(usize::MAX, |kicks| kicks.len())
    }

    #[track_caller]
    pub fn assert_no_violation(&self) {
        let violations = lock(&self.books.violations);
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    }

    pub fn report(&self) {
        for edge in &self.edges {
            let counts = edge.node.counts();
            self.books.add("hooks sent", counts.hooks_sent);
            self.books.add("kicks received", counts.kicked.len() as u64);
            self.books.add("polls answered", counts.control_calls_to("/v3/paths/list"));
        }
        self.books.report();
    }
}

/// See [`World::quiet`].
pub struct Quiet<'a> {
    _gate: RwLockWriteGuard<'a, ()>,
    hush: &'a watch::Sender<bool>,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.hush.send_replace(false);
    }
}

/// What happened.
#[derive(Default)]
pub struct Books {
    counts: Mutex<BTreeMap<String, u64>>,
    times: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    admitted: Mutex<Vec<Uuid>>,
    violations: Mutex<Vec<String>>,
    unanswered: AtomicU64,
}

impl Books {
    pub fn count(&self, what: impl Into<String>) {
        self.add(what, 1);
    }

    pub fn add(&self, what: impl Into<String>, count: u64) {
        *lock(&self.counts).entry(what.into()).or_default() += count;
    }

    pub fn time(&self, what: &'static str, took: Duration) {
        lock(&self.times).entry(what).or_default().push(took);
    }

    pub fn admit(&self, source_id: Uuid) {
        lock(&self.admitted).push(source_id);
    }

    pub fn admitted(&self) -> Vec<Uuid> {
        lock(&self.admitted).clone()
    }

    /// Somebody got no answer, or none in time.
    pub fn note_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    pub fn violate(&self, what: String) {
        lock(&self.violations).push(what);
    }

    /// Counts ended streams by their reason.
    pub fn note_ends(&self, states: impl Iterator<Item = String>) {
        for state in states {
            let reason = state.rsplit("reason: ").next().unwrap_or_default().trim_end_matches(" }").to_owned();
            self.count(format!("ended: {reason}"));
        }
    }

    fn report(&self) {
        for (what, count) in lock(&self.counts).iter() {
            say(&format!("soak: {count:>6} {what}"));
        }
        for (what, times) in lock(&self.times).iter_mut() {
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_millis();
            say(&format!(
                "soak: {what}: {} times; 50% {} ms, 90% {} ms, 99% {} ms, all {} ms (limit {} ms)",
                times.len(),
                at(50),
                at(90),
                at(99),
                at(100),
                RIGHT_WITHIN.as_millis(),
            ));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
