//! The claim on a data directory: one `onair dev` at a time.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// A data directory that is ours until this is dropped or our process ends.
#[derive(Debug)]
pub struct ClaimedDirectory {
    path: PathBuf,
    lock: File,
}

impl ClaimedDirectory {
    /// Claims a directory, making it (for our eyes only) if it is missing.
    ///
    /// # Errors
    ///
    /// When another process holds it, which the error names, and when it cannot be made or written.
    pub fn claim(directory: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make the data directory {}", directory.display()))?;
        let path = directory
            .canonicalize()
            .with_context(|| format!("cannot enter the data directory {}", directory.display()))?;
        let lock_path = path.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder)?;
                bail!(
                    "{} is in use by another Onair (process {}): stop that one, or choose another data directory",
                    path.display(),
                    holder.trim(),
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path, lock })
    }

    /// The directory, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ClaimedDirectory {
    /// Gives the lock back by word: closing the file is not enough while a child that another thread is starting holds a
    /// copy of it, which it does until it runs its own program.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the data directory stays locked until its file is closed"
            );
        }
    }
}
