//! The servers that `onair dev` and the tests start: that they work, and that nothing of them is left behind.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fred::prelude::{Builder, Client, ClientLike as _, Config, KeysInterface as _, ReconnectPolicy};
use onair::dev::servers::{
    ClaimedDirectory, Durability, Home, Listen, Persistence, PostgresOptions, PrivatePostgres, PrivateRedis,
    RedisOptions,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

/// Beyond the time that the servers have to stop.
const GONE_LIMIT: Duration = Duration::from_secs(40);

/// What [`a_process_that_others_start`] shall do, and where.
const HELPER_ROLE: &str = "ONAIR_TEST_HELPER_ROLE";
const HELPER_HOME: &str = "ONAIR_TEST_HELPER_HOME";

fn kept_redis(home: &Path) -> RedisOptions {
    RedisOptions { home: Home::Kept(home.to_owned()), persistence: Persistence::AppendOnly, listen: Listen::UnixSocket }
}

fn kept_postgres(home: &Path) -> PostgresOptions {
    PostgresOptions { home: Home::Kept(home.to_owned()), durability: Durability::Fast, listen: Listen::UnixSocket }
}

async fn redis_client(url: &str) -> Client {
    let client = Builder::from_config(Config::from_url(url).expect("fred reads the URL"))
        .set_policy(ReconnectPolicy::new_constant(1, 0))
        .build()
        .expect("a client");
    client.init().await.expect("Redis lets us in");
    client
}

async fn set(redis: &PrivateRedis, key: &str, value: &str) {
    let client = redis_client(&redis.url()).await;
    client.set::<(), _, _>(key, value, None, None, false).await.expect("SET");
    client.quit().await.expect("QUIT");
}

async fn get(redis: &PrivateRedis, key: &str) -> Option<String> {
    let client = redis_client(&redis.url()).await;
    let value = client.get(key).await.expect("GET");
    client.quit().await.expect("QUIT");
    value
}

async fn execute(url: &str, statement: &'static str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL lets us in");
    sqlx::query(statement).execute(&mut connection).await.expect(statement);
    connection.close().await.expect("it says goodbye");
}

async fn count(url: &str, query: &'static str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL lets us in");
    let count = sqlx::query_scalar(query).fetch_one(&mut connection).await.expect(query);
    connection.close().await.expect("it says goodbye");
    count
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("process numbers are small")).expect("not zero")
}

fn is_running(number: u32) -> bool {
    // A zombie has ended; who waits for it is another matter.
    test_kill_process(pid(number)).is_ok()
        && std::fs::read_to_string(format!("/proc/{number}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Every process that mentions the path in its arguments or has it as its directory, beside ourselves.
fn processes_of(path: &Path) -> Vec<u32> {
    let ours = std::process::id();
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number != ours && is_running(*number))
        .filter(|number| {
            let arguments = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            let directory = std::fs::read_link(format!("/proc/{number}/cwd")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&*path.to_string_lossy()) || directory.starts_with(path)
        })
        .collect()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(GONE_LIMIT, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn runtime_of(home: &Path, server: &str) -> PathBuf {
    std::fs::read_link(home.join(format!("{server}.run"))).expect("the home says where the sockets are")
}

#[tokio::test]
async fn redis_answers_and_stopping_it_leaves_nothing() {
    let redis = PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts");
    set(&redis, "greeting", "hello").await;
    assert_eq!(get(&redis, "greeting").await.as_deref(), Some("hello"));

    let number = redis.pid().expect("it runs");
    let url = redis.url();
    let runtime =
        Path::new(url.strip_prefix("redis+unix://").expect("a socket")).parent().expect("in a directory").to_owned();
    assert!(runtime.exists());
    redis.stop().await.expect("it stops");
    assert!(!is_running(number));
    until("no directory is left", || !runtime.exists()).await;
    until("no guard is left", || processes_of(&runtime).is_empty()).await;
}

#[tokio::test]
async fn postgres_answers_and_stopping_it_leaves_nothing() {
    let home = TempDir::new().expect("a directory");
    let postgres = PrivatePostgres::start(kept_postgres(home.path())).await.expect("PostgreSQL starts");
    execute(&postgres.url(), "CREATE TABLE greetings (word text)").await;
    let other = postgres.create_database("other").await.expect("another database");
    execute(&other, "CREATE TABLE greetings (word text)").await;
    postgres.create_database("other").await.expect("it may be there already");

    let number = postgres.pid().expect("it runs");
    let runtime = runtime_of(home.path(), "postgres");
    let client = PgConnection::connect(&postgres.url()).await.expect("a client");
    postgres.stop().await.expect("it waits for no client");
    drop(client);
    assert!(!is_running(number));
    assert!(!runtime.exists());
    until("no process is left", || processes_of(&runtime).is_empty() && processes_of(home.path()).is_empty()).await;
}

#[tokio::test]
async fn a_redis_that_persists_remembers_after_a_stop_and_after_a_restart() {
    let home = TempDir::new().expect("a directory");
    let mut redis = PrivateRedis::start(kept_redis(home.path())).await.expect("Redis starts");
    set(&redis, "first", "kept").await;
    let url = redis.url();
    redis.restart().await.expect("it starts again");
    assert_eq!(redis.url(), url);
    assert_eq!(get(&redis, "first").await.as_deref(), Some("kept"));
    redis.stop().await.expect("it stops");

    let redis = PrivateRedis::start(kept_redis(home.path())).await.expect("it starts anew");
    assert_eq!(get(&redis, "first").await.as_deref(), Some("kept"));
    redis.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_redis_without_persistence_forgets() {
    let mut redis = PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts");
    set(&redis, "first", "forgotten").await;
    redis.kill().await.expect("it is gone");
    assert_eq!(redis.pid(), None);
    redis.restart().await.expect("it starts again");
    assert_eq!(get(&redis, "first").await, None);
}

#[tokio::test]
async fn postgres_remembers_after_a_kill_and_after_a_stop() {
    let home = TempDir::new().expect("a directory");
    let options = PostgresOptions { durability: Durability::Durable, ..kept_postgres(home.path()) };
    let mut postgres = PrivatePostgres::start(options).await.expect("PostgreSQL starts");
    execute(&postgres.url(), "CREATE TABLE kept AS SELECT 1 AS one").await;
    let url = postgres.url();
    postgres.kill().await.expect("it is gone");
    until("no process is left", || processes_of(home.path()).is_empty()).await;
    postgres.restart().await.expect("it starts again");
    assert_eq!(postgres.url(), url);
    assert_eq!(count(&url, "SELECT count(*) FROM kept").await, 1);
    postgres.stop().await.expect("it stops");

    let postgres = PrivatePostgres::start(kept_postgres(home.path())).await.expect("it starts anew");
    assert_eq!(count(&postgres.url(), "SELECT count(*) FROM kept").await, 1);
    postgres.stop().await.expect("it stops");
}

#[tokio::test]
async fn two_of_each_run_side_by_side() {
    let (first, second) =
        tokio::try_join!(PrivateRedis::start(RedisOptions::scratch()), PrivateRedis::start(RedisOptions::scratch()),)
            .expect("both start");
    set(&first, "whose", "the first's").await;
    assert_eq!(get(&second, "whose").await, None);

    let (first, second) = tokio::try_join!(
        PrivatePostgres::start(PostgresOptions::scratch()),
        PrivatePostgres::start(PostgresOptions::scratch()),
    )
    .expect("both start");
    execute(&first.url(), "CREATE TABLE whose (it text)").await;
    execute(&second.url(), "CREATE TABLE whose (it text)").await;
}

#[tokio::test]
async fn a_home_under_a_long_odd_path_that_only_we_can_enter_serves() {
    let top = TempDir::new().expect("a directory");
    let home = top.path().join("it's a \"home\" with blanks \\ and a % sign").join("x".repeat(150));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home).expect("the home");
    let redis = PrivateRedis::start(kept_redis(&home.join("redis"))).await.expect("Redis starts");
    set(&redis, "greeting", "hello").await;
    redis.stop().await.expect("it stops");
    let postgres = PrivatePostgres::start(kept_postgres(&home.join("postgres"))).await.expect("PostgreSQL starts");
    execute(&postgres.url(), "SELECT 1").await;
    postgres.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_loopback_port_asks_for_the_password() {
    let listen = Listen::LoopbackPort(None);
    let mut redis =
        PrivateRedis::start(RedisOptions { listen, ..RedisOptions::scratch() }).await.expect("Redis starts");
    set(&redis, "greeting", "hello").await;
    let port = redis.port().expect("a port");
    assert!(redis.url().ends_with(&format!("@127.0.0.1:{port}")));
    redis.restart().await.expect("it starts again");
    assert_eq!(redis.port(), Some(port));
    let stranger = Builder::from_config(Config::from_url(&format!("redis://127.0.0.1:{port}")).expect("a URL"))
        .set_policy(ReconnectPolicy::new_constant(1, 0))
        .build()
        .expect("a client");
    let refused = match stranger.init().await {
        Ok(_) => stranger.get::<Option<String>, _>("greeting").await.err(),
        Err(error) => Some(error),
    };
    assert!(refused.is_some());

    let mut postgres = PrivatePostgres::start(PostgresOptions { listen, ..PostgresOptions::scratch() })
        .await
        .expect("PostgreSQL starts");
    postgres.restart().await.expect("it starts again");
    execute(&postgres.url(), "SELECT 1").await;
    let port = postgres.port().expect("a port");
    let strange_url = format!("postgres://onair:guess@127.0.0.1:{port}/onair");
    assert!(PgConnection::connect(&strange_url).await.is_err());
    assert!(!format!("{redis:?} {postgres:?}").contains(&password_of(&postgres.url())), "no password shows");
}

fn password_of(url: &str) -> String {
    let (credentials, _) = url.split_once('@').expect("credentials");
    credentials.rsplit_once(':').expect("a password").1.to_owned()
}

#[tokio::test]
async fn a_suspended_server_is_silent_until_it_is_resumed() {
    let redis = PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts");
    let client = redis_client(&redis.url()).await;
    redis.suspend().expect("it freezes");
    let answer = tokio::time::timeout(Duration::from_millis(300), client.ping::<String>(None));
    assert!(answer.await.is_err());
    redis.resume().expect("it thaws");
    client.ping::<String>(None).await.expect("it answers");

    let postgres = PrivatePostgres::start(PostgresOptions::scratch()).await.expect("PostgreSQL starts");
    let mut connection = PgConnection::connect(&postgres.url()).await.expect("a connection");
    postgres.suspend().expect("it freezes");
    let answer = tokio::time::timeout(Duration::from_millis(300), connection.ping());
    assert!(answer.await.is_err());
    postgres.resume().expect("it thaws");
    execute(&postgres.url(), "SELECT 1").await;

    redis.suspend().expect("it freezes");
    postgres.suspend().expect("it freezes");
    redis.stop().await.expect("a frozen one stops, too");
    postgres.stop().await.expect("a frozen one stops, too");
}

#[tokio::test]
async fn a_server_that_ends_by_itself_is_noticed_with_its_last_words() {
    let mut redis = PrivateRedis::start(RedisOptions::scratch()).await.expect("Redis starts");
    kill_process(pid(redis.pid().expect("it runs")), Signal::TERM).expect("a signal");
    let reason = format!("{:#}", redis.until_it_ends().await);
    assert!(reason.contains("redis has ended"), "{reason}");
    assert!(reason.contains("Redis is now ready to exit"), "{reason}");
    assert_eq!(redis.pid(), None);
    redis.restart().await.expect("it starts again");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let first = PrivateRedis::start(RedisOptions { listen: Listen::LoopbackPort(None), ..RedisOptions::scratch() })
        .await
        .expect("Redis starts");
    let second =
        PrivateRedis::start(RedisOptions { listen: Listen::LoopbackPort(first.port()), ..RedisOptions::scratch() })
            .await;
    let error = format!("{:#}", second.expect_err("the port is taken"));
    assert!(error.contains("redis does not start"), "{error}");
    assert!(error.contains("Address already in use"), "{error}");
}

#[tokio::test]
async fn a_home_waits_for_its_earlier_server_to_end() {
    let home = TempDir::new().expect("a directory");
    let first = PrivatePostgres::start(kept_postgres(home.path())).await.expect("PostgreSQL starts");
    execute(&first.url(), "CREATE TABLE kept AS SELECT 1 AS one").await;
    let (second, ()) = tokio::join!(PrivatePostgres::start(kept_postgres(home.path())), async {
        // As a crashed owner does, whose guard stops the server in its own time.
        drop(first);
    });
    let second = second.expect("the second starts when the first has ended");
    assert_eq!(count(&second.url(), "SELECT count(*) FROM kept").await, 1);
    second.stop().await.expect("it stops");
}

#[tokio::test]
async fn what_a_crash_of_the_machine_left_behind_is_cleared_away() {
    let home = TempDir::new().expect("a directory");
    let postgres = PrivatePostgres::start(kept_postgres(home.path())).await.expect("PostgreSQL starts");
    let runtime = runtime_of(home.path(), "postgres");
    postgres.stop().await.expect("it stops");

    std::fs::create_dir(&runtime).expect("the sockets of the day before");
    std::fs::write(runtime.join(".s.PGSQL.5432"), "").expect("a stale socket");
    std::fs::create_dir(home.path().join("data.unfinished")).expect("half an initdb");
    // A number that is in use again, by a process that PostgreSQL would take for its predecessor.
    let mut bystander = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a bystander");
    std::fs::write(home.path().join("data/postmaster.pid"), format!("{}\n", bystander.id())).expect("a stale number");
    let postgres = PrivatePostgres::start(kept_postgres(home.path())).await.expect("PostgreSQL starts");
    assert!(!runtime.exists());
    postgres.stop().await.expect("it stops");
    drop(bystander.stdin.take());
    bystander.wait().expect("the bystander is well");
}

#[tokio::test]
async fn dropping_a_server_stops_it() {
    let home = TempDir::new().expect("a directory");
    let redis = PrivateRedis::start(kept_redis(home.path())).await.expect("Redis starts");
    let number = redis.pid().expect("it runs");
    let runtime = runtime_of(home.path(), "redis");
    drop(redis);
    until("Redis has ended", || !is_running(number)).await;
    until("its directory is gone", || !runtime.exists()).await;
}

#[test]
fn a_data_directory_has_one_owner() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("data");
    let claimed = ClaimedDirectory::claim(&path).expect("it is free");
    let refusal = ClaimedDirectory::claim(&path).expect_err("it is taken");
    assert!(
        refusal.to_string().contains(&format!("in use by another Onair (process {})", std::process::id())),
        "{refusal}"
    );
    drop(claimed);
    ClaimedDirectory::claim(&path).expect("it is free again");
}

#[test]
fn a_data_directory_is_free_again_at_once_though_programs_are_being_started() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("data");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                Command::new("true").status().expect("a program runs");
            }
        });
        let refusals = (0..500).filter(|_| ClaimedDirectory::claim(&path).is_err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(refusals, 0, "claims of 500 that were refused");
    });
}

#[tokio::test]
async fn a_server_serves_tests_whose_runtimes_come_and_go() {
    let start = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(PrivateRedis::start(RedisOptions::scratch()))
    };
    let redis = std::thread::spawn(start).join().expect("it ends");
    let mut redis = redis.expect("Redis starts");
    set(&redis, "greeting", "hello").await;
    redis.restart().await.expect("it starts again");
    redis.stop().await.expect("it stops");
}

/// Not a test: what the tests below start, and do away with.
#[tokio::test]
async fn a_process_that_others_start() {
    let Ok(role) = std::env::var(HELPER_ROLE) else {
        return;
    };
    if role == "has_no_redis" {
        let error = PrivateRedis::start(RedisOptions::scratch()).await;
        println!("helper: {:#}", error.expect_err("there is none"));
        return;
    }
    let home = PathBuf::from(std::env::var_os(HELPER_HOME).expect("a home"));
    let redis = PrivateRedis::start(kept_redis(&home.join("redis"))).await.expect("Redis starts");
    let postgres = PrivatePostgres::start(kept_postgres(&home.join("postgres"))).await.expect("PostgreSQL starts");
    let scratch = PrivatePostgres::start(PostgresOptions::scratch()).await.expect("PostgreSQL starts");
    println!("helper: {:?} {:?}", redis.pid(), postgres.pid());
    println!("helper: {}", scratch.url());
    match role.as_str() {
        "panics" => panic!("as it was told"),
        "exits" => std::process::exit(0),
        _ => std::future::pending().await,
    }
}

fn start_helper(role: &str, home: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_process_that_others_start", "--nocapture"])
        .env(HELPER_ROLE, role)
        .env(HELPER_HOME, home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a helper")
}

/// What the helper says, line by line.
fn words_of(helper: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(helper.stdout.take().expect("a pipe"))
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| Some(line.split_once("helper: ")?.1.to_owned()))
}

async fn everything_ends_with_a_helper_that(role: &str) {
    let home = TempDir::new().expect("a directory");
    let mut helper = start_helper(role, home.path());
    let mut words = words_of(&mut helper);
    let numbers: Vec<u32> = words
        .next()
        .expect("it has started its servers")
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    assert_eq!(numbers.len(), 2);
    let scratch_url = words.next().expect("and says where");
    let scratch = PathBuf::from(scratch_url.rsplit_once('=').expect("a socket").1);
    if role == "waits" {
        assert!(numbers.iter().all(|number| is_running(*number)));
        assert!(scratch.exists());
        helper.kill().expect("SIGKILL");
    }
    helper.wait().expect("it has ended");

    until("the servers have ended", || numbers.iter().all(|number| !is_running(*number))).await;
    until("no directory is left", || !scratch.exists()).await;
    until("no process is left", || processes_of(&scratch).is_empty() && processes_of(home.path()).is_empty()).await;
    let log = std::fs::read_to_string(home.path().join("postgres/postgres.log")).expect("a log");
    assert!(log.contains("database system is shut down"), "{log}");
}

#[tokio::test]
async fn servers_end_when_their_owner_is_killed() {
    everything_ends_with_a_helper_that("waits").await;
}

#[tokio::test]
async fn servers_end_when_their_owner_panics() {
    everything_ends_with_a_helper_that("panics").await;
}

#[tokio::test]
async fn servers_end_when_their_owner_exits_without_a_word() {
    everything_ends_with_a_helper_that("exits").await;
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let empty = TempDir::new().expect("a directory");
    let mut helper = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_process_that_others_start", "--nocapture"])
        .env(HELPER_ROLE, "has_no_redis")
        .env("PATH", empty.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a helper");
    let words: Vec<String> = words_of(&mut helper).collect();
    helper.wait().expect("it has ended");
    assert_eq!(words, ["redis-server is not installed: apt-get install redis-server"]);
}
