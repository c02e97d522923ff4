//! The control API's port: reserved for the life of the stand-in, open, closed or hanging.
//!
//! A bound socket that never listens keeps the port, so that nobody else gets it while the node is away and a
//! connection to it is refused. Closing also cuts connections that a client keeps alive.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const BACKLOG: u32 = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answering {
    Yes,
    Never,
}

pub(super) struct ControlListener {
    address: SocketAddr,
    _reservation: TcpSocket,
    answering: watch::Sender<Answering>,
    open: Mutex<Option<OpenPort>>,
}

struct OpenPort {
    cut: CancellationToken,
    serving: AbortHandle,
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        self.cut.cancel();
        self.serving.abort();
    }
}

impl ControlListener {
    pub fn reserve() -> Self {
        let reservation = bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port is free");
        let address = reservation.local_addr().expect("a bound socket has an address");
        Self {
            address,
            _reservation: reservation,
            answering: watch::Sender::new(Answering::Yes),
            open: Mutex::new(None),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn hung(&self) -> watch::Receiver<Answering> {
        self.answering.subscribe()
    }

    /// Opens the port, if it is closed, and answers.
    pub async fn open(&self, router: Router) {
        self.answering.send_replace(Answering::Yes);
        if self.is_open() {
            return;
        }
        let listener = self.listen().await;
        let cut = CancellationToken::new();
        let listener = CuttableListener { listener, cut: cut.clone() };
        let serving = tokio::spawn(async move {
            // Returns only when its task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        let port = OpenPort { cut, serving: serving.abort_handle() };
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
    }

    pub fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub fn hang(&self) {
        self.answering.send_replace(Answering::Never);
    }

    fn is_open(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The aborted task of the last listener may hold the port a moment longer.
    async fn listen(&self) -> TcpListener {
        let attempts = async {
            loop {
                match bind(self.address).and_then(|socket| socket.listen(BACKLOG)) {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
        };
        tokio::time::timeout(super::WAIT_MAX, attempts).await.expect("the reserved port can be opened again")
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

struct CuttableListener {
    listener: TcpListener,
    cut: CancellationToken,
}

impl Listener for CuttableListener {
    type Io = CuttableStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (CuttableStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let cut = Box::pin(self.cut.clone().cancelled_owned());
                    return (CuttableStream { stream, cut }, address);
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct CuttableStream {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl CuttableStream {
    fn poll_cut(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for CuttableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for CuttableStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
