//! Where a server lives: its home, its log, its private directory for sockets, and how its program is found.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::Home;

const POLL_PERIOD: Duration = Duration::from_millis(10);

/// A log that has grown beyond this is emptied when its server starts.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// How much of the log an error repeats.
const LAST_WORDS_BYTES_MAX: u64 = 2_000;

/// The path of a unix socket has 107 bytes at most; `/onair-<32 digits>/.s.PGSQL.65535` needs 54 of them.
const TEMPORARY_PATH_BYTES_MAX: usize = 50;

/// Where free ports are looked for, and how often.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const PORT_TRIES: usize = 1_000;

const RUNTIME_PREFIX: &str = "onair-";

/// A server's directories and its log.
#[derive(Debug)]
pub(super) struct Place {
    home: PathBuf,
    runtime: Runtime,
    log_path: PathBuf,
    /// Locked, and handed down to the server as its output: the lock is free again when the last process that can write
    /// to this home has ended.
    log: File,
    /// Where this run's lines begin.
    log_start_bytes: u64,
}

impl Place {
    /// Makes the directories and waits, as long as `limit`, for an earlier server in this home to end.
    pub(super) async fn prepare(home: &Home, name: &str, limit: Duration) -> anyhow::Result<Self> {
        let runtime = Runtime::make()?;
        let home = match home {
            Home::Kept(path) => path.clone(),
            Home::Scratch => runtime.path.join("home"),
        };
        let in_home = || format!("cannot use the directory {}", home.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&home).with_context(in_home)?;
        let home = home.canonicalize().with_context(in_home)?;

        let log_path = home.join(format!("{name}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        wait_until(limit, async || match log.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error.into()),
        })
        .await
        .with_context(|| format!("an earlier {name} still runs in {}", home.display()))?;
        link_runtime(&home.join(format!("{name}.run")), &runtime.path)?;
        Ok(Self { home, runtime, log_path, log, log_start_bytes: 0 })
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// The private directory for sockets: its path is short and plain enough for every URL.
    pub(super) fn runtime(&self) -> &Path {
        &self.runtime.path
    }

    /// Says who removes the runtime directory.
    pub(super) fn set_cleaner(&mut self, cleaner: Cleaner) {
        self.runtime.cleaner = cleaner;
    }

    /// The log, ready for the lines of another run.
    pub(super) fn log_of_new_run(&mut self) -> anyhow::Result<&File> {
        let mut bytes = self.log.metadata()?.len();
        if bytes > LOG_BYTES_MAX {
            self.log.set_len(0)?;
            bytes = 0;
        }
        self.log_start_bytes = bytes;
        Ok(&self.log)
    }

    /// The end of what this run has logged, for an error.
    pub(super) fn last_words(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut log = File::open(&self.log_path)?;
            let bytes = log.metadata()?.len();
            let start = self.log_start_bytes.max(bytes.saturating_sub(LAST_WORDS_BYTES_MAX));
            log.seek(SeekFrom::Start(start))?;
            let mut words = Vec::new();
            log.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut words)?;
            Ok(String::from_utf8_lossy(&words).trim().to_owned())
        };
        let words = read().unwrap_or_else(|error| format!("cannot be read: {error}"));
        format!("{}:\n{words}", self.log_path.display())
    }
}

/// Who removes a runtime directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cleaner {
    /// We, when the value is dropped.
    Owner,
    /// The guard of the running server, once that has ended.
    Guard,
}

#[derive(Debug)]
struct Runtime {
    path: PathBuf,
    cleaner: Cleaner,
}

impl Runtime {
    fn make() -> anyhow::Result<Self> {
        let path = temporary_directory().join(format!("{RUNTIME_PREFIX}{}", random_hex()?));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, cleaner: Cleaner::Owner })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.cleaner == Cleaner::Owner {
            // Nobody is left to be told, and the system empties its temporary directory anyway.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The system's temporary directory, or `/tmp` where that one is too long for a socket, would need escapes in a URL
/// (fred undoes none), or may be closed to the user that a root's PostgreSQL runs as.
fn temporary_directory() -> PathBuf {
    let system = std::env::temp_dir();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
    let bytes = system.as_os_str().as_bytes();
    if system.is_absolute()
        && bytes.len() <= TEMPORARY_PATH_BYTES_MAX
        && bytes.iter().all(is_plain)
        && !rustix::process::geteuid().is_root()
    {
        system
    } else {
        PathBuf::from("/tmp")
    }
}

/// Leaves a link to the runtime directory in the home: people find the socket there, and the next start finds what a
/// crash of the whole machine has left behind.
fn link_runtime(link: &Path, runtime: &Path) -> anyhow::Result<()> {
    if let Ok(stale) = std::fs::read_link(link) {
        let is_ours = stale.file_name().is_some_and(|name| name.as_bytes().starts_with(RUNTIME_PREFIX.as_bytes()))
            && stale.parent() == Some(temporary_directory().as_path());
        if is_ours {
            // It has usually gone with its server.
            let _ = std::fs::remove_dir_all(&stale);
        }
        std::fs::remove_file(link)?;
    }
    symlink(runtime, link).with_context(|| format!("cannot make {}", link.display()))
}

/// Looks for a program in `PATH`.
pub(super) fn find_program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    directories_of_path()
        .map(|directory| directory.join(name))
        .find(|program| is_program(program))
        .with_context(|| format!("{name} is not installed: apt-get install {package}"))
}

pub(super) fn directories_of_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|directory| directory.is_absolute()).collect::<Vec<_>>().into_iter()
}

pub(super) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A port that nobody listens on, below those that Linux gives to outgoing connections: one of those might be taken before a
/// server listens on it, or while that server is restarted.
///
/// # Errors
/// Where none is found.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORT_TRIES {
        let port = PORTS.start + u16::try_from(SysRng.try_next_u64()? % u64::try_from(PORTS.len())?)?;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start, PORTS.end)
}

/// 128 random bits of the operating system, as hexadecimal digits.
pub(super) fn random_hex() -> anyhow::Result<String> {
    Ok(format!("{:016x}{:016x}", SysRng.try_next_u64()?, SysRng.try_next_u64()?))
}

/// A file that only its owner reads.
pub(super) fn write_private(path: &Path, content: &str) -> anyhow::Result<()> {
    File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A path as text, for programs that take nothing else.
pub(super) fn utf8(path: &Path) -> anyhow::Result<&str> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    ensure!(!text.chars().any(char::is_control), "{text:?} holds control characters");
    Ok(text)
}

/// Asks again and again, for nothing tells us of the moment; fails after `limit`.
pub(super) async fn wait_until(
    limit: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let asking = async {
        while !condition().await? {
            tokio::time::sleep(POLL_PERIOD).await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(limit, asking).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("not within {} s", limit.as_secs()),
    }
}

/// Arguments of mixed types.
pub(super) fn arguments<const N: usize>(words: [&dyn AsRef<OsStr>; N]) -> Vec<std::ffi::OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}
