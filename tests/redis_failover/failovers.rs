//! The deaths of masters, and what Redis' asynchronous replication may lose by them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use onair::domain::StreamPath;
use uuid::Uuid;

use super::support::{
    ledger::{Answer, Entry, Fate, Ledger},
    measured::say,
    stack::{Replica, Stack, TestKey},
};

/// How long before a master's death something may have been written that its replica has not heard of.
const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// A master that died.
pub struct Failover {
    /// The paths that it held.
    pub affected: Vec<String>,
    pub died_at: Instant,
    pub taken_over_at: Instant,
    /// From here on everything is as ever.
    pub settled_at: Instant,
}

/// A key of the path's partition.
pub fn key_of(path: &str) -> String {
    let path: StreamPath = path.parse().expect("a path");
    format!("onair:{{{}}}:live", path.partition())
}

/// So many stream keys for paths that one master of a cluster holds.
pub async fn keys_on_master(master: usize, stack: &Stack, replica: &Replica, count: usize) -> Vec<TestKey> {
    let mut keys = Vec::new();
    for path in paths_on_master(master, stack, count).await {
        keys.push(replica.key(&path).await);
    }
    keys
}

/// So many paths that one master of a cluster holds.
pub async fn paths_on_master(master: usize, stack: &Stack, count: usize) -> Vec<String> {
    let (mut paths, mut number) = (Vec::new(), 0);
    let mut masters = HashMap::new();
    while paths.len() < count {
        let path = format!("live/{number}");
        let key = key_of(&path);
        if !masters.contains_key(&key) {
            masters.insert(key.clone(), stack.redis.master_of(&key).await);
        }
        if masters[&key] == master {
            paths.push(path);
        }
        number += 1;
    }
    paths
}

impl Failover {
    /// Whether what was admitted here may be lost: on a path of the dead master, and so shortly before its death that the
    /// replica had not heard of it, or before everything was as ever.
    fn excuses(&self, entry: &Entry) -> bool {
        let heard = self.died_at.checked_sub(UNHEARD_MAX).is_none_or(|since| entry.at >= since);
        heard && entry.at <= self.settled_at && self.affected.contains(&entry.path)
    }

    fn tell(&self, entries: &[Entry]) -> String {
        let refused = |is_affected: bool| {
            let refused = entries.iter().filter(|entry| {
                entry.is_unavailable()
                    && (self.died_at..=self.settled_at).contains(&entry.at)
                    && self.affected.contains(&entry.path) == is_affected
            });
            let times: Vec<u128> = refused.map(|entry| entry.at.duration_since(self.died_at).as_millis()).collect();
            match (times.iter().min(), times.iter().max()) {
                (Some(first), Some(last)) => format!("{} refused, from {first} ms to {last} ms", times.len()),
                _ => "none refused".to_owned(),
            }
        };
        format!(
            "a replica took over after {} ms; on the {} paths of the dead master {}; on the others {}",
            self.taken_over_at.duration_since(self.died_at).as_millis(),
            self.affected.len(),
            refused(true),
            refused(false),
        )
    }
}

/// Compares what was answered with what the history has, and tells of every death.
pub fn account(form: &str, failovers: &[Failover], ledger: &Ledger, fates: &HashMap<Uuid, Fate>) {
    let entries = ledger.entries();
    let mut lost = Vec::new();
    for entry in &entries {
        let Answer::Admitted(source) = entry.answer else { continue };
        let fate = match fates.get(&source) {
            Some(fate) if fate.is_whole() => continue,
            Some(fate) => fate.to_string(),
            None => "no row".to_owned(),
        };
        if let Some(failover) = failovers.iter().find(|failover| failover.excuses(entry)) {
            let before_ms = failover.died_at.saturating_duration_since(entry.at).as_millis();
            let after_ms = entry.at.saturating_duration_since(failover.died_at).as_millis();
            lost.push(format!("{fate}; admitted {before_ms} ms before, {after_ms} ms after the death"));
        } else {
            let since = |death: Instant| match entry.at.checked_duration_since(death) {
                Some(later) => format!("{} ms after", later.as_millis()),
                None => format!("{} ms before", death.duration_since(entry.at).as_millis()),
            };
            let near: Vec<String> = failovers.iter().map(|failover| since(failover.died_at)).collect();
            ledger.violate(format!("{source} on {}: {fate}; deaths: {near:?}", entry.path));
        }
    }
    for failover in failovers {
        say(&format!("{form}: {}", failover.tell(&entries)));
    }
    say(&format!("{form}: lost by replication: {} {lost:?}", lost.len()));
}
