//! A future that is polled again only after it was called itself, whatever else its task was called for.
//!
//! A connection's task is polled several times for each request, and waits all the while for what may never come: the end of the process.
//! To poll that wait takes locks which all connections share.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

struct Call {
    has_come: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_come.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// What comes of `future`, polled as described in the module.
pub async fn seldom<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    // Like every future it is polled once before it has anybody to call.
    let call = Arc::new(Call { has_come: AtomicBool::new(true), task: AtomicWaker::new() });
    let waker = Waker::from(Arc::clone(&call));
    poll_fn(move |context| {
        // First, so that a call that comes now is either seen here or reaches the task.
        call.task.register(context.waker());
        if !call.has_come.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// How often `seldom` polls what it is given in three polls of its own, where that calls itself in each, and where it does not.
    fn polls_of_three(calls_itself: bool) -> usize {
        let mut polls = 0;
        let mut future = Box::pin(seldom(poll_fn(|context| {
            polls += 1;
            if calls_itself {
                context.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        })));
        for _ in 0..3 {
            assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(future);
        polls
    }

    #[test]
    fn it_is_polled_at_first_and_then_when_it_was_called() {
        assert_eq!((polls_of_three(false), polls_of_three(true)), (1, 3));
    }

    #[tokio::test]
    async fn its_call_reaches_the_task() {
        let (sent, received) = oneshot::channel();
        let (heard, said) = tokio::join!(seldom(received), async {
            tokio::task::yield_now().await;
            sent.send("said")
        });
        assert_eq!((heard, said), (Ok("said"), Ok(())));
    }
}
