//! One broadcaster: comes, freezes, comes back, is taken off air, tries twice at once, and never gives up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use onair::domain::StreamPath;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use super::{
    support::{
        mediamtx::{AuthAnswer, Going, PublishOutcome, PublishRequest, Publisher},
        stack::TestKey,
    },
    world::World,
};

/// How long a node must have been well before a publisher on it counts as healthy.
const WELL_FOR: Duration = Duration::from_secs(6);

/// A publisher of this broadcaster.
struct Connection {
    publisher: Publisher,
    edge: usize,
    /// Whether nothing keeps the next one from taking its place: it delivers nothing, or it was taken off air.
    is_spent: bool,
}

struct Encoder {
    world: Arc<World>,
    rng: StdRng,
    key: TestKey,
    takes_over: bool,
    current: Option<Connection>,
    earlier: Vec<Connection>,
}

pub async fn broadcast(world: Arc<World>, number: usize, seed: u64) {
    let takes_over = number.is_multiple_of(4);
    let mut rng = StdRng::seed_from_u64(seed);
    world.rest(Duration::from_millis(rng.random_range(0..10_000))).await;
    let key = make_key(&world, &format!("live/{number:03}"), takes_over, number).await;
    let mut encoder = Encoder { world, rng, key, takes_over, current: None, earlier: Vec::new() };
    while !encoder.world.is_over() {
        let world = Arc::clone(&encoder.world);
        let act = world.may_act().await;
        if world.is_over() {
            break;
        }
        let pause = encoder.act().await;
        drop(act);
        world.rest(pause).await;
    }
    for connection in encoder.current.iter().chain(&encoder.earlier) {
        connection.publisher.disconnect();
    }
}

async fn make_key(world: &World, path: &str, takes_over: bool, replica: usize) -> TestKey {
    let _act = world.may_act().await;
    let on_conflict = if takes_over { "take_over" } else { "reject" };
    let settings = json!({"broadcaster_id": world.broadcaster_id, "on_conflict": on_conflict});
    world.replica(replica).key_with(path, settings).await
}

impl Encoder {
    /// Does one thing, and says how long it is until the next.
    async fn act(&mut self) -> Duration {
        self.earlier.retain(|connection| connection.publisher.is_connected());
        if self.current.as_ref().is_some_and(|connection| !connection.publisher.is_connected()) {
            self.world.books.count("publishers that were thrown out or lost their node");
            self.current = None;
        }
        if self.current.is_none() {
            return self.try_to_go_live().await;
        }
        match self.rng.random_range(0..100) {
            0..40 => self.leave(),
            40..55 => self.freeze(),
            55..60 => self.stutter().await,
            60..75 => return self.try_to_go_live().await,
            75..83 => self.be_stopped().await,
            83..88 => self.be_revoked().await,
            88..92 => self.be_disabled().await,
            _ => {}
        }
        let least_ms = if self.current.is_some() { 2_000 } else { 0 };
        Duration::from_millis(least_ms + self.rng.random_range(0..2_000))
    }

    async fn try_to_go_live(&mut self) -> Duration {
        let edge = self.rng.random_range(0..self.world.edges.len());
        let request = self.request();
        if self.world.edges[edge].is_dead.load(Ordering::Relaxed) {
            self.world.books.count("connections to a dead node");
            return Duration::from_millis(300);
        }
        match self.world.edges[edge].node.publish(request).await {
            PublishOutcome::Admitted(publisher) => {
                self.admitted(Connection { publisher, edge, is_spent: false });
                Duration::from_millis(self.rng.random_range(3_000..25_000))
            }
            PublishOutcome::Refused(answer) => {
                self.refused(&answer);
                Duration::from_millis(self.rng.random_range(300..900))
            }
        }
    }

    fn request(&mut self) -> PublishRequest {
        let (path, secret) = (&self.key.path, &self.key.secret);
        let request = match self.rng.random_range(0..6) {
            0 => PublishRequest::srt_streamid(path, "ada", secret),
            1 => PublishRequest::rtsp(path, "ada", secret),
            2 => PublishRequest::whip_bearer(path, secret),
            3 => self.key.publisher().over_tls(),
            _ => self.key.publisher(),
        };
        match self.rng.random_range(0..20) {
            0 => request.stays_connecting(),
            1..8 => request.going(Going::OnlineAfter(Duration::from_millis(self.rng.random_range(10..2_500)))),
            _ => request,
        }
    }

    fn admitted(&mut self, connection: Connection) {
        let books = &self.world.books;
        books.admit(connection.publisher.id());
        books.count("publishers admitted");
        let others = self.earlier.iter().chain(&self.current);
        for other in others.filter(|other| !other.is_spent && other.publisher.is_online()) {
            if self.takes_over {
                books.count("publishers taken over");
            } else if self.world.edges[other.edge].is_well_for(WELL_FOR) {
                let (healthy, newer) = (&other.publisher, &connection.publisher);
                books.violate(format!("two healthy publishers on one path: {healthy:?} and then {newer:?}"));
            }
        }
        self.earlier.extend(self.current.take());
        for other in &mut self.earlier {
            other.is_spent = true;
        }
        self.current = Some(connection);
    }

    fn refused(&self, answer: &AuthAnswer) {
        let books = &self.world.books;
        let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        match problem["code"].as_str() {
            Some(code) if code != "state_unavailable" => books.count(format!("refused: {code}")),
            code => {
                books.note_unanswered();
                books.count(format!("refused: {}", code.unwrap_or(&answer.body)));
            }
        }
    }

    fn leave(&mut self) {
        self.world.books.count("publishers that left");
        self.spend().publisher.disconnect();
    }

    fn freeze(&mut self) {
        self.world.books.count("publishers that froze");
        self.spend().publisher.freeze();
    }

    /// A freeze that is over before anybody else may have its path.
    async fn stutter(&mut self) {
        self.world.books.count("publishers that stuttered");
        if let Some(connection) = &self.current {
            connection.publisher.freeze();
            tokio::time::sleep(Duration::from_millis(700)).await;
            connection.publisher.thaw();
        }
    }

    async fn be_stopped(&mut self) {
        let replica = self.world.replica(self.rng.random_range(0..2));
        let path: StreamPath = self.key.path.parse().expect("a path");
        let view = replica.app.streams.view().await.expect("a view");
        let Some(stream) = view.snapshot.by_path(&path) else { return };
        let answer = replica.api.act(&format!("/v1/streams/{}/stop", stream.id)).await;
        self.world.books.count(format!("stops answered {}", answer.status));
        self.spend();
    }

    async fn be_revoked(&mut self) {
        let number = self.rng.random_range(0..2);
        let replica = self.world.replica(number);
        replica.api.act(&format!("/v1/stream-keys/{}/revoke", self.key.id)).await.expect(200);
        self.world.books.count("keys revoked");
        self.spend();
        let on_conflict = if self.takes_over { "take_over" } else { "reject" };
        let settings = json!({"broadcaster_id": self.world.broadcaster_id, "on_conflict": on_conflict});
        self.key = replica.key_with(&self.key.path, settings).await;
    }

    async fn be_disabled(&mut self) {
        let replica = self.world.replica(self.rng.random_range(0..2));
        replica.api.act(&format!("/v1/stream-keys/{}/disable", self.key.id)).await.expect(200);
        self.world.books.count("keys disabled and enabled");
        self.spend();
        replica.api.act(&format!("/v1/stream-keys/{}/enable", self.key.id)).await.expect(200);
    }

    /// From now on its path may be another's.
    fn spend(&mut self) -> &Connection {
        let mut connection = self.current.take().expect("somebody acts only on what is there");
        connection.is_spent = true;
        self.earlier.push(connection);
        self.earlier.last().expect("it was pushed")
    }
}
