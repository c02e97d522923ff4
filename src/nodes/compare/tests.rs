use serde_json::json;
use uuid::Uuid;

use super::*;

const STALL_AFTER_MS: u64 = 3_000;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_ms(1_800_000_000_000 + ms)
}

fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

fn connecting(path: &str) -> Stream {
    Stream::admitted(path, at(0))
}

fn live(path: &str) -> Stream {
    let mut stream = connecting(path);
    stream.state = StreamState::Live { since: at(0) };
    stream.source.source_type = Some(SourceType::RtmpConn);
    stream
}

fn item(path: &str, source: SourceId, bytes: u64) -> PathItem {
    let source = json!({"type": "rtmpConn", "id": source.to_string()});
    serde_json::from_value(json!({"name": path, "online": true, "source": source, "inboundBytes": bytes})).unwrap()
}

fn poll(items: Vec<PathItem>) -> Paths {
    Paths { items, in_one_page: true }
}

/// What a poll at `ms` finds, where `believed` is what is believed before and after it.
fn compare(memory: &mut Memory, paths: &Paths, believed: &[&Stream], ms: i64) -> Findings {
    let believed: Vec<Arc<Stream>> = believed.iter().map(|stream| Arc::new(Stream::clone(stream))).collect();
    let holder_now = |path: &StreamPath| believed.iter().find(|stream| stream.path == *path).cloned();
    let on_node = believed.iter().filter(|stream| stream.node == node()).cloned().collect();
    let beliefs = Beliefs {
        node: &node(),
        before: on_node,
        holder_now: &holder_now,
        now: at(ms),
        stall_after_ms: STALL_AFTER_MS,
        renditions: &"_720p".parse().unwrap(),
    };
    memory.compare(paths, &beliefs)
}

fn words(found: &Findings) -> Vec<&'static str> {
    let word = |finding: &Finding| match finding {
        Finding::Online { .. } => "online",
        Finding::Gone { .. } => "gone",
        Finding::PerhapsGone { .. } => "perhaps gone",
        Finding::StillConnecting { .. } => "still connecting",
        Finding::Stalled { .. } => "stalled",
        Finding::Flowing { .. } => "flowing",
        Finding::Fresh { .. } => "fresh",
        Finding::Described { .. } => "described",
        Finding::Unadmitted { .. } => "unadmitted",
        Finding::UnadmittedElsewhere { .. } => "unadmitted elsewhere",
    };
    found.to_do.iter().map(word).collect()
}

#[test]
fn a_healthy_stream_is_no_finding() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    for second in 0..10 {
        let paths = poll(vec![item("live/ada", stream.source.id, 1_000 * second)]);
        let found = compare(&mut memory, &paths, &[&stream], i64::try_from(second).unwrap() * 1_000);
        assert_eq!(words(&found), Vec::<&str>::new());
        assert_eq!(found.progress.len(), 1);
    }
    let progress = memory.progress_of(stream.source.id).unwrap();
    assert_eq!(progress.inbound_bits_per_second, Some(8_000));
}

#[test]
fn an_admitted_source_that_is_online_goes_live_without_any_hook() {
    let (mut memory, stream) = (Memory::default(), connecting("live/ada"));
    let found = compare(&mut memory, &poll(vec![item("live/ada", stream.source.id, 1)]), &[&stream], 0);
    assert_eq!(words(&found), ["online"]);
}

#[test]
fn a_stream_that_was_seen_and_is_no_longer_listed_is_gone_at_once() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    compare(&mut memory, &poll(vec![item("live/ada", stream.source.id, 1)]), &[&stream], 0);
    assert_eq!(words(&compare(&mut memory, &poll(vec![]), &[&stream], 1_000)), ["gone"]);
    // In a list that came in pages it may have slipped between two of them.
    let pages = Paths { items: vec![], in_one_page: false };
    assert_eq!(words(&compare(&mut memory, &pages, &[&stream], 2_000)), ["perhaps gone"]);
}

#[test]
fn a_stream_that_only_a_hook_has_told_of_needs_two_looks_to_be_gone() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    assert_eq!(words(&compare(&mut memory, &poll(vec![]), &[&stream], 0)), Vec::<&str>::new());
    assert_eq!(words(&compare(&mut memory, &poll(vec![]), &[&stream], 1_000)), ["gone"]);
}

#[test]
fn another_source_on_the_path_is_unadmitted_and_the_holder_is_missing() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    compare(&mut memory, &poll(vec![item("live/ada", stream.source.id, 1)]), &[&stream], 0);
    let intruder = SourceId(Uuid::new_v4());
    let found = compare(&mut memory, &poll(vec![item("live/ada", intruder, 1)]), &[&stream], 1_000);
    assert_eq!(words(&found), ["unadmitted", "gone"]);
}

#[test]
fn of_two_nodes_that_claim_a_path_the_one_that_does_not_hold_it_is_the_intruder() {
    let mut elsewhere = live("live/ada");
    elsewhere.node = "edge-2".parse().unwrap();
    let here = SourceId(Uuid::new_v4());
    let found = compare(&mut Memory::default(), &poll(vec![item("live/ada", here, 1)]), &[&elsewhere], 0);
    assert_eq!(words(&found), ["unadmitted"]);
}

#[test]
fn a_source_that_was_ended_while_the_node_answered_is_left_to_the_next_poll() {
    let stream = Arc::new(live("live/ada"));
    let holder_now = |_: &StreamPath| None;
    let beliefs = Beliefs {
        node: &node(),
        before: vec![Arc::clone(&stream)],
        holder_now: &holder_now,
        now: at(0),
        stall_after_ms: STALL_AFTER_MS,
        renditions: &Renditions::default(),
    };
    let found = Memory::default().compare(&poll(vec![item("live/ada", stream.source.id, 1)]), &beliefs);
    assert_eq!(words(&found), Vec::<&str>::new());
}

#[test]
fn pulled_sources_are_left_alone() {
    let pulled = json!({"name": "cam", "online": true, "source": {"type": "rtspSource", "id": ""}});
    let paths = poll(vec![serde_json::from_value(pulled).unwrap()]);
    assert_eq!(words(&compare(&mut Memory::default(), &paths, &[], 0)), Vec::<&str>::new());
}

#[test]
fn a_publisher_on_a_path_that_no_key_can_be_for_is_unadmitted() {
    let paths = poll(vec![item(&"x".repeat(200), SourceId(Uuid::new_v4()), 1)]);
    assert_eq!(words(&compare(&mut Memory::default(), &paths, &[], 0)), ["unadmitted elsewhere"]);
}

#[test]
fn standing_bytes_are_a_stall_after_the_limit_and_moving_ones_end_it() {
    let (mut memory, mut stream) = (Memory::default(), live("live/ada"));
    let mut look = |stream: &Stream, bytes, ms| {
        let paths = poll(vec![item("live/ada", stream.source.id, bytes)]);
        words(&compare(&mut memory, &paths, &[stream], ms))
    };
    assert_eq!(look(&stream, 100, 0), Vec::<&str>::new());
    assert_eq!(look(&stream, 200, 1_000), Vec::<&str>::new());
    assert_eq!(look(&stream, 200, 3_999), Vec::<&str>::new());
    assert_eq!(look(&stream, 200, 4_000), ["stalled"]);
    stream.stalled_at = Some(at(1_000));
    assert_eq!(look(&stream, 200, 5_000), Vec::<&str>::new());
    assert_eq!(look(&stream, 201, 6_000), ["flowing"]);
}

#[test]
fn a_new_watcher_does_not_take_its_first_looks_at_a_frozen_stream_for_movement() {
    let (mut memory, mut stream) = (Memory::default(), live("live/ada"));
    stream.stalled_at = Some(at(-5_000));
    for second in 0..3 {
        let paths = poll(vec![item("live/ada", stream.source.id, 100)]);
        assert_eq!(words(&compare(&mut memory, &paths, &[&stream], second * 1_000)), Vec::<&str>::new());
    }
}

#[test]
fn a_counter_that_was_reset_gives_no_nonsense_bitrate() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    for (second, bytes) in [(0, 1_000_000), (1, 2_000_000), (2, 500), (3, 1_500)] {
        compare(&mut memory, &poll(vec![item("live/ada", stream.source.id, bytes)]), &[&stream], second * 1_000);
    }
    assert_eq!(memory.progress_of(stream.source.id).unwrap().inbound_bits_per_second, Some(8_000));
}

#[test]
fn a_connecting_publisher_is_looked_for_only_after_a_moment() {
    let (mut memory, stream) = (Memory::default(), connecting("live/ada"));
    assert_eq!(words(&compare(&mut memory, &poll(vec![]), &[&stream], 0)), Vec::<&str>::new());
    assert_eq!(words(&compare(&mut memory, &poll(vec![]), &[&stream], 1_000)), ["still connecting"]);
}

#[test]
fn a_node_that_is_back_makes_its_streams_fresh() {
    let mut stream = live("live/ada");
    stream.stale_since = Some(at(-10_000));
    let found = compare(&mut Memory::default(), &poll(vec![item("live/ada", stream.source.id, 1)]), &[&stream], 0);
    assert_eq!(words(&found), ["fresh"]);
}

#[test]
fn a_rendition_is_a_quality_of_its_stream_and_an_intruder_without_it() {
    let (mut memory, stream) = (Memory::default(), live("live/ada"));
    let rendition = SourceId(Uuid::new_v4());
    let both = poll(vec![item("live/ada_720p", rendition, 5), item("live/ada", stream.source.id, 1)]);
    let found = compare(&mut memory, &both, &[&stream], 0);
    assert_eq!(words(&found), Vec::<&str>::new());
    assert_eq!(found.progress[0].qualities[0].path.as_str(), "live/ada_720p");
    assert_eq!(
        words(&compare(&mut memory, &poll(vec![item("live/ada_720p", rendition, 6)]), &[], 1_000)),
        ["unadmitted"]
    );
}

#[test]
fn who_left_is_forgotten_in_time_by_a_successor_too_and_named_until_that_is_done() {
    let stream = live("live/ada");
    let source = stream.source.id;
    let mut memory = Memory::default();
    let last_words = compare(&mut memory, &poll(vec![item("live/ada", source, 1_000)]), &[&stream], 0).progress;
    let nobody = poll(Vec::new());
    assert!(compare(&mut memory, &nobody, &[], 5_000).forgotten.is_empty(), "the history may need it");

    // Pollers that lose their lease again and again: none of them sees it gone for long.
    let mut memory = Memory::of(last_words);
    assert!(compare(&mut memory, &nobody, &[], 9_000).forgotten.is_empty());
    assert_eq!(compare(&mut memory, &nobody, &[], 10_000).forgotten, [source]);
    assert_eq!(compare(&mut memory, &nobody, &[], 11_000).forgotten, [source], "Redis may have been away");
    memory.forget(&[source]);
    assert!(compare(&mut memory, &nobody, &[], 12_000).forgotten.is_empty());
}
