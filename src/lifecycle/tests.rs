use super::*;

const SOON: Duration = Duration::from_secs(5);

fn failure(tasks: &Tasks) -> Option<TaskFailure> {
    tasks.shared.failure.get().cloned()
}

#[tokio::test]
async fn tasks_that_stop_when_told_end_without_complaint() {
    let tasks = Tasks::new();
    for _ in 0..3 {
        let stopping = tasks.stopping();
        tasks.spawn("obedient", async move {
            stopping.cancelled().await;
            Ok(())
        });
    }
    tasks.spawn_short("short", async {});
    let stopped = tasks.join(SOON).await;
    assert_eq!(stopped, Stopped::default());
    assert_eq!(stopped.into_result(), Ok(()));
}

#[tokio::test]
async fn a_task_that_fails_stops_all_others_and_is_named() {
    let tasks = Tasks::new();
    let stopping = tasks.stopping();
    tasks.spawn("obedient", async move {
        stopping.cancelled().await;
        Ok(())
    });
    tasks.spawn("frail", async { Err("no luck".into()) });
    tasks.stopping().cancelled().await;
    let error = tasks.join(SOON).await.into_result().unwrap_err();
    assert_eq!(error.to_string(), "task frail failed: no luck");
}

#[tokio::test]
async fn a_task_that_panics_stops_all_others_and_is_named() {
    let tasks = Tasks::new();
    tasks.spawn("clumsy", async { panic!("dropped it") });
    tasks.stopping().cancelled().await;
    let stopped = tasks.join(SOON).await;
    let cause = "panicked: dropped it".to_owned();
    assert_eq!(stopped.failure, Some(TaskFailure { task: "clumsy", cause }));
}

#[tokio::test]
async fn a_task_that_ends_by_itself_is_a_failure_unless_it_is_a_short_one() {
    let tasks = Tasks::new();
    tasks.spawn_short("short", async {});
    tasks.spawn_short("short and clumsy", async { panic!("dropped it") });
    tasks.shared.tracker.close();
    tasks.shared.tracker.wait().await;
    assert_eq!(failure(&tasks), None);
    tasks.shared.tracker.reopen();
    tasks.spawn("tired", async { Ok(()) });
    tasks.stopping().cancelled().await;
    assert_eq!(failure(&tasks).unwrap().task, "tired");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_stop_is_aborted_at_the_limit_and_reported() {
    let tasks = Tasks::new();
    tasks.spawn("deaf", std::future::pending());
    tasks.spawn_short("deaf connection", std::future::pending());
    let began = Instant::now();
    let stopped = tasks.join(Duration::from_secs(3)).await;
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(stopped.aborted, ["deaf", "deaf connection"]);
    assert_eq!(stopped.into_result().unwrap_err().to_string(), "had to be aborted: deaf, deaf connection");
}

#[tokio::test]
async fn a_signal_drains_then_stops_and_a_second_one_aborts() {
    let mut signals = Signals::catch().unwrap();
    let tasks = Tasks::new();
    tasks.spawn("deaf", std::future::pending());
    let raise = || {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT).unwrap();
    };
    let watched = tasks.clone();
    let watch = async move {
        raise();
        while !watched.is_draining() {
            tokio::task::yield_now().await;
        }
        assert!(!watched.stopping().is_cancelled());
        raise();
    };
    let hour = Duration::from_secs(3600);
    let (stopped, ()) = tokio::join!(tasks.supervise(&mut signals, hour, hour), watch);
    assert_eq!(stopped.aborted, ["deaf"]);
}

#[tokio::test(start_paused = true)]
async fn the_beat_begins_at_once_then_keeps_its_period_give_or_take_a_tenth() {
    let stopping = CancellationToken::new();
    let mut every = every(1000, &stopping);
    let began = Instant::now();
    assert!(every.beat().await);
    assert_eq!(began.elapsed(), Duration::ZERO);
    for _ in 0..20 {
        let last = Instant::now();
        assert!(every.beat().await);
        let waited_ms = last.elapsed().as_millis();
        assert!((900..=1101).contains(&waited_ms), "{waited_ms}");
    }
    stopping.cancel();
    assert!(!every.beat().await);
}

#[tokio::test(start_paused = true)]
async fn a_beat_comes_early_when_it_is_woken() {
    let mut every = every(60_000, &CancellationToken::new());
    let woken = Notify::new();
    assert!(every.beat_or_woken(&woken).await);
    woken.notify_one();
    let began = Instant::now();
    assert!(every.beat_or_woken(&woken).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
