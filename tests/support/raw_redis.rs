//! Redis spoken to directly, for what no service would do to it.

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike as _,
    types::{Builder, CustomCommand, FromValue, Value, config::Config},
};
use onair::dev::servers::PrivateRedis;

/// How long a command may take. A server that becomes a replica ends its connections, and fred may wait for ever on one that ended while it
/// was being made.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Somebody who knows which servers a command is for.
pub trait Speaks {
    /// The URLs of those servers.
    async fn addresses(&self, words: &[&str]) -> Vec<String>;
}

impl Speaks for PrivateRedis {
    async fn addresses(&self, _words: &[&str]) -> Vec<String> {
        vec![self.url()]
    }
}

/// Carries out one command. Where several servers are meant, what they list is put together.
pub async fn command<T: FromValue>(redis: &impl Speaks, words: &[&str]) -> T {
    try_command(redis, words).await.expect("Redis answers")
}

/// As [`command`], where it may be refused.
pub async fn try_command<T: FromValue>(redis: &impl Speaks, words: &[&str]) -> Result<T, Error> {
    let mut answers = Vec::new();
    for url in redis.addresses(words).await {
        let answer = tokio::time::timeout(COMMAND_LIMIT, one_command(&url, words)).await;
        let silence = || Err(Error::new(ErrorKind::Timeout, "no answer in time"));
        answers.push(answer.unwrap_or_else(|_| silence())?);
    }
    let all_list = answers.len() > 1 && answers.iter().all(Value::is_array);
    let answer = if all_list {
        Value::Array(answers.into_iter().flat_map(Value::into_array).collect())
    } else {
        answers.pop().expect("somebody was asked")
    };
    answer.convert()
}

async fn one_command(url: &str, words: &[&str]) -> Result<Value, Error> {
    let mut config = Config::from_url(url)?;
    config.fail_fast = true;
    let client: Client = Builder::from_config(config).build()?;
    client.init().await?;
    let (name, arguments) = words.split_first().expect("a command");
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let answer = client.custom(CustomCommand::new(*name, None, false), arguments).await;
    client.quit().await?;
    answer
}

/// Redis loses its memory, and nobody's connection breaks.
pub async fn forget_everything(redis: &impl Speaks) {
    let _: String = command(redis, &["FLUSHALL"]).await;
}

/// Where Redis holds a stream key.
pub async fn stream_key(redis: &impl Speaks, id: &str) -> String {
    let names: Vec<String> = command(redis, &["KEYS", "onair:*:key:*"]).await;
    for name in names {
        let found: String = command(redis, &["HGET", &name, "id"]).await;
        if found == id {
            return name;
        }
    }
    panic!("Redis does not hold the key {id}")
}
