//! One connection, and whether the other side of it still answers.
//!
//! Role: notices a connection whose other side has vanished without an end (a machine without power, a firewall that
//! forgot it), and has it made anew.
//!
//! fred gives up a connection that has been silent since its last write: on a busy one the last write is always a moment
//! ago, so it would be kept until the kernel gives up, which takes a quarter of an hour. Here the time counts from the
//! first command that has not been answered.

use std::{
    future::Future,
    ops::Deref,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::{Client, WithOptions},
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike as _, EventInterface as _},
    types::{
        ConnectHandle,
        config::{Options, Server as Address},
    },
};
use futures_util::FutureExt as _;
use tokio::{
    sync::broadcast::{Receiver, error::TryRecvError},
    time::Instant,
};

use super::brief;

/// Closed when it is dropped.
pub(super) struct Connection {
    client: WithOptions<Client>,
    /// fred's task, which connects and speaks.
    running: ConnectHandle,
    /// What went wrong with it, as fred tells.
    troubles: Mutex<Troubles>,
    /// How long it may owe an answer.
    silence_max: Duration,
    began: Instant,
    /// Since when an answer is owed, in milliseconds after `began`; 0 where none is.
    owed_since_ms: AtomicU64,
    /// When it gave its last answer, in the same way.
    answered_at_ms: AtomicU64,
    /// Whether the last that was heard of it is a command without an answer.
    is_suspect: AtomicBool,
}

struct Troubles {
    heard: Receiver<(FredError, Option<Address>)>,
    told: Option<String>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Asking it to quit would wait for a server that may be gone.
        self.running.abort();
    }
}

impl Connection {
    /// Begins to connect, and goes on with that whenever the connection breaks.
    pub(super) fn open(client: &Client, options: &Options, silence_max: Duration) -> Self {
        let troubles = Mutex::new(Troubles { heard: client.error_rx(), told: None });
        let running = client.connect();
        let client = client.with_options(options);
        Self {
            client,
            running,
            troubles,
            silence_max,
            began: Instant::now(),
            owed_since_ms: AtomicU64::new(0),
            answered_at_ms: AtomicU64::new(0),
            is_suspect: AtomicBool::new(false),
        }
    }

    /// Says why it is not there, once for each reason.
    pub(super) fn tell_trouble(&self) {
        // Nothing panics while it holds them.
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        loop {
            match troubles.heard.try_recv() {
                Ok((error, _)) => last = Some(brief(&error)),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if self.client.is_connected() {
            troubles.told = None;
        } else if last.is_some() && troubles.told != last {
            tracing::warn!(reason = last.as_deref(), "Redis cannot be connected to");
            troubles.told = last;
        }
    }

    /// Whether it is there and nothing speaks against it.
    pub(super) fn is_promising(&self) -> bool {
        self.client.is_connected() && !self.is_suspect.load(Ordering::Relaxed)
    }

    /// When it gave its last answer, to the millisecond.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        let at_ms = self.answered_at_ms.load(Ordering::Relaxed);
        (at_ms != 0).then(|| self.began + Duration::from_millis(at_ms - 1))
    }

    /// The answer of a command, or `None` where there is none within `limit`.
    pub(super) async fn answer<T>(
        &self,
        limit: Duration,
        command: impl Future<Output = Result<T, FredError>>,
    ) -> Option<Result<T, FredError>> {
        let owed_since_ms = &self.owed_since_ms;
        let _ = owed_since_ms.compare_exchange(0, self.now_ms(), Ordering::Relaxed, Ordering::Relaxed);
        match tokio::time::timeout(limit, command).await {
            Ok(Err(error)) if *error.kind() == ErrorKind::Timeout => {}
            Ok(answer) => {
                owed_since_ms.store(0, Ordering::Relaxed);
                self.is_suspect.store(false, Ordering::Relaxed);
                if answer.as_ref().err().is_none_or(is_of_the_server) {
                    self.answered_at_ms.store(self.now_ms(), Ordering::Relaxed);
                }
                return Some(answer);
            }
            Err(_) => {}
        }
        let since_ms = owed_since_ms.load(Ordering::Relaxed);
        self.is_suspect.store(since_ms != 0, Ordering::Relaxed);
        let silence = Duration::from_millis(self.now_ms().saturating_sub(since_ms));
        if since_ms != 0 && silence >= self.silence_max {
            self.connect_anew();
        }
        None
    }

    fn connect_anew(&self) {
        tracing::debug!("a connection to Redis has fallen silent: connecting anew");
        self.owed_since_ms.store(0, Ordering::Relaxed);
        self.is_suspect.store(false, Ordering::Relaxed);
        // The first poll tells the client; what comes of it shows in the commands that follow.
        let _ = self.client.force_reconnection().now_or_never();
    }

    /// Never 0, which means that nothing is owed.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Whether an error is what the other side said, and not what became of the connection.
fn is_of_the_server(error: &FredError) -> bool {
    !matches!(error.kind(), ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Backpressure | ErrorKind::Routing)
}

impl Deref for Connection {
    type Target = WithOptions<Client>;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}
