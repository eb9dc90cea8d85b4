// Small line charts of the last two minutes, drawn as SVG.

import { element, setText, shape } from "./dom.js";
import { isNumber } from "./format.js";

const SPAN_S = 120;
const WIDTH = 240;
const HEIGHT = 64;

/**
 * A chart of one or two lines.
 * `lines` is [{key, name}], `format` writes a value, `atLeast` is the smallest value of the top edge.
 */
export class Plot {
  constructor({ title, lines, format, atLeast }) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.atLeast = atLeast;
    this.points = [];
    this.values = lines.map(() => element("strong", {}, "–"));
    this.paths = lines.map((_, at) => shape("path", { class: `line line-${at}` }));
    this.top = element("span", { class: "plot-top" });
    this.svg = shape(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      shape("path", { class: "grid", d: `M0 1H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 1}H${WIDTH}` }),
      this.paths,
    );
    this.node = element("figure", { class: "card plot" }, this.#caption(), this.top, this.svg);
  }

  #caption() {
    const legend = this.lines.map(({ name }, at) =>
      element("span", { class: `key key-${at}` }, `${name} `, this.values[at]),
    );
    return element("figcaption", {}, element("h3", {}, this.title), element("span", { class: "legend" }, legend));
  }

  /** Add the figures of a moment, `{key: number|null}`, and draw; null alone leaves a gap. */
  add(now, figures) {
    this.points.push({ now, figures: figures ?? {} });
    this.points = this.points.filter((point) => now - point.now <= SPAN_S);
    this.#draw(now);
  }

  #draw(now) {
    const all = this.points.flatMap(({ figures }) => this.lines.map(({ key }) => figures[key])).filter(isNumber);
    const top = roundUp(Math.max(this.atLeast, ...all));
    const latest = this.points.at(-1).figures;
    const texts = this.lines.map(({ key }) => this.format(latest[key]));
    this.lines.forEach(({ key }, at) => {
      this.paths[at].setAttribute("d", pathOf(this.points, key, now, top));
      setText(this.values[at], texts[at]);
    });
    setText(this.top, this.format(top));
    const said = this.lines.map(({ name }, at) => `${name} ${texts[at]}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: ${said}; scale to ${this.format(top)}`);
  }
}

function pathOf(points, key, now, top) {
  let isDown = false;
  const steps = [];
  for (const { now: then, figures } of points) {
    const value = figures[key];
    if (isNumber(value)) {
      const x = WIDTH * (1 - (now - then) / SPAN_S);
      const y = 1 + (HEIGHT - 2) * (1 - value / top);
      steps.push(`${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`);
      if (!isDown) steps.push("h0.01"); // a single point is visible, too
    }
    isDown = isNumber(value);
  }
  return steps.join("");
}

/** The next of 1, 2, 5, 10, 20, …: the scale changes seldom. */
function roundUp(value) {
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * magnitude >= value * 0.999999) * magnitude;
}
