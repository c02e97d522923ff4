//! The log, on standard output.
//!
//! Invariants:
//! - Writing a line never waits for standard output: a thread of its own writes them, see `logging/buffer.rs`. While standard output is
//!   blocked, lines are dropped and counted, so that no admission stands still for a full pipe.
//! - No secret, key, token or query string is given to it; nothing here could take one out again.

mod buffer;
mod json;

use std::{
    io::{self, IsTerminal as _},
    sync::OnceLock,
    time::Duration,
};

use tracing::Subscriber;
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, ParseError, Targets},
    fmt::{
        self, MakeWriter,
        format::{FmtSpan, JsonFields},
    },
    layer::SubscriberExt as _,
};

use self::{
    buffer::{LogBuffer, Writing},
    json::JsonLine,
};
use crate::{
    config::{LogConfig, LogFormat},
    lifecycle::panic_message,
};

/// How long the last lines may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static BUFFER: OnceLock<LogBuffer> = OnceLock::new();

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is none.
    #[error("log.filter: {0}")]
    Filter(#[from] ParseError),
    /// Something else in this process logs already.
    #[error("a log was started in this process before")]
    Started,
    /// The system gives no thread.
    #[error("the log has no thread to be written by: {0}")]
    Thread(#[from] io::Error),
}

/// Keeps the log running. To be flushed last of all.
pub struct Log {
    writing: Writing,
}

impl Log {
    /// Starts the log of this process, and lets panics be part of it.
    ///
    /// # Errors
    /// Where the filter cannot be read, or there is a log already.
    pub fn start(config: &LogConfig) -> Result<Self, LoggingError> {
        let buffer = LogBuffer::default();
        let subscriber = subscriber(config, buffer.clone())?;
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Started)?;
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            tracing::error!(place, what = panic_message(panic.payload()), "panicked");
        }));
        let writing = buffer.write_to(io::stdout())?;
        let _ = BUFFER.set(buffer);
        Ok(Self { writing })
    }

    /// Writes what is waiting, unless standard output does not take it.
    pub fn flush(self) {
        self.writing.finish(FLUSH_LIMIT);
    }
}

/// How many lines were dropped so far.
#[must_use]
pub fn lines_dropped() -> u64 {
    BUFFER.get().map_or(0, LogBuffer::lines_dropped)
}

/// What [`Log::start`] installs, for any writer.
///
/// # Errors
/// Where the filter cannot be read.
pub fn subscriber<W>(config: &LogConfig, writer: W) -> Result<impl Subscriber + Send + Sync + use<W>, LoggingError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    // What cannot be read in a file of passwords, its reader would put into the log.
    let filter = config.filter.parse::<Targets>()?.with_target("sqlx_postgres::options", LevelFilter::OFF);
    let layer = fmt::layer().with_writer(writer).with_span_events(FmtSpan::NONE);
    let layer = match config.format {
        LogFormat::Pretty => layer.with_ansi(io::stdout().is_terminal()).boxed(),
        LogFormat::Json => layer.fmt_fields(JsonFields::new()).event_format(JsonLine).boxed(),
    };
    Ok(Registry::default().with(layer.with_filter(filter)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let written = Written::default();
        let make = written.clone();
        let config = LogConfig { format, filter: filter.to_owned() };
        tracing::subscriber::with_default(subscriber(&config, move || make.clone()).unwrap(), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_holds_the_fields_of_event_and_span() {
        let text = logged(LogFormat::Json, "info", || {
            let _span = tracing::info_span!("request", request_id = "r-1").entered();
            tracing::info!(path = "live/ada", "decided");
            tracing::debug!("not asked for");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["path"]), (&"decided".into(), &"live/ada".into()));
        assert_eq!((&line["span"]["request_id"], &line["level"]), (&"r-1".into(), &"INFO".into()));
    }

    #[test]
    fn what_is_awkward_in_json_is_still_one_object_on_one_line() {
        let text = logged(LogFormat::Json, "info", || {
            let _span = tracing::info_span!("bare").entered();
            let (shown, told) = (tracing::field::display("a\n\"b\""), Some("c\u{1}"));
            tracing::info!(
                shown,
                ?told,
                yes = true,
                less = -1,
                more = 0.5,
                no = f64::NAN,
                absent = None::<u64>,
                "said \"so\""
            );
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let told = ["shown", "told", "yes", "less", "more", "no", "message"].map(|name| line[name].clone());
        let expected = serde_json::json!(["a\n\"b\"", "Some(\"c\\u{1}\")", true, -1, 0.5, null, "said \"so\""]);
        assert_eq!(serde_json::Value::from(told.to_vec()), expected);
        assert_eq!((&line["span"]["name"], line.get("absent")), (&"bare".into(), None));
        assert!(line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z') && at.len() == 27), "{line}");
    }

    #[test]
    fn a_pretty_line_is_one_line_for_people() {
        let text = logged(LogFormat::Pretty, "info", || tracing::info!(path = "live/ada", "decided"));
        assert!(text.contains("decided path=\"live/ada\"") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn a_module_can_be_asked_for_more() {
        let text = logged(LogFormat::Pretty, "warn,onair::logging=debug", || {
            tracing::debug!("heard");
            tracing::debug!(target: "elsewhere", "not heard");
        });
        assert!(text.contains("heard") && !text.contains("not heard"), "{text}");
    }
}
