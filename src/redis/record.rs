//! A stream as Redis holds it: one hash of texts, empty where there is no value.

use std::{borrow::Cow, collections::HashMap, fmt::Display, str::FromStr};

use fred::types::Value;
use serde::{Deserialize, Serialize};

use super::RedisError;
use crate::domain::{
    EndReason, Epoch, Progress, Protocol, Revision, Source, SourceType, Stream, StreamState, StreamStateWord, Timestamp,
};

/// What the auth call tells of a publisher besides its id: one text, because no script looks into it.
#[derive(Serialize, Deserialize)]
pub(super) struct Publisher<'a> {
    pub(super) protocol: Protocol,
    #[serde(borrow)]
    pub(super) address: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) user_agent: Cow<'a, str>,
}

/// What a reader of events has to understand. A version whose events have something that the history must not miss writes a
/// higher one into their field `format`; without it, a field that is not known is none of the history's.
const FORMAT: u32 = 1;

/// The fields of one hash or event.
pub(super) struct Record(HashMap<String, String>);

impl Record {
    /// From `{field, value, field, value, ...}`, as Lua returns a hash. `None` where it is empty.
    pub(super) fn from_pairs(value: Value) -> Result<Option<Self>, RedisError> {
        let Value::Array(parts) = value else {
            return Err(RedisError::Protocol("a record is not a list".to_owned()));
        };
        let mut fields = HashMap::with_capacity(parts.len() / 2);
        let mut parts = parts.into_iter();
        while let (Some(field), Some(value)) = (parts.next(), parts.next()) {
            if let (Some(field), Some(value)) = (field.as_string(), value.as_string()) {
                fields.insert(field, value);
            }
        }
        Ok((!fields.is_empty()).then_some(Self(fields)))
    }

    pub(super) fn from_map(fields: HashMap<String, String>) -> Option<Self> {
        (!fields.is_empty()).then_some(Self(fields))
    }

    /// Fails where an event says that this version would not understand it whole.
    pub(super) fn refuse_newer_format(&self) -> Result<(), RedisError> {
        match self.optional::<u32>("format")? {
            Some(format) if format > FORMAT => {
                Err(malformed("format", &format!("{format}, and this version knows {FORMAT}")))
            }
            _ => Ok(()),
        }
    }

    /// The text of a field; empty where it is absent.
    pub(super) fn text(&self, field: &'static str) -> &str {
        self.0.get(field).map_or("", String::as_str)
    }

    pub(super) fn required<T: FromStr<Err: Display>>(&self, field: &'static str) -> Result<T, RedisError> {
        self.text(field).parse().map_err(|error: T::Err| malformed(field, &error))
    }

    pub(super) fn optional<T: FromStr<Err: Display>>(&self, field: &'static str) -> Result<Option<T>, RedisError> {
        if self.text(field).is_empty() { Ok(None) } else { self.required(field).map(Some) }
    }

    pub(super) fn time(&self, field: &'static str) -> Result<Timestamp, RedisError> {
        self.required(field).map(Timestamp::from_ms)
    }

    pub(super) fn optional_time(&self, field: &'static str) -> Result<Option<Timestamp>, RedisError> {
        Ok(self.optional(field)?.map(Timestamp::from_ms))
    }

    fn json<T: serde::de::DeserializeOwned + Default>(&self, field: &'static str) -> Result<T, RedisError> {
        let text = self.text(field);
        if text.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_str(text).map_err(|error| malformed(field, &error))
    }

    /// The whole stream.
    pub(super) fn stream(&self) -> Result<Stream, RedisError> {
        Ok(Stream {
            id: self.required("id")?,
            path: self.required("path")?,
            epoch: Epoch(self.required("epoch")?),
            revision: Revision(self.required("revision")?),
            key_id: self.required("key_id")?,
            broadcaster_id: self.required("broadcaster_id")?,
            node: self.required("node")?,
            source: self.source()?,
            state: self.state()?,
            admitted_at: self.time("admitted_ms")?,
            key_expires_at: self.optional_time("key_expires_ms")?,
            info: self.json("info")?,
            playback: self.required("playback")?,
            stalled_at: self.optional_time("stalled_ms")?,
            stale_since: self.optional_time("stale_ms")?,
            tracks: self.json("tracks")?,
        })
    }

    fn source(&self) -> Result<Source, RedisError> {
        let publisher: Publisher<'_> =
            serde_json::from_str(self.text("publisher")).map_err(|error| malformed("publisher", &error))?;
        Ok(Source {
            id: self.required("source_id")?,
            source_type: self.optional::<SourceType>("source_type")?,
            protocol: publisher.protocol,
            address: publisher.address.into_owned(),
            user_agent: publisher.user_agent.into_owned(),
        })
    }

    fn state(&self) -> Result<StreamState, RedisError> {
        Ok(match self.required("state")? {
            StreamStateWord::Connecting => StreamState::Connecting { deadline: self.time("deadline_ms")? },
            StreamStateWord::Live => StreamState::Live { since: self.time("live_ms")? },
            StreamStateWord::Ended => StreamState::Ended {
                live_since: self.optional_time("live_ms")?,
                at: self.time("ended_ms")?,
                reason: self.required::<EndReason>("end_reason")?,
            },
        })
    }

    /// The poller's last word about a stream that ended, where there was one.
    pub(super) fn last_progress(&self) -> Option<Progress> {
        // A word that cannot be read is not worth losing the event for: it only adds byte counts to the history.
        serde_json::from_str(self.text("progress")).ok()
    }
}

fn malformed(field: &str, error: &dyn Display) -> RedisError {
    RedisError::Protocol(format!("field {field}: {error}"))
}

fn or_empty(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| at.as_ms().to_string())
}

/// The fields and values of a slot that holds `stream`: the opposite of [`Record::stream`], for a stream that is on air.
pub(super) fn slot_fields(stream: &Stream) -> Vec<String> {
    let deadline = match stream.state {
        StreamState::Connecting { deadline } => Some(deadline),
        StreamState::Live { .. } | StreamState::Ended { .. } => None,
    };
    let tracks = if stream.tracks.is_empty() { String::new() } else { to_json(&stream.tracks) };
    let publisher = Publisher {
        protocol: stream.source.protocol,
        address: Cow::Borrowed(&stream.source.address),
        user_agent: Cow::Borrowed(&stream.source.user_agent),
    };
    let fields = [
        ("id", stream.id.to_string()),
        ("path", stream.path.to_string()),
        ("epoch", stream.epoch.0.to_string()),
        ("revision", stream.revision.0.to_string()),
        ("state", stream.state.word().to_string()),
        ("key_id", stream.key_id.to_string()),
        ("broadcaster_id", stream.broadcaster_id.to_string()),
        ("node", stream.node.to_string()),
        ("source_id", stream.source.id.to_string()),
        ("source_type", stream.source.source_type.map_or_else(String::new, |word| word.to_string())),
        ("publisher", to_json(&publisher)),
        ("admitted_ms", stream.admitted_at.as_ms().to_string()),
        ("live_ms", or_empty(stream.state.live_since())),
        ("deadline_ms", or_empty(deadline)),
        ("key_expires_ms", or_empty(stream.key_expires_at)),
        ("stalled_ms", or_empty(stream.stalled_at)),
        ("stale_ms", or_empty(stream.stale_since)),
        ("tracks", tracks),
        ("playback", stream.playback.to_string()),
        ("info", to_json(&stream.info)),
    ];
    let with_a_value = fields.into_iter().filter(|(_, value)| !value.is_empty());
    with_a_value.flat_map(|(field, value)| [field.to_owned(), value]).collect()
}

/// JSON of a domain type.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("domain types have no map keys other than texts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::StreamInfo;

    #[test]
    fn a_slot_reads_back_as_the_stream_that_was_written() {
        let stream = Stream {
            epoch: Epoch(1_764_000_000_000),
            revision: Revision(3),
            source: Source {
                id: "033e004d-e90f-4ef1-9ccb-f27b70cc0549".parse().unwrap(),
                source_type: Some(SourceType::RtmpConn),
                protocol: Protocol::Rtmp,
                address: "192.0.2.7".to_owned(),
                user_agent: "FMLE/3.0".to_owned(),
            },
            state: StreamState::Live { since: Timestamp::from_ms(1_764_000_002_000) },
            info: StreamInfo { title: Some("Ada live".to_owned()), ..StreamInfo::default() },
            stalled_at: Some(Timestamp::from_ms(1_764_000_003_000)),
            ..Stream::admitted("live/ada", Timestamp::from_ms(1_764_000_000_000))
        };
        let flat = slot_fields(&stream);
        let fields = flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        assert_eq!(Record::from_map(fields).unwrap().stream().unwrap(), stream);
    }
}
