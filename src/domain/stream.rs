//! A stream: one broadcast on a path, from admission to end.

use serde::{Deserialize, Serialize};

use super::{
    BroadcasterId, Epoch, KeyId, Metadata, NodeName, Playback, Revision, SourceId, StreamId, StreamPath, Timestamp,
    words::words,
};

words! {
    /// Where a stream is in its life, without the times that [`StreamState`] carries.
    pub enum StreamStateWord {
        /// Admitted, not yet seen online.
        Connecting = "connecting",
        /// Seen online.
        Live = "live",
        /// Over.
        Ended = "ended",
    }
}

words! {
    /// Why a stream ended.
    pub enum EndReason {
        /// The publisher left: `MediaMTX` said so.
        Unpublished = "unpublished",
        /// The node no longer has it and no hook told.
        Lost = "lost",
        /// Admitted, but it did not come online in time, or its connection went away first.
        NeverOnline = "never_online",
        /// Its key was revoked.
        KeyRevoked = "key_revoked",
        /// Its key was disabled.
        KeyDisabled = "key_disabled",
        /// Its key's time was over.
        KeyExpired = "key_expired",
        /// An administrator stopped it.
        Stopped = "stopped",
        /// A newer publisher with the same key replaced it, as `on_conflict = take_over` says.
        TakenOver = "taken_over",
        /// It had stopped delivering when its broadcaster came back.
        Stalled = "stalled",
        /// Its node restarted.
        NodeRestarted = "node_restarted",
        /// Its node was unreachable for too long.
        NodeLost = "node_lost",
        /// Its node was unreachable when its broadcaster came back on another way.
        NodeUnreachable = "node_unreachable",
        /// Nobody had admitted its publisher.
        Unadmitted = "unadmitted",
        /// Its node was removed from the fleet.
        NodeRemoved = "node_removed",
    }
}

words! {
    /// How a publisher or reader speaks to `MediaMTX`; encrypted forms are not told apart in an auth call.
    pub enum Protocol {
        /// RTMP, RTMPS.
        Rtmp = "rtmp",
        /// RTSP, RTSPS.
        Rtsp = "rtsp",
        /// SRT.
        Srt = "srt",
        /// WHIP, WHEP.
        WebRtc = "webrtc",
        /// HLS.
        Hls = "hls",
        /// Media over QUIC.
        Moq = "moq",
        /// One that `MediaMTX` learned after this was written.
        Other = "other",
    }
}

impl Protocol {
    /// The protocol of an auth call; a new word is [`Protocol::Other`], because `MediaMTX` grows.
    #[must_use]
    pub fn from_mediamtx(word: &str) -> Self {
        word.parse().unwrap_or(Self::Other)
    }

    /// The types that a publisher of this protocol may have in the control API.
    #[must_use]
    pub fn source_types(self) -> &'static [SourceType] {
        match self {
            Self::Rtmp => &[SourceType::RtmpConn, SourceType::RtmpsConn],
            Self::Rtsp => &[SourceType::RtspSession, SourceType::RtspsSession],
            Self::Srt => &[SourceType::SrtConn],
            Self::WebRtc => &[SourceType::WebRtcSession],
            Self::Moq => &[SourceType::MoqSession],
            Self::Hls | Self::Other => SourceType::ALL,
        }
    }
}

words! {
    /// What a publisher is in `MediaMTX`'s control API and hooks. Pulled sources (`rtspSource`, ...) are not among them:
    /// nobody admits those, and nobody kicks them.
    pub enum SourceType {
        /// An RTMP connection.
        RtmpConn = "rtmpConn",
        /// An RTMPS connection.
        RtmpsConn = "rtmpsConn",
        /// An RTSP session.
        RtspSession = "rtspSession",
        /// An RTSPS session.
        RtspsSession = "rtspsSession",
        /// An SRT connection.
        SrtConn = "srtConn",
        /// A WHIP session.
        WebRtcSession = "webRTCSession",
        /// A Media-over-QUIC session.
        MoqSession = "moqSession",
    }
}

impl SourceType {
    /// The control API's collection: `/v3/{collection}/kick/{id}`.
    #[must_use]
    pub fn collection(self) -> &'static str {
        match self {
            Self::RtmpConn => "rtmpconns",
            Self::RtmpsConn => "rtmpsconns",
            Self::RtspSession => "rtspsessions",
            Self::RtspsSession => "rtspssessions",
            Self::SrtConn => "srtconns",
            Self::WebRtcSession => "webrtcsessions",
            Self::MoqSession => "moqsessions",
        }
    }
}

/// The publisher's connection, as `MediaMTX` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `MediaMTX`'s id of the connection.
    pub id: SourceId,
    /// Known from the first hook or poll on; the auth call only tells the protocol.
    pub source_type: Option<SourceType>,
    /// How it publishes.
    pub protocol: Protocol,
    /// The publisher's IP address as the node saw it.
    pub address: String,
    /// What the encoder calls itself; empty for SRT.
    pub user_agent: String,
}

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// Admitted, not yet seen online; ends at the deadline.
    Connecting {
        /// When it ends as [`EndReason::NeverOnline`].
        deadline: Timestamp,
    },
    /// Seen online.
    Live {
        /// Since when.
        since: Timestamp,
    },
    /// Over.
    Ended {
        /// When it was first seen online, if ever.
        live_since: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
        /// Why.
        reason: EndReason,
    },
}

impl StreamState {
    /// The state without its times.
    #[must_use]
    pub fn word(self) -> StreamStateWord {
        match self {
            Self::Connecting { .. } => StreamStateWord::Connecting,
            Self::Live { .. } => StreamStateWord::Live,
            Self::Ended { .. } => StreamStateWord::Ended,
        }
    }

    /// When it was first seen online.
    #[must_use]
    pub fn live_since(self) -> Option<Timestamp> {
        match self {
            Self::Connecting { .. } => None,
            Self::Live { since } => Some(since),
            Self::Ended { live_since, .. } => live_since,
        }
    }
}

/// What viewers are told about a stream. Redis keeps it as one JSON text that no script looks into.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInfo {
    /// Title.
    pub title: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// The broadcaster's name.
    pub broadcaster_name: String,
    /// Free data.
    pub metadata: Metadata,
    /// Where the recording of this stream is, as the platform noted it.
    pub recording: Option<String>,
}

/// One broadcast on a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Where it is.
    pub path: StreamPath,
    /// Orders the streams of the path.
    pub epoch: Epoch,
    /// Counts the transitions and changes of this stream.
    pub revision: Revision,
    /// The key that admitted it.
    pub key_id: KeyId,
    /// Whose it is.
    pub broadcaster_id: BroadcasterId,
    /// The node it is on.
    pub node: NodeName,
    /// The publisher's connection.
    pub source: Source,
    /// Where it is in its life.
    pub state: StreamState,
    /// When its publisher was admitted.
    pub admitted_at: Timestamp,
    /// When its key expires, and it with it.
    pub key_expires_at: Option<Timestamp>,
    /// What viewers are told.
    pub info: StreamInfo,
    /// Who may watch.
    pub playback: Playback,
    /// Since when its bytes have stood still, while they do.
    pub stalled_at: Option<Timestamp>,
    /// When its node was last heard of, while the node is unreachable.
    pub stale_since: Option<Timestamp>,
    /// What it carries, as the node told last.
    pub tracks: Vec<Track>,
}

impl Stream {
    /// Why it ended; `None` while it is on air.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        match self.state {
            StreamState::Ended { reason, .. } => Some(reason),
            StreamState::Connecting { .. } | StreamState::Live { .. } => None,
        }
    }

    /// Milliseconds on air so far, or in all; zero before it was online.
    #[must_use]
    pub fn duration_ms(&self, now: Timestamp) -> u64 {
        let until = match self.state {
            StreamState::Ended { at, .. } => at,
            StreamState::Connecting { .. } | StreamState::Live { .. } => now,
        };
        self.state.live_since().map_or(0, |since| until.ms_since(since))
    }

    /// One that was admitted to `path` on `edge-1`, and has a minute to come online.
    #[cfg(test)]
    pub(crate) fn admitted(path: &str, admitted_at: Timestamp) -> Self {
        Self {
            id: StreamId::generate(),
            path: path.parse().expect("a path"),
            epoch: Epoch(1),
            revision: Revision(1),
            key_id: KeyId::generate(),
            broadcaster_id: BroadcasterId::generate(),
            node: "edge-1".parse().expect("a name"),
            source: Source {
                id: SourceId(uuid::Uuid::new_v4()),
                source_type: None,
                protocol: Protocol::Rtmp,
                address: String::new(),
                user_agent: String::new(),
            },
            state: StreamState::Connecting { deadline: admitted_at.plus_ms(60_000) },
            admitted_at,
            key_expires_at: None,
            info: StreamInfo::default(),
            playback: Playback::Public,
            stalled_at: None,
            stale_since: None,
            tracks: Vec::new(),
        }
    }
}

/// One elementary stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Track {
    /// `MediaMTX`'s name of the codec, such as `H264` or `MPEG-4 Audio`.
    pub codec: String,
    /// What is known of it; a node before v1.17 tells the codec only.
    #[serde(flatten)]
    pub props: TrackProps,
}

/// Technical parameters of a track. Absent where the node does not tell; `MediaMTX`'s zero means unknown and is absent too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TrackProps {
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Codec profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Codec level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Hertz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_rate_hz: Option<u32>,
    /// Audio channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_count: Option<u32>,
}

/// How many readers of one type a stream has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reader {
    /// `MediaMTX`'s type of reader, such as `hlsSession`.
    #[serde(rename = "type")]
    pub reader_type: String,
    /// How many of them.
    pub count: u32,
}

/// What the poller saw of a stream last: changes all the time, and is no transition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The source that it is about; a word about another one is ignored.
    pub source_id: SourceId,
    /// When it was seen.
    pub seen_at: Timestamp,
    /// Bytes received from the publisher since it came online.
    pub inbound_bytes: u64,
    /// Bytes sent to readers.
    pub outbound_bytes: u64,
    /// Bits a second received, over the last few seconds.
    pub inbound_bits_per_second: Option<u64>,
    /// Frames that arrived broken.
    pub inbound_frames_in_error: u64,
    /// Readers by type.
    pub readers: Vec<Reader>,
    /// The most viewers at once so far.
    pub viewers_peak: u32,
    /// The renditions of the stream that are online.
    #[serde(default)]
    pub qualities: Vec<Quality>,
}

/// A rendition of a stream: what its node transcodes it into, on a path of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quality {
    /// Where it is watched.
    pub path: StreamPath,
    /// What it carries.
    pub tracks: Vec<Track>,
    /// Bits a second that come out of the transcoder, over the last few seconds.
    pub bits_per_second: Option<u64>,
    /// Its readers by type.
    pub readers: Vec<Reader>,
}

impl Progress {
    /// How many watch now, in whatever quality. The transcoder is a reader too.
    #[must_use]
    pub fn viewers(&self) -> u32 {
        let all = self.readers.iter().chain(self.qualities.iter().flat_map(|quality| &quality.readers));
        all.map(|reader| reader.count).sum()
    }
}
