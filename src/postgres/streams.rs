//! The history: every stream, as its last known transition left it.
//!
//! Invariants:
//! - A state never overwrites one with a higher revision, in whatever order and however often states are written.
//! - A key's use is counted in the transaction that writes the stream's first row, and in no other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::{Connection as _, PgConnection, QueryBuilder, Row as _, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{PAGE_ITEMS_MAX, Postgres, PostgresError, lanes::Lane, rows};
use crate::domain::{
    BroadcasterId, Epoch, KeyId, NodeName, Page, PageRequest, Position, Progress, Revision, Source, SourceId, Stream,
    StreamId, StreamInfo, StreamPath, StreamState, StreamStateWord, Timestamp,
};

mod columns;

/// What a stream amounted to, as its node told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received from the publisher.
    pub inbound_bytes: u64,
    /// Bytes sent to readers.
    pub outbound_bytes: u64,
    /// The most viewers at once.
    pub viewers_peak: u32,
}

impl From<&Progress> for Totals {
    fn from(progress: &Progress) -> Self {
        Self {
            inbound_bytes: progress.inbound_bytes,
            outbound_bytes: progress.outbound_bytes,
            viewers_peak: progress.viewers_peak,
        }
    }
}

/// A stream as the history has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRecord {
    /// The stream. `stalled_at` and `stale_since` are not kept.
    pub stream: Stream,
    /// What it amounted to, where the node ever told.
    pub totals: Option<Totals>,
}

/// What [`Postgres::record_streams`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordedStreams {
    /// Streams that the history had not heard of.
    pub first: u64,
    /// Streams whose row is newer now.
    pub renewed: u64,
}

/// Which ended streams are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndedFilter {
    /// Admitted by this key.
    pub key_id: Option<KeyId>,
    /// Of this broadcaster.
    pub broadcaster_id: Option<BroadcasterId>,
    /// On this path.
    pub path: Option<StreamPath>,
    /// On this node.
    pub node: Option<NodeName>,
    /// Ended at this instant or later.
    pub ended_from: Option<Timestamp>,
    /// Ended before this instant.
    pub ended_before: Option<Timestamp>,
}

/// A place in the list of ended streams, which begins with the one that ended last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedPosition {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Which one of those that ended then.
    pub id: StreamId,
}

impl Position for EndedPosition {
    const LIST: &'static str = "ended_streams";
}

/// A place in the list of streams that have not ended, by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPosition {
    /// The path.
    pub path: StreamPath,
    /// Which stream of the path.
    pub id: StreamId,
}

impl Position for OpenPosition {
    const LIST: &'static str = "open_streams";
}

impl Postgres {
    /// Writes states of streams, in one transaction. Of several states of one stream the one with the highest revision
    /// counts; one that is not newer than the row is ignored.
    ///
    /// # Errors
    /// Where Postgres does not do it. Doing it again is safe.
    pub async fn record_streams(&self, records: &[StreamRecord]) -> Result<RecordedStreams, PostgresError> {
        let newest = newest_of_each(records);
        if newest.is_empty() {
            return Ok(RecordedStreams::default());
        }
        self.call(async |connection| {
            let mut transaction = connection.begin().await?;
            let first = columns::insert_first(&mut transaction, &newest).await?;
            let known: Vec<&StreamRecord> =
                newest.iter().copied().filter(|record| !first.contains(&record.stream.id.0)).collect();
            let renewed = if known.is_empty() { 0 } else { columns::renew(&mut transaction, &known).await? };
            let begun = newest.iter().filter(|record| first.contains(&record.stream.id.0));
            count_uses(&mut transaction, begun.map(|record| &record.stream)).await?;
            transaction.commit().await?;
            Ok(RecordedStreams { first: first.len() as u64, renewed })
        })
        .await
    }

    /// One stream.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn stream(&self, id: StreamId) -> Result<Option<StreamRecord>, PostgresError> {
        let query = sqlx::query(concat!("-- stream\nSELECT ", columns::names!(), " FROM streams WHERE id = $1"));
        let query = query.bind(id.0);
        self.call_in(Lane::Reading, async |connection| {
            query.fetch_optional(connection).await?.as_ref().map(record).transpose()
        })
        .await
    }

    /// Changes what is told about a stream that has ended, if it still is as it was read. False where it is not: its end
    /// may not be written yet, or somebody else changed it.
    ///
    /// # Errors
    /// Where Postgres does not do it.
    pub async fn describe_ended(&self, read: &Stream, info: &StreamInfo) -> Result<bool, PostgresError> {
        let query = sqlx::query(
            "-- describe_ended
             UPDATE streams SET info = $3, revision = revision + 1
             WHERE id = $1 AND revision = $2 AND ended_at IS NOT NULL",
        );
        let query = query.bind(read.id.0).bind(read.revision.0).bind(rows::json_without_nul(info));
        self.call_in(Lane::Changing, async |connection| Ok(query.execute(connection).await?.rows_affected() == 1)).await
    }

    /// A page of the ended streams that a filter lets through, the one that ended last first.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn ended_streams(
        &self,
        filter: &EndedFilter,
        page: &PageRequest<EndedPosition>,
    ) -> Result<Page<StreamRecord, EndedPosition>, PostgresError> {
        let items_max = page.items_max.min(PAGE_ITEMS_MAX);
        let mut query = QueryBuilder::new(concat!(
            "-- ended_streams\nSELECT ",
            columns::names!(),
            " FROM streams WHERE ended_at IS NOT NULL"
        ));
        if let Some(id) = filter.key_id {
            query.push(" AND key_id = ").push_bind(id.0);
        }
        if let Some(id) = filter.broadcaster_id {
            query.push(" AND broadcaster_id = ").push_bind(id.0);
        }
        if let Some(path) = &filter.path {
            query.push(" AND path = ").push_bind(path.as_str().to_owned());
        }
        if let Some(node) = &filter.node {
            query.push(" AND node = ").push_bind(node.as_str().to_owned());
        }
        if let Some(from) = filter.ended_from {
            query.push(" AND ended_at >= ").push_bind(rows::at(from));
        }
        if let Some(before) = filter.ended_before {
            query.push(" AND ended_at < ").push_bind(rows::at(before));
        }
        if let Some(after) = page.after {
            query.push(" AND (ended_at, id) < (").push_bind(rows::at(after.0.ended_at));
            query.push(", ").push_bind(after.0.id.0).push(")");
        }
        query.push(" ORDER BY ended_at DESC, id DESC LIMIT ").push_bind(i64::from(items_max) + 1);
        let found: Vec<(StreamRecord, Timestamp)> = self
            .call_in(Lane::Reading, async |connection| {
                let rows = query.build().fetch_all(connection).await?;
                rows.iter().map(|row| Ok((record(row)?, rows::time(row, "ended_at")?))).collect()
            })
            .await?;
        let page =
            Page::of(found, items_max, |(last, ended_at)| EndedPosition { ended_at: *ended_at, id: last.stream.id });
        Ok(Page { items: page.items.into_iter().map(|(record, _)| record).collect(), next: page.next })
    }

    /// The stream that holds a path, as far as the history knows: the newest that has not ended.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn open_stream_of(&self, path: &StreamPath) -> Result<Option<StreamRecord>, PostgresError> {
        // A Redis that lost its memory may have lost the event of an end too. What is open beneath a newer stream that
        // has ended is over: it does not hold the path. The newer one ended after the older was admitted, which bounds
        // the part of the index that is looked at.
        let query = sqlx::query(concat!(
            "-- open_stream_of\nSELECT ",
            columns::names!(),
            " FROM streams WHERE path = $1 AND ended_at IS NULL AND NOT EXISTS (
                 SELECT FROM streams AS newer
                 WHERE newer.path = $1 AND newer.ended_at >= streams.admitted_at AND newer.epoch > streams.epoch
             ) ORDER BY epoch DESC LIMIT 1"
        ));
        let query = query.bind(path.as_str());
        self.call(async |connection| query.fetch_optional(connection).await?.as_ref().map(record).transpose()).await
    }

    /// A page of the streams that have not ended, by path; of one node, or of all.
    ///
    /// # Errors
    /// Where Postgres does not answer.
    pub async fn open_streams(
        &self,
        node: Option<&NodeName>,
        page: &PageRequest<OpenPosition>,
    ) -> Result<Page<StreamRecord, OpenPosition>, PostgresError> {
        let items_max = page.items_max.min(PAGE_ITEMS_MAX);
        let mut query = QueryBuilder::new(concat!(
            "-- open_streams\nSELECT ",
            columns::names!(),
            " FROM streams WHERE ended_at IS NULL"
        ));
        if let Some(node) = node {
            query.push(" AND node = ").push_bind(node.as_str().to_owned());
        }
        if let Some(after) = &page.after {
            query.push(" AND (path, id) > (").push_bind(after.0.path.as_str().to_owned());
            query.push(", ").push_bind(after.0.id.0).push(")");
        }
        query.push(" ORDER BY path, id LIMIT ").push_bind(i64::from(items_max) + 1);
        let found: Vec<StreamRecord> = self
            .call(async |connection| query.build().fetch_all(connection).await?.iter().map(record).collect())
            .await?;
        Ok(Page::of(found, items_max, |last| OpenPosition { path: last.stream.path.clone(), id: last.stream.id }))
    }
}

/// The newest of the states that are given of each stream, in the order of the ids: rows are always locked in that order,
/// so that two writers at once, as while a lease changes hands, never wait for each other in a circle.
fn newest_of_each(records: &[StreamRecord]) -> Vec<&StreamRecord> {
    let mut newest: BTreeMap<Uuid, &StreamRecord> = BTreeMap::new();
    for record in records {
        let kept = newest.entry(record.stream.id.0).or_insert(record);
        if kept.stream.revision < record.stream.revision {
            *kept = record;
        }
    }
    newest.into_values().collect()
}

async fn count_uses<'a>(
    connection: &mut PgConnection,
    begun: impl Iterator<Item = &'a Stream>,
) -> Result<(), sqlx::Error> {
    let mut uses: BTreeMap<Uuid, (i64, Timestamp)> = BTreeMap::new();
    for stream in begun {
        let (count, last_used_at) = uses.entry(stream.key_id.0).or_insert((0, stream.admitted_at));
        *count += 1;
        *last_used_at = stream.admitted_at.max(*last_used_at);
    }
    if uses.is_empty() {
        return Ok(());
    }
    let key_ids: Vec<Uuid> = uses.keys().copied().collect();
    let (counts, times): (Vec<i64>, Vec<OffsetDateTime>) =
        uses.into_values().map(|(count, last_used_at)| (count, rows::at(last_used_at))).unzip();
    sqlx::query(
        "-- record_streams
         WITH uses AS (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) AS u (key_id, count, last_at)),
              locked AS (SELECT id FROM stream_keys WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE)
         UPDATE stream_keys SET
             use_count = use_count + uses.count,
             last_used_at = greatest(last_used_at, uses.last_at)
         FROM uses, locked WHERE stream_keys.id = uses.key_id AND stream_keys.id = locked.id",
    )
    .bind(key_ids)
    .bind(counts)
    .bind(times)
    .execute(connection)
    .await
    .map(drop)
}

fn record(row: &PgRow) -> Result<StreamRecord, sqlx::Error> {
    let stream = Stream {
        id: StreamId(row.try_get("id")?),
        path: rows::parsed(row, "path")?,
        epoch: Epoch(row.try_get("epoch")?),
        revision: Revision(row.try_get("revision")?),
        key_id: KeyId(row.try_get("key_id")?),
        broadcaster_id: BroadcasterId(row.try_get("broadcaster_id")?),
        node: rows::parsed(row, "node")?,
        source: Source {
            id: SourceId(row.try_get("source_id")?),
            source_type: rows::parsed_if_any(row, "source_type")?,
            protocol: rows::parsed(row, "protocol")?,
            address: row.try_get("address")?,
            user_agent: row.try_get("user_agent")?,
        },
        state: state(row)?,
        admitted_at: rows::time(row, "admitted_at")?,
        key_expires_at: rows::time_if_any(row, "key_expires_at")?,
        info: rows::json(row, "info")?,
        playback: rows::parsed(row, "playback")?,
        stalled_at: None,
        stale_since: None,
        tracks: rows::json(row, "tracks")?,
    };
    Ok(StreamRecord { stream, totals: totals(row)? })
}

fn state(row: &PgRow) -> Result<StreamState, sqlx::Error> {
    let live_since = rows::time_if_any(row, "live_at")?;
    Ok(match rows::parsed(row, "state")? {
        StreamStateWord::Connecting => StreamState::Connecting { deadline: rows::time(row, "deadline_at")? },
        StreamStateWord::Live => StreamState::Live { since: rows::time(row, "live_at")? },
        StreamStateWord::Ended => StreamState::Ended {
            live_since,
            at: rows::time(row, "ended_at")?,
            reason: rows::parsed(row, "end_reason")?,
        },
    })
}

fn totals(row: &PgRow) -> Result<Option<Totals>, sqlx::Error> {
    let inbound_bytes: Option<i64> = row.try_get("inbound_bytes")?;
    let outbound_bytes: Option<i64> = row.try_get("outbound_bytes")?;
    let viewers_peak: Option<i64> = row.try_get("viewers_peak")?;
    let (Some(inbound), Some(outbound), Some(viewers)) = (inbound_bytes, outbound_bytes, viewers_peak) else {
        return Ok(None);
    };
    Ok(Some(Totals {
        inbound_bytes: inbound.try_into().unwrap_or(0),
        outbound_bytes: outbound.try_into().unwrap_or(0),
        viewers_peak: viewers.try_into().unwrap_or(u32::MAX),
    }))
}
