// What became of a call: the outputs and how they were made, or the problem document.

import { element } from "./dom.js";
import { digits, duration, money, words } from "./format.js";

/** The nodes for an answer `{status, body, text}` of a program. */
export function answerView({ status, body, text }) {
  const made = status === 200 && body?.outputs ? answered(body) : refused(status, body, text);
  const raw = body === null ? text : JSON.stringify(body, null, 2);
  return [...made, element("details", {}, element("summary", {}, "The whole answer"), element("pre", {}, raw))];
}

/** The nodes for a call that got no answer at all. */
export function unansweredView(reason) {
  return [heading("bad", "No answer"), element("p", {}, reason)];
}

function answered({ outputs, meta = {} }) {
  const facts = {
    model: meta.model,
    level: meta.level,
    cache: meta.cache,
    took: duration(meta.latency_s),
    cost: money(meta.cost_usd),
    tokens: `${digits(meta.usage?.input_tokens)} in, ${digits(meta.usage?.output_tokens)} out`,
    "request id": meta.request_id,
  };
  return [
    heading("good", "Answer"),
    list("outputs", Object.entries(outputs).map(([name, value]) => [name, shownValue(value)])),
    element("h4", {}, "How it was made"),
    route(meta.attempts),
    list("facts", Object.entries(facts)),
  ];
}

function refused(status, body, text) {
  const problem = body ?? {};
  const facts = [
    ["code", problem.code],
    ["worth asking again", problem.retryable === undefined ? undefined : problem.retryable ? "yes" : "no"],
    ["retry after", problem.retry_after_s === undefined || problem.retry_after_s === null ? undefined : duration(problem.retry_after_s)],
    ["request id", problem.request_id],
  ];
  return [
    heading("bad", `${status} ${problem.title ?? "no problem document"}`),
    element("p", { class: "detail" }, problem.detail ?? text.slice(0, 500)),
    problem.attempts?.length ? route(problem.attempts) : null,
    list("facts", facts),
  ].filter(Boolean);
}

/** The attempts in their order; a cached answer has none. */
function route(attempts) {
  if (!attempts?.length) return element("p", { class: "note" }, "No model was asked.");
  const steps = attempts.map(({ model, outcome, latency_s }) =>
    element(
      "li",
      {},
      element("strong", {}, model),
      " ",
      element("span", { class: outcome === "ok" || outcome === "slow" ? "ok" : "not-ok" }, words(outcome)),
      ` ${duration(latency_s)}`,
    ),
  );
  return element("ol", { class: "route", "aria-label": "Models asked, in order" }, steps);
}

function list(kind, rows) {
  const known = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return element(
    "dl",
    { class: kind },
    known.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function heading(kind, text) {
  return element("h3", { class: `verdict ${kind}` }, text);
}

function shownValue(value) {
  if (typeof value === "string") return value === "" ? "(empty)" : value;
  return JSON.stringify(value, null, value !== null && typeof value === "object" ? 1 : 0);
}
