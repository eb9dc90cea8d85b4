// The operations page: asks the server every second, shows what it says, and says so when it says nothing.

import { byId, element, setText, show } from "./dom.js";
import { digits, duration, levelName, money, percent } from "./format.js";
import { Operate } from "./operate_view.js";
import { credentials } from "./operator_key.js";
import { Plot } from "./plots.js";
import { Programs } from "./programs_view.js";
import { Window, readingOf } from "./readings.js";
import { NoAnswer, getJson, getText } from "./server.js";
import { showStatus } from "./status_view.js";

const POLL_MS = 1000;
const SMOOTHED_S = 5.5; // five polls
const PROGRAMS_EVERY = 30; // polls
const SAY_RECOVERED_MS = 5000;

const PLOTS = [
  { title: "Calls per second", lines: [{ key: "calls", name: "all" }, { key: "failed", name: "not answered" }], format: digits, atLeast: 1 },
  { title: "Latency", lines: [{ key: "p50", name: "p50" }, { key: "p95", name: "p95" }], format: duration, atLeast: 0.01 },
  { title: "Answered from a cache", lines: [{ key: "hitShare", name: "share" }], format: percent, atLeast: 1 },
  { title: "Cost per hour", lines: [{ key: "usdPerHour", name: "at this rate" }], format: money, atLeast: 0.01 },
  { title: "Level of service", lines: [{ key: "level", name: "level" }], format: levelName, atLeast: 2 },
];

class Console {
  constructor() {
    this.plots = PLOTS.map((settings) => new Plot(settings));
    byId("plots").append(...this.plots.map(({ node }) => node));
    this.programs = new Programs();
    this.operate = new Operate();
    this.window = new Window(SMOOTHED_S);
    this.polls = 0;
    this.lastAnswer = seconds();
    this.isLost = false;
    this.recoveredAt = -Infinity;
  }

  /** Poll for as long as the page is open; a hidden page asks nothing. */
  async run() {
    for (;;) {
      const next = performance.now() + POLL_MS;
      if (document.hidden) this.window.clear();
      else await this.#poll();
      await wakeOrPause(next - performance.now());
    }
  }

  async #poll() {
    try {
      // A control plane that is away or new has a status before it has everybody's metrics.
      const metrics = getText("metrics").catch(() => null);
      const [status, page] = await Promise.all([getJson("v1/status", credentials()), metrics]);
      this.#answered(status, page);
      if (this.polls++ % PROGRAMS_EVERY === 0) await this.programs.refresh();
    } catch (error) {
      if (!(error instanceof NoAnswer)) console.error(error); // an answer of a form this page does not know
      this.#unanswered(error instanceof NoAnswer ? error.message : `its answer cannot be shown (${error.message})`);
    }
    this.#showConnection();
  }

  #answered(status, page) {
    if (this.isLost) {
      this.recoveredAt = performance.now();
      this.polls = 0; // what is served may have changed
    }
    this.isLost = false;
    this.lastAnswer = seconds();
    this.controlPlane = status.control_plane;
    showStatus(status);
    const isOpen = Boolean(status.policy || status.control_plane);
    this.operate.update(Object.keys(status.models ?? {}), this.programs.known.map(({ name }) => name), isOpen);
    const isWhole = page !== null && !this.controlPlane; // one replica's own counters say nothing of the cluster's
    if (!isWhole) this.window.clear();
    this.#plot(isWhole ? this.window.add(seconds(), readingOf(page)) : null);
  }

  #unanswered(reason) {
    this.isLost = true;
    this.reason = reason;
    this.window.clear();
    this.#plot(null);
  }

  #plot(figures) {
    for (const plot of this.plots) plot.add(seconds(), figures);
  }

  #showConnection() {
    document.body.classList.toggle("stale", this.isLost);
    document.title = this.isLost ? "Connection lost – Switchyard" : "Switchyard";
    setText(byId("connection"), this.isLost ? `last answer ${duration(Math.round(seconds() - this.lastAnswer))} ago` : "connected");
    show(byId("banner"), this.#news(), (news) => (news ? element("p", { class: `banner ${news.kind}` }, news.text) : []));
  }

  /** What a person must know of the connection; its text stays the same while it holds, so it is read out once. */
  #news() {
    if (this.isLost) {
      const text = `Connection to the server lost: ${this.reason}. The figures below are old. Trying again every second.`;
      return { kind: "lost", text };
    }
    if (this.controlPlane === "unreachable") {
      const text = "The control plane cannot be reached: calls are answered, but cluster figures are missing.";
      return { kind: "missing", text };
    }
    const isNew = performance.now() - this.recoveredAt < SAY_RECOVERED_MS;
    return isNew ? { kind: "back", text: "Connected to the server again." } : null;
  }
}

function seconds() {
  return performance.now() / 1000;
}

/** Wait that long, or until the page is looked at again. */
function wakeOrPause(milliseconds) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
      resolve();
    };
    const timer = setTimeout(wake, Math.max(0, milliseconds));
    document.addEventListener("visibilitychange", wake);
  });
}

new Console().run();
