//! What both servers have in common: a place, and a guarded program that is started, stopped and started again in it.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

use super::Home;
use super::guard::{Guarded, Stop};
use super::place::{Cleaner, Place, wait_until};

/// How often a running server is looked after.
const WATCH_PERIOD: Duration = Duration::from_millis(200);

/// Beyond its time to stop, what an earlier server may need to vanish.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    stop: Stop,
    // Before the place: the guard lets go first.
    process: Option<Guarded>,
    place: Place,
}

impl Server {
    pub(super) async fn prepare(name: &'static str, home: &Home, stop: Stop) -> anyhow::Result<Self> {
        Ok(Self { name, stop, process: None, place: Place::prepare(home, name, stop.limit + LEAVE_LIMIT).await? })
    }

    pub(super) fn home(&self) -> &Path {
        self.place.home()
    }

    pub(super) fn runtime(&self) -> &Path {
        self.place.runtime()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    /// Starts a program that stays.
    pub(super) fn launch(&mut self, argv: &[OsString]) -> anyhow::Result<()> {
        let process = self.spawn(argv)?;
        self.process = Some(process);
        Ok(())
    }

    /// Runs a program that ends by itself.
    pub(super) async fn run(&mut self, argv: &[OsString], limit: Duration) -> anyhow::Result<()> {
        let mut process = self.spawn(argv)?;
        process.wait(limit).await?;
        self.place.set_cleaner(Cleaner::Owner);
        let status = process.ended()?.context("it has ended")?;
        ensure!(status.success(), "{status}; {}", self.place.last_words());
        Ok(())
    }

    fn spawn(&mut self, argv: &[OsString]) -> anyhow::Result<Guarded> {
        let runtime = self.place.runtime().to_owned();
        let log = self.place.log_of_new_run()?;
        let process = Guarded::spawn(argv, log, &runtime, self.stop)?;
        self.place.set_cleaner(Cleaner::Guard);
        Ok(process)
    }

    /// Waits until `probe` says yes, and fails as soon as the server has ended.
    pub(super) async fn ready(
        &mut self,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let outcome = wait_until(limit, async || match self.ended()? {
            Some(how) => Err(how),
            None => probe().await,
        })
        .await;
        outcome.with_context(|| format!("{} does not start; {}", self.name, self.place.last_words()))
    }

    /// How the server has ended, if it has.
    fn ended(&mut self) -> anyhow::Result<Option<anyhow::Error>> {
        let Some(process) = &mut self.process else {
            return Ok(Some(anyhow!("{} is not running", self.name)));
        };
        let status = process.ended()?;
        if status.is_some() {
            self.forget();
        }
        Ok(status.map(|status| anyhow!("{} has ended with {status}", self.name)))
    }

    /// Returns when the server has ended, with the reason.
    pub(super) async fn until_it_ends(&mut self) -> anyhow::Error {
        loop {
            match self.ended() {
                Ok(None) => tokio::time::sleep(WATCH_PERIOD).await,
                Ok(Some(how)) => return how.context(self.place.last_words()),
                Err(error) => return error,
            }
        }
    }

    pub(super) async fn halt(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.stop().await.with_context(|| format!("cannot stop {}", self.name))?;
            self.forget();
        }
        Ok(())
    }

    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
            self.forget();
        }
        Ok(())
    }

    pub(super) fn suspend(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Guarded::suspend)
    }

    pub(super) fn resume(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Guarded::resume)
    }

    fn forget(&mut self) {
        self.process = None;
        self.place.set_cleaner(Cleaner::Owner);
    }
}
