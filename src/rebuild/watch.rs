//! The task of each replica that notices when Redis has lost its memory.
//!
//! Every replica puts back what only it remembers; one of them, by a lease, brings back the rest and opens the partitions.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{LEASE, LEASE_TTL_MS, Rebuild, keys::KeysReport, partitions_of, streams::newest_of_each};
use crate::{
    admission::{Admission, RecentAdmission},
    domain::{KeyId, Partition, Revision, Stream, StreamInfo, StreamState},
    lifecycle::{TaskError, every},
    metrics,
    postgres::KeyWithOwner,
    redis::{Closed, KeyProjection, Lease, RedisError},
    store_error::StoreError,
    streams::LiveView,
};

/// How often it is looked whether a partition is closed. The view is asked for as often, so that what this replica remembers
/// of the streams on air is never older.
const PERIOD_MS: u64 = 200;
/// How long after a look that failed the next one is made, when partitions were closed a moment ago: others wait for this replica.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// For how long they do, with some to spare.
const WAITED_FOR: Duration = Duration::from_secs(5);
/// After how many looks the servers are asked whether they are still those that were known to be whole.
const CHECK_EVERY: u64 = 5;
/// How long a replica that starts waits for a Redis that has to be filled first.
const START_LIMIT: Duration = Duration::from_secs(3);

/// What the task is made of.
pub struct WatchParts {
    /// What puts things back.
    pub rebuild: Rebuild,
    /// What is on air, as this replica knows.
    pub live: LiveView,
    /// Whom this replica admitted.
    pub admission: Admission,
    /// This replica, as the holder of leases.
    pub replica: Uuid,
}

/// What this replica remembers of partitions that are closed, or were a moment ago.
#[derive(Default)]
struct Remembered {
    of: Vec<Partition>,
    on_air: Vec<Stream>,
    /// Whom it admitted a moment before, and may not have seen on air.
    admitted: Vec<RecentAdmission>,
}

/// The task.
pub struct Watch {
    parts: WatchParts,
    looks: u64,
    closed_since: Option<Instant>,
    /// Whether this replica has known Redis to be whole: one that was never filled has lost nothing.
    was_open: bool,
    remembered: Remembered,
    is_projecting: bool,
    keys: KeysReport,
}

impl Watch {
    /// Makes the task.
    #[must_use]
    pub fn new(parts: WatchParts) -> Self {
        Self {
            parts,
            looks: 0,
            closed_since: None,
            was_open: false,
            remembered: Remembered::default(),
            is_projecting: false,
            keys: KeysReport::default(),
        }
    }

    /// Fills a Redis that is empty, so that a replica that has started admits at once. Gives up where a store is away, or
    /// another replica takes long: then it comes about later.
    pub async fn at_start(&mut self) {
        let filling = async {
            while let Ok(1..) = self.look(true).await {
                tokio::time::sleep(Duration::from_millis(PERIOD_MS / 4)).await;
            }
        };
        let _ = tokio::time::timeout(START_LIMIT, filling).await;
        if self.closed_since.is_some() {
            tracing::error!("what Redis must hold is not back yet: nobody is admitted until it is");
        }
    }

    /// Runs until it is time to stop.
    ///
    /// # Errors
    /// Never: what fails is tried again.
    pub async fn run(mut self, stopping: CancellationToken) -> Result<(), TaskError> {
        let mut ticker = every(PERIOD_MS, &stopping);
        let redis = self.parts.rebuild.redis.clone();
        let mut courtesy = redis.courtesy();
        let mut has_failed = false;
        loop {
            let is_waited_for = has_failed && self.closed_since.is_some_and(|since| since.elapsed() < WAITED_FOR);
            let woken = tokio::select! {
                goes_on = ticker.beat() => {
                    if !goes_on {
                        // So that others need not wait: for the lease to run out, nor for this replica.
                        let _ = redis.release_lease(LEASE, self.parts.replica).await;
                        let _ = redis.note_gone(self.parts.replica).await;
                        return Ok(());
                    }
                    false
                }
                // While it is known, those who are refused need not tell again and again.
                () = redis.memory_lost(), if self.closed_since.is_none() => true,
                () = tokio::time::sleep(AGAIN_AFTER), if is_waited_for => true,
            };
            let must_check = woken || is_waited_for;
            // Whom this replica admits in the meantime it remembers anyway.
            if !must_check && courtesy.has_to_wait() {
                continue;
            }
            let looked = self.look(must_check).await;
            has_failed = looked.is_err();
            if let Err(error) = looked {
                tracing::debug!(%error, "what Redis must hold could not be looked after; it is tried again");
            }
        }
    }

    /// Looks, and does what is to be done. Gives how many partitions are closed still.
    async fn look(&mut self, must_check: bool) -> Result<usize, StoreError> {
        let view = self.parts.live.now().await.ok();
        let is_lost = view.as_ref().is_none_or(|view| view.stale == Some(RedisError::MemoryLost));
        let is_due = self.looks.is_multiple_of(CHECK_EVERY);
        self.looks += 1;
        if !(is_lost || is_due || must_check) {
            if self.is_projecting {
                self.project_on().await?;
            }
            return Ok(0);
        }
        let closed = self.parts.rebuild.redis.closed_partitions_to_fill(self.parts.replica).await?;
        metrics::partitions_closed(closed.len());
        if closed.is_empty() {
            self.note_open();
            self.remember_the_rest().await?;
            self.project_on().await?;
            return Ok(0);
        }
        self.note_closed(&closed);
        let on_air = view.map(|view| view.snapshot.streams().map(|stream| Stream::clone(stream)).collect());
        let in_place = self.remember(on_air, &closed).await?;
        self.parts.rebuild.redis.note_put_back(&closed, self.parts.replica).await?;
        self.bring_back(closed, in_place).await
    }

    /// Puts back what only this replica may remember. Gives the keys that came with it.
    async fn remember(&mut self, on_air: Option<Vec<Stream>>, closed: &[Closed]) -> Result<HashSet<KeyId>, StoreError> {
        let of = partitions_of(closed);
        // Kept before a store is asked: where one gives no answer, another replica may open meanwhile. What it has opened since the last
        // look stays in mind for the same reason.
        if let Some(on_air) = on_air {
            self.remembered.on_air.retain(|stream| !of.contains(&stream.path.partition()));
            self.remembered.on_air.extend(on_air.into_iter().filter(|stream| of.contains(&stream.path.partition())));
        }
        self.remembered.admitted.retain(|admission| !of.contains(&admission.path.partition()));
        let recent = self.parts.admission.recent().into_iter();
        self.remembered.admitted.extend(recent.filter(|admission| of.contains(&admission.path.partition())));
        self.remembered.of.retain(|partition| !of.contains(partition));
        self.remembered.of.extend(of);
        self.put_back_remembered().await
    }

    async fn put_back_remembered(&self) -> Result<HashSet<KeyId>, StoreError> {
        let Remembered { of, on_air, admitted } = &self.remembered;
        let admitted = self.streams_of(admitted).await?;
        let streams = newest_of_each(on_air.iter().cloned().chain(admitted));
        Ok(self.parts.rebuild.remember(streams, of).await?.keys)
    }

    /// Once more after the opening, where another replica opened: what was not put back in time gets its path if that is free.
    async fn remember_the_rest(&mut self) -> Result<(), StoreError> {
        if !self.remembered.of.is_empty() {
            self.put_back_remembered().await?;
            self.remembered = Remembered::default();
        }
        Ok(())
    }

    async fn streams_of(&self, recent: &[RecentAdmission]) -> Result<Vec<Stream>, StoreError> {
        let ids: Vec<KeyId> = recent.iter().map(|admission| admission.key_id).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.parts.rebuild.postgres.stream_keys_by_id(&ids).await?;
        let keys: HashMap<KeyId, KeyWithOwner> = keys.into_iter().map(|key| (key.key.id, key)).collect();
        Ok(recent
            .iter()
            .filter_map(|admission| Some(stream_of(keys.get(&admission.key_id)?, admission.clone())))
            .collect())
    }

    async fn bring_back(&mut self, closed: Vec<Closed>, in_place: HashSet<KeyId>) -> Result<usize, StoreError> {
        let rebuild = &self.parts.rebuild;
        if !self.is_the_one().await? {
            return Ok(closed.len());
        }
        let began = Instant::now();
        let report = rebuild.bring_back(&closed, in_place).await?;
        metrics::rebuilt();
        metrics::partitions_closed(0);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.was_open {
            tracing::warn!(
                partitions = closed.len(),
                restored = report.restored,
                ended = report.ended,
                held = report.held,
                written_off = report.written_off,
                took_ms,
                "Redis has its memory back: publishers are admitted again"
            );
        } else {
            tracing::info!(partitions = closed.len(), took_ms, "Redis holds all that it must: publishers are admitted");
        }
        self.note_open();
        self.is_projecting = true;
        Ok(0)
    }

    async fn is_the_one(&self) -> Result<bool, StoreError> {
        let redis = &self.parts.rebuild.redis;
        Ok(matches!(redis.acquire_lease(LEASE, self.parts.replica, LEASE_TTL_MS).await?, Lease::Held(_)))
    }

    fn note_closed(&mut self, closed: &[Closed]) {
        if self.closed_since.is_none() {
            let whole_until = closed.iter().map(|closed| closed.whole_until).min().flatten();
            self.closed_since = Some(Instant::now());
            if !self.was_open {
                // Whoever starts has lost nothing: a Redis that was stopped in order and started again is looked over as well.
                let found = match whole_until {
                    None => "Redis holds nothing yet: it is filled from Postgres",
                    Some(_) => "Redis was started or took over: what it holds is looked over first",
                };
                tracing::info!(partitions = closed.len(), "{found}");
                return;
            }
            tracing::error!(
                partitions = closed.len(),
                whole_until = whole_until.map_or_else(|| "never".to_owned(), |at| at.to_string()),
                "Redis has lost its memory, or the last of it: nobody is admitted until it is back"
            );
        }
    }

    fn note_open(&mut self) {
        self.was_open = true;
        self.closed_since = None;
    }

    /// A page of the projection of all keys, where one is under way and this replica is the one.
    async fn project_on(&mut self) -> Result<(), StoreError> {
        self.is_projecting = false;
        let rebuild = &self.parts.rebuild;
        let Some(position) = rebuild.redis.projection_position().await? else { return Ok(()) };
        if !self.is_the_one().await? {
            return Ok(());
        }
        let after: Option<KeyId> = position.parse().ok();
        if after.is_none() {
            self.keys = KeysReport::default();
        }
        let next = rebuild.project_page(after, &mut self.keys).await?;
        rebuild.redis.set_projection_position(next.map(|id| id.to_string()).as_deref()).await?;
        self.is_projecting = next.is_some();
        if next.is_none() {
            self.keys.tell();
        }
        Ok(())
    }
}

/// The stream that an admission began, as it was then.
fn stream_of(key: &KeyWithOwner, admission: RecentAdmission) -> Stream {
    let KeyProjection { broadcaster_id, playback, info, expires_at, .. } =
        KeyProjection::new(&key.key, &key.broadcaster_name);
    Stream {
        id: admission.stream_id,
        path: admission.path,
        epoch: admission.epoch,
        revision: Revision(1),
        key_id: admission.key_id,
        broadcaster_id,
        node: admission.node,
        source: admission.source,
        // How long it may still take is decided where it is put back.
        state: StreamState::Connecting { deadline: admission.at },
        admitted_at: admission.at,
        key_expires_at: expires_at,
        info: StreamInfo { recording: None, ..info },
        playback,
        stalled_at: None,
        stale_since: None,
        tracks: Vec::new(),
    }
}
