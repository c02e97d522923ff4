//! What goes wrong with nodes and replicas.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    support::mediamtx::{HookBehaviour, KickBehaviour},
    world::{Edge, World},
};

const HOOKS: [HookBehaviour; 6] = [
    HookBehaviour::Delivered,
    HookBehaviour::Lost,
    HookBehaviour::Doubled,
    HookBehaviour::Reordered,
    HookBehaviour::OnlyOn,
    HookBehaviour::OnlyOff,
];

fn between(rng: &mut StdRng, least_ms: u64, most_ms: u64) -> Duration {
    Duration::from_millis(rng.random_range(least_ms..=most_ms))
}

/// A node crashes, hangs, vanishes, refuses to kick, and sends its hooks as badly as can be.
pub async fn trouble_a_node(world: Arc<World>, number: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let edge = &world.edges[number];
    while !world.is_over() {
        world.rest(between(&mut rng, 3_000, 12_000)).await;
        let _act = world.may_act().await;
        if world.is_over() {
            break;
        }
        edge.node.set_hook_behaviour(HOOKS[rng.random_range(0..HOOKS.len())]);
        trouble_once(&world, edge, &mut rng).await;
    }
    edge.node.set_hook_behaviour(HookBehaviour::Delivered);
}

async fn trouble_once(world: &World, edge: &Edge, rng: &mut StdRng) {
    let node = &edge.node;
    let (kind, time) = (rng.random_range(0..100), between(rng, 200, 6_000));
    edge.trouble_begins();
    match kind {
        0..20 => {
            world.books.count("nodes crashed, and started later");
            edge.is_dead.store(true, Ordering::Relaxed);
            node.kill();
            world.rest(time).await;
            node.restart().await;
            edge.is_dead.store(false, Ordering::Relaxed);
        }
        20..35 => {
            world.books.count("nodes restarted at once");
            node.restart().await;
        }
        35..60 => {
            world.books.count("nodes out of reach");
            node.unreachable();
            world.rest(time).await;
            node.reachable().await;
        }
        60..80 => {
            world.books.count("nodes hung");
            node.hang();
            world.rest(time).await;
            node.reachable().await;
        }
        80..90 => {
            world.books.count("nodes failed to kick");
            node.set_kick_behaviour(KickBehaviour::Failing);
            world.rest(time).await;
            node.set_kick_behaviour(KickBehaviour::Obeyed);
        }
        _ => {
            world.books.count("nodes ignored kicks");
            node.set_kick_behaviour(KickBehaviour::Ignored);
            world.rest(time).await;
            node.set_kick_behaviour(KickBehaviour::Obeyed);
        }
    }
    edge.trouble_ends();
}

/// A replica dies now and then, and its nodes call another one from then on.
pub async fn trouble_the_replicas(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut number = 0;
    loop {
        let end = tokio::time::Instant::now() + between(&mut rng, 20_000, 40_000);
        while tokio::time::Instant::now() < end {
            if world.is_over() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        world.books.count("replicas died");
        world.replace_replica(number % 2).await;
        number += 1;
    }
}
