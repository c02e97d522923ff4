//! Every metric, declared once: name, type, labels and what it means.

use super::Kind::{self, Counter, Gauge, Histogram};

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, unit last.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels. Their values are words of ours, names of nodes or routes: never a path, a key or an address.
    pub labels: &'static [&'static str],
    /// What it means: `HELP`, and the table of `docs/metrics.md`.
    pub help: &'static str,
}

macro_rules! declare {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            pub(super) const $constant: Metric =
                Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };
        )+

        /// All of them, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

declare! {
    AUTH_DECISIONS: Counter "onair_auth_decisions_total" ["action", "code"]
        "Answers to auth calls of nodes, by what was asked and the code of the decision.";
    AUTH_SECONDS: Histogram "onair_auth_seconds" ["outcome"]
        "Time from a whole auth request to its decision, of clients that publish or watch; outcome is admitted, refused or unavailable.";
    AUTH_REDIS_SECONDS: Histogram "onair_auth_redis_seconds" []
        "The part of onair_auth_seconds that was spent waiting for Redis, and before that for others where many ask at once.";

    AUTH_QUEUE_SECONDS: Histogram "onair_auth_queue_seconds" []
        "Time from accepting the connection of such an auth call until its decision began: reading, parsing, waiting for a thread. It comes before onair_auth_seconds.";

    STREAMS: Gauge "onair_streams" ["state", "node"]
        "Streams on air, by state and node. Every replica tells all of them: take the max, not the sum.";
    STREAMS_STALE: Gauge "onair_streams_stale" []
        "Streams whose node is unreachable. Every replica tells all of them.";
    STREAMS_STALLED: Gauge "onair_streams_stalled" []
        "Streams whose bytes stand still. Every replica tells all of them.";
    VIEWERS: Gauge "onair_viewers" ["node"]
        "Readers of the streams on air, by node, as the nodes told last. Every replica tells all of them.";
    INBOUND_BITS_PER_SECOND: Gauge "onair_inbound_bits_per_second" ["node"]
        "What the publishers on air send, by node, as the nodes told last. Every replica tells all of it.";
    STREAMS_ENDED: Counter "onair_streams_ended_total" ["reason"]
        "Streams that ended, by reason, counted by the replica that ended them.";
    TAKEOVERS: Counter "onair_takeovers_total" ["reason"]
        "Streams that ended because their broadcaster came back, by the reason the older one lost its path.";

    LIST_SECONDS: Histogram "onair_list_seconds" []
        "Time to answer a list of what is on air, without sending it.";
    LIST_SNAPSHOT_AGE_SECONDS: Gauge "onair_list_snapshot_age_seconds" []
        "How long ago Redis last confirmed the list that this replica holds. It grows while Redis is away.";

    HISTORY_BACKLOG_ENTRIES: Gauge "onair_history_backlog_entries" []
        "Transitions in the event log that Postgres does not have yet, over all partitions.";
    HISTORY_BACKLOG_MAX: Gauge "onair_history_backlog_entries_max" []
        "How many of them may wait: history.backlog_entries_max.";
    HISTORY_LAG_SECONDS: Gauge "onair_history_lag_seconds" []
        "Age of the oldest of them; 0 without any.";
    HISTORY_WRITTEN: Counter "onair_history_written_total" []
        "Transitions that this replica wrote to Postgres.";
    HISTORY_ERRORS: Counter "onair_history_errors_total" []
        "Failed attempts to write transitions. Nothing is lost by them: each is tried again.";
    HISTORY_DROPPED: Counter "onair_history_dropped_total" []
        "Transitions that were dropped unread because too many waited, where history.when_full is drop. They are lost.";
    OUTBOX_PENDING: Gauge "onair_outbox_pending" []
        "Changes of stream keys that Postgres has and Redis does not have yet.";

    NODE_UP: Gauge "onair_node_up" ["node"]
        "1 while the node's control API answers, 0 while it does not. Told by the replica that watches the node.";
    NODE_LAST_WORD_AGE_SECONDS: Gauge "onair_node_last_word_age_seconds" ["node"]
        "How long ago the node last told what it has on air. Told by the replica that watches the node.";
    NODE_WIRING_PROBLEMS: Gauge "onair_node_wiring_problems" ["node", "severity"]
        "What should be otherwise in the node's configuration: problem (something does not work or is not safe) or hint. Told by the replica that watches the node.";
    NODE_POLL_SECONDS: Histogram "onair_node_poll_seconds" []
        "Time to ask one node for everything it has on air, and to act on the answer.";
    NODE_POLL_ERRORS: Counter "onair_node_poll_errors_total" ["kind"]
        "Polls that failed: refused, timed_out, unauthorized, wrong_version or broken.";

    KICKS: Counter "onair_kicks_total" ["reason", "outcome"]
        "Steps to take a source off air, by why and how they went: kicked (the node closed it), gone (it is known to be) or failed.";
    KICKS_PENDING: Gauge "onair_kicks_pending" []
        "Sources that must be off air and are not known to be yet, over all nodes.";
    REVOKE_TO_SILENCE_SECONDS: Histogram "onair_revoke_to_silence_seconds" []
        "Time from a revocation, disabling, expiry or stop until the node said that the source is gone.";

    QUEUE_DROPPED: Counter "onair_queue_dropped_total" ["queue"]
        "What was dropped because a queue of this process was full: attempts (notes about refusals) or abandoned (admissions left to their deadline).";

    HTTP_REQUESTS: Counter "onair_http_requests_total" ["route", "method", "status"]
        "Answered requests. The route is a template such as /v1/streams/{id}, or unmatched.";
    HTTP_REQUEST_SECONDS: Histogram "onair_http_request_seconds" ["route"]
        "Time from the head of a request to its answer, without sending it.";
    HTTP_PROBLEMS: Counter "onair_http_problems_total" ["code"]
        "Answers that were problems, by their code.";
    CONNECTIONS: Gauge "onair_http_connections" []
        "Connections that are open; every auth call has one of its own.";
    CONNECTIONS_MAX: Gauge "onair_http_connections_max" []
        "How many of them are served at once: server.connections_max.";
    CONNECTIONS_TURNED_AWAY: Counter "onair_http_connections_turned_away_total" []
        "Connections that came while server.connections_max were open and all of them had a request in hand, or had just come.";
    CONNECTIONS_GIVEN_UP: Counter "onair_http_connections_given_up_total" []
        "Connections without a request in hand that were closed to make room for another.";
    REQUESTS_SHED: Counter "onair_http_requests_shed_total" []
        "Requests of the API that came while server.requests_max were in hand, and were answered overloaded.";

    POSTGRES_POOL_SIZE: Gauge "onair_postgres_pool_size" []
        "Connections to Postgres that are open.";
    POSTGRES_POOL_IDLE: Gauge "onair_postgres_pool_idle" []
        "Connections to Postgres that are open and not in use.";
    POSTGRES_POOL_MAX: Gauge "onair_postgres_pool_max" []
        "How many of them may be open at once: postgres.connections_max.";
    REDIS_CONNECTIONS: Gauge "onair_redis_connections" []
        "Connections to Redis that stand, over all its servers.";
    REDIS_CONNECTIONS_MAX: Gauge "onair_redis_connections_max" []
        "How many of them there should be: for each server redis.connections, and one for large answers.";
    REDIS_ADMISSIONS_WAITING: Gauge "onair_redis_admissions_waiting" []
        "Admissions that wait to be sent to Redis because enough are under way. At 10,000 for one server more are refused.";
    REDIS_MEMORY_BYTES: Gauge "onair_redis_memory_bytes" []
        "Memory that Redis uses, as it says; of a cluster, that of the server nearest to its limit.";
    REDIS_MEMORY_MAX_BYTES: Gauge "onair_redis_memory_max_bytes" []
        "Where Redis refuses to take more (maxmemory); 0 where it has no limit.";
    REDIS_UP: Gauge "onair_redis_up" []
        "1 while Redis answers, 0 while it does not.";
    PARTITIONS_CLOSED: Gauge "onair_partitions_closed" []
        "Parts of Redis (of 32) in which nobody is admitted, because Redis lost its memory and does not have it back yet. Every replica tells all of them.";
    REBUILDS: Counter "onair_rebuilds_total" []
        "How often this replica gave Redis its memory back.";
    POSTGRES_UP: Gauge "onair_postgres_up" []
        "1 while Postgres answers, 0 while it does not.";

    LOG_LINES_DROPPED: Counter "onair_log_lines_dropped_total" []
        "Log lines that were dropped because standard output did not take them in time.";
    RUNTIME_TASKS: Gauge "onair_runtime_tasks" []
        "Asynchronous tasks that exist.";
    RUNTIME_QUEUE: Gauge "onair_runtime_queue_tasks" []
        "Asynchronous tasks that wait for a thread in the runtime's global queue.";
    BUILD_INFO: Gauge "onair_build_info" ["version"]
        "Always 1; the version is the label.";
    PROCESS_CPU: Counter "onair_process_cpu_seconds_total" []
        "Total user and system CPU time spent in seconds.";
    PROCESS_OPEN_FDS: Gauge "onair_process_open_fds" []
        "Number of open file descriptors.";
    PROCESS_MAX_FDS: Gauge "onair_process_max_fds" []
        "Maximum number of open file descriptors.";
    PROCESS_VIRTUAL: Gauge "onair_process_virtual_memory_bytes" []
        "Virtual memory size in bytes.";
    PROCESS_VIRTUAL_MAX: Gauge "onair_process_virtual_memory_max_bytes" []
        "Maximum amount of virtual memory available in bytes.";
    PROCESS_RESIDENT: Gauge "onair_process_resident_memory_bytes" []
        "Resident memory size in bytes.";
    PROCESS_START: Gauge "onair_process_start_time_seconds" []
        "Start time of the process since unix epoch in seconds.";
    PROCESS_THREADS: Gauge "onair_process_threads" []
        "Number of OS threads in the process.";
}
