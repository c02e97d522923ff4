//! Texts that people write: bounded, and free of control characters.

use serde::{Deserialize, Serialize};

/// The most bytes that metadata may have as JSON.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// The most levels of free data, itself included.
pub const METADATA_DEPTH_MAX: usize = 64;

/// Free data that belongs to a broadcaster, key or stream; shown as it was given.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// Why a text is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Empty where something has to stand, or only white space.
    #[error("must not be empty")]
    Empty,
    /// Longer than allowed.
    #[error("must have at most {0} characters")]
    TooLong(usize),
    /// A control character other than a line break or tab.
    #[error("must not hold control characters")]
    Control,
}

/// Checks a text of at most `characters_max` characters, without control characters (line breaks and tabs are allowed).
///
/// # Errors
/// Says what is wrong with the text, never the text itself.
pub fn bounded_text(text: &str, characters_max: usize) -> Result<(), TextError> {
    if text.chars().count() > characters_max {
        return Err(TextError::TooLong(characters_max));
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(TextError::Control);
    }
    Ok(())
}

/// A short name for people: 1 to 200 characters, one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$")]
pub struct Label(String);

impl Label {
    /// The longest label, in characters.
    pub const CHARACTERS_MAX: usize = 200;

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Label {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err(TextError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(TextError::Control);
        }
        bounded_text(text, Self::CHARACTERS_MAX)?;
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The texts of a list that was written with commas between them. What is empty is none.
pub(super) fn between_commas(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
