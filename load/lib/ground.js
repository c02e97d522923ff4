// What a scenario stands on, made through the API before the load and cleared away after it: a node and stream keys of its
// own, and streams on air.
//
// Nothing that exists is touched. Keys cannot be deleted: they are revoked, and expire by themselves should a run be killed.

import { sleep } from 'k6';
import { call, expect, get, inBatches, request } from './api.js';
import { Node, comeOnline, controlUrl, encoder } from './mediamtx.js';
import { seconds } from './settings.js';

const BROADCASTER = 'Load scenarios';
const AT_ONCE = 10;

// Makes a node, `keys` stream keys, and puts encoders on air with the first `onAir` of them.
export function prepare({ keys, onAir = 0 }) {
  const run = crypto.randomUUID().slice(0, 8);
  const ground = { node: `load-${run}`, run, broadcaster: broadcaster(), keys: [], onAir: [] };
  try {
    addNode(ground.node);
    ground.keys = createKeys(ground, 0, keys);
    ground.onAir = goLive(ground, ground.keys.slice(0, onAir));
  } catch (error) {
    clear(ground);
    throw error;
  }
  return ground;
}

// Takes everything away again that can be.
export function clear(ground) {
  const deleted = call('DELETE', `/v1/nodes/${ground.node}`, null, '/v1/nodes/{name}');
  const revoked = revokeAll(ground.keys);
  expect(deleted, [204, 404], 'the node cannot be deleted');
  for (const answer of revoked) expect(answer, [200], 'a key cannot be revoked');
}

function revokeAll(keys) {
  const revoke = ({ id }) => request('POST', `/v1/stream-keys/${id}/revoke`, null, '/v1/stream-keys/{id}/revoke');
  return inBatches(keys.map(revoke), AT_ONCE);
}

// Broadcasters stay, so every run uses the same.
function broadcaster() {
  const listed = expect(get('/v1/broadcasters?limit=1000'), [200], 'broadcasters cannot be listed').json('items');
  const known = listed.find((item) => item.display_name === BROADCASTER);
  if (known) return known.id;
  const created = call('POST', '/v1/broadcasters', { display_name: BROADCASTER });
  return expect(created, [201], 'a broadcaster cannot be created').json('id');
}

function addNode(name) {
  const body = { control_url: controlUrl, public_urls: { hls: `http://${name}.example.org:8888` } };
  expect(call('PUT', `/v1/nodes/${name}`, body, '/v1/nodes/{name}'), [200, 201], 'a node cannot be added');
  for (let tries = 0; tries < 100; tries += 1) {
    if (expect(get(`/v1/nodes/${name}`, '/v1/nodes/{name}'), [200], 'a node is gone').json('reachable')) return;
    sleep(0.1);
  }
  throw new Error(`the service does not reach the node of this run at ${controlUrl}`);
}

export function createKeys({ run, broadcaster: broadcasterId }, from, count) {
  const expiresAt = new Date(Date.now() + (seconds + 3600) * 1000).toISOString();
  const create = (_, index) => {
    const body = { broadcaster_id: broadcasterId, path: `load/${run}/${from + index}`, expires_at: expiresAt };
    return request('POST', '/v1/stream-keys', body);
  };
  const answers = inBatches(Array.from({ length: count }, create), AT_ONCE);
  const made = answers.filter((answer) => answer.status === 201).map((answer) => {
    const created = answer.json();
    return { id: created.stream_key.id, path: created.stream_key.path, secret: created.secret };
  });
  if (made.length < count) {
    revokeAll(made);
    expect(answers.find((answer) => answer.status !== 201), [201], 'a key cannot be created');
  }
  return made;
}

function goLive(ground, keys) {
  const node = new Node(ground.node);
  const encoders = keys.map(encoder);
  for (let from = 0; from < encoders.length; from += AT_ONCE) {
    const some = encoders.slice(from, from + AT_ONCE);
    const answers = inBatches(some.map((who) => node.asksToPublish(who)), AT_ONCE);
    for (const answer of answers) expect(answer, [204], 'a publisher is not admitted');
    // At once: a publisher whom its node does not know is soon taken for gone.
    comeOnline(some);
    inBatches(some.map((who) => node.saysOnline(who)), AT_ONCE);
  }
  return encoders;
}
