//! Secrets of the configuration, and the files that hold them.
//!
//! Invariants:
//! - A [`ConfigSecret`] has no `Display` and no `Serialize`, and its `Debug` shows nothing.
//! - A file that others than its owner can read gives no secret, whatever it holds.

use std::{fmt, os::unix::fs::PermissionsExt as _, path::Path};

use subtle::ConstantTimeEq as _;

/// A secret that was configured: an API secret, a node secret, or the URL of a store, which may hold a password.
#[derive(Clone, Eq)]
pub struct ConfigSecret(String);

impl ConfigSecret {
    /// Wraps a text as a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Not for logs, errors or anything that is stored.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl PartialEq for ConfigSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for ConfigSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ConfigSecret(..)")
    }
}

/// Why a file gave no secret. It never holds what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than its owner may read it.
    #[error("{path} can be read by others than its owner (mode {mode:03o}): chmod 600 {path}")]
    ReadableByOthers {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no text, or far too long for a secret.
    #[error("{path} is not a text of at most 64 KiB")]
    NotText {
        /// The file.
        path: String,
    },
}

const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reads a file that holds a secret, without the line breaks at its end.
///
/// # Errors
/// Where it cannot be read, is no text, or its mode lets its group or others read it.
pub fn read_secret_file(path: &Path) -> Result<String, SecretFileError> {
    let name = path.display().to_string();
    refuse_if_readable_by_others(path)?;
    let unreadable = |source| SecretFileError::Unreadable { path: name.clone(), source };
    let bytes_held = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes_held > SECRET_FILE_BYTES_MAX {
        return Err(SecretFileError::NotText { path: name });
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| SecretFileError::NotText { path: name })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Checks that nobody but its owner may read the file.
///
/// # Errors
/// Where the file is not there, or its group or others have any right to it.
pub fn refuse_if_readable_by_others(path: &Path) -> Result<(), SecretFileError> {
    let name = path.display().to_string();
    let metadata =
        std::fs::metadata(path).map_err(|source| SecretFileError::Unreadable { path: name.clone(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::ReadableByOthers { path: name, mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_secret_prints_nothing() {
        assert_eq!(format!("{:?}", ConfigSecret::new("hush")), "ConfigSecret(..)");
    }

    #[test]
    fn the_line_break_at_the_end_of_a_secret_file_is_not_part_of_the_secret() {
        assert_eq!(read_secret_file(file(0o600, "hush\n").path()).unwrap(), "hush");
        assert_eq!(read_secret_file(file(0o400, "hush\r\n").path()).unwrap(), "hush");
        assert_eq!(read_secret_file(file(0o600, " a b ").path()).unwrap(), " a b ");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        for mode in [0o640, 0o604, 0o644, 0o660, 0o610] {
            let file = file(mode, "hush");
            let message = read_secret_file(file.path()).unwrap_err().to_string();
            assert!(message.contains("chmod 600"), "{message}");
            assert!(!message.contains("hush"), "{message}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let message = read_secret_file(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/at/all"), "{message}");
    }
}
