// The form that tries a call of one program.

import { answerView, unansweredView } from "./answer_view.js";
import { element } from "./dom.js";
import { controlFor } from "./schema_controls.js";
import { callProgram } from "./server.js";

const COMPLEXITIES = ["auto", "low", "medium", "high"];
const PRIORITIES = ["default", "critical", "sheddable"];

/** The form and its answer for a program as GET v1/programs/{name} describes it. */
export function tryForm(program) {
  const schema = program.inputs ?? {};
  const required = new Set(schema.required ?? []);
  const inputs = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    controlFor(name, property, schema, required.has(name)),
  );
  const options = optionControls(program);
  const send = element("button", { type: "submit", class: "primary" }, "Call");
  const cancel = element("button", { type: "button", hidden: true }, "Cancel");
  const answer = element("div", { class: "answer", "aria-live": "polite" });
  const form = element(
    "form",
    { "aria-label": `Call ${program.name}` },
    element("h3", {}, `Try ${program.name}`),
    inputs.map(({ node }) => node),
    element("div", { class: "options" }, options.nodes),
    element("div", { class: "buttons" }, send, cancel),
  );
  const call = new Call(program.name, { send, cancel, answer });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const values = read(form, inputs);
    if (values) call.start({ inputs: values, options: options.read() }, options.skipCache());
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return [form, answer];
}

/** The inputs by name, or null when a control holds no value; it then says what is wrong. */
function read(form, inputs) {
  try {
    const pairs = inputs.map(({ name, read: value }) => [name, value()]);
    return Object.fromEntries(pairs.filter(([, value]) => value !== undefined));
  } catch {
    form.reportValidity();
    return null;
  }
}

function optionControls(program) {
  const complexity = element("select", { id: "option-complexity" }, COMPLEXITIES.map((name) => element("option", {}, name)));
  const anyModel = element("option", { value: "" }, "any");
  const models = (program.models ?? []).map((name) => element("option", { value: name }, name));
  const model = element("select", { id: "option-model" }, anyModel, models);
  const deadline = element("input", { id: "option-deadline", type: "number", min: 0.1, step: "any", placeholder: "default" });
  const budget = element("input", { id: "option-budget", type: "number", min: 0, step: "any", placeholder: "none" });
  const tokens = element("input", { id: "option-tokens", type: "number", min: 1, step: 1, placeholder: "the program's" });
  const priority = element("select", { id: "option-priority" }, PRIORITIES.map((name) => element("option", {}, name)));
  const skipCache = element("input", { id: "option-fresh", type: "checkbox" });
  const field = (label, control) => element("div", { class: "field" }, element("label", { for: control.id }, label), control);
  return {
    nodes: [
      field("Complexity", complexity),
      field("Model", model),
      field("Deadline, seconds", deadline),
      field("Budget, USD", budget),
      field("Most tokens of each LM call", tokens),
      field("Priority", priority),
      element("div", { class: "field check" }, element("label", { for: skipCache.id }, "Ask anew, past the cache"), skipCache),
    ],
    skipCache: () => skipCache.checked,
    read: () => ({
      complexity: complexity.value,
      ...(model.value && { model: model.value }),
      ...(deadline.value && { deadline_s: Number(deadline.value) }),
      ...(budget.value && { budget_usd: Number(budget.value) }),
      ...(tokens.value && { max_tokens: Number(tokens.value) }),
      ...(priority.value !== PRIORITIES[0] && { priority: priority.value }),
    }),
  };
}

/** One call at a time; a second is sent when the first has ended or was cancelled. */
class Call {
  constructor(program, { send, cancel, answer }) {
    this.program = program;
    this.send = send;
    this.cancel = cancel;
    this.answer = answer;
    this.running = null;
    cancel.addEventListener("click", () => this.running?.abort());
  }

  async start(body, skipCache) {
    if (this.running) return;
    const running = (this.running = new AbortController());
    this.#busy(true);
    try {
      const got = await callProgram(this.program, body, { skipCache, signal: running.signal });
      this.answer.replaceChildren(...answerView(got));
    } catch {
      const reason = running.signal.aborted ? "You cancelled the call." : "The connection to the server failed.";
      this.answer.replaceChildren(...unansweredView(reason));
    } finally {
      this.running = null;
      this.#busy(false);
    }
  }

  // The button keeps the focus while it waits: `disabled` would drop it.
  #busy(isBusy) {
    this.send.setAttribute("aria-disabled", String(isBusy));
    this.send.textContent = isBusy ? "Waiting …" : "Call";
    if (!isBusy && document.activeElement === this.cancel) this.send.focus();
    this.cancel.hidden = !isBusy;
    this.answer.setAttribute("aria-busy", String(isBusy));
  }
}
