//! From the capabilities' errors to problems: one exhaustive mapping each, without a catch-all arm.

use super::{code::Code, problem::Problem};
use crate::{
    nodes::NodesError,
    postgres::PostgresError,
    redis::RedisError,
    stream_keys::{FieldProblem, StreamKeysError},
    streams::{StreamsError, ViewUnavailable},
};

impl From<PostgresError> for Problem {
    fn from(error: PostgresError) -> Self {
        let code = match &error {
            PostgresError::Unavailable(_) | PostgresError::Timeout => Code::StoreUnavailable,
            PostgresError::Conflict(_)
            | PostgresError::ValueRefused(_)
            | PostgresError::Protocol(_)
            | PostgresError::Configuration => Code::Internal,
        };
        Self::of(code).caused_by(&error)
    }
}

impl From<RedisError> for Problem {
    fn from(error: RedisError) -> Self {
        let code = match &error {
            RedisError::Unavailable
            | RedisError::Overloaded
            | RedisError::Timeout
            | RedisError::MemoryLost
            | RedisError::Refused(_) => Code::StateUnavailable,
            RedisError::Protocol(_) | RedisError::Configuration(_) => Code::Internal,
        };
        Self::of(code).caused_by(&error)
    }
}

impl From<ViewUnavailable> for Problem {
    fn from(error: ViewUnavailable) -> Self {
        Self::of(Code::StateUnavailable).caused_by(&error)
    }
}

impl From<StreamKeysError> for Problem {
    fn from(error: StreamKeysError) -> Self {
        match error {
            StreamKeysError::Invalid(invalid) => {
                let code = match invalid.problem {
                    FieldProblem::UnknownBroadcaster => Code::BroadcasterUnknown,
                    FieldProblem::Text(_)
                    | FieldProblem::MetadataTooLarge
                    | FieldProblem::MetadataHoldsNul
                    | FieldProblem::MetadataTooDeep
                    | FieldProblem::MetadataHoldsReservedName
                    | FieldProblem::PathIsRendition
                    | FieldProblem::NotInTheFuture => Code::InvalidInput,
                };
                Self::of(code).with_field(invalid.field, invalid.problem.to_string())
            }
            StreamKeysError::NoSuchKey => Self::of(Code::KeyNotFound),
            StreamKeysError::NoSuchBroadcaster => Self::of(Code::BroadcasterNotFound),
            StreamKeysError::PathTaken => Self::of(Code::PathTaken).with_field("path", "another key has it"),
            StreamKeysError::KeyIsRevoked => Self::of(Code::KeyRevokedIsFinal),
            StreamKeysError::RecordedNotYetEffective => Self::of(Code::RecordedNotYetEffective),
            StreamKeysError::NoRandomness => Self::internal(&error),
            StreamKeysError::Postgres(error) => error.into(),
        }
    }
}

impl From<StreamsError> for Problem {
    fn from(error: StreamsError) -> Self {
        match error {
            StreamsError::NotFound => Self::of(Code::StreamNotFound),
            StreamsError::Ended => Self::of(Code::StreamAlreadyEnded),
            StreamsError::Contended => Self::of(Code::StreamContended),
            StreamsError::Redis(error) => error.into(),
            StreamsError::Postgres(PostgresError::Unavailable(_) | PostgresError::Timeout) => {
                Self::of(Code::HistoryUnavailable).caused_by(&error)
            }
            StreamsError::Postgres(error) => error.into(),
            StreamsError::View(error) => error.into(),
        }
    }
}

impl From<NodesError> for Problem {
    fn from(error: NodesError) -> Self {
        match error {
            NodesError::NotFound => Self::of(Code::NodeNotFound),
            NodesError::Postgres(error) => error.into(),
            NodesError::Redis(
                RedisError::Unavailable
                | RedisError::Overloaded
                | RedisError::Timeout
                | RedisError::MemoryLost
                | RedisError::Refused(_),
            ) => Self::of(Code::RecordedNotYetEffective).caused_by(&error),
            NodesError::Redis(error) => error.into(),
            NodesError::View(error) => error.into(),
        }
    }
}
