//! What the turns of each server took, and the table of their ratios.

use std::time::Duration;

use crate::{
    Load,
    generator::{Connections, Round},
    subject::{Cpu, Server},
};

/// One server's turns: a value for each.
#[derive(Default)]
pub struct Turns {
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    throughput: Vec<f64>,
    /// Processor time of a call, in microseconds: the server's, and that of the stores.
    server_us: Vec<f64>,
    stores_us: Vec<f64>,
    /// Calls that were answered otherwise than they should be.
    unexpected: usize,
}

impl Turns {
    /// Takes note of calls that were answered otherwise than they should be.
    pub fn add_unexpected(&mut self, calls: usize) {
        self.unexpected += calls;
    }

    /// How many those were.
    pub fn unexpected(&self) -> usize {
        self.unexpected
    }

    /// Adds a turn, during which so much processor time was used.
    pub fn add(&mut self, round: &Round, used: &Cpu, server: Server) {
        #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
        let each_us = |used: Duration| used.as_secs_f64() * 1e6 / round.latencies.len() as f64;
        self.p50_us.push(round.percentile_us(0.50));
        self.p99_us.push(round.percentile_us(0.99));
        self.throughput.push(round.throughput());
        self.server_us.push(each_us(match server {
            Server::Floor => used.floor,
            Server::Onair => used.onair,
        }));
        self.stores_us.push(each_us(used.redis + used.postgres));
    }
}

/// All processor time of Onair and its stores for an admission, until it is in the history, in microseconds.
#[derive(Default)]
pub struct Whole(Vec<f64>);

impl Whole {
    /// Adds a turn of so many calls.
    pub fn add(&mut self, used: &Cpu, calls: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
        self.0.push((used.onair + used.redis + used.postgres).as_secs_f64() * 1e6 / calls as f64);
    }

    /// The median of the turns.
    pub fn median(&self) -> f64 {
        median(&self.0)
    }
}

/// Begins a table.
pub fn table() {
    println!(
        "\n| what | calls at once | connections | floor p50 us | Onair p50 us | p50 ratio (spread) | p99 ratio (spread) | throughput ratio (spread) | \
         CPU us of a call: floor + stores | Onair + stores | answered otherwise: floor, Onair |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
}

/// Onair's figures in those of the server beside it, medians over the turns.
pub struct Ratios {
    pub p50: f64,
    pub p99: f64,
    pub throughput: f64,
    /// Processor time of a call, stores included.
    pub cpu: f64,
}

/// A line of the table: ratios are medians over the turns, each turn's of one server to the same turn's of the other.
pub fn report(what: &str, load: Load, floor: &Turns, onair: &Turns) -> Ratios {
    let ratios = |ours: &[f64], theirs: &[f64]| {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    let [p50, p99, throughput] = [
        ratios(&onair.p50_us, &floor.p50_us),
        ratios(&onair.p99_us, &floor.p99_us),
        ratios(&onair.throughput, &floor.throughput),
    ];
    let whole =
        |turns: &Turns| -> Vec<f64> { turns.server_us.iter().zip(&turns.stores_us).map(|(a, b)| a + b).collect() };
    let found = Ratios {
        p50: median(&p50),
        p99: median(&p99),
        throughput: median(&throughput),
        cpu: median(&ratios(&whole(onair), &whole(floor))),
    };
    println!(
        "| {what} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {:.0} + {:.0} | {:.0} + {:.0} | {}, {} |",
        load.callers,
        if load.connections == Connections::Fresh { "fresh" } else { "kept" },
        median(&floor.p50_us),
        median(&onair.p50_us),
        with_spread(&p50),
        with_spread(&p99),
        with_spread(&throughput),
        median(&floor.server_us),
        median(&floor.stores_us),
        median(&onair.server_us),
        median(&onair.stores_us),
        floor.unexpected,
        onair.unexpected,
    );
    found
}

/// The median of sorted ratios, and between which they lie.
fn with_spread(sorted: &[f64]) -> String {
    let [first, last] = [sorted.first(), sorted.last()].map(|ratio| ratio.copied().unwrap_or_default());
    format!("{:.2} ({first:.2}-{last:.2})", median(sorted))
}

/// The median; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
