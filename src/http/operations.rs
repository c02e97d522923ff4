//! `/healthz`, `/readyz` and `/metrics`: for those who run the service.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde::Serialize;

use super::{
    code::Code,
    openapi::problems,
    problem::{Answer, Problem},
};
use crate::{app::App, domain::words, metrics};

/// The process runs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// Always `ok`.
    status: &'static str,
    version: &'static str,
}

words! {
    /// Whether the service does its work.
    pub enum ReadyWord {
        /// All of it.
        Ready = "ready",
        /// Publishing, lists and hooks; the management of keys and the history wait for Postgres.
        Degraded = "degraded",
    }
}

words! {
    /// Whether something that is needed is there.
    pub enum DependencyWord {
        /// It answers.
        Ok = "ok",
        /// It does not.
        Unavailable = "unavailable",
    }
}

/// What the service needs, one by one.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct Dependencies {
    /// Without it nobody is admitted.
    redis: DependencyWord,
    /// Without it publishing goes on.
    postgres: DependencyWord,
}

/// The service does its work.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    status: ReadyWord,
    dependencies: Dependencies,
}

problems! {
    ReadyProblems: NotReady;
}

/// Whether the process runs
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getHealth",
    tag = "operations",
    responses((status = 200, description = "It runs.", body = Health)),
)]
pub async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Whether requests should be sent here
///
/// 503 while Redis cannot be asked or the service is stopping; the problem's member `dependencies` says which. Without
/// Postgres the service is degraded but ready: to take every replica away for that would stop publishing too.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "operations",
    responses((status = 200, description = "Ready, or degraded.", body = Readiness), ReadyProblems),
)]
pub async fn readiness(State(app): State<Arc<App>>) -> Answer<Json<Readiness>> {
    let answering = app.stores_answer().await;
    let word = |answers| if answers { DependencyWord::Ok } else { DependencyWord::Unavailable };
    let (redis, postgres) = (word(answering.redis), word(answering.postgres));
    let dependencies = Dependencies { redis, postgres };
    let not_ready = |detail: &'static str| {
        let members = serde_json::to_value(dependencies).unwrap_or_default();
        Problem::new(Code::NotReady, detail).with_member("dependencies", members)
    };
    if app.tasks.is_draining() {
        return Err(not_ready("The service is stopping."));
    }
    match (redis, postgres) {
        (DependencyWord::Unavailable, _) => Err(not_ready("Redis cannot be asked, so nobody is admitted.")),
        (DependencyWord::Ok, DependencyWord::Unavailable) => {
            Ok(Json(Readiness { status: ReadyWord::Degraded, dependencies }))
        }
        (DependencyWord::Ok, DependencyWord::Ok) => Ok(Json(Readiness { status: ReadyWord::Ready, dependencies })),
    }
}

/// What can be measured, for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    tag = "operations",
    responses((status = 200, description = "In Prometheus' text format.", body = String, content_type = "text/plain; version=0.0.4")),
)]
pub async fn prometheus() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render()).into_response()
}
