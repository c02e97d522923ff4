//! The frame around every handler: request id, span, a place for what is shed, deadline, panics, problems, metrics, access log.
//!
//! Invariants:
//! - Whatever happens inside, the answer has a request id, and if it is no success it is a problem.
//! - One layer does it all: each layer costs every request some allocations, and moves what is inside it twice.
//! - Neither the address as it was sent nor its query is logged: a caller may have put a secret there. The route's
//!   template is.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    code::Code,
    problem::Problem,
    server::{Arrival, last_on_its_connection},
};

/// The header that carries the request id, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over from a caller.
const REQUEST_ID_LENGTH_MAX: usize = 64;

/// What a group of routes is held to.
#[derive(Debug)]
pub struct Limits {
    /// How many requests may be in hand at once, if that is limited: further ones are shed.
    pub places: Option<Arc<Semaphore>>,
    /// The whole answer, body of the request included.
    pub deadline: Duration,
    /// What is said when the deadline is over.
    pub late: Code,
    /// The longest body of a request.
    pub body_bytes_max: usize,
    /// How long the body may take to arrive.
    pub body_read_timeout: Duration,
    /// Whether the log lines of a request tell whose they are.
    pub lines: Lines,
    /// Who may send another request on its connection.
    pub reuse: Reuse,
}

/// Who may send another request on the same connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Everybody.
    ByAll,
    /// Everybody but a node: it makes a new connection for every call and closes it when it has the answer. So it is told that
    /// this was the last, and we close first: nobody has to wait for its end, and the port that the system keeps back for a
    /// minute is kept back here and not on the node, which has 28,000 of them.
    NotByNodes,
}

/// What the log lines that are written while a request is answered carry with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// The request's id, method and route, where it may change something. What only reads leaves a line when it fails, and that
    /// one has them.
    OfChanges,
    /// The same for failures only: a decision is one line that holds everything, and carrying more along for each would cost it
    /// as much as making that line does.
    OfFailures,
}

/// Names one request in answers and logs.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's id where it is harmless, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let harmless = |value: &&HeaderValue| {
            (1..=REQUEST_ID_LENGTH_MAX).contains(&value.len())
                && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let id = headers.get(REQUEST_ID).filter(harmless).cloned();
        id.map_or_else(Self::made_here, Self)
    }

    /// A new id.
    pub(super) fn made_here() -> Self {
        let mut buffer = Uuid::encode_buffer();
        let text: &str = Uuid::now_v7().simple().encode_lower(&mut buffer);
        Self(HeaderValue::from_str(text).expect("hexadecimal digits are a header value"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("made of letters, digits, '-' and '_'")
    }
}

/// What the frame tells those within about a request.
#[derive(Debug, Clone)]
pub struct Framed {
    /// Names it.
    pub id: RequestId,
    /// What it is held to.
    pub limits: Arc<Limits>,
}

/// The middleware: see the module.
pub async fn frame(State(limits): State<Arc<Limits>>, mut request: Request, next: Next) -> Response {
    let started_at = Instant::now();
    let id = RequestId::of(request.headers());
    let method = known_method(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let told = || tracing::info_span!("request", request_id = id.as_str(), method, route);
    let is_told = limits.lines == Lines::OfChanges && !request.method().is_safe();
    let span = if is_told { told() } else { tracing::debug_span!("request", request_id = id.as_str(), method, route) };
    let is_last = limits.reuse == Reuse::NotByNodes && is_a_node_itself(request.headers());
    request.extensions_mut().insert(Framed { id: id.clone(), limits: Arc::clone(&limits) });

    let place = limits.place();
    let seat = request.extensions().get::<Arrival>().and_then(|arrival| arrival.seat.clone());
    let response = match place {
        Ok(place) => {
            let guarded = AssertUnwindSafe(next.run(request)).catch_unwind();
            let answered = tokio::time::timeout(limits.deadline, guarded).instrument(span.clone()).await;
            let response = match answered {
                Ok(Ok(response)) => response,
                Ok(Err(_panic)) => unsuccessful(Problem::internal(&"a handler panicked")),
                Err(_elapsed) => unsuccessful(Problem::of(limits.late)),
            };
            if let (Some(place), Some(seat)) = (place, seat) {
                seat.hold_if_large(&response, place);
            }
            response
        }
        Err(shed) => unsuccessful(shed),
    };
    let span = if !is_told && response.status().is_server_error() { told() } else { span };
    let _entered = span.enter();
    let (response, code) = finish(response, &id);
    let response = if is_last { last_on_its_connection(response) } else { response };
    let status = response.status().as_u16();
    let duration = started_at.elapsed();
    crate::metrics::http_request(method, route, status, code.map_or("", Code::as_str), duration);
    tracing::debug!(status, code = code.map(Code::as_str), duration_us = duration.as_micros(), "answered");
    response
}

impl Limits {
    /// A place for a request, `None` where it needs none.
    fn place(&self) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        let place = self.places.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
        place.transpose().map_err(|_| {
            crate::metrics::request_shed();
            Problem::of(Code::Overloaded)
        })
    }
}

/// Whether the other end of the connection is `MediaMTX` (which speaks through Go's client) and no proxy before it: that may well
/// use its connections again.
fn is_a_node_itself(headers: &HeaderMap) -> bool {
    const OF_PROXIES: [HeaderName; 3] = [header::VIA, header::FORWARDED, HeaderName::from_static("x-forwarded-for")];
    let is_go = headers.get(header::USER_AGENT).is_some_and(|name| name.as_bytes().starts_with(b"Go-http-client/"));
    is_go && !OF_PROXIES.iter().any(|name| headers.contains_key(name))
}

fn unsuccessful(problem: Problem) -> Response {
    axum::response::IntoResponse::into_response(problem)
}

/// Turns what is no success into a problem with a body, and puts the request id on every answer.
fn finish(mut response: Response, id: &RequestId) -> (Response, Option<Code>) {
    let status = response.status();
    let problem = response.extensions_mut().remove::<Problem>();
    let is_error = status.is_client_error() || status.is_server_error();
    let problem = problem.or_else(|| is_error.then(|| Problem::from_status(status)));
    let code = problem.as_ref().map(Problem::code);
    if let Some(problem) = problem {
        log_cause(&problem, id);
        *response.status_mut() = problem.code().status();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        // In the place of what the other answer said of itself, and not beside it.
        for (name, value) in problem.headers() {
            response.headers_mut().insert(name, value);
        }
        *response.body_mut() = Body::from(problem.to_json(id.as_str()));
    }
    response.headers_mut().insert(REQUEST_ID, id.0.clone());
    (response, code)
}

/// Each failure of ours is logged once, here, with the request id.
fn log_cause(problem: &Problem, id: &RequestId) {
    let (code, request_id) = (problem.code().as_str(), id.as_str());
    match (problem.code(), problem.cause()) {
        (Code::Internal, cause) => tracing::error!(code, cause, request_id, "a request failed on our side"),
        (_, Some(cause)) => tracing::warn!(code, cause, request_id, "a request was not answered as asked"),
        (_, None) => {}
    }
}

/// A label of metrics has few values, whatever callers invent.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
