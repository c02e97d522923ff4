//! Identifiers. One type for each, so that a stream's id is never passed where a key's is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is no id. It is not repeated: it may be a secret that was put in the place of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is a UUID such as 01a20d02-e6db-7597-80c2-5d37bf166948")]
pub struct IdError;

macro_rules! uuid_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self).map_err(|_| IdError)
            }
        }
    };
}

uuid_id!(
    /// One broadcast on a path, from admission to end. UUIDv7, made by the replica that admits.
    StreamId
);
uuid_id!(
    /// A stream key (never its secret). UUIDv7.
    KeyId
);
uuid_id!(
    /// A person or organisation that goes live. UUIDv7.
    BroadcasterId
);
uuid_id!(
    /// `MediaMTX`'s own id of a publisher's connection: the auth call's `id`, the hooks' `MTX_SOURCE_ID` and the
    /// control API's `source.id` are this one value.
    SourceId
);

macro_rules! made_here {
    ($($name:ident),+) => {$(
        impl $name {
            /// A new id that sorts after those made before it.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }
    )+};
}
made_here!(StreamId, KeyId, BroadcasterId);

/// Orders the streams of one path: every stream has a higher epoch than the one before it.
///
/// It is the version that the admission made in its partition. A partition's version grows with every change and begins with
/// the microseconds of the clock, so that it keeps growing even over a Redis that lost its memory. Always below 2^53, which Lua
/// and JSON hold exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = i64)]
pub struct Epoch(pub i64);

/// Counts the changes of one thing: a higher one is newer, and an older one never overwrites it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = i64)]
pub struct Revision(pub i64);

/// The name of one `MediaMTX` server: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
///
/// It is the user name of the node's calls, so it needs no escaping in a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
pub struct NodeName(String);

/// Why a text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node name is 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")]
pub struct NodeNameError;

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let edges_are_allowed = bytes.first().is_some_and(|&b| allowed(b)) && bytes.last().is_some_and(|&b| allowed(b));
        if !edges_are_allowed || bytes.len() > 63 || !bytes.iter().all(|&byte| allowed(byte) || byte == b'-') {
            return Err(NodeNameError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_label_that_needs_no_escaping() {
        for good in ["a", "edge-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Edge", "a.b", "a:b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
