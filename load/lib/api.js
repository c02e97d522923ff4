// The API as a frontend or an administrator calls it. Connections are kept open, as theirs are.

import http from 'k6/http';
import { apiAuthorization, url } from './target.js';

// A refusal that is due is no failure of the service: the reports count only what it owes an answer.
http.setResponseCallback(http.expectedStatuses({ min: 200, max: 499 }));

export function params(name, headers) {
  const own = { Authorization: apiAuthorization, 'Content-Type': 'application/json' };
  return { headers: Object.assign(own, headers), tags: { name }, redirects: 0, timeout: '20s' };
}

export function request(method, path, body, name) {
  return { method, url: url + path, body: body ? JSON.stringify(body) : null, params: params(name || path) };
}

export function get(path, name, headers) {
  return http.get(url + path, params(name || path, headers));
}

export function call(method, path, body, name) {
  const made = request(method, path, body, name);
  return http.request(made.method, made.url, made.body, made.params);
}

// What a refusal says, for the one who reads the output. Problems hold no secrets.
export function problem(answer) {
  if (answer.error_code && answer.status === 0) return answer.error;
  let code = '';
  try {
    code = answer.json('code');
  } catch (_) {
    code = 'no problem document';
  }
  return `${answer.status} ${code}`;
}

// For what a scenario cannot go on without.
export function expect(answer, statuses, what) {
  if (!statuses.includes(answer.status)) throw new Error(`${what}: ${problem(answer)}`);
  return answer;
}

// Sends requests, a number of them at once.
export function inBatches(requests, atOnce) {
  const answers = [];
  for (let from = 0; from < requests.length; from += atOnce) {
    answers.push(...http.batch(requests.slice(from, from + atOnce)));
  }
  return answers;
}
