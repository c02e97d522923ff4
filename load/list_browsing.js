// Hypothesis: a thousand streams on air are as quick to browse as ten, and exact while streams come and go.
//
// Arrival: visits at a constant rate. A visit reads a page of a hundred, asks for it again with its ETag, turns the page,
// and opens one of the streams. Beside them, at a constant rate of their own, streams end and others begin, which changes
// every page that has them; each one is looked for in the list as soon as it has been admitted or ended.
//
// Contract: p95 of a page at most 50 ms, of an unchanged page 20 ms, of details 50 ms (the node is asked for them too); more
// than half of those who ask again are spared the body; no page is wrong, stale, or of another moment than it says.

import { check } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { askAgain, isOnAir, listPage, open } from './lib/frontend.js';
import { clear, prepare } from './lib/ground.js';
import { Node, askOne, comeOnline, encoder, goOffline, isDue } from './lib/mediamtx.js';
import { reportOf } from './lib/report.js';
import { always, arrivals, latency, scaled } from './lib/settings.js';

const PAGE = 100;
const VISITORS_MAX = 40;
const CHANGERS = 4;
const ON_AIR = Math.max(scaled(1000), PAGE + 1);

export const options = {
  scenarios: {
    visits: arrivals({ exec: 'visit', rate: scaled(50), callers: VISITORS_MAX }),
    changes: arrivals({ exec: 'change', rate: scaled(5), callers: CHANGERS }),
  },
  thresholds: {
    ...always,
    list_ms: [`p(95)<=${latency(50)}`],
    list_unchanged_ms: [`p(95)<=${latency(20)}`],
    details_ms: [`p(95)<=${latency(50)}`],
    asked_again_and_spared: ['rate>0.5'],
  },
  setupTimeout: '180s',
  teardownTimeout: '180s',
};

export function setup() {
  return prepare({ keys: ON_AIR + VISITORS_MAX + CHANGERS, onAir: ON_AIR });
}

export function visit(ground) {
  const query = `node=${ground.node}&limit=${PAGE}`;
  const page = listPage(query);
  if (page === null) return;
  check(page, {
    'a page is full': (list) => list.items.length === PAGE,
    'the total is what is on air': (list) => list.total >= ON_AIR && list.total <= ON_AIR + CHANGERS,
  });
  askAgain(query, page.etag);
  const next = listPage(`${query}&cursor=${encodeURIComponent(page.next_cursor)}`);
  const seen = new Set(page.items.map((stream) => stream.id));
  check(next, { 'no stream is on two pages': (list) => list !== null && !list.items.some((stream) => seen.has(stream.id)) });
  open(page);
}

// One stream begins and ends again, on a path of this caller's own.
export function change(ground) {
  const node = new Node(ground.node);
  const number = exec.vu.idInTest - 1;
  const who = encoder(ground.keys[ON_AIR + number], number);
  if (!isDue(askOne(node.asksToPublish(who)), [204], 'admitted')) return;
  comeOnline([who]);
  isDue(http.batch([node.saysOnline(who)])[0], [200], 'online');
  check(who, { 'who was admitted is in the next list': ({ path }) => isOnAir(path) });
  goOffline([who]);
  isDue(http.batch([node.saysOffline(who)])[0], [200], 'ended');
  check(who, { 'who has ended is not in the next list': ({ path }) => !isOnAir(path) });
}

export const teardown = clear;

export const handleSummary = reportOf('list_browsing');
