//! `POST /v1/mediamtx/auth`: a node asks whether a client may publish, watch, or use the node's own API.

use std::sync::Arc;

use axum::{Extension, extract::State};
use http::StatusCode;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    callers::NodeCaller,
    code::Code,
    frame::{Framed, RequestId},
    input::JsonBody,
    openapi::problems,
    problem::{Answer, Problem},
    server::Arrival,
};
use crate::{
    admission::{Action, Allowance, AuthRequest, Decision, Outcome, Refusal, RefusalCode, loggable_path},
    app::App,
    domain::NodeName,
    metrics,
};

problems! {
    DecideProblems: CredentialsMissing, CredentialsConflict, KeyMalformed, KeyUnknown, KeyInPath, KeyRevoked, KeyDisabled,
        KeyExpired, PathMalformed, PathMismatch, PathNotOnAir, PlaybackPrivate, KeyInUse, CoolingDown, TooManyFailures,
        RenditionReserved, ParentNotOnAir, ControlUnauthorized, ActionUnknown, StateUnavailable,
        HistoryBacklogFull;
}

/// Decide about a publisher, a reader, or a caller of the node's own API
///
/// `MediaMTX` calls this for every client, as `authHTTPAddress` in its configuration says. 204 admits. Every other answer
/// refuses, and `MediaMTX` writes its body into its log: `detail` says there what to do.
#[utoipa::path(
    post,
    path = "/v1/mediamtx/auth",
    operation_id = "decide",
    tag = "mediamtx",
    security(("node" = [])),
    request_body(content = AuthRequest, description = "What MediaMTX sends. Unknown fields are ignored, missing ones are empty."),
    responses((status = 204, description = "Admitted."), DecideProblems)
)]
pub async fn decide(
    State(app): State<Arc<App>>,
    NodeCaller(node): NodeCaller,
    Extension(framed): Extension<Framed>,
    arrival: Option<Extension<Arrival>>,
    JsonBody(request): JsonBody<AuthRequest>,
) -> Answer<StatusCode> {
    let started = Instant::now();
    let decision = app.admission.decide(&node, &request).await;
    let duration = started.elapsed();
    metrics::auth_decision(request.action(), decision.code());
    if request.action().is_of_client() {
        metrics::auth_answered(outcome_of(&decision.outcome), duration);
        if let Some(accepted_at) = arrival.and_then(|Extension(arrival)| arrival.accepted_at) {
            metrics::auth_queue(started.duration_since(accepted_at));
        }
    }
    log(&node, &request, &decision, &framed.id, duration);
    match decision.outcome {
        Outcome::Publishing { .. } | Outcome::Allowed(_) => Ok(StatusCode::NO_CONTENT),
        Outcome::Refused(refusal) => Err(problem(refusal)),
    }
}

fn outcome_of(outcome: &Outcome) -> metrics::AuthOutcome {
    match outcome {
        Outcome::Publishing { .. } | Outcome::Allowed(_) => metrics::AuthOutcome::Admitted,
        Outcome::Refused(refusal) if refusal.code == RefusalCode::StateUnavailable => metrics::AuthOutcome::Unavailable,
        Outcome::Refused(_) => metrics::AuthOutcome::Refused,
    }
}

/// One line for every decision. It holds nothing that the client sent as credentials, and the path only as far as it could
/// be one.
fn log(
    node: &NodeName,
    request: &AuthRequest,
    decision: &Decision,
    request_id: &RequestId,
    duration: std::time::Duration,
) {
    let stream_id = match &decision.outcome {
        Outcome::Publishing { stream_id, .. } => Some(stream_id.0),
        Outcome::Allowed(_) | Outcome::Refused(_) => None,
    };
    // Neither is an event: clients that are asked for credentials come without at first, and every poll of ours makes its
    // node ask about us. An encoder that speaks RTMP, SRT or WHIP is not asked, and one that gives a name over RTSP has been:
    // without a key it is set up wrong.
    let is_asked_first = request.action() != Action::Publish || request.may_be_first_of_rtsp() || request.id.is_none();
    let is_routine = match &decision.outcome {
        Outcome::Refused(refusal) => refusal.code == RefusalCode::CredentialsMissing && is_asked_first,
        Outcome::Allowed(allowance) => *allowance == Allowance::ControlAdmitted,
        Outcome::Publishing { .. } => false,
    };
    if is_routine {
        tracing::debug!(code = decision.code(), path = &*loggable_path(&request.path), %node, "decision");
        return;
    }
    // Ids as text that is made here: what is displayed by the log costs a string each.
    let mut texts = [Uuid::encode_buffer(); 3];
    let ids = [decision.key_id.map(|id| id.0), stream_id, request.id.map(|id| id.0)];
    let mut ids = ids.iter().zip(&mut texts).map(|(id, text)| id.map(|id| &*id.hyphenated().encode_lower(text)));
    let [key_id, stream_id, source_id] = std::array::from_fn(|_| ids.next().flatten());
    tracing::info!(
        code = decision.code(),
        action = request.action().as_str(),
        path = &*loggable_path(&request.path),
        node = node.as_str(),
        protocol = &*loggable_path(&request.protocol),
        key_id,
        stream_id,
        source_id,
        duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        request_id = request_id.as_str(),
        "decision"
    );
}

fn problem(refusal: Refusal) -> Problem {
    let problem = Problem::new(code_of(refusal.code), refusal.detail);
    match refusal.retry_after_s {
        Some(seconds) => problem.retry_after_s(seconds),
        None => problem,
    }
}

fn code_of(refusal: RefusalCode) -> Code {
    match refusal {
        RefusalCode::CredentialsMissing => Code::CredentialsMissing,
        RefusalCode::CredentialsConflict => Code::CredentialsConflict,
        RefusalCode::KeyMalformed => Code::KeyMalformed,
        RefusalCode::KeyInPath => Code::KeyInPath,
        RefusalCode::KeyUnknown => Code::KeyUnknown,
        RefusalCode::KeyRevoked => Code::KeyRevoked,
        RefusalCode::KeyDisabled => Code::KeyDisabled,
        RefusalCode::KeyExpired => Code::KeyExpired,
        RefusalCode::PathMismatch => Code::PathMismatch,
        RefusalCode::PathMalformed => Code::PathMalformed,
        RefusalCode::RenditionReserved => Code::RenditionReserved,
        RefusalCode::ParentNotOnAir => Code::ParentNotOnAir,
        RefusalCode::PathNotOnAir => Code::PathNotOnAir,
        RefusalCode::PlaybackPrivate => Code::PlaybackPrivate,
        RefusalCode::KeyInUse => Code::KeyInUse,
        RefusalCode::CoolingDown => Code::CoolingDown,
        RefusalCode::TooManyFailures => Code::TooManyFailures,
        RefusalCode::ControlUnauthorized => Code::ControlUnauthorized,
        RefusalCode::ActionUnknown => Code::ActionUnknown,
        RefusalCode::StateUnavailable => Code::StateUnavailable,
        RefusalCode::HistoryBacklogFull => Code::HistoryBacklogFull,
    }
}
