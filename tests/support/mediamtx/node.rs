//! The node's own state and the changes to it: connections, paths, and the one loop that clients pass through.
//!
//! The path loop is held across an auth call, never across anything else that waits. The state's lock is never
//! held across a wait at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::WAIT_MAX;
use super::auth::{self, AuthAnswer, AuthCall, AuthExchange};
use super::counters::Counters;
use super::hooks::{Hook, HookBehaviour, HookEvent, HookTarget, KeptHooks};
use super::options::{KickBehaviour, ListHold, MediaMtxOptions, Override};
use super::requests::{Action, Client, Track};

const RECHECK: Duration = Duration::from_millis(20);

/// A source that is online.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnAir {
    pub path: String,
    pub source_type: String,
    pub source_id: String,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Asking,
    Admitted,
    OnPath,
}

pub(super) struct Connection {
    pub id: Uuid,
    pub client: Client,
    pub stage: Stage,
    pub created: OffsetDateTime,
    pub remote_address: String,
    /// The connection under an RTSP session; a MediaMTX before v1.19.3 asks with this id.
    pub transport_id: Uuid,
    pub flow: Flow,
    pub tracks: Vec<Track>,
}

/// Bytes that came in: they follow the clock while they flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub bytes_per_s: u64,
    carried: u64,
    since: Option<Instant>,
}

impl Flow {
    pub fn still(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, carried: 0, since: None }
    }

    /// From the first byte on there is something to see.
    pub fn start(&mut self) {
        self.carried += 1;
        self.since = Some(Instant::now());
    }

    pub fn stop(&mut self) {
        self.carried = self.bytes();
        self.since = None;
    }

    pub fn is_still(&self) -> bool {
        self.since.is_none()
    }

    pub fn bytes(&self) -> u64 {
        let flowing = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        let fresh = flowing.as_micros() * u128::from(self.bytes_per_s) / 1_000_000;
        self.carried + u64::try_from(fresh).unwrap_or(u64::MAX - self.carried)
    }
}

pub(super) enum PathSource {
    Waiting,
    Publisher(Uuid),
    Pulled { source_type: String, source_id: String, flow: Flow, tracks: Vec<Track> },
}

pub(super) struct PathEntry {
    pub since: OffsetDateTime,
    pub source: PathSource,
}

pub(super) struct State {
    pub started: OffsetDateTime,
    pub connections: BTreeMap<Uuid, Connection>,
    pub paths: BTreeMap<String, PathEntry>,
    pub global_config: Map<String, Value>,
    pub path_defaults: Map<String, Value>,
    next_port: u16,
}

pub(super) struct Wiring {
    pub auth_url: String,
    pub hooks: Option<HookTarget>,
    pub hook_behaviour: HookBehaviour,
    pub kick_behaviour: KickBehaviour,
}

pub(super) struct Node {
    pub options: MediaMtxOptions,
    pub counters: Arc<Counters>,
    pub http: reqwest::Client,
    wiring: Mutex<Wiring>,
    state: Mutex<State>,
    kept_hooks: Mutex<KeptHooks>,
    path_loop: AsyncMutex<()>,
    /// Rises with everything that a test may wait for.
    changes: watch::Sender<u64>,
    list_hold: watch::Sender<ListHold>,
    /// Rises when the process dies.
    deaths: watch::Sender<u64>,
    tasks: Mutex<JoinSet<()>>,
}

impl Node {
    pub fn new(options: MediaMtxOptions) -> Arc<Self> {
        let wiring = Wiring {
            auth_url: options.auth_url.clone(),
            hooks: options.hooks.clone(),
            hook_behaviour: options.hook_behaviour,
            kick_behaviour: KickBehaviour::Obeyed,
        };
        let state = State {
            started: OffsetDateTime::now_utc(),
            connections: BTreeMap::new(),
            paths: BTreeMap::new(),
            global_config: options.global_config(),
            path_defaults: options.path_defaults(),
            next_port: 40_000,
        };
        Arc::new(Self {
            options,
            counters: Arc::default(),
            http: auth::fresh_connections(),
            wiring: Mutex::new(wiring),
            state: Mutex::new(state),
            kept_hooks: Mutex::default(),
            path_loop: AsyncMutex::new(()),
            changes: watch::Sender::new(0),
            list_hold: watch::Sender::new(ListHold::Nowhere),
            deaths: watch::Sender::new(0),
            tasks: Mutex::new(JoinSet::new()),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn wiring(&self) -> MutexGuard<'_, Wiring> {
        lock(&self.wiring)
    }

    pub fn kept_hooks(&self) -> MutexGuard<'_, KeptHooks> {
        lock(&self.kept_hooks)
    }

    pub fn point_at(&self, auth_url: String, hooks: Option<HookTarget>) {
        let mut wiring = self.wiring();
        wiring.auth_url = auth_url;
        wiring.hooks = hooks;
    }

    pub fn hook_behaviour(&self) -> HookBehaviour {
        self.wiring().hook_behaviour
    }

    pub fn set_hook_behaviour(&self, behaviour: HookBehaviour) {
        self.wiring().hook_behaviour = behaviour;
    }

    pub fn set_kick_behaviour(&self, behaviour: KickBehaviour) {
        self.wiring().kick_behaviour = behaviour;
    }

    pub fn hold_lists(&self, hold: ListHold) {
        self.list_hold.send_replace(hold);
    }

    /// Waits while answers to `paths/list` are held here.
    pub async fn pass(&self, hold: ListHold) {
        let mut now = self.list_hold.subscribe();
        if *now.borrow_and_update() == hold {
            self.counters.list_held();
            self.touch();
            // An error means that the stand-in is gone, and the connection with it.
            let _ = now.wait_for(|now| *now != hold).await;
        }
    }

    /// A turn of the path loop.
    pub async fn turn(&self) -> AsyncMutexGuard<'_, ()> {
        self.path_loop.lock().await
    }

    /// Asks on behalf of a client: in its turn, while everything else that needs the loop waits.
    pub async fn ask_in_turn(&self, call: &AuthCall) -> AuthAnswer {
        let _turn = self.turn().await;
        let _open = self.counters.client_auth_opens();
        self.ask(call).await
    }

    pub async fn ask(&self, call: &AuthCall) -> AuthAnswer {
        let mut deaths = self.deaths.subscribe();
        let auth_url = self.wiring().auth_url.clone();
        self.counters.auth_begins(call);
        let answer = tokio::select! {
            answer = auth::send(&self.http, &auth_url, self.options.read_timeout, call) => answer,
            _ = deaths.changed() => AuthAnswer::none("the node died"),
        };
        self.counters.auth_ends(AuthExchange { call: call.clone(), answer: answer.clone() });
        self.touch();
        answer
    }

    /// An admitted publisher has its tracks: it takes the path, from whoever holds it.
    pub async fn bring_online(self: &Arc<Self>, id: Uuid) {
        let hooks = {
            let _turn = self.turn().await;
            self.state().bring_online(id, self.options.override_publisher)
        };
        self.fire(hooks);
        self.touch();
    }

    /// Closes a connection as its client or a kick does.
    pub fn close(self: &Arc<Self>, id: Uuid) -> Closed {
        let closed = self.state().close(id);
        match closed {
            Some(hooks) => {
                self.fire(hooks);
                self.touch();
                Closed::Now
            }
            None => Closed::WasGone,
        }
    }

    pub fn add_pulled_path(self: &Arc<Self>, path: &str, source_type: &str, source_id: &str) {
        let mut flow = Flow::still(250_000);
        flow.start();
        let tracks = Track::video_and_audio();
        let source = PathSource::Pulled { source_type: source_type.into(), source_id: source_id.into(), flow, tracks };
        self.state().paths.insert(path.into(), PathEntry { since: OffsetDateTime::now_utc(), source });
        self.fire(vec![Hook {
            event: HookEvent::On,
            path: path.into(),
            source_type: source_type.into(),
            source_id: source_id.into(),
        }]);
        self.touch();
    }

    pub fn add_waiting_path(&self, path: &str) {
        let entry = PathEntry { since: OffsetDateTime::now_utc(), source: PathSource::Waiting };
        self.state().paths.entry(path.into()).or_insert(entry);
        self.touch();
    }

    pub fn remove_path(self: &Arc<Self>, path: &str) {
        let hook = self.state().take_path(path);
        self.fire(hook.into_iter().collect());
        self.touch();
    }

    pub fn on_air(&self) -> Vec<OnAir> {
        let state = self.state();
        state
            .paths
            .keys()
            .filter_map(|path| {
                let (source_type, source_id) = state.source(path)?;
                Some(OnAir { path: path.clone(), source_type, source_id })
            })
            .collect()
    }

    pub fn source_on(&self, path: &str) -> Option<Uuid> {
        match self.state().paths.get(path)?.source {
            PathSource::Publisher(id) => Some(id),
            PathSource::Waiting | PathSource::Pulled { .. } => None,
        }
    }

    pub fn forget_everything(&self) {
        let mut state = self.state();
        state.connections.clear();
        state.paths.clear();
        drop(state);
        self.deaths.send_modify(|deaths| *deaths += 1);
        self.touch();
    }

    pub fn begin_run(&self) {
        self.state().started = OffsetDateTime::now_utc();
    }

    pub fn touch(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        let holds = async {
            while !condition() {
                // Bytes follow the clock and announce nothing, so the condition is asked again by time as well.
                let _ = tokio::time::timeout(RECHECK, changes.changed()).await;
            }
        };
        let held = tokio::time::timeout(WAIT_MAX, holds).await.is_ok();
        assert!(held, "waited {WAIT_MAX:?} in vain until {what}");
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub fn abort_tasks(&self) {
        lock(&self.tasks).abort_all();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Now,
    WasGone,
}

impl State {
    /// A client has connected; nobody was asked yet.
    pub fn connect(&mut self, client: Client, bytes_per_s: u64, tracks: Vec<Track>) -> Uuid {
        let id = new_id();
        let port = self.next_port;
        self.next_port = if port == u16::MAX { 40_000 } else { port + 1 };
        let connection = Connection {
            id,
            stage: Stage::Asking,
            created: OffsetDateTime::now_utc(),
            remote_address: format!("{}:{port}", client.ip),
            transport_id: new_id(),
            client,
            flow: Flow::still(bytes_per_s),
            tracks,
        };
        self.connections.insert(id, connection);
        id
    }

    fn bring_online(&mut self, id: Uuid, override_publisher: Override) -> Vec<Hook> {
        let Some(path) = self.connections.get(&id).map(|connection| connection.client.path.clone()) else {
            return Vec::new();
        };
        let older = match self.paths.get(&path).map(|entry| &entry.source) {
            None | Some(PathSource::Waiting) => None,
            Some(PathSource::Publisher(older)) if override_publisher == Override::Yes => Some(*older),
            Some(PathSource::Publisher(_) | PathSource::Pulled { .. }) => {
                return self.close(id).unwrap_or_default();
            }
        };
        let mut hooks = older.and_then(|older| self.close(older)).unwrap_or_default();
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stage = Stage::OnPath;
            connection.flow.start();
            hooks.push(hook(HookEvent::On, connection));
        }
        let entry = PathEntry { since: OffsetDateTime::now_utc(), source: PathSource::Publisher(id) };
        self.paths.insert(path, entry);
        hooks
    }

    /// Removes a connection and, where it was the path's source, the path with its readers. None: it was not there.
    fn close(&mut self, id: Uuid) -> Option<Vec<Hook>> {
        let connection = self.connections.remove(&id)?;
        let path = &connection.client.path;
        let holds_path = matches!(
            self.paths.get(path).map(|entry| &entry.source),
            Some(PathSource::Publisher(source)) if *source == id
        );
        if !holds_path {
            return Some(Vec::new());
        }
        self.paths.remove(path);
        self.drop_readers(path);
        Some(vec![hook(HookEvent::Off, &connection)])
    }

    /// Removes a path that has no publisher.
    fn take_path(&mut self, path: &str) -> Option<Hook> {
        if matches!(self.paths.get(path)?.source, PathSource::Publisher(_)) {
            return None;
        }
        let source = self.source(path);
        self.paths.remove(path);
        self.drop_readers(path);
        let (source_type, source_id) = source?;
        Some(Hook { event: HookEvent::Off, path: path.into(), source_type, source_id })
    }

    fn drop_readers(&mut self, path: &str) {
        self.connections.retain(|_, connection| !connection.reads(path));
    }

    /// Type and id of what is online on a path.
    pub fn source(&self, path: &str) -> Option<(String, String)> {
        match &self.paths.get(path)?.source {
            PathSource::Waiting => None,
            PathSource::Publisher(id) => {
                let connection = self.connections.get(id)?;
                Some((connection.client.kind.type_name().into(), id.to_string()))
            }
            PathSource::Pulled { source_type, source_id, .. } => Some((source_type.clone(), source_id.clone())),
        }
    }
}

impl Connection {
    pub fn reads(&self, path: &str) -> bool {
        self.stage == Stage::OnPath && self.client.action == Action::Read && self.client.path == path
    }
}

pub(super) fn hook(event: HookEvent, connection: &Connection) -> Hook {
    Hook {
        event,
        path: connection.client.path.clone(),
        source_type: connection.client.kind.type_name().into(),
        source_id: connection.id.to_string(),
    }
}

/// MediaMTX's ids are random (version 4).
pub(super) fn new_id() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
