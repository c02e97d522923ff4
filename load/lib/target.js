// The service under load, and who calls it.
//
// Secrets come from the environment or from files, never from a command line, and are shown nowhere. Only addresses of
// this machine are accepted, unless `load/run --any-host` says otherwise: load is made against what one has in hand.

import { hmac } from 'k6/crypto';
import encoding from 'k6/encoding';

const dev = __ENV.ONAIR_LOAD_CREDENTIALS ? JSON.parse(open(__ENV.ONAIR_LOAD_CREDENTIALS)) : {};

function given(name, fallback) {
  const file = __ENV[`${name}_FILE`];
  // A service's own file may be named, which holds several while one is being replaced: the first is in use.
  const value = file ? open(file).split('\n')[0].trim() : __ENV[name] || fallback;
  if (!value) throw new Error(`neither ${name} nor ${name}_FILE is set, and there is no credentials.json of \`onair dev\``);
  return value;
}

function address(text) {
  const parts = /^https?:\/\/(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:\d+)?\/?$/i.exec(text);
  if (!parts) throw new Error('the API\'s URL has to be http:// or https://, a host and perhaps a port');
  const isHere = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/i.test(parts[1]);
  if (!isHere && __ENV.ONAIR_LOAD_ANY_HOST !== '1') {
    throw new Error(`${parts[1]} is not this machine: load/run --any-host, if that service is yours to burden`);
  }
  return text.replace(/\/$/, '');
}

export const url = address(__ENV.ONAIR_API_URL || dev.api_url || 'none');

const nodeSecret = given('ONAIR_NODE_SECRET', dev.node_secret);

// What the frontend sends.
export const apiAuthorization = `Bearer ${given('ONAIR_API_SECRET', dev.api_secret)}`;

// What a node sends.
export function nodeAuthorization(name) {
  const password = hmac('sha256', nodeSecret, `onair node ${name}`, 'hex');
  return `Basic ${encoding.b64encode(`${name}:${password}`)}`;
}
