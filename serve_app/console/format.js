// Numbers as people read them. A figure that is not there is a dash, never a zero.

export const NONE = "–";

/** 0.0123 → "12.3 ms", 4.2 → "4.20 s", 130 → "2 min 10 s". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  if (seconds >= 60) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds >= 1) return `${digits(seconds)} s`;
  return `${digits(seconds * 1000)} ms`;
}

/** Three figures that mean something: 1234.5 → "1,235", 0.01234 → "0.0123". */
export function digits(value) {
  if (!isNumber(value)) return NONE;
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

/** 0.00123 → "$0.00123". */
export function money(usd) {
  return isNumber(usd) ? `$${digits(usd)}` : NONE;
}

/** 0.42 → "42 %". */
export function percent(share) {
  return isNumber(share) ? `${digits(share * 100)} %` : NONE;
}

/** "half_open" → "half open". */
export function words(name) {
  return String(name).replaceAll("_", " ");
}

/** Whether it is a number that can be shown. */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 1 → "degraded": the value of dspy_degradation_level in words. */
export function levelName(rank) {
  return ["full", "degraded", "minimal"][rank] ?? NONE;
}
