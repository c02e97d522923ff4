//! `/v1/streams`: what is on air, and what was.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::HeaderMap;

use super::{
    callers::ApiCaller,
    code::Code,
    fields::{cursor, page_request},
    input::{JsonBody, PathParam, Query},
    list_items::{ListItem, ListItems},
    list_pages::ListPages,
    openapi::problems,
    problem::{Answer, Problem},
    publisher::see_off,
    streams_dto::{
        Beside, ListStreams, PatchStream, Seen, StateFilter, StoppedStream, StreamDetails, StreamList, StreamSummary,
    },
};
use crate::{
    app::App,
    domain::{Stream, StreamId, StreamState, StreamStateWord, Timestamp},
    metrics,
    nodes::Fleet,
    postgres::EndedFilter,
    streams::{self, ListFilter, StreamPatch, View},
};

problems! {
    ListProblems: InvalidCursor, StateUnavailable, HistoryUnavailable;
    GetProblems: StreamNotFound, StateUnavailable, HistoryUnavailable;
    PatchProblems: StreamNotFound, StreamContended, StateUnavailable, HistoryUnavailable;
    StopProblems: StreamNotFound, StreamAlreadyEnded, StateUnavailable, HistoryUnavailable;
}

/// List streams
///
/// What is on air now, exactly: a publisher that was admitted a moment ago is in it. Nothing on air is an empty list and a
/// message, never an error. While Redis cannot be reached, the last list that was known is given, with `stale: true`. Send
/// the `ETag` back as `If-None-Match`: while nothing has changed, the answer is 304 without a body.
#[utoipa::path(
    get,
    path = "/v1/streams",
    operation_id = "listStreams",
    tag = "streams",
    security(("api" = [])),
    params(
        ListStreams,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the list that the caller has."),
    ),
    responses(
        (status = 200, description = "A page.", body = StreamList, headers(("ETag" = String, description = "Names what is listed."))),
        (status = 304, description = "The list is as the caller has it."),
        ListProblems,
    ),
)]
pub async fn list(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    State(pages): State<Arc<ListPages>>,
    headers: HeaderMap,
    Query(query): Query<ListStreams>,
) -> Answer<Response> {
    let started = Instant::now();
    let state = match query.state {
        // Boxed, because every list would carry its room.
        Some(StateFilter::Ended) => return Ok(Box::pin(list_ended(&app, query)).await?.into_response()),
        Some(StateFilter::Connecting) => Some(StreamStateWord::Connecting),
        Some(StateFilter::Live) => Some(StreamStateWord::Live),
        None => None,
    };
    refuse_filters_of_ended(&query)?;
    let filter = ListFilter {
        state,
        node: query.node,
        broadcaster_id: query.broadcaster_id,
        path: query.path,
        items_max: query.limit.get(),
        after: cursor(query.cursor.as_deref())?,
    };
    let view = app.streams.view().await?;
    let rendered = pages.get(&view, &app.nodes.fleet(), &filter, render);
    metrics::list(started.elapsed());
    Ok(rendered.answer(&headers))
}

fn render(view: &View, fleet: &Fleet, filter: &ListFilter, items: &ListItems) -> StreamList {
    let (page, stale) = (streams::page(&view.snapshot, filter), view.stale.is_some());
    let show = |stream: &Arc<Stream>| {
        let progress = view.snapshot.progress_of(stream);
        items.get(stream, || StreamSummary::new(&Seen { stream, progress, stale }, fleet))
    };
    StreamList {
        items: page.items.iter().map(show).collect(),
        total: Some(page.total),
        stale,
        message: message(stale, page.total, filter.properties() == 0),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
        as_of: view.snapshot.as_of,
    }
}

fn message(stale: bool, total: usize, everything_was_asked_for: bool) -> Option<String> {
    let text = match (stale, total) {
        (true, _) => "The state cannot be read at the moment: this is what was known at as_of.",
        (false, 0) if everything_was_asked_for => "Nobody is on air right now.",
        (false, 0) => "Nothing that you asked for is on air.",
        (false, _) => return None,
    };
    Some(text.to_owned())
}

fn refuse_filters_of_ended(query: &ListStreams) -> Answer<()> {
    let given = [
        ("key_id", query.key_id.is_some()),
        ("ended_from", query.ended_from.is_some()),
        ("ended_before", query.ended_before.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((field, _)) => Err(Problem::of(Code::InvalidQuery).with_field(field, "goes with state=ended only")),
        None => Ok(()),
    }
}

async fn list_ended(app: &App, query: ListStreams) -> Answer<Json<StreamList>> {
    let request = page_request(query.limit, query.cursor.as_deref())?;
    let filter = EndedFilter {
        key_id: query.key_id,
        broadcaster_id: query.broadcaster_id,
        path: query.path,
        node: query.node,
        ended_from: query.ended_from,
        ended_before: query.ended_before,
    };
    let page = app.streams.ended(&filter, &request).await?;
    let (fleet, now) = (app.nodes.fleet(), Timestamp::now());
    let items: Vec<_> = page
        .items
        .iter()
        .map(|record| StreamSummary::new(&Seen { stream: &record.stream, progress: None, stale: false }, &fleet))
        .map(|summary| ListItem::new(&summary))
        .collect();
    let message = items.is_empty().then(|| "No stream that you asked for has ended here.".to_owned());
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(StreamList { items, total: None, stale: false, message, next_cursor, as_of: now }))
}

/// Get everything about a stream
///
/// On air or ended.
#[utoipa::path(
    get,
    path = "/v1/streams/{id}",
    operation_id = "getStream",
    tag = "streams",
    security(("api" = [])),
    params(("id" = StreamId, Path, description = "The stream's id.")),
    responses((status = 200, description = "The stream.", body = StreamDetails), GetProblems),
)]
pub async fn get(
    _caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<StreamId>,
) -> Answer<Json<StreamDetails>> {
    let details = app.streams.details(id).await?;
    Ok(Json(show(&app, &details).await))
}

/// Change what viewers are told about a stream
///
/// On air or ended: a reference to the recording usually comes afterwards. What is set here belongs to this stream; the key's
/// texts stay for the next one.
#[utoipa::path(
    patch,
    path = "/v1/streams/{id}",
    operation_id = "patchStream",
    tag = "streams",
    security(("api" = [])),
    params(("id" = StreamId, Path, description = "The stream's id.")),
    request_body = PatchStream,
    responses((status = 200, description = "The stream as it is now.", body = StreamDetails), PatchProblems),
)]
pub async fn patch(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<StreamId>,
    JsonBody(body): JsonBody<PatchStream>,
) -> Answer<Json<StreamDetails>> {
    let patch = StreamPatch {
        title: body.title.into_replacement(),
        description: body.description.into_replacement(),
        metadata: body.metadata.into_metadata(),
        recording: body.recording.into_replacement(),
    };
    let details = Box::pin(app.streams.patch(id, &patch, &caller.by)).await?;
    Ok(Json(show(&app, &details).await))
}

/// Take a stream off air
///
/// At once. Its key stays valid, but its path admits nobody for a short time, so that the encoder's own reconnect does not
/// undo it.
#[utoipa::path(
    post,
    path = "/v1/streams/{id}/stop",
    operation_id = "stopStream",
    tag = "streams",
    security(("api" = [])),
    params(("id" = StreamId, Path, description = "The stream's id.")),
    responses((status = 200, description = "Off air.", body = StoppedStream), StopProblems),
)]
pub async fn stop(
    caller: ApiCaller,
    State(app): State<Arc<App>>,
    PathParam(id): PathParam<StreamId>,
) -> Answer<Json<StoppedStream>> {
    let stream = app.streams.stop(id).await?;
    let now = Timestamp::now();
    let ended_at = match stream.state {
        StreamState::Ended { at, .. } => at,
        StreamState::Connecting { .. } | StreamState::Live { .. } => now,
    };
    let closed_until = ended_at.plus_ms(i64::try_from(app.config.reconciler.cooldown_ms).unwrap_or(i64::MAX));
    // Beside each other: neither waits for a store or a node that the other needs.
    let noting = Box::pin(app.streams.note_stop(&stream, &caller.by));
    let ((), publisher) = tokio::join!(noting, see_off(&app, &stream.path, Some(&stream)));
    let seen = Seen { stream: &stream, progress: None, stale: false };
    let beside = Beside { totals: None, connection: None, as_of: now };
    let stream = StreamDetails::new(&seen, beside, &app.nodes.fleet(), now);
    Ok(Json(StoppedStream { stream, publisher, closed_until }))
}

async fn show(app: &App, details: &streams::StreamDetails) -> StreamDetails {
    let stream = &details.stream;
    let connection = match stream.state {
        // Boxed, because it is large and there is little else.
        StreamState::Live { .. } if stream.stale_since.is_none() => Box::pin(app.nodes.connection_of(stream)).await,
        StreamState::Connecting { .. } | StreamState::Live { .. } | StreamState::Ended { .. } => None,
    };
    let seen = Seen { stream, progress: details.progress.as_ref(), stale: details.stale.is_some() };
    let beside = Beside { totals: details.totals, connection, as_of: details.as_of };
    StreamDetails::new(&seen, beside, &app.nodes.fleet(), Timestamp::now())
}
