//! What is too much, too slow or too many is refused or cut, and nobody's auth call waits for it.

mod support;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use onair::config::Config;
use serde_json::{Value, json};
use support::{
    api_client::ApiClient,
    stack::{API_SECRET, Replica, Stack, TestKey, node_password},
    stopwatch::Stopwatch,
    stores::until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use uuid::Uuid;

/// Few, so that they are soon all taken.
const CONNECTIONS_MAX: usize = 32;
const REQUESTS_MAX: usize = 4;
/// Longer than a connection has to be silent before its seat is given away.
const SILENCE: Duration = Duration::from_millis(300);
/// Far beyond every wait of the service that is asked about here.
const CUT_LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    stack: Stack,
    replica: Replica,
    node: ApiClient,
    key: TestKey,
}

impl Bench {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let stack = Stack::start_with(|config| {
            config.server.connections_max = CONNECTIONS_MAX;
            config.server.requests_max = REQUESTS_MAX;
            config.server.head_timeout_ms = 10_000;
            Stack::leave_nodes_alone(config);
            // A busy machine is not what is asked about.
            config.redis.command_timeout_ms = 2_000;
            config.admission.deadline_ms = 3_000;
            change(config);
        })
        .await;
        let replica = stack.replica().await;
        replica.add_node("edge-1").await;
        let key = replica.key("live/ada").await;
        let node = replica.api.as_node("edge-1", &node_password("edge-1"));
        Self { stack, replica, node, key }
    }

    fn publisher(&self) -> Value {
        json!({"ip": "192.0.2.1", "user": "", "password": "", "token": "", "action": "publish", "path": self.key.path,
            "protocol": "rtmp", "id": null, "query": format!("key={}", self.key.secret), "userAgent": "an encoder"})
    }

    /// As MediaMTX asks: on a connection of its own.
    async fn ask(&self) -> (u16, Duration) {
        let body = self.publisher().to_string();
        let (user, password) = ("edge-1", node_password("edge-1"));
        let asked_at = Instant::now();
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let request = client.post(format!("{}/v1/mediamtx/auth", self.replica.url())).basic_auth(user, Some(password));
        let answer = request.header("content-type", "application/json").body(body).send().await;
        (answer.map_or(0, |answer| answer.status().as_u16()), asked_at.elapsed())
    }

    /// A counter without labels: that of all tests of this process together.
    async fn counted(&self, name: &str) -> u64 {
        let text = self.replica.api.get("/metrics").await.expect(200).text;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not among the metrics"))
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("it listens")
}

/// A connection whose owner reads nothing, and for whom little is buffered.
async fn deaf(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(address).await.expect("it listens")
}

/// What comes until the other side closes, and how long that takes.
async fn until_closed(stream: &mut TcpStream) -> (String, Duration) {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(CUT_LIMIT, stream.read_to_end(&mut bytes)).await;
    // A reset is an end as well.
    let _ = reading.expect("it is cut in time");
    (String::from_utf8_lossy(&bytes).into_owned(), began.elapsed())
}

#[tokio::test]
async fn connections_that_say_nothing_or_idle_keep_no_auth_call_out() {
    let bench = Bench::start(|_| ()).await;
    let mut silent = Vec::new();
    for number in 0..CONNECTIONS_MAX * 3 {
        let mut stream = connect(bench.replica.address).await;
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"GET /healthz HT").await.unwrap(),
            _ => {
                // It may have been turned away, or cut a moment later: what matters is who comes next.
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await;
                let mut first = [0; 12];
                let _ = stream.read_exact(&mut first).await;
            }
        }
        silent.push(stream);
    }
    tokio::time::sleep(SILENCE).await;
    let answers = futures_util::future::join_all((0..CONNECTIONS_MAX).map(|_| bench.ask())).await;
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    assert!(answers.iter().all(|(status, _)| *status == 204), "an auth call was kept out: {answers:?}");
    let given_up = bench.counted("onair_http_connections_given_up_total ").await;
    println!(
        "{} connections on {CONNECTIONS_MAX} seats: {CONNECTIONS_MAX} auth calls admitted, the slowest in {slowest:?}; {given_up} \
         silent connections gave way",
        silent.len()
    );
    assert!(given_up > 0);
    bench.replica.stop().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_are_shed_and_cut_and_keep_no_auth_call_out() {
    let bench = Bench::start(|_| ()).await;
    for number in 0..40 {
        let metadata = json!({"text": "x".repeat(8_000)});
        let body = json!({"display_name": format!("Ada {number}"), "metadata": metadata});
        bench.replica.api.post("/v1/broadcasters", &body).await.expect(201);
    }
    // Each asks for more than fits between us.
    let list = format!("GET /v1/broadcasters HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {API_SECRET}\r\n\r\n");
    let mut readers = Vec::new();
    for _ in 0..REQUESTS_MAX {
        readers.push(asking(bench.replica.address, &list).await);
    }
    let began = Instant::now();
    until("all places are taken", async || bench.replica.api.get("/v1/streams").await.status == 503).await;
    let shed = bench.replica.api.get("/v1/streams").await.expect_problem(503, "overloaded");
    assert_eq!(shed.headers["retry-after"], "1");
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let (status, took) = bench.ask().await;
        assert_eq!(status, 204, "an auth call was kept out");
        slowest = slowest.max(took);
    }
    let hook = json!({"path": "live/ada", "source_type": "rtmpConn", "source_id": Uuid::new_v4()});
    bench.node.post("/v1/hooks/unpublish", &hook).await.expect(200);
    for open in ["/healthz", "/readyz", "/metrics"] {
        bench.replica.api.get(open).await.expect(200);
    }
    until("those who do not read are cut off", async || bench.replica.api.get("/v1/streams").await.status == 200).await;
    let cut_after = began.elapsed();
    println!(
        "{REQUESTS_MAX} readers that do not read: lists shed ({} times), 20 auth calls admitted, the slowest in {slowest:?}; cut \
         after {cut_after:?}",
        bench.counted("onair_http_requests_shed_total ").await
    );
    drop(readers);
    bench.replica.stop().await;
}

#[tokio::test]
async fn what_is_too_much_is_shed_at_once_and_not_queued() {
    let bench = Bench::start(|_| ()).await;
    // The list waits for a Redis that hangs, and holds its places meanwhile.
    assert_eq!(bench.replica.api.get("/v1/streams").await.expect(200).json["stale"], false);
    bench.stack.redis.suspend().unwrap();
    let list = async || {
        let asked = Stopwatch::start();
        let answer = bench.replica.api.get("/v1/streams").await;
        (answer.status, asked.elapsed(), answer.headers.contains_key("retry-after"))
    };
    let answers = futures_util::future::join_all((0..20).map(|_| list())).await;
    bench.stack.redis.resume().unwrap();
    let shed: Vec<_> = answers.iter().filter(|(status, ..)| *status == 503).collect();
    let slowest = shed.iter().map(|(_, took, _)| *took).max().unwrap();
    let quickest = answers.iter().filter(|(status, ..)| *status == 200).map(|(_, took, _)| *took).min().unwrap();
    println!(
        "20 lists at once on {REQUESTS_MAX} places: {} shed within {slowest:?}; the others took {quickest:?}",
        shed.len()
    );
    assert_eq!(shed.len(), 20 - REQUESTS_MAX);
    assert!(shed.iter().all(|(.., tells_when)| *tells_when));
    assert!(slowest < quickest, "those that were shed had waited: {slowest:?}");
    until("there is room again", async || bench.replica.api.get("/v1/streams").await.status == 200).await;
    bench.replica.stop().await;
}

/// A client that asks for the same thirty times, and reads nothing.
async fn asking(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = deaf(address).await;
    stream.write_all(request.repeat(30).as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn strangers_that_read_nothing_shed_neither_lists_nor_auth_calls() {
    let bench = Bench::start(|_| ()).await;
    let mut readers = Vec::new();
    for request in [
        "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /v1/streams HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        for _ in 0..CONNECTIONS_MAX {
            readers.push(asking(bench.replica.address, request).await);
        }
        tokio::time::sleep(SILENCE).await;
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let (status, took) = bench.ask().await;
        assert_eq!(status, 204, "an auth call was kept out");
        bench.replica.api.get("/v1/streams").await.expect(200);
        slowest = slowest.max(took);
    }
    println!("{} strangers that read nothing: 20 auth calls admitted, the slowest in {slowest:?}", readers.len());
    bench.replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lists_is_shed_and_auth_calls_go_on() {
    const CALLERS: usize = 100;
    let bench = Bench::start(|config| config.server.connections_max = 256).await;
    let answered = [const { AtomicU64::new(0) }; 2];
    let flood = async || {
        let client = reqwest::Client::new();
        loop {
            let request = client.get(format!("{}/v1/streams", bench.replica.url())).bearer_auth(API_SECRET);
            let answer = request.send().await.expect("it answers").status().as_u16();
            assert!(matches!(answer, 200 | 503), "{answer}");
            answered[usize::from(answer == 503)].fetch_add(1, Ordering::Relaxed);
        }
    };
    let asking = async {
        let shed = || answered[1].load(Ordering::Relaxed);
        until("lists are shed", async || shed() > 0).await;
        let mut took = Vec::new();
        for _ in 0..100 {
            let (status, time) = bench.ask().await;
            assert_eq!(status, 204, "an auth call was kept out");
            took.push(time);
        }
        took.sort();
        took
    };
    let took: Vec<Duration> = tokio::select! {
        took = asking => took,
        _ = futures_util::future::join_all((0..CALLERS).map(|_| flood())) => unreachable!("a flood does not end"),
    };
    let [listed, shed] = answered.map(AtomicU64::into_inner);
    println!(
        "{CALLERS} callers on {REQUESTS_MAX} places: {listed} lists, {shed} shed; 100 auth calls beside them, half within {:?}, the \
         slowest in {:?}",
        took[50], took[99]
    );
    bench.replica.stop().await;
}

#[tokio::test]
async fn clients_that_trickle_are_cut() {
    let bench = Bench::start(|config| {
        config.server.head_timeout_ms = 500;
        config.server.request_timeout_ms = 1_000;
    })
    .await;
    let drop_by_drop = async |head: String, drops: &str| {
        let mut stream = connect(bench.replica.address).await;
        let (mut reading, mut writing) = stream.split();
        writing.write_all(head.as_bytes()).await.unwrap();
        let began = Instant::now();
        let trickle = async {
            for byte in drops.bytes().cycle() {
                if writing.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut answer = Vec::new();
        tokio::select! {
            () = trickle => {}
            _ = reading.read_to_end(&mut answer) => {}
            () = tokio::time::sleep(CUT_LIMIT) => panic!("it is not cut"),
        }
        (String::from_utf8_lossy(&answer).into_owned(), began.elapsed())
    };

    let (answer, head_took) = drop_by_drop("GET /healthz HTTP/1.1\r\nx: ".to_owned(), "x").await;
    assert_eq!(answer, "");
    let head = |path: &str, authorization: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: {authorization}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: 60000\r\n\r\n{{\"display_name\": \""
        )
    };
    let (answer, body_took) = drop_by_drop(head("/v1/broadcasters", &format!("Bearer {API_SECRET}")), "x").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_too_slow"), "{answer}");
    let basic = base64_of(&format!("edge-1:{}", node_password("edge-1")));
    let (answer, auth_took) = drop_by_drop(head("/v1/mediamtx/auth", &format!("Basic {basic}")), "x").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_too_slow"), "{answer}");
    println!(
        "trickled: a head cut after {head_took:?}, a body after {body_took:?}, the body of an auth call after {auth_took:?}"
    );
    for took in [head_took, body_took, auth_took] {
        assert!(took >= Duration::from_millis(400), "cut too early: {took:?}");
    }

    // Connected, and never a word; and one that idles between two requests.
    let mut mute = connect(bench.replica.address).await;
    assert_eq!(until_closed(&mut mute).await.0, "");
    let mut idle = connect(bench.replica.address).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(until_closed(&mut idle).await.0.starts_with("HTTP/1.1 200 "));
    bench.replica.stop().await;
}

fn base64_of(text: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(text)
}

#[tokio::test]
async fn every_size_has_a_limit_and_says_so() {
    let bench = Bench::start(|_| ()).await;
    let api = &bench.replica.api;
    let large = "x".repeat(64 * 1024);
    api.post("/v1/broadcasters", &json!({ "display_name": large })).await.expect_problem(413, "body_too_large");
    let mut call = bench.publisher();
    call["userAgent"] = json!(large);
    bench.node.post("/v1/mediamtx/auth", &call).await.expect_problem(413, "body_too_large");
    let hook = format!("path=live/ada&source_type=rtmpConn&source_id={large}");
    bench.node.post_form("/v1/hooks/publish", &hook).await.expect_problem(413, "body_too_large");
    let headers = api.request(reqwest::Method::GET, "/v1/streams").header("x", "x".repeat(33 * 1024));
    api.send(headers).await.expect_problem(431, "headers_too_large");
    let metadata = json!({"display_name": "Ada", "metadata": {"a": "x".repeat(8 * 1024)}});
    api.post("/v1/broadcasters", &metadata).await.expect_problem(422, "invalid_input");
    for address in ["/v1/streams?limit=1001", "/v1/stream-keys?limit=1001", "/v1/broadcasters?limit=1001"] {
        api.get(address).await.expect_problem(400, "invalid_query");
    }
    api.get(&format!("/v1/streams?cursor={}", "A".repeat(513))).await.expect_problem(400, "invalid_cursor");
    api.get(&format!("/v1/streams?path={}", "a".repeat(129))).await.expect_problem(400, "invalid_query");
    bench.replica.stop().await;
}
