//! HTTP: the only room that knows requests, answers and status codes.
//!
//! Role: a table of routes ([`router`]), a frame around all of them (`frame`), extractors that refuse with problems, one
//! file for each group of endpoints, and the OpenAPI document, which is made from the same table.
//!
//! Invariants:
//! - Every answer that is no success is a `Problem`, whoever raises it.
//! - Handlers extract, call one capability and answer; what may be done, and in which order, is decided there.
//! - The auth call passes through the frame and nothing else, and never waits for a node or for Postgres.

mod attempts;
mod broadcasters;
mod callers;
mod code;
mod docs;
mod fields;
mod frame;
pub(crate) mod fuzzed;
mod hooks;
mod input;
mod list_items;
mod list_pages;
mod mediamtx_auth;
mod nodes;
mod openapi;
mod operations;
mod problem;
mod publisher;
mod refusals;
mod seats;
mod server;
mod settled;
mod stream_keys;
mod stream_keys_dto;
mod streams;
mod streams_dto;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, extract::FromRef, middleware::from_fn_with_state};
use tokio::{net::TcpListener, sync::Semaphore};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    callers::ApiSecrets,
    code::Code,
    frame::{Limits, Lines, Reuse},
    list_pages::ListPages,
    problem::Problem,
    server::ConnectionLimits,
    wire::WriteLimits,
};
use crate::{
    app::App,
    config::{Config, ServerConfig},
    domain::NodeName,
    lifecycle::Tasks,
    metrics,
};

/// Generous for whoever reads at all: the largest answer is a page of a list, about a megabyte.
const WRITE_LIMITS: WriteLimits =
    WriteLimits { nothing_max: Duration::from_secs(10), whole_max: Duration::from_secs(60) };

/// How many pages of the documentation are being sent at once. They are large, and everybody may ask for them.
const PAGES_MAX: usize = 32;

/// How often at the most it is said that somebody calls as a node with a wrong password.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// What the state of the handlers is: the application, and what the extractors need of it. One thing to clone, because that
/// is done some times for each request.
#[derive(Clone)]
struct AppState(Arc<Shared>);

struct Shared {
    app: Arc<App>,
    api_secrets: ApiSecrets,
    list_pages: Arc<ListPages>,
    wrong_passwords: NowAndThen,
}

/// Serves on `listener` until `tasks` are told to stop.
pub fn start(app: &Arc<App>, listener: TcpListener, tasks: &Tasks) {
    let limits = ConnectionLimits::from(&app.config.server);
    tasks.spawn("http", server::serve(listener, router(app), limits, tasks.clone()));
}

/// Every route.
pub fn router(app: &Arc<App>) -> Router {
    let config = &app.config;
    let (decision, unshed, api, document) = table();
    metrics::problems_begin(Code::ALL.iter().map(|code| code.as_str()));
    let api = api.fallback(async || Problem::of(Code::RouteNotFound));
    let framed = |routes: Router<AppState>, limits| routes.layer(from_fn_with_state(Arc::new(limits), frame::frame));
    let router = framed(api, Limits::of_api(config, Some(config.server.requests_max)))
        .merge(framed(unshed, Limits::of_api(config, None)))
        .merge(framed(docs::routes(&document), Limits::of_api(config, Some(PAGES_MAX))))
        .merge(framed(decision, Limits::of_decisions(config)));
    let shared = Shared {
        app: Arc::clone(app),
        api_secrets: ApiSecrets::new(&config.server.api_secrets),
        list_pages: Arc::default(),
        wrong_passwords: NowAndThen(Mutex::default()),
    };
    router.with_state(AppState(Arc::new(shared)))
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> OpenApi {
    table().3
}

/// The decision's route, those that are never shed, all others, and the document of all.
fn table() -> (Router<AppState>, Router<AppState>, Router<AppState>, OpenApi) {
    let (decision, mut document) = decision_routes().split_for_parts();
    let (unshed, unshed_document) = unshed_routes().split_for_parts();
    let (api, api_document) = api_routes().split_for_parts();
    document.merge(unshed_document);
    document.merge(api_document);
    openapi::complete(&mut document);
    (decision, unshed, api, document)
}

/// What `MediaMTX` waits for: see [`Limits::of_decisions`].
fn decision_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base()).routes(routes!(mediamtx_auth::decide))
}

/// What nodes tell, and what is asked to see how the service is: that must not fail because many ask for lists.
fn unshed_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(hooks::publish))
        .routes(routes!(hooks::unpublish))
        .routes(routes!(operations::health))
        .routes(routes!(operations::readiness))
        .routes(routes!(operations::prometheus))
}

fn api_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(streams::list))
        .routes(routes!(streams::get, streams::patch))
        .routes(routes!(streams::stop))
        .routes(routes!(stream_keys::list, stream_keys::create))
        .routes(routes!(stream_keys::get, stream_keys::patch))
        .routes(routes!(stream_keys::revoke))
        .routes(routes!(attempts::of_key))
        .routes(routes!(attempts::of_path))
        .routes(routes!(stream_keys::disable))
        .routes(routes!(stream_keys::enable))
        .routes(routes!(broadcasters::list, broadcasters::create))
        .routes(routes!(broadcasters::get, broadcasters::patch))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get, nodes::put, nodes::delete))
        .routes(routes!(nodes::mediamtx_config))
        .routes(routes!(docs::error_codes))
}

/// Answers every request that it is too much, for connections beyond the limit.
fn overloaded_router() -> Router {
    let limits = Limits {
        places: None,
        deadline: Duration::from_secs(1),
        late: Code::Overloaded,
        body_bytes_max: 0,
        body_read_timeout: Duration::from_secs(1),
        lines: Lines::OfChanges,
        reuse: Reuse::ByAll,
    };
    let router = Router::new().fallback(async || Problem::of(Code::Overloaded));
    router.layer(from_fn_with_state(Arc::new(limits), frame::frame))
}

impl Limits {
    /// The decision has a deadline of its own, after which it also sees to what Redis may have done nevertheless. So the
    /// frame's is a little later, for a body that dawdles.
    fn of_decisions(config: &Config) -> Self {
        let deadline = Duration::from_millis(config.admission.deadline_ms);
        let busy_deadline = deadline.max(Duration::from_millis(config.admission.busy_deadline_ms));
        Self {
            places: None,
            deadline: deadline + busy_deadline,
            late: Code::StateUnavailable,
            body_bytes_max: config.server.body_bytes_max,
            body_read_timeout: deadline / 2,
            lines: Lines::OfFailures,
            reuse: Reuse::NotByNodes,
        }
    }

    fn of_api(config: &Config, places: Option<usize>) -> Self {
        let deadline = Duration::from_millis(config.server.request_timeout_ms);
        Self {
            places: places.map(|count| Arc::new(Semaphore::new(count))),
            deadline,
            late: Code::RequestTimeout,
            body_bytes_max: config.server.body_bytes_max,
            body_read_timeout: deadline / 2,
            lines: Lines::OfChanges,
            reuse: Reuse::ByAll,
        }
    }
}

impl From<&ServerConfig> for ConnectionLimits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            connections_max: config.connections_max,
            head_timeout: Duration::from_millis(config.head_timeout_ms),
            write: WRITE_LIMITS,
        }
    }
}

impl FromRef<AppState> for Arc<ListPages> {
    fn from_ref(state: &AppState) -> Self {
        Self::clone(&state.0.list_pages)
    }
}

impl FromRef<AppState> for Arc<App> {
    fn from_ref(state: &AppState) -> Self {
        Self::clone(&state.0.app)
    }
}

impl FromRef<AppState> for ApiSecrets {
    fn from_ref(state: &AppState) -> Self {
        state.0.api_secrets.clone()
    }
}

/// Lets something be said again and again, but not each time.
struct NowAndThen(Mutex<Option<Instant>>);

impl NowAndThen {
    /// Whether it may be said now. Whoever is told so has said it.
    fn take_turn(&self) -> bool {
        let mut said_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = said_at.is_none_or(|at| at.elapsed() >= NOW_AND_THEN);
        if is_time {
            *said_at = Some(Instant::now());
        }
        is_time
    }
}

impl callers::KnowsNodes for AppState {
    async fn node_of(&self, user: &str, password: &str) -> Option<NodeName> {
        if let Some(name) = self.0.app.credentials.verify_password(user, password) {
            return self.0.app.nodes.find(&name).await.map(|_| name);
        }
        // A name that strangers made up is not repeated.
        let node = user.parse().ok().and_then(|name| self.0.app.nodes.fleet().get(&name).cloned());
        if let Some(node) = node.filter(|_| self.0.wrong_passwords.take_turn()) {
            let advice =
                "publishers are refused there if it is the node itself: `onair mediamtx-config` prints the right one";
            tracing::warn!(node = %node.name, advice, "somebody called as a node with a wrong password");
        }
        None
    }
}
