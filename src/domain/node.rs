//! A `MediaMTX` server, and the URLs that a path has on it.

use serde::{Deserialize, Serialize};
use url::Url;

use super::{NodeName, Secret, StreamPath, Timestamp};

/// One `MediaMTX` server of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name: the user name of its calls.
    pub name: NodeName,
    /// Where Onair reaches its control API, such as `http://edge-1:9997`.
    pub control_url: Url,
    /// Where viewers and broadcasters reach it.
    pub public_urls: PublicUrls,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// The public base URLs of a node, one for each protocol it serves. A path is appended to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PublicUrls {
    /// Such as `https://edge-1.example.org:8888`.
    #[schema(value_type = Option<String>, format = "uri")]
    pub hls: Option<Url>,
    /// WHIP and WHEP, such as `https://edge-1.example.org:8889`.
    #[schema(value_type = Option<String>, format = "uri")]
    pub webrtc: Option<Url>,
    /// Such as `rtmp://edge-1.example.org:1935`.
    #[schema(value_type = Option<String>, format = "uri")]
    pub rtmp: Option<Url>,
    /// Such as `rtsp://edge-1.example.org:8554`.
    #[schema(value_type = Option<String>, format = "uri")]
    pub rtsp: Option<Url>,
    /// Such as `srt://edge-1.example.org:8890`.
    #[schema(value_type = Option<String>, format = "uri")]
    pub srt: Option<Url>,
}

/// Where a stream can be watched. Absent where the node does not offer the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlaybackUrls {
    /// The HLS playlist.
    pub hls: Option<String>,
    /// The WHEP endpoint.
    pub webrtc: Option<String>,
    /// The RTMP source.
    pub rtmp: Option<String>,
    /// The RTSP source.
    pub rtsp: Option<String>,
    /// SRT, as a caller with its stream id.
    pub srt: Option<String>,
}

/// Where a broadcaster publishes, with the secret filled in. Shown once, when the key is created.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublishUrls {
    /// One URL for FFmpeg and others that take a whole URL.
    pub rtmp: Option<String>,
    /// What OBS calls "Server".
    pub obs_server: Option<String>,
    /// What OBS calls "Stream Key".
    pub obs_stream_key: Option<String>,
    /// With the stream id that holds path and key.
    pub srt: Option<String>,
    /// WHIP endpoint, to be used with `Authorization: Bearer <key>`.
    pub whip: Option<String>,
    /// With the key as password.
    pub rtsp: Option<String>,
}

impl std::fmt::Debug for PublishUrls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PublishUrls(..)")
    }
}

fn base(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

impl PublicUrls {
    /// Where `path` can be watched.
    #[must_use]
    pub fn playback(&self, path: &StreamPath) -> PlaybackUrls {
        PlaybackUrls {
            hls: self.hls.as_ref().map(|url| format!("{}/{path}/index.m3u8", base(url))),
            webrtc: self.webrtc.as_ref().map(|url| format!("{}/{path}/whep", base(url))),
            rtmp: self.rtmp.as_ref().map(|url| format!("{}/{path}", base(url))),
            rtsp: self.rtsp.as_ref().map(|url| format!("{}/{path}", base(url))),
            srt: self.srt.as_ref().map(|url| format!("{}?streamid=read:{path}", base(url))),
        }
    }

    /// Where the holder of `secret` publishes to `path`.
    ///
    /// RTMP splits a URL into application and stream at the last slash, and OBS asks for the two apart; a path without a
    /// slash has no application, and `MediaMTX` then takes the server's address alone.
    #[must_use]
    pub fn publish(&self, path: &StreamPath, secret: &Secret) -> PublishUrls {
        let key = secret.reveal();
        let (application, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        PublishUrls {
            rtmp: self.rtmp.as_ref().map(|url| format!("{}/{path}?key={key}", base(url))),
            obs_server: self.rtmp.as_ref().map(|url| format!("{}/{application}", base(url))),
            obs_stream_key: self.rtmp.as_ref().map(|_| format!("{name}?key={key}")),
            srt: self.srt.as_ref().map(|url| format!("{}?streamid=publish:{path}:onair:{key}", base(url))),
            whip: self.webrtc.as_ref().map(|url| format!("{}/{path}/whip", base(url))),
            rtsp: self.rtsp.as_ref().map(|url| {
                let address = base(url);
                let (scheme, rest) = address.split_once("://").unwrap_or(("rtsp", address));
                format!("{scheme}://onair:{key}@{rest}/{path}")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls() -> PublicUrls {
        PublicUrls {
            hls: Some("https://edge.example.org/hls/".parse().unwrap()),
            webrtc: Some("https://edge.example.org:8889".parse().unwrap()),
            rtmp: Some("rtmp://edge.example.org:1935".parse().unwrap()),
            rtsp: Some("rtsp://edge.example.org:8554".parse().unwrap()),
            srt: Some("srt://edge.example.org:8890".parse().unwrap()),
        }
    }

    #[test]
    fn playback_urls_are_those_that_mediamtx_serves() {
        let playback = urls().playback(&"live/ada".parse().unwrap());
        assert_eq!(playback.hls.unwrap(), "https://edge.example.org/hls/live/ada/index.m3u8");
        assert_eq!(playback.webrtc.unwrap(), "https://edge.example.org:8889/live/ada/whep");
        assert_eq!(playback.rtmp.unwrap(), "rtmp://edge.example.org:1935/live/ada");
        assert_eq!(playback.rtsp.unwrap(), "rtsp://edge.example.org:8554/live/ada");
        assert_eq!(playback.srt.unwrap(), "srt://edge.example.org:8890?streamid=read:live/ada");
    }

    #[test]
    fn publish_urls_put_the_key_where_the_protocol_carries_it() {
        let secret = Secret::from_draws([10; 28]).unwrap();
        let key = secret.reveal();
        let publish = urls().publish(&"live/ada".parse().unwrap(), &secret);
        assert_eq!(publish.rtmp.unwrap(), format!("rtmp://edge.example.org:1935/live/ada?key={key}"));
        assert_eq!(publish.obs_server.unwrap(), "rtmp://edge.example.org:1935/live");
        assert_eq!(publish.obs_stream_key.unwrap(), format!("ada?key={key}"));
        assert_eq!(publish.srt.unwrap(), format!("srt://edge.example.org:8890?streamid=publish:live/ada:onair:{key}"));
        assert_eq!(publish.whip.unwrap(), "https://edge.example.org:8889/live/ada/whip");
        assert_eq!(publish.rtsp.unwrap(), format!("rtsp://onair:{key}@edge.example.org:8554/live/ada"));
    }

    #[test]
    fn what_a_node_does_not_serve_is_absent() {
        let none = PublicUrls::default().playback(&"a".parse().unwrap());
        assert_eq!(none, PlaybackUrls { hls: None, webrtc: None, rtmp: None, rtsp: None, srt: None });
    }
}
