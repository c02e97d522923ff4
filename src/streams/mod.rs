//! Streams: what is on air and what was, and everything that is done to a stream from outside.
//!
//! Role: the list, the details, the changes that administrators make, and the words that hooks bring. What is on air comes
//! from the live view, what was from the history.
//!
//! Invariant: a stream that has ended is found in the history, or, until it is written there, in the event log: at no
//! moment is it in neither.

mod deadlines;
mod index;
mod list;
mod live;
mod progress;
mod snapshot;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

pub use list::{ListFilter, ListPage, LivePosition, page};
pub use live::{LiveView, View, ViewUnavailable};
pub use snapshot::{ProgressBySource, Snapshot};

use crate::{
    domain::{
        ChangedBy, EndReason, Metadata, NodeName, Page, PageRequest, Progress, SourceId, SourceType, Stream, StreamId,
        StreamInfo, StreamPath, StreamState, StreamStateWord, Timestamp, names_of_changed,
    },
    lifecycle::Tasks,
    metrics,
    postgres::{Deed, EndedFilter, EndedPosition, Postgres, PostgresError, StreamRecord, Totals},
    redis::{Afterwards, Confirmation, Description, EndRequest, Ending, Holder, Redis, RedisError},
};

/// How far back in each partition's event log an ended stream is looked for that the history does not have yet.
const LOG_DEPTH_MAX: u64 = 200;
/// How often a change of a stream's description is tried again where somebody else changed it meanwhile.
const PATCH_TRIES: u32 = 10;
/// How long it is waited in between: the history has an end a moment after the list has lost the stream.
const PATCH_PAUSE: Duration = Duration::from_millis(100);

/// Streams. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    redis: Redis,
    postgres: Postgres,
    live: LiveView,
    kick_owed: Arc<Notify>,
    cooldown_ms: u64,
}

/// Why something could not be done to a stream, or said of it.
#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    /// There never was such a stream.
    #[error("no such stream")]
    NotFound,
    /// It is over: there is nothing to stop or to describe.
    #[error("the stream has ended")]
    Ended,
    /// Others kept changing it.
    #[error("the stream was changed by others at the same time")]
    Contended,
    /// Redis gave no answer.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Postgres gave no answer.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// What is on air cannot be read.
    #[error(transparent)]
    View(#[from] ViewUnavailable),
}

/// Everything that is known of a stream.
#[derive(Debug, Clone)]
pub struct StreamDetails {
    /// The stream.
    pub stream: Stream,
    /// The poller's last word about it, while it is on air.
    pub progress: Option<Progress>,
    /// What it amounted to, once it is over.
    pub totals: Option<Totals>,
    /// When this was true.
    pub as_of: Timestamp,
    /// Set where Redis could not be asked, so that this is the last that was known.
    pub stale: Option<RedisError>,
}

impl StreamDetails {
    /// An error where Redis may have forgotten the stream: whoever is about to change it would be told that it is over. Whatever else keeps
    /// Redis from being asked, it says so itself, or is about others.
    fn must_be_remembered(&self) -> Result<(), StreamsError> {
        match &self.stale {
            Some(error @ RedisError::MemoryLost) => Err(error.clone().into()),
            _ => Ok(()),
        }
    }
}

/// A change of what viewers are told. An absent field stays as it is, and `Some(None)` clears it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamPatch {
    /// Title.
    pub title: Option<Option<String>>,
    /// Description.
    pub description: Option<Option<String>>,
    /// Free data; replaced as a whole.
    pub metadata: Option<Metadata>,
    /// Where the recording is.
    pub recording: Option<Option<String>>,
}

impl StreamPatch {
    fn apply(&self, stream: &Stream) -> StreamInfo {
        let mut info = stream.info.clone();
        let replace = |field: &mut Option<String>, change: &Option<Option<String>>| {
            if let Some(value) = change {
                field.clone_from(value);
            }
        };
        replace(&mut info.title, &self.title);
        replace(&mut info.description, &self.description);
        replace(&mut info.recording, &self.recording);
        if let Some(metadata) = &self.metadata {
            info.metadata.clone_from(metadata);
        }
        info
    }
}

/// A hook's word about a publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookWord {
    /// The path.
    pub path: StreamPath,
    /// The publisher.
    pub source_id: SourceId,
    /// What it is.
    pub source_type: SourceType,
}

impl Streams {
    /// Sets streams up and starts the task that keeps their deadlines.
    #[must_use]
    pub fn start(
        stores: (Redis, Postgres),
        live: LiveView,
        kick_owed: Arc<Notify>,
        cooldown_ms: u64,
        tasks: &Tasks,
    ) -> Self {
        let (redis, postgres) = stores;
        tasks.spawn("deadlines", deadlines::keep(redis.clone(), Arc::clone(&kick_owed), tasks.stopping()));
        Self { redis, postgres, live, kick_owed, cooldown_ms }
    }

    /// What was on air, the one that ended last first.
    ///
    /// # Errors
    /// Where Postgres gives no answer.
    pub async fn ended(
        &self,
        filter: &EndedFilter,
        page: &PageRequest<EndedPosition>,
    ) -> Result<Page<StreamRecord, EndedPosition>, StreamsError> {
        Ok(self.postgres.ended_streams(filter, page).await?)
    }

    /// What is on air now: the last that was known, marked as stale, where Redis cannot be asked.
    ///
    /// # Errors
    /// Where it cannot be asked for at all.
    pub async fn view(&self) -> Result<View, StreamsError> {
        Ok(self.live.now().await?)
    }

    /// Everything about one stream, on air or over.
    ///
    /// # Errors
    /// [`StreamsError::NotFound`], or where a store that is needed gives no answer.
    pub async fn details(&self, id: StreamId) -> Result<StreamDetails, StreamsError> {
        let view = self.live.now().await?;
        let (as_of, stale) = (view.snapshot.as_of, view.stale);
        if let Some(stream) = view.snapshot.by_id(id) {
            let progress = view.snapshot.progress_of(stream).cloned();
            return Ok(StreamDetails { stream: Stream::clone(stream), progress, totals: None, as_of, stale });
        }
        // Boxed, because details of what is on air would carry its room.
        let (stream, totals) = Box::pin(self.recorded(id)).await?;
        Ok(StreamDetails { stream, progress: None, totals, as_of, stale })
    }

    /// A stream that is not on air, from where it is written.
    async fn recorded(&self, id: StreamId) -> Result<(Stream, Option<Totals>), StreamsError> {
        let recorded = self.postgres.stream(id).await;
        if let Ok(Some(record)) = &recorded
            && record.stream.state.word() == StreamStateWord::Ended
        {
            return Ok((record.stream.clone(), record.totals));
        }
        // It ended a moment ago, or the history cannot be asked: the log knows what is not written there yet.
        if let Ok(Some(event)) = self.redis.find_in_log(id, LOG_DEPTH_MAX).await {
            let seen = match event.last_progress {
                Some(seen) => Some(seen),
                None => self.redis.progress(&event.stream.node, event.stream.source.id).await.unwrap_or_default(),
            };
            return Ok((event.stream, seen.as_ref().map(Totals::from)));
        }
        recorded?;
        // What the log has no more has gone into the history, maybe since that was asked.
        let record = self.postgres.stream(id).await?.ok_or(StreamsError::NotFound)?;
        Ok((record.stream, record.totals))
    }

    /// Changes what is told about a stream: while it is on air, or in the history, where a reference to its recording
    /// usually comes. Who did it is noted in the audit log, if Postgres takes it.
    ///
    /// # Errors
    /// [`StreamsError::NotFound`], or where the store that has it gives no answer: then nothing is promised.
    pub async fn patch(
        &self,
        id: StreamId,
        patch: &StreamPatch,
        by: &ChangedBy,
    ) -> Result<StreamDetails, StreamsError> {
        let (details, fields) = self.describe(id, patch).await?;
        if !fields.is_empty() {
            self.postgres.note_deed(by, Deed::StreamChanged(&details.stream, &fields)).await;
        }
        Ok(details)
    }

    /// The stream as it is then, and the names of the fields that were changed.
    async fn describe(
        &self,
        id: StreamId,
        patch: &StreamPatch,
    ) -> Result<(StreamDetails, Vec<&'static str>), StreamsError> {
        for _ in 0..PATCH_TRIES {
            let details = self.details(id).await?;
            let info = patch.apply(&details.stream);
            let fields = changed_fields(&details.stream.info, &info);
            if details.stream.state.word() != StreamStateWord::Ended {
                details.must_be_remembered()?;
                if let Description::Written(stream) = self.redis.describe(&details.stream, &info).await? {
                    return Ok((StreamDetails { stream: *stream, ..details }, fields));
                }
            } else if self.postgres.describe_ended(&details.stream, &info).await? {
                return Ok((StreamDetails { stream: Stream { info, ..details.stream }, ..details }, fields));
            }
            // It ended meanwhile, its end is not in the history yet, or somebody else changed it: read again.
            tokio::time::sleep(PATCH_PAUSE).await;
        }
        Err(StreamsError::Contended)
    }

    /// Takes a stream off air and closes its path for the cool-down, so that the encoder's reconnect does not undo it. The
    /// kick of its source is owed from now on; the stream as it ended is returned.
    ///
    /// # Errors
    /// [`StreamsError::NotFound`], [`StreamsError::Ended`], or where Redis gives no answer.
    pub async fn stop(&self, id: StreamId) -> Result<Stream, StreamsError> {
        let details = self.on_air(id).await?;
        let request = EndRequest {
            path: &details.stream.path,
            holder: Holder::Stream(id),
            reason: EndReason::Stopped,
            afterwards: Afterwards::KickAndCoolDown(self.cooldown_ms),
            progress: details.progress.as_ref(),
        };
        match self.redis.end(&request).await? {
            Ending::Ended(stream) => {
                note_end(&stream);
                self.kick_owed.notify_one();
                Ok(*stream)
            }
            Ending::OtherSource | Ending::NotHeld | Ending::NotDue => Err(StreamsError::Ended),
        }
    }

    /// Notes in the audit log, if Postgres takes it, that somebody took this stream off air.
    pub async fn note_stop(&self, stopped: &Stream, by: &ChangedBy) {
        self.postgres.note_deed(by, Deed::StreamStopped(stopped)).await;
    }

    async fn on_air(&self, id: StreamId) -> Result<StreamDetails, StreamsError> {
        let details = self.details(id).await?;
        details.must_be_remembered()?;
        match details.stream.state {
            StreamState::Ended { .. } => Err(StreamsError::Ended),
            _ => Ok(details),
        }
    }

    /// A hook says that a publisher is online. A word about a source that does not hold the path changes nothing: it is
    /// late, or the poller will find a publisher whom nobody admitted.
    ///
    /// # Errors
    /// Where Redis gives no answer; the poller finds the same by itself.
    pub async fn published(&self, node: &NodeName, word: &HookWord) -> Result<Confirmation, StreamsError> {
        let source = (word.source_id, word.source_type);
        let confirmation = self.redis.confirm(&word.path, node, source, &[]).await?;
        tracing::info!(path = %word.path, %node, source_id = %word.source_id, ?confirmation, "hook: publisher online");
        Ok(confirmation)
    }

    /// A hook says that a publisher is gone.
    ///
    /// # Errors
    /// Where Redis gives no answer; the poller finds the same by itself.
    pub async fn unpublished(&self, node: &NodeName, word: &HookWord) -> Result<Ending, StreamsError> {
        // Boxed, because it is several times as large as all the rest.
        let progress = Box::pin(self.redis.progress(node, word.source_id)).await?;
        let request = EndRequest {
            path: &word.path,
            holder: Holder::Source(word.source_id, node),
            reason: EndReason::Unpublished,
            afterwards: Afterwards::Gone,
            progress: progress.as_ref(),
        };
        let ending = self.redis.end(&request).await?;
        match &ending {
            Ending::Ended(stream) => note_end(stream),
            Ending::OtherSource | Ending::NotHeld | Ending::NotDue => {
                tracing::info!(path = %word.path, %node, source_id = %word.source_id, "hook: a late word about a publisher that is gone");
            }
        }
        Ok(ending)
    }
}

/// The names of the fields in which two descriptions differ.
fn changed_fields(before: &StreamInfo, after: &StreamInfo) -> Vec<&'static str> {
    names_of_changed([
        ("title", before.title != after.title),
        ("description", before.description != after.description),
        ("metadata", before.metadata != after.metadata),
        ("recording", before.recording != after.recording),
    ])
}

/// Counts the end of a stream that has ended, and says so in the log.
pub(crate) fn note_end(stream: &Stream) {
    let Some(reason) = stream.end_reason() else { return };
    metrics::stream_ended(reason);
    tracing::info!(
        stream_id = %stream.id, path = %stream.path, node = %stream.node, source_id = %stream.source.id,
        key_id = %stream.key_id, %reason, "a stream ended"
    );
}
