//! A TCP proxy in front of a real store that does what networks and machines do: cut, slow down, hang, forget connections.
//!
//! A connection that was cut or forgotten stays so, whatever the line does afterwards: only a new one is better off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

const CHUNK_BYTES: usize = 16 * 1024;

/// What the line does with everything that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Each chunk waits so long before it is passed on, in both directions.
    Slow(Duration),
    /// Nothing is passed on, and nothing is lost: it comes when this is over, as from a process that was frozen.
    Hanging,
    /// Everything is swallowed, also what is said by whoever connects now.
    BlackHole,
    /// Whoever connects is sent away.
    Cut,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    fault: Fault,
    /// The port of the store.
    leads_to: u16,
    /// How often everybody was cut off, and how often everybody was forgotten.
    cuts: u64,
    losses: u64,
}

/// The proxy. It and its connections end when it is dropped.
pub struct FaultProxy {
    port: u16,
    line: watch::Sender<Line>,
    opened: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl FaultProxy {
    /// In front of a port of 127.0.0.1.
    pub async fn before(store_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let line = watch::Sender::new(Line { fault: Fault::None, leads_to: store_port, cuts: 0, losses: 0 });
        let opened = Arc::<AtomicU64>::default();
        let accepting = tokio::spawn(accept(listener, line.subscribe(), Arc::clone(&opened))).abort_handle();
        Self { port, line, opened, accepting }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has accepted.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// All is well again, for those who connect, and for those who were only slowed down or kept waiting.
    pub fn heal(&self) {
        self.set(|line| line.fault = Fault::None);
    }

    /// Ends every connection, and sends away whoever comes.
    pub fn cut(&self) {
        self.set(|line| {
            line.fault = Fault::Cut;
            line.cuts += 1;
        });
    }

    /// Ends every connection; new ones are served.
    pub fn cut_once(&self) {
        self.set(|line| line.cuts += 1);
    }

    /// Holds back each chunk for so long, in each direction.
    pub fn slow(&self, delay: Duration) {
        self.set(|line| line.fault = Fault::Slow(delay));
    }

    /// Keeps everybody waiting, without an end and without a loss.
    pub fn hang(&self) {
        self.set(|line| line.fault = Fault::Hanging);
    }

    /// Swallows everything: no answer, no reset, no end, for those who are connected and those who connect.
    pub fn black_hole(&self) {
        self.set(|line| {
            line.fault = Fault::BlackHole;
            line.losses += 1;
        });
    }

    /// Forgets the connections that are open, as a firewall or a machine that lost its power does: their owner hears nothing
    /// ever again, not even an end. New ones are served.
    pub fn half_open(&self) {
        self.set(|line| line.losses += 1);
    }

    /// Whoever connects from now on gets to another port, as after a change of DNS or of a virtual address. Connections that
    /// are open stay where they are.
    pub fn lead_to(&self, store_port: u16) {
        self.set(|line| line.leads_to = store_port);
    }

    fn set(&self, change: impl FnOnce(&mut Line)) {
        self.line.send_modify(change);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, line: watch::Receiver<Line>, opened: Arc<AtomicU64>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        opened.fetch_add(1, Ordering::Relaxed);
        let now = *line.borrow();
        if now.fault != Fault::Cut {
            tokio::spawn(serve(client, line.clone(), now));
        }
    }
}

/// One connection, until one side ends it, it is cut, or the proxy goes away.
async fn serve(client: TcpStream, mut line: watch::Receiver<Line>, began: Line) {
    let Ok(store) = TcpStream::connect(("127.0.0.1", began.leads_to)).await else { return };
    let _ = (client.set_nodelay(true), store.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_store, to_store) = store.into_split();
    // A black hole that was there before has swallowed this one as well.
    let losses = if began.fault == Fault::BlackHole { began.losses - 1 } else { began.losses };
    let asked = pass(from_client, to_store, line.clone(), losses);
    let answered = pass(from_store, to_client, line.clone(), losses);
    let cut = async {
        let _ = line.wait_for(|now| now.cuts != began.cuts).await;
    };
    tokio::select! {
        () = async { tokio::join!(asked, answered); } => {}
        () = cut => {}
    }
}

/// Passes on what comes in one direction, as the line lets it.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<Line>, losses: u64) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk).await.unwrap_or(0);
        let fault = line.borrow().fault;
        if let Fault::Slow(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        let Ok(now) = line.wait_for(|now| now.fault != Fault::Hanging || now.losses != losses).await.map(|now| *now)
        else {
            return;
        };
        match (now.losses == losses, count) {
            // It hears nothing more, and its own end is not heard either.
            (false, 0) => std::future::pending().await,
            (false, _) => {}
            (true, 0) => {
                let _ = to.shutdown().await;
                return;
            }
            (true, count) => {
                if to.write_all(&chunk[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
