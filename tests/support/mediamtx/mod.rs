//! A stand-in for one MediaMTX v1.20.1 node: its auth calls, its hooks, its control API.
//!
//! What of the measured contract it plays:
//!
//! - Auth call: JSON body with the ten fields, `Go-http-client/1.1`, a fresh TCP connection per call, Basic from
//!   the address's userinfo, `readTimeout` as the limit, any 2xx admits. Calls for clients go one after another
//!   through one path loop; `paths/list` and `paths/get` wait for the same loop, everything else does not.
//! - Credentials of every publisher and reader, field by field ([`PublishRequest`], [`ReadRequest`]).
//! - `id` is the source's id. A connection exists before its auth call and is `idle` until it is online.
//! - The path appears, an older publisher is overridden and the hooks fire when a publisher comes **online**, not
//!   when it is admitted. An admitted publisher may never come online, and no hook tells so.
//! - A frozen publisher stays online with standing bytes until `readTimeout`, then "off" fires.
//! - Control API payloads, paging, 404 bodies, kicks, and `action: api` calls for its callers.
//! - A killed node sends no "off"; a restarted one has a new `started` and nothing else.
//! - Hooks are delivered by independent tasks: in any order, twice or never ([`HookBehaviour`]).
//!
//! Deliberately not played: the 0-4 s that a refused client waits (the refusal is returned at once), the SIGINT
//! to a running "on" command, the browser pages, playback, `MoQ`, recording, and changes to the configuration
//! through the API. [`Release::V1_15`] plays the older field names; the rest of it behaves like v1.20.1.

mod auth;
mod control;
mod counters;
mod hooks;
mod listener;
mod node;
mod options;
mod payloads;
mod publisher;
mod reader;
mod requests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

pub use auth::{AuthAnswer, AuthCall, AuthExchange};
pub use counters::Counts;
pub use hooks::{Hook, HookBehaviour, HookDelivery, HookEncoding, HookEvent, HookTarget};
pub use node::OnAir;
pub use options::{ApiAuth, KickBehaviour, ListHold, MediaMtxOptions, Override, Release};
pub use publisher::{PublishOutcome, Publisher};
pub use reader::{ReadOutcome, Reader};
pub use requests::{ConnectionKind, Going, PublishRequest, ReadRequest, Track};

use listener::ControlListener;
use node::Node;

/// How long a wait for a condition lasts before the test fails.
pub const WAIT_MAX: Duration = Duration::from_secs(10);

/// A running stand-in. Dropping it closes its port and ends everything it started.
pub struct MediaMtx {
    node: Arc<Node>,
    control: ControlListener,
}

impl MediaMtx {
    pub async fn start(options: MediaMtxOptions) -> Self {
        let node = Node::new(options);
        let control = ControlListener::reserve();
        control.open(control::router(&node, control.hung())).await;
        Self { node, control }
    }

    pub fn name(&self) -> &str {
        &self.node.options.name
    }

    pub fn control_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// The control API's address, `http://127.0.0.1:PORT`; the same for the whole life of the stand-in.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control_address())
    }

    pub fn read_timeout(&self) -> Duration {
        self.node.options.read_timeout
    }

    /// Where later auth calls and hooks go.
    pub fn point_at(&self, auth_url: impl Into<String>, hooks: Option<HookTarget>) {
        self.node.point_at(auth_url.into(), hooks);
    }

    pub fn set_hook_behaviour(&self, behaviour: HookBehaviour) {
        self.node.set_hook_behaviour(behaviour);
    }

    pub fn set_kick_behaviour(&self, behaviour: KickBehaviour) {
        self.node.set_kick_behaviour(behaviour);
    }

    pub fn hold_lists(&self, hold: ListHold) {
        self.node.hold_lists(hold);
    }

    /// Changes what `/v3/config/global/get` shows; it does not change the behaviour.
    pub fn set_global_config(&self, key: &str, value: Value) {
        self.node.state().global_config.insert(key.to_owned(), value);
    }

    /// Changes what `/v3/config/pathdefaults/get` shows; it does not change the behaviour.
    pub fn set_path_defaults(&self, key: &str, value: Value) {
        self.node.state().path_defaults.insert(key.to_owned(), value);
    }
}

/// Clients.
impl MediaMtx {
    /// Plays a publisher up to the node's decision. With [`Going::Online`] the path is online on return.
    pub async fn publish(&self, request: PublishRequest) -> PublishOutcome {
        publisher::publish(&self.node, request).await
    }

    /// A WHIP `OPTIONS` or the browser's publish page: the request's credentials with `id: null`. No media follows.
    pub async fn preflight(&self, request: &PublishRequest) -> AuthAnswer {
        publisher::preflight(&self.node, request).await
    }

    pub async fn read(&self, request: ReadRequest) -> ReadOutcome {
        reader::read(&self.node, request).await
    }

    /// Puts a reader on an online path without asking anybody. `kind` is a reader type of the control API.
    pub fn add_reader(&self, path: &str, kind: ConnectionKind) -> Reader {
        reader::attach(&self.node, path, kind)
    }

    /// Any other auth call, outside the path loop (playback, metrics, or a body no MediaMTX would send).
    pub async fn ask(&self, call: &AuthCall) -> AuthAnswer {
        self.node.ask(call).await
    }

    /// A path whose source the node pulls by itself (`rtspSource`); MediaMTX v1.20.1 gives such sources an empty id.
    pub fn add_pulled_path(&self, path: &str, source_type: &str, source_id: &str) {
        self.node.add_pulled_path(path, source_type, source_id);
    }

    /// A path that exists without a source (configured, or kept by a waiting reader): neither available nor online.
    pub fn add_waiting_path(&self, path: &str) {
        self.node.add_waiting_path(path);
    }

    /// Takes a pulled or waiting path away.
    pub fn remove_path(&self, path: &str) {
        self.node.remove_path(path);
    }
}

/// The node's own fate.
impl MediaMtx {
    /// The process dies: connections, paths and port gone, no "off" hooks. Auth calls under way are cut.
    pub fn kill(&self) {
        self.control.close();
        self.node.forget_everything();
    }

    /// Kills the process, if it runs, and starts it on the same port with a new `started`.
    pub async fn restart(&self) {
        self.kill();
        self.node.begin_run();
        self.reachable().await;
    }

    /// The control API's port is closed and its connections are cut; publishers, auth calls and hooks go on.
    pub fn unreachable(&self) {
        self.control.close();
    }

    /// The control API accepts connections and never answers.
    pub fn hang(&self) {
        self.control.hang();
    }

    /// Ends [`Self::unreachable`] and [`Self::hang`]; requests that hung are answered.
    pub async fn reachable(&self) {
        self.control.open(control::router(&self.node, self.control.hung())).await;
    }
}

/// What happened.
impl MediaMtx {
    /// What is online, sorted by path.
    pub fn on_air(&self) -> Vec<OnAir> {
        self.node.on_air()
    }

    /// The source that is online on `path`.
    pub fn source_on(&self, path: &str) -> Option<Uuid> {
        self.node.source_on(path)
    }

    /// Ids of every connection and session there is, online or not.
    pub fn connections(&self) -> Vec<Uuid> {
        self.node.state().connections.keys().copied().collect()
    }

    pub fn counts(&self) -> Counts {
        self.node.counters.counts()
    }

    /// The newest auth calls with their answers, oldest first.
    pub fn auth_log(&self) -> Vec<AuthExchange> {
        self.node.counters.auth_log()
    }

    /// The newest hooks that were sent, with the status each was answered.
    pub fn hook_log(&self) -> Vec<HookDelivery> {
        self.node.counters.hook_log()
    }

    /// Takes the hooks that [`HookBehaviour::Held`] kept, oldest first.
    pub fn take_held_hooks(&self) -> Vec<Hook> {
        self.node.take_held_hooks()
    }

    /// Sends one hook now, whatever the behaviour, and gives the status it was answered.
    pub async fn send_hook(&self, hook: &Hook) -> Option<u16> {
        self.node.send_hook(hook).await
    }

    /// Waits until no hook is under way.
    pub async fn until_hooks_settled(&self) {
        let settled = || self.node.counters.hooks_in_flight() == 0;
        self.until("no hook is under way", settled).await;
    }

    /// Waits for a condition on this stand-in (it is asked again whenever something happens here).
    ///
    /// # Panics
    ///
    /// When the condition does not hold within [`WAIT_MAX`].
    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        self.node.until(what, condition).await;
    }
}

impl Drop for MediaMtx {
    fn drop(&mut self) {
        self.kill();
        self.node.abort_tasks();
    }
}
