// What GET v1/status says, as a page: level, models, system, policy.

import { byId, element, setText, show } from "./dom.js";
import { NONE, digits, duration, isNumber, money, words } from "./format.js";

const LEVELS = { full: "good", degraded: "warn", minimal: "bad" };
const BREAKERS = { closed: "good", half_open: "warn", open: "bad" };
const COLUMNS = ["Model", "Breaker", "Health", "Requests", "Failures", "Mean latency", "Waiting", "Quality", "Cost"];
// Whose word on an answer goes first: a judge's, the callers', the program's own.
const JUDGES = ["reward", "feedback", "confidence"];
const CACHE_WORDS = {
  near_entries: "answers, near",
  memory_entries: "answers, memory",
  near_bytes: "bytes, near",
  memory_bytes: "bytes, memory",
  in_flight: "being made",
  saved_cost_usd: "USD saved",
  saved_seconds: "seconds saved",
};

/** Show a status document; what it lacks is shown as missing. */
export function showStatus(status) {
  showLevel(status);
  const window_s = status.policy?.breaker?.window_s;
  setText(byId("models-window"), isNumber(window_s) ? `counted over ${digits(window_s)} s` : "");
  show(byId("models-view"), [status.models, status.queues, status.quality], () => modelsTable(status));
  show(byId("system"), [status.replicas, status.queues, status.caches, status.cost_usd, status.ready], () => tiles(status));
  const hidden = status.control_plane ? "not known" : "It is shown to operators: enter the operator key.";
  const problems = status.policy_problems ?? [];
  show(byId("policy-view"), [status.policy ?? hidden, problems], () =>
    status.policy ? element("div", {}, problems.length ? refused(problems) : null, tree(status.policy)) : note(hidden),
  );
}

/** What keeps the newest policy out; the one before stays in force, which nothing else would tell. */
function refused(problems) {
  const lines = problems.map((problem) => element("li", {}, problem));
  const text = "The newest policy was refused, and the one below is in force:";
  return element("div", { class: "refused", role: "alert" }, element("p", {}, text), element("ul", {}, lines));
}

function showLevel(status) {
  const { level, reason = "", since_s } = typeof status.level === "string" ? { level: status.level } : status.level ?? {};
  const pill = byId("level");
  pill.className = `pill ${LEVELS[level] ?? ""}`;
  setText(pill, level ? `level ${level}` : "level unknown");
  const since = isNumber(since_s) ? `for ${duration(Math.floor(since_s) || 1)}` : "";
  const text = [reason, level !== "full" || reason ? since : ""].filter(Boolean).join(", ");
  byId("reason").hidden = !text;
  setText(byId("reason"), text && `Level ${level}: ${text}`);
}

function modelsTable({ models, queues = {}, quality }) {
  if (!models || !Object.keys(models).length) return note("No model is known.");
  const head = COLUMNS.map((name) => element("th", { scope: "col", role: "columnheader" }, name));
  const rows = Object.entries(models).map(([name, model]) => modelRow(name, model, queues[`Model-${name}`], qualityOf(name, quality)));
  // Roles are spelled out, for a narrow screen lays rows out as blocks, which takes a table's meaning away.
  return element(
    "table",
    { class: "models", role: "table", "aria-labelledby": "models-title" },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, head)),
    element("tbody", { role: "rowgroup" }, rows),
  );
}

/** A model's mean score over all programs, and who gave it; null where nobody has scored it. */
function qualityOf(name, quality) {
  const scores = Object.values(quality?.programs ?? {}).flatMap((program) => program.models?.[name]?.scores ?? []);
  for (const judge of JUDGES) {
    const given = scores.filter((score) => score.metric_type === judge && score.samples > 0);
    const samples = given.reduce((sum, score) => sum + score.samples, 0);
    if (samples > 0) return { judge, mean: given.reduce((sum, score) => sum + score.mean * score.samples, 0) / samples };
  }
  return null;
}

function modelRow(name, model, waiting, quality) {
  const why = [model.reason && words(model.reason), model.retry_after_s > 0 && `again in ${duration(model.retry_after_s)}`];
  const breaker = element("span", { class: `pill ${BREAKERS[model.breaker] ?? ""}` }, words(model.breaker ?? NONE));
  const cells = [
    [breaker, ...why.filter(Boolean).map((text) => element("small", {}, ` ${text}`))],
    [element("span", { class: model.healthy ? "ok" : "not-ok" }, model.healthy ? "healthy" : "not healthy")],
    [digits(model.requests)],
    [digits(model.failures)],
    [duration(model.mean_latency_s)],
    [digits(waiting)],
    quality ? [quality.mean.toFixed(2), element("small", {}, ` ${quality.judge}`)] : [NONE],
    [money(model.cost_usd)],
  ];
  return element(
    "tr",
    { role: "row", "data-model": name },
    element("th", { scope: "row", role: "rowheader" }, name),
    cells.map((children, at) =>
      element("td", { role: "cell", "data-label": COLUMNS[at + 1], class: at > 1 ? "number" : null }, children),
    ),
  );
}

function tiles(status) {
  return [
    tile("Replicas", status.replicas, digits),
    tile("Queues: calls waiting", status.queues, digits),
    tile("Caches", status.caches, digits, (name) => CACHE_WORDS[name] ?? words(name)),
    tile("Cost so far", { "all models": status.cost_usd }, money),
    tile("Service", { "able to answer": status.ready ? "yes" : "no" }, String),
  ];
}

function tile(title, values, format, called = String) {
  const rows = Object.entries(values ?? {}).map(([name, value]) => row(called(name), format(value)));
  return element("div", { class: "card" }, element("h3", {}, title), rows.length ? element("dl", {}, rows) : note("none"));
}

function row(name, ...value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
}

/** Nested settings as nested lists. */
function tree(value) {
  const rows = Object.entries(value).map(([name, inner]) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? element("div", { class: "branch" }, element("dt", {}, name), element("dd", {}, tree(inner)))
      : row(name, inner === null ? NONE : String(inner)),
  );
  return element("dl", {}, rows);
}

function note(text) {
  return element("p", { class: "note" }, text);
}
