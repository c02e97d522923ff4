//! What clients send, and where MediaMTX puts it: one constructor per row of the contract's credential table.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::auth::{AuthCall, Credentials};
use super::options::Release;

const RTMP_PUBLISHER: &str = "FMLE/3.0 (compatible; Lavf59.27.100)";
const RTMP_READER: &str = "LNX 9,0,124,2";
const RTSP_CLIENT: &str = "Lavf59.27.100";
const HLS_CLIENT: &str = "Lavf/59.27.100";
const HTTP_CLIENT: &str = "curl/7.88.1";

/// A publisher's or reader's kind of connection, as `source.type` and `readers[].type` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    RtmpConn,
    RtmpsConn,
    RtspSession,
    RtspsSession,
    SrtConn,
    WebRtcSession,
    HlsSession,
}

impl ConnectionKind {
    pub fn type_name(self) -> &'static str {
        match self {
            Self::RtmpConn => "rtmpConn",
            Self::RtmpsConn => "rtmpsConn",
            Self::RtspSession => "rtspSession",
            Self::RtspsSession => "rtspsSession",
            Self::SrtConn => "srtConn",
            Self::WebRtcSession => "webRTCSession",
            Self::HlsSession => "hlsSession",
        }
    }

    /// The part of the control API that lists and kicks this kind.
    pub fn collection(self) -> &'static str {
        match self {
            Self::RtmpConn => "rtmpconns",
            Self::RtmpsConn => "rtmpsconns",
            Self::RtspSession => "rtspsessions",
            Self::RtspsSession => "rtspssessions",
            Self::SrtConn => "srtconns",
            Self::WebRtcSession => "webrtcsessions",
            Self::HlsSession => "hlssessions",
        }
    }

    pub(super) fn of_collection(collection: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.collection() == collection)
    }

    /// The recording shows the first; the second is what the source of v1.20.1 says of sessions.
    pub(super) fn not_found(self) -> &'static str {
        match self {
            Self::RtmpConn | Self::RtmpsConn | Self::SrtConn => "connection not found",
            Self::RtspSession | Self::RtspsSession | Self::WebRtcSession | Self::HlsSession => "session not found",
        }
    }

    /// TLS does not show in the auth call.
    fn protocol(self) -> &'static str {
        match self {
            Self::RtmpConn | Self::RtmpsConn => "rtmp",
            Self::RtspSession | Self::RtspsSession => "rtsp",
            Self::SrtConn => "srt",
            Self::WebRtcSession => "webrtc",
            Self::HlsSession => "hls",
        }
    }

    fn with_tls(self) -> Self {
        match self {
            Self::RtmpConn => Self::RtmpsConn,
            Self::RtspSession => Self::RtspsSession,
            other => other,
        }
    }

    /// How long this kind takes from admission to being online, as measured.
    fn usual_delay(self) -> Duration {
        Duration::from_millis(match self {
            Self::RtmpConn | Self::RtmpsConn => 2_000,
            Self::SrtConn => 500,
            Self::WebRtcSession => 100,
            Self::RtspSession | Self::RtspsSession | Self::HlsSession => 50,
        })
    }

    const ALL: [Self; 7] = [
        Self::RtmpConn,
        Self::RtmpsConn,
        Self::RtspSession,
        Self::RtspsSession,
        Self::SrtConn,
        Self::WebRtcSession,
        Self::HlsSession,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Publish,
    Read,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
        }
    }
}

/// What publishers and readers have in common.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub kind: ConnectionKind,
    pub action: Action,
    pub path: String,
    pub credentials: Credentials,
    pub query: String,
    pub user_agent: String,
    pub ip: String,
}

impl Client {
    pub fn new(kind: ConnectionKind, action: Action, path: &str) -> Self {
        let user_agent = match (kind.protocol(), action) {
            ("rtmp", Action::Publish) => RTMP_PUBLISHER,
            ("rtmp", Action::Read) => RTMP_READER,
            ("rtsp", _) => RTSP_CLIENT,
            ("hls", _) => HLS_CLIENT,
            ("webrtc", _) => HTTP_CLIENT,
            _ => "",
        };
        Self {
            kind,
            action,
            path: path.into(),
            credentials: Credentials::default(),
            query: String::new(),
            user_agent: user_agent.into(),
            ip: "127.0.0.1".into(),
        }
    }

    fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    fn query(mut self, query: &str) -> Self {
        self.query = query.into();
        self
    }

    /// An RTMP client: `user` and `pass` of its query become credentials and stay in the query.
    fn rtmp(action: Action, path: &str, query: &str) -> Self {
        let first = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map_or_else(String::new, |(_, value)| value.into_owned())
        };
        Self::new(ConnectionKind::RtmpConn, action, path)
            .credentials(Credentials::of_user(&first("user"), &first("pass")))
            .query(query)
    }

    /// The call as MediaMTX makes it of this client.
    pub fn auth_call(&self, release: Release, id: Option<Uuid>, shown: &Credentials) -> AuthCall {
        let protocol = self.kind.protocol();
        let user_agent = match release {
            Release::V1_20 => Some(self.user_agent.clone()),
            Release::V1_15 => None,
        };
        AuthCall {
            ip: self.ip.clone(),
            user: shown.user.clone(),
            password: shown.password.clone(),
            token: shown.token_field(protocol, &self.query),
            action: self.action.name().into(),
            path: self.path.clone(),
            protocol: protocol.into(),
            id,
            query: self.query.clone(),
            user_agent,
        }
    }

    /// The credentials of the calls a client makes until it is admitted: an RTSP client shows them when asked.
    pub fn attempts(&self) -> Vec<Credentials> {
        let own = self.credentials.clone();
        let shows_when_asked = self.kind.protocol() == "rtsp" && !own.user.is_empty();
        if shows_when_asked { vec![Credentials::default(), own] } else { vec![own] }
    }
}

/// When an admitted publisher comes online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Going {
    Online,
    OnlineAfter(Duration),
    /// Admitted and never online: it stays connected until it is closed or kicked.
    StaysConnecting,
}

/// A track as `tracks2` shows it; `tracks` shows the codec.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    pub codec: String,
    pub codec_props: Value,
}

impl Track {
    pub fn new(codec: &str, codec_props: Value) -> Self {
        Self { codec: codec.into(), codec_props }
    }

    pub(super) fn video_and_audio() -> Vec<Self> {
        let video = json!({ "width": 320, "height": 180, "profile": "Baseline", "level": "1.2" });
        let audio = json!({ "sampleRate": 44100, "channelCount": 1 });
        vec![Self::new("H264", video), Self::new("MPEG-4 Audio", audio)]
    }
}

/// A publisher that wants to go on air. Defaults: from 127.0.0.1, online at once, 250 kB/s of video and audio.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    pub(super) client: Client,
    pub(super) going: Going,
    pub(super) bytes_per_s: u64,
    pub(super) tracks: Vec<Track>,
}

impl PublishRequest {
    /// `rtmp://h/live/ch1?user=U&pass=P`
    pub fn rtmp_user_pass(path: &str, user: &str, password: &str) -> Self {
        Self::rtmp_query(path, &format!("user={user}&pass={password}"))
    }

    /// `rtmp://h/live/ch1?key=P`, or OBS with the stream key `ch1?key=P`
    pub fn rtmp_query_key(path: &str, key: &str) -> Self {
        Self::rtmp_query(path, &format!("key={key}"))
    }

    /// `rtmp://h/live/ch1?token=P`
    pub fn rtmp_query_token(path: &str, token: &str) -> Self {
        Self::rtmp_query(path, &format!("token={token}"))
    }

    /// `rtmp://h/live/P`: the key where the path's last part should be.
    pub fn rtmp_key_as_path(application: &str, key: &str) -> Self {
        Self::rtmp_query(&format!("{application}/{key}"), "")
    }

    /// RTMP with a query as it stands in the URL.
    pub fn rtmp_query(path: &str, query: &str) -> Self {
        Self::of(Client::rtmp(Action::Publish, path, query))
    }

    /// `streamid=publish:live/ch1:U:P` or `#!::m=publish,r=live/ch1,u=U,s=P`
    pub fn srt_streamid(path: &str, user: &str, password: &str) -> Self {
        let credentials = Credentials::of_user(user, password);
        Self::of(publisher(ConnectionKind::SrtConn, path).credentials(credentials))
    }

    /// `streamid=publish:live/ch1:::key=P`
    pub fn srt_streamid_query(path: &str, query: &str) -> Self {
        Self::of(publisher(ConnectionKind::SrtConn, path).query(query))
    }

    /// `rtsp://U:P@h/live/ch1`: a call without credentials and, when that is refused, one with them and the same id.
    pub fn rtsp(path: &str, user: &str, password: &str) -> Self {
        let credentials = Credentials::of_user(user, password);
        Self::of(publisher(ConnectionKind::RtspSession, path).credentials(credentials))
    }

    /// An RTSP publisher that has nothing to show when asked: one call.
    pub fn rtsp_without_credentials(path: &str) -> Self {
        Self::of(publisher(ConnectionKind::RtspSession, path))
    }

    /// `rtsp://h/live/ch1?token=P`
    pub fn rtsp_query_token(path: &str, token: &str) -> Self {
        let query = format!("token={token}");
        Self::of(publisher(ConnectionKind::RtspSession, path).query(&query))
    }

    /// WHIP, `Authorization: Bearer P` (or `Bearer U:P`, which arrives as user and password)
    pub fn whip_bearer(path: &str, bearer: &str) -> Self {
        let credentials = Credentials::of_bearer(bearer);
        Self::of(publisher(ConnectionKind::WebRtcSession, path).credentials(credentials))
    }

    /// WHIP, `Authorization: Basic`
    pub fn whip_basic(path: &str, user: &str, password: &str) -> Self {
        let credentials = Credentials::of_user(user, password);
        Self::of(publisher(ConnectionKind::WebRtcSession, path).credentials(credentials))
    }

    /// WHIP, `?key=P`
    pub fn whip_query_key(path: &str, key: &str) -> Self {
        let query = format!("key={key}");
        Self::of(publisher(ConnectionKind::WebRtcSession, path).query(&query))
    }

    /// WHIP with nothing to show; as `MediaMtx::preflight` it is what a browser's `OPTIONS` becomes.
    pub fn whip_without_credentials(path: &str) -> Self {
        Self::of(publisher(ConnectionKind::WebRtcSession, path))
    }

    fn of(client: Client) -> Self {
        Self { client, going: Going::Online, bytes_per_s: 250_000, tracks: Track::video_and_audio() }
    }

    #[must_use]
    pub fn going(mut self, going: Going) -> Self {
        self.going = going;
        self
    }

    #[must_use]
    pub fn stays_connecting(self) -> Self {
        self.going(Going::StaysConnecting)
    }

    /// Online after the time that was measured for its protocol (RTMP: 2 s).
    #[must_use]
    pub fn online_after_usual_delay(self) -> Self {
        let delay = self.client.kind.usual_delay();
        self.going(Going::OnlineAfter(delay))
    }

    /// RTMP and RTSP over TLS: another type and another part of the control API, the same auth call.
    #[must_use]
    pub fn over_tls(mut self) -> Self {
        self.client.kind = self.client.kind.with_tls();
        self
    }

    #[must_use]
    pub fn with_ip(mut self, ip: &str) -> Self {
        self.client.ip = ip.into();
        self
    }

    #[must_use]
    pub fn user_agent(mut self, user_agent: &str) -> Self {
        self.client.user_agent = user_agent.into();
        self
    }

    #[must_use]
    pub fn bytes_per_s(mut self, bytes_per_s: u64) -> Self {
        self.bytes_per_s = bytes_per_s;
        self
    }

    #[must_use]
    pub fn tracks(mut self, tracks: Vec<Track>) -> Self {
        self.tracks = tracks;
        self
    }
}

/// A reader that wants to watch a path.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    pub(super) client: Client,
}

impl ReadRequest {
    /// One call per HLS session.
    pub fn hls(path: &str, user: &str, password: &str) -> Self {
        Self::of_user(ConnectionKind::HlsSession, path, user, password)
    }

    /// `rtmp://h/live/ch1?token=P`: one call.
    pub fn rtmp_query_token(path: &str, token: &str) -> Self {
        Self { client: Client::rtmp(Action::Read, path, &format!("token={token}")) }
    }

    /// DESCRIBE and SETUP: two calls with two ids, and one more before them when credentials are asked for.
    pub fn rtsp(path: &str, user: &str, password: &str) -> Self {
        Self::of_user(ConnectionKind::RtspSession, path, user, password)
    }

    pub fn srt(path: &str, user: &str, password: &str) -> Self {
        Self::of_user(ConnectionKind::SrtConn, path, user, password)
    }

    /// WHEP, `Authorization: Bearer`: one call.
    pub fn whep_bearer(path: &str, bearer: &str) -> Self {
        let client = Client::new(ConnectionKind::WebRtcSession, Action::Read, path);
        Self { client: client.credentials(Credentials::of_bearer(bearer)) }
    }

    pub fn without_credentials(path: &str, kind: ConnectionKind) -> Self {
        Self { client: Client::new(kind, Action::Read, path) }
    }

    fn of_user(kind: ConnectionKind, path: &str, user: &str, password: &str) -> Self {
        let client = Client::new(kind, Action::Read, path);
        Self { client: client.credentials(Credentials::of_user(user, password)) }
    }

    #[must_use]
    pub fn with_query(mut self, query: &str) -> Self {
        self.client = self.client.query(query);
        self
    }

    #[must_use]
    pub fn with_ip(mut self, ip: &str) -> Self {
        self.client.ip = ip.into();
        self
    }
}

fn publisher(kind: ConnectionKind, path: &str) -> Client {
    Client::new(kind, Action::Publish, path)
}
