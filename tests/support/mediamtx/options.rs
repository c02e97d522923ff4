//! How a stand-in is set up: fixed at its start, except where `MediaMtx` has a setter.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::hooks::{HookBehaviour, HookTarget};

/// The release whose field names and routes are played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    V1_20,
    /// `ready`, `readyTime`, `tracks`, `bytesReceived` only; no `hlssessions`; auth calls without `userAgent`, and
    /// with the RTSP connection's id where v1.19.3 and later put the session's.
    V1_15,
}

impl Release {
    pub fn version(self) -> &'static str {
        match self {
            Self::V1_20 => "v1.20.1",
            Self::V1_15 => "v1.15.6",
        }
    }
}

/// Whether callers of the control API are asked about (`action: api`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiAuth {
    /// `authHTTPExclude` holds `api`: everybody may call.
    Excluded,
    /// The default since v1.20.1: every request is an auth call first.
    Required,
}

/// `overridePublisher`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Override {
    /// A publisher that comes online closes the one before it.
    Yes,
    /// A publisher that comes second is admitted and then closed instead.
    No,
}

/// What a kick does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KickBehaviour {
    Obeyed,
    /// Answers 500 and does nothing.
    Failing,
    /// Answers 200 and does nothing.
    Ignored,
}

/// Where answers to `paths/list` wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListHold {
    Nowhere,
    /// Before they are made: what happens meanwhile is in them.
    Unmade,
    /// After they were made: what happens meanwhile is not in them.
    Made,
}

#[derive(Clone, Debug)]
pub struct MediaMtxOptions {
    pub name: String,
    /// `authHTTPAddress`, with the node's credentials as userinfo.
    pub auth_url: String,
    pub hooks: Option<HookTarget>,
    pub hook_behaviour: HookBehaviour,
    /// Limit of an auth call, and how long a silent publisher stays online.
    pub read_timeout: Duration,
    pub release: Release,
    /// What `/v3/info` says instead of the release's own version.
    pub version: Option<String>,
    pub api_auth: ApiAuth,
    pub override_publisher: Override,
}

impl MediaMtxOptions {
    /// A node as it is after installation, without hooks.
    pub fn new(name: impl Into<String>, auth_url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            auth_url: auth_url.into(),
            hooks: None,
            hook_behaviour: HookBehaviour::Delivered,
            read_timeout: Duration::from_secs(10),
            release: Release::V1_20,
            version: None,
            api_auth: ApiAuth::Required,
            override_publisher: Override::Yes,
        }
    }

    pub(super) fn global_config(&self) -> Map<String, Value> {
        let exclude = match self.api_auth {
            ApiAuth::Excluded => json!([{ "action": "api", "path": "" }]),
            ApiAuth::Required => json!([]),
        };
        object(json!({
            "logLevel": "info",
            "readTimeout": format!("{}s", self.read_timeout.as_secs_f64()),
            "writeTimeout": "10s",
            "runOnConnect": "",
            "runOnConnectRestart": false,
            "runOnDisconnect": "",
            "authMethod": "http",
            "authHTTPAddress": self.auth_url,
            "authHTTPExclude": exclude,
            "authHTTPFingerprint": "",
            "api": true,
            "apiAddress": ":9997",
            "rtsp": true,
            "rtmp": true,
            "hls": true,
            "webrtc": true,
            "srt": true,
        }))
    }

    pub(super) fn path_defaults(&self) -> Map<String, Value> {
        let command = |end: &str| self.hooks.as_ref().map_or_else(String::new, |target| target.command(end));
        let mut defaults = object(json!({
            "name": "",
            "source": "publisher",
            "sourceOnDemand": false,
            "maxReaders": 0,
            "overridePublisher": self.override_publisher == Override::Yes,
            "runOnInit": "",
            "runOnDemand": "",
            "runOnRead": "",
            "runOnUnread": "",
            "runOnRecordSegmentComplete": "",
        }));
        let (on, off) = match self.release {
            Release::V1_20 => ("runOnOnline", "runOnOffline"),
            Release::V1_15 => ("runOnReady", "runOnNotReady"),
        };
        if self.release == Release::V1_20 {
            defaults.insert("runOnAvailable".into(), json!(""));
            defaults.insert("runOnUnavailable".into(), json!(""));
        }
        defaults.insert(on.into(), command("publish").into());
        defaults.insert(off.into(), command("unpublish").into());
        defaults
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}
