//! The transitions of a stream, one Lua script each: `admit`, `confirm`, `end`, and what belongs to them.

use fred::types::Value;

use super::{
    FencingToken, Redis, RedisError, Ticket, answer_parts,
    call::Call,
    keys,
    record::{Publisher, Record, to_json},
    script::{self, Script},
    unknown_word,
};
use crate::domain::{
    EndReason, Epoch, KeyId, NodeName, Progress, Protocol, SecretHash, SourceId, SourceType, Stream, StreamId,
    StreamInfo, StreamPath, Timestamp, Track,
};

/// A publisher that asks for a path.
#[derive(Debug, Clone)]
pub struct AdmitRequest<'a> {
    /// The path.
    pub path: &'a StreamPath,
    /// What it knows of the key.
    pub secret_hash: SecretHash,
    /// The node that asks.
    pub node: &'a NodeName,
    /// The publisher's connection; `None` only checks the key and claims nothing.
    pub source_id: Option<SourceId>,
    /// How it publishes.
    pub protocol: Protocol,
    /// Its IP address.
    pub address: &'a str,
    /// What the encoder calls itself.
    pub user_agent: &'a str,
    /// How long it may take to come online, in milliseconds.
    pub connecting_timeout_ms: u64,
}

/// What `admit` answered.
#[derive(Debug, Clone, PartialEq)]
pub struct AdmitAnswer {
    /// The key that was presented, where Redis holds it.
    pub key_id: Option<KeyId>,
    /// What was decided.
    pub admission: Admission,
}

/// What `admit` decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// The path is the source's now.
    Admitted {
        /// The new stream.
        stream_id: StreamId,
        /// Its epoch.
        epoch: Epoch,
        /// The dead stream that it took the place of, with its source still to be kicked.
        replaced: Option<Box<Stream>>,
    },
    /// The same source had it already.
    AdmittedAgain {
        /// Its stream.
        stream_id: StreamId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The key would admit; nothing was claimed.
    Checked,
    /// Redis does not hold the key. No refusal yet: Postgres may know it.
    KeyAbsent,
    /// The key is for another path.
    PathMismatch,
    /// The key is dead.
    KeyRevoked,
    /// The key is switched off.
    KeyDisabled,
    /// The key's time is over.
    KeyExpired {
        /// Since when.
        since: Timestamp,
    },
    /// The path was stopped a moment ago.
    CoolingDown {
        /// Until when it is closed.
        until: Timestamp,
        /// How long that still is, in milliseconds, by the clock of Redis.
        remaining_ms: u64,
    },
    /// A healthy stream holds the path.
    KeyInUse {
        /// Since when.
        since: Timestamp,
    },
}

/// What `confirm` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// The stream went live.
    Confirmed,
    /// It was live already.
    AlreadyLive,
    /// Another source holds the path: this was a late word, or a publisher nobody admitted.
    OtherSource,
    /// Nobody holds the path.
    NotHeld,
}

/// Which stream the caller of `end` means.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// The one that this source of this node published.
    Source(SourceId, &'a NodeName),
    /// This one.
    Stream(StreamId),
}

/// Whether the source may still be connected when its stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It may: a kick is owed.
    Kick,
    /// The node said that it is gone.
    Gone,
    /// It may, and the path stays closed for so many milliseconds, so that an encoder's reconnect does not undo the end.
    KickAndCoolDown(u64),
}

/// A stream that is to end.
#[derive(Debug, Clone)]
pub struct EndRequest<'a> {
    /// Where.
    pub path: &'a StreamPath,
    /// Which one.
    pub holder: Holder<'a>,
    /// Why.
    pub reason: EndReason,
    /// What about its source.
    pub afterwards: Afterwards,
    /// The poller's last word about it.
    pub progress: Option<&'a Progress>,
}

/// What `end` or `expire` did.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// It ended now.
    Ended(Box<Stream>),
    /// Another stream holds the path: the one that was meant has ended before.
    OtherSource,
    /// Nobody holds the path.
    NotHeld,
    /// Nothing is due yet (only `expire`).
    NotDue,
}

/// What `describe` did.
#[derive(Debug, Clone, PartialEq)]
pub enum Description {
    /// The stream as it is now.
    Written(Box<Stream>),
    /// Somebody else changed it since it was read.
    ChangedMeanwhile,
    /// It is no longer on air.
    NotHeld,
}

/// Who watches a node: what it notes counts until another one has noted something.
#[derive(Debug, Clone, Copy)]
pub struct Watcher<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// Of the node's lease.
    pub token: FencingToken,
}

/// Something that the poller saw change about a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation<'a> {
    /// Its bytes have stood still since then, or move again.
    Stalled(Option<Timestamp>),
    /// Its node has been unreachable since then, or is back.
    Stale(Option<Timestamp>),
    /// What it carries.
    Tracks(&'a [Track]),
    /// What its source is exactly.
    SourceType(SourceType),
}

impl Redis {
    /// Decides whether a source may publish, and takes the path for it. See `lua/admit.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer; after [`RedisError::Timeout`] the path may have been taken all the same.
    pub async fn admit(&self, request: &AdmitRequest<'_>) -> Result<AdmitAnswer, RedisError> {
        self.admit_with(request, &Ticket::default(), None).await
    }

    /// [`Redis::admit`] for one who may give up: if its ticket can still be taken then, Redis has not been asked and never will be.
    /// By another clock than that of Redis where `now` is given, for tests of expiry to the millisecond.
    ///
    /// # Errors
    /// As [`Redis::admit`].
    pub async fn admit_with(
        &self,
        request: &AdmitRequest<'_>,
        ticket: &Ticket,
        now: Option<Timestamp>,
    ) -> Result<AdmitAnswer, RedisError> {
        self.inner.rush.note_admission();
        let publisher = Publisher {
            protocol: request.protocol,
            address: request.address.into(),
            user_agent: request.user_agent.into(),
        };
        let mut call = Call::builder();
        keys::put_admission(&mut call, request.path, request.secret_hash);
        call.argument(clock(now));
        call.argument(request.path);
        call.argument(request.node);
        match request.source_id {
            Some(id) => call.argument(id),
            None => call.argument(""),
        }
        call.argument(to_json(&publisher));
        call.argument(StreamId::generate());
        call.argument(request.connecting_timeout_ms);
        let answer = self.admit_in_batch(request.path, call.build(), ticket).await?;
        self.parse_admission(answer)
    }

    fn parse_admission(&self, answer: Value) -> Result<AdmitAnswer, RedisError> {
        let (word, rest) = answer_parts(answer)?;
        match word.as_str() {
            "closed" => Err(self.closed()),
            "key_absent" => Ok(AdmitAnswer { key_id: None, admission: Admission::KeyAbsent }),
            word => admission_of(word, rest),
        }
    }

    /// Says that a source is online. See `lua/confirm.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn confirm(
        &self,
        path: &StreamPath,
        node: &NodeName,
        source: (SourceId, SourceType),
        tracks: &[Track],
    ) -> Result<Confirmation, RedisError> {
        let tracks = if tracks.is_empty() { String::new() } else { to_json(&tracks) };
        let arguments =
            vec![String::new(), path.to_string(), node.to_string(), source.0.to_string(), source.1.to_string(), tracks];
        let answer = self.run(&script::CONFIRM, keys::transition(path), arguments).await?;
        match answer_parts(answer)?.0.as_str() {
            "confirmed" => Ok(Confirmation::Confirmed),
            "already_live" => Ok(Confirmation::AlreadyLive),
            "other_source" => Ok(Confirmation::OtherSource),
            "not_held" => Ok(Confirmation::NotHeld),
            word => Err(unknown_word("confirm", word)),
        }
    }

    /// Ends a stream, if it is still the one that is meant. See `lua/end.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn end(&self, request: &EndRequest<'_>) -> Result<Ending, RedisError> {
        let mut keys = keys::transition(request.path);
        keys.push(keys::cooldown(request.path));
        let (field, value, node) = match request.holder {
            Holder::Source(id, node) => ("source_id", id.to_string(), node.to_string()),
            Holder::Stream(id) => ("id", id.to_string(), String::new()),
        };
        let (after, cooldown_ms) = match request.afterwards {
            Afterwards::Kick => ("kick", 0),
            Afterwards::Gone => ("gone", 0),
            Afterwards::KickAndCoolDown(ms) => ("kick", ms),
        };
        let arguments = vec![
            String::new(),
            request.path.to_string(),
            field.to_owned(),
            value,
            node,
            request.reason.to_string(),
            after.to_owned(),
            cooldown_ms.to_string(),
            request.progress.map_or_else(String::new, to_json),
        ];
        parse_ending(&script::END, self.run(&script::END, keys, arguments).await?)
    }

    /// Ends the stream on a path if its deadline has passed or its key's time is over. See `lua/expire.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn expire(&self, path: &StreamPath) -> Result<Ending, RedisError> {
        self.expire_at(path, None).await
    }

    /// [`Redis::expire`] by another clock than that of Redis, for tests.
    ///
    /// # Errors
    /// As [`Redis::expire`].
    pub async fn expire_at(&self, path: &StreamPath, now: Option<Timestamp>) -> Result<Ending, RedisError> {
        let arguments = vec![clock(now), path.to_string()];
        parse_ending(&script::EXPIRE, self.run(&script::EXPIRE, keys::transition(path), arguments).await?)
    }

    /// Changes what viewers are told about `stream`, which is as the caller read it. See `lua/describe.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer.
    pub async fn describe(&self, stream: &Stream, info: &StreamInfo) -> Result<Description, RedisError> {
        let arguments = vec![
            String::new(),
            stream.path.to_string(),
            stream.id.to_string(),
            stream.revision.0.to_string(),
            to_json(info),
        ];
        let answer = self.run(&script::DESCRIBE, keys::transition(&stream.path), arguments).await?;
        let (word, mut rest) = answer_parts(answer)?;
        match word.as_str() {
            "written" => match next_stream(&mut rest)? {
                Some(stream) => Ok(Description::Written(Box::new(stream))),
                None => Err(RedisError::Protocol("describe answered without the stream".to_owned())),
            },
            "changed_meanwhile" => Ok(Description::ChangedMeanwhile),
            "other_source" | "not_held" => Ok(Description::NotHeld),
            word => Err(unknown_word("describe", word)),
        }
    }

    /// Notes what the poller saw change about the source that holds a path. See `lua/observe.lua`.
    ///
    /// # Errors
    /// Where Redis gives no answer. It may be said again.
    pub async fn observe(
        &self,
        path: &StreamPath,
        watcher: Watcher<'_>,
        source_id: SourceId,
        observations: &[Observation<'_>],
    ) -> Result<(), RedisError> {
        if observations.is_empty() {
            return Ok(());
        }
        let Watcher { node, token } = watcher;
        let mut arguments =
            vec![String::new(), path.to_string(), node.to_string(), source_id.to_string(), token.0.to_string()];
        for observation in observations {
            let (field, value) = match observation {
                Observation::Stalled(at) => ("stalled_ms", at.map_or_else(String::new, |at| at.as_ms().to_string())),
                Observation::Stale(at) => ("stale_ms", at.map_or_else(String::new, |at| at.as_ms().to_string())),
                Observation::Tracks(tracks) => ("tracks", to_json(tracks)),
                Observation::SourceType(word) => ("source_type", word.to_string()),
            };
            arguments.extend([field.to_owned(), value]);
        }
        let answer = self.run(&script::OBSERVE, keys::transition(path), arguments).await?;
        match answer_parts(answer)?.0.as_str() {
            // A word about a source that has gone meanwhile is no error: there is nothing left to note.
            // Nor is it one about a node that another replica watches by now.
            "written" | "other_source" | "not_held" | "fenced" => Ok(()),
            word => Err(unknown_word("observe", word)),
        }
    }
}

fn clock(now: Option<Timestamp>) -> String {
    now.map_or_else(String::new, |now| now.as_ms().to_string())
}

pub(super) fn next_stream(rest: &mut impl Iterator<Item = Value>) -> Result<Option<Stream>, RedisError> {
    let record = Record::from_pairs(rest.next().unwrap_or(Value::Array(Vec::new())))?;
    record.map(|record| record.stream()).transpose()
}

pub(super) fn next<T: std::str::FromStr>(
    script: &Script,
    rest: &mut impl Iterator<Item = Value>,
) -> Result<T, RedisError> {
    rest.next().and_then(|value| value.as_str()?.parse().ok()).ok_or_else(|| {
        RedisError::Protocol(format!("{} answered without a value that belongs to its word", script.name))
    })
}

fn admission_of(word: &str, mut rest: std::vec::IntoIter<Value>) -> Result<AdmitAnswer, RedisError> {
    let script = &script::ADMIT;
    let key_id = Some(next(script, &mut rest)?);
    let admission = match word {
        "admitted" => Admission::Admitted {
            stream_id: next(script, &mut rest)?,
            epoch: Epoch(next(script, &mut rest)?),
            replaced: next_stream(&mut rest)?.map(Box::new),
        },
        "admitted_again" => {
            Admission::AdmittedAgain { stream_id: next(script, &mut rest)?, epoch: Epoch(next(script, &mut rest)?) }
        }
        "checked" => Admission::Checked,
        "path_mismatch" => Admission::PathMismatch,
        "key_revoked" => Admission::KeyRevoked,
        "key_disabled" => Admission::KeyDisabled,
        "key_expired" => Admission::KeyExpired { since: Timestamp::from_ms(next(script, &mut rest)?) },
        "cooling_down" => {
            let until = Timestamp::from_ms(next(script, &mut rest)?);
            let now = Timestamp::from_ms(next(script, &mut rest)?);
            Admission::CoolingDown { until, remaining_ms: until.ms_since(now) }
        }
        "key_in_use" => Admission::KeyInUse { since: Timestamp::from_ms(next(script, &mut rest)?) },
        word => return Err(unknown_word(script.name, word)),
    };
    Ok(AdmitAnswer { key_id, admission })
}

fn parse_ending(script: &Script, answer: Value) -> Result<Ending, RedisError> {
    let (word, mut rest) = answer_parts(answer)?;
    match word.as_str() {
        "ended" => match next_stream(&mut rest)? {
            Some(stream) => Ok(Ending::Ended(Box::new(stream))),
            None => Err(RedisError::Protocol(format!("{} answered without the stream", script.name))),
        },
        "other_source" => Ok(Ending::OtherSource),
        "not_held" => Ok(Ending::NotHeld),
        "not_due" => Ok(Ending::NotDue),
        word => Err(unknown_word(script.name, word)),
    }
}
