//! Private Redis and PostgreSQL: child processes of ours, from the installed programs, for `onair dev` and for every
//! test.
//!
//! Invariants:
//! - Nothing outlives its owner. A server stops when its value is dropped and when our process ends, be it by a panic or
//!   by SIGKILL (`guard.sh`). It has a process group of its own, so that Ctrl-C reaches us alone and we stop things in
//!   order.
//! - One data directory, one server: whoever starts a server waits until the last process that may still write there is
//!   gone, and then nothing of what an earlier run left behind is alive.
//! - Nobody else on this machine gets in: unix sockets lie in a directory that only we can enter, loopback ports ask for
//!   a password that is new with every start.
//! - Every wait has a limit, and an error repeats the server's own last words.
//!
//! A server may be used from several runtimes, one after the other: no wait depends on the runtime that started it, for
//! tests share servers, and each test has a runtime of its own.

mod claim;
mod guard;
mod place;
pub mod postgres;
pub mod redis;
mod server;

pub use claim::ClaimedDirectory;
pub use place::free_port;
pub use postgres::{Durability, PostgresOptions, PrivatePostgres};
pub use redis::{Membership, Persistence, PrivateRedis, RedisOptions, RedisRole};

use std::path::PathBuf;

/// Where a server keeps its data and its log.
#[derive(Clone, Debug)]
pub enum Home {
    /// This directory, made if missing, and still there afterwards.
    Kept(PathBuf),
    /// A new directory under the system's temporary one, which vanishes with the server.
    Scratch,
}

/// How a server is reached.
#[derive(Clone, Copy, Debug)]
pub enum Listen {
    /// A socket in a private directory.
    UnixSocket,
    /// 127.0.0.1 and this port, or one that is free; for a proxy that is put between, for instance.
    LoopbackPort(Option<u16>),
}

impl Listen {
    /// How many ports may be tried.
    fn attempts_max(self) -> usize {
        match self {
            Self::UnixSocket | Self::LoopbackPort(Some(_)) => 1,
            // One that was free a moment ago may be taken when the server opens it.
            Self::LoopbackPort(None) => 5,
        }
    }

    /// Whether a server did not start because somebody else has a port of it.
    fn was_taken(error: &anyhow::Error) -> bool {
        format!("{error:#}").contains("Address already in use")
    }
}
