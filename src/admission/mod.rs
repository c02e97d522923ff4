//! Admission: credentials in, decision out.
//!
//! Role: answers `MediaMTX`'s auth call. `MediaMTX` asks from inside its one path-manager loop, so while an answer is open
//! nobody else on that node gets one: latency here is capacity there.
//!
//! Invariants:
//! - The path of a known key costs one EVALSHA, its own or shared, and nothing else: no Postgres, no second command, no node's control API.
//!   Calling `paths/*` of the node that waits for us would wait for itself.
//! - Whatever cannot be known refuses ([`RefusalCode::StateUnavailable`]): no unauthorised stream, ever.
//! - Every answer comes within the deadline of the configuration, or a later one where Redis is busy with those who came before.
//! - No key, password, token or query string leaves this module: not in a decision, not in a log line.

mod abandoned;
mod attempts;
mod credentials;
mod deadline;
mod decision;
mod existence;
mod failures;
mod lookup;
mod node_itself;
mod recent;
mod request;

use std::{net::IpAddr, sync::Arc, time::Instant};

use tokio::sync::{Notify, mpsc};

pub(crate) use credentials::Credentials;
pub use credentials::loggable_path;
pub use decision::{Allowance, Decision, Outcome, Refusal, RefusalCode};
pub use recent::RecentAdmission;
pub use request::{Action, AuthRequest};

use self::{
    abandoned::Abandonments,
    credentials::path_holds_a_key,
    deadline::Deadline,
    failures::Failures,
    lookup::{Found, Lookup, LookupError},
};
use crate::{
    config::{AdmissionConfig, Config},
    domain::{NodeName, OpenPaths, Protocol, Renditions, Secret, Stream, StreamPath},
    history::Backlog,
    lifecycle::Tasks,
    metrics,
    node_credentials::NodeCredentials,
    postgres::Postgres,
    redis::{Admission as Admitting, AdmitAnswer, AdmitRequest, Redis, RedisError, Ticket},
};

/// Decides who may publish and who may watch.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    config: AdmissionConfig,
    renditions: Renditions,
    open_paths: OpenPaths,
    credentials: NodeCredentials,
    redis: Redis,
    lookup: Lookup,
    failures: Failures,
    recent: recent::Recent,
    abandoned: Abandonments,
    attempts: mpsc::Sender<attempts::Noted>,
    noticed: attempts::Noticed,
    /// Woken where an admission owes a kick.
    kick_owed: Arc<Notify>,
    backlog: Backlog,
}

/// An admission that Redis has not answered. Dropped where it took too long or failed, and with the whole call where its node hung
/// up: if it was sent, nobody hears then what Redis may yet decide.
struct Unanswered<'a> {
    admission: &'a Admission,
    request: &'a AdmitRequest<'a>,
    ticket: Ticket,
    is_answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.is_answered && !self.ticket.take() {
            self.admission.inner.abandoned.note(self.request);
        }
    }
}

/// What `admit` answered, and the key's own path where that is not the one that was asked for.
struct Answered {
    answer: AdmitAnswer,
    key_path: Option<StreamPath>,
}

impl Admission {
    /// Sets admission up. `kick_owed` is woken whenever a newcomer took the place of a source that is still to be kicked;
    /// `backlog` says when nobody new may be admitted.
    #[must_use]
    pub fn new(
        config: &Config,
        credentials: NodeCredentials,
        stores: (Redis, Postgres),
        (kick_owed, backlog): (Arc<Notify>, Backlog),
        tasks: &Tasks,
    ) -> Self {
        let (redis, postgres) = stores;
        let codes =
            Allowance::ALL.iter().map(|word| word.as_str()).chain(RefusalCode::ALL.iter().map(|word| word.as_str()));
        for action in Action::ALL.iter().filter(|action| action.is_of_client()) {
            metrics::decisions_begin(*action, codes.clone());
        }
        let limits = config.admission.clone();
        let (noted, to_note) = mpsc::channel(attempts::WAITING_MAX);
        tasks.spawn("record_attempts", attempts::record(redis.clone(), to_note, tasks.stopping()));
        let inner = Inner {
            abandoned: Abandonments::start(redis.clone(), tasks),
            lookup: Lookup::new(postgres, redis.clone(), &limits, tasks),
            failures: Failures::new(limits.failures_burst, limits.failures_refill_per_second, limits.addresses_max),
            config: limits,
            renditions: config.renditions.suffixes.clone(),
            open_paths: config.viewing.open_paths.clone(),
            credentials,
            redis,
            recent: recent::Recent::default(),
            attempts: noted,
            noticed: attempts::Noticed::new(),
            kick_owed,
            backlog,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whom this replica admitted a moment ago.
    #[must_use]
    pub fn recent(&self) -> Vec<RecentAdmission> {
        self.inner.recent.all()
    }

    /// Decides one call of `node`, before its deadline.
    pub async fn decide(&self, node: &NodeName, request: &AuthRequest) -> Decision {
        let mut deadline = Deadline::begin(&self.inner.config);
        // In a place of its own: every future around it would hold it twice, before and after it was moved.
        let decision = Box::pin(self.decide_before(&mut deadline, node, request)).await;
        self.note_attempt(node, request, &decision);
        decision
    }

    async fn decide_before(&self, deadline: &mut Deadline, node: &NodeName, request: &AuthRequest) -> Decision {
        match request.action() {
            Action::Publish => self.decide_publish(deadline, node, request).await,
            // Boxed like the next one, so that a publisher's call does not carry its room.
            Action::Read | Action::Playback => Box::pin(self.decide_read(deadline, node, request)).await,
            Action::Api | Action::Metrics | Action::Pprof => self.decide_control(node, request),
            Action::Unknown => Decision::refused(Refusal::new(
                RefusalCode::ActionUnknown,
                "this version of Onair does not know what the node asks for; upgrade it",
            )),
        }
    }

    async fn decide_publish(&self, deadline: &mut Deadline, node: &NodeName, request: &AuthRequest) -> Decision {
        let path: Result<StreamPath, _> = request.path.parse();
        if let Some(parent) = path.as_ref().ok().and_then(|path| self.inner.renditions.parent_of(path)) {
            return Box::pin(self.decide_rendition(deadline, node, &parent, request)).await;
        }
        let read = self.read_secret(request).and_then(|secret| {
            let malformed = |error| Refusal::new(RefusalCode::PathMalformed, format!("{error}"));
            Ok((secret, path.map_err(malformed)?))
        });
        let (secret, path) = match read {
            Ok(read) => read,
            Err(refusal) => return Decision::refused(refusal),
        };
        let admit = AdmitRequest {
            path: &path,
            secret_hash: secret.hash(),
            node,
            source_id: request.id,
            protocol: Protocol::from_mediamtx(&request.protocol),
            address: bounded(&request.ip, 64),
            user_agent: bounded(&request.user_agent, 200),
            connecting_timeout_ms: self.inner.config.connecting_timeout_ms,
        };
        if request.id.is_some() && self.inner.backlog.refuses() {
            return Decision::refused(Refusal::backlog_full());
        }
        match self.admit(deadline, &admit).await {
            Ok(answered) => {
                self.inner.recent.note(&admit, &answered.answer);
                self.publish_decision(request, &secret, answered)
            }
            Err(refusal) => Decision::refused(refusal),
        }
    }

    /// The stream key, and what can be said of it without asking anybody.
    fn read_secret(&self, request: &AuthRequest) -> Result<Secret, Refusal> {
        if path_holds_a_key(&request.path) {
            return Err(Refusal::new(
                RefusalCode::KeyInPath,
                "the stream key is written in the path, where every viewer sees it: publish to the path that was given with \
                 the key and append ?key=<stream key> (OBS: server rtmp://host/live, stream key name?key=<stream key>); \
                 revoke this key if others may have seen the address",
            ));
        }
        let presented = match Credentials::of(request) {
            Credentials::Presented(presented) => presented,
            Credentials::Missing if request.protocol == "rtsp" && !request.may_be_first_of_rtsp() => {
                return Err(Refusal::new(
                    RefusalCode::CredentialsMissing,
                    "a user name, but no stream key: give the key as the password, and have the node ask for it with \
                     rtspAuthMethods: [basic], since digest does not show it",
                ));
            }
            Credentials::Missing => {
                return Err(Refusal::new(
                    RefusalCode::CredentialsMissing,
                    "no stream key in the call: append ?key=<stream key> to the path, or give the key as password or as \
                     Bearer token (the first call of an RTSP client is always without, and this answer makes it ask)",
                ));
            }
            Credentials::Conflicting => {
                return Err(Refusal::new(
                    RefusalCode::CredentialsConflict,
                    "two different keys in one call: give the stream key in one place only",
                ));
            }
        };
        self.slow_down(&request.ip, &presented)?;
        Secret::parse(&presented).map_err(|_| {
            self.note_failure(&request.ip, &presented);
            Refusal::new(
                RefusalCode::KeyMalformed,
                "this is no stream key of ours, or a character of it is wrong: copy it again as a whole, with its sk_",
            )
        })
    }

    async fn admit(&self, deadline: &mut Deadline, request: &AdmitRequest<'_>) -> Result<Answered, Refusal> {
        // The second round is for a key that Postgres knew; a third cannot help.
        for _ in 0..2 {
            let answer = self.ask_redis(deadline, request).await;
            let answer = answer.map_err(|error| Refusal::state_unavailable(&error))?;
            if answer.admission != Admitting::KeyAbsent {
                return Ok(Answered { answer, key_path: None });
            }
            // Boxed, because it is rare and large: every call would carry its room.
            let finding = Box::pin(self.inner.lookup.find(request.path, request.secret_hash));
            match deadline.keep(finding).await.unwrap_or(Err(LookupError::Redis(RedisError::Timeout))) {
                Ok(Found::Installed) => {}
                Ok(Found::Unknown) => return Ok(Answered { answer, key_path: None }),
                Ok(Found::ForOtherPath(key_id, key_path)) => {
                    let answer = AdmitAnswer { key_id: Some(key_id), admission: Admitting::PathMismatch };
                    return Ok(Answered { answer, key_path: Some(key_path) });
                }
                Err(LookupError::Redis(error)) => return Err(Refusal::state_unavailable(&error)),
                Err(error @ LookupError::Postgres) => {
                    return Err(Refusal::new(RefusalCode::StateUnavailable, error.to_string()).retry_after_ms(1_000));
                }
            }
        }
        self.inner.lookup.forget(request.secret_hash).await;
        Err(Refusal::state_unavailable(&RedisError::Unavailable))
    }

    async fn ask_redis(&self, deadline: &mut Deadline, request: &AdmitRequest<'_>) -> Result<AdmitAnswer, RedisError> {
        let mut unanswered = Unanswered { admission: self, request, ticket: Ticket::default(), is_answered: false };
        let asking = self.inner.redis.admit_with(request, &unanswered.ticket, None);
        let answer = self.in_time(deadline, request.path, asking).await;
        unanswered.is_answered = answer.is_ok();
        answer
    }

    /// What Redis says of `path`, unless that takes too long.
    async fn in_time<T>(
        &self,
        deadline: &mut Deadline,
        path: &StreamPath,
        asking: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let answered_at = || self.inner.redis.answered_at(path);
        let asked = Instant::now();
        let answer = deadline.keep_with_redis(answered_at, asking).await;
        metrics::auth_redis(asked.elapsed());
        answer.unwrap_or(Err(RedisError::Timeout))
    }

    fn publish_decision(&self, request: &AuthRequest, secret: &Secret, answered: Answered) -> Decision {
        let Answered { answer, key_path } = answered;
        let key_id = answer.key_id;
        let publishing = |stream_id, epoch, allowance| Outcome::Publishing { stream_id, epoch, allowance };
        let outcome = match answer.admission {
            Admitting::Admitted { stream_id, epoch, replaced } => {
                if let Some(replaced) = replaced {
                    self.note_replaced(&replaced);
                }
                self.note_success(&request.ip);
                publishing(stream_id, epoch, Allowance::Admitted)
            }
            Admitting::AdmittedAgain { stream_id, epoch } => publishing(stream_id, epoch, Allowance::AdmittedAgain),
            Admitting::Checked => Outcome::Allowed(Allowance::Checked),
            refused => {
                let refusal = Refusal::of(&refused);
                if refusal.code.is_about_the_key() {
                    self.note_failure(&request.ip, secret.reveal());
                }
                Outcome::Refused(refusal)
            }
        };
        Decision { key_id, key_path, outcome }
    }

    fn note_replaced(&self, replaced: &Stream) {
        if let Some(reason) = replaced.end_reason() {
            metrics::takeover(reason);
            metrics::stream_ended(reason);
            tracing::info!(
                stream_id = %replaced.id, path = %replaced.path, node = %replaced.node, %reason,
                "a stream was replaced by its broadcaster's next one"
            );
        }
        self.inner.kick_owed.notify_one();
    }

    fn slow_down(&self, address: &str, presented: &str) -> Result<(), Refusal> {
        let wait_ms =
            address.parse().ok().and_then(|ip: IpAddr| self.inner.failures.wait_ms(ip, presented, Instant::now()));
        wait_ms.map_or(Ok(()), |wait_ms| {
            let detail =
                "too many failed attempts from this address: correct the stream key in the encoder, then wait a moment";
            Err(Refusal::new(RefusalCode::TooManyFailures, detail).retry_after_ms(wait_ms))
        })
    }

    fn note_failure(&self, address: &str, presented: &str) {
        if let Ok(address) = address.parse() {
            self.inner.failures.failed(address, presented, Instant::now());
        }
    }

    fn note_success(&self, address: &str) {
        if let Ok(address) = address.parse() {
            self.inner.failures.succeeded(address);
        }
    }
}

/// At most `bytes_max` bytes of a text, cut between characters.
fn bounded(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
