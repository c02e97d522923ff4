//! Broadcasters, keys and streams for tests of the stores.

use onair::{
    domain::{
        AuditAction, Broadcaster, BroadcasterId, EndReason, Epoch, KeyId, KeyStatus, Metadata, NodeName, OnConflict,
        PageRequest, Playback, Protocol, Revision, SecretHash, Source, SourceId, SourceType, Stream, StreamId,
        StreamInfo, StreamKey, StreamPath, StreamState, Timestamp, Track, TrackProps,
    },
    postgres::{Change, KeySettings, NewStreamKey, Postgres, PostgresError, StreamRecord},
    redis::{AdmitRequest, KeyProjection},
};
use uuid::Uuid;

use super::stores::{by_test, label};

pub const NOW: i64 = 1_800_000_000_000;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_ms(NOW + seconds * 1000)
}

pub fn path(text: &str) -> StreamPath {
    text.parse().expect("a path")
}

pub fn first_page<P>(items_max: u16) -> PageRequest<P> {
    PageRequest { after: None, items_max }
}

pub fn settings() -> KeySettings {
    KeySettings {
        label: None,
        title: None,
        description: None,
        metadata: Metadata::new(),
        expires_at: None,
        on_conflict: OnConflict::Reject,
        playback: Playback::Public,
    }
}

pub async fn broadcaster(postgres: &Postgres) -> Broadcaster {
    postgres.insert_broadcaster(&label("Ada"), None, &Metadata::new(), &by_test()).await.expect("it is made")
}

/// A hash that belongs to no other key of any test.
pub fn some_hash() -> SecretHash {
    let mut hash = [7; 32];
    hash[..16].copy_from_slice(Uuid::now_v7().as_bytes());
    SecretHash(hash)
}

/// An active key for a path, as Redis is told of it.
pub fn key_projection(path: &str) -> KeyProjection {
    KeyProjection {
        id: KeyId::generate(),
        path: self::path(path),
        secret_hash: some_hash(),
        stored_status: KeyStatus::Active,
        expires_at: None,
        revision: Revision(1),
        broadcaster_id: BroadcasterId::generate(),
        on_conflict: OnConflict::Reject,
        playback: Playback::Public,
        info: StreamInfo::default(),
    }
}

/// A publisher asks, over RTMP, and has a minute to come online.
pub fn admit_request<'a>(
    path: &'a StreamPath,
    secret_hash: SecretHash,
    node: &'a NodeName,
    source_id: impl Into<Option<SourceId>>,
) -> AdmitRequest<'a> {
    AdmitRequest {
        path,
        secret_hash,
        node,
        source_id: source_id.into(),
        protocol: Protocol::Rtmp,
        address: "192.0.2.7",
        user_agent: "an encoder",
        connecting_timeout_ms: 60_000,
    }
}

pub async fn insert_key(
    postgres: &Postgres,
    broadcaster_id: BroadcasterId,
    path: &StreamPath,
    settings: &KeySettings,
) -> Result<StreamKey, PostgresError> {
    let new =
        NewStreamKey { id: KeyId::generate(), broadcaster_id, path, secret_hash: some_hash(), hint: "abcd", settings };
    postgres.insert_stream_key(&new, &by_test()).await.map(|made| made.key)
}

pub async fn key_for(postgres: &Postgres, broadcaster: &Broadcaster, text: &str) -> StreamKey {
    insert_key(postgres, broadcaster.id, &path(text), &settings()).await.expect("the key is made")
}

/// Sets a key's status as nothing but a test would: without asking whether that is allowed.
pub async fn set_status(postgres: &Postgres, id: KeyId, status: KeyStatus) -> StreamKey {
    let change = |key: &mut StreamKey| {
        key.stored_status = status;
        Ok::<(), ()>(())
    };
    match postgres.change_stream_key(id, AuditAction::KeyChanged, &by_test(), change).await {
        Ok(Change::Done(changed)) => changed.key,
        other => panic!("{other:?}"),
    }
}

pub fn stream(key: &StreamKey, epoch: i64) -> Stream {
    Stream {
        id: StreamId::generate(),
        path: key.path.clone(),
        epoch: Epoch(epoch),
        revision: Revision(1),
        key_id: key.id,
        broadcaster_id: key.broadcaster_id,
        node: "edge-1".parse().expect("a node name"),
        source: Source {
            id: SourceId(Uuid::now_v7()),
            source_type: None,
            protocol: Protocol::Rtmp,
            address: "2001:db8::7".to_owned(),
            user_agent: "an encoder".to_owned(),
        },
        state: StreamState::Connecting { deadline: at(15) },
        admitted_at: at(0),
        key_expires_at: Some(at(3600)),
        info: StreamInfo { title: Some("A title".to_owned()), ..StreamInfo::default() },
        playback: Playback::Private,
        stalled_at: None,
        stale_since: None,
        tracks: Vec::new(),
    }
}

pub fn live(mut stream: Stream) -> Stream {
    stream.revision = Revision(2);
    stream.state = StreamState::Live { since: at(2) };
    stream.source.source_type = Some(SourceType::RtmpConn);
    stream.tracks =
        vec![Track { codec: "H264".to_owned(), props: TrackProps { width: Some(1280), ..TrackProps::default() } }];
    stream
}

pub fn ended(stream: Stream, seconds: i64) -> Stream {
    let mut stream = live(stream);
    stream.revision = Revision(3);
    stream.state = StreamState::Ended { live_since: Some(at(2)), at: at(seconds), reason: EndReason::Unpublished };
    stream
}

pub fn record(stream: Stream) -> StreamRecord {
    StreamRecord { stream, totals: None }
}
