//! The words of the trade: broadcasters, stream keys, streams, nodes and their ids.
//!
//! Role: types that make wrong states hard to write down, and the rules that need no I/O.
//!
//! Invariants:
//! - Nothing here reads a socket or a file, and nothing is async. Only [`Timestamp::now`] and the ids' `generate` ask a clock or a
//!   random source, and no rule calls them: whoever needs the time passes it in.
//! - A word of an enum ([`EndReason`], [`KeyStatus`], ...) is spelled once, by the macro `words!`, and is the same in
//!   Lua, SQL, JSON, metrics and logs.
//! - The secret of a stream key lives in [`Secret`], whose `Debug` shows nothing; everything else works with its
//!   [`SecretHash`].

mod attempt;
mod audit;
mod broadcaster;
mod cursor;
mod ids;
mod node;
mod open_paths;
mod path;
mod renditions;
mod stream;
mod stream_key;
mod text;
mod timestamp;
mod words;
mod wrong;

pub use attempt::Attempt;
pub use audit::{Actor, AuditAction, ChangedBy, names_of_changed};
pub use broadcaster::Broadcaster;
pub use cursor::{Cursor, CursorError, Page, PageRequest, Position};
pub use ids::{BroadcasterId, Epoch, KeyId, NodeName, NodeNameError, Revision, SourceId, StreamId};
pub use node::{Node, PlaybackUrls, PublicUrls, PublishUrls, url_field};
pub use open_paths::{OpenPaths, OpenPathsError};
pub use path::{Partition, PathError, StreamPath};
pub use renditions::{Renditions, RenditionsError};
pub use stream::{
    EndReason, Progress, Protocol, Quality, Reader, Source, SourceType, Stream, StreamInfo, StreamState,
    StreamStateWord, Track, TrackProps,
};
pub use stream_key::{KeyStatus, OnConflict, Playback, Secret, SecretError, SecretHash, StreamKey};
pub use text::{Label, METADATA_BYTES_MAX, METADATA_DEPTH_MAX, Metadata, TextError, bounded_text};
pub use timestamp::Timestamp;
pub use words::UnknownWord;
pub(crate) use words::words;
pub use wrong::{Wrong, explain};
