//! A future that is polled until it has settled: where it is called while it is being polled, it is polled again at once.
//!
//! hyper calls a connection's own task while that task hands the body of a request to its handler. tokio takes such a call for
//! one that is to wait behind others: it queues the task and wakes a second worker for it. So each auth call that came alone
//! went from one processor to another in the middle, where nothing of it was in the cache, and woke that processor just as
//! Redis needed it; `docs/performance.md` tells what that cost.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often it is polled in a row. One that still has not settled then waits behind others, as tokio would have it.
const POLLS_MAX: usize = 4;

/// Nothing is to be done.
const RESTING: u8 = 0;
/// It is being polled.
const POLLED: u8 = 1;
/// It was called since its last poll began.
const CALLED: u8 = 2;

#[derive(Default)]
struct Calls {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever polls it sees to a call by itself, and one call of a task that rests is enough.
        if self.state.swap(CALLED, Ordering::AcqRel) == RESTING {
            self.task.wake();
        }
    }
}

impl Calls {
    fn begin(&self) {
        self.state.swap(POLLED, Ordering::AcqRel);
    }

    /// Whether nobody has called since the poll began.
    fn rest(&self) -> bool {
        self.state.compare_exchange(POLLED, RESTING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// What comes of `future`, polled as described in the module.
pub async fn settled<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let calls = Arc::new(Calls::default());
    let waker = Waker::from(Arc::clone(&calls));
    poll_fn(move |context| {
        calls.task.register(context.waker());
        for _ in 0..POLLS_MAX {
            calls.begin();
            if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(done);
            }
            if calls.rest() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
pub(super) mod tests {
    use std::{pin::Pin, sync::atomic::AtomicUsize};

    use super::*;

    /// A task that counts how often it is called.
    #[derive(Default)]
    pub(in crate::http) struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Task {
        /// Polls a future as this task. How often the task was called meanwhile.
        pub(in crate::http) fn poll(self: &Arc<Self>, future: Pin<&mut impl Future>) -> usize {
            let before = self.calls();
            assert!(future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(self)))).is_pending());
            self.calls() - before
        }

        fn calls(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Polls once a future that calls itself in its first `calls` polls. Gives how often it was polled, how often its task was
    /// called meanwhile, and how often afterwards by two further calls.
    fn poll_once(calls: usize) -> (usize, usize, usize) {
        let task = Arc::new(Task::default());
        let (mut polls, mut of_future) = (0, None);
        let meanwhile = task.poll(pin!(settled(poll_fn(|context| {
            polls += 1;
            if polls <= calls {
                context.waker().wake_by_ref();
            }
            of_future = Some(context.waker().clone());
            Poll::<()>::Pending
        }))));
        let waker = of_future.expect("it was polled");
        waker.wake_by_ref();
        waker.wake();
        (polls, meanwhile, task.calls() - meanwhile)
    }

    #[test]
    fn who_is_not_called_meanwhile_is_polled_once_and_called_once_by_all_who_call() {
        assert_eq!(poll_once(0), (1, 0, 1));
    }

    #[test]
    fn who_calls_itself_is_polled_again_without_its_task_being_called() {
        assert_eq!(poll_once(1), (2, 0, 1));
        assert_eq!(poll_once(POLLS_MAX - 1), (POLLS_MAX, 0, 1));
    }

    #[test]
    fn who_does_not_settle_waits_behind_others() {
        assert_eq!(poll_once(usize::MAX), (POLLS_MAX, 1, 0));
    }

    #[tokio::test]
    async fn what_comes_of_it_is_passed_on() {
        let (sent, received) = tokio::sync::oneshot::channel();
        let (heard, said) = tokio::join!(settled(received), async { sent.send("said") });
        assert_eq!((heard, said), (Ok("said"), Ok(())));
    }
}
