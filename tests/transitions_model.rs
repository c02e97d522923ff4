//! Random interleavings of everything that can happen to a few paths, on the real scripts and on a model of them.
//!
//! What must hold, whatever happens: a path has at most one stream; nobody is admitted by a key that was not valid at that
//! instant; every admission has exactly one end; what Redis lists is what the model lists.

mod support;

use std::collections::BTreeMap;

use onair::{
    domain::{
        EndReason, KeyStatus, NodeName, OnConflict, Revision, SourceId, SourceType, StreamId, StreamState,
        StreamStateWord, Timestamp,
    },
    redis::{
        Admission, AdmitRequest, Afterwards, Confirmation, EndRequest, Ending, EventKind, FencingToken, Holder,
        KeyProjection, Observation, Redis, Ticket, Watcher,
    },
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestCaseError, TestCaseResult, TestRunner},
};
use support::{
    records::{admit_request, key_projection},
    stores,
};
use uuid::Uuid;

const PATHS: usize = 3;
const SOURCES: usize = 4;
const CONNECTING_TIMEOUT_MS: i64 = 1_000;
/// Far enough in the future that the clock of Redis, which key changes go by, never reaches an expiry of this test.
const BEGIN_MS: i64 = 4_000_000_000_000;

#[derive(Debug, Clone)]
enum Step {
    Admit {
        path: usize,
        source: usize,
    },
    /// From another path's publisher, who has no business here.
    AdmitWithWrongKey {
        path: usize,
        key: usize,
        source: usize,
    },
    Confirm {
        path: usize,
        source: usize,
    },
    End {
        path: usize,
        source: usize,
    },
    Stall {
        path: usize,
        source: usize,
    },
    Flow {
        path: usize,
        source: usize,
    },
    Change {
        path: usize,
        status: KeyStatus,
    },
    ChangeLate {
        path: usize,
    },
    Expiry {
        path: usize,
        after_ms: Option<i64>,
    },
    Deadline {
        path: usize,
    },
    Pass {
        ms: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..PATHS, 0..SOURCES);
    prop_oneof![
        6 => at().prop_map(|(path, source)| Step::Admit { path, source }),
        1 => (0..PATHS, 0..PATHS, 0..SOURCES).prop_map(|(path, key, source)| Step::AdmitWithWrongKey { path, key, source }),
        5 => at().prop_map(|(path, source)| Step::Confirm { path, source }),
        4 => at().prop_map(|(path, source)| Step::End { path, source }),
        2 => at().prop_map(|(path, source)| Step::Stall { path, source }),
        1 => at().prop_map(|(path, source)| Step::Flow { path, source }),
        1 => (0..PATHS).prop_map(|path| Step::Change { path, status: KeyStatus::Revoked }),
        2 => (0..PATHS).prop_map(|path| Step::Change { path, status: KeyStatus::Disabled }),
        4 => (0..PATHS).prop_map(|path| Step::Change { path, status: KeyStatus::Active }),
        1 => (0..PATHS).prop_map(|path| Step::ChangeLate { path }),
        2 => (0..PATHS, prop::option::of(0..3_000_i64)).prop_map(|(path, after_ms)| Step::Expiry { path, after_ms }),
        3 => (0..PATHS).prop_map(|path| Step::Deadline { path }),
        3 => (1..800_i64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// What the scripts are held against.
struct Model {
    now: i64,
    keys: Vec<KeyProjection>,
    held: Vec<Option<Held>>,
    /// Every admission there was, with how its stream ended.
    admissions: BTreeMap<Uuid, Option<EndReason>>,
}

#[derive(Clone)]
struct Held {
    stream: StreamId,
    source: SourceId,
    live: bool,
    stalled: bool,
    deadline: i64,
}

impl Model {
    fn is_valid(&self, path: usize) -> Result<(), &'static str> {
        let key = &self.keys[path];
        match key.stored_status {
            KeyStatus::Revoked => Err("key_revoked"),
            KeyStatus::Disabled => Err("key_disabled"),
            _ if key.expires_at.is_some_and(|at| at.as_ms() <= self.now) => Err("key_expired"),
            _ => Ok(()),
        }
    }

    /// What an admission must answer, and why the holder ends where somebody takes its place.
    fn expect_admission(&self, path: usize, source: SourceId) -> (&'static str, Option<EndReason>) {
        if let Err(word) = self.is_valid(path) {
            return (word, None);
        }
        match &self.held[path] {
            None => ("admitted", None),
            Some(held) if held.source == source => ("admitted_again", None),
            Some(held) if !held.live && held.deadline <= self.now => ("admitted", Some(EndReason::NeverOnline)),
            Some(held) if held.stalled => ("admitted", Some(EndReason::Stalled)),
            Some(_) if self.keys[path].on_conflict == OnConflict::TakeOver => ("admitted", Some(EndReason::TakenOver)),
            Some(_) => ("key_in_use", None),
        }
    }

    fn end(&mut self, path: usize, reason: EndReason) {
        let held = self.held[path].take().expect("only what is held ends");
        let ended = self.admissions.insert(held.stream.0, Some(reason)).expect("only what was admitted ends");
        assert_eq!(ended, None, "a stream ends once");
    }

    fn holds(&mut self, path: usize, source: SourceId) -> Option<&mut Held> {
        self.held[path].as_mut().filter(|held| held.source == source)
    }

    /// What the deadline of a path must do.
    fn expect_deadline(&self, path: usize) -> Option<EndReason> {
        let held = self.held[path].as_ref()?;
        if self.keys[path].expires_at.is_some_and(|at| at.as_ms() <= self.now) {
            return Some(EndReason::KeyExpired);
        }
        (!held.live && held.deadline <= self.now).then_some(EndReason::NeverOnline)
    }
}

struct World {
    redis: Redis,
    node: NodeName,
    sources: Vec<Vec<SourceId>>,
    model: Model,
}

fn word(admission: &Admission) -> &'static str {
    match admission {
        Admission::Admitted { .. } => "admitted",
        Admission::AdmittedAgain { .. } => "admitted_again",
        Admission::Checked => "checked",
        Admission::KeyAbsent => "key_absent",
        Admission::PathMismatch => "path_mismatch",
        Admission::KeyRevoked => "key_revoked",
        Admission::KeyDisabled => "key_disabled",
        Admission::KeyExpired { .. } => "key_expired",
        Admission::CoolingDown { .. } => "cooling_down",
        Admission::KeyInUse { .. } => "key_in_use",
    }
}

fn new_key(prefix: &str, path: usize) -> KeyProjection {
    let on_conflict = if path == 0 { OnConflict::TakeOver } else { OnConflict::Reject };
    KeyProjection { on_conflict, ..key_projection(&format!("{prefix}/{path}")) }
}

impl World {
    async fn new(redis: &Redis) -> Self {
        let prefix = Uuid::new_v4().simple().to_string();
        let keys: Vec<_> = (0..PATHS).map(|path| new_key(&prefix, path)).collect();
        for key in &keys {
            redis.project_key(key).await.unwrap();
        }
        let sources = (0..PATHS).map(|_| (0..SOURCES).map(|_| SourceId(Uuid::new_v4())).collect()).collect();
        let model = Model { now: BEGIN_MS, keys, held: vec![None; PATHS], admissions: BTreeMap::new() };
        Self { redis: redis.clone(), node: "edge-1".parse().unwrap(), sources, model }
    }

    async fn admit(&self, path: usize, key: usize, source: SourceId) -> Admission {
        let request = AdmitRequest {
            connecting_timeout_ms: CONNECTING_TIMEOUT_MS.unsigned_abs(),
            ..admit_request(&self.model.keys[path].path, self.model.keys[key].secret_hash, &self.node, source)
        };
        self.redis
            .admit_with(&request, &Ticket::default(), Some(Timestamp::from_ms(self.model.now)))
            .await
            .unwrap()
            .admission
    }

    async fn take(&mut self, step: &Step) -> TestCaseResult {
        match *step {
            Step::Admit { path, source } => self.take_admit(path, self.sources[path][source]).await?,
            Step::AdmitWithWrongKey { path, key, source } if path != key => {
                let answer = self.admit(path, key, self.sources[path][source]).await;
                prop_assert!(!matches!(answer, Admission::Admitted { .. }), "admitted by another path's key");
            }
            Step::AdmitWithWrongKey { .. } => {}
            Step::Confirm { path, source } => self.take_confirm(path, self.sources[path][source]).await?,
            Step::End { path, source } => self.take_end(path, self.sources[path][source]).await?,
            Step::Stall { path, source } => self.observe(path, source, true).await,
            Step::Flow { path, source } => self.observe(path, source, false).await,
            Step::Change { path, status } => {
                self.change(path, |key| {
                    // What is revoked stays revoked: the management refuses to enable it.
                    if key.stored_status != KeyStatus::Revoked {
                        key.stored_status = status;
                    }
                })
                .await?;
            }
            Step::ChangeLate { path } => {
                let late = KeyProjection {
                    revision: Revision(0),
                    stored_status: KeyStatus::Active,
                    ..self.model.keys[path].clone()
                };
                prop_assert_eq!(self.redis.project_key(&late).await.unwrap().ended(), None);
            }
            Step::Expiry { path, after_ms } => {
                let expires_at = after_ms.map(|ms| Timestamp::from_ms(self.model.now + ms));
                self.change(path, |key| key.expires_at = expires_at).await?;
            }
            Step::Deadline { path } => self.take_deadline(path).await?,
            Step::Pass { ms } => self.model.now += ms,
        }
        Ok(())
    }

    async fn take_admit(&mut self, path: usize, source: SourceId) -> TestCaseResult {
        let (expected, replaces) = self.model.expect_admission(path, source);
        let answer = self.admit(path, path, source).await;
        prop_assert_eq!(word(&answer), expected);
        if let Admission::Admitted { stream_id, replaced, .. } = answer {
            let why = replaced.map(|stream| match stream.state {
                StreamState::Ended { reason, .. } => reason,
                other => panic!("replaced, but {other:?}"),
            });
            prop_assert_eq!(why, replaces);
            if let Some(reason) = replaces {
                self.model.end(path, reason);
            }
            let deadline = self.model.now + CONNECTING_TIMEOUT_MS;
            self.model.held[path] = Some(Held { stream: stream_id, source, live: false, stalled: false, deadline });
            self.model.admissions.insert(stream_id.0, None);
        }
        Ok(())
    }

    async fn take_confirm(&mut self, path: usize, source: SourceId) -> TestCaseResult {
        let expected = match &self.model.held[path] {
            None => Confirmation::NotHeld,
            Some(held) if held.source != source => Confirmation::OtherSource,
            Some(held) if held.live => Confirmation::AlreadyLive,
            Some(_) => Confirmation::Confirmed,
        };
        let path_name = self.model.keys[path].path.clone();
        let answer = self.redis.confirm(&path_name, &self.node, (source, SourceType::RtmpConn), &[]).await.unwrap();
        prop_assert_eq!(answer, expected);
        if let Some(held) = self.model.holds(path, source) {
            held.live = true;
        }
        Ok(())
    }

    async fn take_end(&mut self, path: usize, source: SourceId) -> TestCaseResult {
        let request = EndRequest {
            path: &self.model.keys[path].path,
            holder: Holder::Source(source, &self.node),
            reason: EndReason::Unpublished,
            afterwards: Afterwards::Gone,
            progress: None,
        };
        let ended = matches!(self.redis.end(&request).await.unwrap(), Ending::Ended(_));
        prop_assert_eq!(ended, self.model.holds(path, source).is_some());
        if ended {
            self.model.end(path, EndReason::Unpublished);
        }
        Ok(())
    }

    async fn observe(&mut self, path: usize, source: usize, stalled: bool) {
        let source = self.sources[path][source];
        let since = stalled.then(|| Timestamp::from_ms(self.model.now));
        let observations = [Observation::Stalled(since)];
        let watcher = Watcher { node: &self.node, token: FencingToken(1) };
        self.redis.observe(&self.model.keys[path].path, watcher, source, &observations).await.unwrap();
        if let Some(held) = self.model.holds(path, source) {
            held.stalled = stalled;
        }
    }

    async fn change(&mut self, path: usize, change: impl FnOnce(&mut KeyProjection)) -> TestCaseResult {
        let key = &mut self.model.keys[path];
        change(key);
        key.revision.0 += 1;
        let key = key.clone();
        let ended = self.redis.project_key(&key).await.unwrap().ended();
        let expected = match key.stored_status {
            KeyStatus::Active => None,
            status => self.model.held[path].is_some().then(|| format!("key_{status}").parse::<EndReason>().unwrap()),
        };
        prop_assert_eq!(ended.is_some(), expected.is_some());
        if let Some(reason) = expected {
            self.model.end(path, reason);
        }
        Ok(())
    }

    async fn take_deadline(&mut self, path: usize) -> TestCaseResult {
        let expected = self.model.expect_deadline(path);
        let now = Some(Timestamp::from_ms(self.model.now));
        let answer = self.redis.expire_at(&self.model.keys[path].path, now).await.unwrap();
        let reason = match answer {
            Ending::Ended(stream) => match stream.state {
                StreamState::Ended { reason, .. } => Some(reason),
                other => panic!("ended, but {other:?}"),
            },
            Ending::NotDue | Ending::NotHeld => None,
            Ending::OtherSource => panic!("a deadline names no source"),
        };
        prop_assert_eq!(reason, expected);
        if let Some(reason) = expected {
            self.model.end(path, reason);
        }
        Ok(())
    }

    async fn check(&self) -> TestCaseResult {
        let mut told = BTreeMap::<Uuid, (u32, Option<EndReason>)>::new();
        for (path, key) in self.model.keys.iter().enumerate() {
            let listed = self.redis.streams_of(key.path.partition()).await.unwrap();
            let listed: Vec<_> = listed.iter().filter(|stream| stream.path == key.path).collect();
            let held = self.model.held[path].as_ref();
            prop_assert_eq!(listed.len(), usize::from(held.is_some()));
            if let (Some(stream), Some(held)) = (listed.first(), held) {
                prop_assert_eq!((stream.id, stream.source.id), (held.stream, held.source));
                prop_assert_eq!(stream.state.word() == StreamStateWord::Live, held.live);
            }
            let events = self.redis.read_events(key.path.partition(), 100_000).await.unwrap();
            prop_assert!(events.unreadable.is_empty());
            let mut last_epoch = None;
            for event in events.events.iter().filter(|event| event.stream.path == key.path) {
                prop_assert!(last_epoch <= Some(event.stream.epoch), "epochs never go back");
                last_epoch = Some(event.stream.epoch);
                let entry = told.entry(event.stream.id.0).or_default();
                entry.0 += u32::from(event.kind == EventKind::Admitted);
                if let StreamState::Ended { reason, .. } = event.stream.state {
                    prop_assert_eq!(entry.1.replace(reason), None, "one end event");
                }
            }
        }
        let told: BTreeMap<_, _> = told
            .into_iter()
            .map(|(id, (admitted, ended))| {
                assert_eq!(admitted, 1, "one admission event");
                (id, ended)
            })
            .collect();
        prop_assert_eq!(&told, &self.model.admissions);
        Ok(())
    }
}

#[test]
fn whatever_happens_the_scripts_do_what_the_model_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_server, redis) = stores::redis().await;
        let mut runner = TestRunner::new(Config { cases: 1_500, failure_persistence: None, ..Config::default() });
        let steps = prop::collection::vec(step(), 1..60);
        for case in 0..1_500 {
            let mut tree = steps.new_tree(&mut runner).unwrap();
            if let Err(error) = play(&redis, &tree.current()).await {
                let (steps, error) = shrink(&redis, &mut tree, error).await;
                panic!("case {case}: {error}\nsteps: {steps:#?}");
            }
        }
    });
}

async fn play(redis: &Redis, steps: &[Step]) -> TestCaseResult {
    let mut world = World::new(redis).await;
    for step in steps {
        world.take(step).await?;
    }
    world.check().await
}

/// The shortest failing steps that proptest's simplification finds.
async fn shrink(
    redis: &Redis,
    tree: &mut impl proptest::strategy::ValueTree<Value = Vec<Step>>,
    mut error: TestCaseError,
) -> (Vec<Step>, TestCaseError) {
    let mut failing = tree.current();
    let mut goes_on = tree.simplify();
    while goes_on {
        goes_on = match play(redis, &tree.current()).await {
            Ok(()) => tree.complicate(),
            Err(next) => {
                failing = tree.current();
                error = next;
                tree.simplify()
            }
        };
    }
    (failing, error)
}
