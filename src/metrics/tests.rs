use std::collections::BTreeSet;

use super::*;
use crate::domain::{EndReason, NodeName, StreamStateWord};

fn record_everything() {
    install();
    let node: NodeName = "edge-1".parse().unwrap();
    let took = Duration::from_millis(2);
    auth_decision("publish", "admitted");
    auth_answered(AuthOutcome::Admitted, took);
    auth_redis(took);
    auth_queue(took);
    streams(StreamStateWord::Live, &node, 3);
    streams_stale(0);
    streams_stalled(0);
    traffic(&node, 5, 4_000_000);
    stream_ended(EndReason::Lost);
    takeover(EndReason::Stalled);
    list(took);
    list_snapshot_age(took);
    history_backlog(1, took);
    history_backlog_max(1);
    history_dropped(1);
    history_written(1);
    history_error();
    outbox_pending(0);
    node_up(&node);
    node_last_word_age(&node, took);
    node_wiring_problems(&node, "problem", 1);
    node_poll(took);
    node_poll_error("timeout");
    kick(EndReason::KeyRevoked, KickOutcome::Gone);
    kicks_pending(0);
    revoke_to_silence(took);
    http_request("GET", "/v1/streams/{id}", 404, "stream_unknown", took);
    queue_dropped(Queue::Attempts);
    connections(3, 4096);
    connection_turned_away();
    postgres_pool(2, 1, 10);
    redis_memory(1_000_000, 0);
    redis_pool(9, 9, 0);
    partitions_closed(0);
    rebuilt();
    redis_up();
    postgres_down();
}

fn labels_of(line: &str) -> BTreeSet<&str> {
    let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    let names = inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.trim());
    names.filter(|name| *name != "le").collect()
}

fn samples_of<'a>(text: &'a str, metric: &Metric) -> Vec<&'a str> {
    let names: Vec<String> = match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|end| format!("{}{end}", metric.name)).to_vec(),
        Kind::Counter | Kind::Gauge => vec![metric.name.to_owned()],
    };
    text.lines().filter(|line| names.iter().any(|name| line.split(['{', ' ']).next() == Some(name))).collect()
}

#[tokio::test]
async fn every_declared_metric_is_recorded_with_its_type_labels_and_help() {
    record_everything();
    let text = render();
    for metric in ALL {
        let samples = samples_of(&text, metric);
        assert!(!samples.is_empty(), "{} is not recorded", metric.name);
        let expected: BTreeSet<_> = metric.labels.iter().copied().collect();
        assert_eq!(labels_of(samples[0]), expected, "labels of {}", metric.name);
        let kind = format!("# TYPE {} {}\n", metric.name, metric.kind.as_str());
        assert!(text.contains(&kind), "{kind} is not in {text}");
        assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "HELP of {}", metric.name);
    }
}

#[tokio::test]
async fn nothing_is_recorded_that_is_not_declared() {
    record_everything();
    let text = render();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(ALL.iter().any(|metric| metric.name == name), "{name} is not declared");
    }
}

#[tokio::test]
async fn a_time_falls_into_the_bucket_that_holds_it() {
    record_everything();
    let text = render();
    let in_bucket = |le: &str| {
        text.lines().any(|line| {
            line.starts_with("onair_auth_redis_seconds_bucket")
                && line.contains(&format!("le=\"{le}\""))
                && !line.ends_with(" 0")
        })
    };
    assert!(in_bucket("0.002") && in_bucket("10") && !in_bucket("0.0015"), "{text}");
}

#[test]
fn names_are_unique_and_end_in_their_unit() {
    let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), ALL.len());
    for metric in ALL {
        assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        assert!(metric.kind != Kind::Histogram || metric.name.ends_with("_seconds"), "{}", metric.name);
    }
}

#[test]
fn the_documentation_lists_exactly_what_is_declared() {
    let documented: Vec<&str> =
        include_str!("../../docs/metrics.md").lines().filter(|line| line.starts_with("| `onair_")).collect();
    let declared: Vec<String> = ALL
        .iter()
        .map(|metric| {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {} | {} | {} |", metric.name, metric.kind.as_str(), labels.join(", "), metric.help)
        })
        .collect();
    assert!(documented == declared, "the table of docs/metrics.md has to be:\n{}", declared.join("\n"));
}
