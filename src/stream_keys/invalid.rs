//! What is wrong with a field that an administrator sets. Names the field, never repeats the value.

use serde_json::Value;

use crate::domain::{
    METADATA_BYTES_MAX, METADATA_DEPTH_MAX, Metadata, Renditions, StreamPath, TextError, Timestamp, bounded_text,
};

/// The longest title, in characters.
pub const TITLE_CHARACTERS_MAX: usize = 200;
/// The longest description, in characters.
pub const DESCRIPTION_CHARACTERS_MAX: usize = 5000;
/// The longest contact of a broadcaster, in characters.
pub const CONTACT_CHARACTERS_MAX: usize = 500;

/// With such a name, `serde_json` takes an object for JSON in a string, or for a number, and reads another value than was written.
const RESERVED_NAMES: &str = "$serde_json::private::";

/// A field with a value that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// The field, by its name in the API.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: FieldProblem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// A text that is too long or holds what no text may hold.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Metadata that is too large.
    #[error("must have at most {METADATA_BYTES_MAX} bytes as JSON")]
    MetadataTooLarge,
    /// Metadata with a character that no database keeps.
    #[error("must not hold the character U+0000")]
    MetadataHoldsNul,
    /// Metadata that is nested deeper than what reads it later.
    #[error("must not be nested deeper than {METADATA_DEPTH_MAX} levels")]
    MetadataTooDeep,
    /// Metadata with a name that what reads it later takes for something else.
    #[error("must not have a name that begins with {RESERVED_NAMES}")]
    MetadataHoldsReservedName,
    /// An expiry that has passed already.
    #[error("must be in the future")]
    NotInTheFuture,
    /// A path that is kept for a rendition of another one.
    #[error("ends like a rendition of another path")]
    PathIsRendition,
    /// A broadcaster that does not exist.
    #[error("no such broadcaster")]
    UnknownBroadcaster,
}

impl FieldProblem {
    pub(super) fn of(self, field: &'static str) -> InvalidField {
        InvalidField { field, problem: self }
    }
}

pub(super) fn check_text(
    field: &'static str,
    text: Option<&String>,
    characters_max: usize,
) -> Result<(), InvalidField> {
    let Some(text) = text else { return Ok(()) };
    bounded_text(text, characters_max).map_err(|error| FieldProblem::from(error).of(field))
}

pub(super) fn check_expiry(expires_at: Option<&Timestamp>, now: Timestamp) -> Result<(), InvalidField> {
    if expires_at.is_some_and(|&at| at <= now) {
        return Err(FieldProblem::NotInTheFuture.of("expires_at"));
    }
    Ok(())
}

/// A path that is asked for must not be one that only nodes themselves publish to.
pub(super) fn check_path(path: &StreamPath, renditions: &Renditions) -> Result<(), InvalidField> {
    if renditions.parent_of(path).is_some() {
        return Err(FieldProblem::PathIsRendition.of("path"));
    }
    Ok(())
}

/// Checks free data that is to be stored.
///
/// # Errors
/// Where it is larger than [`METADATA_BYTES_MAX`], or holds what Postgres or a later reader refuses.
pub fn check_metadata(metadata: &Metadata) -> Result<(), InvalidField> {
    let too_large = serde_json::to_vec(metadata).map_or(true, |json| json.len() > METADATA_BYTES_MAX);
    if too_large {
        return Err(FieldProblem::MetadataTooLarge.of("metadata"));
    }
    check_members(metadata, METADATA_DEPTH_MAX).map_err(|problem| problem.of("metadata"))
}

/// Checks what may have so many levels, this one included.
fn check_members(members: &Metadata, levels: usize) -> Result<(), FieldProblem> {
    let below = levels.checked_sub(1).ok_or(FieldProblem::MetadataTooDeep)?;
    members.iter().try_for_each(|(name, value)| {
        check_text_within(name)?;
        if name.starts_with(RESERVED_NAMES) {
            return Err(FieldProblem::MetadataHoldsReservedName);
        }
        check_value(value, below)
    })
}

fn check_value(value: &Value, levels: usize) -> Result<(), FieldProblem> {
    match value {
        Value::String(text) => check_text_within(text),
        Value::Array(items) => {
            let below = levels.checked_sub(1).ok_or(FieldProblem::MetadataTooDeep)?;
            items.iter().try_for_each(|item| check_value(item, below))
        }
        Value::Object(members) => check_members(members, levels),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn check_text_within(text: &str) -> Result<(), FieldProblem> {
    if text.contains('\0') { Err(FieldProblem::MetadataHoldsNul) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_later_as_it_was_written() {
        let check = |json: &str| {
            check_metadata(&serde_json::from_str::<Metadata>(json).unwrap()).map_err(|invalid| invalid.problem)
        };
        let nested = |levels: usize| format!(r#"{{"a": {}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert_eq!(check(&nested(METADATA_DEPTH_MAX)), Ok(()));
        assert_eq!(check(&nested(METADATA_DEPTH_MAX + 1)), Err(FieldProblem::MetadataTooDeep));
        // What serde_json makes of these when it reads them depends on their order.
        for json in [
            r#"{"a": {"x": 1, "$serde_json::private::RawValue": "1"}}"#,
            r#"{"a": [{"x": 1, "$serde_json::private::Number": "1"}]}"#,
            r#"{"$serde_json::private::RawValue": "1"}"#,
        ] {
            assert_eq!(check(json), Err(FieldProblem::MetadataHoldsReservedName), "{json}");
        }
        let within =
            format!(r#"{{"a": {{"$serde_json::private::RawValue": "{}{}"}}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(check(&within), Err(FieldProblem::MetadataTooDeep));
    }

    #[test]
    fn metadata_is_bounded_and_free_of_nul_at_every_depth() {
        let check = |json: Value| check_metadata(json.as_object().unwrap()).map_err(|invalid| invalid.problem);
        assert_eq!(check(serde_json::json!({ "a": { "b": ["c", 1, null, true] } })), Ok(()));
        assert_eq!(check(serde_json::json!({ "a": { "b": ["c\0"] } })), Err(FieldProblem::MetadataHoldsNul));
        assert_eq!(check(serde_json::json!({ "a": { "b\0": 1 } })), Err(FieldProblem::MetadataHoldsNul));
        let long = "x".repeat(METADATA_BYTES_MAX);
        assert_eq!(check(serde_json::json!({ "a": long })), Err(FieldProblem::MetadataTooLarge));
    }

    #[test]
    fn a_key_must_expire_in_the_future() {
        let now = Timestamp::from_ms(1000);
        assert!(check_expiry(None, now).is_ok());
        assert!(check_expiry(Some(&now.plus_ms(1)), now).is_ok());
        let refused = check_expiry(Some(&now), now).unwrap_err();
        assert_eq!(refused.to_string(), "expires_at: must be in the future");
    }
}
