// Hypothesis: hours of ordinary days leave nothing behind: no memory that grows, no history that is not written, no publisher
// that should have been kicked.
//
// Arrival: as in mixed_day, at constant rates that a small machine bears without end. Run it for as long as there is time:
// `make load SCENARIO=soak SECONDS=14400`. At intervals the service's own metrics are read.
//
// Contract: after the first fifth of the time, resident memory grows by less than half; at the end the history is behind by
// fewer than a thousand entries and no kick is owed; latencies and answers as in mixed_day.

import { check, sleep } from 'k6';
import http from 'k6/http';
import { Gauge } from 'k6/metrics';
import { broadcast as broadcastOnce, poll, revoke as revokeOnce, watch } from './lib/day.js';
import { clear, prepare } from './lib/ground.js';
import { reportOf } from './lib/report.js';
import { always, arrivals, latency, seconds } from './lib/settings.js';
import { url } from './lib/target.js';

export { poll, watch };

const ALWAYS_ON_AIR = 20;
const BROADCAST_S = Math.min(20, seconds / 2);
const BROADCASTERS_MAX = Math.ceil(BROADCAST_S * 2) + 5;
const OTHERS_MAX = 5 + 10 + 5 + 1;
const WEIGHINGS = 20;

const growth = new Gauge('resident_memory_growth');
const backlog = new Gauge('history_backlog_entries');
const kicks = new Gauge('kicks_pending');

export const options = {
  scenarios: {
    broadcasts: arrivals({ exec: 'broadcast', rate: 1, callers: BROADCASTERS_MAX }),
    viewers: arrivals({ exec: 'watch', rate: 5, callers: 5 }),
    frontends: arrivals({ exec: 'poll', rate: 10, callers: 10 }),
    revocations: arrivals({ exec: 'revoke', rate: 1, timeUnit: '10s', callers: 5 }),
    // One scale, which compares with what it showed first. Nobody waits for it, so that it need not come at a constant rate.
    weighings: { executor: 'constant-vus', exec: 'weigh', vus: 1, duration: `${seconds}s`, gracefulStop: '30s' },
  },
  thresholds: {
    ...always,
    auth_ms: [`p(95)<=${latency(50)}`],
    list_ms: [`p(95)<=${latency(50)}`],
    revoke_ms: [`p(95)<=${latency(500)}`],
    resident_memory_growth: ['value>0', 'value<1.5'],
    history_backlog_entries: ['value<1000'],
    kicks_pending: ['value<1'],
  },
  setupTimeout: '120s',
  teardownTimeout: '120s',
};

export function setup() {
  return prepare({ keys: ALWAYS_ON_AIR + BROADCASTERS_MAX + OTHERS_MAX, onAir: ALWAYS_ON_AIR });
}

export function broadcast(ground) {
  broadcastOnce(ground, ALWAYS_ON_AIR, BROADCAST_S);
}

export function revoke(ground) {
  revokeOnce(ground, ground.keys.length);
}

let weighed = 0;
let firstBytes;

export function weigh() {
  const metrics = http.get(`${url}/metrics`).body;
  const names = ['onair_process_resident_memory_bytes', 'onair_history_backlog_entries', 'onair_kicks_pending'];
  const values = names.map((name) => Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(metrics)?.[1]));
  // What is not weighed is not kept either.
  if (check(values, { 'the metrics can be read': (all) => all.every(Number.isFinite) })) {
    weighed += 1;
    const [bytes, entries, owed] = values;
    if (weighed <= Math.max(1, WEIGHINGS / 5)) firstBytes = bytes;
    growth.add(bytes / firstBytes);
    backlog.add(entries);
    kicks.add(owed);
  }
  sleep(seconds / WEIGHINGS);
}

export const teardown = clear;

export const handleSummary = reportOf('soak');
