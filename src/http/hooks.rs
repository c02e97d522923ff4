//! `POST /v1/hooks/publish` and `/v1/hooks/unpublish`: a node tells that a publisher came or went.
//!
//! Hooks are hints: they may be lost, doubled or late, and the poller finds the same by itself. So every word that makes
//! sense is answered 200, whether it changed anything or not.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    callers::NodeCaller,
    code::Code,
    input::FormOrJson,
    openapi::problems,
    problem::{Answer, Problem},
};
use crate::{
    app::App,
    domain::{SourceId, SourceType, StreamPath, words},
    redis::{Confirmation, Ending},
    streams::{HookWord, StreamsError},
};

/// What a hook sends, as JSON or as a form.
#[derive(Debug, Deserialize, ToSchema)]
pub struct HookBody {
    /// `MTX_PATH`.
    pub path: StreamPath,
    /// `MTX_SOURCE_TYPE`.
    #[schema(value_type = String, example = "rtmpConn")]
    pub source_type: String,
    /// `MTX_SOURCE_ID`, a UUID; empty for a source that is no publisher. What is no UUID is no publisher either.
    #[serde(default)]
    #[schema(value_type = String, example = "49c9b0f2-baf0-44d4-b2ee-44fb80d25466")]
    pub source_id: String,
}

words! {
    /// What a hook's word changed.
    pub enum HookResult {
        /// The stream went live.
        Confirmed = "confirmed",
        /// The stream ended.
        Ended = "ended",
        /// Nothing: it was known already, it came late, or it is not about a publisher whom Onair admitted.
        Ignored = "ignored",
    }
}

/// The answer to a hook.
#[derive(Debug, Serialize, ToSchema)]
pub struct HookAnswer {
    /// What it changed.
    pub result: HookResult,
}

problems! {
    HookProblems: StateUnavailable;
}

/// A publisher is online (onPublish)
///
/// Send it from `runOnOnline`, or from `runOnAvailable` or `runOnReady` with an older `MediaMTX`. May come twice, late, or
/// never.
#[utoipa::path(
    post,
    path = "/v1/hooks/publish",
    operation_id = "hookPublish",
    tag = "mediamtx",
    security(("node" = [])),
    request_body(content((HookBody = "application/json"), (HookBody = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "Heard.", body = HookAnswer), HookProblems)
)]
pub async fn publish(
    State(app): State<Arc<App>>,
    NodeCaller(node): NodeCaller,
    FormOrJson(body): FormOrJson<HookBody>,
) -> Answer<Json<HookAnswer>> {
    let Some(word) = word(body) else { return Ok(answer(HookResult::Ignored)) };
    Ok(answer(match app.streams.published(&node, &word).await.map_err(|error| unavailable(&error))? {
        Confirmation::Confirmed => HookResult::Confirmed,
        Confirmation::AlreadyLive | Confirmation::OtherSource | Confirmation::NotHeld => HookResult::Ignored,
    }))
}

/// A publisher is gone (onUnPublish)
///
/// Send it from `runOnOffline`, or from `runOnUnavailable` or `runOnNotReady` with an older `MediaMTX`. May come twice, late,
/// or never.
#[utoipa::path(
    post,
    path = "/v1/hooks/unpublish",
    operation_id = "hookUnpublish",
    tag = "mediamtx",
    security(("node" = [])),
    request_body(content((HookBody = "application/json"), (HookBody = "application/x-www-form-urlencoded"))),
    responses((status = 200, description = "Heard.", body = HookAnswer), HookProblems)
)]
pub async fn unpublish(
    State(app): State<Arc<App>>,
    NodeCaller(node): NodeCaller,
    FormOrJson(body): FormOrJson<HookBody>,
) -> Answer<Json<HookAnswer>> {
    let Some(word) = word(body) else { return Ok(answer(HookResult::Ignored)) };
    Ok(answer(match app.streams.unpublished(&node, &word).await.map_err(|error| unavailable(&error))? {
        Ending::Ended(_) => HookResult::Ended,
        Ending::OtherSource | Ending::NotHeld | Ending::NotDue => HookResult::Ignored,
    }))
}

/// `None` for a source that is no publisher, such as `rtspSource`: hooks fire for those too.
fn word(body: HookBody) -> Option<HookWord> {
    let source_id: SourceId = body.source_id.parse().ok()?;
    let source_type: SourceType = body.source_type.parse().ok()?;
    Some(HookWord { path: body.path, source_id, source_type })
}

fn answer(result: HookResult) -> Json<HookAnswer> {
    Json(HookAnswer { result })
}

fn unavailable(error: &StreamsError) -> Problem {
    Problem::of(Code::StateUnavailable).caused_by(error)
}
