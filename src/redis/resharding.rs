//! Keys that are on their way from one master of a cluster to another.
//!
//! While a slot is moved, each of its keys is in one of two servers. The old one says `ASK` about a key that has left, and the new one
//! answers for it only who says `ASKING` first. About several keys neither answers unless it has all of them, and what is
//! not there at all counts as missing: `TRYAGAIN`. Nearly every transition names a key that may be absent, so there is none
//! in a partition on its way, and nobody is admitted there until it has arrived. Reading goes on.
//!
//! Invariants:
//! - `ASKING` and the command that it is for go in one pipeline: on that connection, nothing comes between them.
//! - Nothing is carried out twice: a server that says `ASK` or `TRYAGAIN` has done nothing.
//! - Who is admitted is decided by the server that the partition was opened on (`lua/admit.lua`), never by one that receives it.

use std::time::Duration;

use bytes::Bytes;
use fred::{
    clients::{Client, Pipeline},
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike as _, LuaInterface as _},
    types::{CustomCommand, Value, config::Server as Address},
};
use tokio::time::sleep;

use super::{Connection, Redis, RedisError, call::Call, queued, script::Script};

/// How long after `TRYAGAIN` it is tried again. A slot with few keys is on its way for a few milliseconds.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a server says to a command about one key.
pub(super) enum Told {
    /// The answer.
    Value(Value),
    /// The key has left for this server.
    AskElsewhere(Address),
}

/// Where a key has left for, where the error says so.
fn ask(error: &FredError) -> Option<Address> {
    let mut words = error.details().split_whitespace();
    let is_ask = words.next() == Some("ASK");
    let (host, port) = words.nth(1).filter(|_| is_ask)?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|_| !host.is_empty())?;
    Some(Address::new(host, port))
}

/// Whether nothing was carried out because keys are on their way.
pub(super) fn is_on_the_way(error: &FredError) -> bool {
    error.details().starts_with("TRYAGAIN") || ask(error).is_some()
}

/// Sends a pipeline of so many commands about one key each.
pub(super) async fn told(pipeline: &Pipeline<Client>, count: usize) -> Result<Vec<Told>, FredError> {
    let mut answers = pipeline.try_all::<Value>().await;
    if answers.len() != count {
        // One error in the place of all.
        let error = answers.pop().and_then(Result::err);
        return Err(error.unwrap_or_else(|| FredError::new(ErrorKind::Protocol, "a pipeline was answered in part")));
    }
    let told = |answer: Result<Value, FredError>| match answer {
        Ok(value) => Ok(Told::Value(value)),
        Err(error) => ask(&error).map(Told::AskElsewhere).ok_or(error),
    };
    answers.into_iter().map(told).collect()
}

/// Has a server that receives a slot carry out a command about one key of it.
async fn asking(
    receiving: &Connection,
    put: impl Fn(&Pipeline<Client>) -> Result<(), FredError>,
) -> Result<Value, FredError> {
    let pipeline = receiving.pipeline();
    let asking = CustomCommand::new_static("ASKING", None, false);
    queued(pipeline.custom(asking, Vec::<String>::new()))?;
    put(&pipeline)?;
    pipeline.last().await
}

impl Redis {
    /// Carries out a command about one key at the server that receives its slot.
    pub(super) async fn ask_for(
        &self,
        address: &Address,
        put: impl Fn(&Pipeline<Client>) -> Result<(), FredError>,
    ) -> Result<Value, RedisError> {
        let connection = self.inner.servers.receiving(address)?;
        self.limited(&connection, asking(&connection, put)).await
    }

    /// Runs a script that was refused because its keys are on their way, as soon as they are all in one place. Gives up after
    /// as long as a command may take.
    pub(super) async fn run_on_the_way(
        &self,
        script: &Script,
        call: &Call,
        mut error: FredError,
    ) -> Result<Value, RedisError> {
        let (keys, arguments) = (call.keys(), call.arguments());
        let mut words = vec![Bytes::from_static(script.source.as_bytes()), keys.len().to_string().into()];
        words.extend(keys.into_iter().chain(arguments));
        let trying = async {
            loop {
                let again = match ask(&error) {
                    Some(address) => {
                        let put = |pipeline: &Pipeline<Client>| {
                            queued(pipeline.custom(CustomCommand::new_static("EVAL", None, false), words.clone()))
                        };
                        asking(&*self.inner.servers.receiving(&address)?, put).await
                    }
                    None => self.at_holder(script, call).await?,
                };
                match again {
                    Ok(answer) => return Ok(answer),
                    Err(refused) if is_on_the_way(&refused) => error = refused,
                    Err(refused) if RedisError::is_moved(&refused) => {
                        self.inner.servers.looked_again().await;
                        error = refused;
                    }
                    Err(refused) => return Err(RedisError::from_fred(&refused)),
                }
                sleep(AGAIN_AFTER).await;
            }
        };
        let given_up = Err(RedisError::Refused("TRYAGAIN: its keys are being moved to another server".to_owned()));
        tokio::time::timeout(self.inner.command_timeout, trying).await.unwrap_or(given_up)
    }

    async fn at_holder(&self, script: &Script, call: &Call) -> Result<Result<Value, FredError>, RedisError> {
        let connection = self.quick(call.first_key())?;
        Ok(connection.eval(script.source, call.keys(), call.arguments()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_keys_that_have_left_is_understood() {
        let error = |details: &'static str| FredError::new(ErrorKind::Cluster, details);
        assert_eq!(ask(&error("ASK 1234 127.0.0.1:7001")), Some(Address::new("127.0.0.1", 7001)));
        assert_eq!(ask(&error("ASK 1234 ::1:7001")), Some(Address::new("::1", 7001)));
        for details in ["ASK 1234 :7001", "ASK", "MOVED 1234 127.0.0.1:7001", "ASKED 1 a:1"] {
            assert_eq!(ask(&error(details)), None, "{details}");
        }
        assert!(is_on_the_way(&error("TRYAGAIN Multiple keys request during rehashing of slot")));
        assert!(!is_on_the_way(&error("MOVED 1234 127.0.0.1:7001")));
    }
}
