//! The rebuild: Redis gets back what it must hold, from what the history and the replicas remember.
//!
//! Role: Redis is emptied, restarted without its data, replaced, or taken over by a server that lacks the last writes. From
//! that moment on its partitions are closed (`src/redis/partitions.rs`): nobody takes a path. Here it is noticed, what was
//! there is put back, and the partitions are opened.
//!
//! Invariants:
//! - A partition is opened only when every open stream that the history or a replica remembers holds its path again, unless a replica
//!   does not come to putting it back within two seconds. So no second publisher gets in where one is on air.
//! - A partition is opened only when no key in it is older than Postgres says. Keys that are not there at all are looked up
//!   when somebody comes with one, and put back one after another once publishers are served again.
//! - A stream comes back only together with a key that admits; that is decided in the script that puts it back.
//! - Everything may be done twice, by any number of replicas, and be cut short anywhere.
//! - What is remembered too much is harmless: a stream that has ended meanwhile is found missing by the reconciler.

mod fleet;
mod keys;
mod streams;
mod watch;

use std::{collections::HashSet, time::Duration};

use futures_util::future::try_join_all;
use uuid::Uuid;

use crate::{
    config::Config,
    domain::{Epoch, KeyId, Node, NodeName, Partition, Stream, Timestamp},
    postgres::Postgres,
    redis::{Closed, Lease, Opening, Redis, RedisError, RememberedBy},
    store_error::StoreError,
    stream_keys::StreamKeys,
};

pub use fleet::{BroughtOver, FleetProjection};
pub(crate) use keys::PAGE;
pub use streams::{RestoreReport, Restorer};
pub use watch::{Watch, WatchParts};

/// The least time that a partition stays closed: more than one period of looking, so that replicas that Redis no longer knows of notice the
/// loss as well. After that, `open.lua` waits for those that left a note.
const REMEMBERING: Duration = Duration::from_millis(400);
/// After what time it is asked again whether a replica that has noticed is ready.
const AWAITED_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How much earlier than the last certain moment a change of a key may have been made that Redis lacks: what was certain was
/// noted some seconds before, and the clocks of Redis and Postgres may differ.
const KEYS_MARGIN_MS: i64 = 60_000;

/// The one that rebuilds, of all replicas and commands.
const LEASE: &str = "rebuild";
const LEASE_TTL_MS: u64 = 5_000;
/// How long a command waits for what is closed to be opened, by itself or by the service.
const OPENING_LIMIT: Duration = Duration::from_secs(60);

/// Puts back what Redis must hold. Cheap to clone.
#[derive(Clone)]
pub struct Rebuild {
    redis: Redis,
    postgres: Postgres,
    stream_keys: StreamKeys,
    restorer: Restorer,
    cooldown_ms: u64,
}

impl Rebuild {
    /// Makes the capability from its stores.
    #[must_use]
    pub fn new(config: &Config, redis: Redis, postgres: Postgres) -> Self {
        let stream_keys = StreamKeys::new(postgres.clone(), redis.clone(), config.renditions.suffixes.clone());
        Self {
            restorer: Restorer::new(redis.clone(), postgres.clone(), config.admission.connecting_timeout_ms),
            cooldown_ms: config.reconciler.cooldown_ms,
            redis,
            postgres,
            stream_keys,
        }
    }

    /// Opens what is closed, as the running service would.
    pub(crate) async fn open_what_is_closed(&self) -> Result<(), StoreError> {
        let command = Uuid::now_v7();
        let opening = async {
            loop {
                let closed = self.redis.closed_partitions().await?;
                if closed.is_empty() {
                    return Ok(());
                }
                if let Lease::Held(_) = self.redis.acquire_lease(LEASE, command, LEASE_TTL_MS).await? {
                    let opened = self.bring_back(&closed, HashSet::new()).await;
                    self.redis.release_lease(LEASE, command).await?;
                    return opened.map(drop);
                }
                tokio::time::sleep(REMEMBERING).await;
            }
        };
        tokio::time::timeout(OPENING_LIMIT, opening).await.unwrap_or(Err(RedisError::Timeout.into()))
    }

    /// Makes Redis hold a key as Postgres has it.
    pub(crate) async fn project_anew(&self, id: KeyId) -> Result<(), StoreError> {
        self.stream_keys.project_by_id(id).await.map(drop)
    }

    /// Puts a stream back, if its path is free and its key admits.
    pub(crate) async fn restore(&self, stream: &Stream) -> Result<(), StoreError> {
        self.restorer.restore(std::slice::from_ref(stream), RememberedBy::History).await.map(drop)
    }

    /// Puts back what a replica remembers of some partitions, as far as it is not over.
    async fn remember(&self, remembered: Vec<Stream>, partitions: &[Partition]) -> Result<RestoreReport, StoreError> {
        let streams: Vec<Stream> =
            remembered.into_iter().filter(|stream| partitions.contains(&stream.path.partition())).collect();
        self.restorer.restore(&streams, RememberedBy::Replica).await
    }

    /// Brings back all that closed partitions must hold before they are opened, and opens them. `in_place` are the keys that were
    /// held against Postgres since the partitions were found closed.
    async fn bring_back(&self, closed: &[Closed], in_place: HashSet<KeyId>) -> Result<RestoreReport, StoreError> {
        let partitions = partitions_of(closed);
        let epoch_max = self.postgres.epoch_max().await?;
        FleetProjection::new(self.redis.clone(), self.postgres.clone()).bring_over(Vec::new()).await?;
        let mut report = self.bring_back_streams(&partitions).await?;
        report.keys.extend(in_place);
        self.bring_back_cooldowns(&partitions).await?;
        self.replace_older_keys(&partitions, changed_since(closed), &report.keys).await?;
        // Noted first: whoever dies after the opening leaves the rest of the keys to another replica.
        self.redis.set_projection_position(Some("")).await?;
        // A database without a single stream has never been in use: there is nothing that another replica could remember.
        if epoch_max.is_some() {
            let closed_for_ms = closed.iter().map(|closed| closed.for_ms).min().unwrap_or_default();
            tokio::time::sleep(REMEMBERING.saturating_sub(Duration::from_millis(closed_for_ms))).await;
        }
        // At once, so that what has to be waited for is waited for once.
        let opened = try_join_all(closed.iter().map(|closed| self.open(closed, epoch_max))).await?;
        if opened.contains(&Opening::LostAgain) {
            return Err(RedisError::MemoryLost.into());
        }
        Ok(report)
    }

    /// Opens a partition once every replica that Redis knows of has put back what it remembers, or was given up.
    async fn open(&self, closed: &Closed, epoch_max: Option<Epoch>) -> Result<Opening, RedisError> {
        loop {
            match self.redis.open_partition(closed, epoch_max).await? {
                Opening::Awaited => tokio::time::sleep(AWAITED_AGAIN_AFTER).await,
                decided => return Ok(decided),
            }
        }
    }

    /// Puts the fleet back as Postgres knows it, whatever Redis says: for an administrator who asked for that.
    pub(crate) async fn bring_back_nodes(&self) -> Result<(), StoreError> {
        // Redis first: what is in there and not in Postgres afterwards has been removed, and not just been added.
        let in_redis = self.redis.nodes().await?;
        let nodes = self.postgres.nodes().await?;
        let is_in_place = |node: &&Node| in_redis.get(&node.name) == Some(*node);
        let missing: Vec<Node> = nodes.iter().filter(|node| !is_in_place(node)).cloned().collect();
        self.redis.put_nodes(&missing).await?;
        let left: HashSet<NodeName> = self.postgres.nodes().await?.into_iter().map(|node| node.name).collect();
        let strangers: Vec<&NodeName> =
            in_redis.keys().chain(missing.iter().map(|node| &node.name)).filter(|name| !left.contains(name)).collect();
        for name in &strangers {
            self.redis.remove_node(name).await?;
            self.redis.forget_progress(name).await?;
        }
        Ok(())
    }

    /// Closes again the paths whose cool-down after a stop is not over.
    async fn bring_back_cooldowns(&self, partitions: &[Partition]) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let cooldown_ms = i64::try_from(self.cooldown_ms).unwrap_or(i64::MAX);
        for (path, stopped_at) in self.postgres.stops_since(now.plus_ms(cooldown_ms.saturating_neg())).await? {
            let until = stopped_at.plus_ms(cooldown_ms);
            if partitions.contains(&path.partition()) && until > now {
                self.redis.close_path(&path, until, until.ms_since(now)).await?;
            }
        }
        Ok(())
    }
}

fn partitions_of(closed: &[Closed]) -> Vec<Partition> {
    closed.iter().map(|closed| closed.partition).collect()
}

/// Since when keys may have changed without the closed partitions knowing; `None` where nothing is certain.
fn changed_since(closed: &[Closed]) -> Option<Timestamp> {
    let whole_until: Option<Vec<Timestamp>> = closed.iter().map(|closed| closed.whole_until).collect();
    Some(whole_until?.into_iter().min()?.plus_ms(-KEYS_MARGIN_MS))
}
