//! The columns of a stream, one array each, and the two statements that write them.

use std::collections::HashSet;

use serde_json::Value;
use sqlx::{PgConnection, Postgres as PostgresDriver, postgres::PgArguments, query::Query, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::StreamRecord;
use crate::{
    domain::{EndReason, SourceType, StreamState, Timestamp},
    postgres::rows::{at, json_without_nul, without_nul},
};

/// The columns, in the order of [`Columns`].
macro_rules! names {
    () => {
        "id, path, epoch, revision, key_id, broadcaster_id, node, source_id, source_type, protocol, address, user_agent, \
         state, admitted_at, deadline_at, key_expires_at, live_at, ended_at, end_reason, info, tracks, playback, \
         inbound_bytes, outbound_bytes, viewers_peak"
    };
}
pub(super) use names;

macro_rules! insert {
    ($on_conflict:literal) => {
        concat!(
            "-- record_streams\nINSERT INTO streams (",
            names!(),
            ") SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::uuid[], $6::uuid[], \
             $7::text[], $8::uuid[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], \
             $14::timestamptz[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[], $18::timestamptz[], \
             $19::text[], $20::jsonb[], $21::jsonb[], $22::text[], $23::bigint[], $24::bigint[], $25::bigint[]) ",
            $on_conflict
        )
    };
}

/// Adds the streams that have no row yet, and gives their ids.
///
/// A statement of its own, because "was this the first row" has to be exact: the uses of keys are counted by it. What the
/// upsert below returns does not tell.
pub(super) async fn insert_first(
    connection: &mut PgConnection,
    records: &[&StreamRecord],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    use sqlx::Row as _;

    let query = sqlx::query(insert!("ON CONFLICT (id) DO NOTHING RETURNING id"));
    let rows = Columns::of(records).bind(query).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get("id")).collect()
}

/// Renews the rows that are older than these states, and gives their number.
///
/// What was once known is not forgotten: not when it went live, nor what its node told of bytes and viewers.
pub(super) async fn renew(connection: &mut PgConnection, records: &[&StreamRecord]) -> Result<u64, sqlx::Error> {
    let query = sqlx::query(insert!(
        "ON CONFLICT (id) DO UPDATE SET
             path = excluded.path, epoch = excluded.epoch, revision = excluded.revision, key_id = excluded.key_id,
             broadcaster_id = excluded.broadcaster_id, node = excluded.node, source_id = excluded.source_id,
             source_type = coalesce(excluded.source_type, streams.source_type), protocol = excluded.protocol,
             address = excluded.address, user_agent = excluded.user_agent, state = excluded.state,
             admitted_at = excluded.admitted_at, deadline_at = excluded.deadline_at,
             key_expires_at = excluded.key_expires_at, live_at = coalesce(excluded.live_at, streams.live_at),
             ended_at = excluded.ended_at, end_reason = excluded.end_reason, info = excluded.info,
             tracks = excluded.tracks, playback = excluded.playback,
             inbound_bytes = coalesce(excluded.inbound_bytes, streams.inbound_bytes),
             outbound_bytes = coalesce(excluded.outbound_bytes, streams.outbound_bytes),
             viewers_peak = greatest(excluded.viewers_peak, streams.viewers_peak)
         WHERE streams.revision < excluded.revision"
    ));
    Ok(Columns::of(records).bind(query).execute(connection).await?.rows_affected())
}

/// One array for each column, so that a batch of any size is one statement of one shape.
#[derive(Default)]
struct Columns {
    id: Vec<Uuid>,
    path: Vec<String>,
    epoch: Vec<i64>,
    revision: Vec<i64>,
    key_id: Vec<Uuid>,
    broadcaster_id: Vec<Uuid>,
    node: Vec<String>,
    source_id: Vec<Uuid>,
    source_type: Vec<Option<&'static str>>,
    protocol: Vec<&'static str>,
    address: Vec<String>,
    user_agent: Vec<String>,
    state: Vec<&'static str>,
    admitted_at: Vec<OffsetDateTime>,
    deadline_at: Vec<Option<OffsetDateTime>>,
    key_expires_at: Vec<Option<OffsetDateTime>>,
    live_at: Vec<Option<OffsetDateTime>>,
    ended_at: Vec<Option<OffsetDateTime>>,
    end_reason: Vec<Option<&'static str>>,
    info: Vec<Json<Value>>,
    tracks: Vec<Json<Value>>,
    playback: Vec<&'static str>,
    inbound_bytes: Vec<Option<i64>>,
    outbound_bytes: Vec<Option<i64>>,
    viewers_peak: Vec<Option<i64>>,
}

impl Columns {
    fn of(records: &[&StreamRecord]) -> Self {
        let mut columns = Self::default();
        for record in records {
            columns.push(record);
        }
        columns
    }

    fn push(&mut self, record: &StreamRecord) {
        let stream = &record.stream;
        self.id.push(stream.id.0);
        self.path.push(stream.path.as_str().to_owned());
        self.epoch.push(stream.epoch.0);
        self.revision.push(stream.revision.0);
        self.key_id.push(stream.key_id.0);
        self.broadcaster_id.push(stream.broadcaster_id.0);
        self.node.push(stream.node.as_str().to_owned());
        self.source_id.push(stream.source.id.0);
        self.source_type.push(stream.source.source_type.map(SourceType::as_str));
        self.protocol.push(stream.source.protocol.as_str());
        self.address.push(without_nul(&stream.source.address));
        self.user_agent.push(without_nul(&stream.source.user_agent));
        self.admitted_at.push(at(stream.admitted_at));
        self.key_expires_at.push(stream.key_expires_at.map(at));
        self.info.push(json_without_nul(&stream.info));
        self.tracks.push(json_without_nul(&stream.tracks));
        self.playback.push(stream.playback.as_str());
        let totals = record.totals.as_ref();
        self.inbound_bytes.push(totals.map(|totals| bytes(totals.inbound_bytes)));
        self.outbound_bytes.push(totals.map(|totals| bytes(totals.outbound_bytes)));
        self.viewers_peak.push(totals.map(|totals| i64::from(totals.viewers_peak)));
        self.push_state(stream.state);
    }

    fn push_state(&mut self, state: StreamState) {
        let (deadline, ended): (Option<Timestamp>, Option<(Timestamp, EndReason)>) = match state {
            StreamState::Connecting { deadline } => (Some(deadline), None),
            StreamState::Live { .. } => (None, None),
            StreamState::Ended { at, reason, .. } => (None, Some((at, reason))),
        };
        self.state.push(state.word().as_str());
        self.deadline_at.push(deadline.map(at));
        self.live_at.push(state.live_since().map(at));
        self.ended_at.push(ended.map(|(ended_at, _)| at(ended_at)));
        self.end_reason.push(ended.map(|(_, reason)| reason.as_str()));
    }

    fn bind(self, query: Query<'_, PostgresDriver, PgArguments>) -> Query<'_, PostgresDriver, PgArguments> {
        query
            .bind(self.id)
            .bind(self.path)
            .bind(self.epoch)
            .bind(self.revision)
            .bind(self.key_id)
            .bind(self.broadcaster_id)
            .bind(self.node)
            .bind(self.source_id)
            .bind(self.source_type)
            .bind(self.protocol)
            .bind(self.address)
            .bind(self.user_agent)
            .bind(self.state)
            .bind(self.admitted_at)
            .bind(self.deadline_at)
            .bind(self.key_expires_at)
            .bind(self.live_at)
            .bind(self.ended_at)
            .bind(self.end_reason)
            .bind(self.info)
            .bind(self.tracks)
            .bind(self.playback)
            .bind(self.inbound_bytes)
            .bind(self.outbound_bytes)
            .bind(self.viewers_peak)
    }
}

/// A bigint holds 8 EiB, and a node that tells more is not worth an event.
fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
