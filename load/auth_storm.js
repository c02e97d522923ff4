// Hypothesis: when a node with a thousand streams restarts, all its encoders are on air again within ten seconds. None is
// refused for good, and none because Onair could not answer.
//
// Arrival: all at the same instant. Twenty racks of fifty encoders are let go together, each encoder on a fresh connection,
// and every time is counted from the restart, not from when the generator came round to it. An encoder whose old stream
// is still on its path is told `key_in_use`, and comes again after a second or two, as encoders do. One real node would
// ask about them one after the other; a thousand at once is what a whole fleet's restart amounts to.
//
// Contract: back on air within 10 s, the last one too; p95 of one auth call at most a second with a thousand at once; no
// answer but "admitted" or "in use".

import { check, sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Trend } from 'k6/metrics';
import { clear, prepare } from './lib/ground.js';
import { Node, ask, comeOnline, encoder, isDue, restartNode } from './lib/mediamtx.js';
import { reportOf } from './lib/report.js';
import { always, latency, scaled } from './lib/settings.js';

const RACKS = 20;
const RACK = scaled(50);
const PATIENCE_S = 60;

const backOnAirMs = new Trend('back_on_air_ms', true);

export const options = {
  scenarios: {
    reconnects: { executor: 'per-vu-iterations', vus: RACKS, iterations: 1, maxDuration: `${2 * PATIENCE_S}s` },
  },
  thresholds: {
    ...always,
    auth_ms: [`p(95)<=${latency(1000)}`],
    back_on_air_ms: [`max<=${latency(10000)}`],
  },
  noConnectionReuse: true,
  batch: RACK,
  batchPerHost: RACK,
  setupTimeout: '120s',
  teardownTimeout: '120s',
};

export function setup() {
  const ground = prepare({ keys: RACKS * RACK, onAir: RACKS * RACK });
  restartNode();
  return Object.assign(ground, { restartedAt: Date.now() });
}

export default function rack(ground) {
  const node = new Node(ground.node);
  const first = (exec.vu.idInTest - 1) * RACK;
  let offAir = ground.keys.slice(first, first + RACK).map((key, index) => encoder(key, first + index));
  while (offAir.length > 0 && Date.now() - ground.restartedAt < PATIENCE_S * 1000) {
    const answers = ask(offAir.map((who) => node.asksToPublish(who)));
    for (const answer of answers) isDue(answer, [204, 409], 'admitted, or told that the path is still in use');
    const admitted = offAir.filter((_, index) => answers[index].status === 204);
    for (const _ of admitted) backOnAirMs.add(Date.now() - ground.restartedAt);
    if (admitted.length > 0) {
      comeOnline(admitted);
      http.batch(admitted.map((who) => node.saysOnline(who)));
    }
    offAir = offAir.filter((_, index) => answers[index].status !== 204);
    if (offAir.length > 0) sleep(1 + Math.random());
  }
  check(offAir, { 'every encoder is back on air': (left) => left.length === 0 });
}

export const teardown = clear;

export const handleSummary = reportOf('auth_storm');
