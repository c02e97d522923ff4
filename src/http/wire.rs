//! The connection below HTTP: slow readers are cut off, the answers that hyper gives by itself become problems, and a
//! connection's last answer takes the connection's end along.
//!
//! hyper answers a request that it cannot parse with a bare status and closes; no service sees it, and there is no hook.
//! Such an answer is recognised as it is written, because nothing else here ever answers with an empty body and one of
//! these statuses.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{code::Code, frame::RequestId, problem::Problem, seats::Seat};

/// How a peer has to take its answers.
#[derive(Debug, Clone, Copy)]
pub struct WriteLimits {
    /// How long it may take nothing.
    pub nothing_max: Duration,
    /// How long it may take for a whole answer that does not fit into the buffers between us.
    pub whole_max: Duration,
}

/// A connection as described in the module.
pub struct Wire<T> {
    stream: T,
    limits: WriteLimits,
    /// Is told when everything was written.
    seat: Option<Arc<Seat>>,
    /// Runs while the peer takes nothing of what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Since when something has been waiting to be written.
    waiting_since: Option<Instant>,
    replacement: Option<Replacement>,
    /// Whether what is written waits for the connection's end.
    is_held_back: bool,
}

/// A stream that can hold back what is written until its end.
///
/// For the last answer: it and the end of the connection then leave in one packet, and the peer is woken once. `MediaMTX` makes a
/// connection for each call, so that this counts: see `docs/performance.md`.
pub trait HoldBack {
    /// Begins with that. Whether it does.
    fn hold_back(&self) -> bool;
}

impl HoldBack for TcpStream {
    fn hold_back(&self) -> bool {
        rustix::net::sockopt::set_tcp_cork(self, true).is_ok()
    }
}

/// A problem that is written instead of a bare answer.
struct Replacement {
    bytes: Vec<u8>,
    written: usize,
    /// The length of the bare answer, which hyper wants to hear as written.
    stands_for: usize,
}

impl<T> Wire<T> {
    /// Wraps a connection.
    pub fn new(stream: T, limits: WriteLimits, seat: Option<Arc<Seat>>) -> Self {
        Self { stream, limits, seat, stalled: None, waiting_since: None, replacement: None, is_held_back: false }
    }

    /// Passes an outcome on, unless the peer has been stalling for too long.
    fn unless_stalled<R>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let now = Instant::now();
        let whole_deadline = *self.waiting_since.get_or_insert(now) + self.limits.whole_max;
        let deadline = whole_deadline.min(now + self.limits.nothing_max);
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: HoldBack> Wire<T> {
    fn hold_back_the_last(&mut self) {
        if !self.is_held_back && self.seat.as_ref().is_some_and(|seat| seat.is_ending()) {
            self.is_held_back = self.stream.hold_back();
        }
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(replacement) = &mut self.replacement {
            let rest = &replacement.bytes[replacement.written..];
            if rest.is_empty() {
                let stands_for = replacement.stands_for;
                self.replacement = None;
                return Poll::Ready(Ok(stands_for));
            }
            let outcome = Pin::new(&mut self.stream).poll_write(context, rest);
            match ready!(self.unless_stalled(context, outcome))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.replacement.iter_mut().for_each(|replacement| replacement.written += written),
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + HoldBack + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.hold_back_the_last();
        if self.replacement.is_none() {
            self.replacement = replacement(bytes);
        }
        if self.replacement.is_some() {
            return self.poll_replacement(context);
        }
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_stalled(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        if let Some(bytes) = first
            && (self.replacement.is_some() || bare_status(bytes).is_some())
        {
            return self.poll_write(context, bytes);
        }
        self.hold_back_the_last();
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.unless_stalled(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = outcome {
            self.waiting_since = None;
            self.seat.iter().for_each(|seat| seat.flushed());
        }
        self.unless_stalled(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sends what was held back, and the end in the same packet. Closing alone would not do: where the peer sent more than was
        // read, the system throws away what has not left.
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.unless_stalled(context, outcome)
    }
}

fn replacement(bytes: &[u8]) -> Option<Replacement> {
    let code = match bare_status(bytes)? {
        StatusCode::URI_TOO_LONG => Code::UriTooLong,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Code::HeadersTooLarge,
        _ => Code::RequestMalformed,
    };
    let id = RequestId::made_here();
    let body = Problem::of(code).to_json(id.as_str());
    let status = code.status();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncache-control: no-store\r\nx-request-id: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        super::problem::MEDIA_TYPE,
        id.as_str(),
        body.len(),
    );
    Some(Replacement { bytes: [head.into_bytes(), body].concat(), written: 0, stands_for: bytes.len() })
}

/// The status, where these bytes are one answer of hyper's own.
fn bare_status(bytes: &[u8]) -> Option<StatusCode> {
    const LONGEST: usize = 256;
    let status = StatusCode::from_bytes(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
    let is_one_of_them = matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    if !is_one_of_them || bytes.len() > LONGEST || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0")).then_some(status)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{super::seats::Seats, *};

    impl HoldBack for tokio::io::DuplexStream {
        fn hold_back(&self) -> bool {
            false
        }
    }

    const LIMITS: WriteLimits =
        WriteLimits { nothing_max: Duration::from_secs(10), whole_max: Duration::from_secs(60) };

    #[tokio::test]
    async fn a_bare_answer_is_written_as_a_problem_and_others_are_not_touched() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let ours = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}";
        // So small that the answer is written in many parts.
        let (near, mut far) = tokio::io::duplex(7);
        let mut wire = Wire::new(near, LIMITS, None);
        let writing = async {
            wire.write_all(ours).await.unwrap();
            wire.write_all(bare).await.unwrap();
            drop(wire);
        };
        let mut text = String::new();
        let ((), read) = tokio::join!(writing, far.read_to_string(&mut text));
        read.unwrap();
        let (first, second) = text.split_at(ours.len());
        assert_eq!(first.as_bytes(), ours);
        assert!(second.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{second}");
        assert!(second.contains("\"code\":\"headers_too_large\""), "{second}");
    }

    /// Whether the last answer is kept until the connection ends, and then comes whole.
    async fn is_last_answer_held_back() -> bool {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        super::super::server::answer_at_once(&listener);
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let seat = Seats::new(1).take().unwrap();
        let mut wire = Wire::new(listener.accept().await.unwrap().0, LIMITS, Some(Arc::clone(&seat)));
        wire.write_all(b"first ").await.unwrap();
        seat.end();
        wire.write_all(b"last").await.unwrap();
        wire.flush().await.unwrap();
        let mut waiting = [0; 16];
        let is_held_back = peer.peek(&mut waiting).unwrap() == b"first ".len();
        wire.shutdown().await.unwrap();
        drop(wire);
        let mut text = String::new();
        io::Read::read_to_string(&mut peer, &mut text).unwrap();
        assert_eq!(text, "first last");
        is_held_back
    }

    #[tokio::test]
    async fn the_last_answer_leaves_with_the_end_of_its_connection() {
        for _ in 0..5 {
            // The system holds it back for 200 ms at most, which a busy machine may take to look.
            if is_last_answer_held_back().await {
                return;
            }
        }
        panic!("it left before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut_off() {
        let (near, _far) = tokio::io::duplex(4);
        let mut wire = Wire::new(near, LIMITS, None);
        let error = wire.write_all(b"more than four bytes").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_its_answer_by_drops_is_cut_off() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut wire = Wire::new(near, LIMITS, None);
        let began = Instant::now();
        let writing = async {
            let error = wire.write_all(&[b'x'; 1_000]).await.unwrap_err();
            drop(wire);
            error
        };
        let dripping = async {
            while far.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (error, ()) = tokio::join!(writing, dripping);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((60..80).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}
