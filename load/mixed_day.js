// Hypothesis: nobody is in anybody's way. Broadcasters, viewers, frontends and administrators together get the answers that
// each would get alone.
//
// Arrival: four independent streams of arrivals, each at a constant rate: broadcasts that begin (each lasts a few seconds),
// viewers, polls of frontends (the list again with the last ETag), and keys that are made, used and revoked on air.
//
// Contract: p95 of what MediaMTX waits at most 50 ms; of a page at most 50 ms; of a revocation at most 500 ms, the
// publisher gone from its node included. Every answer is the one that is due.

import { broadcast as broadcastOnce, poll, revoke as revokeOnce, watch } from './lib/day.js';
import { clear, prepare } from './lib/ground.js';
import { reportOf } from './lib/report.js';
import { always, arrivals, latency, scaled, seconds } from './lib/settings.js';

export { poll, watch };

const ALWAYS_ON_AIR = 50;
const BROADCAST_S = Math.min(5, seconds / 2);
const BROADCASTS_A_SECOND = scaled(5);
const BROADCASTERS_MAX = Math.ceil(BROADCASTS_A_SECOND * BROADCAST_S * 2) + 5;
const OTHERS_MAX = 20 + 20 + 5;

export const options = {
  scenarios: {
    broadcasts: arrivals({ exec: 'broadcast', rate: BROADCASTS_A_SECOND, callers: BROADCASTERS_MAX }),
    viewers: arrivals({ exec: 'watch', rate: scaled(25), callers: 20 }),
    frontends: arrivals({ exec: 'poll', rate: scaled(40), callers: 20 }),
    revocations: arrivals({ exec: 'revoke', rate: 1, timeUnit: '2s', callers: 5 }),
  },
  thresholds: {
    ...always,
    auth_ms: [`p(95)<=${latency(50)}`],
    list_ms: [`p(95)<=${latency(50)}`],
    revoke_ms: [`p(95)<=${latency(500)}`],
  },
  setupTimeout: '120s',
  teardownTimeout: '120s',
};

// The first keys are of those who are always on air; every caller has one more.
export function setup() {
  return prepare({ keys: ALWAYS_ON_AIR + BROADCASTERS_MAX + OTHERS_MAX, onAir: ALWAYS_ON_AIR });
}

export function broadcast(ground) {
  broadcastOnce(ground, ALWAYS_ON_AIR, BROADCAST_S);
}

export function revoke(ground) {
  revokeOnce(ground, ground.keys.length);
}

export const teardown = clear;

export const handleSummary = reportOf('mixed_day');
