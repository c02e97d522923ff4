//! Problems: the one form of every answer that is not a success (RFC 9457).
//!
//! Invariants:
//! - A problem never holds what the caller sent: no value, no secret, no query string. Field names are the exception, and
//!   only harmless ones.
//! - What the log keeps (`cause`) never reaches the caller.
//! - The frame ([`super::frame`]) writes the body, because only it knows the request id. A handler's [`Problem`] travels
//!   there as an extension of an empty response.

use std::{borrow::Cow, fmt};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::code::Code;

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// One field of the request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Where: a member of the body such as `public_urls.hls`, or a query parameter.
    #[schema(example = "expires_at")]
    pub field: Cow<'static, str>,
    /// What it should be.
    #[schema(example = "must be in the future")]
    pub detail: Cow<'static, str>,
}

/// Why a request is not answered as asked.
#[derive(Debug, Clone)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    members: serde_json::Map<String, serde_json::Value>,
    retry_after_s: Option<u64>,
    cause: Option<String>,
}

/// What a handler answers.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    /// A problem that the code says everything about.
    #[must_use]
    pub fn of(code: Code) -> Self {
        Self::new(code, code.advice())
    }

    /// A problem with a detail of its own, which says what to do next.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let (errors, members) = (Vec::new(), serde_json::Map::new());
        Self { code, detail: detail.into(), errors, members, retry_after_s: None, cause: None }
    }

    /// One wrong field of the body.
    #[must_use]
    pub fn invalid_input(field: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of(Code::InvalidInput).with_field(field, detail)
    }

    /// Something that cannot happen, happened. The cause goes to the log only.
    #[must_use]
    pub fn internal(cause: &dyn fmt::Display) -> Self {
        Self::of(Code::Internal).caused_by(cause)
    }

    /// Names a wrong field.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        self.errors.push(FieldError { field: field.into(), detail: detail.into() });
        self
    }

    /// Adds a member that only this problem has.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: serde_json::Value) -> Self {
        self.members.insert(name.to_owned(), value);
        self
    }

    /// Says when to try again (`Retry-After`).
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Keeps what the log shall say. It must hold no secret either.
    #[must_use]
    pub fn caused_by(mut self, cause: &dyn fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the log shall say.
    pub(super) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The problem for an error answer that somebody else made, such as the router.
    pub(super) fn from_status(status: StatusCode) -> Self {
        Self::of(match status {
            StatusCode::NOT_FOUND => Code::RouteNotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Code::InvalidInput,
            status if status.is_client_error() => Code::RequestMalformed,
            _ => Code::Internal,
        })
    }

    /// The body.
    #[must_use]
    pub fn to_json(&self, request_id: &str) -> Vec<u8> {
        let body = ProblemBody {
            type_uri: self.code.type_uri(),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            request_id,
            errors: &self.errors,
            members: &self.members,
        };
        serde_json::to_vec(&body).expect("texts and numbers always serialise")
    }

    /// The headers that belong to the code: how to authenticate, when to come back.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let status = self.code.status();
        let scheme = match (status, self.code) {
            (StatusCode::UNAUTHORIZED, Code::Unauthorized) => Some("Bearer realm=\"onair\""),
            (StatusCode::UNAUTHORIZED, _) => Some("Basic realm=\"onair\""),
            _ => None,
        };
        let retry_after_s = self.retry_after_s.or((status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        scheme
            .map(|scheme| (header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme)))
            .into_iter()
            .chain(retry_after_s.map(|seconds| (header::RETRY_AFTER, HeaderValue::from(seconds))))
            .chain([
                (header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ])
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = self.code.status();
        response.extensions_mut().insert(self);
        response
    }
}

/// Why a request was not answered as asked (RFC 9457).
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ProblemBody<'a> {
    /// Where the code is explained.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", example = "/docs/errors#key_in_use")]
    type_uri: String,
    /// The code in words.
    title: &'static str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What to do next. For people; it may change.
    detail: &'a str,
    /// The stable word for what went wrong.
    code: &'static str,
    /// Names the request in the log.
    request_id: &'a str,
    /// The fields that are wrong, where fields are.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false, value_type = Vec<FieldError>)]
    errors: &'a [FieldError],
    #[serde(flatten)]
    #[schema(ignore)]
    members: &'a serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_members_of_rfc_9457_and_ours() {
        let problem = Problem::invalid_input("expires_at", "must be in the future").caused_by(&"never shown");
        let body: serde_json::Value = serde_json::from_slice(&problem.to_json("r-1")).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "type": "/docs/errors#invalid_input",
                "title": "A field is wrong",
                "status": 422,
                "detail": Code::InvalidInput.advice(),
                "code": "invalid_input",
                "request_id": "r-1",
                "errors": [{"field": "expires_at", "detail": "must be in the future"}],
            })
        );
    }

    #[test]
    fn a_401_says_how_to_authenticate_and_a_503_when_to_come_back() {
        let headers = |code: Code| Problem::of(code).headers().collect::<http::HeaderMap>();
        assert_eq!(headers(Code::Unauthorized)[header::WWW_AUTHENTICATE], "Bearer realm=\"onair\"");
        assert_eq!(headers(Code::NodeUnauthorized)[header::WWW_AUTHENTICATE], "Basic realm=\"onair\"");
        assert_eq!(headers(Code::Overloaded)[header::RETRY_AFTER], "1");
        assert!(!headers(Code::KeyInUse).contains_key(header::RETRY_AFTER));
    }
}
