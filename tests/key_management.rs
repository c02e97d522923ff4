//! Keys and broadcasters from the administrator's call to their effect on admission.

mod support;

use onair::{
    domain::{
        AuditAction, Broadcaster, EndReason, KeyStatus, Metadata, NodeName, PageRequest, Playback, Renditions, Secret,
        SourceId, StreamState, TextError, Timestamp,
    },
    postgres::{InUse, Postgres},
    redis::{Admission, Redis},
    stream_keys::{
        BroadcasterPatch, CreatedKey, Edit, FieldProblem, InvalidField, KeyPatch, ListKeys, NewBroadcaster, NewKey,
        StreamKeys, StreamKeysError,
    },
};
use serde_json::json;
use support::{
    records::{admit_request, first_page, path, settings},
    stores,
    stores::{by_test, label, until},
    test_redis::TestRedis,
};
use uuid::Uuid;

struct Bench {
    redis_server: TestRedis,
    redis: Redis,
    postgres: Postgres,
    keys: StreamKeys,
    ada: Broadcaster,
}

async fn bench() -> Bench {
    let (redis_server, redis) = stores::redis().await;
    let postgres = stores::postgres().await;
    let keys = StreamKeys::new(postgres.clone(), redis.clone(), Renditions::default());
    let new = NewBroadcaster { display_name: label("Ada"), contact: None, metadata: Metadata::new() };
    let ada = keys.create_broadcaster(&new, &by_test()).await.unwrap();
    Bench { redis_server, redis, postgres, keys, ada }
}

impl Bench {
    fn wanted(&self, text: &str) -> NewKey {
        NewKey { broadcaster_id: self.ada.id, path: Some(path(text)), settings: settings() }
    }

    async fn key(&self, text: &str) -> CreatedKey {
        self.keys.create(&self.wanted(text), &by_test()).await.unwrap()
    }

    /// Asks for the key's path as a new source.
    async fn admit(&self, created: &CreatedKey) -> Admission {
        let node: NodeName = "edge-1".parse().unwrap();
        let request = admit_request(&created.key.path, created.secret.hash(), &node, SourceId(Uuid::now_v7()));
        self.redis.admit(&request).await.unwrap().admission
    }

    async fn stop_redis(&mut self) {
        self.redis_server.kill().await.unwrap();
        until("Redis is seen to be away", async || self.redis.ping().await.is_err()).await;
    }

    async fn start_redis(&mut self) {
        self.redis_server.restart().await.unwrap();
        until("Redis is seen to be back", async || self.redis.ping().await.is_ok()).await;
        stores::open_partitions(&self.redis).await;
    }
}

fn invalid(field: &'static str, problem: FieldProblem) -> StreamKeysError {
    StreamKeysError::Invalid(InvalidField { field, problem })
}

#[tokio::test]
async fn a_key_admits_as_soon_as_it_is_made_and_its_secret_is_kept_nowhere() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    assert!(matches!(bench.admit(&created).await, Admission::Admitted { .. }));
    assert_eq!(Secret::parse(created.secret.reveal()), Ok(created.secret.clone()));
    assert!(created.secret.reveal().ends_with(&created.key.hint));
    assert_eq!(bench.keys.get(created.key.id).await.unwrap(), Some(created.key.clone()));
    assert!(!format!("{created:?}").contains(created.secret.reveal()));
    assert_eq!(bench.postgres.keys_awaiting_projection(0, 0, 10).await, Ok(vec![]));
}

#[tokio::test]
async fn a_key_without_a_path_gets_one_that_nobody_guesses() {
    let bench = bench().await;
    let wanted = NewKey { path: None, ..bench.wanted("x") };
    let (first, second) =
        (bench.keys.create(&wanted, &by_test()).await.unwrap(), bench.keys.create(&wanted, &by_test()).await.unwrap());
    assert_ne!(first.key.path, second.key.path);
    assert!(first.key.path.as_str().starts_with("live/"));
    assert!(matches!(bench.admit(&first).await, Admission::Admitted { .. }));
}

#[tokio::test]
async fn wrong_input_is_refused_by_the_name_of_the_field_and_changes_nothing() {
    let bench = bench().await;
    let past = Timestamp::now().plus_ms(-1);
    let long_metadata = json!({ "a": "x".repeat(9000) }).as_object().unwrap().clone();
    let cases = [
        (Some("x".repeat(201)), None, Metadata::new(), invalid("title", TextError::TooLong(200).into())),
        (Some("\u{7}".to_owned()), None, Metadata::new(), invalid("title", TextError::Control.into())),
        (None, Some(past), Metadata::new(), invalid("expires_at", FieldProblem::NotInTheFuture)),
        (None, None, long_metadata, invalid("metadata", FieldProblem::MetadataTooLarge)),
    ];
    let existing = bench.key("live/existing").await;
    for (title, expires_at, metadata, refusal) in cases {
        let mut wanted = bench.wanted("live/ada");
        wanted.settings.title.clone_from(&title);
        wanted.settings.expires_at = expires_at;
        wanted.settings.metadata.clone_from(&metadata);
        assert_eq!(bench.keys.create(&wanted, &by_test()).await.unwrap_err(), refusal);
        let patch = KeyPatch {
            title: title.map_or(Edit::Keep, Edit::Set),
            expires_at: expires_at.map_or(Edit::Keep, Edit::Set),
            metadata: Some(metadata),
            ..KeyPatch::default()
        };
        assert_eq!(bench.keys.patch(existing.key.id, patch, &by_test()).await.unwrap_err(), refusal);
    }
    let mut wanted = bench.wanted("live/ada");
    wanted.broadcaster_id = onair::domain::BroadcasterId::generate();
    let refusal = bench.keys.create(&wanted, &by_test()).await.unwrap_err();
    assert_eq!(refusal, invalid("broadcaster_id", FieldProblem::UnknownBroadcaster));
    let refusal = bench.keys.create(&bench.wanted("live/existing"), &by_test()).await.unwrap_err();
    assert_eq!(refusal, StreamKeysError::PathTaken);

    let all = bench.keys.list(ListKeys::default(), &first_page(10)).await.unwrap();
    assert_eq!(all.items, [existing.key]);
}

#[tokio::test]
async fn a_revoked_key_admits_nobody_its_stream_is_off_air_and_its_path_is_free() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    let Admission::Admitted { stream_id, .. } = bench.admit(&created).await else { panic!("not admitted") };

    let revoked = bench.keys.revoke(created.key.id, &by_test()).await.unwrap();
    assert_eq!(revoked.key.stored_status, KeyStatus::Revoked);
    assert!(revoked.key.revoked_at.is_some());
    let ended = revoked.ended.expect("it was on air");
    assert_eq!(ended.id, stream_id);
    assert!(matches!(ended.state, StreamState::Ended { reason: EndReason::KeyRevoked, .. }));
    assert_eq!(bench.admit(&created).await, Admission::KeyRevoked);

    let successor = bench.key("live/ada").await;
    assert!(matches!(bench.admit(&successor).await, Admission::Admitted { .. }));
    assert_eq!(bench.admit(&created).await, Admission::KeyRevoked);
}

#[tokio::test]
async fn revoking_again_succeeds_changes_nothing_and_is_one_line_in_the_audit_log() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    let first = bench.keys.revoke(created.key.id, &by_test()).await.unwrap();
    let again = bench.keys.revoke(created.key.id, &by_test()).await.unwrap();
    assert_eq!(again, first);
    let log = bench.postgres.audit_log_of_key(created.key.id, 10).await.unwrap();
    let actions: Vec<AuditAction> = log.into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, [AuditAction::KeyRevoked, AuditAction::KeyCreated]);
}

#[tokio::test]
async fn revocation_is_final() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    bench.keys.revoke(created.key.id, &by_test()).await.unwrap();
    let (id, by) = (created.key.id, by_test());
    assert_eq!(bench.keys.enable(id, &by).await, Err(StreamKeysError::KeyIsRevoked));
    assert_eq!(bench.keys.disable(id, &by).await, Err(StreamKeysError::KeyIsRevoked));
    assert_eq!(bench.keys.patch(id, KeyPatch::default(), &by).await, Err(StreamKeysError::KeyIsRevoked));
    let nobody = onair::domain::KeyId::generate();
    assert_eq!(bench.keys.revoke(nobody, &by).await, Err(StreamKeysError::NoSuchKey));
}

#[tokio::test]
async fn a_disabled_key_is_refused_until_it_is_enabled_again() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    let Admission::Admitted { .. } = bench.admit(&created).await else { panic!("not admitted") };
    let disabled = bench.keys.disable(created.key.id, &by_test()).await.unwrap();
    let state = disabled.ended.expect("it was on air").state;
    assert!(matches!(state, StreamState::Ended { reason: EndReason::KeyDisabled, .. }));
    assert_eq!(bench.admit(&created).await, Admission::KeyDisabled);
    let enabled = bench.keys.enable(created.key.id, &by_test()).await.unwrap();
    assert_eq!((enabled.key.stored_status, enabled.ended), (KeyStatus::Active, None));
    assert!(matches!(bench.admit(&created).await, Admission::Admitted { .. }));
}

#[tokio::test]
async fn a_patch_sets_clears_and_keeps_and_is_in_effect_when_it_is_answered() {
    let bench = bench().await;
    let mut wanted = bench.wanted("live/ada");
    wanted.settings.title = Some("Old".to_owned());
    wanted.settings.description = Some("Kept".to_owned());
    wanted.settings.expires_at = Some(Timestamp::now().plus_ms(60_000));
    let created = bench.keys.create(&wanted, &by_test()).await.unwrap();
    let patch = KeyPatch {
        label: Edit::Set(label("Studio")),
        title: Edit::Clear,
        expires_at: Edit::Clear,
        playback: Some(Playback::Private),
        ..KeyPatch::default()
    };
    let patched = bench.keys.patch(created.key.id, patch, &by_test()).await.unwrap().key;
    let told = (patched.label, patched.title, patched.description.as_deref(), patched.expires_at, patched.playback);
    assert_eq!(told, (Some(label("Studio")), None, Some("Kept"), None, Playback::Private));

    let soon = KeyPatch { expires_at: Edit::Set(Timestamp::now().plus_ms(200)), ..KeyPatch::default() };
    bench.keys.patch(created.key.id, soon, &by_test()).await.unwrap();
    until("the key has expired", async || matches!(bench.admit(&created).await, Admission::KeyExpired { .. })).await;
}

#[tokio::test]
async fn keys_are_listed_by_use() {
    let bench = bench().await;
    let (used, idle) = (bench.key("live/used").await, bench.key("live/idle").await);
    let list = async |in_use| {
        let which = ListKeys { in_use: Some(in_use), status: Some(KeyStatus::Active), ..ListKeys::default() };
        let page = bench.keys.list(which, &first_page(10)).await.unwrap();
        page.items.into_iter().map(|key| key.id).collect::<Vec<_>>()
    };
    assert_eq!(list(InUse::OneOf(vec![used.key.id])).await, [used.key.id]);
    assert_eq!(list(InUse::NoneOf(vec![used.key.id])).await, [idle.key.id]);
}

#[tokio::test]
async fn a_revocation_while_redis_is_away_is_recorded_and_comes_into_effect_afterwards() {
    let mut bench = bench().await;
    let created = bench.key("live/ada").await;
    bench.stop_redis().await;
    let (id, by) = (created.key.id, by_test());
    assert_eq!(bench.keys.revoke(id, &by).await, Err(StreamKeysError::RecordedNotYetEffective));
    assert_eq!(bench.keys.revoke(id, &by).await, Err(StreamKeysError::RecordedNotYetEffective));
    assert_eq!(bench.keys.get(id).await.unwrap().unwrap().stored_status, KeyStatus::Revoked);
    until("the outbox finds no Redis", async || bench.keys.project_pending().await.unwrap().stopped_by.is_some()).await;

    bench.start_redis().await;
    until("the outbox brings the revocation into effect", async || {
        bench.keys.project_pending().await.unwrap().projected == 1
    })
    .await;
    assert_eq!(bench.admit(&created).await, Admission::KeyRevoked);
    assert_eq!(bench.keys.project_pending().await.unwrap().projected, 0);
}

#[tokio::test]
async fn repeating_a_revocation_brings_it_into_effect_without_the_outbox() {
    let mut bench = bench().await;
    let created = bench.key("live/ada").await;
    bench.stop_redis().await;
    let refused = bench.keys.revoke(created.key.id, &by_test()).await;
    assert_eq!(refused, Err(StreamKeysError::RecordedNotYetEffective));
    bench.start_redis().await;
    bench.keys.revoke(created.key.id, &by_test()).await.unwrap();
    assert_eq!(bench.admit(&created).await, Admission::KeyRevoked);
}

#[tokio::test]
async fn a_key_made_while_redis_is_away_is_not_lost() {
    let mut bench = bench().await;
    bench.stop_redis().await;
    let created = bench.key("live/ada").await;
    bench.start_redis().await;
    assert_eq!(bench.admit(&created).await, Admission::KeyAbsent);
    let found = bench.postgres.stream_key_by_secret(created.secret.hash()).await.unwrap().expect("Postgres knows it");
    assert_eq!((found.key, found.broadcaster_name), (created.key.clone(), label("Ada")));
    until("the outbox has brought it to Redis", async || {
        bench.keys.project_pending().await.unwrap();
        matches!(bench.admit(&created).await, Admission::Admitted { .. })
    })
    .await;
}

#[tokio::test]
async fn the_outbox_leaves_a_fresh_change_to_whoever_made_it() {
    let bench = bench().await;
    bench.key("live/ada").await;
    let rename = BroadcasterPatch { display_name: Some(label("Ada Lovelace")), ..BroadcasterPatch::default() };
    bench.keys.patch_broadcaster(bench.ada.id, rename, &by_test()).await.unwrap();
    let plain = settings();
    let unprojected =
        support::records::insert_key(&bench.postgres, bench.ada.id, &path("live/other"), &plain).await.unwrap();
    assert_eq!(bench.keys.project_pending().await.unwrap().projected, 0);
    until("it is old enough", async || bench.keys.project_pending().await.unwrap().projected == 1).await;
    let waiting = bench.postgres.keys_awaiting_projection(0, 0, 10).await.unwrap();
    assert!(waiting.is_empty(), "{:?} still waits", unprojected.id);
}

#[tokio::test]
async fn a_broadcasters_new_name_is_on_the_streams_that_start_after_it() {
    let bench = bench().await;
    let created = bench.key("live/ada").await;
    let rename = BroadcasterPatch {
        display_name: Some(label("Ada Lovelace")),
        contact: Edit::Set("ada@example.org".to_owned()),
        metadata: None,
    };
    let renamed = bench.keys.patch_broadcaster(bench.ada.id, rename, &by_test()).await.unwrap();
    assert_eq!(bench.keys.broadcaster(bench.ada.id).await.unwrap(), Some(renamed));
    let Admission::Admitted { .. } = bench.admit(&created).await else { panic!("not admitted") };
    let stopped = bench.keys.disable(created.key.id, &by_test()).await.unwrap().ended.expect("it was on air");
    assert_eq!(stopped.info.broadcaster_name, "Ada Lovelace");

    let nobody = onair::domain::BroadcasterId::generate();
    let missing = bench.keys.patch_broadcaster(nobody, BroadcasterPatch::default(), &by_test()).await;
    assert_eq!(missing, Err(StreamKeysError::NoSuchBroadcaster));
    let too_long = BroadcasterPatch { contact: Edit::Set("x".repeat(501)), ..BroadcasterPatch::default() };
    let refused = bench.keys.patch_broadcaster(bench.ada.id, too_long, &by_test()).await;
    assert_eq!(refused, Err(invalid("contact", TextError::TooLong(500).into())));
    let page = bench.keys.broadcasters(&PageRequest { after: None, items_max: 10 }).await.unwrap();
    assert_eq!(page.items.len(), 1);
}

#[tokio::test]
async fn after_a_revocation_is_answered_nobody_is_admitted_however_the_two_race() {
    let bench = bench().await;
    for round in 0..50 {
        let created = bench.key(&format!("live/{round}")).await;
        let by = by_test();
        let (admission, revoked) = tokio::join!(bench.admit(&created), bench.keys.revoke(created.key.id, &by));
        let ended = revoked.unwrap().ended;
        match admission {
            Admission::Admitted { stream_id, .. } => {
                assert_eq!(ended.map(|stream| stream.id), Some(stream_id), "round {round}");
            }
            Admission::KeyRevoked => assert_eq!(ended, None, "round {round}"),
            other => panic!("round {round}: {other:?}"),
        }
        assert_eq!(bench.admit(&created).await, Admission::KeyRevoked, "round {round}");
    }
}
