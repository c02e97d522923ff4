// What happens on an ordinary day: broadcasters come and go, viewers watch, frontends poll, and now and then a key is
// revoked. Each is one iteration, for scenarios to mix.

import { check, sleep } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { Trend } from 'k6/metrics';
import { call } from './api.js';
import { askAgain, isOnAir, listPage, open } from './frontend.js';
import { createKeys } from './ground.js';
import { Node, askOne, comeOnline, encoder, goOffline, isDue } from './mediamtx.js';

const revokeMs = new Trend('revoke_ms', true);

function startBroadcast(node, who) {
  if (who.protocol === 'rtsp') isDue(askOne(node.asksWithoutKey(who)), [401], 'asked for a key');
  if (!isDue(askOne(node.asksToPublish(who)), [204], 'admitted')) return false;
  comeOnline([who]);
  return isDue(http.batch([node.saysOnline(who)])[0], [200], 'online');
}

// A broadcast of `forSeconds`, with the key that is this caller's own.
export function broadcast(ground, firstKey, forSeconds) {
  const node = new Node(ground.node);
  const number = exec.vu.idInTest - 1;
  const who = encoder(ground.keys[firstKey + number], exec.scenario.iterationInTest);
  if (!startBroadcast(node, who)) return;
  sleep(forSeconds);
  goOffline([who]);
  isDue(http.batch([node.saysOffline(who)])[0], [200], 'ended');
}

// A viewer comes to something that is on air, and one to something that is not.
export function watch(ground) {
  const node = new Node(ground.node);
  const number = exec.scenario.iterationInTest;
  const stream = ground.onAir[number % ground.onAir.length];
  isDue(askOne(node.asksToRead(stream.path, number)), [204], 'may watch what is on air');
  isDue(askOne(node.asksToRead(`${stream.path}/nothing`, number)), [404], 'nothing to watch there');
}

let etag = '';

// A frontend that polls, as one does that has no stream of events: the list again, with the ETag of the last time, and
// sometimes a stream of it.
export function poll(ground) {
  const query = `node=${ground.node}&limit=50`;
  if (etag === '' || exec.vu.iterationInInstance % 5 === 0) {
    const page = listPage(query);
    if (page === null) return;
    etag = page.etag;
    open(page);
  } else {
    etag = askAgain(query, etag);
  }
}

// A key is made, used, and revoked while it is on air.
export function revoke(ground, firstPath) {
  const node = new Node(ground.node);
  const key = createKeys(ground, firstPath + exec.scenario.iterationInTest, 1)[0];
  const who = encoder(key, 0);
  if (!startBroadcast(node, who)) return;
  const answer = call('POST', `/v1/stream-keys/${key.id}/revoke`, null, '/v1/stream-keys/{id}/revoke');
  revokeMs.add(answer.timings.duration);
  if (!isDue(answer, [200], 'revoked')) return;
  check(answer.json(), { 'its publisher is gone from the node': (got) => got.publisher === 'gone' });
  check(key, { 'a revoked stream is not in the next list': ({ path }) => !isOnAir(path) });
  isDue(askOne(node.asksToPublish(encoder(key, 0))), [403], 'a revoked key is refused');
}
