//! The slot of a partition is moved to another master of a cluster, key by key, while publishers are on air in it and others
//! come and go, as `redis-cli --cluster reshard` does it.

mod support;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use onair::{dev::servers::PrivateRedis, domain::StreamPath};
use support::{
    hammer::Hammer,
    measured::{RIGHT_WITHIN, say, soon, sources_on},
    mediamtx::{MediaMtx, PublishOutcome, Publisher},
    raw_redis,
    redis_cluster::{ClusterOptions, RedisCluster},
    stack::{Replica, Stack, TestKey},
    stores::until,
    test_redis::TestRedis,
};
use tokio::task::JoinSet;

const HELD: usize = 6;
/// Each on a path of its own, one after the other.
const PASSING: usize = 3;
/// Between two keys. A real migration takes some ten at once.
const PAUSE: Duration = Duration::from_millis(10);

/// A slot of the cluster on its way.
struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: usize,
    to: usize,
}

impl<'a> Move<'a> {
    async fn of(cluster: &'a RedisCluster, key: &str) -> Self {
        let slot = fred::util::redis_keyslot(key.as_bytes()).to_string();
        let from = cluster.master_of(key).await;
        Self { cluster, slot, from, to: (from + 1) % cluster.servers().len() }
    }

    fn server(&self, number: usize) -> &PrivateRedis {
        &self.cluster.servers()[number]
    }

    async fn set_slot(&self, at: usize, word: &str, about: usize) {
        let id: String = raw_redis::command(self.server(about), &["CLUSTER", "MYID"]).await;
        let words = ["CLUSTER", "SETSLOT", &self.slot, word, &id];
        let _: String = raw_redis::command(self.server(at), &words).await;
    }

    async fn begin(&self) {
        self.set_slot(self.to, "IMPORTING", self.from).await;
        self.set_slot(self.from, "MIGRATING", self.to).await;
    }

    /// Moves what is there, key by key. Gives how many keys those were.
    async fn keys(&self) -> usize {
        let target = self.server(self.to).url();
        let (password, address) = target.trim_start_matches("redis://:").rsplit_once('@').expect("it has a password");
        let (host, port) = address.rsplit_once(':').expect("it has a port");
        let mut moved = 0;
        loop {
            let keys: Vec<String> =
                raw_redis::command(self.server(self.from), &["CLUSTER", "GETKEYSINSLOT", &self.slot, "100"]).await;
            if keys.is_empty() {
                return moved;
            }
            for key in keys {
                let words = ["MIGRATE", host, port, "", "0", "5000", "AUTH", password, "KEYS", &key];
                let _: String = raw_redis::command(self.server(self.from), &words).await;
                moved += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn end(&self) {
        for at in [self.to, self.from].into_iter().chain(0..self.cluster.servers().len()) {
            self.set_slot(at, "NODE", self.to).await;
        }
    }
}

/// When somebody was answered, and why they were refused, if they were.
type Answer = (Instant, Result<(), String>);

/// Who came and went on some paths.
struct Passing {
    tasks: JoinSet<()>,
    answers: Arc<Mutex<Vec<Answer>>>,
    stopping: Arc<AtomicBool>,
}

impl Passing {
    fn start(node: &Arc<MediaMtx>, keys: &[TestKey]) -> Self {
        let (answers, stopping) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for key in keys {
            let key = key.clone();
            let (node, answers, stopping) = (Arc::clone(node), Arc::clone(&answers), Arc::clone(&stopping));
            tasks.spawn(async move {
                while !stopping.load(Ordering::Relaxed) {
                    let outcome = node.publish(key.publisher()).await;
                    let answer = match &outcome {
                        PublishOutcome::Admitted(_) => Ok(()),
                        PublishOutcome::Refused(answer) => Err(answer.body.clone()),
                    };
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), answer));
                    if let PublishOutcome::Admitted(publisher) = outcome {
                        publisher.disconnect();
                        publisher.until_gone().await;
                    }
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
            });
        }
        Self { tasks, answers, stopping }
    }

    async fn stop(mut self) -> Vec<Answer> {
        self.stopping.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Some paths of one partition, by a name that no other test part uses.
fn paths_like(name: &str, first: &StreamPath, count: usize) -> Vec<String> {
    let all = (0..).map(|number| format!("{name}/{number}"));
    all.filter(|path| path.parse::<StreamPath>().unwrap().partition() == first.partition()).take(count).collect()
}

async fn keys(replica: &Replica, paths: &[String]) -> Vec<TestKey> {
    join_all(paths.iter().map(|path| replica.key(path))).await
}

async fn publish(node: &Arc<MediaMtx>, keys: &[TestKey]) -> Vec<Publisher> {
    let mut publishers = Vec::new();
    for key in keys {
        publishers.push(node.publish(key.publisher()).await.admitted());
    }
    publishers
}

async fn list_is_right(replica: &Replica, node: &Arc<MediaMtx>) -> bool {
    let view = replica.app.streams.view().await;
    view.is_ok_and(|view| view.stale.is_none()) && replica.listed_sources().await == sources_on(&[node])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_moves_to_another_master_admits_nobody_meanwhile_and_loses_nothing() {
    let cluster = RedisCluster::start(ClusterOptions::calm()).await;
    let stack = Stack::start_on(TestRedis::Cluster(cluster), |config| config.admission.failures_burst = 100_000).await;
    let TestRedis::Cluster(cluster) = &stack.redis else { unreachable!("it was made above") };
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let first: StreamPath = "held/0".parse().unwrap();
    let held = keys(&replica, &paths_like("held", &first, HELD)).await;
    let passing = keys(&replica, &paths_like("passing", &first, PASSING)).await;
    let publishers = publish(&node, &held).await;
    soon("everybody is on air", async || list_is_right(&replica, &node).await).await;
    let moving = Move::of(cluster, &format!("onair:{{{:02}}}:version", first.partition().index())).await;

    let at_held_paths = Hammer::start(&[&replica], "edge-1", &held);
    let comers = Passing::start(&node, &passing);
    until("others come and go", async || {
        comers.answers.lock().unwrap_or_else(PoisonError::into_inner).len() >= passing.len()
    })
    .await;
    let began = Instant::now();
    moving.begin().await;
    let (mut stale, mut lists, mut lacking) = (0, 0, Vec::new());
    let moved = tokio::select! {
        moved = moving.keys() => moved,
        () = async {
            loop {
                let list = replica.api.get("/v1/streams").await.expect(200);
                lists += 1;
                stale += u32::from(list.json["stale"] == true);
                let listed = list.json["items"].as_array().expect("a list").iter();
                if listed.filter(|stream| held.iter().any(|key| stream["path"] == key.path)).count() != HELD {
                    lacking.push(list.text);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => unreachable!("it asks on and on"),
    };
    moving.end().await;
    let ended = Instant::now();
    until("a publisher gets in on the new master", async || {
        let answers = comers.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().rev().take_while(|(at, _)| *at > ended).any(|(_, answer)| answer.is_ok())
    })
    .await;
    let new_master = &cluster.servers()[moving.to];
    let about_itself: String = raw_redis::command(new_master, &["INFO", "server"]).await;
    let memory = format!("onair:{{{:02}}}:memory", first.partition().index());
    until("the partition was looked at where it is now, and opened there", async || {
        let opened_by: Option<String> = raw_redis::command(new_master, &["HGET", &memory, "server"]).await;
        opened_by.is_some_and(|server| about_itself.contains(&format!("run_id:{server}")))
    })
    .await;
    soon("the list is right", async || list_is_right(&replica, &node).await).await;
    let answers = comers.stop().await;
    let attempts = at_held_paths.stop().await;

    let refused: Vec<_> = answers.iter().filter_map(|(at, answer)| Some((*at, answer.as_ref().err()?))).collect();
    let longest = longest_refusal(&answers, began);
    say(&format!(
        "resharding: {moved} keys in {:?}; {lists} lists meanwhile, {stale} of them stale; of {} who came {} were refused, for {longest:?} at \
         most; on held paths {:?}",
        ended - began,
        answers.len(),
        refused.len(),
        attempts.by_answer,
    ));
    assert_eq!(attempts.let_in, Vec::<String>::new(), "nobody is admitted beside another");
    assert!(publishers.iter().all(Publisher::is_online), "nobody on air was thrown off");
    assert_eq!(node.counts().kicked, Vec::<uuid::Uuid>::new());
    // Whoever comes again before it was heard that they left is told so; that takes no longer than being admitted may.
    let is_expected = |body: &str| body.contains("state_unavailable") || body.contains("key_in_use");
    assert!(refused.iter().all(|(_, body)| is_expected(body)), "{refused:?}");
    assert_eq!(lacking, Vec::<String>::new(), "what is on its way is listed, or was known before");
    assert!(longest <= (ended - began) + RIGHT_WITHIN, "{longest:?}");
    assert_eq!(cluster.master_of(&format!("onair:{{{:02}}}:version", first.partition().index())).await, moving.to);
    for publisher in &publishers {
        publisher.disconnect();
    }
    let admitted = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
    replica.until_recorded_all(HELD + admitted).await;
    replica.stop().await;
}

/// For how long nobody was admitted, the longest time.
fn longest_refusal(answers: &[Answer], began: Instant) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, began);
    for (at, _) in answers.iter().filter(|(at, answer)| answer.is_ok() && *at > began) {
        longest = longest.max(*at - last);
        last = *at;
    }
    longest
}
