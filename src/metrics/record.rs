//! What others call to record something. Each function sets the labels that the declaration names.

use std::time::Duration;

use ::metrics::{Counter, Histogram, SharedString, counter, gauge, histogram};

use super::{Kind, declared, kept::Kept};
use crate::domain::{EndReason, NodeName, StreamStateWord, words};

words! {
    /// How an auth call ended, coarsely: the label of its latency.
    pub enum AuthOutcome {
        /// Let in.
        Admitted = "admitted",
        /// Kept out by a rule.
        Refused = "refused",
        /// Kept out because what is true could not be known in time.
        Unavailable = "unavailable",
    }
}

words! {
    /// How a step to take a source off air went.
    pub enum KickOutcome {
        /// The node closed it.
        Kicked = "kicked",
        /// The node does not have it, or is no longer ours: nothing is left to do.
        Gone = "gone",
        /// The node could not be asked, or refused.
        Failed = "failed",
    }
}

words! {
    /// A queue of this process that drops what does not fit.
    pub enum Queue {
        /// Notes about refused publishers, for the list of attempts.
        Attempts = "attempts",
        /// Admissions to be taken back because their caller was refused.
        Abandoned = "abandoned",
    }
}

// Counts of what one process holds stay far below 2^52, up to which a gauge is exact.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn float(count: u64) -> f64 {
    count as f64
}

/// An auth call was answered. `action` and `code` are words of the admission's enums.
pub fn auth_decision(action: impl Into<&'static str>, code: impl Into<&'static str>) {
    static DECISIONS: Kept<(&str, &str), Counter> = Kept::new();
    let labels = (action.into(), code.into());
    let decisions = || counter!(declared::AUTH_DECISIONS.name, "action" => labels.0, "code" => labels.1);
    DECISIONS.record(|of| *of == labels, || (labels, decisions()), |counter| counter.increment(1));
}

/// How long it took to answer a client that publishes or watches. Onair's own calls, which a node asks about each second, would hide
/// them: see `onair_auth_decisions_total`.
pub fn auth_answered(outcome: AuthOutcome, took: Duration) {
    static SECONDS: Kept<AuthOutcome, Histogram> = Kept::new();
    let seconds = || histogram!(declared::AUTH_SECONDS.name, "outcome" => outcome.as_str());
    SECONDS.record(|of| *of == outcome, || (outcome, seconds()), |histogram| histogram.record(took));
}

/// Records into a histogram without labels.
fn record_in(kept: &Kept<(), Histogram>, name: &'static str, took: Duration) {
    kept.record(|()| true, || ((), histogram!(name)), |histogram| histogram.record(took));
}

/// An auth call waited for Redis.
pub fn auth_redis(took: Duration) {
    static SECONDS: Kept<(), Histogram> = Kept::new();
    record_in(&SECONDS, declared::AUTH_REDIS_SECONDS.name, took);
}

/// The auth call of such a client waited to be looked at.
pub fn auth_queue(took: Duration) {
    static SECONDS: Kept<(), Histogram> = Kept::new();
    record_in(&SECONDS, declared::AUTH_QUEUE_SECONDS.name, took);
}

/// How many streams of a state a node has. A node that has none left needs a 0.
pub fn streams(state: StreamStateWord, node: &NodeName, count: u64) {
    gauge!(declared::STREAMS.name, "state" => state.as_str(), "node" => node.to_string()).set(float(count));
}

/// How many streams are on nodes that are unreachable.
pub fn streams_stale(count: u64) {
    gauge!(declared::STREAMS_STALE.name).set(float(count));
}

/// How many streams do not deliver.
pub fn streams_stalled(count: u64) {
    gauge!(declared::STREAMS_STALLED.name).set(float(count));
}

/// How many watch what a node has on air, and how much its publishers send.
pub fn traffic(node: &NodeName, viewers: u64, inbound_bits_per_second: u64) {
    gauge!(declared::VIEWERS.name, "node" => node.to_string()).set(float(viewers));
    gauge!(declared::INBOUND_BITS_PER_SECOND.name, "node" => node.to_string()).set(float(inbound_bits_per_second));
}

/// A stream ended.
pub fn stream_ended(reason: EndReason) {
    counter!(declared::STREAMS_ENDED.name, "reason" => reason.as_str()).increment(1);
}

/// A stream ended because its broadcaster came back.
pub fn takeover(reason: EndReason) {
    counter!(declared::TAKEOVERS.name, "reason" => reason.as_str()).increment(1);
}

/// A list of what is on air was made.
pub fn list(took: Duration) {
    static SECONDS: Kept<(), Histogram> = Kept::new();
    record_in(&SECONDS, declared::LIST_SECONDS.name, took);
}

/// How long ago Redis last confirmed the list.
pub fn list_snapshot_age(age: Duration) {
    gauge!(declared::LIST_SNAPSHOT_AGE_SECONDS.name).set(age.as_secs_f64());
}

/// What waits in the event log: how many transitions, and how old the oldest is.
pub fn history_backlog(entries: u64, oldest: Duration) {
    gauge!(declared::HISTORY_BACKLOG_ENTRIES.name).set(float(entries));
    gauge!(declared::HISTORY_LAG_SECONDS.name).set(oldest.as_secs_f64());
}

/// How many may wait in the event log.
pub fn history_backlog_max(entries: u64) {
    gauge!(declared::HISTORY_BACKLOG_MAX.name).set(float(entries));
}

/// Transitions were dropped because too many waited.
pub fn history_dropped(entries: u64) {
    counter!(declared::HISTORY_DROPPED.name).increment(entries);
}

/// Transitions were written to Postgres.
pub fn history_written(entries: u64) {
    counter!(declared::HISTORY_WRITTEN.name).increment(entries);
}

/// Transitions could not be written.
pub fn history_error() {
    counter!(declared::HISTORY_ERRORS.name).increment(1);
}

/// How many changes of stream keys Redis does not have yet.
pub fn outbox_pending(changes: u64) {
    gauge!(declared::OUTBOX_PENDING.name).set(float(changes));
}

/// The node answers.
pub fn node_up(node: &NodeName) {
    gauge!(declared::NODE_UP.name, "node" => node.to_string()).set(1.0);
}

/// The node does not answer.
pub fn node_down(node: &NodeName) {
    gauge!(declared::NODE_UP.name, "node" => node.to_string()).set(0.0);
}

/// How long ago the node last told what it has on air.
pub fn node_last_word_age(node: &NodeName, age: Duration) {
    gauge!(declared::NODE_LAST_WORD_AGE_SECONDS.name, "node" => node.to_string()).set(age.as_secs_f64());
}

/// How much of a severity should be otherwise in a node's configuration. What was mended needs a 0.
pub fn node_wiring_problems(node: &NodeName, severity: impl Into<&'static str>, count: u64) {
    let labels = [("node", node.to_string()), ("severity", severity.into().to_owned())];
    gauge!(declared::NODE_WIRING_PROBLEMS.name, &labels).set(float(count));
}

/// A node was asked for everything.
pub fn node_poll(took: Duration) {
    histogram!(declared::NODE_POLL_SECONDS.name).record(took);
}

/// A poll failed. `kind` is a word of the control client's errors.
pub fn node_poll_error(kind: impl Into<&'static str>) {
    counter!(declared::NODE_POLL_ERRORS.name, "kind" => kind.into()).increment(1);
}

/// A source was told to go, or found to be gone. `reason` is the word of an end reason.
pub fn kick(reason: impl Into<&'static str>, outcome: KickOutcome) {
    counter!(declared::KICKS.name, "reason" => reason.into(), "outcome" => outcome.as_str()).increment(1);
}

/// How many sources still have to go.
pub fn kicks_pending(sources: u64) {
    gauge!(declared::KICKS_PENDING.name).set(float(sources));
}

/// A stream that had to be off air is off air.
pub fn revoke_to_silence(took: Duration) {
    histogram!(declared::REVOKE_TO_SILENCE_SECONDS.name).record(took);
}

/// Something was dropped because a queue was full.
pub fn queue_dropped(queue: Queue) {
    counter!(declared::QUEUE_DROPPED.name, "queue" => queue.as_str()).increment(1);
}

/// A request was answered. `problem` is the code of the problem, or empty where there was none.
pub fn http_request(method: &'static str, route: &str, status: u16, problem: &'static str, took: Duration) {
    type Labels = (String, &'static str, u16);
    static ANSWERS: Kept<Labels, (Counter, Histogram)> = Kept::new();
    static PROBLEMS: Kept<&str, Counter> = Kept::new();
    let find = || {
        let (labels, route) = ((route.to_owned(), method, status), SharedString::from(route.to_owned()));
        let seconds = histogram!(declared::HTTP_REQUEST_SECONDS.name, "route" => route.clone());
        let status = status.to_string();
        let requests = counter!(declared::HTTP_REQUESTS.name, "route" => route, "method" => method, "status" => status);
        (labels, (requests, seconds))
    };
    let is_meant = |of: &Labels| (of.1, of.2) == (method, status) && of.0 == route;
    ANSWERS.record(is_meant, find, |(requests, seconds)| {
        requests.increment(1);
        seconds.record(took);
    });
    if !problem.is_empty() {
        let problems = || (problem, counter!(declared::HTTP_PROBLEMS.name, "code" => problem));
        PROBLEMS.record(|of| *of == problem, problems, |counter| counter.increment(1));
    }
}

/// How many connections are open, and how many may be.
pub fn connections(open: u64, max: u64) {
    gauge!(declared::CONNECTIONS.name).set(float(open));
    gauge!(declared::CONNECTIONS_MAX.name).set(float(max));
}

/// A connection came while the most were open.
pub fn connection_turned_away() {
    counter!(declared::CONNECTIONS_TURNED_AWAY.name).increment(1);
}

/// A connection with nothing in hand was closed to make room for another.
pub fn connection_given_up() {
    counter!(declared::CONNECTIONS_GIVEN_UP.name).increment(1);
}

/// A request was answered that there are too many.
pub fn request_shed() {
    counter!(declared::REQUESTS_SHED.name).increment(1);
}

/// How many connections to Postgres are open, how many of them are not in use, and how many may be open.
pub fn postgres_pool(open: u64, idle: u64, max: u64) {
    gauge!(declared::POSTGRES_POOL_SIZE.name).set(float(open));
    gauge!(declared::POSTGRES_POOL_IDLE.name).set(float(idle));
    gauge!(declared::POSTGRES_POOL_MAX.name).set(float(max));
}

/// How many bytes Redis uses, and may use.
pub fn redis_memory(used_bytes: u64, max_bytes: u64) {
    gauge!(declared::REDIS_MEMORY_BYTES.name).set(float(used_bytes));
    gauge!(declared::REDIS_MEMORY_MAX_BYTES.name).set(float(max_bytes));
}

/// How many connections to Redis stand, how many there should be, and how many admissions wait to be sent on them.
pub fn redis_pool(connected: u64, max: u64, admissions_waiting: u64) {
    gauge!(declared::REDIS_CONNECTIONS.name).set(float(connected));
    gauge!(declared::REDIS_CONNECTIONS_MAX.name).set(float(max));
    gauge!(declared::REDIS_ADMISSIONS_WAITING.name).set(float(admissions_waiting));
}

/// How many partitions of Redis are closed.
pub fn partitions_closed(count: usize) {
    gauge!(declared::PARTITIONS_CLOSED.name).set(float(count as u64));
}

/// Redis got its memory back from this replica.
pub fn rebuilt() {
    counter!(declared::REBUILDS.name).increment(1);
}

/// Redis answers.
pub fn redis_up() {
    gauge!(declared::REDIS_UP.name).set(1.0);
}

/// Redis does not answer.
pub fn redis_down() {
    gauge!(declared::REDIS_UP.name).set(0.0);
}

/// Postgres answers.
pub fn postgres_up() {
    gauge!(declared::POSTGRES_UP.name).set(1.0);
}

/// Postgres does not answer.
pub fn postgres_down() {
    gauge!(declared::POSTGRES_UP.name).set(0.0);
}

/// The decisions that there may be about an action. Counted from 0, so that the first of them is seen as one: a counter that
/// begins with its first event hides it from `rate` and `increase`.
pub fn decisions_begin(action: impl Into<&'static str>, codes: impl IntoIterator<Item = &'static str>) {
    let action = action.into();
    for code in codes {
        counter!(declared::AUTH_DECISIONS.name, "action" => action, "code" => code).absolute(0);
    }
}

/// The problems that there may be, for the same reason.
pub fn problems_begin(codes: impl IntoIterator<Item = &'static str>) {
    for code in codes {
        counter!(declared::HTTP_PROBLEMS.name, "code" => code).absolute(0);
    }
}

/// The ways in which a poll may fail, for the same reason.
pub fn node_poll_errors_begin(kinds: impl IntoIterator<Item = &'static str>) {
    for kind in kinds {
        counter!(declared::NODE_POLL_ERRORS.name, "kind" => kind).absolute(0);
    }
}

/// All other counters whose labels are known beforehand, for the same reason.
pub(super) fn counters_begin() {
    for metric in declared::ALL.iter().filter(|metric| metric.kind == Kind::Counter && metric.labels.is_empty()) {
        counter!(metric.name).absolute(0);
    }
    for reason in EndReason::ALL {
        counter!(declared::STREAMS_ENDED.name, "reason" => reason.as_str()).absolute(0);
        for outcome in KickOutcome::ALL {
            let labels = [("reason", reason.as_str()), ("outcome", outcome.as_str())];
            counter!(declared::KICKS.name, &labels).absolute(0);
        }
    }
    for reason in [EndReason::NeverOnline, EndReason::NodeUnreachable, EndReason::Stalled, EndReason::TakenOver] {
        counter!(declared::TAKEOVERS.name, "reason" => reason.as_str()).absolute(0);
    }
    for queue in Queue::ALL {
        counter!(declared::QUEUE_DROPPED.name, "queue" => queue.as_str()).absolute(0);
    }
}

/// What this process knows of itself; set anew for every answer to a scrape.
pub(super) fn process() {
    gauge!(declared::BUILD_INFO.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    counter!(declared::LOG_LINES_DROPPED.name).absolute(crate::logging::lines_dropped());
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let runtime = runtime.metrics();
        gauge!(declared::RUNTIME_TASKS.name).set(float(runtime.num_alive_tasks() as u64));
        gauge!(declared::RUNTIME_QUEUE.name).set(float(runtime.global_queue_depth() as u64));
    }
}
