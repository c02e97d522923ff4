//! The `MediaMTX` servers of the fleet.

use std::collections::HashMap;

use sqlx::{Connection as _, Row as _, postgres::PgRow, types::Json};
use url::Url;

use super::{Postgres, PostgresError, audit_log, audit_log::Subject, lanes::Lane, rows};
use crate::domain::{AuditAction, ChangedBy, Node, NodeName, PublicUrls, Timestamp};

/// What putting a node did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePut {
    /// It is new.
    Added,
    /// It was there with other addresses.
    Changed,
    /// It was there just so.
    Unchanged,
}

impl Postgres {
    /// Adds a node, or gives the one of this name these addresses.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn put_node(
        &self,
        name: &NodeName,
        control_url: &Url,
        public_urls: &PublicUrls,
        by: &ChangedBy,
    ) -> Result<(Node, NodePut), PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            // Every replica puts the nodes of its configuration at every start: only a real change is told as one.
            // now() is the time of this transaction, so a row that bears it was made or changed here.
            let row = sqlx::query(
                "-- put_node
                 INSERT INTO nodes (name, control_url, public_urls) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE SET
                     control_url = excluded.control_url,
                     public_urls = excluded.public_urls,
                     updated_at = CASE
                         WHEN (nodes.control_url, nodes.public_urls) = (excluded.control_url, excluded.public_urls)
                         THEN nodes.updated_at ELSE now() END
                 RETURNING name, control_url, public_urls, created_at, updated_at,
                     created_at = now() AS added, updated_at = now() AS touched",
            );
            let row = row.bind(name.as_str()).bind(control_url.as_str()).bind(Json(public_urls));
            let row = row.fetch_one(&mut *transaction).await?;
            let (put, action) = match (row.try_get("added")?, row.try_get("touched")?) {
                (true, _) => (NodePut::Added, Some(AuditAction::NodeAdded)),
                (false, true) => (NodePut::Changed, Some(AuditAction::NodeChanged)),
                (false, false) => (NodePut::Unchanged, None),
            };
            if let Some(action) = action {
                let detail = serde_json::json!({});
                audit_log::write(&mut transaction, by, action, Subject::Node(name), detail).await?;
            }
            let node = node(&row)?;
            transaction.commit().await?;
            Ok((node, put))
        })
        .await
    }

    /// One node.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn node(&self, name: &NodeName) -> Result<Option<Node>, PostgresError> {
        let query = sqlx::query(
            "-- node
             SELECT name, control_url, public_urls, created_at, updated_at FROM nodes WHERE name = $1",
        );
        let query = query.bind(name.as_str());
        self.call(async |connection| query.fetch_optional(connection).await?.as_ref().map(node).transpose()).await
    }

    /// All nodes, by name. They are few: every replica holds all of them anyway.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn nodes(&self) -> Result<Vec<Node>, PostgresError> {
        let query = sqlx::query(
            "-- nodes
             SELECT name, control_url, public_urls, created_at, updated_at FROM nodes ORDER BY name",
        );
        self.call(async |connection| query.fetch_all(connection).await?.iter().map(node).collect()).await
    }

    /// Which of some nodes are not there because somebody removed them, as the audit log says: since they were added, where that is
    /// known.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn removed_among(
        &self,
        nodes: HashMap<NodeName, Option<Timestamp>>,
    ) -> Result<Vec<NodeName>, PostgresError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let (names, added): (Vec<String>, Vec<_>) =
            nodes.into_iter().map(|(name, added)| (name.to_string(), added.map(rows::at))).unzip();
        let query = sqlx::query(
            "-- removed_among
             SELECT node.name FROM unnest($1::text[], $2::timestamptz[]) AS node (name, created_at)
             WHERE NOT EXISTS (SELECT FROM nodes WHERE nodes.name = node.name)
             AND EXISTS (
                 SELECT FROM audit_log WHERE audit_log.node = node.name AND action = $3
                 AND (node.created_at IS NULL OR at >= node.created_at)
             )",
        );
        let query = query.bind(names).bind(added).bind(AuditAction::NodeRemoved.as_str());
        self.call(async |connection| {
            query.fetch_all(connection).await?.iter().map(|row| rows::parsed(row, "name")).collect()
        })
        .await
    }

    /// Removes a node, and gives what was removed.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn delete_node(&self, name: &NodeName, by: &ChangedBy) -> Result<Option<Node>, PostgresError> {
        self.call_in(Lane::Changing, async |connection| {
            let mut transaction = connection.begin().await?;
            let row = sqlx::query(
                "-- delete_node
                 DELETE FROM nodes WHERE name = $1 RETURNING name, control_url, public_urls, created_at, updated_at",
            );
            let Some(row) = row.bind(name.as_str()).fetch_optional(&mut *transaction).await? else {
                return transaction.rollback().await.map(|()| None);
            };
            let removed = node(&row)?;
            let detail = serde_json::json!({});
            audit_log::write(&mut transaction, by, AuditAction::NodeRemoved, Subject::Node(name), detail).await?;
            transaction.commit().await?;
            Ok(Some(removed))
        })
        .await
    }
}

fn node(row: &PgRow) -> Result<Node, sqlx::Error> {
    Ok(Node {
        name: rows::parsed(row, "name")?,
        control_url: rows::parsed(row, "control_url")?,
        public_urls: row.try_get::<Json<PublicUrls>, _>("public_urls")?.0,
        created_at: rows::time(row, "created_at")?,
        updated_at: rows::time(row, "updated_at")?,
    })
}
