//! What is done about what a poll found.
//!
//! Invariant: everything here may be done twice, too late or only in part; the next poll finds the rest.

use futures_util::{StreamExt as _, stream};

use super::{ASIDE_LIMIT, Ownership, Poller, report_error};
use crate::{
    domain::{EndReason, Protocol, SourceId, SourceType, Stream, StreamPath, Timestamp},
    metrics,
    nodes::{
        client::{NodeError, QUICK_LIMIT},
        compare::{Finding, Findings},
        contract::PathItem,
    },
    postgres::StreamRecord,
    redis::{Afterwards, EndRequest, Ending, Holder, KickIntent, Observation, RememberedBy, Watcher},
    streams::note_end,
};

/// How many questions besides are open at once.
const ASIDE_AT_ONCE: usize = 8;

impl Poller {
    pub(super) async fn carry_out(&mut self, found: Findings) {
        self.carry_out_all(&found).await;
        let written = self.nodes.inner.redis.write_progress(&self.node.name, &found.progress, &found.forgotten).await;
        match written {
            Ok(()) => self.memory.forget(&found.forgotten),
            Err(error) => tracing::debug!(%error, "what the poller saw could not be written"),
        }
    }

    async fn carry_out_all(&self, found: &Findings) {
        let (to_ask, to_do): (Vec<_>, Vec<_>) = found.to_do.iter().partition(|finding| finding.asks_the_node());
        for finding in to_do {
            self.carry_out_one(finding).await;
        }
        let asking = stream::iter(to_ask).for_each_concurrent(ASIDE_AT_ONCE, |finding| self.carry_out_one(finding));
        // Whoever was not asked about in time is found again by the next poll.
        let _ = tokio::time::timeout(ASIDE_LIMIT, asking).await;
    }

    async fn carry_out_one(&self, finding: &Finding) {
        match finding {
            Finding::Online { stream, source_type, tracks } => {
                let source = (stream.source.id, *source_type);
                let confirmed = self.nodes.inner.redis.confirm(&stream.path, &self.node.name, source, tracks).await;
                report_error(confirmed.map(drop));
            }
            Finding::Gone { stream } => self.end(stream, self.gone_because(), Afterwards::Gone).await,
            Finding::PerhapsGone { stream } => self.end_if_gone(stream, self.gone_because()).await,
            Finding::StillConnecting { stream } => self.end_if_unconnected(stream).await,
            Finding::Stalled { stream, since } => self.observe(stream, &[Observation::Stalled(Some(*since))]).await,
            Finding::Flowing { stream } => self.observe(stream, &[Observation::Stalled(None)]).await,
            Finding::Fresh { stream } => self.observe(stream, &[Observation::Stale(None)]).await,
            Finding::Described { stream, source_type, tracks } => {
                self.observe(stream, &[Observation::Tracks(tracks), Observation::SourceType(*source_type)]).await;
            }
            Finding::Unadmitted { path, source_id, source_type } => {
                self.unadmitted(path, *source_id, *source_type).await;
            }
            Finding::UnadmittedElsewhere { source_id, source_type } => {
                tracing::warn!(node = %self.node.name, %source_id, "a publisher is on a path that no key is for: kicked");
                let kicked = self.nodes.inner.client.kick(&self.node, *source_type, *source_id, QUICK_LIMIT).await;
                let outcome = if kicked.is_ok() { metrics::KickOutcome::Kicked } else { metrics::KickOutcome::Failed };
                metrics::kick(EndReason::Unadmitted.as_str(), outcome);
            }
        }
    }

    pub(super) async fn observe(&self, stream: &Stream, observations: &[Observation<'_>]) {
        let Ownership::Mine(token) = self.ownership else { return };
        let watcher = Watcher { node: &self.node.name, token };
        report_error(self.nodes.inner.redis.observe(&stream.path, watcher, stream.source.id, observations).await);
    }

    pub(super) async fn end(&self, stream: &Stream, reason: EndReason, afterwards: Afterwards) {
        let request = EndRequest {
            path: &stream.path,
            holder: Holder::Source(stream.source.id, &self.node.name),
            reason,
            afterwards,
            progress: self.memory.progress_of(stream.source.id),
        };
        match self.nodes.inner.redis.end(&request).await {
            Ok(Ending::Ended(ended)) => note_end(&ended),
            // It has ended before, or is about another source by now.
            Ok(Ending::OtherSource | Ending::NotHeld | Ending::NotDue) => {}
            Err(error) => report_error(Err(error)),
        }
    }

    async fn end_if_gone(&self, stream: &Stream, reason: EndReason) {
        if self.source_on(&stream.path).await.is_ok_and(|source| source != Some(stream.source.id)) {
            self.end(stream, reason, Afterwards::Gone).await;
        }
    }

    /// Who feeds a path at this moment.
    async fn source_on(&self, path: &StreamPath) -> Result<Option<SourceId>, NodeError> {
        let item = self.nodes.inner.client.path(&self.node, path.as_str()).await?;
        Ok(item.as_ref().and_then(PathItem::online_source).and_then(|source| source.id))
    }

    async fn end_if_unconnected(&self, stream: &Stream) {
        let known = stream.source.source_type.map(|known| vec![known]);
        let types = known.unwrap_or_else(|| stream.source.protocol.source_types().to_vec());
        for source_type in types {
            let client = &self.nodes.inner.client;
            let connection = client.connection(&self.node, source_type, stream.source.id, QUICK_LIMIT).await;
            // It is there, or it cannot be known: the deadline decides.
            if !matches!(connection, Ok(None)) {
                return;
            }
        }
        self.end(stream, EndReason::NeverOnline, Afterwards::Gone).await;
    }

    /// A publisher is online whom Redis does not know. Where Redis has lost its memory, the history still has its stream.
    async fn unadmitted(&self, path: &StreamPath, source_id: SourceId, source_type: SourceType) {
        // Ended by us and not gone yet: the history may still think it open, but it must not come back.
        match self.nodes.inner.redis.owes_kick(path, source_id).await {
            Ok(true) => return self.nodes.inner.kick_owed.notify_one(),
            Ok(false) => {}
            Err(error) => return report_error(Err(error)),
        }
        let open = match self.nodes.inner.postgres.open_stream_of(path).await {
            Ok(open) => open,
            Err(error) => {
                // Whoever is on air has been admitted once; thrown off only by somebody who knows better.
                tracing::warn!(%path, %error, "a publisher is not known and the history cannot be asked: left alone for now");
                return;
            }
        };
        // The node's list may be older than what we know: a publisher that came and went while it was on its way stands in it,
        // and nobody holds its path any more.
        if self.source_on(path).await != Ok(Some(source_id)) {
            return;
        }
        let is_open = |open: &StreamRecord| open.stream.source.id == source_id && open.stream.node == self.node.name;
        if let Some(open) = open.filter(is_open) {
            match self.nodes.inner.restorer.restore(&[open.stream], RememberedBy::History).await {
                // It has ended, and its source is still there.
                Ok(report) if report.ending > 0 => {}
                Ok(report) if report.restored > 0 => {
                    let node = &self.node.name;
                    tracing::warn!(%path, %node, "Redis had lost a stream that is on air: restored from the history");
                    return;
                }
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "a stream could not be restored; the next poll finds it again");
                    return;
                }
            }
        }
        // Another replica may have put its stream back since, which only that one remembered, or may be about to.
        match self.nodes.inner.redis.stream_certainly_on(path).await {
            Ok(Some(held)) if held.source.id == source_id && held.node == self.node.name => return,
            Ok(_) => {}
            Err(error) => return report_error(Err(error)),
        }
        self.send_away(path, source_id, source_type).await;
    }

    async fn send_away(&self, path: &StreamPath, source_id: SourceId, source_type: SourceType) {
        tracing::warn!(%path, node = %self.node.name, %source_id, "a publisher is on air whom nobody admitted: kicked");
        let kick = KickIntent {
            path: path.clone(),
            node: self.node.name.clone(),
            source_id,
            source_type: Some(source_type),
            protocol: Protocol::Other,
            reason: EndReason::Unadmitted,
            since: Timestamp::now(),
        };
        self.nodes.inner.kicks.kick_unadmitted(&kick).await;
    }
}
