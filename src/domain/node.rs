//! A `MediaMTX` server, and the URLs that a path has on it.

use serde::{Deserialize, Serialize};
use url::Url;

use super::{NodeName, Secret, StreamPath, Timestamp};

/// The longest URL of a node, in characters.
const URL_LENGTH_MAX: usize = 500;
/// What the URLs over HTTP begin with.
const HTTP: &[&str] = &["http", "https"];

/// URLs as they are read: what is wrong is said without repeating it, for it may hold a password.
pub mod url_field {
    use serde::{Deserialize as _, Deserializer, de::Error as _};
    use url::Url;

    /// One that has to be there.
    ///
    /// # Errors
    /// Where it is none.
    pub fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
        read(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// One that may be absent.
    ///
    /// # Errors
    /// Where it is there, and none.
    pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| read(&text)).transpose().map_err(D::Error::custom)
    }

    fn read(text: &str) -> Result<Url, &'static str> {
        text.parse().map_err(|_| "must be an absolute URL such as https://edge-1.example.org:8888")
    }
}

/// Whether a path, and a secret, can be put behind a URL: it has to end where a path can begin. Says what it must be, where it cannot.
fn check_base_url(url: &Url, schemes: &[&str]) -> Result<(), String> {
    if !schemes.contains(&url.scheme()) || !url.has_host() {
        return Err(format!("must begin with {}:// and a host", schemes.join(":// or ")));
    }
    let holds_more =
        !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some();
    if holds_more || url.as_str().len() > URL_LENGTH_MAX {
        return Err(format!("must have at most {URL_LENGTH_MAX} characters and no user, password, query or fragment"));
    }
    Ok(())
}

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
    #[serde(deserialize_with = "url_field::optional")]
    #[schema(value_type = Option<String>, format = "uri")]
    pub hls: Option<Url>,
    /// WHIP and WHEP, such as `https://edge-1.example.org:8889`.
    #[serde(deserialize_with = "url_field::optional")]
    #[schema(value_type = Option<String>, format = "uri")]
    pub webrtc: Option<Url>,
    /// Such as `rtmp://edge-1.example.org:1935`.
    #[serde(deserialize_with = "url_field::optional")]
    #[schema(value_type = Option<String>, format = "uri")]
    pub rtmp: Option<Url>,
    /// Such as `rtsp://edge-1.example.org:8554`.
    #[serde(deserialize_with = "url_field::optional")]
    #[schema(value_type = Option<String>, format = "uri")]
    pub rtsp: Option<Url>,
    /// Such as `srt://edge-1.example.org:8890`.
    #[serde(deserialize_with = "url_field::optional")]
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

impl Node {
    /// Whether a node can be what somebody says it is.
    ///
    /// # Errors
    /// With the first field that cannot be, and what it must be.
    pub fn check(control_url: &Url, public_urls: &PublicUrls) -> Result<(), (&'static str, String)> {
        let fields = [
            ("control_url", HTTP, Some(control_url)),
            ("public_urls.hls", HTTP, public_urls.hls.as_ref()),
            ("public_urls.webrtc", HTTP, public_urls.webrtc.as_ref()),
            ("public_urls.rtmp", &["rtmp", "rtmps"], public_urls.rtmp.as_ref()),
            ("public_urls.rtsp", &["rtsp", "rtsps"], public_urls.rtsp.as_ref()),
            ("public_urls.srt", &["srt"], public_urls.srt.as_ref()),
        ];
        for (field, schemes, url) in fields {
            url.map_or(Ok(()), |url| check_base_url(url, schemes)).map_err(|problem| (field, problem))?;
        }
        Ok(())
    }
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
