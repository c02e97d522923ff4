//! How one setting is read: from a TOML value, from a variable's text, or from a file.
//!
//! Invariants:
//! - No message repeats a value, since any value may turn out to be a secret in the wrong place.
//! - Reading never stops at the first problem: all of them are collected, and the default stands in meanwhile.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use url::Url;

use super::{ConfigSecret, LogFormat, WhenFull, secret};
use crate::domain::{OpenPaths, Renditions};

/// One setting: where it stands in the file, and which variable overrides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The table of the file, such as `server`.
    pub section: &'static str,
    /// The key in that table, such as `listen`.
    pub name: &'static str,
    /// The variable, such as `ONAIR_SERVER_LISTEN`.
    pub variable: &'static str,
    /// Whether the value may also come from a file.
    pub kind: Kind,
}

/// How a setting is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Can be shown.
    Open,
    /// Never shown; `<variable>_FILE` and `<name>_file` may name a file that holds it.
    Secret,
}

impl Field {
    /// The variable that names a file with the value, where there may be one.
    #[must_use]
    pub fn file_variable(&self) -> Option<String> {
        (self.kind == Kind::Secret).then(|| format!("{}_FILE", self.variable))
    }

    fn file_name(&self) -> Option<String> {
        (self.kind == Kind::Secret).then(|| format!("{}_file", self.name))
    }
}

impl fmt::Display for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{} ({})", self.section, self.name, self.variable)
    }
}

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// How such a setting is treated.
    const KIND: Kind = Kind::Open;

    /// Reads the value of a variable, or of a secret's file.
    ///
    /// # Errors
    /// Says what is expected, never what was found.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads the value of the file.
    ///
    /// # Errors
    /// Says what is expected, never what was found.
    fn from_toml(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::from_text(&text),
            _ => Err("expected a text in quotes".to_owned()),
        }
    }
}

macro_rules! whole_number {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| "expected a whole number".to_owned())
            }

            fn from_toml(value: toml::Value) -> Result<Self, String> {
                value
                    .as_integer()
                    .and_then(|number| Self::try_from(number).ok())
                    .ok_or_else(|| "expected a whole number".to_owned())
            }
        }
    )+};
}
whole_number!(u32, u64, usize);

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

macro_rules! list_of_texts {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse::<Self>().map_err(|error| error.to_string())
            }

            fn from_toml(value: toml::Value) -> Result<Self, String> {
                let texts: Vec<String> = value.try_into().map_err(|_| "expected a list of texts".to_owned())?;
                Self::new(texts).map_err(|error| error.to_string())
            }
        }
    )+};
}
list_of_texts!(Renditions, OpenPaths);

impl Setting for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080".to_owned())
    }
}

impl Setting for LogFormat {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err("expected \"pretty\" or \"json\"".to_owned()),
        }
    }
}

impl Setting for WhenFull {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "refuse" => Ok(Self::Refuse),
            "drop" => Ok(Self::Drop),
            _ => Err("expected \"refuse\" or \"drop\"".to_owned()),
        }
    }
}

impl Setting for Option<Url> {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| "expected a URL, such as http://onair.example.org:8080".to_owned())
            }
        }
    }
}

impl Setting for Option<PathBuf> {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Ok(None),
            text if Path::new(text).is_absolute() => Ok(Some(PathBuf::from(text))),
            _ => Err("expected the name of a file that begins with /".to_owned()),
        }
    }
}

impl Setting for ConfigSecret {
    const KIND: Kind = Kind::Secret;

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }
}

impl Setting for Vec<ConfigSecret> {
    const KIND: Kind = Kind::Secret;

    /// One a line, or parted by commas.
    fn from_text(text: &str) -> Result<Self, String> {
        let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
        Ok(parts.map(ConfigSecret::new).collect())
    }

    fn from_toml(value: toml::Value) -> Result<Self, String> {
        let expected = || "expected a list of texts, such as [\"...\"]".to_owned();
        let toml::Value::Array(items) = value else { return Err(expected()) };
        items
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) => Ok(ConfigSecret::new(text)),
                _ => Err(expected()),
            })
            .collect()
    }
}

/// The `ONAIR_` variables of an environment. An empty one counts as not set, as a compose file leaves it.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // A value that is no UTF-8 is kept with its odd bytes replaced: it is then refused by whoever reads it.
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect()
    }

    /// The value of a variable that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(pairs.filter(|(name, value): &(String, String)| name.starts_with("ONAIR_") && !value.is_empty()).collect())
    }
}

/// Gathers settings from file and variables, and everything that is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) table: toml::Table,
    /// Relative file names in the file are relative to it.
    pub(super) directory: PathBuf,
    pub(super) variables: &'a Variables,
    pub(super) problems: Vec<String>,
    /// True once the file gave a secret itself, rather than the name of a file that holds it.
    pub(super) file_holds_secrets: bool,
}

impl Reader<'_> {
    /// The value of a setting: the variable's, else the file's, else `default`.
    pub(super) fn take<T: Setting>(&mut self, field: &Field, default: T) -> T {
        // Taken from the table even when the variable wins, so that what is left over is what nobody knows.
        let in_file = self.take_from_table(field.section, field.name);
        let file_in_file = field.file_name().and_then(|name| self.take_from_table(field.section, &name));
        let variable = self.variables.get(field.variable);
        let file_variable = field.file_variable();
        let file_in_variable = file_variable.as_deref().and_then(|name| self.variables.get(name));
        self.file_holds_secrets |= in_file.is_some() && field.kind == Kind::Secret;
        if variable.is_some() && file_in_variable.is_some() || in_file.is_some() && file_in_file.is_some() {
            self.problems.push(format!("{field}: given both as a value and as a file"));
            return default;
        }
        let read = match (variable, file_in_variable, in_file, file_in_file) {
            (Some(text), ..) => T::from_text(text),
            (_, Some(path), ..) => from_secret_file(Path::new(path)),
            (_, _, Some(value), _) => T::from_toml(value),
            (.., Some(toml::Value::String(path))) => from_secret_file(&self.directory.join(path)),
            (.., Some(_)) => Err("expected the name of a file in quotes".to_owned()),
            (None, None, None, None) => return default,
        };
        read.unwrap_or_else(|problem| {
            self.problems.push(format!("{field}: {problem}"));
            default
        })
    }

    fn take_from_table(&mut self, section: &str, name: &str) -> Option<toml::Value> {
        self.table.get_mut(section)?.as_table_mut()?.remove(name)
    }
}

fn from_secret_file<T: Setting>(path: &Path) -> Result<T, String> {
    let text = secret::read_secret_file(path).map_err(|error| error.to_string())?;
    T::from_text(&text)
}
