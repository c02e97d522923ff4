//! Why was I refused? Most encoders cannot show a reason, so the last refusals of a path and of a key can be read here.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{
    callers::ApiCaller,
    code::Code,
    input::{PathParam, Query},
    openapi::problems,
    problem::{Answer, Problem},
};
use crate::{
    app::App,
    domain::{self, KeyId, NodeName, StreamPath, Timestamp},
};

/// How many refusals are told at most.
const SHOWN_MAX: usize = 50;

problems! {
    OfPathProblems: StateUnavailable;
    OfKeyProblems: KeyNotFound, StoreUnavailable, StateUnavailable;
}

/// A publisher that was refused.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Attempt {
    at: Timestamp,
    /// The code of the refusal, as in the table of errors.
    #[schema(example = "key_in_use")]
    code: String,
    /// Where it wanted to publish.
    path: StreamPath,
    /// The node that asked.
    node: NodeName,
    /// The key that it presented, where it is known.
    key_id: Option<KeyId>,
    /// How it wanted to publish, in MediaMTX's word.
    #[schema(example = "rtmp")]
    protocol: String,
    /// Its IP address as the node saw it.
    address: String,
    /// What the encoder calls itself; empty where the protocol does not tell.
    user_agent: String,
}

impl From<domain::Attempt> for Attempt {
    fn from(attempt: domain::Attempt) -> Self {
        let domain::Attempt { at, code, path, node, key_id, protocol, address, user_agent } = attempt;
        Self { at, code, path, node, key_id, protocol, address, user_agent }
    }
}

/// The last refusals.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AttemptList {
    /// The latest first; at most 50, and none older than a day.
    #[schema(max_items = 50)]
    items: Vec<Attempt>,
}

impl AttemptList {
    fn of(attempts: Vec<domain::Attempt>) -> Json<Self> {
        Json(Self { items: attempts.into_iter().take(SHOWN_MAX).map(Attempt::from).collect() })
    }
}

/// Which path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfPath {
    /// The path that publishers were refused on.
    #[param(inline)]
    pub path: StreamPath,
}

/// List the last refused publishers of a path
///
/// Noted beside the decision, so a refusal may take a moment to appear. The same refusal of the same address on the same path is
/// noted once in 30 seconds. Addresses that are slowed down, and calls without any key that a protocol makes by itself, are not
/// noted.
#[utoipa::path(
    get,
    path = "/v1/attempts",
    operation_id = "listAttempts",
    tag = "streams",
    security(("api" = [])),
    params(OfPath),
    responses((status = 200, description = "The refusals.", body = AttemptList), OfPathProblems),
)]
pub async fn of_path(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    Query(query): Query<OfPath>,
) -> Answer<Json<AttemptList>> {
    Ok(AttemptList::of(app.admission.attempts_on(&query.path).await?))
}

/// List the last refusals of a stream key
#[utoipa::path(
    get,
    path = "/v1/stream-keys/{id}/attempts",
    operation_id = "listStreamKeyAttempts",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "The refusals.", body = AttemptList), OfKeyProblems),
)]
pub async fn of_key(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
) -> Answer<Json<AttemptList>> {
    let key = app.stream_keys.get(id).await?.ok_or_else(|| Problem::of(Code::KeyNotFound))?;
    Ok(AttemptList::of(app.admission.attempts_of(&key).await?))
}
