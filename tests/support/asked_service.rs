//! The smallest service that a MediaMTX node can ask and call: it admits whoever shows [`KEY`], takes every hook,
//! and remembers what came. The stand-in's own tests use it in Onair's place, and with it they call the control API.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::mediamtx::{HookEncoding, HookTarget, MediaMtx};

pub const KEY: &str = "sk_secret";
/// What the service says to whoever does not show the key.
pub const REFUSAL: &str = "key_unknown";

#[derive(Clone, Debug)]
pub struct Asked {
    pub peer: SocketAddr,
    pub headers: HeaderMap,
    pub body: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// `publish` or `unpublish`
    pub end: String,
    pub content_type: String,
    pub authorization: String,
    pub body: String,
}

struct Service {
    asked: Mutex<Vec<Asked>>,
    called: Mutex<Vec<Called>>,
    /// An auth call is answered while it holds a permit.
    answers: Semaphore,
}

pub struct AskedService {
    address: SocketAddr,
    service: Arc<Service>,
    serving: AbortHandle,
}

impl AskedService {
    pub async fn start() -> Self {
        let service = Arc::new(Service {
            asked: Mutex::default(),
            called: Mutex::default(),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let router = Router::new()
            .route("/v1/mediamtx/auth", routing::post(auth))
            .route("/v1/hooks/{end}", routing::post(hook))
            .with_state(Arc::clone(&service))
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, service, serving: serving.abort_handle() }
    }

    pub fn auth_url(&self) -> String {
        format!("http://edge-1:pw@{}/v1/mediamtx/auth", self.address)
    }

    pub fn hooks(&self, encoding: HookEncoding) -> HookTarget {
        HookTarget {
            base_url: format!("http://{}", self.address),
            user: "edge-1".into(),
            password: "pw".into(),
            encoding,
        }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.service.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn called(&self) -> Vec<Called> {
        self.service.called.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Auth calls arrive and are not answered until [`Self::answer`].
    pub fn hold_answers(&self) {
        self.service.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn answer(&self) {
        self.service.answers.add_permits(Semaphore::MAX_PERMITS);
    }
}

impl Drop for AskedService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn auth(
    State(service): State<Arc<Service>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, &'static str) {
    let admits =
        ["password", "token", "query"].iter().any(|field| body[field].as_str().is_some_and(|it| it.contains(KEY)));
    service.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { peer, headers, body });
    let _permit = service.answers.acquire().await;
    if admits { (StatusCode::NO_CONTENT, "") } else { (StatusCode::UNAUTHORIZED, REFUSAL) }
}

async fn hook(
    State(service): State<Arc<Service>>,
    Path(end): Path<String>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let called = Called { end, content_type: text("content-type"), authorization: text("authorization"), body };
    service.called.lock().unwrap_or_else(PoisonError::into_inner).push(called);
    StatusCode::NO_CONTENT
}

/// A client of the control API that keeps its connections.
pub fn client() -> reqwest::Client {
    plain(reqwest::Client::builder())
}

/// A client that makes a connection for each request, as `MediaMTX` does. One for the whole program, because making one reads all
/// certificates of the machine.
pub fn client_without_pool() -> &'static reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> =
        LazyLock::new(|| plain(reqwest::Client::builder().pool_max_idle_per_host(0)));
    &CLIENT
}

fn plain(client: reqwest::ClientBuilder) -> reqwest::Client {
    // Fails only where another part of the test binary chose a provider first, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    client.no_proxy().build().expect("a plain client can be built")
}

/// Status and body of one GET on the node's control API.
pub async fn get(node: &MediaMtx, path: &str) -> (u16, Value) {
    answer(client_without_pool().get(format!("{}{path}", node.control_url()))).await
}

/// Status and body of one POST without a body on the node's control API.
pub async fn post(node: &MediaMtx, path: &str) -> (u16, Value) {
    answer(client_without_pool().post(format!("{}{path}", node.control_url()))).await
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("the control API answers");
    (response.status().as_u16(), response.json().await.expect("it answers JSON"))
}
