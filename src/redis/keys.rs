//! Every Redis key, spelled once.
//!
//! All keys of a partition share the hash tag `{07}`, so that a Redis Cluster keeps them together and one script can touch
//! them. Keys that belong to no path share a tag with what they are changed together with.

use super::call::CallBuilder;
use crate::domain::{NodeName, Partition, SecretHash, StreamPath};

const LIVE: &str = "live";
const DEADLINES: &str = "deadlines";
const VERSION: &str = "version";
const EVENTS: &str = "events";
const KICKS: &str = "kicks";
const CHANGES: &str = "changes";
const MEMORY: &str = "memory";

/// What every transition of a path is given beside its slot, in the order of `lua/transition.lua`.
const OF_TRANSITIONS: [&str; 6] = [LIVE, DEADLINES, VERSION, EVENTS, KICKS, CHANGES];

/// How the keys of a version, of a partition's changes and of a slot end, the last before its path, for `lua/changes.lua`.
pub(super) const ENDS_OF_CHANGES: [&str; 3] = [VERSION, CHANGES, "slot:"];

/// The keys that every transition of a path is given, in the order of `lua/transition.lua`, with room for three more.
pub(super) fn transition(path: &StreamPath) -> Vec<String> {
    let mut keys = Vec::with_capacity(10);
    keys.push(slot(path));
    keys.extend(OF_TRANSITIONS.map(|name| in_partition(path.partition(), name)));
    keys
}

/// Gives a call the keys of an admission, in the order of `lua/admit.lua`.
pub(super) fn put_admission(call: &mut CallBuilder, path: &StreamPath, secret_hash: SecretHash) {
    let partition = path.partition();
    call.key(&of_path("slot", path));
    for name in OF_TRANSITIONS {
        call.key(&parts(partition, name));
    }
    call.key(&of_stream_key(path, &secret_hash.to_hex()));
    call.key(&of_path("cooldown", path));
    call.key(&parts(partition, MEMORY));
}

fn parts(partition: Partition, name: &'static str) -> [&'static str; 4] {
    ["onair:{", partition.as_str(), "}:", name]
}

fn of_path<'a>(kind: &'a str, path: &'a StreamPath) -> [&'a str; 6] {
    ["onair:{", path.partition().as_str(), "}:", kind, ":", path.as_str()]
}

fn of_stream_key<'a>(path: &StreamPath, secret_hash: &'a str) -> [&'a str; 4] {
    ["onair:{", path.partition().as_str(), "}:key:", secret_hash]
}

fn in_partition(partition: Partition, name: &'static str) -> String {
    parts(partition, name).concat()
}

pub(super) fn slot(path: &StreamPath) -> String {
    of_path("slot", path).concat()
}

/// The key of `path` whose secret has this hash. It lies in the path's partition, where admission looks.
pub(super) fn stream_key(path: &StreamPath, secret_hash: SecretHash) -> String {
    of_stream_key(path, &secret_hash.to_hex()).concat()
}

pub(super) fn cooldown(path: &StreamPath) -> String {
    of_path("cooldown", path).concat()
}

pub(super) fn live(partition: Partition) -> String {
    in_partition(partition, LIVE)
}

pub(super) fn deadlines(partition: Partition) -> String {
    in_partition(partition, DEADLINES)
}

pub(super) fn version(partition: Partition) -> String {
    in_partition(partition, VERSION)
}

pub(super) fn events(partition: Partition) -> String {
    in_partition(partition, EVENTS)
}

/// Entries of the log that were written by a version that knows more.
pub(super) fn set_aside(partition: Partition) -> String {
    in_partition(partition, "set_aside")
}

pub(super) fn attempts(partition: Partition) -> String {
    in_partition(partition, "attempts")
}

pub(super) fn changes(partition: Partition) -> String {
    in_partition(partition, CHANGES)
}

pub(super) fn kicks(partition: Partition) -> String {
    in_partition(partition, KICKS)
}

/// What is known of how whole a partition is.
pub(super) fn memory(partition: Partition) -> String {
    in_partition(partition, MEMORY)
}

pub(super) fn lease(name: &str) -> String {
    format!("onair:lease:{name}")
}

/// Written to see whether the server of a partition takes a write; expires by itself.
pub(super) fn probe(partition: Partition) -> String {
    in_partition(partition, "probe")
}

/// Name -> the node as JSON: what Postgres says, so that a replica can start without Postgres.
pub(super) const NODES: &str = "onair:{nodes}:directory";
/// Name -> what the poller last saw of the node, as JSON.
pub(super) const NODE_STATUS: &str = "onair:{nodes}:status";

/// While a projection of all keys is under way: the id of the last key that was looked at, or nothing yet.
pub(super) const PROJECTION: &str = "onair:{projection}:position";

/// Source id -> the poller's last word about it, as JSON.
pub(super) fn progress(node: &NodeName) -> String {
    format!("onair:progress:{node}")
}

/// How every key of a partition begins. As a key by itself, it names the server that holds them.
pub(super) fn beginning(partition: Partition) -> String {
    parts(partition, "").concat()
}

/// What every slot matches, for those who look at all of them.
pub(super) const EVERY_SLOT: &str = "onair:{*}:slot:*";
/// What every stream key matches.
pub(super) const EVERY_STREAM_KEY: &str = "onair:{*}:key:*";

/// The path whose slot a key is.
pub(super) fn path_of_slot(key: &str) -> Option<StreamPath> {
    let (_, path) = key.split_once("}:slot:")?;
    path.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_path_share_one_hash_tag() {
        let path: StreamPath = "live/ada".parse().unwrap();
        let tag = format!("{{{}}}", path.partition());
        let mut keys = transition(&path);
        keys.extend([stream_key(&path, SecretHash([7; 32])), cooldown(&path), memory(path.partition())]);
        assert_eq!(keys.len(), 10);
        assert!(keys.iter().all(|key| key.contains(&tag)), "{keys:?}");
    }

    #[test]
    fn an_admission_has_the_keys_of_every_transition_and_three_of_its_own() {
        let (path, hash): (StreamPath, _) = ("live/ada".parse().unwrap(), SecretHash([7; 32]));
        let mut call = super::super::call::Call::builder();
        put_admission(&mut call, &path, hash);
        let mut keys = transition(&path);
        keys.extend([stream_key(&path, hash), cooldown(&path), memory(path.partition())]);
        assert_eq!(call.build().keys(), keys);
    }

    #[test]
    fn a_slot_that_is_found_tells_its_path() {
        let path: StreamPath = "live/ada".parse().unwrap();
        assert_eq!(path_of_slot(&slot(&path)), Some(path.clone()));
        assert_eq!(path_of_slot(&cooldown(&path)), None);
    }
}
