//! A private Redis.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::guard::Stop;
use super::place::{arguments, find_program, free_port, random_hex, utf8, write_private};
use super::server::Server;
use super::{Home, Listen};

const STOP: Stop = Stop { signal: Signal::TERM, signal_name: "TERM", limit: Duration::from_secs(10) };

/// Reading back an append-only file of a gigabyte takes about ten seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

const PROBE_LIMIT: Duration = Duration::from_secs(1);

const ANSWER_BYTES_MAX: u64 = 1_000;

const PONG: &[u8] = b"+PONG";

/// What Redis keeps on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Persistence {
    /// An append-only file, synced every second.
    AppendOnly,
    /// Nothing: an empty Redis after every start.
    None,
}

/// How a private Redis is to be.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Where its log, its configuration and its data are.
    pub home: Home,
    /// What survives a restart.
    pub persistence: Persistence,
    /// How it is reached.
    pub listen: Listen,
}

impl RedisOptions {
    /// For a test: leaves nothing behind.
    #[must_use]
    pub fn scratch() -> Self {
        Self { home: Home::Scratch, persistence: Persistence::None, listen: Listen::UnixSocket }
    }

    /// The same, at a loopback port that is free.
    #[must_use]
    pub fn scratch_at_port() -> Self {
        Self { listen: Listen::LoopbackPort(None), ..Self::scratch() }
    }
}

/// What a private Redis is among others.
#[derive(Clone, Debug)]
pub enum RedisRole {
    /// The only one.
    Alone,
    /// One that knows others: a replica, or a part of a cluster.
    Member(Membership),
    /// A sentinel that watches others.
    Sentinel(Membership),
}

/// What those who know one another have in common.
#[derive(Clone)]
pub struct Membership {
    /// Of all of them, instead of one of its own.
    pub password: String,
    /// Further lines of configuration.
    pub settings: String,
    /// The settings of further ports, for each of which one is to be chosen that is free: `cluster-port`, `tls-port`.
    pub further_ports: &'static [&'static str],
}

impl fmt::Debug for Membership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Membership(..)")
    }
}

impl RedisRole {
    fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Alone => None,
            Self::Member(membership) | Self::Sentinel(membership) => Some(membership),
        }
    }

    fn further_ports(&self) -> &'static [&'static str] {
        self.membership().map_or(&[], |group| group.further_ports)
    }
}

/// A running Redis of our own. Dropping it stops it without waiting for that.
#[derive(Debug)]
pub struct PrivateRedis {
    server: Server,
    program: PathBuf,
    persistence: Persistence,
    role: RedisRole,
    address: Address,
}

enum Address {
    Socket(PathBuf),
    Port { port: u16, further_ports: Vec<(&'static str, u16)>, password: String },
}

impl Address {
    fn choose(listen: Listen, role: &RedisRole, server: &Server) -> anyhow::Result<Self> {
        Ok(match listen {
            Listen::UnixSocket => Self::Socket(server.runtime().join("redis.sock")),
            Listen::LoopbackPort(port) => {
                let password = role.membership().map_or_else(random_hex, |group| Ok(group.password.clone()))?;
                let further = role.further_ports().iter().map(|setting| Ok((*setting, free_port()?)));
                let further_ports = further.collect::<anyhow::Result<_>>()?;
                Self::Port { port: port.map_or_else(free_port, Ok)?, further_ports, password }
            }
        })
    }

    /// Whether Redis is there and has read its data.
    async fn answers(&self) -> anyhow::Result<bool> {
        let talk = async {
            match self {
                Self::Socket(path) => ping(UnixStream::connect(path).await?, None).await,
                Self::Port { port, password, .. } => {
                    ping(TcpStream::connect(("127.0.0.1", *port)).await?, Some(password)).await
                }
            }
        };
        // Silence and a refused connection are what a starting server does.
        Ok(matches!(tokio::time::timeout(PROBE_LIMIT, talk).await, Ok(Ok(true))))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.fmt(formatter),
            Self::Port { port, .. } => port.fmt(formatter),
        }
    }
}

/// Says PING, which a Redis that is still loading does not answer with PONG.
async fn ping(mut stream: impl AsyncRead + AsyncWrite + Unpin, password: Option<&str>) -> std::io::Result<bool> {
    let mut question = String::new();
    if let Some(password) = password {
        question = format!("AUTH {password}\r\n");
    }
    question.push_str("PING\r\nQUIT\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    let mut answer = Vec::new();
    let is_pong = |answer: &[u8]| answer.windows(PONG.len()).any(|words| words == PONG);
    // A sentinel does not understand QUIT, so the end is not waited for.
    while !is_pong(&answer) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

impl PrivateRedis {
    /// Starts Redis and waits until it answers.
    ///
    /// # Errors
    ///
    /// When Redis is not installed, its directory is in use, or it does not start; then with its last words.
    pub async fn start(options: RedisOptions) -> anyhow::Result<Self> {
        Self::start_as(RedisRole::Alone, options).await
    }

    /// Starts one of several, which has to have a loopback port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub async fn start_as(role: RedisRole, options: RedisOptions) -> anyhow::Result<Self> {
        let program = find_program("redis-server", "redis-server")?;
        let server = Server::prepare("redis", &options.home, STOP).await?;
        let mut redis = Self {
            address: Address::choose(options.listen, &role, &server)?,
            program,
            persistence: options.persistence,
            role,
            server,
        };
        for _ in 1..options.listen.attempts_max() {
            match redis.launch().await {
                Err(error) if Listen::was_taken(&error) => {
                    redis.address = Address::choose(options.listen, &redis.role, &redis.server)?;
                }
                outcome => return outcome.map(|()| redis),
            }
        }
        redis.launch().await?;
        Ok(redis)
    }

    /// Where it is, for fred. Holds the password of a loopback port.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.address {
            Address::Socket(path) => format!("redis+unix://{}", path.display()),
            Address::Port { port, .. } => self.url_at_port(*port),
        }
    }

    /// The same, at another port of 127.0.0.1: that of a proxy in front of it. Only for a Redis with a loopback port.
    #[must_use]
    pub fn url_at_port(&self, port: u16) -> String {
        match &self.address {
            Address::Socket(_) => self.url(),
            Address::Port { password, .. } => format!("redis://:{password}@127.0.0.1:{port}"),
        }
    }

    /// The loopback port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match &self.address {
            Address::Socket(_) => None,
            Address::Port { port, .. } => Some(*port),
        }
    }

    /// The further port of this setting, where its [`Membership`] asks for one and it has a loopback port.
    #[must_use]
    pub fn further_port(&self, setting: &str) -> Option<u16> {
        self.further_ports().iter().find(|(of, _)| *of == setting).map(|(_, port)| *port)
    }

    fn further_ports(&self) -> &[(&'static str, u16)] {
        match &self.address {
            Address::Socket(_) => &[],
            Address::Port { further_ports, .. } => further_ports,
        }
    }

    /// The process, while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Returns when Redis has ended by itself, with the reason.
    pub async fn until_it_ends(&mut self) -> anyhow::Error {
        self.server.until_it_ends().await
    }

    /// Stops it: what it holds is on disk then, if it persists.
    ///
    /// # Errors
    ///
    /// When even SIGKILL does not end it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.server.halt().await
    }

    /// SIGKILL. It is gone afterwards; [`Self::restart`] brings it back.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill().await
    }

    /// Stops it if it runs, and starts it at the same address.
    ///
    /// # Errors
    ///
    /// As for starting and stopping.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.server.halt().await?;
        self.launch().await
    }

    /// Freezes it: connections stay open, nobody answers.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent.
    pub fn suspend(&self) -> anyhow::Result<()> {
        self.server.suspend()
    }

    /// Ends what [`Self::suspend`] began.
    ///
    /// # Errors
    ///
    /// When the signal cannot be sent.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.resume()
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let configuration_path = self.server.home().join("redis.conf");
        write_private(&configuration_path, &self.configuration()?)?;
        let mut command = arguments([&self.program, &configuration_path]);
        if let RedisRole::Sentinel(_) = self.role {
            command.push("--sentinel".into());
        }
        self.server.launch(&command)?;
        let address = &self.address;
        self.server.ready(START_LIMIT, async || address.answers().await).await
    }

    /// A file, for arguments can be read by every user of the machine, and one of them is the password.
    fn configuration(&self) -> anyhow::Result<String> {
        let listen = match &self.address {
            Address::Socket(path) => {
                format!("port 0\nunixsocket {}\nunixsocketperm 600\n", utf8(path)?)
            }
            Address::Port { port, password, .. } => format!("port {port}\nrequirepass {password}\n"),
        };
        let further_ports: Vec<String> =
            self.further_ports().iter().map(|(setting, port)| format!("{setting} {port}\n")).collect();
        let further_ports = further_ports.concat();
        let append_only = match self.persistence {
            Persistence::AppendOnly => "yes",
            Persistence::None => "no",
        };
        let further = self.role.membership().map_or("", |group| &group.settings);
        let keeping = match self.role {
            RedisRole::Sentinel(_) => String::new(),
            RedisRole::Alone | RedisRole::Member(_) => {
                format!("save \"\"\nappendonly {append_only}\nappendfsync everysec\nmaxmemory-policy noeviction\n")
            }
        };
        Ok(format!(
            "bind 127.0.0.1\nprotected-mode yes\n{listen}\
             dir {}\nlogfile \"\"\ndaemonize no\n{keeping}{further_ports}{further}\n",
            quoted(self.server.home())?,
        ))
    }
}

/// A path as a word of Redis' configuration.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let escaped = utf8(path)?.replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!("\"{escaped}\""))
}
