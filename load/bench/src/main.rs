//! `make bench`: Onair beside the floor, in turn, in one run, on one Redis, with one generator. Prints ratios with their spread.

mod faults;
mod floor;
mod generator;
mod lists;
mod refusals;
mod subject;
mod turns;

use std::{sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use self::{
    faults::Faults,
    generator::{Connections, Plan, Round, play, post},
    refusals::Refusals,
    subject::{Server, Subject},
    turns::{Ratios, Turns, Whole, report, table},
};

/// The floor's and the callers' as well as Onair's: what is compared is what they do, and not who keeps their memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How often the servers take turns, and how often where the outcome is held to a ratio that five turns do not tell.
const TURNS: usize = 5;
const MANY_TURNS: usize = 11;
const KEYS: usize = 10_000;
/// How many keys there are when the start is timed.
const MANY_KEYS: usize = 100_000;

/// What the start and the size are held to: the aim for the start; for the size about half as much again as was measured, and more where it
/// varies, as the memory of streams does with what came before.
const READY_MAX: Duration = Duration::from_secs(1);
const PROGRAM_MIB_MAX: f64 = 31.0;
const IDLE_MIB_MAX: f64 = 39.0;
const STREAMS_MIB_MAX: f64 = 40.0;

/// What admissions on fresh connections, as `MediaMTX` makes them, are held to beside the floor: the aims, but for the throughput of a
/// hundred, whose aim is 0.85. Its median over five turns of one program was seen to move from 0.83 to 0.98.
const AT_100: Load = Load {
    callers: 100,
    connections: Connections::Fresh,
    calls: 8_000,
    turns: MANY_TURNS,
    held_to: HeldTo { throughput_min: 0.75, ..HeldTo::NOTHING },
};
/// As many as make a second or so: a hundredth of them is more than one moment in which the machine does something else.
const ALONE: Load =
    Load { callers: 1, calls: 4_000, held_to: HeldTo { p50_max: 1.25, p99_max: 1.5, ..HeldTo::NOTHING }, ..AT_100 };
const AT_1000: Load = Load { callers: 1_000, held_to: HeldTo { throughput_min: 0.8, ..HeldTo::NOTHING }, ..AT_100 };
/// How many calls a round of refusals has.
const REFUSED_CALLS: usize = 4_000;

const USAGE: &str = "usage: onair-bench PROGRAM [admissions|at-1|at-100|at-1000|refusals|lists|start|crowd ...], where PROGRAM is the release build of onair";

/// What is measured: how many call at once, on which connections, how many calls a round has, and how many rounds there are.
#[derive(Clone, Copy)]
struct Load {
    callers: usize,
    connections: Connections,
    calls: usize,
    /// How often the servers take turns, beside a first time that warms up.
    turns: usize,
    held_to: HeldTo,
}

/// What Onair's figures are held to, in those of the server beside it.
#[derive(Clone, Copy)]
struct HeldTo {
    p50_max: f64,
    p99_max: f64,
    throughput_min: f64,
}

impl HeldTo {
    const NOTHING: Self = Self { p50_max: f64::INFINITY, p99_max: f64::INFINITY, throughput_min: 0.0 };
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["floor", redis, postgres] => floor::serve(redis, postgres, KEYS).await,
            [onair] => bench(onair, &["admissions", "refusals", "lists", "start", "crowd"]).await,
            [onair, ref parts @ ..] => bench(onair, parts).await,
            [] => anyhow::bail!(USAGE),
        }
    })
}

async fn bench(onair: &str, parts: &[&str]) -> anyhow::Result<()> {
    eprintln!("starting the stores, Onair and the floor, and making {KEYS} keys ...");
    let mut subject = Subject::start(onair, KEYS).await?;
    let mut faults = Faults::default();
    let (idle_mib, program_mib) = (subject.resident_mib()?, mib(std::fs::metadata(onair)?.len()));
    println!("idle: {idle_mib:.1} MiB resident; {program_mib:.1} MiB of program");
    faults.at_most("MiB resident, idle", idle_mib, IDLE_MIB_MAX);
    faults.at_most("MiB of program", program_mib, PROGRAM_MIB_MAX);
    for part in parts {
        match *part {
            "admissions" => admissions_of(&subject, &[ALONE, AT_100, AT_1000], &mut faults).await?,
            "at-1" => admissions_of(&subject, &[ALONE], &mut faults).await?,
            "at-100" => admissions_of(&subject, &[AT_100], &mut faults).await?,
            "at-1000" => admissions_of(&subject, &[AT_1000], &mut faults).await?,
            "refusals" => {
                let refusals = Refusals::prepare(&subject).await?;
                table();
                for load in [ALONE, AT_100, AT_1000] {
                    let load = Load { calls: REFUSED_CALLS, turns: TURNS, ..load };
                    refusals.measure(&subject, load, &mut faults).await?;
                }
            }
            "lists" => lists::bench(&subject, STREAMS_MIB_MAX, &mut faults).await?,
            "start" => {
                subject.add_keys(MANY_KEYS).await?;
                let ready = subject.restart().await?;
                println!("\nready {ready:?} after its start, with {MANY_KEYS} keys");
                faults.at_most("seconds until it is ready", ready.as_secs_f64(), READY_MAX.as_secs_f64());
            }
            "crowd" => lists::crowd(&mut subject, STREAMS_MIB_MAX, &mut faults).await?,
            _ => anyhow::bail!(USAGE),
        }
    }
    faults.verdict()
}

#[expect(clippy::cast_precision_loss, reason = "far fewer bytes than are counted exactly")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
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

/// A table of admissions, each load on fresh connections and, for comparison, on kept ones.
async fn admissions_of(subject: &Subject, loads: &[Load], faults: &mut Faults) -> anyhow::Result<()> {
    table();
    for &load in loads {
        admissions(subject, load, faults).await?;
        let kept = Load { connections: Connections::Kept, turns: TURNS, held_to: HeldTo::NOTHING, ..load };
        admissions(subject, kept, faults).await?;
    }
    Ok(())
}

async fn admissions(subject: &Subject, load: Load, faults: &mut Faults) -> anyhow::Result<()> {
    let [mut query, mut bare, mut floor, mut onair] = std::array::from_fn(|_| Turns::default());
    let mut whole = Whole::default();
    let [to_query, to_bare] = ["/postgres", "/bare"]
        .map(|address| Arc::new(vec![post(address, None, &json!({"path": "bench/0"}), load.connections); load.calls]));
    for number in 0..=load.turns {
        let sources: Vec<(String, Uuid)> =
            subject.keys[..load.calls].iter().map(|key| (key.path.clone(), Uuid::new_v4())).collect();
        let requests = sources.iter().enumerate();
        let requests = requests.map(|(key, (_, source))| subject.auth(key, *source, load.connections)).collect();
        let requests = Arc::new(requests);
        subject.turn(Server::Floor, (&to_query, 204), load, (number, &mut query)).await?;
        subject.turn(Server::Floor, (&to_bare, 204), load, (number, &mut bare)).await?;
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
    report("admitted", load, &floor, &onair).hold(load, faults);
    report("admitted, beside the bare floor", load, &bare, &onair);
    report("admitted, beside a Postgres query that admits nobody", load, &query, &onair);
    println!(
        "| ... until it is in the history: CPU us of an admission | {} | | | | | | | | {:.0} | |",
        load.callers,
        whole.median()
    );
    let unexpected = query.unexpected() + bare.unexpected() + floor.unexpected() + onair.unexpected();
    faults.unexpected(&format!("admitted, {} at once", load.callers), unexpected);
    Ok(())
}

impl Ratios {
    fn hold(&self, load: Load, faults: &mut Faults) {
        let what = |figure| format!("admitted, {} at once: {figure} in those of the floor", load.callers);
        faults.at_most(&what("p50"), self.p50, load.held_to.p50_max);
        faults.at_most(&what("p99"), self.p99, load.held_to.p99_max);
        faults.at_least(&what("throughput"), self.throughput, load.held_to.throughput_min);
    }
}
