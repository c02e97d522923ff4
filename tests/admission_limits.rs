//! What an answer costs, how long it may take, and who is slowed down.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use onair::config::{Config, ConfigSecret};
use serde_json::{Value, json};
use support::{
    api_client::{Answer, ApiClient},
    faulty_stack::FaultyStack,
    mediamtx::{MediaMtx, PublishRequest},
    redis_monitor::RedisMonitor,
    stack::{Replica, Stack, TestKey, node_password},
    stopwatch::Stopwatch,
    stores::until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
};
use uuid::Uuid;

/// What the service promises, and what a busy machine may add to it before this test speaks of a broken promise.
const DEADLINE: Duration = Duration::from_millis(300);
const MARGIN: Duration = Duration::from_millis(200);

const BURST: u32 = 5;
/// By default.
const FORGIVEN_AFTER: Duration = Duration::from_secs(1);

struct Bench {
    stack: Stack,
    replica: Replica,
    caller: ApiClient,
}

impl Bench {
    /// For another connection each.
    async fn until_all_are_admitted(&self, keys: &[TestKey]) {
        for key in keys {
            until("the same key is admitted for another connection", async || {
                self.publish("192.0.2.1", &key.path, &key.secret).await.status == 204
            })
            .await;
        }
    }

    async fn until_one_was_taken_back(&self) {
        until("an admission was taken back", async || {
            let ended = self.replica.api.get("/v1/streams?state=ended&limit=1000").await.expect(200);
            ended.json["items"].as_array().unwrap().iter().any(|stream| stream["end_reason"] == "never_online")
        })
        .await;
    }

    /// A replica, and a node that exists only as a name: the test speaks for it.
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let stack = Stack::start_with(|config| {
            Stack::leave_nodes_alone(config);
            config.admission.failures_burst = BURST;
            change(config);
        })
        .await;
        Self::on(stack).await
    }

    async fn on(stack: Stack) -> Self {
        let replica = stack.replica().await;
        replica.add_node("edge-1").await;
        let caller = replica.api.as_node("edge-1", &node_password("edge-1"));
        Self { stack, replica, caller }
    }

    async fn publish(&self, address: &str, path: &str, secret: &str) -> Answer {
        self.caller.post("/v1/mediamtx/auth", &publisher(address, path, secret)).await
    }

    /// A call whose answer nobody waits for: hung up when it is dropped.
    async fn open_call(&self, body: Value) -> TcpStream {
        let body = body.to_string();
        let caller = STANDARD.encode(format!("edge-1:{}", node_password("edge-1")));
        let head = format!(
            "POST /v1/mediamtx/auth HTTP/1.1\r\nhost: onair\r\nauthorization: Basic {caller}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut connection = TcpStream::connect(self.replica.address).await.expect("it listens");
        connection.write_all(format!("{head}{body}").as_bytes()).await.expect("it reads");
        connection
    }

    async fn free(&self, path: &str) {
        let stream = self.replica.stream_on(path).await.expect("it is held");
        let details = self.replica.details(stream["id"].as_str().unwrap()).await;
        let gone = json!({"path": path, "source_type": "rtmpConn", "source_id": details["source"]["id"]});
        assert_eq!(self.caller.post("/v1/hooks/unpublish", &gone).await.expect(200).json["result"], "ended");
    }
}

fn publisher(address: &str, path: &str, secret: &str) -> Value {
    json!({"ip": address, "user": "", "password": "", "token": "", "action": "publish", "path": path,
        "protocol": "rtmp", "id": Uuid::new_v4(), "query": format!("key={secret}"), "userAgent": "an encoder"})
}

/// A key of the right form that nobody ever made.
fn guessed(number: u8) -> String {
    let mut draws = [number % 62; 28];
    draws[0] = 7;
    onair::domain::Secret::from_draws(draws).unwrap().reveal().to_owned()
}

/// One by one, with a Postgres this far away, they would take ten times as long as an auth call may.
#[tokio::test]
async fn who_presents_keys_that_nobody_made_is_told_so_together_with_all_others() {
    let FaultyStack { stack, postgres: _postgres, redis_line: _redis_line, postgres_line } =
        FaultyStack::start_with(|config| {
            Stack::leave_nodes_alone(config);
            config.admission.lookups_max = 2;
            config.admission.deadline_ms = 2_000;
            config.admission.busy_deadline_ms = 3_000;
        })
        .await;
    let bench = Bench::on(stack).await;
    postgres_line.slow(Duration::from_millis(100));
    // The first to come are asked for alone, the others together. Some hang up, one after the other, so that one does while it is
    // asked for together with others.
    let impatient = join_all((0..10).map(async |number| {
        let address = format!("198.51.100.{number}");
        let call = bench.open_call(publisher(&address, "live/guessed", &guessed(number))).await;
        tokio::time::sleep(Duration::from_millis(100) * u32::from(number)).await;
        drop(call);
    }));
    let patient = join_all(
        (10..60)
            .map(async |number| bench.publish(&format!("192.0.2.{number}"), "live/guessed", &guessed(number)).await),
    );
    let (_, told) = tokio::join!(impatient, patient);
    for told in told {
        told.expect_problem(401, "key_unknown");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_known_key_costs_one_script_and_nothing_else() {
    let bench = Bench::start(|_| ()).await;
    let keys: Vec<TestKey> = {
        let mut keys = Vec::new();
        for number in 0..10 {
            keys.push(bench.replica.key(&format!("live/counted-{number}")).await);
        }
        keys
    };
    // A Redis that was started a moment ago is sent the script itself, once.
    let first = bench.replica.key("live/first").await;
    bench.publish("192.0.2.1", &first.path, &first.secret).await.expect(204);
    let calls: Vec<Value> = keys.iter().map(|key| publisher("192.0.2.1", &key.path, &key.secret)).collect();
    let ask_all = async || {
        let monitors = join_all(bench.stack.redis.servers().iter().map(RedisMonitor::start)).await;
        for call in &calls {
            bench.caller.post("/v1/mediamtx/auth", call).await.expect(204);
        }
        let heard = join_all(monitors.iter().map(RedisMonitor::heard)).await.concat();
        // What the history does with the event afterwards names the partition, not the path.
        let about = |key: &TestKey| -> Vec<String> {
            heard.iter().filter(|line| line.contains(&key.path) && !line.contains("[0 lua]")).cloned().collect()
        };
        keys.iter().map(about).collect::<Vec<_>>()
    };
    for about_it in ask_all().await {
        let scripts = about_it.iter().filter(|line| line.contains("\"EVALSHA\"")).count();
        assert_eq!(scripts, 1, "{about_it:#?}");
    }
    // The view of what is on air reads what has changed whenever somebody looks at it, which is no part of the call: so the
    // same sources ask again, which changes nothing, once it has read all.
    assert_eq!(bench.replica.on_air().await.len(), keys.len() + 1);
    for about_it in ask_all().await {
        assert_eq!(about_it.len(), 1, "{about_it:#?}");
        assert!(about_it[0].contains("\"EVALSHA\""), "{about_it:#?}");
    }
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_known_key_is_admitted_without_postgres_and_without_the_nodes_control_api() {
    let mut stack = Stack::start().await;
    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let key = replica.key("live/ada").await;
    replica.stop().await;

    stack.config.postgres.url = ConfigSecret::new("postgres://onair@127.0.0.1:9/onair");
    stack.config.postgres.acquire_timeout_ms = 500;
    Stack::keep_the_promised_time(&mut stack.config);
    let replica = stack.replica().await;
    node.point_at(replica.auth_url("edge-1"), None);
    node.hang();
    let asked = Stopwatch::start();
    let publisher = node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await.admitted();
    assert!(asked.elapsed() < DEADLINE + MARGIN, "{:?}", asked.elapsed());
    assert_eq!(replica.stream_on(&key.path).await.unwrap()["state"], "connecting");
    assert!(publisher.is_online());

    // A key that Redis does not hold cannot be known: refused to be safe, in time.
    let asked = Stopwatch::start();
    let unknown = node.publish(PublishRequest::rtmp_query_key("live/bob", &guessed(1))).await.refused();
    assert!(asked.elapsed() < DEADLINE + MARGIN, "{:?}", asked.elapsed());
    assert!(unknown.status == Some(503) && unknown.body.contains("state_unavailable"), "{unknown:?}");
    node.reachable().await;
    replica.stop().await;
}

#[tokio::test]
async fn what_cannot_be_known_is_refused_in_time_and_leaves_no_path_blocked() {
    // With the defaults a single command gives up first; with a patient command the deadline of the whole call does.
    for command_timeout_ms in [200, 5_000] {
        let bench = Bench::start(|config| {
            Stack::keep_the_promised_time(config);
            config.redis.command_timeout_ms = command_timeout_ms;
        })
        .await;
        let mut keys = Vec::new();
        for number in 0..10 {
            keys.push(bench.replica.key(&format!("live/{number}")).await);
        }
        bench.publish("192.0.2.1", &keys[0].path, &keys[0].secret).await.expect(204);
        bench.free(&keys[0].path).await;

        bench.stack.redis.suspend().unwrap();
        let refused = keys.iter().map(async |key| {
            let asked = Stopwatch::start();
            let answer = bench.publish("192.0.2.1", &key.path, &key.secret).await;
            (asked.elapsed(), answer.expect_problem(503, "state_unavailable"))
        });
        for (took, answer) in futures_util::future::join_all(refused).await {
            assert!(took < DEADLINE + MARGIN, "{took:?} with a command timeout of {command_timeout_ms} ms");
            assert!(answer.headers.contains_key("retry-after"));
        }
        bench.stack.redis.resume().unwrap();

        // Whatever Redis did with the ten admissions once it woke up, and in whatever order, it is taken back long before
        // their deadline. Once, an admission that came behind its own revocation kept its path closed until then.
        let resumed = Stopwatch::start();
        bench.until_all_are_admitted(&keys).await;
        let took = resumed.elapsed();
        println!("command timeout {command_timeout_ms} ms: all admitted {took:?} after Redis woke");
        let limit = Duration::from_millis(bench.stack.config.admission.connecting_timeout_ms);
        assert!(took < limit / 2, "{took:?}");
        // It did carry out what its callers no longer waited for, or this test would show nothing.
        bench.until_one_was_taken_back().await;
        bench.replica.stop().await;
    }
}

/// The cause: only a call that ran into its deadline was taken back, and not one whose node had hung up before.
#[tokio::test]
async fn what_redis_decides_for_a_node_that_has_hung_up_is_taken_back() {
    let bench = Bench::start(|config| {
        (config.admission.deadline_ms, config.redis.command_timeout_ms) = (8_000, 7_000);
        // No deadline ends anything while this test runs.
        config.admission.connecting_timeout_ms = 120_000;
    })
    .await;
    let mut keys = Vec::new();
    for number in 0..10 {
        keys.push(bench.replica.key(&format!("live/{number}")).await);
    }
    bench.publish("192.0.2.1", &keys[0].path, &keys[0].secret).await.expect(204);
    bench.free(&keys[0].path).await;

    bench.stack.redis.suspend().unwrap();
    let calls = keys.iter().map(|key| bench.open_call(publisher("192.0.2.1", &key.path, &key.secret)));
    let calls = futures_util::future::join_all(calls).await;
    // So long a node waits that is killed, or whose network breaks: longer than a call takes to reach Redis.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(calls);
    bench.stack.redis.resume().unwrap();

    let resumed = Stopwatch::start();
    bench.until_all_are_admitted(&keys).await;
    let took = resumed.elapsed();
    println!("after ten calls that were hung up: all admitted {took:?} after Redis woke");
    bench.until_one_was_taken_back().await;
    bench.replica.stop().await;
}

/// A runtime that ends drops its tasks where they wait, and at once what they start meanwhile.
#[test]
fn a_runtime_that_ends_while_publishers_wait_just_ends() {
    const WAITING: usize = 40;
    let (stores, service) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let stack = stores.block_on(Stack::start_with(|config| {
        (config.admission.deadline_ms, config.redis.command_timeout_ms) = (20_000, 19_000);
    }));
    let (bench, keys) = service.block_on(async {
        let bench = Bench::on(stack).await;
        let paths: Vec<String> = (0..WAITING).map(|number| format!("live/{number}")).collect();
        let keys = join_all(paths.iter().map(|path| bench.replica.key(path))).await;
        (bench, keys)
    });
    bench.stack.redis.suspend().unwrap();
    let calls = keys.iter().map(|key| bench.open_call(publisher("192.0.2.1", &key.path, &key.secret)));
    let calls = stores.block_on(join_all(calls));
    std::thread::sleep(Duration::from_secs(1));
    service.shutdown_timeout(Duration::from_secs(10));
    for mut call in calls {
        let mut answer = Vec::new();
        let limit = Duration::from_secs(10);
        let read = stores.block_on(async { tokio::time::timeout(limit, call.read_to_end(&mut answer)).await });
        assert!(read.is_ok(), "the runtime has not ended");
        assert!(answer.is_empty(), "it did not wait: {}", String::from_utf8_lossy(&answer));
    }
    bench.stack.redis.resume().unwrap();
}

#[tokio::test]
async fn an_address_that_keeps_failing_is_refused_without_asking_redis() {
    let bench = Bench::start(|_| ()).await;
    let key = bench.replica.key("live/ada").await;
    let guesser = "203.0.113.7";
    for number in 0..u8::try_from(BURST).unwrap() {
        bench.publish(guesser, &key.path, &guessed(number)).await.expect_problem(401, "key_unknown");
    }
    // A slow machine takes so long for these that some are forgiven meanwhile.
    let mut failed_at = Instant::now();
    while bench.publish(guesser, &key.path, &guessed(99)).await.status == 401 {
        failed_at = Instant::now();
    }
    bench.stack.redis.suspend().unwrap();
    let mut slowed = 0;
    for number in 0..50 {
        let answer = bench.publish(guesser, &key.path, &guessed(number)).await;
        if failed_at.elapsed() >= FORGIVEN_AFTER {
            break;
        }
        let answer = answer.expect_problem(429, "too_many_failures");
        let retry_after: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=u64::from(BURST)).contains(&retry_after), "{retry_after}");
        slowed += 1;
    }
    assert!(slowed > 0, "not one in the time until the next is forgiven");
    // Redis really could not be asked: another address learns that.
    bench.publish("203.0.113.8", &key.path, &guessed(1)).await.expect_problem(503, "state_unavailable");
    bench.stack.redis.resume().unwrap();

    // It is slowed down, not shut out: one more attempt a second.
    let mut codes = Vec::new();
    until("it may try again", async || {
        let answer = bench.publish(guesser, &key.path, &guessed(99)).await;
        codes.push(answer.json["code"].as_str().unwrap_or_default().to_owned());
        codes.last().is_some_and(|code| code == "key_unknown")
    })
    .await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn behind_one_nat_a_broken_encoder_shuts_out_nobody_but_itself() {
    let bench = Bench::start(|_| ()).await;
    let nat = "203.0.113.50";
    let mut office = Vec::new();
    for number in 0..8 {
        office.push(bench.replica.key(&format!("office/{number}")).await);
    }
    let wrong = guessed(3);
    for key in &office {
        // The broken one never rests.
        for _ in 0..BURST {
            let refused = bench.publish(nat, "office/broken", &wrong).await;
            assert!(matches!(refused.status, 401 | 429), "{}", refused.text);
            bench.publish(nat, &key.path, &key.secret).await.expect(204);
            bench.free(&key.path).await;
        }
    }
    // Of so many in a row one is too many, also on a machine so slow that some are forgiven meanwhile.
    let mut in_a_row = Vec::new();
    for _ in 0..=BURST {
        in_a_row.push(bench.publish(nat, "office/broken", &wrong).await.status);
    }
    assert!(in_a_row.contains(&429), "{in_a_row:?}");
    // The others are not slowed either where the broken one changes its key now and then.
    for number in 0..u8::try_from(BURST).unwrap() * 4 {
        bench.publish(nat, "office/broken", &guessed(number)).await;
    }
    bench.publish(nat, &office[0].path, &office[0].secret).await.expect(204);
    bench.replica.stop().await;
}

#[tokio::test]
async fn a_busy_path_is_no_failure_however_often_an_encoder_tries() {
    let bench = Bench::start(|_| ()).await;
    let key = bench.replica.key("live/ada").await;
    bench.publish("203.0.113.1", &key.path, &key.secret).await.expect(204);
    // Another address, which has never admitted anybody: an encoder that reconnects from a new line.
    for _ in 0..BURST * 4 {
        bench.publish("203.0.113.2", &key.path, &key.secret).await.expect_problem(409, "key_in_use");
    }
    bench.free(&key.path).await;
    bench.publish("203.0.113.2", &key.path, &key.secret).await.expect(204);
    bench.replica.stop().await;
}

/// As `MediaMTX` asks: on a connection of its own for every call, one call after the other.
#[tokio::test]
async fn a_node_that_is_refused_while_redis_hangs_serves_its_next_client_at_once() {
    let stack = Stack::start_with(Stack::keep_the_promised_time).await;
    let replica = stack.replica().await;
    let node: Arc<MediaMtx> = replica.mediamtx("edge-1").await;
    let key = replica.key("live/ada").await;
    stack.redis.suspend().unwrap();
    let asked = Stopwatch::start();
    for _ in 0..5 {
        let refused = node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await.refused();
        assert_eq!(refused.status, Some(503), "{refused:?}");
    }
    assert!(asked.elapsed() < 5 * (DEADLINE + MARGIN), "{:?}", asked.elapsed());
    stack.redis.resume().unwrap();
    let mut publisher = None;
    until("it is admitted", async || {
        let outcome = node.publish(PublishRequest::rtmp_query_key(&key.path, &key.secret)).await;
        publisher = matches!(outcome, support::mediamtx::PublishOutcome::Admitted(_)).then_some(outcome);
        publisher.is_some()
    })
    .await;
    replica.until_live(&key.path).await;
    assert_eq!(replica.on_air().await.len(), 1);
    replica.stop().await;
}
