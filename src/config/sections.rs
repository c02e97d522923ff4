//! The settings themselves: every one with its unit, default, range and variable.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde::Deserialize;
use url::Url;

use super::{
    ConfigSecret,
    setting::{Field, Reader, Setting},
};
use crate::domain::{NodeName, OpenPaths, PublicUrls, Renditions};

/// Declares a section: its struct, defaults and ranges, and the table of its fields, which therefore cannot forget one.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident $section:literal {
        $($(#[$field_meta:meta])* $field:ident: $type:ty = $default:expr, $variable:literal $(, in $range:expr)?;)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[$field_meta])* #[doc = concat!("\n\nVariable: `", $variable, "`.")] pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// Its fields, in the order of their declaration.
            pub const FIELDS: &[Field] = &[$(Field {
                section: $section,
                name: stringify!($field),
                variable: $variable,
                kind: <$type as Setting>::KIND,
            }),+];

            pub(super) fn read(reader: &mut Reader<'_>) -> Self {
                let default = Self::default();
                let mut fields = Self::FIELDS.iter();
                Self { $($field: reader.take(fields.next().expect("one entry for each field"), default.$field),)+ }
            }

            pub(super) fn check_ranges(&self, problems: &mut Vec<String>) {
                $($(
                    if !$range.contains(&self.$field) {
                        problems.push(format!(
                            "{}.{} ({}): must be from {} to {}",
                            $section, stringify!($field), $variable, $range.start(), $range.end(),
                        ));
                    }
                )?)+
                let _ = problems;
            }
        }
    };
}

section! {
    /// How HTTP is served, and who may call.
    ServerConfig "server" {
        /// The address that HTTP is served on. Plain HTTP: TLS, where it is wanted, ends before it.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), "ONAIR_SERVER_LISTEN";
        /// How the nodes reach this service; stands in the YAML that is made for them. Default: `http://` and `listen`.
        public_url: Option<Url> = None, "ONAIR_SERVER_PUBLIC_URL";
        /// What frontends and administrators send as Bearer token, each of at least 32 characters. All of them are valid, so that
        /// one can be replaced by another without a gap. No default.
        api_secrets: Vec<ConfigSecret> = Vec::new(), "ONAIR_SERVER_API_SECRETS";
        /// What node passwords and control tokens are derived from, each of at least 32 characters. The first issues, all verify.
        /// No default.
        node_secrets: Vec<ConfigSecret> = Vec::new(), "ONAIR_SERVER_NODE_SECRETS";
        /// The largest request body that is read. Bytes; default 64 KiB.
        body_bytes_max: usize = 64 * 1024, "ONAIR_SERVER_BODY_BYTES_MAX", in 16 * 1024..=16 * 1024 * 1024;
        /// How long a client may take to send the head of a request. Milliseconds; default 5 s.
        head_timeout_ms: u64 = 5_000, "ONAIR_SERVER_HEAD_TIMEOUT_MS", in 100..=60_000;
        /// How long a request other than an auth call may take from head to answer. Milliseconds; default 10 s.
        request_timeout_ms: u64 = 10_000, "ONAIR_SERVER_REQUEST_TIMEOUT_MS", in 100..=120_000;
        /// The most connections that are served at once. One more is accepted all the same: it takes the place of one that has
        /// nothing in hand, or is answered `overloaded` and closed. Default 4096.
        connections_max: usize = 4096, "ONAIR_SERVER_CONNECTIONS_MAX", in 16..=1_000_000;
        /// The most requests of the API that are in hand at once; more are answered `overloaded`. Auth calls, hooks, health and
        /// metrics are not counted. Default 1024, which has to be below `server.connections_max`.
        requests_max: usize = 1024, "ONAIR_SERVER_REQUESTS_MAX", in 1..=1_000_000;
        /// After SIGTERM, how long requests are still accepted while `/readyz` says no, so that a load balancer notices.
        /// Milliseconds; default 0.
        drain_ms: u64 = 0, "ONAIR_SERVER_DRAIN_MS", in 0..=300_000;
        /// After that, how long open requests and tasks may take to finish. Milliseconds; default 10 s.
        shutdown_timeout_ms: u64 = 10_000, "ONAIR_SERVER_SHUTDOWN_TIMEOUT_MS", in 100..=300_000;
    }
}

section! {
    /// Redis: what is true now.
    RedisConfig "redis" {
        /// `redis://[user:password@]host:port[/db]`, `redis+unix:///path/to/socket`, and for a cluster or sentinels
        /// `redis-cluster://` and `redis-sentinel://`; with `rediss` instead of `redis` for TLS. Default `redis://127.0.0.1:6379`.
        url: ConfigSecret = ConfigSecret::new("redis://127.0.0.1:6379"), "ONAIR_REDIS_URL";
        /// A file with the certificates (PEM) of the authorities that may vouch for Redis, with `rediss`. Default: those of the
        /// system.
        ca_file: Option<PathBuf> = None, "ONAIR_REDIS_CA_FILE";
        /// Connections that are kept open. Default 4.
        connections: usize = 4, "ONAIR_REDIS_CONNECTIONS", in 1..=256;
        /// How long one command may take. Milliseconds; default 200, which has to be below `admission.deadline_ms`.
        command_timeout_ms: u64 = 200, "ONAIR_REDIS_COMMAND_TIMEOUT_MS", in 5..=10_000;
    }
}

section! {
    /// Postgres: what must never be forgotten.
    PostgresConfig "postgres" {
        /// `postgres://user[:password]@host[:port]/database`. Default `postgres://onair@127.0.0.1/onair`.
        url: ConfigSecret = ConfigSecret::new("postgres://onair@127.0.0.1/onair"), "ONAIR_POSTGRES_URL";
        /// The most connections that are open at once. Default 10.
        connections_max: u32 = 10, "ONAIR_POSTGRES_CONNECTIONS_MAX", in 2..=1000;
        /// How long a request waits for a connection before it is answered 503. Milliseconds; default 2 s.
        acquire_timeout_ms: u64 = 2_000, "ONAIR_POSTGRES_ACQUIRE_TIMEOUT_MS", in 50..=60_000;
        /// How long one statement may take. Milliseconds; default 5 s.
        statement_timeout_ms: u64 = 5_000, "ONAIR_POSTGRES_STATEMENT_TIMEOUT_MS", in 50..=120_000;
    }
}

section! {
    /// The decision who may publish.
    AdmissionConfig "admission" {
        /// How long an auth call may take before it is answered `state_unavailable`. Milliseconds; default 300: the node asks
        /// nobody else meanwhile.
        deadline_ms: u64 = 300, "ONAIR_ADMISSION_DEADLINE_MS", in 20..=9_000;
        /// How long an auth call may take while Redis answers others that came before it. Milliseconds; default 1 s, and no less than
        /// `deadline_ms`.
        busy_deadline_ms: u64 = 1_000, "ONAIR_ADMISSION_BUSY_DEADLINE_MS", in 20..=9_000;
        /// How long an admitted publisher may take to come online before its slot is free again. Milliseconds; default 15 s (RTMP
        /// takes about 2 s).
        connecting_timeout_ms: u64 = 15_000, "ONAIR_ADMISSION_CONNECTING_TIMEOUT_MS", in 1_000..=300_000;
        /// How long a publisher's bytes may stand still before the next one with a valid key replaces it. Milliseconds; default 3 s.
        stall_after_ms: u64 = 3_000, "ONAIR_ADMISSION_STALL_AFTER_MS", in 500..=60_000;
        /// How many failures one address (of IPv6: one /64) may have at once before it is answered `too_many_failures`. Default
        /// 20.
        failures_burst: u32 = 20, "ONAIR_ADMISSION_FAILURES_BURST", in 1..=10_000;
        /// How many of them are forgiven each second. Default 1.
        failures_refill_per_second: u32 = 1, "ONAIR_ADMISSION_FAILURES_REFILL_PER_SECOND", in 1..=10_000;
        /// How many addresses with failures are remembered, by each replica. Default 100,000.
        addresses_max: usize = 100_000, "ONAIR_ADMISSION_ADDRESSES_MAX", in 100..=10_000_000;
        /// How many queries for keys that Redis does not hold are made of Postgres at once. Default 4, which has to be below
        /// `postgres.connections_max`.
        lookups_max: usize = 4, "ONAIR_ADMISSION_LOOKUPS_MAX", in 1..=1000;
        /// How long a key that Postgres does not know either is refused without asking again. Milliseconds; default 2 s.
        unknown_key_cache_ms: u64 = 2_000, "ONAIR_ADMISSION_UNKNOWN_KEY_CACHE_MS", in 0..=60_000;
    }
}

section! {
    /// The comparison of what is believed with what the nodes say, and the kicks.
    ReconcilerConfig "reconciler" {
        /// How often a node is asked. Milliseconds; default 1 s.
        poll_interval_ms: u64 = 1_000, "ONAIR_RECONCILER_POLL_INTERVAL_MS", in 50..=60_000;
        /// How long a call of a node's control API may take. Milliseconds; default 12 s, above `MediaMTX`'s `readTimeout` of 10 s.
        request_timeout_ms: u64 = 12_000, "ONAIR_RECONCILER_REQUEST_TIMEOUT_MS", in 100..=120_000;
        /// The most calls of control APIs that are open at once, over all nodes. A node that hangs holds one or two, so more than
        /// there are nodes. Default 512.
        requests_in_flight_max: usize = 512, "ONAIR_RECONCILER_REQUESTS_IN_FLIGHT_MAX", in 1..=10_000;
        /// How long a node may be silent before its streams are marked stale. Milliseconds; default 3 s.
        node_stale_after_ms: u64 = 3_000, "ONAIR_RECONCILER_NODE_STALE_AFTER_MS", in 200..=600_000;
        /// How long a node may be silent before its streams end as `node_lost`. Milliseconds; default 60 s.
        node_lost_after_ms: u64 = 60_000, "ONAIR_RECONCILER_NODE_LOST_AFTER_MS", in 1_000..=86_400_000;
        /// How long after `stop` a path admits nobody, so that an encoder's own reconnect does not undo it. Milliseconds;
        /// default 30 s.
        cooldown_ms: u64 = 30_000, "ONAIR_RECONCILER_COOLDOWN_MS", in 0..=3_600_000;
        /// How many items of a list are asked for at once. Default 1000.
        page_items: u32 = 1_000, "ONAIR_RECONCILER_PAGE_ITEMS", in 10..=10_000;
        /// How long a replica that fell silent keeps its work before another takes it over. Milliseconds; default 2.5 s.
        lease_ttl_ms: u64 = 2_500, "ONAIR_RECONCILER_LEASE_TTL_MS", in 500..=60_000;
    }
}

section! {
    /// Renditions: what nodes transcode streams into.
    RenditionsConfig "renditions" {
        /// The endings of their paths, such as `["_720p", "_480p"]`; as a variable with commas between them. Default none. A path
        /// with such an ending is published with the node's own password and never with a stream key.
        suffixes: Renditions = Renditions::default(), "ONAIR_RENDITIONS_SUFFIXES";
    }
}

section! {
    /// Who may watch.
    ViewingConfig "viewing" {
        /// Paths that anybody may watch, whatever is published there, and without Redis being asked, such as `["lobby", "cameras/"]`: a
        /// path, or with a slash at its end the beginning of paths; as a variable with commas between them. For what nodes have from
        /// elsewhere, such as cameras that they pull. Default none.
        open_paths: OpenPaths = OpenPaths::default(), "ONAIR_VIEWING_OPEN_PATHS";
    }
}

/// What happens when too many transitions wait for Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// New publishers are refused, and the record stays whole.
    Refuse,
    /// The oldest transitions are dropped and counted, and everybody is admitted.
    Drop,
}

section! {
    /// The way of every transition from Redis to Postgres.
    HistoryConfig "history" {
        /// How many entries are written in one transaction. Default 500.
        batch_entries_max: usize = 500, "ONAIR_HISTORY_BATCH_ENTRIES_MAX", in 1..=10_000;
        /// How often the event log is looked at. Milliseconds; default 250.
        poll_interval_ms: u64 = 250, "ONAIR_HISTORY_POLL_INTERVAL_MS", in 10..=60_000;
        /// How many transitions may wait in Redis while Postgres is away. Default 1,000,000, which takes about 700 MB of Redis'
        /// memory.
        backlog_entries_max: u64 = 1_000_000, "ONAIR_HISTORY_BACKLOG_ENTRIES_MAX", in 1_000..=1_000_000_000;
        /// What happens then: `refuse` (new publishers, with `history_backlog_full`) or `drop` (the oldest transitions, counted in
        /// `onair_history_dropped_total`). Default `refuse`.
        when_full: WhenFull = WhenFull::Refuse, "ONAIR_HISTORY_WHEN_FULL";
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

section! {
    /// The log, on standard output.
    LogConfig "log" {
        /// `json` or `pretty`. Default `json`.
        format: LogFormat = LogFormat::Json, "ONAIR_LOG_FORMAT";
        /// What is logged: `tracing` directives such as `info` or `info,onair::nodes=debug`. Default `info`.
        filter: String = "info".to_owned(), "ONAIR_LOG_FILTER";
    }
}

/// A node that the configuration puts into the fleet when the service starts. Others are added through the API.
///
/// In the file: a `[[nodes]]` table for each. Variable: `ONAIR_NODES`, a JSON array of the same.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name, which is also the user name of its calls.
    pub name: NodeName,
    /// Where its control API is reached, such as `http://edge-1:9997`.
    #[serde(deserialize_with = "crate::domain::url_field::required")]
    pub control_url: Url,
    /// Where viewers and broadcasters reach it. Absent: not offered.
    #[serde(default)]
    pub public_urls: PublicUrls,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_within_its_range() {
        let mut problems = Vec::new();
        ServerConfig::default().check_ranges(&mut problems);
        RedisConfig::default().check_ranges(&mut problems);
        PostgresConfig::default().check_ranges(&mut problems);
        AdmissionConfig::default().check_ranges(&mut problems);
        ReconcilerConfig::default().check_ranges(&mut problems);
        HistoryConfig::default().check_ranges(&mut problems);
        assert_eq!(problems, Vec::<String>::new());
    }
}
