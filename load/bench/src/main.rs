//! `make bench`: Onair beside the floor, in turn, in one run, on one Redis, with one generator. Prints ratios with their spread.

mod floor;
mod generator;
mod lists;
mod subject;
mod turns;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use self::{
    generator::{Connections, Plan, Round, play, post},
    subject::{Server, Subject},
    turns::{Turns, Whole, report, table},
};

/// The floor's and the callers' as well as Onair's: what is compared is what they do, and not who keeps their memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How often the servers take turns.
const ALTERNATIONS: usize = 5;
const KEYS: usize = 10_000;
/// How many keys there are when the start is timed.
const MANY_KEYS: i64 = 100_000;

/// What the start and the size are held to: about half as much again as was measured, for they hardly vary.
const READY_MAX: Duration = Duration::from_secs(1);
const PROGRAM_BYTES_MAX: u64 = 40_000_000;
const IDLE_KIB_MAX: u64 = 40_000;
const STREAMS_KIB_MAX: u64 = 60_000;

const AT_100: Load = Load { callers: 100, connections: Connections::Fresh, calls: 8_000 };
const ALONE: Load = Load { callers: 1, calls: 2_000, ..AT_100 };
const AT_1000: Load = Load { callers: 1_000, calls: 8_000, ..AT_100 };

const USAGE: &str = "usage: onair-bench PROGRAM [admissions|at-1|at-100|at-1000|refusals|lists|start ...], where PROGRAM is the release build of onair";

/// What is measured: how many call at once, on which connections, how many calls a round has.
#[derive(Clone, Copy)]
struct Load {
    callers: usize,
    connections: Connections,
    calls: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["floor", redis, postgres] => floor::serve(redis, postgres, KEYS).await,
            [onair] => bench(onair, &["admissions", "refusals", "lists", "start"]).await,
            [onair, ref parts @ ..] => bench(onair, parts).await,
            [] => anyhow::bail!(USAGE),
        }
    })
}

async fn bench(onair: &str, parts: &[&str]) -> anyhow::Result<()> {
    eprintln!("starting the stores, Onair and the floor, and making {KEYS} keys ...");
    let mut subject = Subject::start(onair, KEYS).await?;
    let (idle_kib, program_bytes) = (subject.resident_kib()?, std::fs::metadata(onair)?.len());
    println!("idle: {idle_kib} KiB resident; {program_bytes} bytes of program");
    ensure!(idle_kib <= IDLE_KIB_MAX && program_bytes <= PROGRAM_BYTES_MAX, "more than what Onair is held to");
    let mut unexpected = 0;
    for part in parts {
        match *part {
            "admissions" => {
                unexpected += admissions_of(&subject, &[ALONE, AT_100, AT_1000]).await?;
                unexpected += postgres_per_call(&subject, AT_100).await?;
            }
            "at-1" => unexpected += admissions_of(&subject, &[ALONE]).await?,
            "at-100" => unexpected += admissions_of(&subject, &[AT_100]).await?,
            "at-1000" => unexpected += admissions_of(&subject, &[AT_1000]).await?,
            "refusals" => {
                table();
                for load in [ALONE, AT_100, AT_1000] {
                    unexpected += refusals(&subject, load).await?;
                }
            }
            "lists" => lists::bench(&subject, STREAMS_KIB_MAX).await?,
            "start" => {
                subject.add_keys(MANY_KEYS).await?;
                let ready = subject.restart().await?;
                println!("\nready {ready:?} after its start, with {MANY_KEYS} keys");
                ensure!(ready <= READY_MAX, "later than what Onair is held to");
            }
            _ => anyhow::bail!(USAGE),
        }
    }
    ensure!(unexpected == 0, "{unexpected} calls were answered otherwise than they should be");
    Ok(())
}

impl Subject {
    /// One turn of one server, added to its turns unless it is the first, which warms up. Gives how many calls were answered as they should
    /// be.
    async fn turn(
        &self,
        server: Server,
        (requests, status): (&Arc<Vec<Vec<u8>>>, u16),
        load: Load,
        (number, turns): (usize, &mut Turns),
    ) -> anyhow::Result<usize> {
        let before = self.cpu()?;
        let plan = Plan::never_pausing(load.callers, load.connections, status);
        let round: Round = play(self.address(server), Arc::clone(requests), plan).await?;
        let after = self.cpu()?;
        turns.add_unexpected(round.unexpected);
        if number > 0 {
            turns.add(&round, &before.until(&after), server);
        }
        Ok(load.calls - round.unexpected)
    }
}

/// A table of admissions, each load on fresh connections and on kept ones.
async fn admissions_of(subject: &Subject, loads: &[Load]) -> anyhow::Result<usize> {
    table();
    let mut unexpected = 0;
    for &load in loads {
        for connections in [Connections::Fresh, Connections::Kept] {
            unexpected += admissions(subject, Load { connections, ..load }).await?;
        }
    }
    Ok(unexpected)
}

/// Admissions. Gives how many calls were answered otherwise than they should be, as the others do.
async fn admissions(subject: &Subject, load: Load) -> anyhow::Result<usize> {
    let (mut bare, mut floor, mut onair) = (Turns::default(), Turns::default(), Turns::default());
    let mut whole = Whole::default();
    let nothing = Arc::new(vec![post("/bare", None, &json!({"path": "bench/0"}), load.connections); load.calls]);
    for number in 0..=ALTERNATIONS {
        let sources: Vec<(String, Uuid)> =
            subject.keys[..load.calls].iter().map(|key| (key.path.clone(), Uuid::new_v4())).collect();
        let requests = sources.iter().enumerate();
        let requests = requests.map(|(key, (_, source))| subject.auth(key, *source, load.connections)).collect();
        let requests = Arc::new(requests);
        subject.turn(Server::Floor, (&nothing, 204), load, (number, &mut bare)).await?;
        subject.empty_floor().await?;
        subject.turn(Server::Floor, (&requests, 204), load, (number, &mut floor)).await?;
        let (written, before) = (subject.written().await?, subject.cpu()?);
        let admitted = subject.turn(Server::Onair, (&requests, 204), load, (number, &mut onair)).await? as u64;
        subject.until_written(written + admitted).await?;
        if number > 0 {
            whole.add(&before.until(&subject.cpu()?), load.calls);
        }
        subject.end_all(&sources).await?;
        subject.until_written(written + 2 * admitted).await?;
    }
    report("admitted", load, &floor, &onair);
    report("admitted, beside the bare floor", load, &bare, &onair);
    println!(
        "| ... until it is in the history: CPU us of an admission | {} | | | | | | | | {:.0} | |",
        load.callers,
        whole.median()
    );
    Ok(bare.unexpected() + floor.unexpected() + onair.unexpected())
}

async fn refusals(subject: &Subject, load: Load) -> anyhow::Result<usize> {
    let mut unexpected = 0;
    let held = &subject.keys[0];
    let holder = vec![(held.path.clone(), Uuid::new_v4())];
    let take = Arc::new(vec![subject.auth(0, holder[0].1, Connections::Fresh)]);
    play(subject.address(Server::Onair), take, Plan::never_pausing(1, Connections::Fresh, 204)).await?;
    let disabled = subject.keys.last().context("there are keys")?;
    subject.api("POST", &format!("/v1/stream-keys/{}/disable", disabled.id), &Value::Null).await?;
    let mistyped = format!("{}x", &held.secret[..held.secret.len() - 1]);
    let nothing = Arc::new(vec![post("/bare", None, &json!({"path": "bench/0"}), load.connections); load.calls]);
    for (what, path, secret, status) in [
        ("refused by checksum, beside the bare floor", &held.path, &mistyped, 401),
        ("refused, in use, beside the bare floor", &held.path, &held.secret, 409),
        ("refused, disabled, beside the bare floor", &disabled.path, &disabled.secret, 403),
        ("refused, other path, beside the bare floor", &disabled.path, &held.secret, 403),
    ] {
        let (mut bare, mut onair) = (Turns::default(), Turns::default());
        for number in 0..=ALTERNATIONS {
            // From everywhere, so that nobody is slowed down.
            let refused = |_| {
                let source = Uuid::new_v4();
                subject.auth_from(source.as_u128(), (path, secret), source, load.connections)
            };
            let requests = (0..load.calls).map(refused).collect();
            subject.turn(Server::Floor, (&nothing, 204), load, (number, &mut bare)).await?;
            subject.turn(Server::Onair, (&Arc::new(requests), status), load, (number, &mut onair)).await?;
        }
        report(what, load, &bare, &onair);
        unexpected += bare.unexpected() + onair.unexpected();
    }
    subject.api("POST", &format!("/v1/stream-keys/{}/enable", disabled.id), &Value::Null).await?;
    subject.end_all(&holder).await?;
    Ok(unexpected)
}

async fn postgres_per_call(subject: &Subject, load: Load) -> anyhow::Result<usize> {
    let (mut bare, mut query) = (Turns::default(), Turns::default());
    for number in 0..=ALTERNATIONS {
        let body = json!({"path": "bench/0"});
        let evalsha = Arc::new(vec![post("/bare", None, &body, load.connections); load.calls]);
        let postgres = Arc::new(vec![post("/postgres", None, &body, load.connections); load.calls]);
        subject.turn(Server::Floor, (&evalsha, 204), load, (number, &mut bare)).await?;
        subject.turn(Server::Floor, (&postgres, 204), load, (number, &mut query)).await?;
    }
    report("a Postgres query a call (not Onair), beside the bare floor", load, &bare, &query);
    Ok(bare.unexpected() + query.unexpected())
}
