//! What serde says about a wrong request or setting, in words that never repeat the value.
//!
//! Invariant: of what the caller sent, only field names of harmless form are repeated. A key pasted into the wrong field
//! must not come back in an error and end up in somebody's log.

use serde_path_to_error::{Path, Segment};

use super::Secret;

/// What stands for a field that cannot be named.
const UNNAMED: &str = "(unnamed)";

/// The longest field name that is repeated.
const NAME_LENGTH_MAX: usize = 64;

/// A wrong field: where, and what it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The field, such as `public_urls.hls`; `(body)` for the whole.
    pub field: String,
    /// What it should be.
    pub detail: String,
}

/// Explains why a value was refused at `path`.
pub fn explain(path: &Path, message: &str) -> Wrong {
    let message = without_position(message);
    let mut names: Vec<String> = path.iter().filter_map(name).collect();
    let detail = if let Some(rest) = message.strip_prefix("missing field `") {
        names.push(rest.trim_end_matches('`').to_owned());
        "is required".to_owned()
    } else if let Some(rest) = message.strip_prefix("duplicate field `") {
        names.push(rest.trim_end_matches('`').to_owned());
        "is given twice".to_owned()
    } else {
        said(message)
    };
    let field = join(&names);
    Wrong { field, detail }
}

fn said(message: &str) -> String {
    let expected = message.rsplit_once(", expected ").map(|(_, expected)| expected.replace('`', ""));
    if message.starts_with("unknown field ") {
        return match expected {
            Some(expected) => format!("is not known here; known: {}", expected.trim_start_matches("one of ")),
            None => "is not known here".to_owned(),
        };
    }
    if message.starts_with("unknown variant ") {
        return format!("must be {}", expected.unwrap_or_default());
    }
    if let Some(found) = message.strip_prefix("invalid type: ") {
        return format!("must be {}, not {}", plain(expected), kind(found));
    }
    if message.starts_with("invalid value: ") || message.starts_with("invalid length ") {
        return format!("must be {}", plain(expected));
    }
    known(message)
}

/// Messages of the standard library and of crates, which say what is wrong but not what is wanted. Whatever is left is a
/// sentence of our own domain types, and those never hold the value.
fn known(message: &str) -> String {
    if message.starts_with("UUID parsing failed") || message.contains("invalid character: expected an optional prefix")
    {
        return "must be a UUID".to_owned();
    }
    if message.contains("invalid digit") || message.contains("number too large") || message.contains("empty string") {
        return "must be a whole number in range".to_owned();
    }
    message.to_owned()
}

fn plain(expected: Option<String>) -> String {
    let expected = expected.unwrap_or_default();
    match expected.as_str() {
        "u8" | "u16" | "u32" | "u64" | "i64" | "usize" => "a whole number in range".to_owned(),
        "a map" => "an object".to_owned(),
        text if text.starts_with("struct ") => "an object".to_owned(),
        text => text.to_owned(),
    }
}

/// The kind of what was found, without the value that serde puts behind it.
fn kind(found: &str) -> &'static str {
    match found.split([' ', ',']).next().unwrap_or_default() {
        "string" | "character" => "a text",
        "integer" => "a number",
        "floating" => "a fraction",
        "boolean" => "true or false",
        "null" | "unit" | "Option" => "null",
        "map" => "an object",
        "sequence" => "a list",
        _ => "this",
    }
}

fn without_position(message: &str) -> &str {
    match message.rsplit_once(" at line ") {
        Some((text, position)) if position.contains(" column ") => text,
        _ => message,
    }
}

fn name(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

fn join(names: &[String]) -> String {
    if names.is_empty() {
        return "(body)".to_owned();
    }
    let harmless = |name: &str| {
        name.len() <= NAME_LENGTH_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            && !name.contains(Secret::PREFIX)
    };
    let names: Vec<&str> = names.iter().map(|name| if harmless(name) { name } else { UNNAMED }).collect();
    names.join(".")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::domain::{KeyStatus, StreamPath, Timestamp};

    const URL: &str = "must be an absolute URL such as https://edge-1.example.org:8888";

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Body {
        #[serde(rename = "count")]
        _count: Option<u32>,
        #[serde(rename = "status")]
        _status: Option<KeyStatus>,
        #[serde(rename = "at")]
        _at: Option<Timestamp>,
        #[serde(rename = "path")]
        _path: Option<StreamPath>,
        #[serde(rename = "id")]
        _id: Option<uuid::Uuid>,
        #[serde(rename = "url", deserialize_with = "crate::domain::url_field::optional")]
        _url: Option<url::Url>,
        #[serde(rename = "inner")]
        _inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(rename = "needed")]
        _needed: String,
    }

    fn wrong(body: &str) -> (String, String) {
        let mut deserializer = serde_json::Deserializer::from_str(body);
        let error = serde_path_to_error::deserialize::<_, Body>(&mut deserializer).unwrap_err();
        let wrong = explain(error.path(), &error.inner().to_string());
        (wrong.field, wrong.detail)
    }

    #[test]
    fn the_field_is_named_and_the_value_is_not_repeated() {
        let cases = [
            (r#"{"count": "s3cret"}"#, "count", "must be a whole number in range, not a text"),
            (r#"{"count": "a, expected s3cret"}"#, "count", "must be a whole number in range, not a text"),
            (r#"{"count": -1}"#, "count", "must be a whole number in range"),
            (r#"{"count": 1.5}"#, "count", "must be a whole number in range, not a fraction"),
            (r#"{"status": "s3cret"}"#, "status", "must be one of active, disabled, revoked, expired"),
            (r#"{"status": 5}"#, "status", "must be a string, not a number"),
            (r#"{"at": "s3cret"}"#, "at", "expected an RFC 3339 time such as 2026-01-31T12:00:00Z"),
            (r#"{"path": "s3cret:"}"#, "path", "a path is made of letters, digits and '_', '-', '.', '/'"),
            (r#"{"id": "s3cret"}"#, "id", "must be a UUID"),
            (r#"{"url": "s3cret"}"#, "url", URL),
            (r#"{"url": "http://s3cret@10.0.0.256"}"#, "url", URL),
            (r#"{"url": "http://s3cret@xn--u-ccb"}"#, "url", URL),
            (r#"{"url": "http://s3cret@a|b"}"#, "url", URL),
            (r#"{"url": 5}"#, "url", "must be a string, not a number"),
            (r#"{"inner": {}}"#, "inner.needed", "is required"),
            (r#"{"inner": {"needed": null}}"#, "inner.needed", "must be a string, not null"),
            (r#"{"inner": 1}"#, "inner", "must be an object, not a number"),
            (r#"{"count": 1, "count": 2}"#, "count", "is given twice"),
            ("5", "(body)", "must be an object, not a number"),
        ];
        for (body, field, detail) in cases {
            assert_eq!(wrong(body), (field.to_owned(), detail.to_owned()), "{body}");
        }
    }

    #[test]
    fn an_unknown_field_is_named_unless_its_name_may_be_a_secret() {
        let known = "is not known here; known: count, status, at, path, id, url, inner";
        assert_eq!(wrong(r#"{"titel": 1}"#), ("titel".to_owned(), known.to_owned()));
        assert_eq!(wrong(r#"{"sk_abc": 1}"#).0, UNNAMED);
        assert_eq!(wrong(r#"{"a b": 1}"#).0, UNNAMED);
    }
}
