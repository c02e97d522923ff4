//! How long a call may take.
//!
//! A call that nobody can decide in time is refused. A Redis that answers nobody is such a case. One that answers others, who
//! came before, is not: a refusal would only send the encoder to the end of the same queue, to cost as much again. So a call
//! that waits for Redis has its time again from each of the answers that Redis gives meanwhile, up to a limit of its own.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::config::AdmissionConfig;

/// How long one call may still take.
pub(super) struct Deadline {
    at: Instant,
    /// From Redis' last answer on.
    limit: Duration,
    /// It is put off no further than until then.
    last: Instant,
}

impl Deadline {
    /// For a call that begins now.
    pub(super) fn begin(config: &AdmissionConfig) -> Self {
        let now = Instant::now();
        let limit = Duration::from_millis(config.deadline_ms);
        Self { at: now + limit, limit, last: now + limit.max(Duration::from_millis(config.busy_deadline_ms)) }
    }

    /// What comes of `work`, unless it takes too long.
    pub(super) async fn keep<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.at, work).await.ok()
    }

    /// What comes of `work` that waits for Redis, unless it takes too long. `answered_at` tells when Redis answered somebody last.
    pub(super) async fn keep_with_redis<T>(
        &mut self,
        answered_at: impl Fn() -> Option<Instant>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let done = self.keep(work.as_mut()).await;
            if done.is_some() || !self.put_off(answered_at()) {
                return done;
            }
        }
    }

    fn put_off(&mut self, answered_at: Option<Instant>) -> bool {
        let later = answered_at.map(|at| (at + self.limit).min(self.last)).filter(|&later| later > self.at);
        self.at = later.unwrap_or(self.at);
        later.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline() -> Deadline {
        Deadline::begin(&AdmissionConfig { deadline_ms: 300, busy_deadline_ms: 1_000, ..AdmissionConfig::default() })
    }

    /// After how many milliseconds it gives up.
    async fn given_up(mut deadline: Deadline, answered_at: impl Fn() -> Option<Instant>) -> u128 {
        let began = Instant::now();
        assert!(deadline.keep_with_redis(answered_at, std::future::pending::<()>()).await.is_none());
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_redis_that_answers_nobody_gives_up_at_the_deadline() {
        let before = Instant::now();
        assert_eq!(given_up(deadline(), || None).await, 300);
        assert_eq!(given_up(deadline(), || Some(before)).await, 300, "an answer to somebody before it says nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_redis_that_answers_others_waits_longer_but_not_for_ever() {
        let began = Instant::now();
        assert_eq!(given_up(deadline(), || Some(Instant::now())).await, 1_000);
        let fell_silent = began + Duration::from_millis(1_000 + 250);
        assert_eq!(given_up(deadline(), || Some(fell_silent.min(Instant::now()))).await, 250 + 300);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_anything_else_gives_up_at_the_deadline() {
        let mut deadline = deadline();
        let work = tokio::time::sleep(Duration::from_millis(250));
        assert!(deadline.keep_with_redis(|| Some(Instant::now()), work).await.is_some());
        let began = Instant::now();
        assert!(deadline.keep(std::future::pending::<()>()).await.is_none());
        assert_eq!(began.elapsed().as_millis(), 50);
    }
}
