//! Broadcasters: persons and organisations that go live.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, QueryBuilder, Row as _, postgres::PgRow, types::Json};

use super::{Change, PAGE_ITEMS_MAX, Postgres, PostgresError, audit_log, audit_log::Subject, lanes::Lane, rows};
use crate::domain::{
    AuditAction, Broadcaster, BroadcasterId, ChangedBy, Label, Metadata, Page, PageRequest, Position, names_of_changed,
};

/// A place in the list of broadcasters, which begins with the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BroadcasterPosition {
    /// Behind this one.
    pub id: BroadcasterId,
}

impl Position for BroadcasterPosition {
    const LIST: &'static str = "broadcasters";
}

impl Postgres {
    /// Adds a broadcaster.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn insert_broadcaster(
        &self,
        display_name: &Label,
        contact: Option<&str>,
        metadata: &Metadata,
        by: &ChangedBy,
    ) -> Result<Broadcaster, PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            let id = BroadcasterId::generate();
            let broadcaster = insert(&mut transaction, id, (display_name, contact, metadata), by).await?;
            transaction.commit().await?;
            Ok(broadcaster)
        })
        .await
    }

    /// One broadcaster.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn broadcaster(&self, id: BroadcasterId) -> Result<Option<Broadcaster>, PostgresError> {
        let query = sqlx::query(
            "-- broadcaster
             SELECT id, display_name, contact, metadata, created_at, updated_at FROM broadcasters WHERE id = $1",
        );
        let query = query.bind(id.0);
        self.call_in(Lane::Reading, async |connection| {
            query.fetch_optional(connection).await?.as_ref().map(broadcaster).transpose()
        })
        .await
    }

    /// A page of the broadcasters, the newest first.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn broadcasters(
        &self,
        page: &PageRequest<BroadcasterPosition>,
    ) -> Result<Page<Broadcaster, BroadcasterPosition>, PostgresError> {
        let items_max = page.items_max.min(PAGE_ITEMS_MAX);
        let mut query = QueryBuilder::new(
            "-- broadcasters
             SELECT id, display_name, contact, metadata, created_at, updated_at FROM broadcasters",
        );
        if let Some(after) = page.after {
            query.push(" WHERE id < ").push_bind(after.0.id.0);
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(items_max) + 1);
        let found: Vec<Broadcaster> = self
            .call_in(Lane::Reading, async |connection| {
                query.build().fetch_all(connection).await?.iter().map(broadcaster).collect()
            })
            .await?;
        Ok(Page::of(found, items_max, |last| BroadcasterPosition { id: last.id }))
    }

    /// Changes a broadcaster. A new name is a change of the broadcaster's keys too, since Redis holds it with them.
    ///
    /// `change` sees the row as it is, which nobody else changes meanwhile.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn change_broadcaster<Refusal>(
        &self,
        id: BroadcasterId,
        by: &ChangedBy,
        change: impl FnOnce(&mut Broadcaster) -> Result<(), Refusal>,
    ) -> Result<Change<Broadcaster, Refusal>, PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            let row = sqlx::query(
                "-- change_broadcaster
                 SELECT id, display_name, contact, metadata, created_at, updated_at
                 FROM broadcasters WHERE id = $1 FOR NO KEY UPDATE",
            );
            let Some(row) = row.bind(id.0).fetch_optional(&mut *transaction).await? else {
                return transaction.rollback().await.map(|()| Change::Missing);
            };
            let before = broadcaster(&row)?;
            let mut after = before.clone();
            if let Err(refusal) = change(&mut after) {
                return transaction.rollback().await.map(|()| Change::Refused(refusal));
            }
            let fields = changed_fields(&before, &after);
            if fields.is_empty() {
                return transaction.rollback().await.map(|()| Change::Done(before));
            }
            let written = write(&mut transaction, &after).await?;
            if before.display_name != after.display_name {
                touch_keys(&mut transaction, id).await?;
            }
            let (action, subject) = (AuditAction::BroadcasterChanged, Subject::Broadcaster(id));
            audit_log::write(&mut transaction, by, action, subject, json!({ "fields": fields })).await?;
            transaction.commit().await?;
            Ok(Change::Done(written))
        })
        .await
    }
}

/// Adds a broadcaster within a transaction, with its line of the audit log.
pub(super) async fn insert(
    connection: &mut PgConnection,
    id: BroadcasterId,
    (display_name, contact, metadata): (&Label, Option<&str>, &Metadata),
    by: &ChangedBy,
) -> Result<Broadcaster, sqlx::Error> {
    let row = sqlx::query(
        "-- insert_broadcaster
         INSERT INTO broadcasters (id, display_name, contact, metadata) VALUES ($1, $2, $3, $4)
         RETURNING id, display_name, contact, metadata, created_at, updated_at",
    );
    let row = row.bind(id.0).bind(display_name.as_str()).bind(contact).bind(Json(metadata));
    let broadcaster = broadcaster(&row.fetch_one(&mut *connection).await?)?;
    let (action, subject) = (AuditAction::BroadcasterCreated, Subject::Broadcaster(id));
    audit_log::write(connection, by, action, subject, json!({})).await?;
    Ok(broadcaster)
}

async fn write(connection: &mut PgConnection, broadcaster: &Broadcaster) -> Result<Broadcaster, sqlx::Error> {
    let row = sqlx::query(
        "-- change_broadcaster
         UPDATE broadcasters SET display_name = $2, contact = $3, metadata = $4, updated_at = now()
         WHERE id = $1 RETURNING id, display_name, contact, metadata, created_at, updated_at",
    );
    let row = row.bind(broadcaster.id.0).bind(broadcaster.display_name.as_str()).bind(broadcaster.contact.as_deref());
    let row = row.bind(Json(&broadcaster.metadata)).fetch_one(connection).await?;
    self::broadcaster(&row)
}

/// Makes the keys of a broadcaster wait for their projection. `updated_at` stays: nobody changed the keys themselves.
///
/// The rows are locked in the order of their ids, as everywhere where several are, so that nobody waits in a circle.
async fn touch_keys(connection: &mut PgConnection, id: BroadcasterId) -> Result<(), sqlx::Error> {
    sqlx::query(
        "-- change_broadcaster
         WITH touched AS (
             SELECT id FROM stream_keys WHERE broadcaster_id = $1 AND status <> 'revoked'
             ORDER BY id FOR NO KEY UPDATE
         )
         UPDATE stream_keys SET revision = revision + 1 FROM touched WHERE stream_keys.id = touched.id",
    )
    .bind(id.0)
    .execute(connection)
    .await
    .map(drop)
}

fn changed_fields(before: &Broadcaster, after: &Broadcaster) -> Vec<&'static str> {
    names_of_changed([
        ("display_name", before.display_name != after.display_name),
        ("contact", before.contact != after.contact),
        ("metadata", before.metadata != after.metadata),
    ])
}

fn broadcaster(row: &PgRow) -> Result<Broadcaster, sqlx::Error> {
    Ok(Broadcaster {
        id: BroadcasterId(row.try_get("id")?),
        display_name: rows::parsed(row, "display_name")?,
        contact: row.try_get("contact")?,
        metadata: rows::json(row, "metadata")?,
        created_at: rows::time(row, "created_at")?,
        updated_at: rows::time(row, "updated_at")?,
    })
}
