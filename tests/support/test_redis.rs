//! The Redis of a test, in the form that `ONAIR_TEST_REDIS` asks for: `single` (which is meant where it is not set),
//! `cluster` or `sentinel`. The tests of behaviour are the same on all of them.

use onair::dev::servers::{PrivateRedis, RedisOptions};

use super::{
    raw_redis::Speaks,
    redis_cluster::{ClusterOptions, RedisCluster},
    redis_sentinels::{RedisSentinels, SentinelOptions},
};

const VARIABLE: &str = "ONAIR_TEST_REDIS";

/// How many times longer than alone a test may take that holds a time: those on a cluster run six at once, with seven
/// servers each, on the same processors.
pub fn crowd() -> u32 {
    if std::env::var(VARIABLE).is_ok_and(|form| form == "cluster") { 3 } else { 1 }
}

/// A Redis of whichever form.
#[allow(clippy::large_enum_variant, reason = "a test has one")]
pub enum TestRedis {
    Single(PrivateRedis),
    Cluster(RedisCluster),
    Sentinels(RedisSentinels),
}

impl From<PrivateRedis> for TestRedis {
    fn from(redis: PrivateRedis) -> Self {
        Self::Single(redis)
    }
}

impl TestRedis {
    /// One of the form that is asked for, of the test's own.
    pub async fn start() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Ok("cluster") => Self::Cluster(RedisCluster::start(ClusterOptions::calm()).await),
            Ok("sentinel") => Self::Sentinels(RedisSentinels::start(SentinelOptions::calm()).await),
            Err(_) | Ok("single") => {
                Self::Single(PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts"))
            }
            Ok(other) => panic!("{VARIABLE} is {other}: neither single, cluster nor sentinel"),
        }
    }

    /// Where it is, as Onair's configuration has it.
    pub fn url(&self) -> String {
        match self {
            Self::Single(redis) => redis.url(),
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinels(group) => group.url(),
        }
    }

    /// All its servers that hold something.
    pub fn servers(&self) -> &[PrivateRedis] {
        match self {
            Self::Single(redis) => std::slice::from_ref(redis),
            Self::Cluster(cluster) => cluster.servers(),
            Self::Sentinels(group) => group.stores(),
        }
    }

    /// The one server, where the test has asked for one.
    #[track_caller]
    pub fn single(&self) -> &PrivateRedis {
        match self {
            Self::Single(redis) => redis,
            Self::Cluster(_) | Self::Sentinels(_) => panic!("there are several"),
        }
    }

    /// Freezes all servers.
    pub fn suspend(&self) -> anyhow::Result<()> {
        self.servers().iter().try_for_each(PrivateRedis::suspend)
    }

    /// Ends what [`Self::suspend`] began.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.servers().iter().try_for_each(PrivateRedis::resume)
    }

    /// SIGKILL for all servers. Of sentinels, for the master alone: they would let nobody take its place otherwise.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Single(redis) => redis.kill().await?,
            Self::Cluster(cluster) => cluster.kill_all().await,
            Self::Sentinels(group) => group.store_mut(0).kill().await?,
        }
        Ok(())
    }

    /// Stops all servers that run, and starts them again.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Single(redis) => redis.restart().await?,
            Self::Cluster(cluster) => cluster.restart_all().await,
            Self::Sentinels(group) => group.store_mut(0).restart().await?,
        }
        Ok(())
    }
}

/// Where masters die and others take their place.
impl TestRedis {
    /// The servers that are masters now.
    pub async fn masters(&self) -> Vec<usize> {
        match self {
            Self::Single(_) => vec![0],
            Self::Cluster(cluster) => cluster.masters().await,
            Self::Sentinels(group) => vec![group.master().await],
        }
    }

    /// The server that is the master of a key now.
    pub async fn master_of(&self, key: &str) -> usize {
        match self {
            Self::Single(_) => 0,
            Self::Cluster(cluster) => cluster.master_of(key).await,
            Self::Sentinels(group) => group.master().await,
        }
    }

    /// Waits until everybody who may say who the master is agrees that this server is none. One that is started again before
    /// that, and holds nothing, would take the others' memory.
    pub async fn until_replaced(&self, server: usize) {
        match self {
            Self::Single(_) => {}
            Self::Cluster(cluster) => cluster.until_replaced(server).await,
            Self::Sentinels(group) => group.until_replaced(server).await,
        }
    }

    pub fn server_mut(&mut self, server: usize) -> &mut PrivateRedis {
        match self {
            Self::Single(redis) => redis,
            Self::Cluster(cluster) => cluster.server_mut(server),
            Self::Sentinels(group) => group.store_mut(server),
        }
    }

    /// Waits until every server is there and has caught up.
    pub async fn until_whole(&self) {
        match self {
            Self::Single(_) => {}
            Self::Cluster(cluster) => cluster.until_whole().await,
            Self::Sentinels(group) => group.until_whole().await,
        }
    }
}

impl Speaks for TestRedis {
    async fn addresses(&self, words: &[&str]) -> Vec<String> {
        match self {
            Self::Single(redis) => redis.addresses(words).await,
            Self::Cluster(cluster) => cluster.addresses(words).await,
            Self::Sentinels(group) => vec![group.stores()[group.master().await].url()],
        }
    }
}

impl Speaks for RedisCluster {
    /// The master of the key, or every master where the command has none.
    async fn addresses(&self, words: &[&str]) -> Vec<String> {
        let servers = if let Some(key) = words.get(1).filter(|word| word.starts_with("onair:") && !word.contains('*')) {
            vec![self.master_of(key).await]
        } else {
            self.masters().await
        };
        servers.into_iter().map(|server| self.servers()[server].url()).collect()
    }
}
