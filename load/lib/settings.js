// How long, how much and how strict: what `load/run` was told. Every scenario takes its numbers from here.

function number(name, fallback) {
  const text = __ENV[name];
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (!(value > 0)) throw new Error(`${name} has to be a number above 0, and is ${text}`);
  return value;
}

// How long the load itself takes; preparing and clearing up come on top.
export const seconds = number('ONAIR_LOAD_SECONDS', 30);

const scale = number('ONAIR_LOAD_SCALE', 1);
const latencyFactor = number('ONAIR_LOAD_LATENCY_FACTOR', 1);

// A rate or a number of streams, larger or smaller than a scenario has it.
export function scaled(count) {
  return Math.max(1, Math.round(count * scale));
}

// A limit of time, or of a ratio of times. Looser only on machines that are busy with something else, such as those of CI.
export function latency(limit) {
  return limit * latencyFactor;
}

// Arrivals at a constant rate, which do not wait for the answers to those before them: `rate` of the function `exec` in each
// `timeUnit`. Where `callers` of them are not enough for that, arrivals are dropped, and `always` tells.
export function arrivals({ exec, rate, timeUnit = '1s', callers }) {
  return {
    executor: 'constant-arrival-rate',
    exec,
    rate,
    timeUnit,
    duration: `${seconds}s`,
    preAllocatedVUs: callers,
    maxVUs: callers,
  };
}

// What every contract holds: each answer was right, and the generator kept its rate, so that nothing was left unmeasured.
export const always = { checks: ['rate==1'], dropped_iterations: ['count==0'] };
