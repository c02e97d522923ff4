//! `MediaMTX`'s path: the public name of a place where one stream at a time can be.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Secret;

/// A path such as `live/ada`. Public: it is in every playback URL, in logs and in the history, so what holds a stream key is no
/// path, whoever calls it one.
///
/// 1 to 128 of `A-Z a-z 0-9 _ - . /`, segments neither empty nor `.` nor `..`: what `MediaMTX` accepts, with a length
/// limit of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^(\\.{0,2}[A-Za-z0-9_-]|\\.{3})[A-Za-z0-9_.-]*(/(\\.{0,2}[A-Za-z0-9_-]|\\.{3})[A-Za-z0-9_.-]*)*$")]
pub struct StreamPath(String);

/// Why a text is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Empty, or longer than [`StreamPath::LENGTH_MAX`].
    #[error("a path has 1 to 128 characters")]
    Length,
    /// A character that `MediaMTX` refuses.
    #[error("a path is made of letters, digits and '_', '-', '.', '/'")]
    Character,
    /// An empty, `.` or `..` segment, or a slash at either end.
    #[error("a path does not begin or end with '/', and no part of it is empty, '.' or '..'")]
    Segment,
    /// A stream key, or what remains of a mistyped one.
    #[error("a path is public and must not hold a stream key")]
    HoldsKey,
}

impl StreamPath {
    /// The longest path, in bytes (which are characters: only ASCII is allowed).
    pub const LENGTH_MAX: usize = 128;

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition whose Redis keys hold everything about this path.
    #[must_use]
    pub fn partition(&self) -> Partition {
        // FNV-1a, because it is five lines, stable for ever, and the paths are not chosen by an adversary who would
        // gain from a full partition.
        let hash =
            self.0.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer partitions than a byte can count")]
        Partition((hash % u32::from(Partition::COUNT)) as u8)
    }
}

impl FromStr for StreamPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > Self::LENGTH_MAX {
            return Err(PathError::Length);
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/')) {
            return Err(PathError::Character);
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(PathError::Segment);
        }
        if text.split('/').any(Secret::looks_like_one) {
            return Err(PathError::HoldsKey);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for StreamPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StreamPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One of the fixed number of groups that paths are divided into. All Redis keys of a partition share one hash tag, so
/// that in a Redis Cluster one script can touch them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u8);

impl Partition {
    /// How many there are. A constant for ever: it decides where every key lies.
    pub const COUNT: u8 = 32;

    /// Every partition, in order.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + Clone {
        (0..Self::COUNT).map(Self)
    }

    /// Its number, from 0, for indexing.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its number as it is written in keys: two digits.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        NAMES[self.index()]
    }
}

/// Written out, because every key of every command has one.
const NAMES: [&str; Partition::COUNT as usize] = [
    "00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "16", "17", "18",
    "19", "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31",
];

impl fmt::Display for Partition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mediamtx_accepts_is_accepted() {
        for good in ["a", "live/ada", "live/ada_720p", "A-1.b/c", &"x".repeat(128)] {
            assert!(good.parse::<StreamPath>().is_ok(), "{good}");
        }
    }

    #[test]
    fn what_mediamtx_refuses_and_what_holds_a_key_is_refused() {
        let cases = [
            ("", PathError::Length),
            (&"x".repeat(129), PathError::Length),
            ("live/a:b", PathError::Character),
            ("live/a b", PathError::Character),
            ("live/ä", PathError::Character),
            ("/live", PathError::Segment),
            ("live/", PathError::Segment),
            ("a//b", PathError::Segment),
            ("a/../b", PathError::Segment),
            (".", PathError::Segment),
            ("live/sk_x", PathError::HoldsKey),
            ("sk_x/ada", PathError::HoldsKey),
        ];
        for (bad, why) in cases {
            assert_eq!(bad.parse::<StreamPath>(), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_path_never_changes_its_partition() {
        let partition = |text: &str| text.parse::<StreamPath>().unwrap().partition().to_string();
        // These are stored in running systems; a changed number would lose their keys. FNV-1a of 32 bits, modulo 32.
        let longest = "x".repeat(StreamPath::LENGTH_MAX);
        for (path, number) in
            [("a", "12"), ("live/ada", "28"), ("live/ada_720p", "08"), ("A-1.b/c", "16"), (&longest, "05")]
        {
            assert_eq!(partition(path), number, "{path}");
        }
        let mut held = vec![0_u32; usize::from(Partition::COUNT)];
        for number in 0..3200 {
            held[format!("live/{number}").parse::<StreamPath>().unwrap().partition().index()] += 1;
        }
        assert!(held.iter().all(|&count| (50..200).contains(&count)), "uneven: {held:?}");
    }
}
