//! Everything that can differ, in words.

use std::fmt;

use crate::{
    domain::{KeyId, NodeName, Partition, Revision, SourceId, Stream, StreamPath},
    redis::{FoundKey, KeyInPlace},
};

/// Which list of a partition is wrong about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// It is held, and not listed as on air.
    NotLive,
    /// It is listed as on air, and not held.
    LiveInVain,
    /// Something is due to happen to its stream, and is not noted, or for another instant.
    NotDue,
    /// Something is noted as due, and it is not held.
    DueInVain,
}

/// One thing on which Redis, Postgres and the nodes do not agree.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// Redis lost a partition, or may have.
    PartitionClosed(Partition),
    /// Transitions that a newer version wrote wait for one to read them.
    EventsSetAside(Partition, u64),
    /// Redis does not hold a stream key as Postgres has it.
    Key(KeyId, StreamPath, KeyInPlace),
    /// Redis holds a stream key that Postgres does not know.
    KeyUnknown(FoundKey),
    /// The history has a stream open, and Redis does not hold it.
    StreamNotHeld(Box<Stream>),
    /// Redis holds a stream that the history does not know.
    StreamUnrecorded(Box<Stream>),
    /// Redis holds a stream that has ended by the history, whose row has this revision.
    StreamEnded(Box<Stream>, Revision),
    /// Redis and the history have a stream in different states; the history in this one.
    StreamState(Box<Stream>, Revision),
    /// A list of a partition is wrong about a path.
    Listed(StreamPath, Listing),
    /// Redis lacks a node, or has it with other addresses.
    NodeNotInRedis(NodeName),
    /// Redis has a node that Postgres does not know.
    NodeUnknown(NodeName),
    /// A node cannot be asked.
    NodeSilent(NodeName, String),
    /// A node has a publisher on air whom nobody admitted.
    NotAdmitted(NodeName, String, SourceId),
    /// A node has a publisher on air who is owed a kick.
    NotKicked(NodeName, String, SourceId),
    /// A stream is live on a node, and the node does not have it.
    NotOnAir(Box<Stream>),
    /// A stream is held by a node that is not of the fleet.
    NodeGone(Box<Stream>),
}

struct Named<'a>(&'a Stream);

impl fmt::Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "stream {} on {}", self.0.id, self.0.path)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PartitionClosed(one) => {
                write!(formatter, "partition {one} is closed: Redis lost what it held there, and does not have it back")
            }
            Self::EventsSetAside(one, count) => {
                write!(
                    formatter,
                    "partition {one}: {count} transition(s) of a newer version wait for one that can read them"
                )
            }
            Self::Key(id, path, in_place) => write_key(formatter, *id, path, in_place),
            Self::KeyUnknown(found) => match found.id {
                Some(id) => write!(formatter, "stream key {id}: Redis holds it, Postgres does not know it"),
                None => write!(formatter, "Redis holds a stream key without an id"),
            },
            Self::StreamNotHeld(stream) => {
                write!(formatter, "{}: open in the history, and Redis does not hold it", Named(stream))
            }
            Self::StreamUnrecorded(stream) => {
                write!(formatter, "{}: Redis holds it, and the history does not know it", Named(stream))
            }
            Self::StreamEnded(stream, _) => {
                write!(formatter, "{}: Redis holds it, and it has ended by the history", Named(stream))
            }
            Self::StreamState(stream, row) => {
                let (redis, history) = (stream.revision.0, row.0);
                write!(formatter, "{}: Redis has its state {redis}, the history its state {history}", Named(stream))
            }
            Self::Listed(path, listing) => write!(formatter, "path {path}: {}", said_of(*listing)),
            Self::NodeNotInRedis(name) => write!(formatter, "node {name}: Redis does not have it as Postgres does"),
            Self::NodeUnknown(name) => write!(formatter, "node {name}: Redis has it, Postgres does not know it"),
            Self::NodeSilent(name, why) => write!(formatter, "node {name}: cannot be asked: {why}"),
            Self::NotAdmitted(name, path, source) => {
                write!(formatter, "node {name}: source {source} is on air on {path}, and nobody admitted it")
            }
            Self::NotKicked(name, path, source) => {
                write!(formatter, "node {name}: source {source} is on air on {path}, and has to be off air")
            }
            Self::NotOnAir(stream) => {
                write!(formatter, "{}: live by Redis, and node {} does not have it", Named(stream), stream.node)
            }
            Self::NodeGone(stream) => {
                write!(formatter, "{}: its node {} is not of the fleet", Named(stream), stream.node)
            }
        }
    }
}

fn said_of(listing: Listing) -> &'static str {
    match listing {
        Listing::NotLive => "Redis holds it, and does not list it as on air",
        Listing::LiveInVain => "Redis lists it as on air, and does not hold it",
        Listing::NotDue => "Redis does not have noted when something is due on it",
        Listing::DueInVain => "Redis has noted that something is due on it, and does not hold it",
    }
}

fn write_key(formatter: &mut fmt::Formatter<'_>, id: KeyId, path: &StreamPath, in_place: &KeyInPlace) -> fmt::Result {
    write!(formatter, "stream key {id} for {path}: ")?;
    match in_place {
        KeyInPlace::Absent => write!(formatter, "Redis does not hold it; it is looked up when somebody comes with it"),
        KeyInPlace::Same => write!(formatter, "Redis holds it as Postgres does"),
        KeyInPlace::Older => write!(formatter, "Redis holds it as it was before its last change"),
        KeyInPlace::Different(fields) => write!(formatter, "Redis holds it with another {}", fields.join(", ")),
        KeyInPlace::Newer(revision) => {
            write!(formatter, "Redis holds a change of it that Postgres does not know (revision {})", revision.0)
        }
        KeyInPlace::Revoked => {
            write!(
                formatter,
                "revoked in Redis, and not in Postgres, which was restored: it stays revoked; revoke it again"
            )
        }
    }
}
