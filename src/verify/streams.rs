//! Streams: the slots in Redis, the lists beside them, and the history's open rows.

use std::collections::{HashMap, HashSet};

use super::{Difference, Findings, Listing, Verify};
use crate::{
    domain::{Epoch, Partition, Revision, Stream, StreamId, StreamPath, StreamState, Timestamp},
    redis::Listings,
    store_error::StoreError,
};

impl Verify {
    /// Gives what Redis holds.
    pub(super) async fn compare_streams(&self, findings: &mut Findings) -> Result<Vec<Stream>, StoreError> {
        let listings = self.redis.listings().await?;
        // Also a path that no list has: so all keys are looked through.
        let paths: HashSet<StreamPath> =
            self.redis.slots().await?.into_iter().chain(listings.live.iter().map(|(path, _)| path.clone())).collect();
        let paths: Vec<StreamPath> = paths.into_iter().collect();
        let held: Vec<Stream> = self.redis.streams_on(&paths).await?.into_iter().flatten().collect();
        findings.compared.streams = held.len() as u64;
        compare_listings(&held, listings, findings);
        self.compare_history(&held, findings).await?;
        Ok(held)
    }

    async fn compare_history(&self, held: &[Stream], findings: &mut Findings) -> Result<(), StoreError> {
        let partitions: Vec<Partition> = Partition::all().collect();
        let last_words = self.redis.last_words(&partitions).await?;
        let mut held: HashMap<StreamId, &Stream> = held.iter().map(|stream| (stream.id, stream)).collect();
        let mut pages = self.rebuild.open_streams();
        while let Some(page) = pages.next().await? {
            for open in page {
                match held.remove(&open.id) {
                    // What waits in the log is on its way.
                    _ if last_words.tell_of(open.id) => {}
                    None => findings.differences.push(Difference::StreamNotHeld(Box::new(open))),
                    Some(stream) if stream.revision != open.revision => {
                        let differs = Difference::StreamState(Box::new(stream.clone()), open.revision);
                        findings.differences.push(differs);
                    }
                    Some(_) => {}
                }
            }
        }
        for stream in held.into_values().filter(|stream| !last_words.tell_of(stream.id)) {
            let stream = Box::new(stream.clone());
            findings.differences.push(match self.postgres.stream(stream.id).await? {
                Some(row) => Difference::StreamEnded(stream, row.stream.revision),
                None => Difference::StreamUnrecorded(stream),
            });
        }
        Ok(())
    }
}

fn compare_listings(held: &[Stream], listings: Listings, findings: &mut Findings) {
    let mut live: HashMap<StreamPath, Epoch> = listings.live.into_iter().collect();
    let mut deadlines: HashMap<StreamPath, Timestamp> = listings.deadlines.into_iter().collect();
    let mut differs = |path: &StreamPath, listing| findings.differences.push(Difference::Listed(path.clone(), listing));
    for stream in held {
        if live.remove(&stream.path) != Some(stream.epoch) {
            differs(&stream.path, Listing::NotLive);
        }
        if deadlines.remove(&stream.path) != next_instant(stream) {
            differs(&stream.path, Listing::NotDue);
        }
    }
    for path in live.keys() {
        differs(path, Listing::LiveInVain);
    }
    for path in deadlines.keys() {
        differs(path, Listing::DueInVain);
    }
}

/// When something is due to happen to a stream, as `lua/transition.lua` has it.
fn next_instant(stream: &Stream) -> Option<Timestamp> {
    let deadline = match stream.state {
        StreamState::Connecting { deadline } => Some(deadline),
        StreamState::Live { .. } | StreamState::Ended { .. } => None,
    };
    deadline.into_iter().chain(stream.key_expires_at).min()
}

/// A revision that the history takes for newer than its row.
pub(super) const fn beyond(row: Revision) -> Revision {
    Revision(row.0 + 1)
}
