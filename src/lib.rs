//! Onair decides who may go on air on a fleet of `MediaMTX` servers, knows at every moment what is on air, and keeps the
//! record.
//!
//! # The map
//!
//! | room | what it is for |
//! |---|---|
//! | [`domain`] | the words: keys, paths, streams, nodes; no I/O |
//! | [`redis`] | what is true now; every transition is one Lua script |
//! | [`postgres`] | what must not be forgotten |
//! | [`admission`] | credentials in, decision out |
//! | [`streams`] | what is on air and what was |
//! | [`stream_keys`] | keys and broadcasters |
//! | [`node_credentials`] | how nodes prove who they are to us, and we to them |
//! | [`nodes`] | the fleet: control APIs, reconciler, kicks |
//! | [`history`] | the event log's way into Postgres |
//! | [`rebuild`] | Redis gets its memory back |
//! | [`verify`] | what the stores and the nodes say, held against each other, for people |
//! | [`http`] | requests, answers, status codes |
//! | [`app`], [`replica`] | the capabilities and stores of one replica, assembled; the HTTP in front of them |
//! | [`store_error`] | that a store gave no answer, for whoever asks both |
//! | [`lifecycle`], [`logging`], [`metrics`], [`config`] | tasks, log, counters, settings |
//! | [`cli`], [`dev`] | the commands |
//!
//! `ARCHITECTURE.md` has the same map with what must never be broken, and two walkthroughs.
//!
//! # Invariants of the whole
//!
//! - Two publishers never hold one path, whatever the race.
//! - What cannot be known refuses: no unauthorised stream, ever.
//! - An auth call costs one round trip to Redis, and reaches neither Postgres (but for a key that Redis does not hold) nor
//!   a node's control API.
//! - Every wait has a limit, every queue a size, every task an owner.

pub mod admission;
pub mod app;
pub mod cli;
pub mod config;
pub mod dev;
pub mod domain;
#[doc(hidden)]
pub mod fuzz_targets;
pub mod history;
pub mod http;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod node_credentials;
pub mod nodes;
pub mod postgres;
pub mod rebuild;
pub mod redis;
pub mod replica;
pub mod store_error;
pub mod stream_keys;
pub mod streams;
pub mod verify;
