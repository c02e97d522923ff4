//! How much memory Redis uses. One that is full refuses every admission, so this is watched.

use std::sync::Arc;

use fred::{interfaces::ClientLike, types::InfoKind};
use futures_util::future::try_join_all;

use super::{Connection, Redis, RedisError};

/// What Redis says of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// How much it uses.
    pub used_bytes: u64,
    /// Where it refuses to take more; 0 where it has no limit.
    pub max_bytes: u64,
}

impl Redis {
    /// Asks how much memory Redis uses; in a cluster, the server that is nearest to its limit.
    ///
    /// # Errors
    /// Where Redis gives no answer, or not that.
    pub async fn memory(&self) -> Result<Memory, RedisError> {
        let connections = self.inner.servers.each();
        let asking = connections.iter().map(|connection| self.memory_at(connection.as_ref()));
        let all = try_join_all(asking).await?;
        all.into_iter().max_by(Memory::fuller).ok_or(RedisError::Unavailable)
    }

    async fn memory_at(&self, connection: Result<&Arc<Connection>, &RedisError>) -> Result<Memory, RedisError> {
        let connection = connection.map_err(Clone::clone)?;
        let report: String = self.limited(connection, connection.info(Some(InfoKind::Memory))).await?;
        parse(&report).ok_or_else(|| RedisError::Protocol("INFO tells nothing of memory".to_owned()))
    }
}

impl Memory {
    /// Which of two is nearer to its limit, or larger where none has one.
    fn fuller(&self, other: &Self) -> std::cmp::Ordering {
        let limit = |one: &Self| u128::from(if one.max_bytes == 0 { u64::MAX } else { one.max_bytes });
        (u128::from(self.used_bytes) * limit(other)).cmp(&(u128::from(other.used_bytes) * limit(self)))
    }
}

fn parse(report: &str) -> Option<Memory> {
    let number = |name: &str| report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.parse().ok());
    Some(Memory { used_bytes: number("used_memory")?, max_bytes: number("maxmemory")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_found_among_those_of_similar_names() {
        let report = "# Memory\r\nused_memory_rss:9\r\nused_memory:1024\r\nmaxmemory_human:2K\r\nmaxmemory:2048\r\n";
        assert_eq!(parse(report), Some(Memory { used_bytes: 1_024, max_bytes: 2_048 }));
        assert_eq!(parse("# Memory\r\nused_memory_rss:9\r\n"), None);
    }
}
