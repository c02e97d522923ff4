//! What can go wrong with Postgres, as its callers need to tell it apart.

use std::io;

use crate::domain::words;

words! {
    /// The named constraints and unique indices of the schema, by their names there.
    pub enum Constraint {
        /// Two broadcasters with one id.
        BroadcastersId = "broadcasters_pkey",
        /// Two keys with one id.
        StreamKeysId = "stream_keys_pkey",
        /// A key of a broadcaster that does not exist.
        StreamKeysBroadcasterExists = "stream_keys_broadcaster_exists",
        /// Two keys with one secret.
        StreamKeysSecretHashUnique = "stream_keys_secret_hash_unique",
        /// Something other than a SHA-256.
        StreamKeysSecretHashLength = "stream_keys_secret_hash_length",
        /// A status that is not stored.
        StreamKeysStatusKnown = "stream_keys_status_known",
        /// A revoked key without the time of that, or the other way round.
        StreamKeysRevokedHasTime = "stream_keys_revoked_has_time",
        /// Two keys, neither of them revoked, for one path.
        StreamKeysPathInUse = "stream_keys_path_in_use",
        /// Two nodes with one name.
        NodesName = "nodes_pkey",
        /// Two streams with one id.
        StreamsId = "streams_pkey",
    }
}

/// Why Postgres did not do what was asked. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostgresError {
    /// No connection, or none that may write now. Trying again later may help.
    #[error("Postgres is not available: {0}")]
    Unavailable(String),
    /// No answer within the time limit, or somebody else held what was needed. A commit may or may not have happened.
    #[error("Postgres did not answer in time")]
    Timeout,
    /// What was to be written contradicts what is there.
    #[error("Postgres refused, because of the constraint {0}")]
    Conflict(Constraint),
    /// A value that this database cannot hold, whenever it is tried. The text is the SQLSTATE.
    #[error("Postgres cannot hold a value (SQLSTATE {0})")]
    ValueRefused(String),
    /// An answer that this version of Onair does not understand, such as that of another schema.
    #[error("unexpected answer of Postgres: {0}")]
    Protocol(String),
    /// The address in the configuration cannot be used.
    #[error("the address in postgres.url cannot be used")]
    Configuration,
}

impl PostgresError {
    /// True where Postgres refuses what was to be written for what it is, so that trying it again is of no use.
    #[must_use]
    pub fn is_about_the_data(&self) -> bool {
        match self {
            Self::Conflict(_) | Self::ValueRefused(_) => true,
            Self::Unavailable(_) | Self::Timeout | Self::Protocol(_) | Self::Configuration => false,
        }
    }
}

impl From<sqlx::Error> for PostgresError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => from_server(error.as_ref()),
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::Unavailable("its socket is not there".to_owned())
            }
            sqlx::Error::Io(error) => Self::Unavailable(reason_of(&error)),
            sqlx::Error::Tls(error) => Self::Unavailable(format!("TLS: {error}")),
            sqlx::Error::PoolTimedOut => Self::Unavailable("no connection within the time limit".to_owned()),
            sqlx::Error::PoolClosed => Self::Unavailable("shutting down".to_owned()),
            sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => Self::Unavailable("a connection broke".to_owned()),
            sqlx::Error::Configuration(_) => Self::Configuration,
            sqlx::Error::ColumnDecode { index, .. } => Self::Protocol(format!("column {index} cannot be read")),
            sqlx::Error::ColumnNotFound(name) => Self::Protocol(format!("no column {name}")),
            sqlx::Error::RowNotFound => Self::Protocol("no row where there has to be one".to_owned()),
            // The server has hung up before it said whether it speaks TLS: nothing is read, which the client takes for a wrong answer.
            sqlx::Error::Protocol(text) if text.contains("SSLRequest") => {
                Self::Unavailable("it has closed the connection".to_owned())
            }
            // What it quotes is the server's or the library's, and may be a value.
            sqlx::Error::Protocol(_) => Self::Protocol("broken protocol".to_owned()),
            _ => Self::Protocol("an error of the client library".to_owned()),
        }
    }
}

/// What kind of trouble it is; of a certificate that is not believed, why.
fn reason_of(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => format!("TLS: {error}"),
        None => error.kind().to_string(),
    }
}

fn from_server(error: &dyn sqlx::error::DatabaseError) -> PostgresError {
    let code = error.code().unwrap_or_default();
    match code.as_ref() {
        // Cancelled by the statement limit; a lock not had in time; idle in a transaction; a deadlock or a
        // serialisation that somebody had to give way in.
        "57014" | "55P03" | "25P03" | "40P01" | "40001" => return PostgresError::Timeout,
        // A server that became a standby keeps its connections and refuses writes.
        "25006" => return PostgresError::Unavailable("it does not accept writes".to_owned()),
        _ => {}
    }
    match code.get(..2) {
        Some("23") => match error.constraint().and_then(|name| name.parse().ok()) {
            Some(constraint) => PostgresError::Conflict(constraint),
            None => PostgresError::ValueRefused(code.into_owned()),
        },
        Some("22" | "54") => PostgresError::ValueRefused(code.into_owned()),
        // Connection, authorisation, no such database, out of resources, shutting or starting up, I/O.
        Some("08" | "28" | "3D" | "53" | "57" | "58") => PostgresError::Unavailable(format!("SQLSTATE {code}")),
        // Names of tables, columns and functions: of the schema, not of callers.
        Some("42") => PostgresError::Protocol(format!("SQLSTATE {code}: {}", error.message())),
        _ => PostgresError::Protocol(format!("SQLSTATE {code}")),
    }
}
