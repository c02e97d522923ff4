//! How busy the way to Redis is: its connections, and those who wait to be sent on them.

use fred::interfaces::ClientLike as _;

use super::Redis;

/// Over all servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pool {
    /// Connections that stand.
    pub connected: u64,
    /// How many there should be.
    pub max: u64,
    /// Admissions that wait because enough are under way.
    pub admissions_waiting: u64,
}

impl Redis {
    /// What is so now. Nobody is asked.
    #[must_use]
    pub fn pool(&self) -> Pool {
        let mut pool = Pool::default();
        for server in self.inner.servers.all() {
            for connection in server.all() {
                pool.connected += u64::from(connection.is_connected());
                pool.max += 1;
            }
            pool.admissions_waiting += server.batches.waiting() as u64;
        }
        pool
    }
}
