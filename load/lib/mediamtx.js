// A MediaMTX node, as Onair sees it: it asks about publishers and readers, its hooks tell who came and went, and its control
// API, which `load/node.py` plays, lists who is there.
//
// Each call comes on a connection of its own, as MediaMTX's do. What is measured is what MediaMTX waits: from the moment
// when it wants to ask, the connection's making included.

import http from 'k6/http';
import { check } from 'k6';
import { Trend } from 'k6/metrics';
import { problem } from './api.js';
import { nodeAuthorization, url } from './target.js';

export const controlUrl = __ENV.ONAIR_LOAD_NODE_URL;

const authMs = new Trend('auth_ms', true);

const PROTOCOLS = [
  { protocol: 'rtmp', type: 'rtmpConn', userAgent: 'FMLE/3.0 (compatible; Lavf59.27.100)' },
  { protocol: 'srt', type: 'srtConn', userAgent: '' },
  { protocol: 'webrtc', type: 'webRTCSession', userAgent: 'curl/7.88.1' },
  { protocol: 'rtsp', type: 'rtspSession', userAgent: 'Lavf59.27.100' },
];

// The range of RFC 2544, for load tests: each encoder has an address of its own.
function addressOf(number) {
  return `198.18.${Math.floor(number / 250) % 250}.${1 + (number % 250)}`;
}

function credentials(protocol, secret) {
  const none = { user: '', password: '', token: '', query: '' };
  switch (protocol) {
    case 'rtmp':
      return Object.assign(none, { query: `key=${secret}` });
    case 'webrtc':
      return Object.assign(none, { token: secret });
    default:
      return Object.assign(none, { user: 'ch1', password: secret, token: secret });
  }
}

// An encoder that is about to publish with a key. Its protocol follows from its number.
export function encoder(key, number) {
  const { protocol, type, userAgent } = PROTOCOLS[number % PROTOCOLS.length];
  return { id: crypto.randomUUID(), path: key.path, secret: key.secret, ip: addressOf(number), protocol, type, userAgent };
}

function publishBody(who) {
  const own = { ip: who.ip, action: 'publish', path: who.path, protocol: who.protocol, id: who.id, userAgent: who.userAgent };
  return Object.assign(own, credentials(who.protocol, who.secret));
}

// One node with its name and password.
export class Node {
  constructor(name) {
    this.headers = { Authorization: nodeAuthorization(name), 'Content-Type': 'application/json', Connection: 'close' };
  }

  request(path, body) {
    const params = { headers: this.headers, tags: { name: path }, redirects: 0, timeout: '10s' };
    return { method: 'POST', url: url + path, body: JSON.stringify(body), params };
  }

  asksToPublish(who) {
    return this.request('/v1/mediamtx/auth', publishBody(who));
  }

  asksToRead(path, number) {
    const none = { user: '', password: '', token: '', query: '' };
    const own = { ip: addressOf(number), action: 'read', path, protocol: 'hls', id: crypto.randomUUID(), userAgent: 'hls.js' };
    return this.request('/v1/mediamtx/auth', Object.assign(own, none));
  }

  // The first call of an RTSP client, which never has credentials: the refusal makes it ask with them.
  asksWithoutKey(who) {
    return this.request('/v1/mediamtx/auth', Object.assign(publishBody(who), credentials('', '')));
  }

  saysOnline(who) {
    return this.hook('/v1/hooks/publish', who);
  }

  saysOffline(who) {
    return this.hook('/v1/hooks/unpublish', who);
  }

  hook(path, who) {
    return this.request(path, { path: who.path, source_type: who.type, source_id: who.id });
  }
}

// Makes calls at the same moment and notes how long each took.
export function ask(requests, trend = authMs) {
  const answers = http.batch(requests);
  for (const answer of answers) trend.add(durationMs(answer));
  return answers;
}

// Makes one call and notes how long it took.
export function askOne(request, trend = authMs) {
  return ask([request], trend)[0];
}

// What MediaMTX waited: k6 counts the connection's making to `blocked`.
export function durationMs(answer) {
  return answer.timings.blocked + answer.timings.duration;
}

let hasComplained = false;

// Whether an answer is the one that is due. The first wrong one of each caller is told in the output.
export function isDue(answer, statuses, what) {
  const isRight = check(answer, { [what]: (got) => statuses.includes(got.status) });
  if (!isRight && !hasComplained) {
    hasComplained = true;
    console.error(`not so: ${what}: ${problem(answer)}`);
  }
  return isRight;
}

function tellNode(path, body) {
  const params = { headers: { 'Content-Type': 'application/json' }, tags: { name: 'node' } };
  const answer = http.post(controlUrl + path, JSON.stringify(body), params);
  if (answer.status !== 204) throw new Error(`load/node.py does not answer as it should: ${answer.status} ${answer.error}`);
}

// These publishers are online at the node now.
export function comeOnline(encoders) {
  tellNode('/load/arrivals', encoders.map(({ id, path, type }) => ({ id, path, type })));
}

// These are not any more.
export function goOffline(encoders) {
  tellNode('/load/departures', encoders.map(({ id }) => id));
}

// The node starts anew, and has nobody.
export function restartNode() {
  tellNode('/load/restart', []);
}
