//! The store in PostgreSQL: what it refuses and why, its pages, and the order in which history is allowed to change.

mod support;

use std::collections::{BTreeSet, HashSet};

use onair::{
    domain::{
        AuditAction, Broadcaster, BroadcasterId, Cursor, KeyId, KeyStatus, NodeName, OnConflict, Page, PageRequest,
        Playback, PublicUrls, Revision, StreamKey, Timestamp,
    },
    postgres::{
        BroadcasterPosition, Change, Constraint, InUse, KeyFilter, KeyPosition, KeySettings, NewStreamKey, NodePut,
        Postgres, PostgresError, SchemaError, SchemaState, StatusFilter,
    },
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::records::{NOW, at, broadcaster, first_page, insert_key, key_for, path, set_status, settings, some_hash};
use support::stores::{by_test, database, execute, label, postgres, postgres_at, until};

/// Since when the table of streams has been waited for, by each who waits.
const WAITS_FOR_STREAMS: &str = "
    SELECT waitstart::text FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE datname = current_database() AND relation = 'streams'::regclass AND waitstart IS NOT NULL";

/// Nobody may queue behind a migration for long, so it gives up its place soon, and comes back.
#[tokio::test]
async fn a_migration_that_finds_a_table_in_use_is_begun_anew_until_it_is_free() {
    let url = database().await;
    let postgres = postgres_at(&url);
    postgres.migrate().await.unwrap();
    execute(
        &url,
        "DELETE FROM _sqlx_migrations WHERE version >= 7;
         DROP INDEX streams_ended_of_node, stream_keys_disabled, stream_keys_expiring, audit_log_of_node",
    )
    .await;
    let mut holder = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE streams IN ROW EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
    let leaving = async {
        let mut waits = BTreeSet::new();
        until("the migration has given up its place and waits anew", async || {
            let found: Vec<String> = sqlx::query_scalar(WAITS_FOR_STREAMS).fetch_all(&mut holder).await.unwrap();
            waits.extend(found);
            waits.len() > 1
        })
        .await;
        sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    };
    let (migrated, ()) = tokio::join!(postgres.migrate(), leaving);
    migrated.unwrap();
    assert_eq!(postgres.schema().await, Ok(SchemaState::Current));
}

#[tokio::test]
async fn an_empty_database_is_behind_and_a_migrated_one_current() {
    let postgres = postgres_at(&database().await);
    assert!(matches!(postgres.schema().await, Ok(SchemaState::Behind { found: 0, .. })));
    postgres.migrate().await.unwrap();
    assert_eq!(postgres.schema().await, Ok(SchemaState::Current));
    postgres.migrate().await.unwrap();
}

#[tokio::test]
async fn replicas_that_migrate_at_once_do_not_disturb_each_other() {
    let url = database().await;
    let replicas: Vec<Postgres> = (0..4).map(|_| postgres_at(&url)).collect();
    let migrations = replicas.iter().map(Postgres::migrate);
    for outcome in futures_util::future::join_all(migrations).await {
        outcome.unwrap();
    }
}

#[tokio::test]
async fn a_schema_made_by_a_newer_version_is_refused_and_left_alone() {
    let url = database().await;
    let postgres = postgres_at(&url);
    postgres.migrate().await.unwrap();
    execute(
        &url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'of the future', true, '', 0)",
    )
    .await;
    let refusal = postgres.schema().await.unwrap_err();
    assert!(matches!(refusal, SchemaError::Newer { found: 9000, known } if known < 9000), "{refusal:?}");
    assert!(refusal.to_string().contains("newer Onair"), "{refusal}");
    assert_eq!(postgres.migrate().await, Err(refusal));
}

#[tokio::test]
async fn a_migration_that_was_edited_after_it_was_applied_is_noticed() {
    let url = database().await;
    let postgres = postgres_at(&url);
    postgres.migrate().await.unwrap();
    execute(&url, "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1").await;
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await;
    assert_eq!(postgres.migrate().await, Err(SchemaError::Different { version: 1 }));
}

#[tokio::test]
async fn a_path_belongs_to_one_key_until_that_is_revoked() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let (first, plain) = (key_for(&postgres, &ada, "live/ada").await, settings());
    let second = || insert_key(&postgres, ada.id, &first.path, &plain);
    let taken = Err(PostgresError::Conflict(Constraint::StreamKeysPathInUse));
    assert_eq!(second().await, taken);
    set_status(&postgres, first.id, KeyStatus::Disabled).await;
    assert_eq!(second().await, taken);
    set_status(&postgres, first.id, KeyStatus::Revoked).await;
    second().await.unwrap();
}

#[tokio::test]
async fn of_many_who_want_one_path_at_once_one_gets_it() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let wanted = path("live/wanted");
    let settings = settings();
    let attempts = (0..20).map(|_| insert_key(&postgres, ada.id, &wanted, &settings));
    let outcomes = futures_util::future::join_all(attempts).await;
    let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let taken = Err(PostgresError::Conflict(Constraint::StreamKeysPathInUse));
    assert_eq!((winners, outcomes.iter().filter(|outcome| **outcome == taken).count()), (1, 19));
}

#[tokio::test]
async fn a_key_belongs_to_a_broadcaster_that_exists_and_has_a_secret_of_its_own() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let nobody = insert_key(&postgres, BroadcasterId::generate(), &path("live/x"), &settings()).await;
    assert_eq!(nobody, Err(PostgresError::Conflict(Constraint::StreamKeysBroadcasterExists)));

    let first = key_for(&postgres, &ada, "live/ada").await;
    let (settings, path) = (settings(), path("live/other"));
    let twin = NewStreamKey {
        id: KeyId::generate(),
        broadcaster_id: ada.id,
        path: &path,
        secret_hash: first.secret_hash,
        hint: "abcd",
        settings: &settings,
    };
    let refusal = postgres.insert_stream_key(&twin, &by_test()).await.unwrap_err();
    assert_eq!(refusal, PostgresError::Conflict(Constraint::StreamKeysSecretHashUnique));
    let hash = first.secret_hash.to_hex();
    assert!(!format!("{refusal} {refusal:?}").contains(&hash[..8]), "an error holds a hash");
}

#[tokio::test]
async fn a_key_comes_back_as_it_was_made() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let settings = KeySettings {
        label: Some(label("Studio 1")),
        title: Some("Morning show".to_owned()),
        description: Some("Every day\nat 7".to_owned()),
        metadata: json!({ "team": ["a", 1, 2.5, null], "\u{1F600}": true }).as_object().unwrap().clone(),
        expires_at: Some(Timestamp::from_ms(NOW + 123)),
        on_conflict: OnConflict::TakeOver,
        playback: Playback::Private,
    };
    let made = insert_key(&postgres, ada.id, &path("live/ada"), &settings).await.unwrap();
    let read = postgres.stream_key(made.id).await.unwrap().unwrap();
    assert_eq!(read, made);
    let read_settings = KeySettings {
        label: read.label,
        title: read.title,
        description: read.description,
        metadata: read.metadata,
        expires_at: read.expires_at,
        on_conflict: read.on_conflict,
        playback: read.playback,
    };
    assert_eq!(read_settings, settings);
    assert_eq!((read.revision, read.use_count, read.last_used_at, read.revoked_at), (Revision(1), 0, None, None));

    let with_owner = postgres.stream_key_by_secret(made.secret_hash).await.unwrap().unwrap();
    assert_eq!((with_owner.key.id, with_owner.broadcaster_name), (made.id, label("Ada")));
    assert_eq!(postgres.stream_key_by_secret(some_hash()).await, Ok(None));
    let asked = [some_hash(), made.secret_hash, some_hash()];
    assert_eq!(postgres.existing_secrets(&asked).await, Ok(HashSet::from([made.secret_hash])));
}

#[tokio::test]
async fn every_change_of_a_key_is_a_revision_and_a_line_of_the_audit_log_and_no_change_is_neither() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let retitle = |key: &mut StreamKey| {
        key.title = Some("New".to_owned());
        key.expires_at = Some(at(60));
        Ok::<(), ()>(())
    };
    for _ in 0..2 {
        let outcome = postgres.change_stream_key(key.id, AuditAction::KeyChanged, &by_test(), retitle).await;
        let Ok(Change::Done(changed)) = outcome else { panic!("{outcome:?}") };
        assert_eq!((changed.key.revision, changed.key.title.as_deref()), (Revision(2), Some("New")));
        assert_eq!(changed.broadcaster_name, label("Ada"));
    }
    let refuse = |_: &mut StreamKey| Err("not today");
    let refused = postgres.change_stream_key(key.id, AuditAction::KeyChanged, &by_test(), refuse).await;
    assert_eq!(refused, Ok(Change::Refused("not today")));
    let missing = postgres.change_stream_key(KeyId::generate(), AuditAction::KeyChanged, &by_test(), refuse).await;
    assert_eq!(missing, Ok(Change::Missing));

    let log = postgres.audit_log_of_key(key.id, 10).await.unwrap();
    let told: Vec<_> = log.iter().map(|entry| (entry.action, entry.detail.clone())).collect();
    let changed = json!({ "fields": ["title", "expires_at"] });
    assert_eq!(told, [(AuditAction::KeyChanged, changed), (AuditAction::KeyCreated, json!({}))]);
    assert_eq!((log[0].actor.as_str(), log[0].request_id.as_deref()), ("api-1", Some("test-request")));
    assert_eq!(log[0].broadcaster_id, Some(ada.id));
}

#[tokio::test]
async fn changes_of_one_key_at_once_are_all_counted() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let (postgres, key_id, by) = (&postgres, key.id, &by_test());
    let changes = (0..8).map(|number| async move {
        let change = |key: &mut StreamKey| {
            key.title = Some(format!("Title {number}"));
            Ok::<(), ()>(())
        };
        postgres.change_stream_key(key_id, AuditAction::KeyChanged, by, change).await.unwrap()
    });
    futures_util::future::join_all(changes).await;
    assert_eq!(postgres.stream_key(key_id).await.unwrap().unwrap().revision, Revision(9));
}

#[tokio::test]
async fn a_change_waits_for_its_projection_until_that_revision_is_marked() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let waiting = async || {
        let waiting = postgres.keys_awaiting_projection(0, 0, 10).await.unwrap();
        waiting.into_iter().map(|waiting| (waiting.key.id, waiting.key.revision.0)).collect::<Vec<_>>()
    };
    assert_eq!(waiting().await, [(key.id, 1)]);
    assert_eq!(postgres.keys_awaiting_projection(60_000, 0, 10).await, Ok(vec![]));
    assert_eq!(postgres.keys_awaiting_projection(0, 1, 10).await, Ok(vec![]), "it is the only one");

    set_status(&postgres, key.id, KeyStatus::Disabled).await;
    postgres.mark_projected(&[(key.id, Revision(1))]).await.unwrap();
    assert_eq!(waiting().await, [(key.id, 2)], "a word about revision 1 must not hide revision 2");
    postgres.mark_projected(&[(key.id, Revision(2))]).await.unwrap();
    postgres.mark_projected(&[(key.id, Revision(1))]).await.unwrap();
    assert_eq!(waiting().await, [], "a late word takes nothing back");
}

#[tokio::test]
async fn a_broadcasters_new_name_is_a_change_of_its_keys_and_its_new_contact_is_none() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let dead = key_for(&postgres, &ada, "live/dead").await;
    let dead = set_status(&postgres, dead.id, KeyStatus::Revoked).await;
    postgres.mark_projected(&[(key.id, key.revision), (dead.id, dead.revision)]).await.unwrap();

    let contact = |broadcaster: &mut Broadcaster| {
        broadcaster.contact = Some("ada@example.org".to_owned());
        Ok::<(), ()>(())
    };
    postgres.change_broadcaster(ada.id, &by_test(), contact).await.unwrap();
    assert_eq!(postgres.keys_of_broadcaster_awaiting_projection(ada.id, 10).await, Ok(vec![]));

    let rename = |broadcaster: &mut Broadcaster| {
        broadcaster.display_name = label("Ada Lovelace");
        Ok::<(), ()>(())
    };
    let renamed = postgres.change_broadcaster(ada.id, &by_test(), rename).await.unwrap();
    assert!(matches!(renamed, Change::Done(now) if now.contact.is_some() && now.display_name == label("Ada Lovelace")));
    let waiting = postgres.keys_of_broadcaster_awaiting_projection(ada.id, 10).await.unwrap();
    let waiting: Vec<_> = waiting.iter().map(|waiting| (waiting.key.id, waiting.broadcaster_name.clone())).collect();
    assert_eq!(waiting, [(key.id, label("Ada Lovelace"))]);
}

#[tokio::test]
async fn renaming_and_changing_keys_at_once_never_leaves_a_key_with_the_old_name_unprojected() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    for round in 0..25 {
        let (new_name, number) = (label(&format!("Ada {round}")), round);
        let rename = |broadcaster: &mut Broadcaster| {
            broadcaster.display_name = new_name.clone();
            Ok::<(), ()>(())
        };
        let retitle = |key: &mut StreamKey| {
            key.title = Some(format!("Title {number}"));
            Ok::<(), ()>(())
        };
        let by = by_test();
        let (renamed, retitled) = tokio::join!(
            postgres.change_broadcaster(ada.id, &by, rename),
            postgres.change_stream_key(key.id, AuditAction::KeyChanged, &by, retitle),
        );
        renamed.unwrap();
        let Change::Done(retitled) = retitled.unwrap() else { panic!("the key is gone") };
        postgres.mark_projected(&[(key.id, retitled.key.revision)]).await.unwrap();
        let still_waits = !postgres.keys_awaiting_projection(0, 0, 10).await.unwrap().is_empty();
        assert!(still_waits || retitled.broadcaster_name == new_name, "round {round}");
        let now = postgres.stream_key(key.id).await.unwrap().unwrap().revision;
        postgres.mark_projected(&[(key.id, now)]).await.unwrap();
    }
}

#[tokio::test]
async fn pages_of_keys_hold_every_key_once_though_keys_are_added_meanwhile() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let mut made = BTreeSet::new();
    for number in 0..7 {
        made.insert(key_for(&postgres, &ada, &format!("live/{number}")).await.id);
    }
    let mut page = first_page(3);
    let mut seen = Vec::new();
    loop {
        let Page { items, next } = postgres.stream_keys(&KeyFilter::default(), &page).await.unwrap();
        assert!(items.len() <= 3);
        seen.extend(items.iter().map(|key| key.id));
        let Some(next) = next else { break };
        // As a caller hands it back: through text.
        page.after = Some(next.to_string().parse().unwrap());
        key_for(&postgres, &ada, &format!("live/late{}", seen.len())).await;
    }
    let newest_first: Vec<KeyId> = made.into_iter().rev().collect();
    assert_eq!(seen, newest_first);
}

#[tokio::test]
async fn keys_are_found_by_status_broadcaster_path_and_use() {
    let postgres = postgres().await;
    let (ada, bob) = (broadcaster(&postgres).await, broadcaster(&postgres).await);
    let active = key_for(&postgres, &ada, "live/active").await;
    let disabled = key_for(&postgres, &ada, "live/disabled").await;
    let revoked = key_for(&postgres, &bob, "live/revoked").await;
    let expiring = KeySettings { expires_at: Some(at(10)), ..settings() };
    let expiring = insert_key(&postgres, bob.id, &path("live/expiring"), &expiring).await.unwrap();
    set_status(&postgres, disabled.id, KeyStatus::Disabled).await;
    set_status(&postgres, revoked.id, KeyStatus::Revoked).await;

    let found = async |filter: KeyFilter| {
        let page = postgres.stream_keys(&filter, &first_page(10)).await.unwrap();
        page.items.iter().map(|key| key.id).collect::<Vec<_>>()
    };
    let of_status = |status, at| KeyFilter { status: Some(StatusFilter { status, at }), ..KeyFilter::default() };
    assert_eq!(found(of_status(KeyStatus::Active, at(9))).await, [expiring.id, active.id]);
    assert_eq!(found(of_status(KeyStatus::Active, at(10))).await, [active.id]);
    assert_eq!(found(of_status(KeyStatus::Expired, at(9))).await, []);
    assert_eq!(found(of_status(KeyStatus::Expired, at(10))).await, [expiring.id]);
    assert_eq!(found(of_status(KeyStatus::Disabled, at(0))).await, [disabled.id]);
    assert_eq!(found(of_status(KeyStatus::Revoked, at(0))).await, [revoked.id]);
    let of_bob = KeyFilter { broadcaster_id: Some(bob.id), ..KeyFilter::default() };
    assert_eq!(found(of_bob).await, [expiring.id, revoked.id]);
    let on_path = KeyFilter { path: Some(disabled.path.clone()), ..KeyFilter::default() };
    assert_eq!(found(on_path).await, [disabled.id]);
    let in_use = KeyFilter { in_use: Some(InUse::OneOf(vec![active.id, revoked.id])), ..KeyFilter::default() };
    assert_eq!(found(in_use).await, [revoked.id, active.id]);
    let idle = KeyFilter { in_use: Some(InUse::NoneOf(vec![active.id, revoked.id])), ..KeyFilter::default() };
    assert_eq!(found(idle).await, [expiring.id, disabled.id]);
    let nothing_in_use = KeyFilter { in_use: Some(InUse::OneOf(vec![])), ..KeyFilter::default() };
    assert_eq!(found(nothing_in_use).await, []);
}

#[tokio::test]
async fn broadcasters_come_back_as_they_were_made_and_in_pages() {
    let postgres = postgres().await;
    let metadata = json!({ "plan": "gold" }).as_object().unwrap().clone();
    let first =
        postgres.insert_broadcaster(&label("Ada"), Some("ada@example.org"), &metadata, &by_test()).await.unwrap();
    assert_eq!(postgres.broadcaster(first.id).await.unwrap(), Some(first.clone()));
    assert_eq!((first.contact.as_deref(), &first.metadata), (Some("ada@example.org"), &metadata));
    let second = broadcaster(&postgres).await;
    let page = postgres.broadcasters(&first_page(1)).await.unwrap();
    assert_eq!(page.items, [second]);
    let rest = PageRequest { after: page.next, items_max: 1 };
    assert_eq!(postgres.broadcasters(&rest).await, Ok(Page { items: vec![first], next: None }));
}

#[tokio::test]
async fn putting_a_node_again_is_a_change_only_if_something_differs() {
    let postgres = postgres().await;
    let name: NodeName = "edge-1".parse().unwrap();
    let control = "http://edge-1:9997/".parse().unwrap();
    let urls = PublicUrls { hls: Some("https://edge.example.org:8888".parse().unwrap()), ..PublicUrls::default() };
    let put = async |urls: &PublicUrls| postgres.put_node(&name, &control, urls, &by_test()).await.unwrap();

    let (added, outcome) = put(&urls).await;
    assert_eq!((outcome, &added.public_urls), (NodePut::Added, &urls));
    let (same, outcome) = put(&urls).await;
    assert_eq!((outcome, same), (NodePut::Unchanged, added));
    let (changed, outcome) = put(&PublicUrls::default()).await;
    assert_eq!(outcome, NodePut::Changed);
    assert_eq!(postgres.nodes().await, Ok(vec![changed.clone()]));
    assert_eq!(postgres.node(&name).await, Ok(Some(changed.clone())));
    assert_eq!(postgres.delete_node(&name, &by_test()).await, Ok(Some(changed)));
    assert_eq!(postgres.delete_node(&name, &by_test()).await, Ok(None));
    assert_eq!(postgres.nodes().await, Ok(vec![]));
}

#[test]
fn a_cursor_of_another_list_is_refused() {
    let cursor = Cursor(BroadcasterPosition { id: BroadcasterId::generate() }).to_string();
    assert!(cursor.parse::<Cursor<BroadcasterPosition>>().is_ok());
    assert!(cursor.parse::<Cursor<KeyPosition>>().is_err());
}
