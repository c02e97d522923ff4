// Hypothesis: somebody who tries out keys does not slow down those who have one.
//
// Arrival: good publishers come at a constant rate all the time. In the first half they are alone, which is the baseline; in
// the second half ten times as many calls with bad keys come, at a constant rate of their own: mistyped ones, well-formed
// ones that nobody knows, each another (the dearest kind to refuse), from one address that keeps trying and from a crowd of
// others. Every call is on a fresh connection.
//
// Contract: p95 of the good calls under attack is at most 1.5 times their p95 before. Every good key is admitted, every bad
// one refused. A ratio of two p95 needs many calls: with less than half a minute, chance decides.

import { sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { sha256 } from 'k6/crypto';
import { Gauge, Trend } from 'k6/metrics';
import { clear, prepare } from './lib/ground.js';
import { Node, askOne, encoder, isDue } from './lib/mediamtx.js';
import { reportOf } from './lib/report.js';
import { always, arrivals, latency, scaled, seconds } from './lib/settings.js';

const CALLERS = 20;
const ATTACKERS_MAX = 100;
const BASELINE_S = seconds / 2;

const baselineMs = new Trend('auth_baseline_ms', true);
const underAttackMs = new Trend('auth_under_attack_ms', true);
const badKeyMs = new Trend('bad_key_ms', true);
const slowdown = new Gauge('slowdown_under_attack');

export const options = {
  scenarios: {
    good: arrivals({ exec: 'good', rate: scaled(20), callers: CALLERS }),
    bad: {
      ...arrivals({ exec: 'bad', rate: scaled(200), callers: ATTACKERS_MAX }),
      startTime: `${BASELINE_S * 1000}ms`,
      duration: `${(seconds - BASELINE_S) * 1000}ms`,
    },
  },
  thresholds: {
    ...always,
    // A gauge that was never set is 0.
    slowdown_under_attack: ['value>0', `value<=${latency(1.5)}`],
    auth_baseline_ms: [`p(95)<=${latency(50)}`],
    auth_under_attack_ms: [`p(95)<=${latency(75)}`],
  },
  noConnectionReuse: true,
  setupTimeout: '120s',
  teardownTimeout: '120s',
};

export function setup() {
  return prepare({ keys: CALLERS + ATTACKERS_MAX });
}

export function good(ground) {
  const node = new Node(ground.node);
  const who = encoder(ground.keys[exec.vu.idInTest % ground.keys.length], exec.vu.idInTest);
  const isBaseline = Date.now() - exec.scenario.startTime < BASELINE_S * 1000;
  const answer = askOne(node.asksToPublish(who), isBaseline ? baselineMs : underAttackMs);
  isDue(answer, [204], 'a good key is admitted');
  isDue(http.batch([node.saysOffline(who)])[0], [200], 'ended');
}

export function bad(ground) {
  const node = new Node(ground.node);
  const number = exec.scenario.iterationInTest;
  const secret = number % 2 === 0 ? wellFormed() : mistyped(ground.keys[0].secret);
  const who = encoder({ path: ground.keys[0].path, secret }, number);
  who.ip = number % 3 === 0 ? '198.19.255.1' : `198.19.${Math.floor(number / 250) % 250}.${1 + (number % 250)}`;
  // MediaMTX gets the same refusal for a wrong key as for an address that keeps trying.
  isDue(askOne(node.asksToPublish(who), badKeyMs), [401, 429], 'a bad key is refused');
}

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';

// A key as Onair makes them, checksum and all, that nobody has.
function wellFormed() {
  let secret = 'sk_';
  for (let place = 0; place < 28; place += 1) secret += ALPHABET[Math.floor(Math.random() * 62)];
  const digest = sha256(secret, 'hex');
  let rest = BigInt(`0x${digest.slice(0, 16)}`);
  for (let place = 0; place < 6; place += 1) {
    secret += ALPHABET[Number(rest % 62n)];
    rest /= 62n;
  }
  return secret;
}

function mistyped(secret) {
  const place = 3 + Math.floor(Math.random() * 28);
  const other = ALPHABET[(ALPHABET.indexOf(secret[place]) + 1) % 62];
  return secret.slice(0, place) + other + secret.slice(place + 1);
}

// Two metrics can only be compared once they are complete: k6 tells them itself.
export function teardown(ground) {
  clear(ground);
  // k6 takes samples in at short intervals.
  sleep(1);
  const p95 = (metric) => {
    const answer = http.get(`http://${__ENV.ONAIR_LOAD_K6_ADDRESS}/v1/metrics/${metric}`);
    return answer.json('data.attributes.sample')['p(95)'];
  };
  slowdown.add(p95('auth_under_attack_ms') / p95('auth_baseline_ms'));
}

export const handleSummary = reportOf('brute_force');
