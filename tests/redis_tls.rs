//! Redis over TLS, with a certificate that an authority of our own vouches for, and a user of its own in Redis.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use onair::{
    config::ConfigSecret,
    dev::servers::{Membership, PrivateRedis, RedisOptions, RedisRole},
};
use support::{
    api_client::ApiClient,
    measured::{say, soon},
    service::Service,
    stack::{API_SECRET, Stack},
};

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

/// Makes `redis.pem`, for which the authority `name` vouches.
fn make_certificate(directory: &Path, name: &str) {
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(directory, &format!("req {key} -keyout redis.key -out redis.csr -subj /CN=redis"));
    let by = format!("-CA {name}.pem -CAkey {name}.key -CAcreateserial -days 2 -extfile names");
    openssl(directory, &format!("x509 -req -in redis.csr {by} -out redis.pem"));
}

/// A Redis that speaks TLS, with a user for Onair, and where it is.
async fn start_redis(directory: &Path) -> (PrivateRedis, u16) {
    let place = directory.display();
    let settings = format!(
        "tls-auth-clients no\ntls-ca-cert-file {place}/ours.pem\ntls-cert-file {place}/redis.pem\n\
         tls-key-file {place}/redis.key\nuser {USER} on >{WORD} ~onair:* +@all -@admin -@dangerous +info"
    );
    let role = RedisRole::Member(Membership {
        password: "of-nobody-else".to_owned(),
        settings,
        further_port: Some("tls-port"),
    });
    let redis = PrivateRedis::start_as(role, RedisOptions::scratch_at_port()).await.unwrap();
    let tls_port = redis.further_port().unwrap();
    (redis, tls_port)
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_over_tls_serves_publishers_whose_authority_is_named_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let ours = make_authority(directory.path(), "ours");
    let another = make_authority(directory.path(), "another");
    make_certificate(directory.path(), "ours");
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
