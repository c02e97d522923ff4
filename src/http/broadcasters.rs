//! `/v1/broadcasters`: who goes live.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    callers::ApiCaller,
    code::Code,
    fields::{Change, Contact, FreeData, PageLimit, given, page_request},
    input::{JsonBody, PathParam, Query},
    openapi::problems,
    problem::{Answer, Problem},
};
use crate::{
    app::App,
    domain::{self, BroadcasterId, Label, Metadata, Timestamp},
    stream_keys::{BroadcasterPatch, NewBroadcaster},
};

/// A person or organisation that goes live.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Broadcaster {
    id: BroadcasterId,
    display_name: Label,
    /// How the operators reach them. For administrators only: show it to nobody else.
    contact: Option<String>,
    /// Free data.
    #[schema(value_type = Object)]
    metadata: Metadata,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<domain::Broadcaster> for Broadcaster {
    fn from(broadcaster: domain::Broadcaster) -> Self {
        let domain::Broadcaster { id, display_name, contact, metadata, created_at, updated_at } = broadcaster;
        Self { id, display_name, contact, metadata, created_at, updated_at }
    }
}

/// A page of the broadcasters.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct BroadcasterList {
    /// The newest first.
    items: Vec<Broadcaster>,
    /// Where the next page begins; `null` on the last.
    next_cursor: Option<String>,
}

/// A new broadcaster.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"display_name": "Ada", "contact": "ada@example.org"}))]
pub struct CreateBroadcaster {
    /// What viewers see.
    display_name: Label,
    /// How the operators reach them.
    contact: Option<Contact>,
    /// Free data.
    metadata: Option<FreeData>,
}

/// Changes of a broadcaster: absent stays, `null` clears.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"display_name": "Ada L."}))]
pub struct PatchBroadcaster {
    /// What viewers see, of the streams that start from now on.
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    display_name: Option<Label>,
    /// How the operators reach them.
    #[serde(default)]
    #[schema(required = false, value_type = Option<Contact>)]
    contact: Change<Contact>,
    /// Free data, in place of all that was there.
    #[serde(default)]
    #[schema(required = false, value_type = Option<FreeData>)]
    metadata: Change<FreeData>,
}

/// Which broadcasters are listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListBroadcasters {
    /// At most so many.
    #[serde(default)]
    #[param(inline, required = false)]
    limit: PageLimit,
    /// `next_cursor` of the page before.
    #[param(max_length = 512)]
    cursor: Option<String>,
}

problems! {
    CreateProblems: StoreUnavailable;
    ListProblems: InvalidCursor, StoreUnavailable;
    OneProblems: BroadcasterNotFound, StoreUnavailable;
}

/// Create a broadcaster
#[utoipa::path(
    post,
    path = "/v1/broadcasters",
    operation_id = "createBroadcaster",
    tag = "broadcasters",
    security(("api" = [])),
    request_body = CreateBroadcaster,
    responses(
        (status = 201, description = "Created.", body = Broadcaster, headers(("Location" = String, description = "Its address."))),
        CreateProblems,
    ),
)]
pub async fn create(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<CreateBroadcaster>,
) -> Answer<Response> {
    let new = NewBroadcaster {
        display_name: body.display_name,
        contact: body.contact.map(String::from),
        metadata: body.metadata.unwrap_or_default().0,
    };
    let created: Broadcaster = app.stream_keys.create_broadcaster(&new, &caller.by).await?.into();
    let location = format!("/v1/broadcasters/{}", created.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(created)).into_response())
}

/// List broadcasters
#[utoipa::path(
    get,
    path = "/v1/broadcasters",
    operation_id = "listBroadcasters",
    tag = "broadcasters",
    security(("api" = [])),
    params(ListBroadcasters),
    responses((status = 200, description = "A page.", body = BroadcasterList), ListProblems),
)]
pub async fn list(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    Query(query): Query<ListBroadcasters>,
) -> Answer<Json<BroadcasterList>> {
    let request = page_request(query.limit, query.cursor.as_deref())?;
    let page = app.stream_keys.broadcasters(&request).await?;
    let items = page.items.into_iter().map(Broadcaster::from).collect();
    Ok(Json(BroadcasterList { items, next_cursor: page.next.map(|cursor| cursor.to_string()) }))
}

/// Get a broadcaster
#[utoipa::path(
    get,
    path = "/v1/broadcasters/{id}",
    operation_id = "getBroadcaster",
    tag = "broadcasters",
    security(("api" = [])),
    params(("id" = BroadcasterId, Path, description = "The broadcaster's id.")),
    responses((status = 200, description = "The broadcaster.", body = Broadcaster), OneProblems),
)]
pub async fn get(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<BroadcasterId>,
) -> Answer<Json<Broadcaster>> {
    let found = app.stream_keys.broadcaster(id).await?;
    found.map(|broadcaster| Json(broadcaster.into())).ok_or_else(|| Problem::of(Code::BroadcasterNotFound))
}

/// Change a broadcaster
#[utoipa::path(
    patch,
    path = "/v1/broadcasters/{id}",
    operation_id = "patchBroadcaster",
    tag = "broadcasters",
    security(("api" = [])),
    params(("id" = BroadcasterId, Path, description = "The broadcaster's id.")),
    request_body = PatchBroadcaster,
    responses((status = 200, description = "The broadcaster as it is now.", body = Broadcaster), OneProblems),
)]
pub async fn patch(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<BroadcasterId>,
    JsonBody(body): JsonBody<PatchBroadcaster>,
) -> Answer<Json<Broadcaster>> {
    let patch = BroadcasterPatch {
        display_name: body.display_name,
        contact: body.contact.into_edit(),
        metadata: body.metadata.into_metadata(),
    };
    Ok(Json(app.stream_keys.patch_broadcaster(id, patch, &caller.by).await?.into()))
}
