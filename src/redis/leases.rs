//! Leases: which replica does a job that only one should do.

use uuid::Uuid;

use super::{Redis, RedisError, answer_parts, keys, script, unknown_word};

/// Grows with every change of a lease's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FencingToken(pub i64);

/// Who has a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// The caller.
    Held(FencingToken),
    /// Another replica.
    Other {
        /// How long it still runs if its holder falls silent.
        remaining_ms: u64,
    },
}

impl Redis {
    /// Takes or renews the lease `name` for `holder`, if no other replica has it. See `lua/lease.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer: then the lease must be taken for lost.
    pub async fn acquire_lease(&self, name: &str, holder: Uuid, ttl_ms: u64) -> Result<Lease, RedisError> {
        let arguments = vec![holder.to_string(), ttl_ms.to_string()];
        let (word, mut rest) = answer_parts(self.run(&script::LEASE, vec![keys::lease(name)], arguments).await?)?;
        let number = rest.next().and_then(|value| value.as_string()).and_then(|text| text.parse::<i64>().ok());
        match (word.as_str(), number) {
            ("held", Some(token)) => Ok(Lease::Held(FencingToken(token))),
            ("other", Some(remaining_ms)) => Ok(Lease::Other { remaining_ms: remaining_ms.try_into().unwrap_or(0) }),
            (word, _) => Err(unknown_word("lease", word)),
        }
    }

    /// Gives the lease back, if `holder` has it. See `lua/release.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer: then it runs out by itself.
    pub async fn release_lease(&self, name: &str, holder: Uuid) -> Result<(), RedisError> {
        let answer = self.run(&script::RELEASE, vec![keys::lease(name)], vec![holder.to_string()]).await?;
        match answer_parts(answer)?.0.as_str() {
            "released" | "other" => Ok(()),
            word => Err(unknown_word("release", word)),
        }
    }
}
