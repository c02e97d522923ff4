//! The history in PostgreSQL: in which order it may change, what counts as a use of a key, and its pages.

mod support;

use onair::{
    domain::{BroadcasterId, KeyId, Page, PageRequest, Stream, StreamId, StreamKey},
    postgres::{EndedFilter, RecordedStreams, StreamRecord, Totals},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::files;
use support::records::{at, broadcaster, ended, first_page, key_for, live, record, stream};
use support::stores::{database, postgres, postgres_at};

#[tokio::test]
async fn a_stream_comes_back_as_its_last_transition_left_it() {
    let postgres = postgres().await;
    let key = key_for(&postgres, &broadcaster(&postgres).await, "live/ada").await;
    let connecting = stream(&key, 1);
    let totals = Totals { inbound_bytes: u64::MAX, outbound_bytes: 7, viewers_peak: 3 };
    for state in [connecting.clone(), live(connecting.clone()), ended(connecting.clone(), 60)] {
        postgres.record_streams(&[record(state.clone())]).await.unwrap();
        assert_eq!(postgres.stream(state.id).await.unwrap(), Some(record(state)));
    }
    let other = ended(stream(&key, 2), 60);
    postgres.record_streams(&[StreamRecord { stream: other.clone(), totals: Some(totals) }]).await.unwrap();
    let kept = Totals { inbound_bytes: i64::MAX as u64, ..totals };
    let read = postgres.stream(other.id).await.unwrap();
    assert_eq!(read, Some(StreamRecord { stream: other, totals: Some(kept) }));
}

#[tokio::test]
async fn an_older_state_never_overwrites_a_newer_one() {
    let postgres = postgres().await;
    let key = key_for(&postgres, &broadcaster(&postgres).await, "live/ada").await;
    let connecting = stream(&key, 1);
    let (live, ended) = (live(connecting.clone()), ended(connecting.clone(), 60));
    let write = async |states: &[&Stream]| {
        let records: Vec<StreamRecord> = states.iter().map(|&state| record(state.clone())).collect();
        postgres.record_streams(&records).await.unwrap()
    };
    assert_eq!(write(&[&ended]).await, RecordedStreams { first: 1, renewed: 0 });
    assert_eq!(write(&[&connecting]).await, RecordedStreams { first: 0, renewed: 0 });
    assert_eq!(write(&[&live, &connecting]).await, RecordedStreams { first: 0, renewed: 0 });
    assert_eq!(write(&[&ended, &live]).await, RecordedStreams { first: 0, renewed: 0 });
    assert_eq!(postgres.stream(ended.id).await.unwrap().unwrap().stream, ended);
}

#[tokio::test]
async fn several_states_of_one_stream_in_one_batch_come_to_the_newest() {
    let postgres = postgres().await;
    let key = key_for(&postgres, &broadcaster(&postgres).await, "live/ada").await;
    let connecting = stream(&key, 1);
    let batch = [live(connecting.clone()), ended(connecting.clone(), 60), connecting.clone()].map(record);
    assert_eq!(postgres.record_streams(&batch).await, Ok(RecordedStreams { first: 1, renewed: 0 }));
    assert_eq!(postgres.stream(connecting.id).await.unwrap().unwrap().stream, ended(connecting, 60));
}

#[tokio::test]
async fn a_stream_counts_once_as_a_use_of_its_key_however_often_it_is_written() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let (key, other) = (key_for(&postgres, &ada, "live/ada").await, key_for(&postgres, &ada, "live/other").await);
    let mut second = stream(&key, 2);
    second.admitted_at = at(100);
    let streams = [stream(&key, 1), second, stream(&other, 1)];
    let batch: Vec<StreamRecord> = streams.iter().cloned().map(record).collect();
    // Two writers at once, as while a lease changes hands, and then replays.
    let writers = (0..4).map(|_| postgres.record_streams(&batch));
    for outcome in futures_util::future::join_all(writers).await {
        outcome.unwrap();
    }
    let replay: Vec<StreamRecord> = streams.iter().map(|stream| record(ended(stream.clone(), 60))).collect();
    postgres.record_streams(&replay).await.unwrap();
    postgres.record_streams(&batch).await.unwrap();

    let used = async |key: &StreamKey| postgres.stream_key(key.id).await.unwrap().unwrap();
    let (key_now, other_now) = (used(&key).await, used(&other).await);
    assert_eq!((key_now.use_count, key_now.last_used_at), (2, Some(at(100))));
    assert_eq!((other_now.use_count, other_now.last_used_at), (1, Some(at(0))));
    assert_eq!((key_now.revision, key_now.updated_at), (key.revision, key.updated_at), "a use is no change");
}

#[tokio::test]
async fn an_event_about_a_key_that_postgres_does_not_know_is_written_all_the_same() {
    let postgres = postgres().await;
    let mut unknown = key_for(&postgres, &broadcaster(&postgres).await, "live/ada").await;
    unknown.id = KeyId::generate();
    unknown.broadcaster_id = BroadcasterId::generate();
    let stream = stream(&unknown, 1);
    postgres.record_streams(&[record(stream.clone())]).await.unwrap();
    assert!(postgres.stream(stream.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_nul_from_outside_does_not_keep_a_stream_out_of_the_history() {
    let postgres = postgres().await;
    let key = key_for(&postgres, &broadcaster(&postgres).await, "live/ada").await;
    let mut stream = stream(&key, 1);
    stream.source.user_agent = "en\0coder".to_owned();
    stream.info.title = Some("ti\0tle".to_owned());
    stream.info.metadata.insert("a\0b".to_owned(), json!(["c\0d"]));
    postgres.record_streams(&[record(stream.clone())]).await.unwrap();
    let read = postgres.stream(stream.id).await.unwrap().unwrap().stream;
    assert_eq!((read.source.user_agent.as_str(), read.info.title.as_deref()), ("encoder", Some("title")));
    assert_eq!(read.info.metadata, *json!({ "ab": ["cd"] }).as_object().unwrap());
}

#[tokio::test]
async fn ended_streams_come_in_pages_from_the_latest_back_and_by_key_broadcaster_path_node_and_time() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let (key, other) = (key_for(&postgres, &ada, "live/ada").await, key_for(&postgres, &ada, "live/other").await);
    // Two of them end in the same millisecond, on both sides of a page's edge.
    let streams: Vec<Stream> = [(&key, 10), (&other, 20), (&key, 20), (&key, 20), (&other, 40)]
        .into_iter()
        .zip(1..)
        .map(|((key, seconds), epoch)| ended(stream(key, epoch), seconds))
        .collect();
    let mut records: Vec<StreamRecord> = streams.iter().cloned().map(record).collect();
    records.push(record(live(stream(&key, 9))));
    postgres.record_streams(&records).await.unwrap();
    let newest_first: Vec<StreamId> = streams.iter().rev().map(|stream| stream.id).collect();

    let mut seen = Vec::new();
    let mut page = first_page(2);
    loop {
        let Page { items, next } = postgres.ended_streams(&EndedFilter::default(), &page).await.unwrap();
        seen.extend(items.iter().map(|record| record.stream.id));
        let Some(next) = next else { break };
        page.after = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(seen, newest_first);

    let found = async |filter: EndedFilter| {
        let page = postgres.ended_streams(&filter, &first_page(10)).await.unwrap();
        page.items.iter().map(|record| record.stream.epoch.0).collect::<Vec<_>>()
    };
    let filter = EndedFilter::default;
    assert_eq!(found(EndedFilter { key_id: Some(key.id), ..filter() }).await, [4, 3, 1]);
    assert_eq!(found(EndedFilter { path: Some(other.path.clone()), ..filter() }).await, [5, 2]);
    assert_eq!(found(EndedFilter { broadcaster_id: Some(ada.id), ..filter() }).await, [5, 4, 3, 2, 1]);
    assert_eq!(found(EndedFilter { broadcaster_id: Some(BroadcasterId::generate()), ..filter() }).await, [0; 0]);
    assert_eq!(found(EndedFilter { node: Some("edge-2".parse().unwrap()), ..filter() }).await, [0; 0]);
    let window = EndedFilter { ended_from: Some(at(20)), ended_before: Some(at(40)), ..filter() };
    assert_eq!(found(window).await, [4, 3, 2]);
}

#[tokio::test]
async fn the_open_stream_of_a_path_is_the_newest_unless_that_has_ended() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let key = key_for(&postgres, &ada, "live/ada").await;
    let open = async || {
        let open = postgres.open_stream_of(&key.path).await.unwrap();
        open.map(|record| record.stream.epoch.0)
    };
    assert_eq!(open().await, None);
    let (first, second) = (live(stream(&key, 1)), stream(&key, 2));
    postgres.record_streams(&[record(first.clone())]).await.unwrap();
    assert_eq!(open().await, Some(1));
    // The event of the first one's end was lost.
    postgres.record_streams(&[record(second.clone())]).await.unwrap();
    assert_eq!(open().await, Some(2));
    postgres.record_streams(&[record(ended(second, 60))]).await.unwrap();
    assert_eq!(open().await, None);
    postgres.record_streams(&[record(ended(first, 61))]).await.unwrap();
    assert_eq!(open().await, None);
}

#[tokio::test]
async fn open_streams_come_in_pages_by_path_of_all_nodes_or_of_one() {
    let postgres = postgres().await;
    let ada = broadcaster(&postgres).await;
    let mut records = Vec::new();
    for number in 0..5 {
        let key = key_for(&postgres, &ada, &format!("live/{number}")).await;
        let mut stream = live(stream(&key, 1));
        stream.node = if number == 3 { "edge-2" } else { "edge-1" }.parse().unwrap();
        records.push(record(if number == 4 { ended(stream, 60) } else { stream }));
    }
    postgres.record_streams(&records).await.unwrap();
    let paths = |page: &Page<StreamRecord, _>| {
        page.items.iter().map(|record| record.stream.path.to_string()).collect::<Vec<_>>()
    };
    let page = postgres.open_streams(None, &first_page(3)).await.unwrap();
    assert_eq!(paths(&page), ["live/0", "live/1", "live/2"]);
    let rest = postgres.open_streams(None, &PageRequest { after: page.next, items_max: 3 }).await.unwrap();
    assert_eq!((paths(&rest), rest.next), (vec!["live/3".to_owned()], None));
    let of_node = postgres.open_streams(Some(&"edge-2".parse().unwrap()), &first_page(3)).await.unwrap();
    assert_eq!(paths(&of_node), ["live/3"]);
}

/// The statements of `docs/operations.md` that delete what is old.
fn documented_deletions() -> Vec<String> {
    let text = files::text("docs/operations.md");
    let section = text.split("\n## ").find(|section| section.starts_with("What is kept, and for how long\n"));
    let blocks = section.expect("it has the section").split("```sql\n").skip(1);
    blocks.map(|block| block.split("```").next().expect("it ends").to_owned()).collect()
}

#[tokio::test]
async fn what_the_documents_delete_is_old_and_needed_by_nobody() {
    let url = database().await;
    let postgres = postgres_at(&url);
    postgres.migrate().await.unwrap();
    let ada = broadcaster(&postgres).await;
    let (key, other) = (key_for(&postgres, &ada, "live/ada").await, key_for(&postgres, &ada, "live/other").await);
    let open = live(stream(&other, 1));
    let shows_that_it_is_over = ended(stream(&other, 2), 60);
    let old = ended(stream(&key, 3), 60);
    let recent = ended(stream(&key, 4), 60);
    let newest = ended(stream(&key, 5), 60);
    let all = [&open, &shows_that_it_is_over, &old, &recent, &newest].map(|stream| record(stream.clone()));
    postgres.record_streams(&all).await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    // All of a year ago, but for one.
    let when = "UPDATE streams SET ended_at = now() - CASE id WHEN $1 THEN interval '1 day' ELSE interval '1 year' END
        WHERE ended_at IS NOT NULL";
    sqlx::query(when).bind(recent.id.0).execute(&mut connection).await.unwrap();
    let lines = "INSERT INTO audit_log (at, actor, action, detail)
        SELECT now() - interval '3 years', 'api-1', action, '{}' FROM unnest(ARRAY['key_created', 'node_removed']) AS action";
    sqlx::query(lines).execute(&mut connection).await.unwrap();

    let statements = documented_deletions();
    assert_eq!(statements.len(), 2, "one for each table");
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    assert_eq!(postgres.stream(old.id).await.unwrap(), None);
    for kept in [&open, &shows_that_it_is_over, &recent, &newest] {
        assert!(postgres.stream(kept.id).await.unwrap().is_some(), "epoch {:?}", kept.epoch);
    }
    let left = "SELECT action FROM audit_log WHERE at < now() - interval '2 years'";
    let left: Vec<String> = sqlx::query_scalar(left).fetch_all(&mut connection).await.unwrap();
    assert_eq!(left, ["node_removed"]);
}
