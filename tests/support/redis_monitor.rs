//! What Redis is asked and what it holds, word by word, as its own tools tell.

use std::sync::{Arc, Mutex, PoisonError};

use fred::{
    clients::Client,
    cmd,
    interfaces::ClientLike as _,
    types::{Builder, Value, config::Config},
};
use onair::dev::servers::PrivateRedis;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpStream, UnixStream},
    task::AbortHandle,
};
use uuid::Uuid;

use super::stores::until;

/// Hears every command, from its start on.
pub struct RedisMonitor {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
    listening: AbortHandle,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection that has said one command, and the password before where one is asked for.
async fn saying(url: &str, command: &str) -> Box<dyn Stream> {
    let mut words = command.to_owned();
    let mut stream: Box<dyn Stream> = if let Some(path) = url.strip_prefix("redis+unix://") {
        Box::new(UnixStream::connect(path).await.expect("Redis lets us in"))
    } else {
        let url: url::Url = url.parse().expect("a URL");
        let address = (url.host_str().expect("a host"), url.port().expect("a port"));
        words = format!("AUTH {}\r\n{command}", url.password().expect("a loopback port asks for one"));
        Box::new(TcpStream::connect(address).await.expect("Redis lets us in"))
    };
    stream.write_all(format!("{words}\r\n").as_bytes()).await.expect("it takes the command");
    stream
}

impl RedisMonitor {
    pub async fn start(redis: &PrivateRedis) -> Self {
        let url = redis.url();
        let stream = saying(&url, "MONITOR").await;
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let monitor = Self { url, heard, listening: task.abort_handle() };
        until("Redis tells its commands", async || !monitor.lines().is_empty()).await;
        monitor
    }

    /// All commands so far. Those that a script called begin with `[0 lua]` behind their time.
    pub async fn heard(&self) -> Vec<String> {
        let marker = Uuid::new_v4().to_string();
        let _connection = saying(&self.url, &format!("ECHO {marker}")).await;
        until("the monitor has heard everything", async || self.lines().iter().any(|line| line.contains(&marker)))
            .await;
        self.lines().into_iter().filter(|line| !line.contains(&marker)).collect()
    }

    fn lines(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for RedisMonitor {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Every key of a Redis with everything in it, one a line.
pub async fn keyspace(redis: &PrivateRedis) -> Vec<String> {
    let config = Config::from_url(&redis.url()).expect("a URL");
    let client = Builder::from_config(config).build().expect("a client");
    client.init().await.expect("Redis lets us in");
    let keys: Vec<String> = client.custom(cmd!("KEYS"), vec!["*"]).await.expect("the keys");
    let mut found = Vec::new();
    for key in keys {
        found.push(format!("{key} = {:?}", content(&client, &key).await));
    }
    client.quit().await.expect("it says goodbye");
    found
}

async fn content(client: &Client, key: &str) -> Value {
    let kind: String = client.custom(cmd!("TYPE"), vec![key]).await.expect("a type");
    let (command, arguments) = match kind.as_str() {
        "string" => (cmd!("GET"), vec![key]),
        "hash" => (cmd!("HGETALL"), vec![key]),
        "zset" => (cmd!("ZRANGE"), vec![key, "0", "-1", "WITHSCORES"]),
        "stream" => (cmd!("XRANGE"), vec![key, "-", "+"]),
        "set" => (cmd!("SMEMBERS"), vec![key]),
        "list" => (cmd!("LRANGE"), vec![key, "0", "-1"]),
        // It ended between the two questions.
        "none" => return Value::Null,
        other => panic!("{key} is a {other}, which this does not read"),
    };
    client.custom(command, arguments).await.expect("what it holds")
}
