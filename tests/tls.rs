//! The stores over TLS, with a certificate that an authority of our own vouches for; and a user of its own in Redis.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use onair::{
    config::ConfigSecret,
    dev::servers::{Listen, Membership, PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions, RedisRole},
    domain::StreamPath,
    postgres::PostgresError,
    redis::Redis,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::{
    api_client::ApiClient,
    measured::{say, soon},
    mediamtx::PublishOutcome,
    redis_cluster::{ClusterOptions, RedisCluster},
    redis_sentinels::{RedisSentinels, SentinelOptions},
    service::Service,
    stack::{API_SECRET, Stack},
    stores::{AGREED_WITHIN, postgres_at, until, until_within},
    test_redis::TestRedis,
};
use tempfile::TempDir;

const USER: &str = "onair";
const WORD: &str = "the-password-of-the-user-onair";

fn openssl(directory: &Path, words: &str) {
    let output = Command::new("openssl").args(words.split_whitespace()).current_dir(directory).output();
    let output = output.expect("openssl is installed");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes `<name>.pem`, which vouches for others.
fn make_authority(directory: &Path, name: &str) -> PathBuf {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(directory, &format!("req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name}"));
    directory.join(format!("{name}.pem"))
}

/// Makes `server.pem`, for which the authority `name` vouches.
fn make_certificate(directory: &Path, name: &str) {
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(directory, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    let by = format!("-CA {name}.pem -CAkey {name}.key -CAcreateserial -days 2 -extfile names");
    openssl(directory, &format!("x509 -req -in server.csr {by} -out server.pem"));
}

/// A server's certificate, the authority that vouches for it, and another one; and where they are.
fn certificates() -> (TempDir, [PathBuf; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let authorities = ["ours", "another"].map(|name| make_authority(directory.path(), name));
    make_certificate(directory.path(), "ours");
    (directory, authorities)
}

/// The lines of a Redis' configuration.
fn redis_tls_settings(directory: &Path) -> String {
    let place = directory.display();
    format!(
        "tls-auth-clients no\ntls-ca-cert-file {place}/ours.pem\ntls-cert-file {place}/server.pem\n\
         tls-key-file {place}/server.key\n"
    )
}

/// A Redis that speaks TLS, with a user for Onair, and where it is.
async fn start_redis(directory: &Path) -> (PrivateRedis, u16) {
    let settings =
        format!("{}user {USER} on >{WORD} ~onair:* +@all -@admin -@dangerous +info", redis_tls_settings(directory));
    let role =
        RedisRole::Member(Membership { password: "of-nobody-else".to_owned(), settings, further_ports: &["tls-port"] });
    let redis = PrivateRedis::start_as(role, RedisOptions::scratch_at_port()).await.unwrap();
    let tls_port = redis.further_port("tls-port").unwrap();
    (redis, tls_port)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_over_tls_serves_publishers_whose_authority_is_named_and_nobody_else() {
    let (directory, [ours, another]) = certificates();
    let (redis, port) = start_redis(directory.path()).await;
    let url = |word: &str| ConfigSecret::new(format!("rediss://{USER}:{word}@127.0.0.1:{port}"));
    let stack = Stack::start_on(redis, |config| {
        config.redis.url = url(WORD);
        config.redis.ca_file = Some(ours.clone());
    })
    .await;

    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let key = replica.key("live/ada").await;
    let publisher = node.publish(key.publisher()).await.admitted();
    replica.until_live("live/ada").await;
    assert_eq!(replica.api.anonymous().get("/readyz").await.status, 200);
    assert!(publisher.is_online());
    replica.stop().await;

    for (what, word, ca_file, reason) in [
        ("another authority", WORD, Some(&another), "UnknownIssuer"),
        ("the system's authorities", WORD, None, "UnknownIssuer"),
        ("another password", "not-this-one", Some(&ours), "WRONGPASS"),
    ] {
        let mut config = stack.config.clone();
        config.redis.url = url(word);
        let ca_file = ca_file.map(|path| ("ONAIR_REDIS_CA_FILE", path.to_str().unwrap()));
        let service = Service::start(&config, ca_file.as_slice()).await;
        soon(&format!("{what}: the log says why"), async || {
            service.said().iter().any(|line| line.contains("Redis cannot be connected to") && line.contains(reason))
        })
        .await;
        let said = service.said().into_iter().find(|line| line.contains(reason)).unwrap();
        say(&format!("{what}: {said}"));
        assert!(service.said().iter().all(|line| !line.contains(word)), "no password in the log");
        let ready = ApiClient::connect(&service.url(), API_SECRET).await.anonymous().get("/readyz").await;
        assert_eq!((ready.status, ready.json["dependencies"]["redis"].as_str()), (503, Some("unavailable")));
    }
}

/// Publishers go on air on a Redis over TLS whose authority is `ours`; the master of one of them dies, and everything goes on.
async fn a_master_dies_over_tls(redis: TestRedis, [ours, another]: [PathBuf; 2]) {
    let mut stack = Stack::start_on(redis, |config| config.redis.ca_file = Some(ours)).await;
    let mut stranger = stack.config.redis.clone();
    stranger.ca_file = Some(another);
    let refused = Redis::connect(&stranger).await.unwrap().ping().await;
    assert!(refused.is_err(), "of another authority: {refused:?}");

    let replica = stack.replica().await;
    let node = replica.mediamtx("edge-1").await;
    let (mut keys, mut publishers) = (Vec::new(), Vec::new());
    for number in 0..12 {
        let key = replica.key(&format!("live/{number}")).await;
        publishers.push(node.publish(key.publisher()).await.admitted());
        keys.push(key);
    }
    let partition = "live/0".parse::<StreamPath>().unwrap().partition();
    let victim = stack.redis.master_of(&format!("onair:{{{partition}}}:version")).await;
    stack.redis.server_mut(victim).kill().await.unwrap();
    stack.redis.until_replaced(victim).await;

    until_within(AGREED_WITHIN, "all are listed again, and not as what was known before", async || {
        let listed = replica.api.get("/v1/streams?limit=100").await.json;
        listed["total"] == 12 && listed["stale"] == false
    })
    .await;
    publishers.remove(0).disconnect();
    until_within(AGREED_WITHIN, "the path of the master that died is free for its broadcaster again", async || {
        matches!(node.publish(keys[0].publisher()).await, PublishOutcome::Admitted(_))
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_over_tls_goes_on_when_a_replica_takes_the_place_of_a_master() {
    let (directory, authorities) = certificates();
    let settings = redis_tls_settings(directory.path());
    let cluster = RedisCluster::start_over_tls(ClusterOptions::failing_over(), &settings).await;
    a_master_dies_over_tls(TestRedis::Cluster(cluster), authorities).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_over_tls_are_believed_when_they_name_another_master() {
    let (directory, authorities) = certificates();
    let settings = redis_tls_settings(directory.path());
    let group = RedisSentinels::start_over_tls(SentinelOptions::failing_over(), &settings).await;
    a_master_dies_over_tls(TestRedis::Sentinels(group), authorities).await;
}

/// A Postgres that speaks TLS as well.
async fn start_postgres(directory: &Path) -> PrivatePostgres {
    let options = PostgresOptions { listen: Listen::LoopbackPort(None), ..PostgresOptions::scratch() };
    let postgres = PrivatePostgres::start(options).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    for name in ["server.pem", "server.key"] {
        // Written by the server, which wants its key to be its own.
        let text = std::fs::read_to_string(directory.join(name)).unwrap();
        let lines = format!("SELECT unnest(string_to_array('{}', E'\\n'))", text.trim_end());
        let copy = format!("COPY ({lines}) TO PROGRAM 'umask 077 && cat > {name}'");
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut connection).await.unwrap();
    }
    for statement in [
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
    until("Postgres speaks TLS", async || {
        let setting: String = sqlx::query_scalar("SHOW ssl").fetch_one(&mut connection).await.unwrap();
        setting == "on"
    })
    .await;
    postgres
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_over_tls_is_believed_where_its_authority_is_named_and_nowhere_else() {
    let (directory, [ours, another]) = certificates();
    let server = start_postgres(directory.path()).await;
    let url = server.url();

    for (parameters, is_over_tls) in [
        (format!("sslmode=verify-full&sslrootcert={}", ours.display()), true),
        (format!("sslmode=verify-ca&sslrootcert={}", ours.display()), true),
        ("sslmode=require".to_owned(), true),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=disable".to_owned(), false),
    ] {
        let postgres = postgres_at(&format!("{url}?{parameters}"));
        postgres.migrate().await.unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let ours =
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'onair'";
        let found: Option<bool> = sqlx::query_scalar(ours).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, Some(is_over_tls), "{parameters}");
        postgres.close().await;
        let gone = async || {
            let left: Option<bool> = sqlx::query_scalar(ours).fetch_one(&mut connection).await.unwrap();
            left.is_none()
        };
        until("its connections are gone", gone).await;
    }

    for (what, parameters) in [
        ("another authority", format!("sslmode=verify-full&sslrootcert={}", another.display())),
        ("the system's authorities", "sslmode=verify-full".to_owned()),
    ] {
        let refused = postgres_at(&format!("{url}?{parameters}")).ping().await;
        say(&format!("{what}: {refused:?}"));
        let Err(PostgresError::Unavailable(reason)) = refused else { panic!("{what}: {refused:?}") };
        assert!(reason.contains("UnknownIssuer"), "{what}: {reason}");
    }
}
