//! A line of the log as one JSON object: `timestamp`, `level`, the event's fields (its words are `message`), `target`, and
//! `span` with the fields of the innermost span that the event happened in.
//!
//! tracing-subscriber has a format like this. It writes a line in a hundred pieces, which costs an admission several times
//! what one piece does.

use std::{fmt, io::Write as _};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// How long a line usually is.
const LINE_BYTES: usize = 512;

/// The format.
pub(super) struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Line(Vec::with_capacity(LINE_BYTES));
        line.0.extend_from_slice(b"{\"timestamp\":\"");
        line.0.extend_from_slice(timestamp.as_bytes());
        line.0.push(b'"');
        line.put("level", event.metadata().level().as_str());
        event.record(&mut line);
        line.put("target", event.metadata().target());
        if let Some(span) = context.lookup_current() {
            line.put_span(span.name(), span.extensions().get::<FormattedFields<N>>().map(|fields| &*fields.fields));
        }
        line.0.extend_from_slice(b"}\n");
        out.write_str(std::str::from_utf8(&line.0).map_err(|_| fmt::Error)?)
    }
}

/// What is written of it so far: never closed, and never empty, so that a comma goes before whatever follows.
struct Line(Vec<u8>);

impl Line {
    fn put(&mut self, name: &str, value: impl Serialize) {
        self.0.extend_from_slice(b",\"");
        // Names are identifiers of Rust, which need no escaping.
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        let begun_at = self.0.len();
        if serde_json::to_writer(&mut self.0, &value).is_err() {
            self.0.truncate(begun_at);
            self.0.extend_from_slice(b"null");
        }
    }

    /// `fields` is an object already.
    fn put_span(&mut self, name: &str, fields: Option<&str>) {
        let fields = fields.and_then(|fields| fields.strip_prefix('{')).filter(|fields| *fields != "}");
        // A vector takes whatever is written.
        let _ = write!(self.0, ",\"span\":{{\"name\":\"{name}\"");
        match fields {
            Some(fields) => {
                self.0.push(b',');
                self.0.extend_from_slice(fields.as_bytes());
            }
            None => self.0.push(b'}'),
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), Shown(value));
    }
}

/// What has no type that JSON knows, as it shows itself.
struct Shown<'a>(&'a dyn fmt::Debug);

impl Serialize for Shown<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:?}", self.0))
    }
}
