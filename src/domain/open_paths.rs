//! Paths that anybody may watch, whatever is published there and by whom.

use std::str::FromStr;

use super::{StreamPath, text::between_commas};

/// Paths, and beginnings of paths: what `MediaMTX` nodes have from elsewhere, such as cameras that they pull, and nobody was admitted for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenPaths(Vec<OpenPath>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum OpenPath {
    This(StreamPath),
    /// Every path that begins with this, which ends with a slash.
    Below(String),
}

/// Why a text is no list of open paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an open path is a path such as lobby, or, with a slash at its end, the beginning of paths such as cameras/")]
pub struct OpenPathsError;

impl OpenPaths {
    /// The paths of the configuration.
    ///
    /// # Errors
    /// Where one of them is neither a path nor a path with a slash behind it.
    pub fn new(paths: Vec<String>) -> Result<Self, OpenPathsError> {
        paths.into_iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether anybody may watch `path`.
    #[must_use]
    pub fn contains(&self, path: &StreamPath) -> bool {
        self.0.iter().any(|open| match open {
            OpenPath::This(this) => this == path,
            OpenPath::Below(beginning) => path.as_str().starts_with(beginning),
        })
    }
}

impl FromStr for OpenPath {
    type Err = OpenPathsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (above, is_beginning) = text.strip_suffix('/').map_or((text, false), |above| (above, true));
        let path: StreamPath = above.parse().map_err(|_| OpenPathsError)?;
        Ok(if is_beginning { Self::Below(text.to_owned()) } else { Self::This(path) })
    }
}

impl FromStr for OpenPaths {
    type Err = OpenPathsError;

    /// Paths with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(between_commas(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_open_by_its_name_or_by_what_it_lies_below() {
        let open: OpenPaths = "lobby, cameras/".parse().unwrap();
        for (path, is_open) in [
            ("lobby", true),
            ("lobby/2", false),
            ("lobby2", false),
            ("cameras/1", true),
            ("cameras/yard/1", true),
            ("cameras", false),
            ("cameras2/1", false),
        ] {
            assert_eq!(open.contains(&path.parse().unwrap()), is_open, "{path}");
        }
        assert!(!OpenPaths::default().contains(&"lobby".parse().unwrap()));
    }

    #[test]
    fn what_would_open_everything_or_nothing_is_refused() {
        for bad in ["/", "/cameras", "cameras//", "cam eras", "cameras/*", ""] {
            assert_eq!(OpenPaths::new(vec![bad.to_owned()]), Err(OpenPathsError), "{bad}");
        }
        assert_eq!("".parse::<OpenPaths>(), Ok(OpenPaths::default()));
    }
}
