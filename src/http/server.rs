//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Invariants:
//! - Every wait is bounded: for the head of a request (which is also how long a connection may idle), for a peer that does
//!   not take its answer or takes it by drops, for open requests at shutdown. The frame bounds the rest.
//! - At most `connections_max` connections are served: see [`Seats`]. Where none of them can make room, a further one is told so
//!   and closed, rather than queued: a node that asks whether to admit is better refused at once than answered too late.
//! - `MediaMTX` opens a new connection for every auth call, so nothing is set up here that one short call does not need.

use std::{cell::Cell, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::Map};

use axum::{Router, response::Response};
use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::Service as HyperService};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    seats::{Seat, Seats},
    settled::settled,
    wire::{Wire, WriteLimits},
};
use crate::{
    lifecycle::{TaskError, Tasks, every, seldom},
    metrics,
};

/// The longest head of a request: line and headers.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// What a connection buffers at most in each direction.
pub(super) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How many of the connections that are too many are still told so; beyond these they are just closed.
const TURNED_AWAY_AT_ONCE_MAX: usize = 128;

/// How many whom the system has let in are still served when the listener closes: more than it lets wait.
const WAITING_MAX: usize = 8_192;

/// How long accepting pauses when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// When it is time to stop, how long a request may still come on a connection that is open.
const LAST_REQUEST_GRACE: Duration = Duration::from_millis(100);

/// How often it is told how many connections are open.
const GAUGE_PERIOD_MS: u64 = 5_000;

/// How a request came.
#[derive(Clone)]
pub struct Arrival {
    /// When its connection was accepted. Only the first request of a connection has it: the others came later.
    pub accepted_at: Option<Instant>,
    /// The seat of its connection, which one that is turned away has not.
    pub seat: Option<Arc<Seat>>,
}

/// What connections are held to.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// How many are served at once.
    pub connections_max: usize,
    /// How long the head of a request may take, counted from the moment the connection is free for one.
    pub head_timeout: Duration,
    /// How a peer has to take its answers.
    pub write: WriteLimits,
}

/// Serves until `tasks` are told to stop; then closes the listener and lets open requests finish.
///
/// # Errors
/// Never: what goes wrong with one connection concerns that connection only.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    tasks: Tasks,
) -> Result<(), TaskError> {
    answer_at_once(&listener);
    let stopping = tasks.stopping();
    let (protocol, mut protocol_once) = (protocol(&limits), protocol(&limits));
    protocol_once.keep_alive(false);
    let server = Server {
        write: limits.write,
        seats: Seats::new(limits.connections_max),
        served: Service { protocol, router },
        turned_away_places: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE_MAX)),
        turned_away: Service { protocol: protocol_once, router: super::overloaded_router() },
    };
    tasks.spawn("http_gauges", tell_connections(Arc::clone(&server.seats), stopping.clone()));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => server.start(stream, &tasks),
            Err(error) => {
                tracing::warn!(cause = %error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    server.start_waiting(listener, &tasks);
    Ok(())
}

/// An answer is one small write: waiting to fill a packet would only delay it. Said to the listener, whose connections inherit
/// it, and not to each of them.
pub(super) fn answer_at_once(listener: &TcpListener) {
    if let Err(error) = rustix::net::sockopt::set_tcp_nodelay(listener, true) {
        tracing::warn!(cause = %error, "answers may be delayed by the system");
    }
}

async fn tell_connections(seats: Arc<Seats>, stopping: CancellationToken) -> Result<(), TaskError> {
    let mut ticker = every(GAUGE_PERIOD_MS, &stopping);
    while ticker.beat().await {
        metrics::connections(seats.taken() as u64, seats.max() as u64);
    }
    Ok(())
}

struct Server {
    write: WriteLimits,
    seats: Arc<Seats>,
    served: Service,
    turned_away_places: Arc<Semaphore>,
    /// For connections beyond the limit: one answer, which says so.
    turned_away: Service,
}

struct Service {
    protocol: http1::Builder,
    router: Router,
}

impl Server {
    /// Whom the system has let in already would be cut off when the listener closes. The system itself is asked, without
    /// waiting: the runtime has not been told of everybody yet.
    fn start_waiting(&self, listener: TcpListener, tasks: &Tasks) {
        let Ok(listener) = listener.into_std() else { return };
        for (stream, _peer) in std::iter::from_fn(|| listener.accept().ok()).take(WAITING_MAX) {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.start(stream, tasks);
            }
        }
    }

    fn start(&self, stream: TcpStream, tasks: &Tasks) {
        if let Some(seat) = self.seats.take() {
            let connection = self.served.connection(stream, self.write, Some(&seat), tasks);
            tasks.spawn_short("http connection", drive_seated(connection, seat, tasks.stopping()));
            return;
        }
        metrics::connection_turned_away();
        if let Ok(place) = Arc::clone(&self.turned_away_places).try_acquire_owned() {
            let connection = self.turned_away.connection(stream, self.write, None, tasks);
            tasks.spawn_short("http connection", drive(connection, Some(place), tasks.stopping()));
        }
    }
}

impl Service {
    fn connection(&self, stream: TcpStream, write: WriteLimits, seat: Option<&Arc<Seat>>, tasks: &Tasks) -> Connection {
        let wire = Wire::new(stream, write, seat.cloned());
        let requests = Requests::of(self.router.clone(), seat.cloned(), tasks.clone());
        Box::pin(self.protocol.serve_connection(TokioIo::new(wire), requests))
    }
}

/// The requests of one connection, on their way to the router.
struct Requests {
    router: TowerToHyperService<Router>,
    accepted_at: Cell<Option<Instant>>,
    seat: Option<Arc<Seat>>,
    tasks: Tasks,
}

type Routed = TowerToHyperService<Router>;
type Routing = <Routed as HyperService<Request<Incoming>>>::Future;
type Answered = Result<Response, <Routed as HyperService<Request<Incoming>>>::Error>;

impl Requests {
    fn of(router: Router, seat: Option<Arc<Seat>>, tasks: Tasks) -> Self {
        let accepted_at = Cell::new(Some(Instant::now()));
        Self { router: TowerToHyperService::new(router), accepted_at, seat, tasks }
    }
}

impl HyperService<Request<Incoming>> for Requests {
    type Response = <Routed as HyperService<Request<Incoming>>>::Response;
    type Error = <Routed as HyperService<Request<Incoming>>>::Error;
    type Future = Map<Routing, Box<dyn FnOnce(Answered) -> Answered + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let seat = self.seat.clone();
        request.extensions_mut().insert(Arrival { accepted_at: self.accepted_at.take(), seat: seat.clone() });
        if let Some(seat) = &seat {
            seat.begin();
        }
        let routing = self.router.call(request);
        let tasks = self.tasks.clone();
        routing.map(Box::new(move |answered| {
            // A client that keeps connections then sends its next request to another replica, instead of at the very moment in
            // which this one goes.
            let answered =
                answered.map(|response| if tasks.is_draining() { last_on_its_connection(response) } else { response });
            if let Some(seat) = &seat {
                seat.answer();
                if answered.as_ref().is_ok_and(|response| response.headers().contains_key(header::CONNECTION)) {
                    seat.end();
                }
            }
            answered
        }))
    }
}

/// Has the connection closed after this answer.
pub(super) fn last_on_its_connection(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// In a place of its own: every future around it would hold it twice, before and after it was moved, and the task be several
/// times as large.
type Connection = Pin<Box<http1::Connection<TokioIo<Wire<TcpStream>>, Requests>>>;

/// Serves a connection until it ends or its seat is given to another.
async fn drive_seated(connection: Connection, seat: Arc<Seat>, stopping: CancellationToken) {
    settled(async {
        tokio::select! {
            () = drive(connection, None, stopping) => {}
            () = seat.given_away() => {}
        }
    })
    .await;
}

async fn drive(mut connection: Connection, _place: Option<OwnedSemaphorePermit>, stopping: CancellationToken) {
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        // What is on its way is answered, and that is the last on its connection.
        () = seldom(stopping.cancelled().then(|()| tokio::time::sleep(LAST_REQUEST_GRACE))) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // The peer's doing in every case: it went away, was too slow, or spoke something else. hyper's words hold no bytes
        // of the request.
        tracing::debug!(cause = %error, "a connection broke off");
    }
}

fn protocol(limits: &ConnectionLimits) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    protocol
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::routing::post;
    use tokio::io::AsyncWriteExt as _;

    use super::{super::settled::tests::Task, *};

    /// How often the task of a connection is called while it is polled for the first time, which takes a body to its handler.
    async fn calls_meanwhile<F: Future>(drive: impl FnOnce(Connection, Arc<Seat>, CancellationToken) -> F) -> usize {
        let was_read = Arc::new(AtomicUsize::new(0));
        let is_read = Arc::clone(&was_read);
        let reads = |body: String| async move {
            is_read.store(body.len(), Ordering::Relaxed);
            pending::<()>().await;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: onair\r\ncontent-length: 4\r\n\r\nsaid").await.unwrap();
        let (stream, _peer) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        let limit = Duration::from_secs(60);
        let write = WriteLimits { nothing_max: limit, whole_max: limit };
        let limits = ConnectionLimits { connections_max: 1, head_timeout: limit, write };
        let service = Service { protocol: protocol(&limits), router: Router::new().route("/", post(reads)) };
        let (tasks, seat) = (Tasks::new(), Seats::new(1).take().unwrap());
        let connection = service.connection(stream, write, Some(&seat), &tasks);
        let calls = Arc::new(Task::default()).poll(pin!(drive(connection, seat, tasks.stopping())));
        assert_eq!(was_read.load(Ordering::Relaxed), 4, "the handler has the body");
        calls
    }

    #[tokio::test]
    async fn a_body_that_is_taken_to_its_handler_does_not_have_the_connection_queue_behind_others() {
        assert_eq!(calls_meanwhile(drive_seated).await, 0);
        // What that is for. Where this fails, hyper does it no more, and `settled.rs` can go.
        assert_eq!(calls_meanwhile(|connection, _seat, stopping| drive(connection, None, stopping)).await, 1);
    }
}
