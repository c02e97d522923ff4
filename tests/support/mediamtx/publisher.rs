//! A publisher from its connection to its end, and the handle by which a test leads it.

use std::sync::Arc;

use uuid::Uuid;

use super::auth::AuthAnswer;
use super::hooks::{Hook, HookEvent};
use super::node::{Closed, Connection, Node, Stage};
use super::options::Release;
use super::requests::{ConnectionKind, Going, PublishRequest};

#[derive(Debug)]
pub enum PublishOutcome {
    Admitted(Publisher),
    /// The answer that refused it. No status where nobody answered, or the connection was closed meanwhile.
    Refused(AuthAnswer),
}

impl PublishOutcome {
    /// # Panics
    ///
    /// When the publisher was refused.
    #[track_caller]
    pub fn admitted(self) -> Publisher {
        match self {
            Self::Admitted(publisher) => publisher,
            Self::Refused(answer) => panic!("the publisher was refused: {answer:?}"),
        }
    }

    /// # Panics
    ///
    /// When the publisher was admitted.
    #[track_caller]
    pub fn refused(self) -> AuthAnswer {
        match self {
            Self::Refused(answer) => answer,
            Self::Admitted(publisher) => panic!("the publisher on {} was admitted", publisher.path()),
        }
    }
}

/// An admitted publisher. The node owns the connection: dropping the handle changes nothing.
#[derive(Clone)]
pub struct Publisher {
    node: Arc<Node>,
    id: Uuid,
    kind: ConnectionKind,
    path: String,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.type_name();
        write!(formatter, "Publisher({kind} {} on {})", self.id, self.path)
    }
}

impl Publisher {
    /// The auth call's `id` (of v1.19.3 and later), the control API's `source.id`, the hooks' `source_id`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn kind(&self) -> ConnectionKind {
        self.kind
    }

    pub fn source_type(&self) -> &'static str {
        self.kind.type_name()
    }

    /// Whether the connection exists, online or not.
    pub fn is_connected(&self) -> bool {
        self.node.state().connections.contains_key(&self.id)
    }

    pub fn is_online(&self) -> bool {
        self.node.source_on(&self.path) == Some(self.id)
    }

    /// Bytes the path has received; 0 once the publisher is gone.
    pub fn inbound_bytes(&self) -> u64 {
        self.node.state().connections.get(&self.id).map_or(0, |connection| connection.flow.bytes())
    }

    /// Power cut: the bytes stand still, and after `readTimeout` the node drops the publisher ("off" fires).
    pub fn freeze(&self) {
        self.change(|connection| connection.flow.stop());
        let (node, id) = (Arc::clone(&self.node), self.id);
        let standing = self.inbound_bytes();
        self.node.spawn(async move {
            tokio::time::sleep(node.options.read_timeout).await;
            let is_still = |connection: &Connection| connection.flow.is_still() && connection.flow.bytes() == standing;
            if node.state().connections.get(&id).is_some_and(is_still) {
                node.close(id);
            }
        });
    }

    /// The network is back before `readTimeout`.
    pub fn thaw(&self) {
        self.change(|connection| connection.flow.start());
    }

    /// The client leaves; "off" fires if it was online. Does nothing when it is gone already.
    pub fn disconnect(&self) {
        let _: Closed = self.node.close(self.id);
    }

    /// The "on" hook of this source, to be sent by hand.
    pub fn on_hook(&self) -> Hook {
        self.hook(HookEvent::On)
    }

    /// The "off" hook of this source, to be sent by hand.
    pub fn off_hook(&self) -> Hook {
        self.hook(HookEvent::Off)
    }

    pub async fn until_online(&self) {
        self.node.until("the publisher is online", || self.is_online()).await;
    }

    pub async fn until_gone(&self) {
        self.node.until("the publisher is gone", || !self.is_connected()).await;
    }

    fn hook(&self, event: HookEvent) -> Hook {
        Hook { event, path: self.path.clone(), source_type: self.source_type().into(), source_id: self.id.to_string() }
    }

    fn change(&self, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.node.state().connections.get_mut(&self.id) {
            change(connection);
        }
        self.node.touch();
    }
}

/// A connection whose client is not admitted yet: gone when the attempt is given up.
pub(super) struct Attempt<'a> {
    pub node: &'a Arc<Node>,
    pub id: Uuid,
}

impl Attempt<'_> {
    /// The id that this release puts into the auth call.
    pub fn auth_id(&self) -> Option<Uuid> {
        let state = self.node.state();
        let connection = state.connections.get(&self.id)?;
        let is_rtsp = matches!(connection.client.kind, ConnectionKind::RtspSession | ConnectionKind::RtspsSession);
        match self.node.options.release {
            Release::V1_15 if is_rtsp => Some(connection.transport_id),
            Release::V1_15 | Release::V1_20 => Some(self.id),
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state();
        let asking = |connection: &Connection| connection.stage == Stage::Asking;
        if state.connections.get(&self.id).is_some_and(asking) {
            state.connections.remove(&self.id);
        }
        drop(state);
        self.node.touch();
    }
}

pub(super) async fn publish(node: &Arc<Node>, request: PublishRequest) -> PublishOutcome {
    let PublishRequest { client, going, bytes_per_s, tracks } = request;
    if !is_path_name(&client.path) {
        return PublishOutcome::Refused(AuthAnswer::none("invalid path name"));
    }
    let id = node.state().connect(client.clone(), bytes_per_s, tracks);
    let attempt = Attempt { node, id };
    let mut answer = AuthAnswer::none("nobody was asked");
    for shown in client.attempts() {
        let call = client.auth_call(node.options.release, attempt.auth_id(), &shown);
        answer = node.ask_in_turn(&call).await;
        if answer.admits() {
            break;
        }
    }
    if !answer.admits() {
        return PublishOutcome::Refused(answer);
    }
    match node.state().connections.get_mut(&id) {
        Some(connection) => connection.stage = Stage::Admitted,
        None => return PublishOutcome::Refused(AuthAnswer::none("the connection was closed meanwhile")),
    }
    go(node, id, going).await;
    let publisher = Publisher { node: Arc::clone(node), id, kind: client.kind, path: client.path };
    PublishOutcome::Admitted(publisher)
}

async fn go(node: &Arc<Node>, id: Uuid, going: Going) {
    node.touch();
    match going {
        Going::StaysConnecting => {}
        Going::Online => node.bring_online(id).await,
        Going::OnlineAfter(delay) => {
            let later = Arc::clone(node);
            node.spawn(async move {
                tokio::time::sleep(delay).await;
                later.bring_online(id).await;
            });
        }
    }
}

pub(super) async fn preflight(node: &Arc<Node>, request: &PublishRequest) -> AuthAnswer {
    let client = &request.client;
    let call = client.auth_call(node.options.release, None, &client.credentials);
    node.ask_in_turn(&call).await
}

/// MediaMTX refuses other names before it asks anybody.
pub(super) fn is_path_name(path: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-/.".contains(&byte);
    !path.is_empty()
        && !path.starts_with('/')
        && path.bytes().all(allowed)
        && path.split('/').all(|part| part != "." && part != "..")
}
