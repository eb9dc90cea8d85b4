// The list of programs, and the form of the one that the address names (#program/triage).

import { byId, element, setText, show } from "./dom.js";
import { NoAnswer, ROOT, getJson, programPath } from "./server.js";
import { tryForm } from "./try_form.js";

const HASH = "#program/";

/** Asks for the programs and keeps the form of the chosen one; what a person typed stays unless its types change. */
export class Programs {
  constructor() {
    this.known = [];
    window.addEventListener("hashchange", () => this.#open());
  }

  /** Ask for the list again. Throws NoAnswer. */
  async refresh() {
    const { programs = [] } = await getJson("v1/programs");
    this.known = programs;
    setText(byId("programs-note"), programs.length ? "" : "No program is served.");
    await this.#open();
  }

  get #chosen() {
    const named = decoded(location.hash);
    return this.known.find(({ name }) => name === named) ?? this.known[0];
  }

  async #open() {
    const chosen = this.#chosen;
    show(byId("programs"), [this.known, chosen?.name], () => this.known.map((program) => item(program, chosen)));
    if (!chosen) return;
    try {
      const program = await getJson(programPath(chosen.name));
      if (this.#chosen?.name === chosen.name) show(byId("try"), program, tryForm);
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      setText(byId("programs-note"), `${chosen.name} could not be read: ${error.message}.`);
    }
  }
}

function item(program, chosen) {
  const isChosen = program === chosen;
  const types = new URL(programPath(program.name), ROOT).href;
  return element(
    "li",
    { class: isChosen ? "card chosen" : "card" },
    element("a", { href: HASH + encodeURIComponent(program.name), "aria-current": isChosen && "true" }, program.name),
    element("p", {}, program.description),
    element(
      "p",
      { class: "note" },
      `models ${(program.models ?? []).join(", ")} · version ${program.version} · `,
      element("a", { href: types, "aria-label": `types of ${program.name}` }, "types"),
    ),
  );
}

function decoded(hash) {
  try {
    return hash.startsWith(HASH) ? decodeURIComponent(hash.slice(HASH.length)) : "";
  } catch {
    return "";
  }
}
