//! What the replicas of Onair hold open, each a process of its own, and whether it grows with the deaths of masters.

use std::fmt;

use super::support::{measured::say, raw_redis, service::Service, test_redis::TestRedis};

/// How many more than before the first death there may be of each, over both replicas: publishers come and go, and the
/// connections to Postgres and the nodes with them.
const MORE_MAX: usize = 40;
/// The same of the connections to all servers of Redis.
const MORE_CONNECTIONS_MAX: usize = 12;
/// Of how many sources the last words may be kept: of all who left in the last ten seconds, and in a failover.
const LAST_WORDS_MAX: usize = 400;
/// From so many deaths on, the memory is judged by its course and not by its ends.
const COURSE_MIN: usize = 12;

/// Of all replicas together.
#[derive(Clone, Debug)]
pub struct Resources {
    tasks: usize,
    files: usize,
    sockets: usize,
    redis_connections: usize,
    /// Which they keep in Redis, and read every second.
    last_words: usize,
    /// What they have asked the kernel for and written to; not their program, which is larger without optimisation.
    memory_kib: u64,
}

impl Resources {
    pub async fn taken(services: &[Service], redis: &TestRedis) -> Self {
        let mut taken = Self { tasks: 0, files: 0, sockets: 0, redis_connections: 0, last_words: 0, memory_kib: 0 };
        for (number, service) in services.iter().enumerate() {
            let key = format!("onair:progress:edge-{number}");
            taken.last_words += raw_redis::command::<usize>(redis, &["HLEN", &key]).await;
            taken.tasks += tasks(service).await;
            let (files, sockets) = files(service.pid());
            taken.files += files;
            taken.sockets += sockets;
            taken.memory_kib += memory_kib(service.pid());
        }
        for server in redis.servers() {
            let clients: String = raw_redis::command(server, &["CLIENT", "LIST", "TYPE", "NORMAL"]).await;
            // But for the one that asks.
            taken.redis_connections += clients.lines().count() - 1;
        }
        taken
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tasks, files, sockets, redis_connections, last_words, memory_kib } = self;
        write!(
            formatter,
            "{tasks} tasks, {files} files, {sockets} of them sockets, {redis_connections} connections to Redis, \
             last words of {last_words} sources, {memory_kib} KiB"
        )
    }
}

/// What they held before the first death, and after each.
pub struct Course {
    form: String,
    before: Resources,
    after: Vec<Resources>,
}

impl Course {
    pub fn begin(form: &str, before: Resources) -> Self {
        say(&format!("{form}, before: {before}"));
        Self { form: form.to_owned(), before, after: Vec::new() }
    }

    /// Notes what they hold after one more death.
    pub fn note(&mut self, now: Resources) {
        say(&format!("{}, after {} deaths: {now}", self.form, self.after.len() + 1));
        let Self { form, before, .. } = self;
        assert!(now.tasks <= before.tasks + MORE_MAX, "{form}: tasks grow: {before} and now {now}");
        assert!(now.files <= before.files + MORE_MAX, "{form}: open files grow: {before} and now {now}");
        let most = before.redis_connections + MORE_CONNECTIONS_MAX;
        assert!(now.redis_connections <= most, "{form}: connections to Redis grow: {before} and now {now}");
        assert!(now.last_words <= LAST_WORDS_MAX, "{form}: last words grow: {before} and now {now}");
        self.after.push(now);
    }

    /// Fails where their memory grows. In the first quarter it does: buffers and look-up tables are made once, and the
    /// allocator takes what it keeps.
    pub fn assert_steady(&self) {
        let form = &self.form;
        let deaths = self.after.len();
        let median = |part: &[Resources]| {
            let mut sizes: Vec<u64> = part.iter().map(|resources| resources.memory_kib).collect();
            sizes.sort_unstable();
            sizes[sizes.len() / 2]
        };
        let (early, late, more_max) = if deaths >= COURSE_MIN {
            let quarter = deaths / 4;
            (median(&self.after[quarter..2 * quarter]), median(&self.after[deaths - quarter..]), 2_048)
        } else {
            (self.after[0].memory_kib, self.after[deaths - 1].memory_kib, 8_192)
        };
        say(&format!("{form}: memory of the replicas: {early} KiB early, {late} KiB late"));
        assert!(late <= early + more_max, "{form}: memory grows: {early} KiB early and {late} KiB late");
    }
}

async fn tasks(service: &Service) -> usize {
    let metrics = reqwest::get(format!("{}/metrics", service.url())).await.expect("it answers");
    let text = metrics.text().await.expect("the body arrives");
    let count = text.lines().find_map(|line| line.strip_prefix("onair_runtime_tasks "));
    count.and_then(|count| count.parse().ok()).expect("it counts its tasks")
}

/// All that are open, and how many of them are sockets.
fn files(pid: u32) -> (usize, usize) {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("this needs Linux's /proc");
    // One may be closed while it is looked at.
    let targets: Vec<_> = open.flatten().filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
    let sockets = targets.iter().filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    (targets.len(), sockets)
}

fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("this needs Linux's /proc");
    let size = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next());
    size.and_then(|text| text.parse().ok()).expect("a size")
}
