// What is left of a run: the contract, line by line, in the output, and everything as JSON beside k6's own HTML report.

// Makes `handleSummary` of a scenario.
export function reportOf(name) {
  return function handleSummary(data) {
    const files = { stdout: text(name, data) };
    // Without what `setup` made: that holds keys.
    const { metrics, state } = data;
    if (__ENV.ONAIR_LOAD_JSON) files[__ENV.ONAIR_LOAD_JSON] = JSON.stringify({ scenario: name, state, metrics }, null, 2);
    return files;
  };
}

function text(name, data) {
  const lines = [`\n${name}`];
  for (const [metric, { thresholds = {}, values }] of Object.entries(data.metrics)) {
    for (const [threshold, { ok }] of Object.entries(thresholds)) {
      lines.push(`  ${ok ? 'kept  ' : 'BROKEN'}  ${metric}: ${threshold}  (${shown(threshold, values)})`);
    }
  }
  const auth = data.metrics.auth_ms;
  if (auth) lines.push(`  auth calls, ms: ${['med', 'p(95)', 'max'].map((word) => shown(word, auth.values)).join(', ')}`);
  return `${lines.join('\n')}\n`;
}

function shown(threshold, values) {
  const word = threshold.split(/[<>=]/)[0].trim();
  const value = values[word];
  return `${word} ${value === undefined ? 'none' : Number(value.toFixed(3))}`;
}
