//! The auth call as it goes over the wire: a new connection each time, and the answer as it came back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The body of an auth call, fields in MediaMTX's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthCall {
    pub ip: String,
    pub user: String,
    pub password: String,
    pub token: String,
    pub action: String,
    pub path: String,
    pub protocol: String,
    pub id: Option<Uuid>,
    pub query: String,
    /// Missing before v1.19.0.
    #[serde(rename = "userAgent", default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl AuthCall {
    /// A call without a client behind it: `playback` of a path, or `metrics` with the empty path.
    pub fn without_client(action: &str, path: &str, user: &str, password: &str) -> Self {
        Self {
            ip: "127.0.0.1".into(),
            user: user.into(),
            password: password.into(),
            token: password.into(),
            action: action.into(),
            path: path.into(),
            protocol: String::new(),
            id: None,
            query: String::new(),
            user_agent: Some(String::new()),
        }
    }
}

/// What came back. No status: no answer within the time limit, or no connection at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthAnswer {
    pub status: Option<u16>,
    pub body: String,
}

impl AuthAnswer {
    pub(super) fn none(why: impl Into<String>) -> Self {
        Self { status: None, body: why.into() }
    }

    pub fn admits(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

#[derive(Clone, Debug)]
pub struct AuthExchange {
    pub call: AuthCall,
    pub answer: AuthAnswer,
}

/// What a client presents, before MediaMTX makes fields of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub user: String,
    pub password: String,
    pub token: String,
}

impl Credentials {
    pub fn of_user(user: &str, password: &str) -> Self {
        Self { user: user.into(), password: password.into(), token: String::new() }
    }

    pub fn of_token(token: &str) -> Self {
        Self { token: token.into(), ..Self::default() }
    }

    /// `Bearer a:b` is a user and a password; any other number of colons makes it a token.
    pub fn of_bearer(bearer: &str) -> Self {
        match bearer.split(':').collect::<Vec<_>>()[..] {
            [user, password] => Self::of_user(user, password),
            _ => Self::of_token(bearer),
        }
    }

    /// The `token` field: the Bearer token, else the password, else (RTMP and RTSP) the query's `token` or `jwt`.
    pub fn token_field(&self, protocol: &str, query: &str) -> String {
        if !self.token.is_empty() {
            return self.token.clone();
        }
        if !self.password.is_empty() {
            return self.password.clone();
        }
        if !matches!(protocol, "rtmp" | "rtsp") {
            return String::new();
        }
        ["token", "jwt"].iter().find_map(|name| only_value(query, name)).unwrap_or_default()
    }
}

/// The value of a parameter that is there exactly once.
fn only_value(query: &str, name: &str) -> Option<String> {
    let mut values = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned());
    values.next().filter(|_| values.next().is_none())
}

/// A client that never uses a connection twice, as MediaMTX makes one per call.
pub(super) fn fresh_connections() -> reqwest::Client {
    // Fails only where another part of the test binary chose a provider first, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .no_proxy()
        .user_agent("Go-http-client/1.1")
        .build()
        .expect("a client without certificates of its own can be built")
}

pub(super) async fn send(client: &reqwest::Client, auth_url: &str, limit: Duration, call: &AuthCall) -> AuthAnswer {
    let answer = async {
        let response = client.post(auth_url).timeout(limit).json(call).send().await?;
        let status = response.status().as_u16();
        Ok::<_, reqwest::Error>(AuthAnswer { status: Some(status), body: response.text().await? })
    };
    answer.await.unwrap_or_else(|error| AuthAnswer::none(format!("HTTP request failed: {error}")))
}
