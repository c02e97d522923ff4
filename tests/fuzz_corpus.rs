//! What `fuzz/` found and began with, over and over, without a nightly compiler; and a bounded number of things like it.

use std::{fs, path::Path};

use onair::fuzz_targets::{ALL, Target};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// For each target.
const CASES: u32 = 2_000;

/// Pieces that mean something to one parser or another.
const PIECES: [&str; 16] =
    ["sk_", "key=", "&", "%", "\0", "{", "\"", "\\u0000", "null", "path=", "cursor=", "../", ":", "\u{fffd}", "=", "["];

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = files.map(|file| file.expect("it can be listed").path());
    let mut found: Vec<_> =
        paths.map(|path| (path.display().to_string(), fs::read(&path).expect("it can be read"))).collect();
    found.sort();
    found
}

#[derive(Debug, Clone)]
enum Change {
    Cut(Index),
    Byte(Index, u8),
    Piece(Index, &'static str),
    Double(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<Index>().prop_map(Change::Cut),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<Index>(), select(&PIECES[..])).prop_map(|(at, piece)| Change::Piece(at, piece)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Double(from, to)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let len = bytes.len() + 1;
        match change {
            Change::Cut(at) => bytes.truncate(at.index(len)),
            Change::Byte(at, byte) => bytes.insert(at.index(len), *byte),
            Change::Piece(at, piece) => {
                let at = at.index(len);
                bytes.splice(at..at, piece.bytes());
            }
            Change::Double(from, to) => {
                let (from, to) = (from.index(len), to.index(len));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from.min(to)..from.min(to), part);
            }
        }
    }
    bytes
}

fn run((name, target): Target) {
    let kept = corpus(name);
    assert!(kept.len() >= 5, "{name}: there is hardly a corpus");
    for (file, bytes) in &kept {
        println!("{file}");
        target(bytes);
    }
    let begins: Vec<Vec<u8>> = kept.into_iter().map(|(_, bytes)| bytes).collect();
    let strategy = (select(begins), vec(change(), 1..8));
    // The same ones each time: a test that fails on some days only is believed on none.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |(begin, changes)| {
            target(&changed(begin, &changes));
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn whatever_is_sent_is_read_or_refused_and_no_secret_is_said_back() {
    for target in ALL {
        run(target);
    }
}

#[test]
fn every_target_of_the_fuzz_crate_is_one_of_these() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let built: Vec<&str> =
        manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap()).collect();
    assert_eq!(built, ALL.map(|(name, _)| name));
}
