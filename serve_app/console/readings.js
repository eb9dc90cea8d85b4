// From Prometheus' text format to figures of the last seconds: counters are compared with those of a while ago.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const DURATION = "dspy_request_duration_seconds_bucket";
const CALLS = "dspy_requests_total";
const LEVEL = "dspy_degradation_level";
const SUMS = {
  dspy_cache_hits_total: "hits",
  dspy_cache_misses_total: "misses",
  dspy_cost_usd_total: "costUsd",
};

/** The totals of a metrics page; `buckets` maps an upper bound in seconds to the calls that took at most that. */
export function readingOf(page) {
  const reading = { calls: 0, failed: 0, hits: 0, misses: 0, costUsd: 0, level: null, buckets: new Map() };
  for (const line of page.split("\n")) {
    const [, name, labels = "", text] = SAMPLE.exec(line) ?? [];
    const value = Number(text);
    if (name === CALLS) {
      reading.calls += value;
      if (label(labels, "status") !== "success") reading.failed += value;
    } else if (name === DURATION) {
      const bound = label(labels, "le") === "+Inf" ? Infinity : Number(label(labels, "le"));
      reading.buckets.set(bound, (reading.buckets.get(bound) ?? 0) + value);
    } else if (name === LEVEL) {
      reading.level = value;
    } else if (name in SUMS) {
      reading[SUMS[name]] += value;
    }
  }
  return reading;
}

function label(labels, wanted) {
  for (const [, name, value] of labels.matchAll(LABEL)) if (name === wanted) return value;
  return "";
}

/** What happened between two readings; null where nothing did, or where a restart set the counters back. */
export function between(before, after, seconds) {
  const calls = after.calls - before.calls;
  if (calls < 0 || seconds <= 0) return {};
  const looked = after.hits - before.hits + after.misses - before.misses;
  return {
    calls: calls / seconds,
    failed: (after.failed - before.failed) / seconds,
    p50: quantile(0.5, before.buckets, after.buckets),
    p95: quantile(0.95, before.buckets, after.buckets),
    hitShare: looked > 0 ? (after.hits - before.hits) / looked : null,
    level: after.level,
    usdPerHour: ((after.costUsd - before.costUsd) / seconds) * 3600,
  };
}

/** Seconds within which that share of the calls ended: linear inside a bucket, as Prometheus estimates it. */
function quantile(share, before, after) {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.get(bound) - (before.get(bound) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return null;
  const at = counts.findIndex((count) => count >= share * total);
  const [lower, below] = at > 0 ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  if (bounds[at] === Infinity) return lower;
  return lower + ((bounds[at] - lower) * (share * total - below)) / (counts[at] - below);
}

/** Remembers the readings of a few seconds and compares the newest with the oldest of them. */
export class Window {
  constructor(seconds) {
    this.seconds = seconds;
    this.readings = [];
  }

  /** Take a reading made at `now` (seconds); what happened since the oldest one kept, or null for the first. */
  add(now, reading) {
    this.readings = this.readings.filter((kept) => now - kept.now <= this.seconds);
    const before = this.readings[0];
    this.readings.push({ now, reading });
    return before ? between(before.reading, reading, now - before.now) : null;
  }

  /** Forget everything: what comes next has nothing to do with it. */
  clear() {
    this.readings = [];
  }
}
