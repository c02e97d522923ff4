//! The audit log: who changed what, when.
//!
//! Invariant: a change of what Postgres holds is written in the transaction of that change. What is done elsewhere has none, and is
//! done whether or not it can be written down: see [`Postgres::note_deed`].

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{PgConnection, Row as _, postgres::PgRow, types::Json};

use super::{Postgres, PostgresError, lanes::Lane, rows};
use crate::domain::{AuditAction, BroadcasterId, ChangedBy, KeyId, NodeName, Stream, Timestamp};

/// How long whoever did something waits until it is written down.
const DEED_LIMIT: Duration = Duration::from_millis(500);

/// What a change is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    Broadcaster(BroadcasterId),
    Key(KeyId, BroadcasterId),
    Node(&'a NodeName),
}

/// What somebody did that changed nothing in Postgres.
#[derive(Debug, Clone, Copy)]
pub enum Deed<'a> {
    /// Took this stream off air.
    StreamStopped(&'a Stream),
    /// Changed the fields of these names in what is told about this stream.
    StreamChanged(&'a Stream, &'a [&'static str]),
    /// Saw the configuration of this node, which holds its password.
    NodeConfigurationShown(&'a NodeName),
}

impl<'a> Deed<'a> {
    fn action(self) -> AuditAction {
        match self {
            Self::StreamStopped(_) => AuditAction::StreamStopped,
            Self::StreamChanged(..) => AuditAction::StreamChanged,
            Self::NodeConfigurationShown(_) => AuditAction::NodeConfigurationShown,
        }
    }

    fn stream(self) -> Option<&'a Stream> {
        match self {
            Self::StreamStopped(stream) | Self::StreamChanged(stream, _) => Some(stream),
            Self::NodeConfigurationShown(_) => None,
        }
    }

    /// The node that it is about, or that the stream is on.
    fn node(self) -> &'a NodeName {
        match self {
            Self::StreamStopped(stream) | Self::StreamChanged(stream, _) => &stream.node,
            Self::NodeConfigurationShown(node) => node,
        }
    }

    /// A stream is found under its key, which is what an administrator asks by.
    fn subject(self) -> Subject<'a> {
        match self {
            Self::StreamStopped(stream) | Self::StreamChanged(stream, _) => {
                Subject::Key(stream.key_id, stream.broadcaster_id)
            }
            Self::NodeConfigurationShown(node) => Subject::Node(node),
        }
    }

    fn detail(self) -> Value {
        match self {
            Self::StreamStopped(stream) => json!({ "stream_id": stream.id, "path": stream.path }),
            Self::StreamChanged(stream, fields) => {
                json!({ "stream_id": stream.id, "path": stream.path, "fields": fields })
            }
            Self::NodeConfigurationShown(_) => json!({}),
        }
    }
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
    /// More, such as the names of the changed fields, never their values; of a stream its id and path.
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
    /// Writes down what somebody did where Postgres has no part in it: at once in the log, then here. It fails nothing and keeps
    /// nobody for longer than half a second; where it cannot be written, the log says so, and once more who it was.
    pub async fn note_deed(&self, by: &ChangedBy, deed: Deed<'_>) {
        let (actor, request_id, action) = (by.actor.to_string(), by.request_id.as_deref(), deed.action().as_str());
        let (actor, node) = (actor.as_str(), deed.node().as_str());
        let stream_id = deed.stream().map(|stream| stream.id.to_string());
        let (stream_id, path) = (stream_id.as_deref(), deed.stream().map(|stream| stream.path.as_str()));
        tracing::info!(actor, request_id, action, stream_id, path, node, "done as an administrator asked");
        let writing = self.call_in(Lane::Changing, async |connection| {
            write(connection, by, deed.action(), deed.subject(), deed.detail()).await
        });
        let error = match tokio::time::timeout(DEED_LIMIT, writing).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_elapsed) => PostgresError::Timeout,
        };
        tracing::warn!(
            %error, actor, request_id, action, stream_id, path, node,
            "this was done, and could not be written into the audit log"
        );
    }

    /// What was done to a key, and to the streams that it started, the latest first, at most `entries_max`.
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
