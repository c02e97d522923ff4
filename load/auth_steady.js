// Hypothesis: a hundred publishers who come at the same moment are each answered within 50 ms, wave after wave.
//
// Arrival: five waves a second at a constant rate, whatever the answers take; the hundred calls of a wave are made at
// once, each on a fresh connection, as MediaMTX makes them. A wave that the generator could not send in time is counted
// as dropped and breaks the contract, so a slow answer cannot hide the ones that should have followed.
//
// Contract: p95 of what MediaMTX waits is at most 50 ms; every publisher is admitted, and every path is free again for
// the next wave.

import exec from 'k6/execution';
import http from 'k6/http';
import { clear, prepare } from './lib/ground.js';
import { Node, ask, encoder, isDue } from './lib/mediamtx.js';
import { reportOf } from './lib/report.js';
import { always, arrivals, latency, scaled } from './lib/settings.js';

const AT_ONCE = 100;
// Each has paths of its own, so that a wave that is late does not meet the one before it.
const WAVES_MAX = 8;

export const options = {
  scenarios: {
    waves: arrivals({ exec: 'wave', rate: scaled(5), callers: WAVES_MAX }),
  },
  thresholds: { ...always, auth_ms: [`p(95)<=${latency(50)}`] },
  noConnectionReuse: true,
  batch: AT_ONCE,
  batchPerHost: AT_ONCE,
  setupTimeout: '120s',
  teardownTimeout: '120s',
};

export function setup() {
  return prepare({ keys: AT_ONCE * WAVES_MAX });
}

export function wave(ground) {
  const node = new Node(ground.node);
  const first = (exec.vu.idInTest - 1) * AT_ONCE;
  const encoders = ground.keys.slice(first, first + AT_ONCE).map(encoder);
  for (const answer of ask(encoders.map((who) => node.asksToPublish(who)))) isDue(answer, [204], 'admitted');
  for (const answer of http.batch(encoders.map((who) => node.saysOffline(who)))) isDue(answer, [200], 'ended');
}

export const teardown = clear;

export const handleSummary = reportOf('auth_steady');
