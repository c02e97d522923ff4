//! The callers: raw HTTP over TCP, as a `MediaMTX` node calls, or on connections that are kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, ready},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

/// How much of an answer is taken at once: more than a page of a hundred streams has.
const ROOM_BYTES: usize = 64 * 1024;
/// The largest head of an answer.
const HEAD_BYTES_MAX: usize = 4 * 1024;

thread_local! {
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM_BYTES].into());
}

/// How calls use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// A new one for every call, as `MediaMTX` does.
    Fresh,
    /// One for each caller.
    Kept,
}

/// How the calls of a round are made.
#[derive(Clone, Copy)]
pub struct Plan {
    /// How many call at once, at most.
    pub callers: usize,
    /// What they use.
    pub connections: Connections,
    /// The time from one call to the next, whatever the answers take; zero: whoever has its answer calls again.
    pub every: Duration,
    /// What they should be answered.
    pub expected_status: u16,
}

impl Plan {
    /// Callers that never pause.
    pub const fn never_pausing(callers: usize, connections: Connections, expected_status: u16) -> Self {
        Self { callers, connections, every: Duration::ZERO, expected_status }
    }
}

/// What a round of calls took.
#[derive(Default)]
pub struct Round {
    /// Each call's time, sorted: from when it was due, where calls arrive at a rate of their own.
    pub latencies: Vec<Duration>,
    /// From the first call to the last answer.
    pub took: Duration,
    /// Calls whose status was not the expected one.
    pub unexpected: usize,
    /// The largest answer, head and body.
    pub answer_bytes: usize,
}

impl Round {
    /// The latency that `share` of the calls did not exceed, in microseconds.
    pub fn percentile_us(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank"
        )]
        let rank = (share * (self.latencies.len() - 1) as f64).round() as usize;
        self.latencies[rank].as_secs_f64() * 1e6
    }

    /// Answers a second.
    pub fn throughput(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
        let calls = self.latencies.len() as f64;
        calls / self.took.as_secs_f64()
    }
}

/// Sends every request once. Connections that are kept are made and used once before the first call: who keeps one has made it
/// long ago. Otherwise the first call on each would be told as slow, and with a hundred callers those were the slowest hundredth.
pub async fn play(address: SocketAddr, requests: Arc<Vec<Vec<u8>>>, plan: Plan) -> anyhow::Result<Round> {
    let next = Arc::new(AtomicUsize::new(0));
    // Whoever has nothing to send would still connect.
    let callers = plan.callers.min(requests.len());
    let mut kept = Vec::new();
    if plan.connections == Connections::Kept {
        for _ in 0..callers {
            kept.push(used_once(connect(address).await?).await?);
        }
    }
    let began = Instant::now();
    let due = Arc::new(Semaphore::new(0));
    let calling_out = (!plan.every.is_zero()).then(|| {
        let (due, calls) = (Arc::clone(&due), u32::try_from(requests.len()));
        calls.map(|calls| tokio::task::spawn_blocking(move || call_out(&due, began, plan, calls)))
    });
    let calling_out = calling_out.transpose().context("too many calls")?;
    let mut calling = JoinSet::new();
    for _ in 0..callers {
        let caller = Caller { address, kept: kept.pop(), next: Arc::clone(&next), due: Arc::clone(&due), plan };
        calling.spawn(caller.call_on(Arc::clone(&requests), began));
    }
    let mut round = Round::default();
    while let Some(caller) = calling.join_next().await {
        let called = caller.context("a caller panicked")??;
        round.latencies.extend(called.latencies);
        round.unexpected += called.unexpected;
        round.answer_bytes = round.answer_bytes.max(called.answer_bytes);
    }
    if let Some(calling_out) = calling_out {
        calling_out.await.context("who calls out what is due panicked")?;
    }
    round.took = began.elapsed();
    round.latencies.sort_unstable();
    Ok(round)
}

/// Lets a call be made whenever one is due, and then everybody see that there is none left. On a thread of its own, for tokio's timers are as
/// coarse as what is measured here: they are up to a millisecond late.
fn call_out(due: &Semaphore, began: Instant, plan: Plan, calls: u32) {
    for number in 0..calls {
        std::thread::sleep((began + plan.every * number).saturating_duration_since(Instant::now()));
        due.add_permits(1);
    }
    due.add_permits(plan.callers);
}

struct Caller {
    address: SocketAddr,
    kept: Option<TcpStream>,
    /// The number of the next call, of all callers.
    next: Arc<AtomicUsize>,
    /// Has a permit for each call that is due, where they arrive at a rate of their own.
    due: Arc<Semaphore>,
    plan: Plan,
}

impl Caller {
    async fn call_on(mut self, requests: Arc<Vec<Vec<u8>>>, round_began: Instant) -> anyhow::Result<Round> {
        let mut head = Vec::new();
        let mut called = Round::default();
        loop {
            let is_paced = !self.plan.every.is_zero();
            if is_paced {
                self.due.acquire().await?.forget();
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(number) else { return Ok(called) };
            let due = round_began + self.plan.every * u32::try_from(number)?;
            let began = if is_paced { due } else { Instant::now() };
            let mut stream = match self.kept.take() {
                Some(stream) => stream,
                None => connect(self.address).await?,
            };
            let answer = call(&mut stream, request, &mut head).await?;
            called.latencies.push(began.elapsed());
            called.unexpected += usize::from(answer.status != self.plan.expected_status);
            called.answer_bytes = called.answer_bytes.max(answer.bytes);
            if self.plan.connections == Connections::Kept {
                self.kept = Some(stream);
            }
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection that whoever serves it has taken up.
async fn used_once(mut stream: TcpStream) -> anyhow::Result<TcpStream> {
    call(&mut stream, &get("/healthz", "", None), &mut Vec::new()).await?;
    Ok(stream)
}

/// What came of an answer.
struct Answer {
    status: u16,
    /// Head and body.
    bytes: usize,
}

/// Sends a request and takes the answer. `head` is room for what is kept of it. The body is dropped as it comes, in room that all callers of
/// a thread share: a caller that kept it would take from the servers what they are measured by.
async fn call(stream: &mut TcpStream, request: &[u8], head: &mut Vec<u8>) -> anyhow::Result<Answer> {
    stream.write_all(request).await?;
    head.clear();
    let (mut status, mut bytes, mut expected) = (None, 0, usize::MAX);
    while bytes < expected {
        let taken = poll_fn(|context| {
            ROOM.with_borrow_mut(|room| {
                let mut room = ReadBuf::new(room);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut room))?;
                if status.is_none() {
                    head.extend(room.filled().iter().take(HEAD_BYTES_MAX - head.len()));
                }
                Poll::Ready(io::Result::Ok(room.filled().len()))
            })
        })
        .await?;
        ensure!(taken > 0, "the connection was closed in the middle of an answer");
        bytes += taken;
        if status.is_none()
            && let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n")
        {
            let (code, body_length) = understood(std::str::from_utf8(&head[..end])?)?;
            (status, expected) = (Some(code), end + 4 + body_length);
        }
        ensure!(
            status.is_some() || head.len() < HEAD_BYTES_MAX,
            "the head of an answer is larger than {HEAD_BYTES_MAX} bytes"
        );
    }
    Ok(Answer { status: status.context("no head")?, bytes })
}

/// The status and the length of the body.
fn understood(head: &str) -> anyhow::Result<(u16, usize)> {
    let body_length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse())?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body_length))
}

/// A whole request with a JSON body, as Go's client writes it; on a connection that is kept, as a proxy before it passes it on.
pub fn post(path: &str, authorization: Option<&str>, body: &serde_json::Value, connections: Connections) -> Vec<u8> {
    let body = body.to_string();
    let authorization = authorization.map_or_else(String::new, |value| format!("Authorization: {value}\r\n"));
    let length = body.len();
    let via = if connections == Connections::Kept { "Via: 1.1 proxy\r\n" } else { "" };
    format!(
        "POST {path} HTTP/1.1\r\nHost: onair\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {length}\r\n\
         {via}{authorization}Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A whole request without a body. `header` is the name and the value of one more.
pub fn get(path: &str, authorization: &str, header: Option<(&str, &str)>) -> Vec<u8> {
    let header = header.map_or_else(String::new, |(name, value)| format!("{name}: {value}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: onair\r\nAuthorization: {authorization}\r\n{header}\r\n").into_bytes()
}
