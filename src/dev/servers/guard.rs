//! A program that cannot outlive us, and the signals that tests send it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::place::wait_until;

const GUARD: &str = include_str!("guard.sh");

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a kind of server is asked to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    pub(super) signal: Signal,
    /// What `kill` calls the signal.
    pub(super) signal_name: &'static str,
    /// When it has not ended after this time, it is killed.
    pub(super) limit: Duration,
}

/// A program under guard. Dropping it has the guard stop the program and remove the directory.
#[derive(Debug)]
pub(super) struct Guarded {
    // Not tokio's: that one waits through the runtime it was started in, which the server may outlive.
    child: Child,
    pid: Pid,
    stop: Stop,
}

impl Guarded {
    /// Starts `argv`, whose output goes to `log`. `directory` is removed when we are gone.
    pub(super) fn spawn(argv: &[OsString], log: &File, directory: &Path, stop: Stop) -> anyhow::Result<Self> {
        let tenths = stop.limit.as_millis() / 100;
        let child = Command::new("sh")
            .args(["-c", GUARD, "guard", stop.signal_name])
            .arg(tenths.to_string())
            .arg(directory)
            .args(argv)
            // The servers need nothing of our environment, and it may hold secrets.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let pid = Pid::from_child(&child);
        Ok(Self { child, pid, stop })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once the program has ended. From then on the guard does nothing any more.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some()
            && let Some(mut pipe) = self.child.stdin.take()
        {
            // A guard that was killed reads nothing, and then there is nothing to tell.
            let _ = pipe.write_all(b"\n");
        }
        Ok(status)
    }

    /// Asks the program to stop and kills it if it does not.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        self.resume()?;
        kill_process(self.pid, self.stop.signal)?;
        if self.wait(self.stop.limit).await.is_ok() {
            return Ok(());
        }
        self.kill().await
    }

    /// Kills the program and its children, as a power cut would, and waits until they are gone.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let children = children(self.pid)?;
        kill_process(self.pid, Signal::KILL)?;
        for child in &children {
            // Those that went with their parent are what we want.
            let _ = kill_process(*child, Signal::KILL);
        }
        self.wait(KILL_LIMIT).await?;
        wait_until(KILL_LIMIT, async || Ok(children.iter().all(|child| !is_alive(*child))))
            .await
            .context("children of a killed server stay")
    }

    /// Freezes the program and its children: connections stay open and nobody answers.
    pub(super) fn suspend(&self) -> anyhow::Result<()> {
        // The parent first: it starts no more children then.
        kill_process(self.pid, Signal::STOP)?;
        for child in children(self.pid)? {
            let _ = kill_process(child, Signal::STOP);
        }
        Ok(())
    }

    pub(super) fn resume(&self) -> anyhow::Result<()> {
        for child in children(self.pid)? {
            let _ = kill_process(child, Signal::CONT);
        }
        kill_process(self.pid, Signal::CONT)?;
        Ok(())
    }

    /// Waits until the program has ended.
    pub(super) async fn wait(&mut self, limit: Duration) -> anyhow::Result<()> {
        wait_until(limit, async || Ok(self.ended()?.is_some())).await
    }
}

/// The children of a process; PostgreSQL's leave its process group, so that a signal to the group misses them.
fn children(parent: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("this needs Linux's /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some((_, parent_pid)) = state_and_parent(pid)
            && parent_pid == parent.as_raw_nonzero().get()
        {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
        && state_and_parent(pid.as_raw_nonzero().get()).is_some_and(|(state, _)| state != "Z")
}

/// The third and fourth field of `/proc/PID/stat`. The second is a name in brackets that may hold spaces.
fn state_and_parent(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
