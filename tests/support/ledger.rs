//! What publishers were answered and when, and what became of it in the history.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::measured::say;

#[derive(Clone, Debug)]
pub enum Answer {
    Admitted(Uuid),
    Refused(String),
}

/// One answer to a publisher.
#[derive(Clone, Debug)]
pub struct Entry {
    pub at: Instant,
    pub path: String,
    pub answer: Answer,
}

impl Entry {
    fn word(&self) -> &str {
        match &self.answer {
            Answer::Admitted(_) => "admitted",
            Answer::Refused(code) => code,
        }
    }

    /// Whether nobody could decide.
    pub fn is_unavailable(&self) -> bool {
        matches!(&self.answer, Answer::Refused(code) if code != "key_in_use")
    }
}

/// Written by all publishers of a test.
#[derive(Default)]
pub struct Ledger {
    is_over: AtomicBool,
    entries: Mutex<Vec<Entry>>,
    doubles: Mutex<Vec<(Uuid, Duration)>>,
    violations: Mutex<Vec<String>>,
    thrown_out: AtomicUsize,
}

fn locked<T>(content: &Mutex<T>) -> MutexGuard<'_, T> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Nobody begins anything any more.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub fn answered(&self, path: &str, answer: Answer) {
        locked(&self.entries).push(Entry { at: Instant::now(), path: path.to_owned(), answer });
    }

    /// Two were on air on one path, and one of them had to go.
    pub fn double(&self, first: Uuid, healed_after: Duration) {
        locked(&self.doubles).push((first, healed_after));
    }

    /// One was on air, and is not, without having left.
    pub fn thrown_out(&self) {
        self.thrown_out.fetch_add(1, Ordering::Relaxed);
    }

    pub fn violate(&self, what: String) {
        locked(&self.violations).push(what);
    }

    pub fn entries(&self) -> Vec<Entry> {
        locked(&self.entries).clone()
    }

    /// Those who were on air when somebody else was admitted to their path.
    pub fn doubles(&self) -> Vec<Uuid> {
        locked(&self.doubles).iter().map(|(first, _)| *first).collect()
    }

    pub fn paths(&self) -> BTreeSet<String> {
        locked(&self.entries).iter().map(|entry| entry.path.clone()).collect()
    }

    /// Whether each of these paths was decided about since then.
    pub fn served_since(&self, since: Instant, paths: &[String]) -> bool {
        let entries = locked(&self.entries);
        let late = entries.iter().rev().take_while(|entry| entry.at >= since);
        let decided: BTreeSet<&String> =
            late.filter(|entry| !entry.is_unavailable()).map(|entry| &entry.path).collect();
        paths.iter().all(|path| decided.contains(path))
    }

    /// Tells what everybody was answered, and fails where something happened that must not.
    pub fn close(&self, test: &str) {
        let mut answers = BTreeMap::<String, usize>::new();
        for entry in locked(&self.entries).iter() {
            *answers.entry(entry.word().to_owned()).or_default() += 1;
        }
        say(&format!("{test}: answers: {answers:?}"));
        say(&format!("{test}: thrown out while on air: {}", self.thrown_out.load(Ordering::Relaxed)));
        let doubles = locked(&self.doubles);
        let longest = doubles.iter().map(|(_, healed_after)| *healed_after).max().unwrap_or_default();
        say(&format!("{test}: two on one path {} times, at most for {longest:?}", doubles.len()));
        let violations = locked(&self.violations);
        assert!(violations.is_empty(), "{test}: {violations:#?}");
    }
}

/// A source as the history has it.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    rows: i64,
    ended: i64,
}

impl Fate {
    /// One stream, which has ended.
    pub fn is_whole(self) -> bool {
        (self.rows, self.ended) == (1, 1)
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} rows, {} ended", self.rows, self.ended)
    }
}

/// Why the streams of some sources ended.
pub async fn reasons(postgres_url: &str, sources: &[Uuid]) -> Vec<Option<String>> {
    let mut connection = PgConnection::connect(postgres_url).await.expect("Postgres answers");
    let query = "SELECT end_reason FROM streams WHERE source_id = ANY($1)";
    sqlx::query_scalar(query).bind(sources).fetch_all(&mut connection).await.expect("the history")
}

/// What the history has of every source.
pub async fn fates(postgres_url: &str) -> HashMap<Uuid, Fate> {
    let mut connection = PgConnection::connect(postgres_url).await.expect("Postgres answers");
    let query = "SELECT source_id, count(*), count(ended_at) FROM streams GROUP BY source_id";
    let rows: Vec<(Uuid, i64, i64)> = sqlx::query_as(query).fetch_all(&mut connection).await.expect("the history");
    rows.into_iter().map(|(source, rows, ended)| (source, Fate { rows, ended })).collect()
}
