//! What a rebuild of Redis has to know, in pages.

use std::collections::HashSet;

use sqlx::Row as _;
use uuid::Uuid;

use super::{
    PAGE_ITEMS_MAX, Postgres, PostgresError, rows,
    stream_keys::{KeyWithOwner, key_with_owner, select_with_owner},
};
use crate::domain::{Epoch, KeyId, Revision, StreamId, StreamPath, Timestamp};

/// The most stops of a cool-down's time that are looked at.
const STOPS_MAX: i64 = 10_000;

impl Postgres {
    /// The keys of these ids, in no order.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream_keys_by_id(&self, ids: &[KeyId]) -> Result<Vec<KeyWithOwner>, PostgresError> {
        let query = sqlx::query(select_with_owner!("stream_keys_by_id", "WHERE stream_keys.id = ANY ($1)"));
        let query = query.bind(ids.iter().map(|id| id.0).collect::<Vec<Uuid>>());
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(key_with_owner).collect()).await
    }

    /// A page of all keys behind `after`, by id; only those that were changed since an instant, where one is given.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream_keys_changed(
        &self,
        since: Option<Timestamp>,
        after: Option<KeyId>,
        keys_max: u16,
    ) -> Result<Vec<KeyWithOwner>, PostgresError> {
        let query = sqlx::query(select_with_owner!(
            "stream_keys_changed",
            "WHERE ($1::timestamptz IS NULL OR stream_keys.updated_at >= $1) AND ($2::uuid IS NULL OR stream_keys.id > $2)
             ORDER BY stream_keys.id LIMIT $3"
        ));
        let query =
            query.bind(since.map(rows::at)).bind(after.map(|id| id.0)).bind(i64::from(keys_max.min(PAGE_ITEMS_MAX)));
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(key_with_owner).collect()).await
    }

    /// Gives a key a revision above one that Redis holds and this database does not know, because it was restored to an
    /// older state. Without that no change of the key would take effect. `false` where the key has come that far.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn raise_key_revision(&self, id: KeyId, above: Revision) -> Result<bool, PostgresError> {
        let raise = sqlx::query(
            "-- raise_key_revision
             UPDATE stream_keys SET revision = $2 + 1, updated_at = now() WHERE id = $1 AND revision < $2",
        );
        let raise = raise.bind(id.0).bind(above.0);
        self.call(async |connection| Ok(raise.execute(connection).await?.rows_affected() == 1)).await
    }

    /// The newest epoch that the history knows.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn epoch_max(&self) -> Result<Option<Epoch>, PostgresError> {
        let query = sqlx::query_scalar("-- epoch_max\nSELECT max(epoch) FROM streams");
        let newest: Option<i64> = self.call(async |connection| query.fetch_one(connection).await).await?;
        Ok(newest.map(Epoch))
    }

    /// Those of some streams that are over: they have ended, or the path was another's after them.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn over_among(&self, ids: &[StreamId]) -> Result<HashSet<StreamId>, PostgresError> {
        let query = sqlx::query(
            "-- over_among
             SELECT id FROM streams WHERE id = ANY ($1) AND (
                 ended_at IS NOT NULL OR EXISTS (
                     SELECT FROM streams AS newer
                     WHERE newer.path = streams.path AND newer.ended_at >= streams.admitted_at
                         AND newer.epoch > streams.epoch
                 )
             )",
        );
        let query = query.bind(ids.iter().map(|id| id.0).collect::<Vec<Uuid>>());
        let read = |row: &sqlx::postgres::PgRow| row.try_get("id").map(StreamId);
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(read).collect()).await
    }

    /// Those of some streams that the history has heard of.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn known_among(&self, ids: &[StreamId]) -> Result<HashSet<StreamId>, PostgresError> {
        let query = sqlx::query("-- known_among\nSELECT id FROM streams WHERE id = ANY ($1)");
        let query = query.bind(ids.iter().map(|id| id.0).collect::<Vec<Uuid>>());
        let read = |row: &sqlx::postgres::PgRow| row.try_get("id").map(StreamId);
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(read).collect()).await
    }

    /// The paths on which an administrator stopped a stream since an instant, with the last time of that.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stops_since(&self, at: Timestamp) -> Result<Vec<(StreamPath, Timestamp)>, PostgresError> {
        let query = sqlx::query(
            "-- stops_since
             SELECT path, max(ended_at) AS ended_at FROM streams
             WHERE ended_at >= $1 AND end_reason = 'stopped' GROUP BY path LIMIT $2",
        );
        let query = query.bind(rows::at(at)).bind(STOPS_MAX);
        let read = |row: &sqlx::postgres::PgRow| Ok((rows::parsed(row, "path")?, rows::time(row, "ended_at")?));
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(read).collect()).await
    }
}
