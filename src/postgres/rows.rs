//! Between rows and domain types.

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{Row as _, postgres::PgRow, types::Json};
use time::OffsetDateTime;

use crate::domain::Timestamp;

fn unreadable(column: &str, error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) }
}

/// A text column whose texts are of a type of ours.
pub(super) fn parsed<T>(row: &PgRow, column: &str) -> Result<T, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.try_get::<&str, _>(column)?.parse().map_err(|error| unreadable(column, error))
}

/// As [`parsed`], where the column may be NULL.
pub(super) fn parsed_if_any<T>(row: &PgRow, column: &str) -> Result<Option<T>, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<&str> = row.try_get(column)?;
    text.map(str::parse).transpose().map_err(|error| unreadable(column, error))
}

/// A jsonb column.
pub(super) fn json<T: DeserializeOwned>(row: &PgRow, column: &str) -> Result<T, sqlx::Error> {
    serde_json::from_value(row.try_get::<Json<Value>, _>(column)?.0).map_err(|error| unreadable(column, error))
}

/// A timestamptz column, to the millisecond.
pub(super) fn time(row: &PgRow, column: &str) -> Result<Timestamp, sqlx::Error> {
    row.try_get::<OffsetDateTime, _>(column).map(Timestamp::from)
}

/// As [`time()`], where the column may be NULL.
pub(super) fn time_if_any(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<OffsetDateTime>, _>(column)?.map(Timestamp::from))
}

/// For a timestamptz parameter.
pub(super) fn at(time: Timestamp) -> OffsetDateTime {
    time.into()
}

/// A text without U+0000, which Postgres holds in no text. For what comes from outside and must be written all the same.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

/// As [`without_nul`], for a jsonb parameter.
pub(super) fn json_without_nul(value: &impl Serialize) -> Json<Value> {
    fn clean(value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(without_nul(&text)),
            Value::Array(items) => items.into_iter().map(clean).collect(),
            Value::Object(members) => {
                members.into_iter().map(|(name, value)| (without_nul(&name), clean(value))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }
    Json(serde_json::to_value(value).map_or(Value::Null, clean))
}
