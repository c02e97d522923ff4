//! Talking to a node's control API.
//!
//! Invariants:
//! - Never called from inside an auth call: `paths/*` waits for the loop that waits for us.
//! - Every request carries a short-lived signed token of ours, has a time limit, a limit on the answer's size, and a place
//!   among the limited number of requests in flight over all nodes.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use url::Url;

use super::contract::{ConnectionItem, Info, PathItem, PathsPage};
use crate::{
    config::ReconcilerConfig,
    domain::{Node, SourceId, SourceType, Timestamp, words},
    node_credentials::NodeCredentials,
};

/// The largest answer that is read: about 50,000 paths.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most pages that are read in one poll.
const PAGES_MAX: u32 = 1_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The limit of whatever does not wait for a node's path loop: it is answered within milliseconds, or the node hangs.
pub(super) const QUICK_LIMIT: Duration = Duration::from_secs(2);

words! {
    /// Why a node gave no usable answer.
    pub enum NodeFault {
        /// Nobody listens there.
        Refused = "refused",
        /// No answer in time.
        TimedOut = "timed_out",
        /// It does not accept our token: it does not ask us who may use its API.
        Unauthorized = "unauthorized",
        /// It answers, but not like the control API of a supported version.
        WrongVersion = "wrong_version",
        /// The connection broke, or its certificate is not accepted.
        Broken = "broken",
    }
}

/// A node gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}: {detail}")]
pub struct NodeError {
    /// In a word.
    pub fault: NodeFault,
    /// In a sentence, without secrets.
    pub detail: String,
}

impl NodeError {
    fn new(fault: NodeFault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into() }
    }

    /// It was asked, and has said nothing for longer than nodes do.
    pub(super) fn no_answer_yet() -> Self {
        Self::new(NodeFault::TimedOut, "no answer so far")
    }

    /// Whether any other request would have failed as well.
    pub(super) fn is_about_the_node(&self) -> bool {
        match self.fault {
            NodeFault::Refused | NodeFault::TimedOut | NodeFault::Unauthorized | NodeFault::Broken => true,
            NodeFault::WrongVersion => false,
        }
    }

    fn from_reqwest(error: reqwest::Error) -> Self {
        // Without the URL: it adds nothing, and an operator may have put a password into it.
        let error = error.without_url();
        if error.is_timeout() {
            return Self::new(NodeFault::TimedOut, "no answer in time");
        }
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let fault = match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(std::io::ErrorKind::ConnectionRefused) => NodeFault::Refused,
            _ => NodeFault::Broken,
        };
        Self::new(fault, cause.to_string())
    }
}

/// Every path of a node at one moment.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// The paths.
    pub items: Vec<PathItem>,
    /// Whether they came in one page. Several pages are no snapshot: a path may slip between two of them.
    pub in_one_page: bool,
}

/// What a kick did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kicked {
    /// The node closed the source.
    Closed,
    /// The node has no such source: it is gone.
    Unknown,
}

/// The control APIs of the fleet.
#[derive(Clone)]
pub struct NodeClient {
    http: reqwest::Client,
    credentials: NodeCredentials,
    in_flight: Arc<Semaphore>,
    timeout: Duration,
    page_items: u32,
}

impl NodeClient {
    /// Sets the client up.
    ///
    /// # Errors
    /// Where the TLS library cannot be set up.
    pub fn new(config: &ReconcilerConfig, credentials: NodeCredentials) -> Result<Self, reqwest::Error> {
        // The first caller installs it for the process; a second one finds what it wants.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(2)
            .build()?;
        Ok(Self {
            http,
            credentials,
            in_flight: Arc::new(Semaphore::new(config.requests_in_flight_max)),
            timeout: Duration::from_millis(config.request_timeout_ms),
            page_items: config.page_items,
        })
    }

    /// Version and start of a node.
    ///
    /// # Errors
    /// Where the node gives no usable answer.
    pub async fn info(&self, node: &Node) -> Result<Info, NodeError> {
        let mut info: Info = self.get(node, "/v3/info", QUICK_LIMIT).await?;
        // One that somebody built may have the end of a line with it.
        info.version.truncate(info.version.trim_end().len());
        Ok(info)
    }

    /// All paths of a node, all pages.
    ///
    /// # Errors
    /// Where the node gives no usable answer.
    pub async fn paths(&self, node: &Node) -> Result<Paths, NodeError> {
        let mut items = Vec::new();
        let mut page = 0;
        loop {
            let address = format!("/v3/paths/list?itemsPerPage={}&page={page}", self.page_items);
            let answer: PathsPage = self.get(node, &address, self.timeout).await?;
            items.extend(answer.items);
            page += 1;
            if page >= answer.page_count.min(PAGES_MAX) {
                break;
            }
        }
        if page > 1 {
            // A path that moved from one page to the next while they were read stands in both.
            items.sort_by(|left, right| left.name.cmp(&right.name));
            items.dedup_by(|left, right| left.name == right.name);
        }
        Ok(Paths { items, in_one_page: page == 1 })
    }

    /// One path; `None` where the node has none of that name.
    ///
    /// # Errors
    /// Where the node gives no usable answer.
    pub async fn path(&self, node: &Node, name: &str) -> Result<Option<PathItem>, NodeError> {
        self.find(node, &format!("/v3/paths/get/{name}"), self.timeout).await
    }

    /// One connection or session; `None` where the node has none of that id, or does not serve that protocol.
    ///
    /// # Errors
    /// Where the node gives no usable answer within `limit`.
    pub async fn connection(
        &self,
        node: &Node,
        source_type: SourceType,
        id: SourceId,
        limit: Duration,
    ) -> Result<Option<ConnectionItem>, NodeError> {
        self.find(node, &format!("/v3/{}/get/{id}", source_type.collection()), limit).await
    }

    /// Closes a source. Kicking what is gone already is no error.
    ///
    /// # Errors
    /// Where the node gives no usable answer within `limit`.
    pub async fn kick(
        &self,
        node: &Node,
        source_type: SourceType,
        id: SourceId,
        limit: Duration,
    ) -> Result<Kicked, NodeError> {
        let address = format!("/v3/{}/kick/{id}", source_type.collection());
        match self.send(node, Method::POST, &address, limit, Caller::Onair).await? {
            (StatusCode::NOT_FOUND, _) => Ok(Kicked::Unknown),
            (status, _) if status.is_success() => Ok(Kicked::Closed),
            (status, _) => Err(unexpected(status)),
        }
    }

    /// A part of the node's configuration, as it is.
    ///
    /// # Errors
    /// Where the node gives no usable answer.
    pub async fn document(&self, node: &Node, address: &str) -> Result<serde_json::Value, NodeError> {
        self.get(node, address, QUICK_LIMIT).await
    }

    /// Whether the node lets anybody use its control API: asks without any credentials.
    ///
    /// # Errors
    /// Where the node gives no usable answer.
    pub async fn is_open_to_anybody(&self, node: &Node) -> Result<bool, NodeError> {
        let (status, _) = self.send(node, Method::GET, "/v3/info", QUICK_LIMIT, Caller::Anybody).await?;
        Ok(status.is_success())
    }

    async fn get<T: DeserializeOwned>(&self, node: &Node, address: &str, limit: Duration) -> Result<T, NodeError> {
        self.find(node, address, limit).await?.ok_or_else(|| unexpected(StatusCode::NOT_FOUND))
    }

    async fn find<T: DeserializeOwned>(
        &self,
        node: &Node,
        address: &str,
        limit: Duration,
    ) -> Result<Option<T>, NodeError> {
        let (status, body) = self.send(node, Method::GET, address, limit, Caller::Onair).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => serde_json::from_slice(&body).map(Some).map_err(|error| {
                NodeError::new(NodeFault::WrongVersion, format!("the answer is not the control API's: {error}"))
            }),
            status => Err(unexpected(status)),
        }
    }

    async fn send(
        &self,
        node: &Node,
        method: Method,
        address: &str,
        limit: Duration,
        caller: Caller,
    ) -> Result<(StatusCode, Vec<u8>), NodeError> {
        let exchange = async {
            let _place = self.in_flight.acquire().await.map_err(|_| NodeError::new(NodeFault::Broken, "stopping"))?;
            let url = join(&node.control_url, address)?;
            let mut request = self.http.request(method, url);
            if let Caller::Onair = caller {
                let token = self.credentials.control_token(&node.name, Timestamp::now());
                request = request.bearer_auth(token.reveal());
            }
            let mut response = request.send().await.map_err(NodeError::from_reqwest)?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(NodeError::from_reqwest)? {
                if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(NodeError::new(NodeFault::WrongVersion, "the answer is too large"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok((response.status(), body))
        };
        tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
            Err(NodeError::new(NodeFault::TimedOut, format!("no answer within {} ms", limit.as_millis())))
        })
    }
}

#[derive(Clone, Copy)]
enum Caller {
    Onair,
    Anybody,
}

fn join(base: &Url, address: &str) -> Result<Url, NodeError> {
    let text = format!("{}{address}", base.as_str().trim_end_matches('/'));
    text.parse().map_err(|_| NodeError::new(NodeFault::Broken, "the control URL cannot be used"))
}

fn unexpected(status: StatusCode) -> NodeError {
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return NodeError::new(
            NodeFault::Unauthorized,
            format!(
                "the node answered {status}: does its authHTTPAddress point to this service, with its own name and password?"
            ),
        );
    }
    NodeError::new(NodeFault::WrongVersion, format!("the node answered {status}"))
}
