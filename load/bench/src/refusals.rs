//! What refusals cost, on fresh connections: one of each kind that a key may be the reason of, and two of those that are told before
//! Redis is asked, beside the bare floor.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use onair::domain::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Load,
    faults::Faults,
    generator::{Connections, Plan, play, post},
    subject::{Key, Server, Subject, any_secret},
    turns::{Turns, report},
};

/// What a refusal by checksum costs at most, in processor time of the bare floor, its Redis included. It should be less than that of
/// the floor, which does more than the bare one.
const CHECKSUM_TO_BARE_MAX: f64 = 1.1;

/// How soon a key expires that is made to be refused for that.
const EXPIRES_AFTER_MS: i64 = 500;

/// A kind of refusal.
struct Kind {
    name: &'static str,
    path: String,
    /// The key that is presented; `None` for another unknown one each time.
    secret: Option<String>,
    status: u16,
    cpu_max: f64,
}

impl Kind {
    fn of(name: &'static str, path: &str, secret: &str, status: u16) -> Self {
        Self { name, path: path.to_owned(), secret: Some(secret.to_owned()), status, cpu_max: f64::INFINITY }
    }
}

/// Keys that are refused.
pub struct Refusals {
    kinds: Vec<Kind>,
}

impl Refusals {
    /// Makes the keys.
    pub async fn prepare(subject: &Subject) -> anyhow::Result<Self> {
        let held = &subject.keys[0];
        let disabled = subject.add_key(&json!({"path": "refused/disabled"})).await?;
        let revoked = subject.add_key(&json!({"path": "refused/revoked"})).await?;
        for (key, verb) in [(&disabled, "disable"), (&revoked, "revoke")] {
            subject.api("POST", &format!("/v1/stream-keys/{}/{verb}", key.id), &Value::Null).await?;
        }
        let expires_at = Timestamp::now().plus_ms(EXPIRES_AFTER_MS);
        let expired = subject.add_key(&json!({"path": "refused/expired", "expires_at": expires_at})).await?;
        tokio::time::sleep(Duration::from_millis(EXPIRES_AFTER_MS.unsigned_abs())).await;
        let (intact, last) = held.secret.split_at(held.secret.len() - 1);
        let mistyped = format!("{intact}{}", if last == "x" { "y" } else { "x" });
        let unknown = any_secret().context("a secret")?;
        let of = |name, key: &Key, status| Kind::of(name, &key.path, &key.secret, status);
        let kinds = vec![
            Kind::of("no key", &held.path, "", 401),
            Kind { cpu_max: CHECKSUM_TO_BARE_MAX, ..Kind::of("by checksum", &held.path, &mistyped, 401) },
            Kind::of("unknown", &held.path, unknown.reveal(), 401),
            Kind { secret: None, ..Kind::of("unknown, another each time", &held.path, "", 401) },
            of("expired", &expired, 403),
            of("disabled", &disabled, 403),
            of("revoked", &revoked, 403),
            Kind::of("other path", &disabled.path, &held.secret, 403),
            of("in use", held, 409),
        ];
        Ok(Self { kinds })
    }

    /// A line of the table for each of them.
    pub async fn measure(&self, subject: &Subject, load: Load, faults: &mut Faults) -> anyhow::Result<()> {
        let nothing = Arc::new(vec![post("/bare", None, &json!({"path": "bench/0"}), load.connections); load.calls]);
        let holder = [take(subject).await?];
        for kind in &self.kinds {
            let (mut bare, mut onair) = (Turns::default(), Turns::default());
            for number in 0..=load.turns {
                let requests = Arc::new(kind.calls(subject, load)?);
                subject.turn(Server::Floor, (&nothing, 204), load, (number, &mut bare)).await?;
                subject.turn(Server::Onair, (&requests, kind.status), load, (number, &mut onair)).await?;
            }
            let what = format!("refused, {}, beside the bare floor", kind.name);
            let ratios = report(&what, load, &bare, &onair);
            let what = format!("{what}, {} at once", load.callers);
            faults.at_most(&format!("{what}: processor time in that of the bare floor"), ratios.cpu, kind.cpu_max);
            faults.unexpected(&what, bare.unexpected() + onair.unexpected());
        }
        subject.end_all(&holder).await
    }
}

/// Has the first key's publisher admitted, so that it is in use.
async fn take(subject: &Subject) -> anyhow::Result<(String, Uuid)> {
    let source = Uuid::new_v4();
    let call = Arc::new(vec![subject.auth(0, source, Connections::Fresh)]);
    let taken = play(subject.address(Server::Onair), call, Plan::never_pausing(1, Connections::Fresh, 204)).await?;
    ensure!(taken.unexpected == 0, "the key that should be in use was not admitted");
    Ok((subject.keys[0].path.clone(), source))
}

impl Kind {
    /// A round's calls, from everywhere, so that nobody is slowed down.
    fn calls(&self, subject: &Subject, load: Load) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut calls = Vec::with_capacity(load.calls);
        for _ in 0..load.calls {
            let source = Uuid::new_v4();
            let secret = match &self.secret {
                Some(secret) => secret.clone(),
                None => any_secret().context("a secret")?.reveal().to_owned(),
            };
            calls.push(subject.auth_from(source.as_u128(), (&self.path, &secret), source, load.connections));
        }
        Ok(calls)
    }
}
