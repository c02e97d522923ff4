//! The schema's version: bringing it up to date, and noticing that it is not ours.
//!
//! Migrations only go forward. A replica that meets a schema newer than its own refuses to start, because it cannot know
//! what has changed; replicas that run already go on, so a migration has to keep the statements of the version before it
//! working.

use std::time::Duration;

use sqlx::{
    Connection as _, Executor as _,
    error::DatabaseError,
    migrate::{MigrateError, Migrator},
};

use super::{Postgres, PostgresError};

/// How often a migration is begun anew that did not get a lock within a second, and after which pause: ten minutes in all. Who waits for a
/// lock has everybody queue behind it, so the pauses are longer than the waits.
const LOCK_TRIES: u32 = 120;
const LOCK_PAUSE: Duration = Duration::from_secs(4);
/// What PostgreSQL calls that (its Appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// How the schema in the database compares with the one that this program was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// The same.
    Current,
    /// Older: `onair migrate` brings it up to date. `found` is 0 in an empty database.
    Behind {
        /// The version in the database.
        found: i64,
        /// The version that this program needs.
        needed: i64,
    },
}

/// Why the schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A newer Onair has migrated it.
    #[error(
        "the database has schema version {found}, made by a newer Onair; this one knows versions up to {known}. \
         Start the newer Onair, or give this one a database of its own"
    )]
    Newer {
        /// The version in the database.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// A migration was applied whose text differs from the one that this program holds.
    #[error("schema version {version} in the database differs from the one that this Onair would have made")]
    Different {
        /// The version.
        version: i64,
    },
    /// A migration failed.
    #[error("the migration to schema version {version} failed: {reason}")]
    Failed {
        /// The version.
        version: i64,
        /// Why.
        reason: PostgresError,
    },
    /// Postgres did not answer.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

impl Postgres {
    /// Compares the schema in the database with the one that this program was made for.
    ///
    /// # Errors
    /// [`SchemaError::Newer`] where this program must not touch it.
    pub async fn schema(&self) -> Result<SchemaState, SchemaError> {
        let found = self.call(async |connection| {
            let has_table = sqlx::query_scalar("-- schema\nSELECT to_regclass('_sqlx_migrations') IS NOT NULL");
            if !has_table.fetch_one(&mut *connection).await? {
                return Ok(0);
            }
            let newest = "-- schema\nSELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
            sqlx::query_scalar(newest).fetch_one(connection).await
        });
        let (found, known) = (found.await?, newest_known());
        match found.cmp(&known) {
            std::cmp::Ordering::Less => Ok(SchemaState::Behind { found, needed: known }),
            std::cmp::Ordering::Equal => Ok(SchemaState::Current),
            std::cmp::Ordering::Greater => Err(SchemaError::Newer { found, known }),
        }
    }

    /// Brings the schema up to date. Several replicas may do so at once: one works, the others find it done.
    ///
    /// # Errors
    /// Where the schema is not one of ours, a migration fails or Postgres is away. Done migrations stay done.
    pub async fn migrate(&self) -> Result<(), SchemaError> {
        if self.schema().await? == SchemaState::Current {
            return Ok(());
        }
        // A connection of its own, closed afterwards: it has other limits. A migration may take long, but must not wait
        // long for a lock: less than replicas wait for theirs.
        let mut connection = self.pool.acquire().await.map_err(PostgresError::from)?.detach();
        connection
            .execute("SET statement_timeout = '30min'; SET lock_timeout = '1s'")
            .await
            .map_err(PostgresError::from)?;
        let mut tries = 0;
        let migrated = loop {
            let migrated = MIGRATOR.run_direct(None, &mut connection, false).await;
            if tries == LOCK_TRIES || !migrated.as_ref().is_err_and(met_a_lock) {
                break migrated;
            }
            if tries == 0 {
                tracing::warn!(
                    "another replica migrates, or a table that is to be changed is in use: it is tried again for ten minutes"
                );
            }
            tries += 1;
            tokio::time::sleep(LOCK_PAUSE).await;
        };
        let _ = connection.close().await;
        migrated.map_err(from_migration)
    }
}

/// Whether a migration did not get a lock in time. All of it was taken back.
fn met_a_lock(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else { return false };
    error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

fn newest_known() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn from_migration(error: MigrateError) -> SchemaError {
    match error {
        MigrateError::VersionMissing(found) | MigrateError::VersionTooNew(found, _) => {
            SchemaError::Newer { found, known: newest_known() }
        }
        MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => SchemaError::Different { version },
        MigrateError::ExecuteMigration(error, version) => SchemaError::Failed { version, reason: error.into() },
        MigrateError::Execute(error) => SchemaError::Postgres(error.into()),
        other => SchemaError::Postgres(PostgresError::Protocol(other.to_string())),
    }
}
