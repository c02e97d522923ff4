//! A private PostgreSQL.
//!
//! Its data directory belongs to whoever runs it, and it refuses to be run by root. Root therefore lends it to another
//! user and hands it over as an open file: below a directory of root's own, that user could not reach it by its path.

use std::ffi::OsString;
use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Signal, geteuid};
use tokio::io::AsyncWriteExt as _;

use super::guard::Stop;
use super::place::{arguments, directories_of_path, find_program, free_port, is_program, random_hex, utf8};
use super::server::Server;
use super::{Home, Listen};

const STOP: Stop = Stop {
    // A "fast" shutdown: clients are sent away. SIGTERM would wait for them.
    signal: Signal::INT,
    signal_name: "INT",
    limit: Duration::from_secs(20),
};

/// About a second on an idle machine.
const INIT_LIMIT: Duration = Duration::from_secs(120);

/// Recovery after a crash reads the log since the last checkpoint.
const START_LIMIT: Duration = Duration::from_secs(60);

const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

/// Of the superuser and of the first database.
const NAME: &str = "onair";

/// Names the unix socket too, which exists in any case.
const DEFAULT_PORT: u16 = 5432;

/// For many replicas and tests at once; a connection that nobody uses costs next to nothing.
const CONNECTIONS_MAX: &str = "max_connections=200";

/// What may be lost when the machine goes down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// Nothing that was committed.
    Durable,
    /// Everything: for tests.
    Fast,
}

/// How a private PostgreSQL is to be.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where its log and its data are.
    pub home: Home,
    /// What survives a power cut. Both survive a restart.
    pub durability: Durability,
    /// How it is reached.
    pub listen: Listen,
}

impl PostgresOptions {
    /// For a test: leaves nothing behind.
    #[must_use]
    pub fn scratch() -> Self {
        Self { home: Home::Scratch, durability: Durability::Fast, listen: Listen::UnixSocket }
    }
}

/// A running PostgreSQL of our own, with a superuser and a database called `onair`. Dropping it stops it without
/// waiting for that.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Server,
    programs: Programs,
    account: Option<Account>,
    durability: Durability,
    address: Address,
}

struct Address {
    port: u16,
    /// Of a loopback port. The unix socket asks for none: its directory is private.
    password: Option<String>,
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(formatter)
    }
}

impl Address {
    fn choose(listen: Listen) -> anyhow::Result<Self> {
        Ok(match listen {
            Listen::UnixSocket => Self { port: DEFAULT_PORT, password: None },
            Listen::LoopbackPort(port) => {
                Self { port: port.map_or_else(free_port, Ok)?, password: Some(random_hex()?) }
            }
        })
    }
}

impl PrivatePostgres {
    /// Makes the database cluster if there is none, starts PostgreSQL and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it is not installed, its directory is in use or somebody else's, or it does not start; then with its last
    /// words.
    pub async fn start(options: PostgresOptions) -> anyhow::Result<Self> {
        let server = Server::prepare("postgres", &options.home, STOP).await?;
        let data = server.home().join("data");
        let mut postgres = Self {
            programs: Programs::find(&data)?,
            account: Account::lent(&data)?,
            durability: options.durability,
            address: Address::choose(options.listen)?,
            server,
        };
        if let Some(account) = &postgres.account {
            account.give(postgres.server.runtime())?;
        }
        if !data.exists() {
            postgres.init(&data).await.context("initdb has failed")?;
        }
        for _ in 1..options.listen.attempts_max() {
            match postgres.launch().await {
                Err(error) if Listen::was_taken(&error) => {
                    postgres.address = Address::choose(options.listen)?;
                }
                outcome => return outcome.map(|()| postgres),
            }
        }
        postgres.launch().await?;
        Ok(postgres)
    }

    /// Where the database `onair` is, for sqlx. Holds the password of a loopback port.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(NAME, self.address.port)
    }

    /// The same, at another port of 127.0.0.1: that of a proxy in front of it. Only for one with a loopback port.
    #[must_use]
    pub fn url_at_port(&self, port: u16) -> String {
        self.url_of(NAME, port)
    }

    /// The loopback port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.address.password.as_ref().map(|_| self.address.port)
    }

    /// The process, while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Makes a database if there is none of that name, and tells its URL.
    ///
    /// # Errors
    ///
    /// When PostgreSQL refuses.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        let name_is_plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        ensure!(
            name_is_plain && (1..=63).contains(&name.len()),
            "{name:?} is no database name: a-z, 0-9 and _, at most 63"
        );
        self.execute(&format!(
            "SELECT 'CREATE DATABASE \"{name}\"' \
             WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec\n"
        ))
        .await
        .with_context(|| format!("cannot make the database {name}"))?;
        Ok(self.url_of(name, self.address.port))
    }

    /// Returns when PostgreSQL has ended by itself, with the reason.
    pub async fn until_it_ends(&mut self) -> anyhow::Error {
        self.server.until_it_ends().await
    }

    /// Sends its clients away and stops it.
    ///
    /// # Errors
    ///
    /// When even SIGKILL does not end it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.server.halt().await
    }

    /// SIGKILL, to all its processes. They are gone afterwards; [`Self::restart`] brings them back.
    ///
    /// # Errors
    ///
    /// When they do not end.
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

    /// Freezes it, with the backends that serve its clients: connections stay open, nobody answers.
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

    fn url_of(&self, database: &str, port: u16) -> String {
        match &self.address.password {
            Some(password) => format!("postgres://{NAME}:{password}@127.0.0.1:{port}/{database}"),
            None => format!("postgres://{NAME}@localhost:{port}/{database}?host={}", self.server.runtime().display()),
        }
    }

    /// All or nothing: an initdb that was cut short leaves a directory that PostgreSQL would not start from.
    async fn init(&mut self, data: &Path) -> anyhow::Result<()> {
        let unfinished = data.with_extension("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        DirBuilder::new().mode(0o700).create(&unfinished)?;
        if let Some(account) = &self.account {
            account.give(&unfinished)?;
        }
        let mut argv = self.command("initdb", &unfinished);
        argv.extend(arguments([
            &"--username=onair",
            &"--encoding=UTF8",
            &"--locale=C",
            &"--auth-local=trust",
            &"--auth-host=scram-sha-256",
        ]));
        if self.durability == Durability::Fast {
            argv.push("--no-sync".into());
        }
        self.server.run(&argv, INIT_LIMIT).await?;
        std::fs::rename(&unfinished, data)?;
        Ok(())
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let data = self.server.home().join("data");
        let status_path = data.join("postmaster.pid");
        if status_path.exists() {
            // Nobody runs here, or we would not have this home; the number in it may be that of another process by now.
            std::fs::remove_file(&status_path)?;
        }
        let argv = self.server_command(&data)?;
        self.server.launch(&argv)?;
        self.server.ready(START_LIMIT, async || Ok(is_ready(&status_path))).await?;
        self.create_database(NAME).await?;
        if let Some(password) = &self.address.password {
            self.execute(&format!("ALTER ROLE {NAME} PASSWORD '{password}';\n"))
                .await
                .context("cannot set the password")?;
        }
        Ok(())
    }

    fn server_command(&self, data: &Path) -> anyhow::Result<Vec<OsString>> {
        let mut argv = self.command("postgres", data);
        let listen_address = match self.address.password {
            Some(_) => "127.0.0.1",
            None => "",
        };
        let mut settings = vec![
            format!("port={}", self.address.port),
            format!("listen_addresses={listen_address}"),
            format!("unix_socket_directories={}", utf8(self.server.runtime())?),
            "unix_socket_permissions=0700".to_owned(),
            CONNECTIONS_MAX.to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        if self.durability == Durability::Fast {
            settings.extend(
                [
                    "fsync=off",
                    "synchronous_commit=off",
                    "full_page_writes=off",
                    // In its own directory, for a killed server leaves files in /dev/shm.
                    "dynamic_shared_memory_type=mmap",
                ]
                .map(str::to_owned),
            );
        }
        for setting in settings {
            argv.extend(arguments([&"-c", &setting]));
        }
        Ok(argv)
    }

    /// One of the programs on a data directory, by the user who owns that.
    fn command(&self, program: &str, data: &Path) -> Vec<OsString> {
        let program = self.programs.directory.join(program);
        match &self.account {
            None => arguments([&program, &"-D", &data]),
            Some(account) => {
                let mut argv = arguments([&"sh", &"-c", &"exec 9<\"$1\"; shift; exec \"$@\"", &"sh", &data]);
                argv.extend(account.switch());
                argv.extend(arguments([&program, &"-D", &"/proc/self/fd/9"]));
                argv
            }
        }
    }

    /// Has psql say something over the unix socket.
    async fn execute(&self, statements: &str) -> anyhow::Result<()> {
        let mut child = tokio::process::Command::new(&self.programs.psql)
            .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"])
            .args(["--username", NAME, "--dbname=postgres", "--host"])
            .arg(self.server.runtime())
            .arg(format!("--port={}", self.address.port))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start psql")?;
        let mut stdin = child.stdin.take().context("it has a pipe")?;
        let talk = async {
            stdin.write_all(statements.as_bytes()).await?;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(STATEMENT_LIMIT, talk).await.context("psql takes too long")??;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

/// What `pg_ctl` goes by: the eighth line of `postmaster.pid`.
fn is_ready(status_path: &Path) -> bool {
    std::fs::read_to_string(status_path)
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}

/// Where PostgreSQL's programs are.
#[derive(Debug)]
struct Programs {
    directory: PathBuf,
    psql: PathBuf,
}

impl Programs {
    /// Those of the version that wrote the data, or else the first in `PATH`, or else the newest that Debian knows.
    fn find(data: &Path) -> anyhow::Result<Self> {
        let is_complete =
            |directory: &PathBuf| ["initdb", "postgres"].iter().all(|program| is_program(&directory.join(program)));
        let debian = Path::new("/usr/lib/postgresql");
        let written_by = std::fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
        let mut versions: Vec<u32> = std::fs::read_dir(debian)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort_unstable_by(|left, right| right.cmp(left));
        let same_version = written_by.trim().parse().ok();
        let directory = same_version
            .map(|version: u32| debian.join(version.to_string()).join("bin"))
            .into_iter()
            .chain(directories_of_path())
            .chain(versions.iter().map(|version| debian.join(version.to_string()).join("bin")))
            .find(is_complete)
            .context("PostgreSQL is not installed: apt-get install postgresql")?;
        // A link in PATH leads to the directory where psql is, too.
        let directory = directory.join("postgres").canonicalize()?.parent().map_or(directory, Path::to_owned);
        let beside = directory.join("psql");
        let psql = if is_program(&beside) { beside } else { find_program("psql", "postgresql-client")? };
        Ok(Self { directory, psql })
    }
}

/// The user who runs PostgreSQL in root's place.
#[derive(Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// None when we are not root. The owner of existing data stays the owner.
    fn lent(data: &Path) -> anyhow::Result<Option<Self>> {
        let owner = data.metadata().ok().map(|metadata| Self { uid: metadata.uid(), gid: metadata.gid() });
        let ourselves = geteuid();
        if !ourselves.is_root() {
            ensure!(
                owner.is_none_or(|owner| owner.uid == ourselves.as_raw()),
                "{} belongs to another user: become that one, or choose another data directory",
                data.display()
            );
            return Ok(None);
        }
        if let Some(owner) = owner
            && owner.uid != 0
        {
            return Ok(Some(owner));
        }
        let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| Self::named(name, &users))
            .map(Some)
            .context("PostgreSQL does not run as root, and there is no user postgres or nobody to run it")
    }

    fn named(name: &str, users: &str) -> Option<Self> {
        let mut fields = users
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
        Some(Self { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} to user {}", path.display(), self.uid))
    }

    /// The words that run a program as this user.
    fn switch(&self) -> Vec<OsString> {
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        arguments([&"setpriv", &"--reuid", &uid, &"--regid", &gid, &"--clear-groups", &"--"])
    }
}
