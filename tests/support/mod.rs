//! What the integration tests share. Every test binary compiles all of it and uses a part.
#![allow(dead_code, unused_imports, reason = "each test binary uses a different part of the support code")]
#![allow(clippy::disallowed_methods, reason = "the other side of the wire has its own clock, chance and tasks")]
#![allow(clippy::doc_markdown, reason = "MediaMTX is a name, not code")]

pub mod api_client;
pub mod asked_service;
pub mod bench;
pub mod broadcaster;
pub mod fault_proxy;
pub mod faulty_stack;
pub mod files;
pub mod hammer;
pub mod ledger;
pub mod many_nodes;
pub mod measured;
pub mod mediamtx;
pub mod odd_redis;
pub mod program;
pub mod prometheus;
pub mod promql;
pub mod raw_redis;
pub mod real_mediamtx;
pub mod records;
pub mod redis_cluster;
pub mod redis_monitor;
pub mod redis_sentinels;
pub mod service;
pub mod stack;
pub mod stopwatch;
pub mod stores;
pub mod stranger;
pub mod test_redis;
pub mod waiting;
