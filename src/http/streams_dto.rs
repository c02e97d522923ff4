//! What streams look like from outside.

use serde::{Deserialize, Serialize};

use super::{
    fields::{Change, Description, FreeData, PageLimit, Recording, Title},
    list_items::ListItem,
    publisher::PublisherWord,
};
use crate::{
    domain::{
        self, BroadcasterId, EndReason, Epoch, KeyId, Metadata, NodeName, Playback, PlaybackUrls, Progress, Protocol,
        PublicUrls, Quality, Reader, SourceId, SourceType, StreamId, StreamPath, StreamState, StreamStateWord,
        Timestamp, Track, words,
    },
    nodes::{Fleet, contract::ConnectionItem},
    postgres::Totals,
};

/// Who is live.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamBroadcaster {
    id: BroadcasterId,
    /// The name as it was when the stream began.
    display_name: String,
}

/// A stream, as a list shows it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamSummary {
    id: StreamId,
    path: StreamPath,
    title: Option<String>,
    description: Option<String>,
    #[schema(value_type = Object)]
    metadata: Metadata,
    broadcaster: StreamBroadcaster,
    state: StreamStateWord,
    /// Since when it has been live; while it is connecting, since when its publisher has been admitted.
    started_at: Timestamp,
    /// Whole seconds live, so far or in all. In a list `null` while it is on air: count from `started_at`.
    duration_seconds: Option<u64>,
    ended_at: Option<Timestamp>,
    end_reason: Option<EndReason>,
    /// How many watch now, as the node said last.
    viewers: u32,
    node: NodeName,
    /// Whether this is only the last that was known, because the node or Redis cannot be reached.
    stale: bool,
    /// When the node last told of it. In a list `null` while it is not stale.
    seen_at: Option<Timestamp>,
    /// Where it can be watched. A protocol that the node does not offer is `null`.
    playback: PlaybackUrls,
    /// Who may watch.
    playback_access: Playback,
    /// The renditions of it that are online, each on a path of its own.
    qualities: Vec<StreamQuality>,
}

/// A rendition of a stream.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamQuality {
    path: StreamPath,
    /// Pixels; `null` where the node does not know.
    width: Option<u32>,
    /// Pixels; `null` where the node does not know.
    height: Option<u32>,
    /// Bits a second, over the last few seconds.
    bits_per_second: Option<u64>,
    /// What it carries.
    tracks: Vec<Track>,
    /// Where it can be watched.
    playback: PlaybackUrls,
}

impl StreamQuality {
    fn new(quality: &Quality, public_urls: &PublicUrls) -> Self {
        let picture = quality.tracks.iter().find(|track| track.props.height.is_some());
        Self {
            path: quality.path.clone(),
            width: picture.and_then(|track| track.props.width),
            height: picture.and_then(|track| track.props.height),
            bits_per_second: quality.bits_per_second,
            tracks: quality.tracks.clone(),
            playback: public_urls.playback(&quality.path),
        }
    }
}

impl StreamSummary {
    /// The stream as a list shows it: nothing in it changes while nothing happens, so that a list need not be sent again.
    pub fn new(seen: &Seen<'_>, fleet: &Fleet) -> Self {
        let stream = seen.stream;
        let (ended_at, end_reason) = match stream.state {
            StreamState::Ended { at, reason, .. } => (Some(at), Some(reason)),
            StreamState::Connecting { .. } | StreamState::Live { .. } => (None, None),
        };
        let offered_nowhere = PublicUrls::default();
        let public_urls = fleet.get(&stream.node).map_or(&offered_nowhere, |node| &node.public_urls);
        Self {
            id: stream.id,
            path: stream.path.clone(),
            title: stream.info.title.clone(),
            description: stream.info.description.clone(),
            metadata: stream.info.metadata.clone(),
            broadcaster: StreamBroadcaster {
                id: stream.broadcaster_id,
                display_name: stream.info.broadcaster_name.clone(),
            },
            state: stream.state.word(),
            started_at: stream.state.live_since().unwrap_or(stream.admitted_at),
            duration_seconds: ended_at.map(|at| stream.duration_ms(at) / 1_000),
            ended_at,
            end_reason,
            viewers: seen.progress.map_or(0, Progress::viewers),
            node: stream.node.clone(),
            stale: seen.stale || stream.stale_since.is_some(),
            seen_at: stream.stale_since,
            playback: public_urls.playback(&stream.path),
            playback_access: stream.playback,
            qualities: seen.progress.map_or_else(Vec::new, |progress| {
                progress.qualities.iter().map(|quality| StreamQuality::new(quality, public_urls)).collect()
            }),
        }
    }
}

/// What is known of a stream at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub stream: &'a domain::Stream,
    pub progress: Option<&'a Progress>,
    /// Whether Redis could not be asked.
    pub stale: bool,
}

/// A page of streams.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamList {
    /// On air: the newest first. Ended: the one that ended last first.
    #[schema(value_type = Vec<StreamSummary>)]
    pub items: Vec<ListItem>,
    /// How many there are on all pages; `null` for ended streams, which are not counted.
    #[schema(value_type = Option<u64>)]
    pub total: Option<usize>,
    /// Whether Redis cannot be reached, so that this is the last that was known.
    pub stale: bool,
    /// For people, where there is something to say: that nothing is on air, or that the list is stale.
    pub message: Option<String>,
    /// Where the next page begins; `null` on the last.
    pub next_cursor: Option<String>,
    /// When this was true.
    pub as_of: Timestamp,
}

/// The publisher's connection.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamSource {
    /// MediaMTX's id of the connection.
    id: SourceId,
    /// MediaMTX's type of the connection; `null` until the node told.
    #[serde(rename = "type")]
    source_type: Option<SourceType>,
    /// The publisher's IP address as the node saw it.
    address: String,
    /// What the encoder calls itself; empty where the protocol does not tell.
    user_agent: String,
}

/// How the publisher's connection does, where the protocol tells. Asked of the node for this answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamConnection {
    /// Round-trip time in milliseconds.
    rtt_ms: Option<f64>,
    /// Packets that arrived.
    packets: Option<u64>,
    /// Packets lost on the way here.
    packets_lost: Option<u64>,
    /// In units of the RTP clock.
    jitter_rtp: Option<f64>,
}

impl From<ConnectionItem> for StreamConnection {
    fn from(item: ConnectionItem) -> Self {
        Self {
            rtt_ms: item.rtt_ms,
            packets: item.packets(),
            packets_lost: item.packets_lost(),
            jitter_rtp: item.jitter_rtp(),
        }
    }
}

/// Everything about a stream.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StreamDetails {
    #[serde(flatten)]
    summary: StreamSummary,
    key_id: KeyId,
    /// Orders the streams of the path.
    epoch: Epoch,
    admitted_at: Timestamp,
    /// When its key expires, and it with it.
    key_expires_at: Option<Timestamp>,
    protocol: Protocol,
    source: StreamSource,
    /// What it carries.
    tracks: Vec<Track>,
    /// Bits a second received, over the last few seconds.
    inbound_bits_per_second: Option<u64>,
    /// Bytes received from the publisher.
    inbound_bytes: Option<u64>,
    /// Bytes sent to readers.
    outbound_bytes: Option<u64>,
    /// Frames that arrived broken.
    inbound_frames_in_error: Option<u64>,
    /// Readers by type.
    readers: Vec<Reader>,
    /// The most viewers at once so far.
    viewers_peak: Option<u32>,
    /// Since when its bytes have stood still, while they do.
    stalled_at: Option<Timestamp>,
    /// How its connection does; `null` where the node does not say.
    connection: Option<StreamConnection>,
    /// Where its recording is, as the platform noted it.
    recording: Option<String>,
    /// When this was true.
    as_of: Timestamp,
}

/// What the details need besides the stream itself.
#[derive(Debug)]
pub struct Beside {
    pub totals: Option<Totals>,
    pub connection: Option<ConnectionItem>,
    pub as_of: Timestamp,
}

impl StreamDetails {
    /// The stream as it is at `now`.
    pub fn new(seen: &Seen<'_>, beside: Beside, fleet: &Fleet, now: Timestamp) -> Self {
        let Seen { stream, progress, .. } = *seen;
        let totals = beside.totals.or_else(|| progress.map(Totals::from));
        let mut summary = StreamSummary::new(seen, fleet);
        summary.duration_seconds = Some(stream.duration_ms(now) / 1_000);
        summary.seen_at = stream.stale_since.or_else(|| progress.map(|progress| progress.seen_at));
        Self {
            summary,
            key_id: stream.key_id,
            epoch: stream.epoch,
            admitted_at: stream.admitted_at,
            key_expires_at: stream.key_expires_at,
            protocol: stream.source.protocol,
            source: StreamSource {
                id: stream.source.id,
                source_type: stream.source.source_type,
                address: stream.source.address.clone(),
                user_agent: stream.source.user_agent.clone(),
            },
            tracks: stream.tracks.clone(),
            inbound_bits_per_second: progress.and_then(|progress| progress.inbound_bits_per_second),
            inbound_bytes: totals.map(|totals| totals.inbound_bytes),
            outbound_bytes: totals.map(|totals| totals.outbound_bytes),
            inbound_frames_in_error: progress.map(|progress| progress.inbound_frames_in_error),
            readers: progress.map(|progress| progress.readers.clone()).unwrap_or_default(),
            viewers_peak: totals.map(|totals| totals.viewers_peak),
            stalled_at: stream.stalled_at,
            connection: beside.connection.map(StreamConnection::from),
            recording: stream.info.recording.clone(),
            as_of: beside.as_of,
        }
    }
}

/// A stream that was taken off air.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StoppedStream {
    pub stream: StreamDetails,
    /// What became of its publisher.
    pub publisher: PublisherWord,
    /// Until when its path admits nobody, so that an encoder's own reconnect does not undo this.
    pub closed_until: Timestamp,
}

/// Changes of what viewers are told: absent stays, `null` clears.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"title": "Ada live: questions and answers"}))]
pub struct PatchStream {
    #[serde(default)]
    #[schema(required = false, value_type = Option<Title>)]
    pub title: Change<Title>,
    #[serde(default)]
    #[schema(required = false, value_type = Option<Description>)]
    pub description: Change<Description>,
    /// Free data, in place of all that was there.
    #[serde(default)]
    #[schema(required = false, value_type = Option<FreeData>)]
    pub metadata: Change<FreeData>,
    /// Where the recording is.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Recording>)]
    pub recording: Change<Recording>,
}

words! {
    /// Which streams are listed.
    pub enum StateFilter {
        /// Admitted, not yet seen online.
        Connecting = "connecting",
        /// Seen online.
        Live = "live",
        /// Over: from the history.
        Ended = "ended",
    }
}

/// Which streams are listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListStreams {
    /// Absent: everything on air, connecting and live. `ended` reads the history.
    #[param(inline)]
    pub state: Option<StateFilter>,
    /// Only those on this node.
    #[param(inline)]
    pub node: Option<NodeName>,
    /// Only this broadcaster's.
    pub broadcaster_id: Option<BroadcasterId>,
    /// Only those on this path.
    #[param(inline)]
    pub path: Option<StreamPath>,
    /// With `state=ended`: only those that this key admitted.
    pub key_id: Option<KeyId>,
    /// With `state=ended`: only those that ended at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    pub ended_from: Option<Timestamp>,
    /// With `state=ended`: only those that ended before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    pub ended_before: Option<Timestamp>,
    /// At most so many.
    #[serde(default)]
    #[param(inline, required = false)]
    pub limit: PageLimit,
    /// `next_cursor` of the page before.
    #[param(max_length = 512)]
    pub cursor: Option<String>,
}
