// A frontend that shows what is on air: it reads pages of the list, asks again with the `ETag` it has, and opens streams.

import { check } from 'k6';
import { Rate, Trend } from 'k6/metrics';
import { get } from './api.js';
import { isDue } from './mediamtx.js';

const listMs = new Trend('list_ms', true);
const unchangedMs = new Trend('list_unchanged_ms', true);
const detailsMs = new Trend('details_ms', true);
const notModified = new Rate('asked_again_and_spared');

const LIST = '/v1/streams';
const COMPRESSED = { 'Accept-Encoding': 'gzip' };

// A page of what is on air; `null` where that went wrong.
export function listPage(query) {
  const answer = get(`${LIST}?${query}`, LIST, COMPRESSED);
  listMs.add(answer.timings.duration);
  if (!isDue(answer, [200], 'a page of the list')) return null;
  const page = answer.json();
  check(page, { 'the list is exact, not stale': (list) => list.stale === false });
  return Object.assign(page, { etag: answer.headers.Etag });
}

// Asks for the same page again, with the name of the one at hand.
export function askAgain(query, etag) {
  const answer = get(`${LIST}?${query}`, LIST, Object.assign({ 'If-None-Match': etag }, COMPRESSED));
  const isSpared = answer.status === 304;
  isDue(answer, [200, 304], 'the list, or that it is unchanged');
  notModified.add(isSpared);
  if (isSpared) {
    unchangedMs.add(answer.timings.duration);
    check(answer, { 'an unchanged list has no body': (got) => !got.body });
    return etag;
  }
  listMs.add(answer.timings.duration);
  return answer.headers.Etag;
}

// Everything about one of the streams of a page. It may have ended meanwhile, which is told, not refused.
export function open(page) {
  const stream = page.items[Math.floor(Math.random() * page.items.length)];
  const answer = get(`${LIST}/${stream.id}`, `${LIST}/{id}`);
  detailsMs.add(answer.timings.duration);
  if (!isDue(answer, [200], 'details of a stream')) return;
  check(answer.json(), { 'details are of the stream that was asked for': (got) => got.id === stream.id && got.path === stream.path });
}

// Whether a path is in the list now.
export function isOnAir(path) {
  const page = listPage(`path=${encodeURIComponent(path)}`);
  return page !== null && page.total === 1;
}
