//! The frame, the extractors and the server as a caller sees them, around handlers of a few lines.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::from_fn_with_state,
    response::Response,
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt as _;

use super::{
    code::Code,
    fields::{PageLimit, Title},
    frame::{Limits, frame},
    input::{FormOrJson, JsonBody, PathParam, Query},
    server::{ConnectionLimits, serve},
    wire::WriteLimits,
};
use crate::{
    domain::StreamId,
    lifecycle::Tasks,
    nodes::{AUTH_PATH, PUBLISH_HOOK_PATH, UNPUBLISH_HOOK_PATH},
};

const LIMITS: Limits = Limits {
    places: None,
    deadline: Duration::from_secs(5),
    late: Code::RequestTimeout,
    body_bytes_max: 200,
    body_read_timeout: Duration::from_secs(2),
    lines: super::frame::Lines::OfChanges,
    reuse: super::frame::Reuse::NotByNodes,
};

const WRITE_LIMITS: WriteLimits =
    WriteLimits { nothing_max: Duration::from_secs(5), whole_max: Duration::from_secs(5) };

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    title: Title,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    limit: PageLimit,
}

fn router() -> Router {
    Router::new()
        .route("/json", post(async |JsonBody(input): JsonBody<Input>| String::from(input.title)))
        .route("/either", post(async |FormOrJson(input): FormOrJson<Input>| String::from(input.title)))
        .route("/query", get(async |Query(which): Query<Which>| which.limit.get().to_string()))
        .route("/streams/{id}", get(async |PathParam(id): PathParam<StreamId>| id.to_string()))
        .route("/panic", get(async || -> &'static str { panic!("as a test wants it") }))
        .route("/never", get(async || -> &'static str { std::future::pending().await }))
        .route("/ok", get(async || "ok"))
        .layer(from_fn_with_state(Arc::new(LIMITS), frame))
}

async fn read(response: Response) -> (StatusCode, HeaderMap, String) {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn ask(request: Request) -> (StatusCode, HeaderMap, String) {
    read(router().oneshot(request).await.unwrap()).await
}

async fn problem_of(request: Request) -> Value {
    let (status, headers, body) = ask(request).await;
    assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json", "{body}");
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(problem["request_id"], headers["x-request-id"].to_str().unwrap());
    problem
}

fn request(method: &str, uri: &str, content_type: &str, body: impl Into<Body>) -> Request {
    let builder = http::Request::builder().method(method).uri(uri);
    builder.header(header::CONTENT_TYPE, content_type).body(body.into()).unwrap()
}

fn json(body: &str) -> Request {
    request("POST", "/json", "application/json", body.to_owned())
}

fn plain(method: &str, uri: &str) -> Request {
    http::Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn whatever_is_no_success_is_a_problem() {
    let cases = [
        (plain("GET", "/nowhere"), 404, "route_not_found"),
        (plain("DELETE", "/ok"), 405, "method_not_allowed"),
        (plain("GET", "/panic"), 500, "internal"),
        (plain("GET", "/streams/7"), 400, "id_malformed"),
        (plain("GET", "/streams/%FF"), 400, "id_malformed"),
        (plain("GET", "/query?limit=0"), 400, "invalid_query"),
        (plain("GET", "/query?limit=1&limit=2"), 400, "invalid_query"),
        (plain("GET", "/query?page=1"), 400, "invalid_query"),
        (json(""), 400, "body_malformed"),
        (json("{"), 400, "body_malformed"),
        (json("{\"title\": \"a\"} x"), 400, "body_malformed"),
        (json("[\"a\"]"), 422, "invalid_input"),
        (json("{}"), 422, "invalid_input"),
        (json("{\"title\": 5}"), 422, "invalid_input"),
        (json("{\"title\": \"a\", \"more\": 1}"), 422, "invalid_input"),
        (json(&"x".repeat(201)), 413, "body_too_large"),
        (request("POST", "/json", "text/plain", "{}"), 415, "unsupported_media_type"),
        (plain("POST", "/json"), 415, "unsupported_media_type"),
        (request("POST", "/either", "application/x-www-form-urlencoded", "titel=a"), 422, "invalid_input"),
    ];
    for (request, status, code) in cases {
        let name = format!("{} {}", request.method(), request.uri());
        let problem = problem_of(request).await;
        assert_eq!(
            (problem["status"].as_u64(), problem["code"].as_str()),
            (Some(status), Some(code)),
            "{name}: {problem}"
        );
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let (_, headers, _) = ask(plain("DELETE", "/ok")).await;
    assert_eq!(headers[header::ALLOW], "GET,HEAD");
}

#[tokio::test]
async fn a_wrong_field_is_named_and_its_value_is_not() {
    let problem = problem_of(json("{\"title\": 12345}")).await;
    assert_eq!(problem["errors"], json!([{"field": "title", "detail": "must be a string, not a number"}]));
    let problem = problem_of(json("{\"title\": \"a\",\n 12345}")).await;
    assert_eq!(problem["detail"], "The body is not valid JSON: see line 2, column 2.");
}

#[tokio::test]
async fn json_and_forms_are_read() {
    assert_eq!(ask(json("{\"title\": \"a b\"}")).await.2, "a b");
    let form = request("POST", "/either", "application/x-www-form-urlencoded", "title=a%20b");
    assert_eq!(ask(form).await.2, "a b");
    let with_charset = request("POST", "/either", "application/json; charset=utf-8", "{\"title\": \"a b\"}");
    assert_eq!(ask(with_charset).await.2, "a b");
}

#[tokio::test]
async fn a_harmless_request_id_is_taken_over_and_others_are_replaced() {
    let id_for = async |sent: &str| {
        let mut request = plain("GET", "/ok");
        request.headers_mut().insert("x-request-id", sent.parse().unwrap());
        ask(request).await.1["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id_for("trace-1_A").await, "trace-1_A");
    for odd in ["", "a b", "a;b", &"x".repeat(65)] {
        let made = id_for(odd).await;
        assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_too_long_is_given_up() {
    let problem = problem_of(plain("GET", "/never")).await;
    assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(503), Some("request_timeout")));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_dawdles_is_not_waited_for() {
    let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let problem = problem_of(request("POST", "/json", "application/json", body)).await;
    assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(408), Some("body_too_slow")));
}

async fn serving(connections_max: usize, head_timeout: Duration) -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    let limits = ConnectionLimits { connections_max, head_timeout, write: WRITE_LIMITS };
    tasks.spawn("http", serve(listener, router(), limits, tasks.clone()));
    (address, tasks)
}

async fn exchange(address: SocketAddr, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut text = String::new();
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, stream.read_to_string(&mut text)).await.expect("is answered and closed").unwrap();
    text
}

#[tokio::test]
async fn what_is_not_http_gets_a_problem_too() {
    let (address, tasks) = serving(10, Duration::from_secs(5)).await;
    let answer = exchange(address, b"NOT HTTP\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"code\":\"request_malformed\""), "{answer}");
    let long = format!("GET /ok HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(40_000));
    let answer = exchange(address, long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("\"code\":\"headers_too_large\""), "{answer}");
    tasks.join(Duration::from_secs(5)).await.into_result().unwrap();
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_cut_off() {
    let (address, tasks) = serving(10, Duration::from_millis(100)).await;
    assert_eq!(exchange(address, b"GET /ok HTTP/1.1\r\nhost: a\r\n").await, "");
    tasks.join(Duration::from_secs(5)).await.into_result().unwrap();
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_closed() {
    let (address, tasks) = serving(1, Duration::from_secs(30)).await;
    let ask = b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut answer = String::new();
    // Where the machine stands still between the two, the first has idled for long enough to be closed for the second.
    for _ in 0..10 {
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(ask).await.unwrap();
        first.read_exact(&mut [0; 16]).await.unwrap();
        answer = exchange(address, ask).await;
        if !answer.starts_with("HTTP/1.1 200 ") {
            break;
        }
    }
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"code\":\"overloaded\""), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    // An idle connection does not keep the service from stopping.
    tasks.join(Duration::from_secs(5)).await.into_result().unwrap();
}

#[tokio::test]
async fn a_large_body_is_refused_so_that_the_client_can_read_why() {
    let (address, tasks) = serving(10, Duration::from_secs(5)).await;
    let body = "x".repeat(500_000);
    let head = "POST /json HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 500000\r\n\r\n";
    let answer = exchange(address, format!("{head}{body}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"code\":\"body_too_large\""), "{answer}");
    tasks.join(Duration::from_secs(5)).await.into_result().unwrap();
}

#[tokio::test]
async fn a_node_is_told_that_its_answer_was_the_last_and_a_proxy_is_not() {
    let (address, tasks) = serving(10, Duration::from_secs(5)).await;
    let node = "GET /ok HTTP/1.1\r\nhost: a\r\nuser-agent: Go-http-client/1.1\r\n";
    let answer = exchange(address, format!("{node}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
    for proxy in ["via: 1.1 edge", "x-forwarded-for: 192.0.2.1", "forwarded: for=192.0.2.1"] {
        let twice = [format!("{node}{proxy}\r\n\r\n"), format!("{node}\r\n")].concat();
        let answers = exchange(address, twice.as_bytes()).await;
        assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 2, "{proxy}: {answers}");
    }
    tasks.join(Duration::from_secs(5)).await.into_result().unwrap();
}

#[tokio::test]
async fn connections_send_what_they_have_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    super::server::answer_at_once(&listener);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    assert!(accepted.nodelay().unwrap());
}

/// A future is made on the stack and moved to its place, through every layer around it: what is rarely needed has to be boxed, so
/// that a call which does not need it does not carry its room.
#[test]
fn the_calls_that_come_in_thousands_are_small() {
    const BYTES_MAX: usize = 1_536;
    fn of_three<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    fn of_five<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }
    let sizes = [
        ("auth", of_five(super::mediamtx_auth::decide)),
        ("list", of_five(super::streams::list)),
        ("details", of_three(super::streams::get)),
        ("publish hook", of_three(super::hooks::publish)),
        ("unpublish hook", of_three(super::hooks::unpublish)),
        ("frame", of_three(frame)),
    ];
    for (what, bytes) in sizes {
        assert!(bytes <= BYTES_MAX, "{what}: {bytes} bytes");
    }
}

#[test]
fn what_nodes_are_wired_to_is_served() {
    let document = super::document();
    for path in [AUTH_PATH, PUBLISH_HOOK_PATH, UNPUBLISH_HOOK_PATH] {
        assert!(document.paths.paths.contains_key(path), "{path}");
    }
}
