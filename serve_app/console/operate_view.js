// The forms by which an operator gives orders. They stand apart from the polled figures, so no poll takes a button
// away from under a finger.

import { byId, element, setText, show } from "./dom.js";
import { words } from "./format.js";
import { credentials, forgetOperatorKey, keepOperatorKey, operatorKey } from "./operator_key.js";
import { ORDERS, giveOrder } from "./orders.js";
import { getJson } from "./server.js";

const EVERY = "*";
const LEVELS = ["full", "degraded", "minimal"];

/** Shows the forms once and keeps what they offer up to date. */
export class Operate {
  constructor() {
    this.refused = null; // the order that waits for a key
    this.isBusy = false;
    this.model = select("order-model");
    this.program = select("order-program", ...programs([]));
    this.reason = element("input", { id: "order-reason", required: true, maxlength: 200, autocomplete: "off" });
    this.level = select("order-level", option("", "as policy and readings say"), LEVELS.map((name) => option(name, words(name))));
    this.key = element("input", { id: "operator-key", type: "password", required: true, pattern: "[!-~]+", autocomplete: "off" });
    byId("operate").append(this.#modelForm(), this.#levelForm(), this.#cacheForm(), this.#keyForm());
  }

  /** Offer what a status and the list of programs name; `isOpen` says that the server shows us what operators see. */
  update(models, names, isOpen) {
    if (models.length) show(this.model, models, () => models.map((name) => option(name, name)));
    show(this.program, names, () => programs(names));
    this.isOpen = isOpen;
    this.#showKey();
  }

  #modelForm() {
    const reset = element("button", { type: "button" }, "Reset");
    reset.addEventListener("click", () => this.#give(ORDERS.reset(this.model.value)));
    const fields = [field("Model", this.model), field("Reason to isolate it", this.reason)];
    const isolate = () => this.#give(ORDERS.isolate(this.model.value, this.reason.value));
    return form("Models", fields, [button("Isolate"), reset], isolate);
  }

  #levelForm() {
    const pin = () => this.#give(ORDERS.pin(this.level.value || null));
    return form("Level of service", [field("Hold level", this.level)], [button("Hold")], pin);
  }

  #cacheForm() {
    const clear = () => this.#give(ORDERS.clear(this.program.value === EVERY ? null : this.program.value));
    return form("Cache", [field("Stored answers of", this.program)], [button("Clear")], clear);
  }

  #keyForm() {
    const use = button("Use the key");
    this.forget = element("button", { type: "button" }, "Forget the key");
    this.forget.addEventListener("click", () => this.#forgetKey());
    this.keyNote = element("p", { class: "note" });
    this.entry = [field("Key", this.key), use];
    this.keyForm = form("Operator key", [this.keyNote, this.entry[0]], [use, this.forget], () => this.#useKey());
    this.keyForm.hidden = true;
    return this.keyForm;
  }

  async #give(order) {
    if (this.isBusy) return;
    this.isBusy = true;
    this.#say({ kind: "", text: "Asking …" });
    const outcome = await giveOrder(order);
    this.isBusy = false;
    this.refused = outcome.wantsKey ? order : null;
    this.#say(outcome);
    this.#showKey();
    if (outcome.wantsKey) this.key.focus();
  }

  async #useKey() {
    keepOperatorKey(this.key.value);
    this.key.value = "";
    if (this.refused) {
      await this.#give(this.refused);
    } else {
      this.#say(await tried());
    }
    this.#showKey();
  }

  #forgetKey() {
    forgetOperatorKey();
    this.refused = null;
    this.isOpen = false;
    this.#say({ kind: "", text: "The key is forgotten." });
    this.#showKey();
    this.key.focus();
  }

  /** The key is asked for only where the server has one. */
  #showKey() {
    const isKept = operatorKey() !== null;
    this.keyForm.hidden = !isKept && this.isOpen && !this.refused;
    for (const node of this.entry) node.hidden = isKept;
    this.key.disabled = isKept;
    this.forget.hidden = !isKept;
    const asking = this.refused ? "Enter it, and the order is given again." : "What changes or shows the configuration needs it.";
    setText(this.keyNote, isKept ? "Kept until this tab is closed." : asking);
  }

  #say({ kind, text }) {
    const said = byId("order-said");
    said.className = `said ${kind}`;
    setText(said, text);
    if (kind) said.scrollIntoView({ block: "nearest" });
  }
}

/** What the server makes of the key that is kept; one that is not right is forgotten. */
async function tried() {
  try {
    const status = await getJson("v1/status", credentials());
    if (status.policy) return { kind: "good", text: "The key is right." };
    if (status.control_plane) return { kind: "", text: "The key is kept; whether it is right cannot be seen now." };
  } catch {
    return { kind: "", text: "The key is kept; the server did not say whether it is right." };
  }
  forgetOperatorKey();
  return { kind: "bad", text: "That operator key is not the right one." };
}

function form(title, fields, buttons, submitted) {
  const content = [element("h3", {}, title), ...fields, element("div", { class: "buttons" }, buttons)];
  const made = element("form", { class: "card", "aria-label": title }, content);
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    submitted();
  });
  return made;
}

function field(label, control) {
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control);
}

function select(id, ...options) {
  return element("select", { id, required: id !== "order-level" }, ...options);
}

/** Nothing is chosen at first: one click too many should not forget every answer. */
function programs(names) {
  return [option("", "choose"), ...names.map((name) => option(name, name)), option(EVERY, "every program")];
}

function option(value, text) {
  return element("option", { value }, text);
}

function button(text) {
  return element("button", { type: "submit" }, text);
}
