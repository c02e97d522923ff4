//! `/v1/stream-keys`: secrets that admit a publisher to a path.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::{
    callers::ApiCaller,
    code::Code,
    fields::page_request,
    input::{JsonBody, PathParam, Query},
    openapi::problems,
    problem::{Answer, Problem},
    publisher::see_off,
    stream_keys_dto::{
        CreateStreamKey, CreatedStreamKey, ListStreamKeys, PatchStreamKey, PublishAt, StreamKey, StreamKeyList,
        SwitchedStreamKey, Use,
    },
};
use crate::{
    app::App,
    domain::{self, BroadcasterId, KeyId, OnConflict, Playback, Secret, StreamPath, Timestamp},
    postgres::{InUse, KeySettings},
    stream_keys::{ChangedKey, KeyPatch, ListKeys, NewKey},
    streams::Snapshot,
};

problems! {
    CreateProblems: PathTaken, BroadcasterUnknown, StoreUnavailable;
    ListProblems: InvalidCursor, StoreUnavailable, StateUnavailable;
    GetProblems: KeyNotFound, StoreUnavailable;
    ChangeProblems: KeyNotFound, KeyRevokedIsFinal, StoreUnavailable, RecordedNotYetEffective;
    RevokeProblems: KeyNotFound, StoreUnavailable, RecordedNotYetEffective;
}

/// Create a stream key
///
/// The only answer that holds the secret, and ready-made publish URLs with it.
#[utoipa::path(
    post,
    path = "/v1/stream-keys",
    operation_id = "createStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    request_body = CreateStreamKey,
    responses(
        (status = 201, description = "Created.", body = CreatedStreamKey, headers(("Location" = String, description = "Its address."))),
        CreateProblems,
    ),
)]
pub async fn create(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<CreateStreamKey>,
) -> Answer<Response> {
    let new_owner = match (body.broadcaster_id, body.broadcaster_name) {
        (Some(_), Some(_)) => {
            return Err(Problem::invalid_input("broadcaster_name", "goes without broadcaster_id only"));
        }
        (None, None) => return Err(Problem::invalid_input("broadcaster_id", "is required, or broadcaster_name")),
        (_, name) => name,
    };
    let new = NewKey {
        broadcaster_id: body.broadcaster_id.unwrap_or_else(BroadcasterId::generate),
        path: body.path,
        settings: KeySettings {
            label: body.label,
            title: body.title.map(String::from),
            description: body.description.map(String::from),
            metadata: body.metadata.unwrap_or_default().0,
            expires_at: body.expires_at,
            on_conflict: body.on_conflict.unwrap_or(OnConflict::Reject),
            playback: body.playback.unwrap_or(Playback::Public),
        },
    };
    let created = match &new_owner {
        None => app.stream_keys.create(&new, &caller.by).await?,
        Some(name) => app.stream_keys.create_with_broadcaster(name, &new, &caller.by).await?,
    };
    let location = format!("/v1/stream-keys/{}", created.key.id);
    let answer = CreatedStreamKey {
        publish: publish_urls(&app, &created.key.path, &created.secret),
        secret: created.secret.reveal().to_owned(),
        stream_key: StreamKey::new(created.key, Use::Free, Timestamp::now()),
    };
    let headers = [(header::LOCATION, location), (header::CACHE_CONTROL, "no-store".to_owned())];
    Ok((StatusCode::CREATED, headers, Json(answer)).into_response())
}

/// List stream keys
#[utoipa::path(
    get,
    path = "/v1/stream-keys",
    operation_id = "listStreamKeys",
    tag = "stream-keys",
    security(("api" = [])),
    params(ListStreamKeys),
    responses((status = 200, description = "A page.", body = StreamKeyList), ListProblems),
)]
pub async fn list(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    Query(query): Query<ListStreamKeys>,
) -> Answer<Json<StreamKeyList>> {
    let request = page_request(query.limit, query.cursor.as_deref())?;
    let uses = Uses::now(&app).await;
    let which = ListKeys {
        status: query.status,
        broadcaster_id: query.broadcaster_id,
        path: query.path,
        in_use: query.in_use.map(|wanted| uses.filter(wanted)).transpose()?,
    };
    let page = app.stream_keys.list(which, &request).await?;
    let now = Timestamp::now();
    let items = page.items.into_iter().map(|key| uses.show(key, now)).collect();
    Ok(Json(StreamKeyList { items, next_cursor: page.next.map(|cursor| cursor.to_string()) }))
}

/// Get a stream key
#[utoipa::path(
    get,
    path = "/v1/stream-keys/{id}",
    operation_id = "getStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "The key.", body = StreamKey), GetProblems),
)]
pub async fn get(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
) -> Answer<Json<StreamKey>> {
    let key = app.stream_keys.get(id).await?.ok_or_else(|| Problem::of(Code::KeyNotFound))?;
    Ok(Json(Uses::now(&app).await.show(key, Timestamp::now())))
}

/// Change a stream key
///
/// Label, texts, metadata, expiry and policies. A later expiry revives an expired key.
#[utoipa::path(
    patch,
    path = "/v1/stream-keys/{id}",
    operation_id = "patchStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    request_body = PatchStreamKey,
    responses((status = 200, description = "The key as it is now.", body = StreamKey), ChangeProblems),
)]
pub async fn patch(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
    JsonBody(body): JsonBody<PatchStreamKey>,
) -> Answer<Json<StreamKey>> {
    let patch = KeyPatch {
        label: body.label.into_edit(),
        title: body.title.into_edit(),
        description: body.description.into_edit(),
        metadata: body.metadata.into_metadata(),
        expires_at: body.expires_at.into_edit(),
        on_conflict: body.on_conflict,
        playback: body.playback,
    };
    let changed = app.stream_keys.patch(id, patch, &caller.by).await?;
    Ok(Json(Uses::now(&app).await.show(changed.key, Timestamp::now())))
}

/// Revoke a stream key for ever
///
/// In effect before the answer: nobody is admitted by it any more, and its stream is taken off air. Its path is free for
/// another key. Repeating the call is harmless.
#[utoipa::path(
    post,
    path = "/v1/stream-keys/{id}/revoke",
    operation_id = "revokeStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "Revoked.", body = SwitchedStreamKey), RevokeProblems),
)]
pub async fn revoke(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
) -> Answer<Json<SwitchedStreamKey>> {
    let changed = app.stream_keys.revoke(id, &caller.by).await?;
    Ok(Json(switched(&app, changed).await))
}

/// Disable a stream key
///
/// In effect before the answer: nobody is admitted by it until it is enabled, and its stream is taken off air.
#[utoipa::path(
    post,
    path = "/v1/stream-keys/{id}/disable",
    operation_id = "disableStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "Disabled.", body = SwitchedStreamKey), ChangeProblems),
)]
pub async fn disable(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
) -> Answer<Json<SwitchedStreamKey>> {
    let changed = app.stream_keys.disable(id, &caller.by).await?;
    Ok(Json(switched(&app, changed).await))
}

/// Enable a stream key
#[utoipa::path(
    post,
    path = "/v1/stream-keys/{id}/enable",
    operation_id = "enableStreamKey",
    tag = "stream-keys",
    security(("api" = [])),
    params(("id" = KeyId, Path, description = "The key's id.")),
    responses((status = 200, description = "Enabled.", body = SwitchedStreamKey), ChangeProblems),
)]
pub async fn enable(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<KeyId>,
) -> Answer<Json<SwitchedStreamKey>> {
    let changed = app.stream_keys.enable(id, &caller.by).await?;
    Ok(Json(switched(&app, changed).await))
}

async fn switched(app: &App, changed: ChangedKey) -> SwitchedStreamKey {
    let publisher = see_off(app, &changed.key.path, changed.ended.as_ref()).await;
    SwitchedStreamKey {
        stream_key: Uses::now(app).await.show(changed.key, Timestamp::now()),
        publisher,
        stream_id: changed.ended.map(|stream| stream.id),
    }
}

fn publish_urls(app: &App, path: &StreamPath, secret: &Secret) -> Vec<PublishAt> {
    let fleet = app.nodes.fleet();
    let mut publish: Vec<_> = fleet
        .values()
        .map(|node| PublishAt { node: node.name.clone(), urls: node.public_urls.publish(path, secret) })
        .collect();
    publish.sort_unstable_by(|left, right| left.node.cmp(&right.node));
    publish
}

/// What is on air, to tell which keys are in use; `None` while that cannot be known.
struct Uses(Option<Arc<Snapshot>>);

impl Uses {
    async fn now(app: &App) -> Self {
        let view = app.streams.view().await.ok();
        Self(view.filter(|view| view.stale.is_none()).map(|view| view.snapshot))
    }

    fn show(&self, key: domain::StreamKey, now: Timestamp) -> StreamKey {
        let used = match &self.0 {
            None => Use::Unknown,
            Some(snapshot) => match snapshot.by_path(&key.path).filter(|stream| stream.key_id == key.id) {
                Some(stream) => Use::By(stream.id),
                None => Use::Free,
            },
        };
        StreamKey::new(key, used, now)
    }

    /// The keys that are in use, or all others.
    fn filter(&self, wanted: bool) -> Answer<InUse> {
        let snapshot = self.0.as_ref().ok_or_else(|| Problem::of(Code::StateUnavailable))?;
        let ids = snapshot.streams().map(|stream| stream.key_id).collect();
        Ok(if wanted { InUse::OneOf(ids) } else { InUse::NoneOf(ids) })
    }
}
