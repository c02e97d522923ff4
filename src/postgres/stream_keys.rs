//! Stream keys, and the outbox of their changes.
//!
//! A key's `revision` grows with every change; `projected_revision` is what Redis is known to have. The keys where the
//! two differ are the outbox. So a change and its entry in the outbox are one row, and are committed together.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{
    Connection as _, PgConnection, Postgres as PostgresDriver, QueryBuilder, Row as _, postgres::PgRow, types::Json,
};
use uuid::Uuid;

use super::{
    Change, PAGE_ITEMS_MAX, Postgres, PostgresError, audit_log, audit_log::Subject, broadcasters, lanes::Lane, rows,
};
use crate::domain::{
    AuditAction, BroadcasterId, ChangedBy, KeyId, KeyStatus, Label, Metadata, OnConflict, Page, PageRequest, Playback,
    Position, Revision, SecretHash, StreamKey, StreamPath, Timestamp, names_of_changed,
};

/// What an administrator sets about a key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySettings {
    /// A name for the administrators.
    pub label: Option<Label>,
    /// Title of the streams that it starts.
    pub title: Option<String>,
    /// Description of the streams that it starts.
    pub description: Option<String>,
    /// Free data, copied to the streams that it starts.
    pub metadata: Metadata,
    /// When it stops admitting.
    pub expires_at: Option<Timestamp>,
    /// What happens when a second publisher comes.
    pub on_conflict: OnConflict,
    /// Who may watch.
    pub playback: Playback,
}

/// A key that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStreamKey<'a> {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub broadcaster_id: BroadcasterId,
    /// The path it admits to.
    pub path: &'a StreamPath,
    /// SHA-256 of its secret.
    pub secret_hash: SecretHash,
    /// The last four characters of its secret.
    pub hint: &'a str,
    /// The rest.
    pub settings: &'a KeySettings,
}

/// A key, and what its broadcaster is called.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyWithOwner {
    /// The key.
    pub key: StreamKey,
    /// Its broadcaster's name.
    pub broadcaster_name: Label,
}

/// A status as keys are asked for: expiry is judged at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusFilter {
    /// The status.
    pub status: KeyStatus,
    /// At this instant.
    pub at: Timestamp,
}

/// Whether keys hold their paths. Redis knows that, so the caller says which keys do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InUse {
    /// Only these.
    OneOf(Vec<KeyId>),
    /// All but these.
    NoneOf(Vec<KeyId>),
}

/// Which keys are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFilter {
    /// Of this status.
    pub status: Option<StatusFilter>,
    /// Of this broadcaster.
    pub broadcaster_id: Option<BroadcasterId>,
    /// For this path.
    pub path: Option<StreamPath>,
    /// In use or not.
    pub in_use: Option<InUse>,
}

/// A place in the list of keys, which begins with the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPosition {
    /// Behind this one.
    pub id: KeyId,
}

impl Position for KeyPosition {
    const LIST: &'static str = "stream_keys";
}

/// The columns of a key, spelled out: a `*` would change under prepared statements when a newer version adds one.
macro_rules! columns {
    () => {
        "stream_keys.id, stream_keys.broadcaster_id, stream_keys.path, stream_keys.secret_hash, stream_keys.hint, \
         stream_keys.label, stream_keys.title, stream_keys.description, stream_keys.metadata, stream_keys.status, \
         stream_keys.on_conflict, stream_keys.playback, stream_keys.expires_at, stream_keys.revision, \
         stream_keys.created_at, stream_keys.updated_at, stream_keys.revoked_at, stream_keys.last_used_at, \
         stream_keys.use_count"
    };
}

/// A key's columns and its broadcaster's name, as one snapshot shows both.
macro_rules! select_with_owner {
    ($name:literal, $rest:literal) => {
        concat!(
            "-- ",
            $name,
            "\nSELECT ",
            $crate::postgres::stream_keys::columns!(),
            ", broadcasters.display_name FROM stream_keys JOIN broadcasters ON broadcasters.id = broadcaster_id ",
            $rest
        )
    };
}

pub(super) use {columns, select_with_owner};

impl Postgres {
    /// Adds a key.
    ///
    /// # Errors
    /// [`super::Constraint::StreamKeysPathInUse`] where another key that is not revoked has the path,
    /// [`super::Constraint::StreamKeysBroadcasterExists`] where there is no such broadcaster.
    pub async fn insert_stream_key(
        &self,
        new: &NewStreamKey<'_>,
        by: &ChangedBy,
    ) -> Result<KeyWithOwner, PostgresError> {
        self.insert_key_of(new, None, by).await
    }

    /// Adds a key and the broadcaster whose it is: both or neither.
    ///
    /// # Errors
    /// As [`Postgres::insert_stream_key`].
    pub async fn insert_stream_key_and_broadcaster(
        &self,
        new: &NewStreamKey<'_>,
        display_name: &Label,
        by: &ChangedBy,
    ) -> Result<KeyWithOwner, PostgresError> {
        self.insert_key_of(new, Some(display_name), by).await
    }

    async fn insert_key_of(
        &self,
        new: &NewStreamKey<'_>,
        new_owner: Option<&Label>,
        by: &ChangedBy,
    ) -> Result<KeyWithOwner, PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            if let Some(display_name) = new_owner {
                let (id, nothing) = (new.broadcaster_id, Metadata::new());
                broadcasters::insert(&mut transaction, id, (display_name, None, &nothing), by).await?;
            }
            let key = insert(&mut transaction, new).await?;
            // A renaming either waits for this key, and then counts it among those to be projected, or is waited for.
            let owner = sqlx::query(
                "-- insert_stream_key
                 SELECT display_name FROM broadcasters WHERE id = $1 FOR SHARE",
            );
            let owner = owner.bind(key.broadcaster_id.0).fetch_one(&mut *transaction).await?;
            let broadcaster_name = rows::parsed(&owner, "display_name")?;
            let (action, subject) = (AuditAction::KeyCreated, Subject::Key(key.id, key.broadcaster_id));
            audit_log::write(&mut transaction, by, action, subject, json!({})).await?;
            transaction.commit().await?;
            Ok(KeyWithOwner { key, broadcaster_name })
        })
        .await
    }

    /// One key.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream_key(&self, id: KeyId) -> Result<Option<StreamKey>, PostgresError> {
        let query =
            sqlx::query(concat!("-- stream_key\nSELECT ", columns!(), " FROM stream_keys WHERE id = $1")).bind(id.0);
        self.call_in(Lane::Reading, async |connection| {
            query.fetch_optional(connection).await?.as_ref().map(stream_key).transpose()
        })
        .await
    }

    /// The key with this secret, for a Redis that does not know it.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream_key_by_secret(&self, hash: SecretHash) -> Result<Option<KeyWithOwner>, PostgresError> {
        let query = sqlx::query(select_with_owner!("stream_key_by_secret", "WHERE secret_hash = $1"));
        let query = query.bind(hash.0);
        self.call(async |connection| query.fetch_optional(connection).await?.as_ref().map(key_with_owner).transpose())
            .await
    }

    /// Those of these secrets that keys were made with.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn existing_secrets(&self, hashes: &[SecretHash]) -> Result<HashSet<SecretHash>, PostgresError> {
        let hashes: Vec<&[u8]> = hashes.iter().map(|hash| hash.0.as_slice()).collect();
        let query = "-- existing_secrets\nSELECT secret_hash FROM stream_keys WHERE secret_hash = ANY($1)";
        let query = sqlx::query_scalar(query).bind(hashes);
        let existing: Vec<[u8; 32]> = self.call(async |connection| query.fetch_all(connection).await).await?;
        Ok(existing.into_iter().map(SecretHash).collect())
    }

    /// A page of the keys that a filter lets through, the newest first.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream_keys(
        &self,
        filter: &KeyFilter,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<StreamKey, KeyPosition>, PostgresError> {
        let items_max = page.items_max.min(PAGE_ITEMS_MAX);
        let mut query =
            QueryBuilder::new(concat!("-- stream_keys\nSELECT ", columns!(), " FROM stream_keys WHERE true"));
        push_filter(&mut query, filter);
        if let Some(after) = page.after {
            query.push(" AND id < ").push_bind(after.0.id.0);
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(items_max) + 1);
        let found: Vec<StreamKey> = self
            .call_in(Lane::Reading, async |connection| {
                query.build().fetch_all(connection).await?.iter().map(stream_key).collect()
            })
            .await?;
        Ok(Page::of(found, items_max, |last| KeyPosition { id: last.id }))
    }

    /// Changes a key, whose revision then grows by one.
    ///
    /// `change` sees the row as it is, which nobody else changes meanwhile. Where it changes nothing, nothing is written.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn change_stream_key<Refusal>(
        &self,
        id: KeyId,
        action: AuditAction,
        by: &ChangedBy,
        change: impl FnOnce(&mut StreamKey) -> Result<(), Refusal>,
    ) -> Result<Change<KeyWithOwner, Refusal>, PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            let row = sqlx::query(concat!(
                "-- change_stream_key\nSELECT ",
                columns!(),
                " FROM stream_keys WHERE id = $1 FOR NO KEY UPDATE"
            ));
            let Some(row) = row.bind(id.0).fetch_optional(&mut *transaction).await? else {
                return transaction.rollback().await.map(|()| Change::Missing);
            };
            let before = stream_key(&row)?;
            let mut after = before.clone();
            if let Err(refusal) = change(&mut after) {
                return transaction.rollback().await.map(|()| Change::Refused(refusal));
            }
            // Read after the key is locked, so that a renaming which the lock waited for is seen. One that comes later
            // waits for this key, and then has it projected once more.
            let owner = sqlx::query("-- change_stream_key\nSELECT display_name FROM broadcasters WHERE id = $1");
            let owner = owner.bind(before.broadcaster_id.0).fetch_one(&mut *transaction).await?;
            let broadcaster_name = rows::parsed(&owner, "display_name")?;
            let fields = changed_fields(&before, &after);
            if fields.is_empty() {
                let unchanged = KeyWithOwner { key: before, broadcaster_name };
                return transaction.rollback().await.map(|()| Change::Done(unchanged));
            }
            let key = update(&mut transaction, &after).await?;
            let subject = Subject::Key(id, key.broadcaster_id);
            audit_log::write(&mut transaction, by, action, subject, json!({ "fields": fields })).await?;
            transaction.commit().await?;
            Ok(Change::Done(KeyWithOwner { key, broadcaster_name }))
        })
        .await
    }

    /// The oldest changes that Redis may not have heard of, made at least `age_min_ms` ago, at most `keys_max` behind the first
    /// `passed_over`.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn keys_awaiting_projection(
        &self,
        age_min_ms: u32,
        passed_over: usize,
        keys_max: u16,
    ) -> Result<Vec<KeyWithOwner>, PostgresError> {
        let query = sqlx::query(select_with_owner!(
            "keys_awaiting_projection",
            "WHERE projected_revision < revision AND stream_keys.updated_at <= now() - $1 * interval '1 millisecond'
             ORDER BY stream_keys.updated_at, stream_keys.id LIMIT $2 OFFSET $3"
        ));
        let offset = i64::try_from(passed_over).unwrap_or(i64::MAX);
        let query = query.bind(f64::from(age_min_ms)).bind(i64::from(keys_max)).bind(offset);
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(key_with_owner).collect()).await
    }

    /// How many changes Redis may not have heard of.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn count_keys_awaiting_projection(&self) -> Result<u64, PostgresError> {
        let query = sqlx::query_scalar(
            "-- count_keys_awaiting_projection
             SELECT count(*) FROM stream_keys WHERE projected_revision < revision",
        );
        let count: i64 = self.call(async |connection| query.fetch_one(connection).await).await?;
        Ok(count.unsigned_abs())
    }

    /// The keys of a broadcaster that Redis may not have heard the last of, at most `keys_max`.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn keys_of_broadcaster_awaiting_projection(
        &self,
        id: BroadcasterId,
        keys_max: u16,
    ) -> Result<Vec<KeyWithOwner>, PostgresError> {
        let query = sqlx::query(select_with_owner!(
            "keys_of_broadcaster_awaiting_projection",
            "WHERE projected_revision < revision AND broadcaster_id = $1 ORDER BY stream_keys.id LIMIT $2"
        ));
        let query = query.bind(id.0).bind(i64::from(keys_max));
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(key_with_owner).collect()).await
    }

    /// Notes which revisions Redis has. A key that changed meanwhile still waits, and a late word takes nothing back.
    ///
    /// # Errors
    /// Where Postgres does not do it. Then the keys are projected once more, which changes nothing.
    pub async fn mark_projected(&self, projected: &[(KeyId, Revision)]) -> Result<(), PostgresError> {
        if projected.is_empty() {
            return Ok(());
        }
        let (ids, revisions): (Vec<Uuid>, Vec<i64>) = projected.iter().map(|(id, revision)| (id.0, revision.0)).unzip();
        let query = sqlx::query(
            "-- mark_projected
             WITH done AS (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS pairs (id, revision)),
                  locked AS (SELECT id FROM stream_keys WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE)
             UPDATE stream_keys SET projected_revision = done.revision FROM done, locked
             WHERE stream_keys.id = done.id AND stream_keys.id = locked.id AND projected_revision < done.revision",
        );
        let query = query.bind(ids).bind(revisions);
        self.call(async |connection| query.execute(connection).await.map(drop)).await
    }
}

async fn insert(connection: &mut PgConnection, new: &NewStreamKey<'_>) -> Result<StreamKey, sqlx::Error> {
    let row = sqlx::query(concat!(
        "-- insert_stream_key
         INSERT INTO stream_keys
             (id, broadcaster_id, path, secret_hash, hint, label, title, description, metadata, on_conflict, playback,
              expires_at, status)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'active') RETURNING ",
        columns!()
    ))
    .bind(new.id.0)
    .bind(new.broadcaster_id.0)
    .bind(new.path.as_str())
    .bind(new.secret_hash.0)
    .bind(new.hint)
    .bind(new.settings.label.as_ref().map(Label::as_str))
    .bind(new.settings.title.as_deref())
    .bind(new.settings.description.as_deref())
    .bind(Json(&new.settings.metadata))
    .bind(new.settings.on_conflict.as_str())
    .bind(new.settings.playback.as_str())
    .bind(new.settings.expires_at.map(rows::at))
    .fetch_one(connection)
    .await?;
    stream_key(&row)
}

async fn update(connection: &mut PgConnection, key: &StreamKey) -> Result<StreamKey, sqlx::Error> {
    let row = sqlx::query(concat!(
        "-- change_stream_key
         UPDATE stream_keys SET
             label = $2, title = $3, description = $4, metadata = $5, status = $6, on_conflict = $7, playback = $8,
             expires_at = $9, revision = revision + 1, updated_at = now(),
             revoked_at = CASE WHEN $6 = 'revoked' THEN coalesce(revoked_at, now()) END
         WHERE id = $1 RETURNING ",
        columns!()
    ))
    .bind(key.id.0)
    .bind(key.label.as_ref().map(Label::as_str))
    .bind(key.title.as_deref())
    .bind(key.description.as_deref())
    .bind(Json(&key.metadata))
    .bind(key.stored_status.as_str())
    .bind(key.on_conflict.as_str())
    .bind(key.playback.as_str())
    .bind(key.expires_at.map(rows::at))
    .fetch_one(connection)
    .await?;
    stream_key(&row)
}

fn push_filter(query: &mut QueryBuilder<PostgresDriver>, filter: &KeyFilter) {
    if let Some(StatusFilter { status, at }) = filter.status {
        match status {
            KeyStatus::Active => {
                let valid = " AND status = 'active' AND (expires_at IS NULL OR expires_at > ";
                query.push(valid).push_bind(rows::at(at)).push(")");
            }
            KeyStatus::Expired => {
                query.push(" AND status = 'active' AND expires_at <= ").push_bind(rows::at(at));
            }
            KeyStatus::Disabled | KeyStatus::Revoked => {
                query.push(" AND status = ").push_bind(status.as_str());
            }
        }
    }
    if let Some(id) = filter.broadcaster_id {
        query.push(" AND broadcaster_id = ").push_bind(id.0);
    }
    if let Some(path) = &filter.path {
        query.push(" AND path = ").push_bind(path.as_str().to_owned());
    }
    let uuids = |ids: &[KeyId]| ids.iter().map(|id| id.0).collect::<Vec<Uuid>>();
    match &filter.in_use {
        Some(InUse::OneOf(ids)) => query.push(" AND id = ANY (").push_bind(uuids(ids)).push(")"),
        Some(InUse::NoneOf(ids)) => query.push(" AND id <> ALL (").push_bind(uuids(ids)).push(")"),
        None => query,
    };
}

/// The names of the settings that differ. What the database counts and times by itself is not among them.
fn changed_fields(before: &StreamKey, after: &StreamKey) -> Vec<&'static str> {
    names_of_changed([
        ("label", before.label != after.label),
        ("title", before.title != after.title),
        ("description", before.description != after.description),
        ("metadata", before.metadata != after.metadata),
        ("status", before.stored_status != after.stored_status),
        ("on_conflict", before.on_conflict != after.on_conflict),
        ("playback", before.playback != after.playback),
        ("expires_at", before.expires_at != after.expires_at),
    ])
}

pub(super) fn key_with_owner(row: &PgRow) -> Result<KeyWithOwner, sqlx::Error> {
    Ok(KeyWithOwner { key: stream_key(row)?, broadcaster_name: rows::parsed(row, "display_name")? })
}

fn stream_key(row: &PgRow) -> Result<StreamKey, sqlx::Error> {
    Ok(StreamKey {
        id: KeyId(row.try_get("id")?),
        broadcaster_id: BroadcasterId(row.try_get("broadcaster_id")?),
        path: rows::parsed(row, "path")?,
        secret_hash: SecretHash(row.try_get("secret_hash")?),
        hint: row.try_get("hint")?,
        label: rows::parsed_if_any(row, "label")?,
        title: row.try_get("title")?,
        description: row.try_get("description")?,
        metadata: rows::json(row, "metadata")?,
        stored_status: rows::parsed(row, "status")?,
        on_conflict: rows::parsed(row, "on_conflict")?,
        playback: rows::parsed(row, "playback")?,
        expires_at: rows::time_if_any(row, "expires_at")?,
        revision: Revision(row.try_get("revision")?),
        created_at: rows::time(row, "created_at")?,
        updated_at: rows::time(row, "updated_at")?,
        revoked_at: rows::time_if_any(row, "revoked_at")?,
        last_used_at: rows::time_if_any(row, "last_used_at")?,
        use_count: row.try_get("use_count")?,
    })
}
