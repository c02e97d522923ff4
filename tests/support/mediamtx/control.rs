//! The control API: which request is answered with what, and which of them wait for the path loop.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::auth::{AuthCall, Credentials};
use super::listener::Answering;
use super::node::{Closed, Connection, Node, State};
use super::options::{ApiAuth, KickBehaviour, ListHold, Release};
use super::payloads;
use super::requests::ConnectionKind;

const ITEMS_PER_PAGE_DEFAULT: usize = 100;
const ROUTE_PARTS: usize = 4;

#[derive(Clone)]
struct Gate {
    node: Arc<Node>,
    answering: watch::Receiver<Answering>,
}

pub(super) fn router(node: &Arc<Node>, answering: watch::Receiver<Answering>) -> Router {
    let gate = Gate { node: Arc::clone(node), answering };
    Router::new()
        .route("/v3/info", get(info))
        .route("/v3/config/global/get", get(global_config))
        .route("/v3/config/pathdefaults/get", get(path_defaults))
        .route("/v3/paths/list", get(list_paths))
        .route("/v3/paths/get/{*name}", get(get_path))
        .route("/v3/{collection}/list", get(list_connections))
        .route("/v3/{collection}/get/{id}", get(get_connection))
        .route("/v3/{collection}/kick/{id}", post(kick))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(middleware::from_fn_with_state(gate, admit))
        .with_state(Arc::clone(node))
}

/// Counts the request, hangs with the node, and asks about its caller; the path loop has no part in it.
async fn admit(Shared(mut gate): Shared<Gate>, request: Request, next: Next) -> Response {
    let node = &gate.node;
    let parts: Vec<_> = request.uri().path().splitn(ROUTE_PARTS + 1, '/').take(ROUTE_PARTS).collect();
    node.counters.control_call(&parts.join("/"));
    node.touch();
    // An error means that the stand-in is gone, and the connection with it.
    let _ = gate.answering.wait_for(|answering| *answering == Answering::Yes).await;
    if node.options.api_auth == ApiAuth::Required {
        let call = api_call(request.headers(), request.uri().query(), node.options.release);
        if !node.ask(&call).await.admits() {
            return unauthorized(&call);
        }
    }
    next.run(request).await
}

fn api_call(headers: &HeaderMap, query: Option<&str>, release: Release) -> AuthCall {
    let shown = credentials(headers);
    AuthCall {
        ip: "127.0.0.1".into(),
        user: shown.user.clone(),
        password: shown.password.clone(),
        token: shown.token_field("", ""),
        action: "api".into(),
        path: String::new(),
        protocol: String::new(),
        id: None,
        query: query.unwrap_or_default().into(),
        user_agent: (release == Release::V1_20).then(String::new),
    }
}

fn credentials(headers: &HeaderMap) -> Credentials {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, rest)) = shown.and_then(|shown| shown.split_once(' ')) else {
        return Credentials::default();
    };
    match scheme {
        "Bearer" => Credentials::of_bearer(rest),
        "Basic" => {
            let pair = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            pair.as_deref()
                .and_then(|pair| pair.split_once(':'))
                .map_or_else(Credentials::default, |(user, password)| Credentials::of_user(user, password))
        }
        _ => Credentials::default(),
    }
}

/// Credentials are asked for only where none were shown.
fn unauthorized(call: &AuthCall) -> Response {
    let response = failure(StatusCode::UNAUTHORIZED, "authentication error");
    if call.user.is_empty() && call.token.is_empty() {
        ([(header::WWW_AUTHENTICATE, "Basic realm=\"mediamtx\"")], response).into_response()
    } else {
        response
    }
}

async fn unknown_route() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found").into_response()
}

async fn info(Shared(node): Shared<Arc<Node>>) -> Json<Value> {
    let version = node.options.version.as_deref().unwrap_or(node.options.release.version());
    Json(payloads::info(&node.state(), version))
}

async fn global_config(Shared(node): Shared<Arc<Node>>) -> Json<Value> {
    Json(Value::Object(node.state().global_config.clone()))
}

async fn path_defaults(Shared(node): Shared<Arc<Node>>) -> Json<Value> {
    Json(Value::Object(node.state().path_defaults.clone()))
}

async fn list_paths(Shared(node): Shared<Arc<Node>>, Query(query): Query<HashMap<String, String>>) -> Response {
    node.pass(ListHold::Unmade).await;
    let answer = {
        let _turn = node.turn().await;
        let state = node.state();
        let entries: Vec<_> = state.paths.iter().collect();
        listed(&entries, &query, |(name, entry)| payloads::path(&state, name, entry, node.options.release))
    };
    node.pass(ListHold::Made).await;
    answer
}

async fn get_path(Shared(node): Shared<Arc<Node>>, Path(name): Path<String>) -> Response {
    let _turn = node.turn().await;
    let state = node.state();
    match state.paths.get(&name) {
        Some(entry) => Json(payloads::path(&state, &name, entry, node.options.release)).into_response(),
        None => failure(StatusCode::NOT_FOUND, "path not found"),
    }
}

async fn list_connections(
    Shared(node): Shared<Arc<Node>>,
    Path(collection): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let release = node.options.release;
    let Some(collection) = Collection::named(&collection, release) else {
        return unknown_route().await;
    };
    let state = node.state();
    let mut members = collection.members(&state);
    members.sort_by_key(|connection| connection.created);
    listed(&members, &query, |connection| collection.item(connection, release))
}

async fn get_connection(Shared(node): Shared<Arc<Node>>, Path((collection, id)): Path<(String, String)>) -> Response {
    let release = node.options.release;
    let Some(collection) = Collection::named(&collection, release) else {
        return unknown_route().await;
    };
    let Ok(id) = id.parse::<Uuid>() else {
        return failure(StatusCode::BAD_REQUEST, "invalid UUID");
    };
    let state = node.state();
    match collection.members(&state).into_iter().find(|it| collection.id(it) == id) {
        Some(connection) => Json(collection.item(connection, release)).into_response(),
        None => failure(StatusCode::NOT_FOUND, collection.not_found()),
    }
}

async fn kick(Shared(node): Shared<Arc<Node>>, Path((collection, id)): Path<(String, String)>) -> Response {
    let Some(Collection::Of(kind)) = Collection::named(&collection, node.options.release) else {
        return unknown_route().await;
    };
    let Ok(id) = id.parse::<Uuid>() else {
        return failure(StatusCode::BAD_REQUEST, "invalid UUID");
    };
    node.counters.kick(kind.collection(), id);
    let behaviour = node.wiring().kick_behaviour;
    if behaviour == KickBehaviour::Failing {
        return failure(StatusCode::INTERNAL_SERVER_ERROR, "terminated");
    }
    let is_there = node.state().connections.get(&id).is_some_and(|it| it.client.kind == kind);
    let obeys = behaviour == KickBehaviour::Obeyed;
    if !is_there || (obeys && node.close(id) == Closed::WasGone) {
        return failure(StatusCode::NOT_FOUND, kind.not_found());
    }
    Json(json!({ "status": "ok" })).into_response()
}

/// A part of the API that lists connections.
#[derive(Clone, Copy)]
enum Collection {
    Of(ConnectionKind),
    /// `rtspconns` and `rtspsconns`: the connections under the sessions of this kind.
    Under(ConnectionKind),
}

impl Collection {
    fn named(name: &str, release: Release) -> Option<Self> {
        match name {
            "rtspconns" => Some(Self::Under(ConnectionKind::RtspSession)),
            "rtspsconns" => Some(Self::Under(ConnectionKind::RtspsSession)),
            "hlssessions" if release == Release::V1_15 => None,
            _ => ConnectionKind::of_collection(name).map(Self::Of),
        }
    }

    fn members(self, state: &State) -> Vec<&Connection> {
        let (Self::Of(kind) | Self::Under(kind)) = self;
        state.connections.values().filter(|connection| connection.client.kind == kind).collect()
    }

    fn id(self, connection: &Connection) -> Uuid {
        match self {
            Self::Of(_) => connection.id,
            Self::Under(_) => connection.transport_id,
        }
    }

    fn item(self, connection: &Connection, release: Release) -> Value {
        match self {
            Self::Of(_) => payloads::connection(connection, release),
            Self::Under(_) => payloads::rtsp_connection(connection, release),
        }
    }

    fn not_found(self) -> &'static str {
        match self {
            Self::Of(kind) => kind.not_found(),
            Self::Under(_) => "connection not found",
        }
    }
}

fn listed<T>(entries: &[T], query: &HashMap<String, String>, item: impl Fn(&T) -> Value) -> Response {
    let Some((page, page_count)) = page(entries.len(), query) else {
        return failure(StatusCode::BAD_REQUEST, "invalid items per page");
    };
    let items: Vec<Value> = entries[page].iter().map(item).collect();
    let count = entries.len();
    Json(json!({ "itemCount": count, "pageCount": page_count, "items": items })).into_response()
}

/// The range of a page and how many pages there are: none at all of an empty list. Pages begin at 0.
fn page(count: usize, query: &HashMap<String, String>) -> Option<(Range<usize>, usize)> {
    let number = |name: &str, default: usize| match query.get(name).map(String::as_str) {
        None | Some("") => Some(default),
        Some(text) => text.parse().ok(),
    };
    let per_page = number("itemsPerPage", ITEMS_PER_PAGE_DEFAULT).filter(|per_page| *per_page > 0)?;
    let first = number("page", 0)?.saturating_mul(per_page).min(count);
    let end = first.saturating_add(per_page).min(count);
    Some((first..end, count.div_ceil(per_page)))
}

fn failure(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "status": "error", "error": error }))).into_response()
}
