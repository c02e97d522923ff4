//! Looks all the time at what is listed and at what the nodes have, and notes how long they differ.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    support::measured::{RIGHT_WITHIN, sources_on},
    world::{Source, World},
};

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Difference {
    /// It came, and is not listed yet.
    Unlisted,
    /// It has gone, and is still listed.
    Listed,
    /// It was ended, and is still on air.
    OnAir,
}

impl Difference {
    fn name(self) -> &'static str {
        match self {
            Self::Unlisted => "from online to listed as live",
            Self::Listed => "from gone to off the list",
            Self::OnAir => "from ended to off air",
        }
    }
}

pub async fn observe(world: Arc<World>) {
    let mut known = BTreeMap::<(Source, Difference), Instant>::new();
    let mut ever_listed = HashSet::new();
    while !world.is_over() {
        let on_air = sources_on(&world.edges);
        let listed = world.listed_sources().await;
        let now = Instant::now();
        ever_listed.extend(listed.iter().cloned());
        let differences = differences(&listed, &on_air, &ever_listed);
        for difference in &differences {
            known.entry(difference.clone()).or_insert(now);
        }
        known.retain(|difference, since| {
            let Some(age) = age(&world, &difference.0, *since, now) else { return differences.contains(difference) };
            let is_gone = !differences.contains(difference);
            if is_gone {
                world.books.time(difference.1.name(), age);
            }
            if age > RIGHT_WITHIN {
                let (source, kind) = difference;
                world.books.violate(format!("{} took {} ms: {source:?}", kind.name(), age.as_millis()));
            }
            !is_gone && age <= RIGHT_WITHIN
        });
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn differences(listed: &[Source], on_air: &[Source], ever_listed: &HashSet<Source>) -> HashSet<(Source, Difference)> {
    let (listed_now, on_air_now): (HashSet<_>, HashSet<_>) = (listed.iter().collect(), on_air.iter().collect());
    let only_listed = listed.iter().filter(|it| !on_air_now.contains(it)).map(|it| (it.clone(), Difference::Listed));
    let only_on_air = on_air.iter().filter(|it| !listed_now.contains(it)).map(|it| {
        let kind = if ever_listed.contains(it) { Difference::OnAir } else { Difference::Unlisted };
        (it.clone(), kind)
    });
    only_listed.chain(only_on_air).collect()
}

/// How long it could have been known; `None` while its node is in trouble.
fn age(world: &World, source: &Source, since: Instant, now: Instant) -> Option<Duration> {
    let edge = world.edges.iter().find(|edge| edge.node.name() == source.0)?;
    let well_since = edge.well_since()?;
    Some(now.saturating_duration_since(since.max(well_since)))
}
