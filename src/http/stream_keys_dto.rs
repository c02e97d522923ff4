//! What stream keys look like from outside.

use serde::{Deserialize, Serialize};

use super::{
    fields::{Change, Description, FreeData, PageLimit, Title, given},
    publisher::PublisherWord,
};
use crate::domain::{
    self, BroadcasterId, KeyId, KeyStatus, Label, Metadata, NodeName, OnConflict, Playback, PublishUrls, StreamId,
    StreamPath, Timestamp,
};

/// A stream key. Never its secret.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamKey {
    id: KeyId,
    broadcaster_id: BroadcasterId,
    /// The path it admits to.
    path: StreamPath,
    /// The last four characters of the secret, by which people tell keys apart.
    hint: String,
    /// A name for the administrators.
    label: Option<Label>,
    /// Title of the streams that it starts.
    title: Option<String>,
    /// Description of the streams that it starts.
    description: Option<String>,
    /// Free data, copied to the streams that it starts.
    #[schema(value_type = Object)]
    metadata: Metadata,
    /// What it may do now.
    status: KeyStatus,
    /// Whether a stream of this key holds its path now; `null` while that cannot be known.
    in_use: Option<bool>,
    /// The stream that does.
    stream_id: Option<StreamId>,
    on_conflict: OnConflict,
    playback: Playback,
    /// When it stops admitting, and its stream ends.
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
    revoked_at: Option<Timestamp>,
    /// When it last admitted a publisher, as far as the history has been written.
    last_used_at: Option<Timestamp>,
    /// How many streams it has started, as far as the history has been written.
    #[schema(minimum = 0)]
    use_count: i64,
}

/// Whether a key is in use.
#[derive(Debug, Clone, Copy)]
pub enum Use {
    /// This stream holds the path.
    By(StreamId),
    /// No stream does.
    Free,
    /// Redis cannot be asked.
    Unknown,
}

impl StreamKey {
    /// The key as it is at `now`.
    pub fn new(key: domain::StreamKey, used: Use, now: Timestamp) -> Self {
        let status = key.status_at(now);
        let (in_use, stream_id) = match used {
            Use::By(stream_id) => (Some(true), Some(stream_id)),
            Use::Free => (Some(false), None),
            Use::Unknown => (None, None),
        };
        Self {
            id: key.id,
            broadcaster_id: key.broadcaster_id,
            path: key.path,
            hint: key.hint,
            label: key.label,
            title: key.title,
            description: key.description,
            metadata: key.metadata,
            status,
            in_use,
            stream_id,
            on_conflict: key.on_conflict,
            playback: key.playback,
            expires_at: key.expires_at,
            created_at: key.created_at,
            updated_at: key.updated_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
            use_count: key.use_count,
        }
    }
}

/// A page of the stream keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamKeyList {
    /// The newest first.
    pub items: Vec<StreamKey>,
    /// Where the next page begins; `null` on the last.
    pub next_cursor: Option<String>,
}

/// A new stream key, and the one chance to see its secret.
#[derive(Serialize, utoipa::ToSchema)]
pub struct CreatedStreamKey {
    pub stream_key: StreamKey,
    /// The secret. It is stored nowhere and shown never again.
    #[schema(example = "sk_...")]
    pub secret: String,
    /// Where to publish, ready to paste, for every node of the fleet.
    pub publish: Vec<PublishAt>,
}

/// Where to publish on one node, with the secret filled in.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PublishAt {
    pub node: NodeName,
    #[serde(flatten)]
    pub urls: PublishUrls,
}

/// A stream key after it was revoked, disabled or enabled.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SwitchedStreamKey {
    pub stream_key: StreamKey,
    /// What became of the publisher that was on air with it.
    pub publisher: PublisherWord,
    /// The stream that this call ended.
    pub stream_id: Option<StreamId>,
}

/// A new stream key.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "broadcaster_id": "0199b1f2-c0de-7a3e-9d5c-1b2a3f4e5d6c", "path": "live/ada", "label": "Ada's studio", "title": "Ada live"
}))]
pub struct CreateStreamKey {
    /// Whose it is. Either this or `broadcaster_name`.
    pub broadcaster_id: Option<BroadcasterId>,
    /// The name of a new broadcaster, who is created with the key: both or neither.
    pub broadcaster_name: Option<Label>,
    /// The path it admits to: public, it stands in every playback URL. Absent: an unguessable one is made up.
    pub path: Option<StreamPath>,
    /// A name for the administrators.
    pub label: Option<Label>,
    /// Title of the streams that it starts.
    pub title: Option<Title>,
    /// Description of the streams that it starts.
    pub description: Option<Description>,
    /// Free data, copied to the streams that it starts.
    pub metadata: Option<FreeData>,
    /// When it stops admitting. In the future; absent: never.
    pub expires_at: Option<Timestamp>,
    /// What happens when a second publisher comes while a healthy one is on air. Absent: `reject`.
    pub on_conflict: Option<OnConflict>,
    /// Who may watch. Absent: `public`.
    pub playback: Option<Playback>,
}

/// Changes of a stream key: absent stays, `null` clears.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"title": "Ada live, season 2", "expires_at": null}))]
pub struct PatchStreamKey {
    /// A name for the administrators.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Label>)]
    pub label: Change<Label>,
    /// Title of the streams that it starts from now on.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Title>)]
    pub title: Change<Title>,
    /// Description of the streams that it starts from now on.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Description>)]
    pub description: Change<Description>,
    /// Free data, in place of all that was there.
    #[serde(default)]
    #[schema(required = false, value_type = Option<FreeData>)]
    pub metadata: Change<FreeData>,
    /// When it stops admitting; `null`: never. A stream that is on air is moved along.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Timestamp>)]
    pub expires_at: Change<Timestamp>,
    /// What happens when a second publisher comes while a healthy one is on air.
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub on_conflict: Option<OnConflict>,
    /// Who may watch, from now on.
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub playback: Option<Playback>,
}

/// Which keys are listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListStreamKeys {
    /// Only keys of this status now.
    #[param(inline)]
    pub status: Option<KeyStatus>,
    /// Only keys that are in use now, or only those that are not.
    pub in_use: Option<bool>,
    /// Only this broadcaster's.
    pub broadcaster_id: Option<BroadcasterId>,
    /// Only those that admit to this path.
    #[param(inline)]
    pub path: Option<StreamPath>,
    /// At most so many.
    #[serde(default)]
    #[param(inline, required = false)]
    pub limit: PageLimit,
    /// `next_cursor` of the page before.
    #[param(max_length = 512)]
    pub cursor: Option<String>,
}
