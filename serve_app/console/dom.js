// Building and replacing elements. What a server says goes in as text and attributes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (false and null leave one out) and children, which are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** The page's element of that id. */
export function byId(id) {
  return document.getElementById(id);
}

const shown = new WeakMap();

/** Replace a node's children only when what they show has changed, so selected text and focus outlive a poll. */
export function show(node, value, build) {
  const key = JSON.stringify(value);
  if (shown.get(node) !== key) {
    shown.set(node, key);
    node.replaceChildren(...[build(value)].flat());
  }
}

/** Set a node's text only when it differs. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
