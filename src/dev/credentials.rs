//! The secrets of `onair dev`: made once, kept in its data directory, read by the commands that talk to it.
//!
//! Invariant: the file has mode 600 from its first byte on, and one that others can read is refused.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rand::{TryRng as _, rngs::SysRng};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::{ConfigSecret, read_secret_file};

const FILE_NAME: &str = "credentials.json";

/// What the commands that talk to a running `onair dev` need.
#[derive(Clone, Debug, PartialEq)]
pub struct DevCredentials {
    /// Where it is reached.
    pub api_url: Url,
    /// What its API asks for.
    pub api_secret: ConfigSecret,
    /// What its nodes' passwords are derived from.
    pub node_secret: ConfigSecret,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    api_url: Url,
    api_secret: String,
    node_secret: String,
}

impl DevCredentials {
    /// New secrets.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn generate(api_url: Url) -> anyhow::Result<Self> {
        Ok(Self { api_url, api_secret: random_secret()?, node_secret: random_secret()? })
    }

    /// Those of a data directory; `None` where there are none yet.
    ///
    /// # Errors
    /// Where the file can be read by others, or is not one of ours.
    pub fn read(data_directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(data_directory);
        if path.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let text = read_secret_file(&path)?;
        // Not the parser's own words: they might repeat a secret.
        let stored: Stored =
            serde_json::from_str(&text).map_err(|_| anyhow::anyhow!("{} is not of our making", path.display()))?;
        Ok(Some(Self {
            api_url: stored.api_url,
            api_secret: ConfigSecret::new(stored.api_secret),
            node_secret: ConfigSecret::new(stored.node_secret),
        }))
    }

    /// Puts them into a data directory.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, data_directory: &Path) -> anyhow::Result<()> {
        let stored = Stored {
            api_url: self.api_url.clone(),
            api_secret: self.api_secret.reveal().to_owned(),
            node_secret: self.node_secret.reveal().to_owned(),
        };
        write_private(&Self::path(data_directory), &(serde_json::to_string_pretty(&stored)? + "\n"))
    }

    /// The file in a data directory.
    #[must_use]
    pub fn path(data_directory: &Path) -> PathBuf {
        data_directory.join(FILE_NAME)
    }
}

fn random_secret() -> anyhow::Result<ConfigSecret> {
    let mut bytes = [0_u8; 32];
    SysRng.try_fill_bytes(&mut bytes).context("the system gives no random bytes")?;
    let text = bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    Ok(ConfigSecret::new(text))
}

/// Writes a file that only its owner can read: whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let write = || {
        // One that a crash left behind may have any mode.
        let _ = fs::remove_file(&unfinished);
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn credentials_survive_in_a_file_that_only_its_owner_reads() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(DevCredentials::read(directory.path()).unwrap(), None);
        let made = DevCredentials::generate("http://127.0.0.1:8080".parse().unwrap()).unwrap();
        made.write(directory.path()).unwrap();
        made.write(directory.path()).unwrap();
        assert_eq!(DevCredentials::read(directory.path()).unwrap(), Some(made.clone()));
        assert!(made.api_secret.reveal().len() >= 32 && made.api_secret != made.node_secret);

        let path = DevCredentials::path(directory.path());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let message = DevCredentials::read(directory.path()).unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
    }
}
