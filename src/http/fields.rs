//! Types of single fields of requests: checked while they are read, with their limits in the schema.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};

use super::{
    code::Code,
    problem::{Answer, Problem},
};
use crate::{
    domain::{self, METADATA_BYTES_MAX, METADATA_DEPTH_MAX, Metadata, PageRequest, Position, bounded_text},
    stream_keys::{CONTACT_CHARACTERS_MAX, DESCRIPTION_CHARACTERS_MAX, Edit, TITLE_CHARACTERS_MAX, check_metadata},
};

/// The longest reference to a recording, in characters.
const RECORDING_CHARACTERS_MAX: usize = 2000;

/// What [`bounded_text`] lets through, as the document says it.
const WITHOUT_CONTROL_CHARACTERS: &str = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$";

/// Declares texts that people write: bounded, without control characters other than line breaks and tabs.
macro_rules! texts {
    ($($(#[$meta:meta])* $name:ident: $characters_max:expr;)+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name(String);

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                bounded_text(&text, $characters_max).map_err(D::Error::custom)?;
                Ok(Self(text))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).max_length(Some($characters_max));
                text.pattern(Some(WITHOUT_CONTROL_CHARACTERS)).into()
            }
        }

        impl ToSchema for $name {}
    )+};
}

texts! {
    /// A title.
    Title: TITLE_CHARACTERS_MAX;
    /// A description.
    Description: DESCRIPTION_CHARACTERS_MAX;
    /// How the operators reach a broadcaster.
    Contact: CONTACT_CHARACTERS_MAX;
    /// Where a recording is.
    Recording: RECORDING_CHARACTERS_MAX;
}

/// Free data: a JSON object of at most [`METADATA_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FreeData(pub Metadata);

impl<'de> Deserialize<'de> for FreeData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let data = Metadata::deserialize(deserializer)?;
        check_metadata(&data).map_err(|invalid| D::Error::custom(invalid.problem))?;
        Ok(Self(data))
    }
}

impl PartialSchema for FreeData {
    fn schema() -> RefOr<Schema> {
        let description = format!(
            "Free data: an object of at most {METADATA_BYTES_MAX} bytes as JSON, in at most {METADATA_DEPTH_MAX} levels."
        );
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .additional_properties(Some(utoipa::openapi::schema::AdditionalProperties::FreeForm(true)))
            .description(Some(description))
            .into()
    }
}

impl ToSchema for FreeData {}

/// A member of a PATCH body: absent leaves the field as it is, `null` clears it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Absent.
    #[default]
    Keep,
    /// `null`.
    Clear,
    /// A new value.
    Set(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|value| value.map_or(Self::Clear, Self::Set))
    }
}

impl<T> Change<T> {
    /// The same for the management of keys.
    pub fn into_edit<U: From<T>>(self) -> Edit<U> {
        match self {
            Self::Keep => Edit::Keep,
            Self::Clear => Edit::Clear,
            Self::Set(value) => Edit::Set(value.into()),
        }
    }

    /// The same for the management of streams: `None` keeps, `Some(None)` clears.
    #[expect(clippy::option_option, reason = "the form of streams::StreamPatch")]
    pub fn into_replacement<U: From<T>>(self) -> Option<Option<U>> {
        match self {
            Self::Keep => None,
            Self::Clear => Some(None),
            Self::Set(value) => Some(Some(value.into())),
        }
    }
}

impl Change<FreeData> {
    /// Free data is never absent: cleared means empty.
    pub fn into_metadata(self) -> Option<Metadata> {
        match self {
            Self::Keep => None,
            Self::Clear => Some(Metadata::new()),
            Self::Set(data) => Some(data.0),
        }
    }
}

/// Reads a member of a PATCH body that can be changed but not cleared: absent is `None`, `null` is an error.
///
/// # Errors
/// Where the value is not one of `T`.
pub fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How many items of a list are wanted at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PageLimit(u16);

impl PageLimit {
    /// The most that can be asked for.
    pub const MAX: u16 = 1000;

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for PageLimit {
    fn default() -> Self {
        Self(100)
    }
}

impl<'de> Deserialize<'de> for PageLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            limit @ 1..=Self::MAX => Ok(Self(limit)),
            _ => Err(D::Error::custom(format_args!("must be a whole number from 1 to {}", Self::MAX))),
        }
    }
}

impl PartialSchema for PageLimit {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(Self::MAX))
            .default(Some(Self::default().0.into()))
            .into()
    }
}

impl ToSchema for PageLimit {}

/// The page that is wanted.
///
/// # Errors
/// Where the text is no cursor that this list gave out.
pub fn page_request<P: Position>(limit: PageLimit, cursor: Option<&str>) -> Answer<PageRequest<P>> {
    Ok(PageRequest { after: self::cursor(cursor)?, items_max: limit.get() })
}

/// The place where the page that is wanted begins.
///
/// # Errors
/// Where the text is no cursor that this list gave out.
pub fn cursor<P: Position>(text: Option<&str>) -> Answer<Option<domain::Cursor<P>>> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|_| Problem::of(Code::InvalidCursor).with_field("cursor", "is not one that this list gave out"))
}

/// Reads a nested object. Serde alone would also fill it from a list, by position.
///
/// # Errors
/// Names the member that is wrong.
pub fn object<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let members = Metadata::deserialize(deserializer)?;
    serde_path_to_error::deserialize(serde_json::Value::Object(members)).map_err(|error| {
        let wrong = domain::explain(error.path(), &error.inner().to_string());
        D::Error::custom(format_args!("{}: {}", wrong.field, wrong.detail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Patch {
        #[serde(default)]
        title: Change<Title>,
    }

    #[test]
    fn absent_keeps_null_clears_and_a_value_sets() {
        let title = |body: &str| serde_json::from_str::<Patch>(body).map(|patch| patch.title);
        assert_eq!(title("{}").unwrap(), Change::Keep);
        assert_eq!(title(r#"{"title": null}"#).unwrap(), Change::Clear);
        assert_eq!(title(r#"{"title": "abc"}"#).unwrap(), Change::Set(Title("abc".to_owned())));
        assert!(title(&format!(r#"{{"title": "{}"}}"#, "x".repeat(TITLE_CHARACTERS_MAX + 1))).is_err());
        assert!(title(r#"{"title": "\u0000"}"#).is_err());
    }

    #[test]
    fn free_data_is_bounded_and_holds_nothing_that_a_database_refuses() {
        let data = |body: &str| serde_json::from_str::<FreeData>(body);
        assert!(data(r#"{"a": {"b": ["c\\u0000"]}}"#).is_ok());
        assert!(data(r#"{"a": {"b": ["c\u0000"]}}"#).is_err());
        assert!(data(r#"{"\u0000": 1}"#).is_err());
        assert!(data("[]").is_err());
        assert!(data(&format!(r#"{{"a": "{}"}}"#, "x".repeat(METADATA_BYTES_MAX))).is_err());
    }

    #[test]
    fn a_page_has_1_to_1000_items() {
        for (text, good) in [("0", false), ("1", true), ("1000", true), ("1001", false), ("-1", false)] {
            assert_eq!(serde_json::from_str::<PageLimit>(text).is_ok(), good, "{text}");
        }
    }
}
