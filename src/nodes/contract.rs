//! What `MediaMTX`'s control API says, as far as Onair reads it.
//!
//! Every field is optional and unknown ones are ignored, because the API grows and renames: the newer name wins, the older
//! one is read where the newer is absent.

use serde::Deserialize;

use crate::domain::{Reader, SourceId, Track, TrackProps};

/// `GET /v3/info`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Such as `v1.20.1`.
    pub version: String,
    /// When the process started; changes with every restart.
    pub started: String,
}

/// One page of `GET /v3/paths/list`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathsPage {
    /// How many pages there are.
    pub page_count: u32,
    /// The paths of this one.
    pub items: Vec<PathItem>,
}

/// One path.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathItem {
    /// Its name.
    pub name: String,
    online: Option<bool>,
    ready: Option<bool>,
    source: Option<SourceItem>,
    tracks: Vec<String>,
    tracks2: Vec<TrackItem>,
    readers: Vec<ReaderItem>,
    inbound_bytes: Option<u64>,
    outbound_bytes: Option<u64>,
    bytes_received: Option<u64>,
    bytes_sent: Option<u64>,
    /// Frames that arrived broken.
    pub inbound_frames_in_error: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct SourceItem {
    #[serde(rename = "type", default)]
    source_type: String,
    #[serde(default)]
    id: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TrackItem {
    codec: String,
    codec_props: Option<PropsItem>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PropsItem {
    width: Option<u32>,
    height: Option<u32>,
    profile: Option<serde_json::Value>,
    level: Option<serde_json::Value>,
    sample_rate: Option<u32>,
    channel_count: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
struct ReaderItem {
    #[serde(rename = "type", default)]
    reader_type: String,
}

/// A path that somebody feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineSource<'a> {
    /// `MediaMTX`'s word for what feeds it, a publisher or a pulled source.
    pub source_type: &'a str,
    /// The publisher's id; pulled sources may have none.
    pub id: Option<SourceId>,
}

impl PathItem {
    /// Who feeds the path now; `None` where nobody does.
    #[must_use]
    pub fn online_source(&self) -> Option<OnlineSource<'_>> {
        let online = self.online.or(self.ready).unwrap_or(false);
        let source = self.source.as_ref().filter(|_| online)?;
        Some(OnlineSource { source_type: &source.source_type, id: source.id.parse().ok() })
    }

    /// Bytes received from the source.
    #[must_use]
    pub fn inbound_bytes(&self) -> u64 {
        self.inbound_bytes.or(self.bytes_received).unwrap_or(0)
    }

    /// Bytes sent to readers.
    #[must_use]
    pub fn outbound_bytes(&self) -> u64 {
        self.outbound_bytes.or(self.bytes_sent).unwrap_or(0)
    }

    /// What the path carries. `MediaMTX` says zero where it does not know.
    #[must_use]
    pub fn tracks(&self) -> Vec<Track> {
        if self.tracks2.is_empty() {
            return self
                .tracks
                .iter()
                .map(|codec| Track { codec: codec.clone(), props: TrackProps::default() })
                .collect();
        }
        self.tracks2.iter().map(TrackItem::track).collect()
    }

    /// Readers, counted by type, in the order of the types' names.
    #[must_use]
    pub fn readers(&self) -> Vec<Reader> {
        let mut counts = std::collections::BTreeMap::<&str, u32>::new();
        for reader in &self.readers {
            *counts.entry(&reader.reader_type).or_default() += 1;
        }
        counts.into_iter().map(|(name, count)| Reader { reader_type: name.to_owned(), count }).collect()
    }
}

impl TrackItem {
    fn track(&self) -> Track {
        let props = self.codec_props.clone().unwrap_or_default();
        let known = |number: Option<u32>| number.filter(|&number| number != 0);
        Track {
            codec: self.codec.clone(),
            props: TrackProps {
                width: known(props.width),
                height: known(props.height),
                profile: props.profile.as_ref().and_then(word),
                level: props.level.as_ref().and_then(word),
                sample_rate_hz: known(props.sample_rate),
                channel_count: known(props.channel_count),
            },
        }
    }
}

/// Profiles and levels are texts with some codecs and numbers with others.
fn word(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// One connection or session: `GET /v3/{collection}/get/{id}`. Its `query`, which may hold a key, is never read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConnectionItem {
    /// `idle`, `read` or `publish`.
    pub state: String,
    /// The client's address and port.
    #[serde(rename = "remoteAddr")]
    pub remote_address: String,
    /// SRT: round-trip time in milliseconds.
    #[serde(rename = "msRTT")]
    pub rtt_ms: Option<f64>,
    /// SRT: packets lost on the way here.
    #[serde(rename = "packetsReceivedLoss")]
    packets_received_loss: Option<u64>,
    /// SRT: packets that arrived.
    #[serde(rename = "packetsReceived")]
    packets_received: Option<u64>,
    /// RTSP and WebRTC, in RTP packets. Newer nodes tell each of these under both names, so none can be an alias.
    #[serde(rename = "inboundRTPPacketsLost")]
    inbound_rtp_packets_lost: Option<u64>,
    #[serde(rename = "inboundRTPPackets")]
    inbound_rtp_packets: Option<u64>,
    #[serde(rename = "inboundRTPPacketsJitter")]
    inbound_rtp_jitter: Option<f64>,
    #[serde(rename = "rtpPacketsLost")]
    rtp_packets_lost: Option<u64>,
    #[serde(rename = "rtpPacketsReceived")]
    rtp_packets_received: Option<u64>,
    #[serde(rename = "rtpPacketsJitter")]
    rtp_jitter: Option<f64>,
}

impl ConnectionItem {
    /// Packets that arrived.
    #[must_use]
    pub fn packets(&self) -> Option<u64> {
        self.packets_received.or(self.inbound_rtp_packets).or(self.rtp_packets_received)
    }

    /// Packets lost on the way here.
    #[must_use]
    pub fn packets_lost(&self) -> Option<u64> {
        self.packets_received_loss.or(self.inbound_rtp_packets_lost).or(self.rtp_packets_lost)
    }

    /// Jitter, in RTP clock units.
    #[must_use]
    pub fn jitter_rtp(&self) -> Option<f64> {
        self.inbound_rtp_jitter.or(self.rtp_jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_by_its_newer_names() {
        let text = r#"{"name":"live/ch1","ready":true,"online":true,"source":{"type":"rtmpConn","id":"033e004d-e90f-4ef1-9ccb-f27b70cc0549"},
            "tracks":["H264"],"tracks2":[{"codec":"H264","codecProps":{"width":320,"height":0,"profile":"Baseline","level":"1.2"}},
            {"codec":"VP8","codecProps":null}],"readers":[{"type":"hlsSession","id":"x"},{"type":"hlsSession","id":"y"}],
            "inboundBytes":5,"bytesReceived":4,"aFieldOfTomorrow":[1]}"#;
        let item: PathItem = serde_json::from_str(text).unwrap();
        assert_eq!(item.online_source().unwrap().source_type, "rtmpConn");
        assert_eq!(item.inbound_bytes(), 5);
        let tracks = item.tracks();
        assert_eq!((tracks[0].props.width, tracks[0].props.height), (Some(320), None));
        assert_eq!(tracks[1], Track { codec: "VP8".to_owned(), props: TrackProps::default() });
        assert_eq!(item.readers(), [Reader { reader_type: "hlsSession".to_owned(), count: 2 }]);
    }

    #[test]
    fn an_older_node_is_read_by_its_older_names() {
        let text = r#"{"name":"a","ready":true,"source":{"type":"rtspSession","id":"7caf2c95-9db9-4d51-be18-6f5385a2ee31"},
            "tracks":["H264","MPEG-4 Audio"],"bytesReceived":7,"bytesSent":8,"readers":[]}"#;
        let item: PathItem = serde_json::from_str(text).unwrap();
        assert!(item.online_source().is_some());
        assert_eq!((item.inbound_bytes(), item.outbound_bytes(), item.tracks().len()), (7, 8, 2));
    }

    #[test]
    fn a_connection_is_read_whether_a_node_uses_the_newer_names_the_older_ones_or_both() {
        let numbers = |text: &str| {
            let item: ConnectionItem = serde_json::from_str(text).unwrap();
            (item.packets(), item.packets_lost(), item.jitter_rtp())
        };
        let newer = r#""inboundRTPPackets":557,"inboundRTPPacketsLost":2,"inboundRTPPacketsJitter":584.5"#;
        let older = r#""rtpPacketsReceived":557,"rtpPacketsLost":2,"rtpPacketsJitter":584.5"#;
        for text in [format!("{{{newer}}}"), format!("{{{older}}}"), format!("{{{newer},{older}}}")] {
            assert_eq!(numbers(&text), (Some(557), Some(2), Some(584.5)), "{text}");
        }
        assert_eq!(numbers(r#"{"packetsReceived":9,"packetsReceivedLoss":1}"#), (Some(9), Some(1), None));
    }

    #[test]
    fn a_path_without_a_publisher_is_not_online() {
        for text in [
            r#"{"name":"a","online":false,"ready":true,"source":{"type":"rtmpConn","id":""}}"#,
            r#"{"name":"a","ready":true}"#,
        ] {
            assert!(serde_json::from_str::<PathItem>(text).unwrap().online_source().is_none(), "{text}");
        }
    }
}
