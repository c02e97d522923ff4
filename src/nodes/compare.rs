//! What a node says, held against what we believe: a pure function from both to what has to be done.
//!
//! Role: the judgement of the reconciler, without any I/O, so that every case can be tested by itself.
//!
//! Invariants:
//! - A word about a path is always a word about one source. Nothing is concluded about a stream from another source's bytes.
//! - Nobody is declared gone on one look: a stream that was never seen here before needs two polls without it.
//! - What was seen of a source outlives it for a while: its end may still have to be written into the history.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{client::Paths, contract::PathItem};
use crate::domain::{
    NodeName, Progress, Quality, Renditions, SourceId, SourceType, Stream, StreamPath, StreamState, Timestamp, Track,
};

/// Over how many polls the bitrate is measured.
const RATE_SAMPLES: usize = 5;
/// How long a connecting publisher is left alone before its connection is looked for: RTMP takes about two seconds to come
/// online, and a look costs a request.
const CONNECTING_GRACE_MS: u64 = 800;
/// How long the last word about a source is kept after it has left. The history takes a fraction of a second.
const KEPT_MS: u64 = 10_000;

/// Something that has to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Finding {
    /// Online, and its stream is not live yet.
    Online { stream: Arc<Stream>, source_type: SourceType, tracks: Vec<Track> },
    /// Live, and the node no longer has it.
    Gone { stream: Arc<Stream> },
    /// Live, the node does not list it, but the list came in pages: it may have slipped between two.
    PerhapsGone { stream: Arc<Stream> },
    /// Admitted a while ago and not online: its connection may be gone.
    StillConnecting { stream: Arc<Stream> },
    /// Its bytes have stood still since then.
    Stalled { stream: Arc<Stream>, since: Timestamp },
    /// Its bytes move again.
    Flowing { stream: Arc<Stream> },
    /// The node is reachable again.
    Fresh { stream: Arc<Stream> },
    /// It carries something else than is noted, or its exact type was not known.
    Described { stream: Arc<Stream>, source_type: SourceType, tracks: Vec<Track> },
    /// A publisher is online whom nobody admitted to this path on this node.
    Unadmitted { path: StreamPath, source_id: SourceId, source_type: SourceType },
    /// The same, on a path that no key can ever be for.
    UnadmittedElsewhere { source_id: SourceId, source_type: SourceType },
}

impl Finding {
    /// Whether it takes another question to the node.
    pub(super) fn asks_the_node(&self) -> bool {
        match self {
            Self::PerhapsGone { .. }
            | Self::StillConnecting { .. }
            | Self::Unadmitted { .. }
            | Self::UnadmittedElsewhere { .. } => true,
            Self::Online { .. }
            | Self::Gone { .. }
            | Self::Stalled { .. }
            | Self::Flowing { .. }
            | Self::Fresh { .. }
            | Self::Described { .. } => false,
        }
    }
}

/// What one poll of a node amounts to.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) to_do: Vec<Finding>,
    pub(super) progress: Vec<Progress>,
    /// Renditions, each with the source of the stream that it is one of.
    qualities: Vec<(SourceId, Quality)>,
    /// Sources that left a while ago: nothing about them is needed any more.
    pub(super) forgotten: Vec<SourceId>,
}

impl Findings {
    /// Puts every rendition to its stream, in the order of their paths.
    fn hand_out_qualities(&mut self) {
        self.qualities.sort_by(|left, right| left.1.path.cmp(&right.1.path));
        for (source_id, quality) in self.qualities.drain(..) {
            if let Some(progress) = self.progress.iter_mut().find(|progress| progress.source_id == source_id) {
                progress.qualities.push(quality);
            }
        }
    }
}

/// What the poller remembers of a node between two polls.
#[derive(Debug, Default)]
pub(super) struct Memory {
    watched: HashMap<SourceId, Watched>,
    missed: HashMap<SourceId, Timestamp>,
    connecting: HashMap<SourceId, Timestamp>,
    departed: HashMap<SourceId, Timestamp>,
}

#[derive(Debug)]
struct Watched {
    bytes: u64,
    moved_at: Timestamp,
    /// Whether bytes were seen to arrive: a new watcher of a frozen stream does not take its first look for a movement.
    has_moved: bool,
    samples: Vec<(Timestamp, u64)>,
    viewers_peak: u32,
    progress: Progress,
}

/// What one poll is held against.
pub(super) struct Beliefs<'a> {
    /// The node.
    pub(super) node: &'a NodeName,
    /// Streams believed to be on this node before it was asked.
    pub(super) before: Vec<Arc<Stream>>,
    /// Who holds a path, as known after the node had answered.
    pub(super) holder_now: &'a (dyn Fn(&StreamPath) -> Option<Arc<Stream>> + Sync),
    /// When the node answered.
    pub(super) now: Timestamp,
    /// After how many milliseconds without a byte a stream is stalled.
    pub(super) stall_after_ms: u64,
    /// How renditions are told from streams.
    pub(super) renditions: &'a Renditions,
}

impl Memory {
    /// What the poller before saw, so that its successor neither begins the counts anew nor forgets to forget.
    pub(super) fn of(last_words: impl IntoIterator<Item = Progress>) -> Self {
        let watched = last_words.into_iter().map(|progress| (progress.source_id, Watched::from(progress)));
        Self { watched: watched.collect(), ..Self::default() }
    }

    /// In how many milliseconds a source whose bytes stand still will have done so for too long.
    pub(super) fn ms_until_a_stall(&self, now: Timestamp, stall_after_ms: u64) -> Option<u64> {
        let here = self.watched.iter().filter(|(id, _)| !self.departed.contains_key(id));
        let left_ms = |watched: &Watched| stall_after_ms.checked_sub(now.ms_since(watched.moved_at));
        here.filter_map(|(_, watched)| left_ms(watched)).filter(|&ms| ms > 0).min()
    }

    /// The last word about a source.
    pub(super) fn progress_of(&self, source_id: SourceId) -> Option<&Progress> {
        self.watched.get(&source_id).map(|watched| &watched.progress)
    }

    /// These are forgotten elsewhere as well. Until then every poll names them again: nobody else knows that they are left over.
    pub(super) fn forget(&mut self, sources: &[SourceId]) {
        for id in sources {
            self.departed.remove(id);
            self.watched.remove(id);
        }
    }

    fn has_moved(&self, source_id: SourceId) -> bool {
        self.watched.get(&source_id).is_some_and(|watched| watched.has_moved)
    }

    /// Holds what the node says against what we believe.
    pub(super) fn compare(&mut self, paths: &Paths, beliefs: &Beliefs<'_>) -> Findings {
        let mut found = Findings::default();
        let mut online = HashMap::new();
        for item in &paths.items {
            self.judge_online(item, beliefs, &mut online, &mut found);
        }
        for stream in &beliefs.before {
            if !online.contains_key(&stream.source.id) {
                self.judge_absent(stream, paths.in_one_page, beliefs.now, &mut found);
            }
        }
        self.forget_departed(&online, beliefs, &mut found);
        found.hand_out_qualities();
        found
    }

    fn judge_online<'a>(
        &mut self,
        item: &'a PathItem,
        beliefs: &Beliefs<'_>,
        online: &mut HashMap<SourceId, &'a PathItem>,
        found: &mut Findings,
    ) {
        let Some(source) = item.online_source() else { return };
        // Pulled sources and those of tomorrow are none of ours: nobody admits them, nobody kicks them.
        let (Ok(source_type), Some(source_id)) = (source.source_type.parse::<SourceType>(), source.id) else { return };
        online.insert(source_id, item);
        let Ok(path) = item.name.parse::<StreamPath>() else {
            found.to_do.push(Finding::UnadmittedElsewhere { source_id, source_type });
            return;
        };
        if let Some(parent) = beliefs.renditions.parent_of(&path) {
            return self.judge_rendition(item, &parent, (path, source_id, source_type), beliefs, found);
        }
        match (beliefs.holder_now)(&path) {
            Some(stream) if stream.source.id == source_id && stream.node == *beliefs.node => {
                let stalled_since = self.watch(source_id, item, beliefs);
                self.judge_held(&stream, item, source_type, stalled_since, found);
            }
            // It was ended while the node answered: the next poll tells whether its source is really still there.
            _ if beliefs.before.iter().any(|stream| stream.source.id == source_id) => {}
            _ => found.to_do.push(Finding::Unadmitted { path, source_id, source_type }),
        }
    }

    /// A rendition lives and dies with its stream: nobody is admitted to its path but the node itself, so it needs no slot.
    fn judge_rendition(
        &mut self,
        item: &PathItem,
        parent: &StreamPath,
        publisher: (StreamPath, SourceId, SourceType),
        beliefs: &Beliefs<'_>,
        found: &mut Findings,
    ) {
        let (path, source_id, source_type) = publisher;
        match (beliefs.holder_now)(parent) {
            Some(stream) if stream.node == *beliefs.node => {
                self.watch(source_id, item, beliefs);
                let bits_per_second = self.progress_of(source_id).and_then(|progress| progress.inbound_bits_per_second);
                let quality = Quality { path, tracks: item.tracks(), bits_per_second, readers: item.readers() };
                found.qualities.push((stream.source.id, quality));
            }
            _ => found.to_do.push(Finding::Unadmitted { path, source_id, source_type }),
        }
    }

    fn judge_held(
        &self,
        stream: &Arc<Stream>,
        item: &PathItem,
        source_type: SourceType,
        stalled_since: Option<Timestamp>,
        found: &mut Findings,
    ) {
        let stream = || Arc::clone(stream);
        let known = stream();
        let tracks = item.tracks();
        if matches!(known.state, StreamState::Connecting { .. }) {
            found.to_do.push(Finding::Online { stream: stream(), source_type, tracks });
        } else if known.tracks != tracks || known.source.source_type != Some(source_type) {
            found.to_do.push(Finding::Described { stream: stream(), source_type, tracks });
        }
        match (known.stalled_at, stalled_since) {
            (None, Some(since)) => found.to_do.push(Finding::Stalled { stream: stream(), since }),
            (Some(_), None) if self.has_moved(known.source.id) => {
                found.to_do.push(Finding::Flowing { stream: stream() });
            }
            _ => {}
        }
        if known.stale_since.is_some() {
            found.to_do.push(Finding::Fresh { stream: stream() });
        }
        if let Some(progress) = self.progress_of(known.source.id) {
            found.progress.push(progress.clone());
        }
    }

    /// Notes bytes and viewers of a source; since when it has delivered nothing, where that is too long.
    fn watch(&mut self, source_id: SourceId, item: &PathItem, beliefs: &Beliefs<'_>) -> Option<Timestamp> {
        let (bytes, now) = (item.inbound_bytes(), beliefs.now);
        let first_look = || Progress {
            source_id,
            seen_at: now,
            inbound_bytes: bytes,
            outbound_bytes: 0,
            inbound_bits_per_second: None,
            inbound_frames_in_error: 0,
            readers: Vec::new(),
            viewers_peak: 0,
            qualities: Vec::new(),
        };
        let watched = self.watched.entry(source_id).or_insert_with(|| first_look().into());
        if bytes != watched.bytes {
            watched.moved_at = now;
            watched.has_moved = true;
        }
        if bytes < watched.bytes {
            // The counter was reset: what was measured before says nothing about what comes.
            watched.samples.clear();
        }
        watched.bytes = bytes;
        watched.samples.push((now, bytes));
        if watched.samples.len() > RATE_SAMPLES {
            watched.samples.remove(0);
        }
        let readers = item.readers();
        let viewers: u32 = readers.iter().map(|reader| reader.count).sum();
        watched.viewers_peak = watched.viewers_peak.max(viewers);
        watched.progress = Progress {
            source_id,
            seen_at: now,
            inbound_bytes: bytes,
            outbound_bytes: item.outbound_bytes(),
            inbound_bits_per_second: bits_per_second(&watched.samples),
            inbound_frames_in_error: item.inbound_frames_in_error,
            readers,
            viewers_peak: watched.viewers_peak,
            qualities: Vec::new(),
        };
        (now.ms_since(watched.moved_at) >= beliefs.stall_after_ms).then_some(watched.moved_at)
    }

    fn judge_absent(&mut self, stream: &Arc<Stream>, in_one_page: bool, now: Timestamp, found: &mut Findings) {
        let (source_id, stream) = (stream.source.id, Arc::clone(stream));
        if matches!(stream.state, StreamState::Connecting { .. }) {
            let since = *self.connecting.entry(source_id).or_insert(now);
            if now.ms_since(since) >= CONNECTING_GRACE_MS {
                found.to_do.push(Finding::StillConnecting { stream });
            }
            return;
        }
        let seen_here_before = self.watched.contains_key(&source_id);
        let missed_before = self.missed.insert(source_id, now).is_some();
        if seen_here_before || missed_before {
            let finding = if in_one_page { Finding::Gone { stream } } else { Finding::PerhapsGone { stream } };
            found.to_do.push(finding);
        }
    }

    fn forget_departed(&mut self, online: &HashMap<SourceId, &PathItem>, beliefs: &Beliefs<'_>, found: &mut Findings) {
        let believed: HashSet<SourceId> = beliefs.before.iter().map(|stream| stream.source.id).collect();
        let believed = |id: &SourceId| believed.contains(id);
        self.departed.retain(|id, _| !online.contains_key(id) && !believed(id));
        for (id, watched) in self.watched.iter().filter(|(id, _)| !online.contains_key(id) && !believed(id)) {
            // Not from now on: a poller that has just taken over would never forget it where its lease is lost again and again.
            self.departed.entry(*id).or_insert(watched.progress.seen_at);
        }
        let is_over = |since: Timestamp| beliefs.now.ms_since(since) >= KEPT_MS;
        found.forgotten = self.departed.iter().filter(|(_, since)| is_over(**since)).map(|(id, _)| *id).collect();
        self.missed.retain(|id, _| !online.contains_key(id) && believed(id));
        self.connecting.retain(|id, _| !online.contains_key(id) && believed(id));
    }
}

impl From<Progress> for Watched {
    fn from(progress: Progress) -> Self {
        Self {
            bytes: progress.inbound_bytes,
            moved_at: progress.seen_at,
            has_moved: false,
            samples: Vec::new(),
            viewers_peak: progress.viewers_peak,
            progress,
        }
    }
}

fn bits_per_second(samples: &[(Timestamp, u64)]) -> Option<u64> {
    let ((first_at, first_bytes), (last_at, last_bytes)) = (samples.first()?, samples.last()?);
    let elapsed_ms = last_at.ms_since(*first_at);
    (elapsed_ms > 0).then(|| last_bytes.saturating_sub(*first_bytes).saturating_mul(8_000) / elapsed_ms)
}

#[cfg(test)]
mod tests;
