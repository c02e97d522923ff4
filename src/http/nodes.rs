//! `/v1/nodes`: the `MediaMTX` servers of the fleet.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    callers::ApiCaller,
    code::Code,
    fields,
    input::{JsonBody, PathParam, Query},
    openapi::problems,
    problem::{Answer, Problem},
};
use crate::{
    app::App,
    domain::{self, NodeName, PublicUrls, Timestamp, words},
    nodes::{
        NodeFault, NodeReport, WiringProblem,
        mediamtx_config::{CURL_CONFIG_PATH, Hooks, Wiring, WiringError, WiringParts, api_address},
    },
    postgres::NodePut,
};

/// A `MediaMTX` server, and what is known of it now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Node {
    name: NodeName,
    /// Where Onair reaches its control API.
    #[schema(value_type = String, format = "uri")]
    control_url: Url,
    public_urls: PublicUrls,
    /// Whether it answered when it was last asked; `null` before the first time, and while Redis, which keeps that, is away.
    reachable: Option<bool>,
    /// Why it did not.
    fault: Option<NodeFault>,
    /// The same in a sentence.
    fault_detail: Option<String>,
    /// Since when it has not answered.
    unreachable_since: Option<Timestamp>,
    /// When it last answered.
    last_seen_at: Option<Timestamp>,
    /// Such as `v1.20.1`; `null` before it told.
    version: Option<String>,
    /// What should be otherwise in its configuration.
    wiring: Vec<WiringProblem>,
    /// How many streams are on it.
    #[schema(value_type = u64)]
    streams: usize,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<NodeReport> for Node {
    fn from(NodeReport { node, status, streams }: NodeReport) -> Self {
        let reachable = status.as_ref().map(|status| status.reachable);
        let status = status.unwrap_or_default();
        let unless_empty = |text: String| (!text.is_empty()).then_some(text);
        Self {
            name: node.name,
            control_url: node.control_url,
            public_urls: node.public_urls,
            reachable,
            fault: status.fault,
            fault_detail: unless_empty(status.fault_detail),
            unreachable_since: status.unreachable_since,
            last_seen_at: status.seen_at,
            version: unless_empty(status.version),
            // What one that does not answer says now, nobody knows.
            wiring: if status.reachable { status.problems } else { Vec::new() },
            streams,
            created_at: node.created_at,
            updated_at: node.updated_at,
        }
    }
}

/// The fleet.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct NodeList {
    /// By name.
    items: Vec<Node>,
}

/// Where a node is.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "control_url": "http://edge-1:9997",
    "public_urls": {"hls": "https://edge-1.example.org:8888", "rtmp": "rtmp://edge-1.example.org:1935"}
}))]
pub struct PutNode {
    /// Where Onair reaches its control API, such as `http://edge-1:9997`.
    #[serde(deserialize_with = "domain::url_field::required")]
    #[schema(value_type = String, format = "uri")]
    control_url: Url,
    /// Where viewers and broadcasters reach it. What is absent is not offered.
    #[serde(default, deserialize_with = "fields::object")]
    #[schema(required = false)]
    public_urls: PublicUrls,
}

words! {
    /// Whether the YAML holds hooks.
    pub enum HooksChoice {
        /// By `curl`: Onair knows within milliseconds.
        Curl = "curl",
        /// None: Onair knows from its next poll.
        None = "none",
    }
}

/// How the YAML is made.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConfigQuery {
    /// Whether it holds hooks. Absent: `curl`. An image of MediaMTX without a shell and `curl` needs `none`.
    #[param(inline)]
    hooks: Option<HooksChoice>,
}

problems! {
    PutProblems: StoreUnavailable, StateUnavailable, RecordedNotYetEffective;
    ListProblems: StateUnavailable;
    GetProblems: NodeNotFound, StateUnavailable;
    DeleteProblems: NodeNotFound, StoreUnavailable, StateUnavailable, RecordedNotYetEffective;
    ConfigProblems: NodeNotFound, RequestMalformed;
}

/// Add a node, or change it
///
/// Wire it with the YAML of `GET /v1/nodes/{name}/mediamtx-config`, or of the command `onair mediamtx-config NAME`.
#[utoipa::path(
    put,
    path = "/v1/nodes/{name}",
    operation_id = "putNode",
    tag = "nodes",
    security(("api" = [])),
    params(("name" = NodeName, Path, description = "The node's name.")),
    request_body = PutNode,
    responses(
        (status = 200, description = "Changed, or there already.", body = Node),
        (status = 201, description = "Added.", body = Node),
        PutProblems,
    ),
)]
pub async fn put(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(name): PathParam<NodeName>,
    JsonBody(body): JsonBody<PutNode>,
) -> Answer<Response> {
    check_urls(&body)?;
    let (_, outcome) = app.nodes.put(&name, &body.control_url, &body.public_urls, &caller.by).await?;
    let status = match outcome {
        NodePut::Added => StatusCode::CREATED,
        NodePut::Changed | NodePut::Unchanged => StatusCode::OK,
    };
    let node: Node = app.nodes.get(&name).await?.into();
    Ok((status, Json(node)).into_response())
}

/// List the nodes
#[utoipa::path(
    get,
    path = "/v1/nodes",
    operation_id = "listNodes",
    tag = "nodes",
    security(("api" = [])),
    responses((status = 200, description = "The fleet.", body = NodeList), ListProblems),
)]
pub async fn list(_caller: ApiCaller, State(app): State<Arc<App>>) -> Answer<Json<NodeList>> {
    let items = app.nodes.list().await?.into_iter().map(Node::from).collect();
    Ok(Json(NodeList { items }))
}

/// Get a node
#[utoipa::path(
    get,
    path = "/v1/nodes/{name}",
    operation_id = "getNode",
    tag = "nodes",
    security(("api" = [])),
    params(("name" = NodeName, Path, description = "The node's name.")),
    responses((status = 200, description = "The node.", body = Node), GetProblems),
)]
pub async fn get(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(name): PathParam<NodeName>,
) -> Answer<Json<Node>> {
    Ok(Json(app.nodes.get(&name).await?.into()))
}

/// Remove a node
///
/// Its calls are refused from now on, and its streams have ended.
#[utoipa::path(
    delete,
    path = "/v1/nodes/{name}",
    operation_id = "deleteNode",
    tag = "nodes",
    security(("api" = [])),
    params(("name" = NodeName, Path, description = "The node's name.")),
    responses((status = 204, description = "Removed."), DeleteProblems),
)]
pub async fn delete(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(name): PathParam<NodeName>,
) -> Answer<StatusCode> {
    app.nodes.delete(&name, &caller.by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get the YAML that wires a node to Onair
///
/// What belongs into the node's `mediamtx.yml`. It holds the node's password, and the audit log holds who was shown it.
#[utoipa::path(
    get,
    path = "/v1/nodes/{name}/mediamtx-config",
    operation_id = "getMediamtxConfig",
    tag = "nodes",
    security(("api" = [])),
    params(("name" = NodeName, Path, description = "The node's name."), ConfigQuery),
    responses(
        (status = 200, description = "The YAML, ready to paste.", body = Object, content_type = "application/yaml"),
        ConfigProblems,
    ),
)]
pub async fn mediamtx_config(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(name): PathParam<NodeName>,
    Query(query): Query<ConfigQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let node = app.nodes.find(&name).await.ok_or(crate::nodes::NodesError::NotFound)?;
    let (password, onair_url) = (app.credentials.password(&name), onair_url(&app, &headers)?);
    let api_address = api_address(&node.control_url);
    let wiring = Wiring::new(WiringParts {
        node: &name,
        password: &password,
        onair_url: &onair_url,
        api_address: &api_address,
        hooks: match query.hooks {
            None | Some(HooksChoice::Curl) => Hooks::Curl { config_path: CURL_CONFIG_PATH },
            Some(HooksChoice::None) => Hooks::None,
        },
    });
    let yaml = wiring.map_err(|error| unusable(&app, error))?.yaml();
    Box::pin(app.nodes.note_shown(&name, &caller.by)).await;
    let headers = [(header::CONTENT_TYPE, "application/yaml"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, yaml).into_response())
}

/// How nodes reach us: as the configuration says, else as this caller did.
fn onair_url(app: &App, headers: &HeaderMap) -> Answer<Url> {
    if let Some(url) = &app.config.server.public_url {
        return Ok(url.clone());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let listen = app.config.server.listen.to_string();
    let url = format!("http://{}", host.unwrap_or(&listen)).parse();
    url.map_err(|_| Problem::new(Code::RequestMalformed, "The header Host makes no address."))
}

/// Nothing but the address of ours is of the caller's or the configuration's making here.
fn unusable(app: &App, error: WiringError) -> Problem {
    let origin = match &app.config.server.public_url {
        Some(_) => "The setting server.public_url cannot stand in it",
        None => "The header Host cannot stand in it: set server.public_url",
    };
    Problem::new(Code::RequestMalformed, format!("{origin}; {error}."))
}

fn check_urls(body: &PutNode) -> Answer<()> {
    domain::Node::check(&body.control_url, &body.public_urls)
        .map_err(|(field, problem)| Problem::invalid_input(field, problem))
}
