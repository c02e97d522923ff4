//! Extractors for what a caller sends: body, query and path, each refused with a problem that names the field.
//!
//! Invariants:
//! - No more of a body is kept than the frame's `body_bytes_max`, and none is waited for longer than its
//!   `body_read_timeout`.
//! - Nothing of the value is repeated in a problem.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
};
use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::{code::Code, frame::Framed, problem::Problem};
use crate::domain::{Wrong, explain};

/// A body of JSON.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

/// A body of JSON or of an HTML form, as `curl -d` sends it.
#[derive(Debug)]
pub struct FormOrJson<T>(pub T);

/// The query.
#[derive(Debug)]
pub struct Query<T>(pub T);

/// The one parameter of the path, such as an id.
#[derive(Debug)]
pub struct PathParam<T>(pub T);

/// What a refused body may still send before we hang up on it: a client that is cut off in the middle of sending often
/// never reads why.
const DRAINED_BYTES_MAX: usize = 1024 * 1024;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        match media_type(request.headers()) {
            MediaType::Json => from_json(&read_body(request).await?).map(Self),
            MediaType::Form | MediaType::Other => Err(Problem::of(Code::UnsupportedMediaType)),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for FormOrJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        match media_type(request.headers()) {
            MediaType::Json => from_json(&read_body(request).await?).map(Self),
            MediaType::Form => {
                from_form(&read_body(request).await?).map_err(|wrong| invalid(Code::InvalidInput, wrong)).map(Self)
            }
            MediaType::Other => Err(Problem::new(
                Code::UnsupportedMediaType,
                "Send 'Content-Type: application/json' or 'application/x-www-form-urlencoded'.",
            )),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        from_form(query.as_bytes()).map_err(|wrong| invalid(Code::InvalidQuery, wrong)).map(Self)
    }
}

impl<S: Send + Sync, T: std::str::FromStr> FromRequestParts<S> for PathParam<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let malformed = || Problem::of(Code::IdMalformed);
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| malformed())?;
        let (_, text) = params.iter().next().ok_or_else(malformed)?;
        text.parse().map(Self).map_err(|_| malformed())
    }
}

enum MediaType {
    Json,
    Form,
    Other,
}

fn media_type(headers: &HeaderMap) -> MediaType {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" => MediaType::Json,
        "application/x-www-form-urlencoded" => MediaType::Form,
        other if other.starts_with("application/") && other.ends_with("+json") => MediaType::Json,
        _ => MediaType::Other,
    }
}

async fn read_body(request: Request) -> Result<Bytes, Problem> {
    let limits = request.extensions().get::<Framed>().map(|framed| Arc::clone(&framed.limits));
    let limits = limits.ok_or_else(|| Problem::internal(&"a route outside the frame reads a body"))?;
    let too_large = || {
        let detail = format!("The body may have at most {} bytes.", limits.body_bytes_max);
        Problem::new(Code::BodyTooLarge, detail)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    let read = async {
        if announced.is_some_and(|bytes: usize| bytes > limits.body_bytes_max) {
            if !waits_for_leave {
                drain(&mut body).await;
            }
            return Err(too_large());
        }
        let mut held = Vec::with_capacity(announced.unwrap_or_default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::new(Code::BodyMalformed, "The body broke off."))?;
            let Ok(data) = frame.into_data() else { continue };
            if held.len() + data.len() > limits.body_bytes_max {
                drain(&mut body).await;
                return Err(too_large());
            }
            held.extend_from_slice(&data);
        }
        Ok(Bytes::from(held))
    };
    let elapsed = |_| Problem::of(Code::BodyTooSlow);
    tokio::time::timeout(limits.body_read_timeout, read).await.map_err(elapsed)?
}

async fn drain(body: &mut Body) {
    let mut drained_bytes = 0;
    while drained_bytes < DRAINED_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        drained_bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

pub(super) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Serde also fills a struct from a list, by position. Nobody means that.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Problem::invalid_input("(body)", "must be an object, not a list"));
    }
    serde_json::from_slice(bytes).map_err(|error| what_is_wrong::<T>(bytes, &error))
}

/// Where in the body it is. Read a second time for that: keeping track of it costs as much as reading does, and nearly
/// everything that is sent is right.
fn what_is_wrong<T: DeserializeOwned>(bytes: &[u8], error: &serde_json::Error) -> Problem {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(found) if found.inner().is_data() => {
            invalid(Code::InvalidInput, explain(found.path(), &found.inner().to_string()))
        }
        _ => malformed(error),
    }
}

pub(super) fn from_form<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Wrong> {
    let deserializer = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(bytes));
    serde_path_to_error::deserialize(deserializer).map_err(|error| explain(error.path(), &error.inner().to_string()))
}

fn malformed(error: &serde_json::Error) -> Problem {
    let detail = format!("The body is not valid JSON: see line {}, column {}.", error.line(), error.column());
    Problem::new(Code::BodyMalformed, detail)
}

pub(super) fn invalid(code: Code, wrong: Wrong) -> Problem {
    Problem::of(code).with_field(wrong.field, wrong.detail)
}
