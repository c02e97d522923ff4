//! Renditions: the paths beside a stream's own into which its node transcodes it, such as `live/ada_720p`.

use std::str::FromStr;

use super::{StreamPath, text::between_commas};

/// The endings by which renditions are told from streams, the same for the whole fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renditions(Vec<String>);

/// Why a text is no list of endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an ending is '_' or '-' and 1 to 31 letters, digits, '_' or '-', such as _720p")]
pub struct RenditionsError;

impl Renditions {
    /// The endings of the configuration.
    ///
    /// # Errors
    /// Where one of them could not end a path, or could end the path of an ordinary stream.
    pub fn new(suffixes: Vec<String>) -> Result<Self, RenditionsError> {
        let is_ending = |text: &String| {
            let letters = text.strip_prefix(['_', '-']).unwrap_or("");
            (1..=31).contains(&letters.len())
                && letters.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        if suffixes.iter().all(is_ending) { Ok(Self(suffixes)) } else { Err(RenditionsError) }
    }

    /// The path whose rendition this is; `None` where it is none.
    #[must_use]
    pub fn parent_of(&self, path: &StreamPath) -> Option<StreamPath> {
        self.0
            .iter()
            .filter_map(|suffix| path.as_str().strip_suffix(suffix.as_str()))
            .find_map(|parent| parent.parse().ok())
    }
}

impl FromStr for Renditions {
    type Err = RenditionsError;

    /// Endings with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(between_commas(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendition_is_known_by_its_ending() {
        let renditions: Renditions = "_720p, _480p".parse().unwrap();
        let parent = |path: &str| renditions.parent_of(&path.parse().unwrap()).map(|path| path.to_string());
        assert_eq!(parent("live/ada_720p").as_deref(), Some("live/ada"));
        assert_eq!(parent("live/ada_1080p"), None);
        assert_eq!(parent("live/ada"), None);
        assert_eq!(parent("live/_720p"), None, "nothing would be left of its last part");
        assert_eq!(Renditions::default().parent_of(&"live/ada_720p".parse().unwrap()), None);
    }

    #[test]
    fn an_ending_that_could_end_any_path_is_refused() {
        for bad in ["720p", "_", "_a/b", "_a b", ""] {
            let list = Renditions::new(vec![bad.to_owned()]);
            assert_eq!(list, Err(RenditionsError), "{bad}");
        }
        assert_eq!("".parse::<Renditions>(), Ok(Renditions::default()));
    }
}
