//! The fleet: `MediaMTX` servers, how they are wired to us, and what they say is on air.
//!
//! Role: the directory of nodes, their control APIs, the reconciler that holds what we believe against what they say, and
//! the kicks that make off air mean off air.
//!
//! Invariant: nothing here is called from inside an auth call.

mod client;
mod compare;
pub mod contract;
mod directory;
mod kicks;
pub mod mediamtx_config;
mod projection;
mod reconciler;
mod status;
mod wiring;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use url::Url;
use uuid::Uuid;

pub use client::{NodeClient, NodeError, NodeFault, Paths};
pub use directory::{Directory, Fleet};
pub use kicks::{KickOutcome, Kicks};
pub use status::{NodeStatus, Severity, WiringProblem};
pub use wiring::{AUTH_PATH, Expectation, PUBLISH_HOOK_PATH, UNPUBLISH_HOOK_PATH, check as check_wiring};

use crate::{
    config::{NodeConfig, ReconcilerConfig},
    domain::{Actor, ChangedBy, EndReason, Node, NodeName, PublicUrls, Renditions, Stream, StreamPath},
    lifecycle::Tasks,
    metrics,
    postgres::{Deed, NodePut, Postgres, PostgresError},
    rebuild::{FleetProjection, Restorer},
    redis::{Afterwards, EndRequest, Ending, Holder, Redis, RedisError},
    store_error::StoreError,
    streams::{LiveView, Snapshot, ViewUnavailable, note_end},
};

/// How long the details of one connection may take: they are asked for while a caller waits.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// The fleet. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    config: ReconcilerConfig,
    stall_after_ms: u64,
    renditions: Renditions,
    restorer: Restorer,
    replica: Uuid,
    redis: Redis,
    postgres: Postgres,
    live: LiveView,
    client: NodeClient,
    directory: Arc<Directory>,
    kicks: Kicks,
    kick_owed: Arc<Notify>,
    fleet_changed: Notify,
    fleet_projection: FleetProjection,
    wiring: Expectation,
}

/// What the fleet is made of.
pub struct NodesParts {
    /// How nodes are polled.
    pub config: ReconcilerConfig,
    /// After how many milliseconds without a byte a stream is stalled.
    pub stall_after_ms: u64,
    /// How renditions are told from streams.
    pub renditions: Renditions,
    /// Puts streams back that Redis lost.
    pub restorer: Restorer,
    /// This replica, as the holder of leases.
    pub replica: Uuid,
    /// What is true now.
    pub redis: Redis,
    /// What must not be forgotten.
    pub postgres: Postgres,
    /// What is on air.
    pub live: LiveView,
    /// Control APIs.
    pub client: NodeClient,
    /// Woken where a kick is owed.
    pub kick_owed: Arc<Notify>,
    /// What a node's wiring is held against.
    pub wiring: Expectation,
}

/// Why the fleet could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// There is no node of that name.
    #[error("no such node")]
    NotFound,
    /// Postgres gave no answer: nothing was changed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Redis gave no answer. A change is recorded and takes effect when it is back.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// What is on air cannot be read.
    #[error(transparent)]
    View(#[from] ViewUnavailable),
}

/// A node with what is known of it.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// The node.
    pub node: Node,
    /// What the poller saw; `None` before its first look.
    pub status: Option<NodeStatus>,
    /// How many streams are on it.
    pub streams: usize,
}

impl From<StoreError> for NodesError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Redis(error) => error.into(),
            StoreError::Postgres(error) => error.into(),
        }
    }
}

impl Nodes {
    /// Sets the fleet up and starts its tasks.
    #[must_use]
    pub fn start(parts: NodesParts, tasks: &Tasks) -> Self {
        let NodesParts {
            config,
            stall_after_ms,
            renditions,
            restorer,
            replica,
            redis,
            postgres,
            live,
            client,
            kick_owed,
            wiring,
        } = parts;
        metrics::node_poll_errors_begin(NodeFault::ALL.iter().map(|fault| fault.as_str()));
        let directory = Arc::new(Directory::new(redis.clone(), postgres.clone()));
        let fleet_projection = FleetProjection::new(redis.clone(), postgres.clone());
        let kicks = Kicks::new(redis.clone(), client.clone(), Arc::clone(&directory), Arc::clone(&kick_owed), replica);
        let inner = Inner {
            config,
            stall_after_ms,
            renditions,
            restorer,
            replica,
            redis,
            postgres,
            live,
            client,
            directory,
            kicks: kicks.clone(),
            kick_owed,
            fleet_changed: Notify::new(),
            fleet_projection,
            wiring,
        };
        let nodes = Self { inner: Arc::new(inner) };
        tasks.spawn("kicks", kicks.run(tasks.stopping()));
        tasks.spawn("watch_fleet", reconciler::watch_fleet(nodes.clone(), tasks.clone()));
        tasks.spawn("project_fleet", projection::keep(nodes.clone(), tasks.stopping()));
        nodes
    }

    /// Adds or changes the nodes of the configuration file.
    ///
    /// # Errors
    /// Where Postgres gives no answer.
    pub async fn put_configured(&self, configured: &[NodeConfig]) -> Result<(), NodesError> {
        let by = ChangedBy { actor: Actor::Configuration, request_id: None };
        for node in configured {
            self.put(&node.name, &node.control_url, &node.public_urls, &by).await?;
        }
        self.inner.directory.refresh().await;
        Ok(())
    }

    /// Adds a node, or changes it.
    ///
    /// # Errors
    /// Where a store gives no answer.
    pub async fn put(
        &self,
        name: &NodeName,
        control_url: &Url,
        public_urls: &PublicUrls,
        by: &ChangedBy,
    ) -> Result<(Node, NodePut), NodesError> {
        let (node, outcome) = self.inner.postgres.put_node(name, control_url, public_urls, by).await?;
        self.inner.redis.put_nodes(std::slice::from_ref(&node)).await?;
        self.inner.directory.refresh().await;
        self.inner.fleet_changed.notify_one();
        Ok((node, outcome))
    }

    /// All nodes, by name.
    ///
    /// # Errors
    /// Where what is on air cannot be read.
    pub async fn list(&self) -> Result<Vec<NodeReport>, NodesError> {
        let fleet = self.inner.directory.fleet();
        let view = self.inner.live.now().await?;
        let mut statuses = self.inner.redis.node_statuses::<NodeStatus>().await.unwrap_or_default();
        let mut reports: Vec<_> = fleet
            .values()
            .map(|node| NodeReport {
                node: Node::clone(node),
                status: statuses.remove(&node.name),
                streams: view.snapshot.on_node(&node.name).count(),
            })
            .collect();
        reports.sort_unstable_by(|left, right| left.node.name.cmp(&right.node.name));
        Ok(reports)
    }

    /// One node.
    ///
    /// # Errors
    /// [`NodesError::NotFound`], or where what is on air cannot be read.
    pub async fn get(&self, name: &NodeName) -> Result<NodeReport, NodesError> {
        let node = self.inner.directory.find(name).await.ok_or(NodesError::NotFound)?;
        let view = self.inner.live.now().await?;
        let mut statuses = self.inner.redis.node_statuses::<NodeStatus>().await.unwrap_or_default();
        let streams = view.snapshot.on_node(name).count();
        Ok(NodeReport { node: Node::clone(&node), status: statuses.remove(name), streams })
    }

    /// Takes a node out of the fleet: its calls are refused from now on, and its streams have ended for us.
    ///
    /// # Errors
    /// [`NodesError::NotFound`], or where a store gives no answer.
    pub async fn delete(&self, name: &NodeName, by: &ChangedBy) -> Result<Node, NodesError> {
        let node = self.inner.postgres.delete_node(name, by).await?.ok_or(NodesError::NotFound)?;
        self.inner.redis.remove_node(name).await?;
        self.inner.directory.refresh().await;
        self.inner.fleet_changed.notify_one();
        let view = self.inner.live.now().await?;
        self.end_streams_of(name, &view.snapshot).await?;
        Ok(node)
    }

    /// Ends what is on air on a node that was removed. One that cannot be ended now keeps no other.
    async fn end_streams_of(&self, name: &NodeName, on_air: &Snapshot) -> Result<(), NodesError> {
        let mut outcome = self.inner.redis.forget_progress(name).await.map_err(NodesError::from);
        for stream in on_air.on_node(name) {
            let request = EndRequest {
                path: &stream.path,
                holder: Holder::Stream(stream.id),
                reason: EndReason::NodeRemoved,
                afterwards: Afterwards::Gone,
                progress: on_air.progress_of(stream),
            };
            match self.inner.redis.end(&request).await {
                Ok(Ending::Ended(ended)) => note_end(&ended),
                Ok(_) => {}
                Err(error) => outcome = Err(error.into()),
            }
        }
        outcome
    }

    /// A node of the fleet; one that was added on another replica a moment ago is found too.
    pub async fn find(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.inner.directory.find(name).await
    }

    /// Notes in the audit log, if Postgres takes it, that somebody was shown a node's configuration, and its password in it.
    pub async fn note_shown(&self, name: &NodeName, by: &ChangedBy) {
        self.inner.postgres.note_deed(by, Deed::NodeConfigurationShown(name)).await;
    }

    /// All nodes as known here now.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.inner.directory.fleet()
    }

    /// Kicks the source of a stream that has ended, and waits at most `limit` for it to be gone.
    pub async fn kick_and_wait(&self, ended: &Stream, limit: Duration) -> KickOutcome {
        self.inner.kicks.kick_and_wait(ended, limit).await
    }

    /// Says that a transition left a kick to be carried out.
    pub fn wake_kicker(&self) {
        self.inner.kick_owed.notify_one();
    }

    /// Whether a source that was on this path must be off air and is not known to be. Then it is kicked once more.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn owes_kick_on(&self, path: &StreamPath) -> Result<bool, RedisError> {
        let owes = self.inner.redis.kicks_in(path.partition()).await?.iter().any(|kick| kick.path == *path);
        if owes {
            self.wake_kicker();
        }
        Ok(owes)
    }

    /// What the node knows of a stream's connection, if it says so quickly.
    pub async fn connection_of(&self, stream: &Stream) -> Option<contract::ConnectionItem> {
        let node = self.inner.directory.node(&stream.node)?;
        let source_type = stream.source.source_type?;
        let answer = self.inner.client.connection(&node, source_type, stream.source.id, CONNECTION_TIMEOUT).await;
        answer.ok().flatten()
    }
}
