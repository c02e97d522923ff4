//! Readers: the auth calls of each kind, and their place on a path that is online.

use std::sync::Arc;

use uuid::Uuid;

use super::auth::{AuthAnswer, Credentials};
use super::node::{Closed, Node, PathSource, Stage};
use super::publisher::{Attempt, is_path_name};
use super::requests::{Action, Client, ConnectionKind, ReadRequest};

#[derive(Debug)]
pub enum ReadOutcome {
    Reading(Reader),
    /// Admitted, and nothing is online on the path.
    NotOnline,
    Refused(AuthAnswer),
}

impl ReadOutcome {
    /// # Panics
    ///
    /// When the reader does not read.
    #[track_caller]
    pub fn reading(self) -> Reader {
        match self {
            Self::Reading(reader) => reader,
            other => panic!("the reader does not read: {other:?}"),
        }
    }

    /// # Panics
    ///
    /// When the reader was admitted.
    #[track_caller]
    pub fn refused(self) -> AuthAnswer {
        match self {
            Self::Refused(answer) => answer,
            other => panic!("the reader was admitted: {other:?}"),
        }
    }
}

/// A reader on a path. It stays when the handle is dropped and goes when the path's source goes.
#[derive(Clone)]
pub struct Reader {
    node: Arc<Node>,
    id: Uuid,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Reader({})", self.id)
    }
}

impl Reader {
    pub fn id(&self) -> Uuid {
        self.id
    }

    pub fn is_connected(&self) -> bool {
        self.node.state().connections.contains_key(&self.id)
    }

    pub fn leave(&self) {
        let _: Closed = self.node.close(self.id);
    }
}

pub(super) async fn read(node: &Arc<Node>, request: ReadRequest) -> ReadOutcome {
    let ReadRequest { client } = request;
    if !is_path_name(&client.path) {
        return ReadOutcome::Refused(AuthAnswer::none("invalid path name"));
    }
    let id = node.state().connect(client.clone(), 0, Vec::new());
    let attempt = Attempt { node, id };
    let describes = matches!(client.kind, ConnectionKind::RtspSession | ConnectionKind::RtspsSession);
    let (mut answer, shown) = if describes { describe(&attempt, &client).await } else { ask(&attempt, &client).await };
    if describes && answer.admits() {
        let setup = client.auth_call(node.options.release, attempt.auth_id(), &shown);
        answer = node.ask_in_turn(&setup).await;
    }
    if !answer.admits() {
        return ReadOutcome::Refused(answer);
    }
    if !put_on_path(node, id) {
        return ReadOutcome::NotOnline;
    }
    ReadOutcome::Reading(Reader { node: Arc::clone(node), id })
}

/// RTSP's DESCRIBE: it carries the connection's id, names no user agent, and shows credentials only when asked.
async fn describe(attempt: &Attempt<'_>, client: &Client) -> (AuthAnswer, Credentials) {
    let node = attempt.node;
    let connection = node.state().connections.get(&attempt.id).map(|it| it.transport_id);
    let silent = Client { user_agent: String::new(), ..client.clone() };
    let mut answer = AuthAnswer::none("nobody was asked");
    let mut last = Credentials::default();
    for shown in client.attempts() {
        let call = silent.auth_call(node.options.release, connection, &shown);
        answer = node.ask_in_turn(&call).await;
        last = shown;
        if answer.admits() {
            break;
        }
    }
    (answer, last)
}

async fn ask(attempt: &Attempt<'_>, client: &Client) -> (AuthAnswer, Credentials) {
    let shown = client.credentials.clone();
    let call = client.auth_call(attempt.node.options.release, attempt.auth_id(), &shown);
    (attempt.node.ask_in_turn(&call).await, shown)
}

pub(super) fn attach(node: &Arc<Node>, path: &str, kind: ConnectionKind) -> Reader {
    let id = node.state().connect(Client::new(kind, Action::Read, path), 0, Vec::new());
    assert!(put_on_path(node, id), "nothing is online on {path}");
    Reader { node: Arc::clone(node), id }
}

/// False where the path is not online or the connection is gone.
fn put_on_path(node: &Arc<Node>, id: Uuid) -> bool {
    let mut guard = node.state();
    let state = &mut *guard;
    let Some(connection) = state.connections.get_mut(&id) else {
        return false;
    };
    let source = state.paths.get(&connection.client.path).map(|entry| &entry.source);
    if matches!(source, None | Some(PathSource::Waiting)) {
        return false;
    }
    connection.stage = Stage::OnPath;
    drop(guard);
    node.touch();
    true
}
