//! Many nodes with many streams, cheaper than the stand-in, which would cost more than what is measured: ready-made answers in
//! which only the bytes move, behind one listener. Like real ones they ask for each request who may make it. Nobody leaves:
//! who is kicked is noted and stays.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use futures_util::{StreamExt as _, stream};
use onair::{
    domain::{Node, PublicUrls, SourceId, Timestamp},
    redis::{Admission, AdmitRequest, KeyProjection, Redis},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

use super::{records::admit_request, stack::node_password};

/// One node: what it tells, in parts between which the bytes stand, and when it was asked.
pub struct Edge {
    pub name: String,
    pub sources: Vec<(String, Uuid)>,
    parts: Vec<String>,
    asked_at: Mutex<Vec<Instant>>,
}

/// All of them. They serve as long as this lives.
pub struct ManyNodes {
    shared: Arc<Shared>,
    url: String,
    _serving: JoinSet<()>,
}

struct Shared {
    edges: Vec<Edge>,
    began: Instant,
    service: OnceLock<SocketAddr>,
    http: reqwest::Client,
    asks: AtomicU64,
    kicked: Mutex<Vec<String>>,
}

/// What a node tells of one source, up to where its bytes stand.
fn path_item(path: &str, source: Uuid) -> String {
    let track = r#""codecProps":{"width":1920,"height":1080,"profile":"High","level":"4.1"}"#;
    let sound = r#""codecProps":{"sampleRate":48000,"channelCount":2}"#;
    let times = ["ready", "available", "online"]
        .map(|word| format!(r#""{word}":true,"{word}Time":"2026-01-01T00:00:00.123456789Z""#))
        .join(",");
    let readers: Vec<_> = (0..3).map(|_| format!(r#"{{"type":"hlsSession","id":"{}"}}"#, Uuid::new_v4())).collect();
    format!(
        r#"{{"name":"{path}","confName":"all_others",{times},"source":{{"type":"rtmpConn","id":"{source}"}},
        "tracks":["H264","MPEG-4 Audio"],"tracks2":[{{"codec":"H264",{track}}},{{"codec":"MPEG-4 Audio",{sound}}}],
        "readers":[{}],"inboundFramesInError":0,"outboundBytes":123456789,"bytesSent":123456789,"inboundBytes":"#,
        readers.join(","),
    )
}

impl Edge {
    fn new(name: &str, sources: &[(String, Uuid)]) -> Self {
        let parts = sources.iter().map(|(path, source)| path_item(path, *source)).collect();
        Self { name: name.to_owned(), sources: sources.to_vec(), parts, asked_at: Mutex::default() }
    }

    /// When it was asked what is on air, since [`Self::forget_questions`].
    pub fn asked_at(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget_questions(&self) {
        self.asked_at().clear();
    }

    /// What it answers when it is asked what is on air.
    pub fn list(&self, bytes: u128) -> String {
        let mut list = format!(r#"{{"itemCount":{},"pageCount":1,"items":["#, self.parts.len());
        for (number, part) in self.parts.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(list, "{comma}{part}{bytes}}}");
        }
        list.push_str("]}");
        list
    }
}

impl ManyNodes {
    /// Serves `nodes_count` nodes, `edge-0` and so on, with as many streams each.
    pub async fn start(nodes_count: usize, streams_count: usize) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sources: Vec<(String, Uuid)> =
            (0..streams_count).map(|number| (format!("live/{number:05}"), Uuid::new_v4())).collect();
        let edges = sources.chunks(streams_count / nodes_count).enumerate();
        let http = reqwest::Client::builder().pool_max_idle_per_host(0);
        let shared = Arc::new(Shared {
            edges: edges.map(|(number, sources)| Edge::new(&format!("edge-{number}"), sources)).collect(),
            began: Instant::now(),
            service: OnceLock::new(),
            http: http.build().expect("a client"),
            asks: AtomicU64::new(0),
            kicked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = Router::new().route("/{node}/{*rest}", axum::routing::any(answer)).with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { shared, url, _serving: serving }
    }

    /// Which service they ask who may come in.
    pub fn ask(&self, service: SocketAddr) {
        self.shared.service.set(service).expect("once");
    }

    pub fn edges(&self) -> &[Edge] {
        &self.shared.edges
    }

    /// How often they have asked the service.
    pub fn asks(&self) -> u64 {
        self.shared.asks.load(Ordering::Relaxed)
    }

    /// Whom they were told to throw off, by the address of the request.
    pub fn kicked(&self) -> Vec<String> {
        self.shared.kicked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The nodes, as the directory has them.
    pub fn nodes(&self) -> Vec<Node> {
        let node = |(number, edge): (usize, &Edge)| Node {
            name: edge.name.parse().expect("a node name"),
            control_url: format!("{}/{number}", self.url).parse().expect("a URL"),
            public_urls: PublicUrls::default(),
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
        };
        self.edges().iter().enumerate().map(node).collect()
    }

    /// Admits every source by the key that `key_of` makes of its path, as its node would have asked for.
    pub async fn admit_all(&self, redis: &Redis, key_of: impl Fn(&str) -> KeyProjection) {
        let sources = self.edges().iter().flat_map(|edge| edge.sources.iter().map(|source| (&edge.name, source)));
        let admissions = sources.map(|(node, (path, source))| {
            let (key, node) = (key_of(path), node.parse().expect("a node name"));
            async move {
                redis.project_key(&key).await.expect("the key is known");
                let request = AdmitRequest {
                    connecting_timeout_ms: 120_000,
                    ..admit_request(&key.path, key.secret_hash, &node, SourceId(*source))
                };
                let admission = redis.admit(&request).await.expect("an answer").admission;
                assert!(matches!(admission, Admission::Admitted { .. }), "{admission:?}");
            }
        });
        stream::iter(admissions).buffer_unordered(32).collect::<()>().await;
    }
}

impl Shared {
    /// Whether the service lets this caller of a node's control API in.
    async fn lets_in(&self, edge: &Edge, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let token = shown.strip_prefix("Bearer ").unwrap_or_default();
        let call = json!({"ip": "127.0.0.1", "user": "", "password": "", "token": token, "action": "api", "path": "",
            "protocol": "", "id": null, "query": "", "userAgent": ""});
        let Some(service) = self.service.get() else { return false };
        self.asks.fetch_add(1, Ordering::Relaxed);
        let asked = self.http.post(format!("http://{service}/v1/mediamtx/auth"));
        let asked = asked.basic_auth(&edge.name, Some(node_password(&edge.name))).json(&call).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }
}

impl Shared {
    /// What a node says of one path or connection.
    fn one(&self, edge: &Edge, address: &str) -> (StatusCode, String) {
        let found = |is_it: &dyn Fn(&(String, Uuid)) -> bool| edge.sources.iter().position(is_it);
        if let Some(path) = address.strip_prefix("v3/paths/get/")
            && let Some(number) = found(&|source| source.0 == path)
        {
            return (StatusCode::OK, format!("{}1}}", edge.parts[number]));
        }
        if address.contains("/kick/") {
            self.kicked.lock().unwrap_or_else(PoisonError::into_inner).push(address.to_owned());
            return (StatusCode::OK, String::new());
        }
        let id = address.strip_prefix("v3/rtmpconns/get/").unwrap_or_default();
        match found(&|source| source.1.to_string() == id) {
            Some(_) => (StatusCode::OK, r#"{"state":"publish"}"#.to_owned()),
            None => (StatusCode::NOT_FOUND, String::new()),
        }
    }
}

async fn answer(
    State(nodes): State<Arc<Shared>>,
    Path((number, rest)): Path<(usize, String)>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let edge = &nodes.edges[number];
    if !nodes.lets_in(edge, &headers).await {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    let body = match rest.as_str() {
        "v3/paths/list" => {
            edge.asked_at().push(Instant::now());
            edge.list(nodes.began.elapsed().as_millis() * 625)
        }
        "v3/info" => r#"{"version":"v1.20.1","started":"2026-01-01T00:00:00Z"}"#.to_owned(),
        "v3/config/global/get" => r#"{"authMethod":"http","authHTTPExclude":[]}"#.to_owned(),
        "v3/config/pathdefaults/get" => r#"{"overridePublisher":true}"#.to_owned(),
        other => return nodes.one(edge, other),
    };
    (StatusCode::OK, body)
}
