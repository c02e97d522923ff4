//! The audit log: who changed what, when.

use serde_json::Value;
use sqlx::{PgConnection, Row as _, postgres::PgRow, types::Json};

use super::{Postgres, PostgresError, lanes::Lane, rows};
use crate::domain::{AuditAction, BroadcasterId, ChangedBy, KeyId, NodeName, Timestamp};

/// What a change is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    Broadcaster(BroadcasterId),
    Key(KeyId, BroadcasterId),
    Node(&'a NodeName),
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who, such as `api-1`.
    pub actor: String,
    /// What.
    pub action: AuditAction,
    /// The broadcaster that it is about, or whose key it is.
    pub broadcaster_id: Option<BroadcasterId>,
    /// The key that it is about.
    pub key_id: Option<KeyId>,
    /// The node that it is about.
    pub node: Option<NodeName>,
    /// The request's id.
    pub request_id: Option<String>,
    /// More, such as the names of the changed fields; never their values.
    pub detail: Value,
}

/// Writes a line, in the transaction of the change that it tells of.
pub(super) async fn write(
    connection: &mut PgConnection,
    by: &ChangedBy,
    action: AuditAction,
    subject: Subject<'_>,
    detail: Value,
) -> Result<(), sqlx::Error> {
    let (broadcaster_id, key_id, node) = match subject {
        Subject::Broadcaster(id) => (Some(id.0), None, None),
        Subject::Key(key_id, broadcaster_id) => (Some(broadcaster_id.0), Some(key_id.0), None),
        Subject::Node(name) => (None, None, Some(name.as_str())),
    };
    sqlx::query(
        "-- audit_log::write
         INSERT INTO audit_log (actor, action, broadcaster_id, key_id, node, request_id, detail)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(by.actor.to_string())
    .bind(action.as_str())
    .bind(broadcaster_id)
    .bind(key_id)
    .bind(node)
    .bind(by.request_id.as_deref())
    .bind(Json(detail))
    .execute(connection)
    .await
    .map(drop)
}

impl Postgres {
    /// What was done to a key, the latest first, at most `entries_max`.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn audit_log_of_key(&self, id: KeyId, entries_max: u16) -> Result<Vec<AuditEntry>, PostgresError> {
        let query = sqlx::query(
            "-- audit_log_of_key
             SELECT at, actor, action, broadcaster_id, key_id, node, request_id, detail
             FROM audit_log WHERE key_id = $1 ORDER BY id DESC LIMIT $2",
        );
        let query = query.bind(id.0).bind(i64::from(entries_max));
        self.call_in(Lane::Reading, async |connection| query.fetch_all(connection).await?.iter().map(entry).collect())
            .await
    }
}

fn entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        at: rows::time(row, "at")?,
        actor: row.try_get("actor")?,
        action: rows::parsed(row, "action")?,
        broadcaster_id: row.try_get::<Option<_>, _>("broadcaster_id")?.map(BroadcasterId),
        key_id: row.try_get::<Option<_>, _>("key_id")?.map(KeyId),
        node: rows::parsed_if_any(row, "node")?,
        request_id: row.try_get("request_id")?,
        detail: row.try_get::<Json<Value>, _>("detail")?.0,
    })
}
