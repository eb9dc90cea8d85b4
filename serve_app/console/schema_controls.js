// Form controls from JSON Schema: one control for each input of a program.
//
//   enum, const         select
//   boolean             checkbox; select when it may be left out without a default, or be null
//   integer, number     number
//   string              textarea
//   anything else       textarea that takes JSON

import { element } from "./dom.js";

const MAX_REFERENCES = 20;

/**
 * `{node, control, read}` for one property.
 * `read()` gives the value, or undefined to leave the input out; where the text is no value it marks the control
 * invalid and throws.
 */
export function controlFor(name, property, root, isRequired) {
  const schema = resolve(property, root);
  const made = make(schema, isRequired);
  made.control.id = `input-${name}`;
  made.control.name = name;
  const about = [schema.description, made.hint].filter(Boolean).join(" – ");
  const hint = about ? element("small", { id: `hint-${name}` }, about) : null;
  if (hint) made.control.setAttribute("aria-describedby", hint.id);
  const title = [name, isRequired ? null : element("span", { class: "note" }, " optional")];
  const label = element("label", { for: made.control.id }, title);
  const isCheckbox = made.control.type === "checkbox";
  const node = element("div", { class: isCheckbox ? "field check" : "field" }, label, hint, made.control);
  return { name, node, control: made.control, read: made.read };
}

function make(schema, isRequired) {
  if (schema.enum) return choice(schema, isRequired, schema.enum);
  if (schema.type === "boolean") {
    const isPlain = !schema.nullable && (isRequired || typeof schema.default === "boolean");
    return isPlain ? checkbox(schema) : choice(schema, isRequired, [true, false]);
  }
  if (schema.type === "integer" || schema.type === "number") return number(schema, isRequired);
  return schema.type === "string" ? text(schema, isRequired) : json(schema, isRequired);
}

function choice(schema, isRequired, values) {
  const all = schema.nullable && !values.includes(null) ? [...values, null] : values;
  const options = all.map((value, at) => element("option", { value: at }, value === null ? "(none)" : String(value)));
  if (!isRequired) options.unshift(element("option", { value: "" }, "(default)"));
  const control = element("select", {}, options);
  const preset = all.indexOf(initial(schema));
  if (preset >= 0) control.value = String(preset);
  return { control, read: () => (control.value === "" ? undefined : all[Number(control.value)]) };
}

function checkbox(schema) {
  const control = element("input", { type: "checkbox" });
  control.checked = initial(schema) === true;
  return { control, read: () => control.checked };
}

function number(schema, isRequired) {
  const isInteger = schema.type === "integer";
  const control = element("input", {
    type: "number",
    step: isInteger ? 1 : "any",
    min: schema.minimum ?? (isInteger && schema.exclusiveMinimum !== undefined ? schema.exclusiveMinimum + 1 : null),
    max: schema.maximum ?? (isInteger && schema.exclusiveMaximum !== undefined ? schema.exclusiveMaximum - 1 : null),
    required: isRequired && !schema.nullable,
    value: initial(schema),
  });
  return { control, read: () => (control.value === "" ? empty(schema, isRequired) : Number(control.value)) };
}

function text(schema, isRequired) {
  const control = element("textarea", { rows: 2, maxlength: schema.maxLength });
  control.value = initial(schema) ?? "";
  const fallback = schema.default ?? "";
  const read = () => {
    if (control.value === "" && schema.nullable) return empty(schema, isRequired);
    return !isRequired && control.value === fallback ? undefined : control.value;
  };
  return { control, read };
}

function json(schema, isRequired) {
  const control = element("textarea", { rows: 3, class: "code", spellcheck: "false" });
  control.required = isRequired && !schema.nullable;
  const preset = initial(schema);
  control.value = preset === undefined || preset === null ? "" : JSON.stringify(preset, null, 1);
  control.addEventListener("input", () => control.setCustomValidity(""));
  const read = () => {
    if (control.value.trim() === "") return empty(schema, isRequired);
    try {
      return JSON.parse(control.value);
    } catch (error) {
      control.setCustomValidity(`This is not JSON: ${error.message}`);
      throw error;
    }
  };
  return { control, read, hint: `JSON${schema.type ? `, ${schema.type}` : ""}` };
}

/** What a control that was left empty sends. */
function empty(schema, isRequired) {
  return isRequired && schema.nullable ? null : undefined;
}

function initial(schema) {
  return schema.default ?? schema.examples?.[0];
}

/** A schema without references and with `nullable` in place of a union with null. */
function resolve(schema, root, left = MAX_REFERENCES) {
  if (left === 0) return {};
  const again = (inner) => resolve({ ...inner, ...without(schema, "$ref", "anyOf", "oneOf", "allOf") }, root, left - 1);
  if (schema.$ref) return again(pointed(schema.$ref, root));
  if (schema.allOf?.length === 1) return again(schema.allOf[0]);
  const union = schema.anyOf ?? schema.oneOf;
  if (union) {
    const rest = union.filter((member) => member.type !== "null");
    if (rest.length === 1) return { ...again(rest[0]), nullable: rest.length < union.length };
    return { ...without(schema, "anyOf", "oneOf"), nullable: rest.length < union.length };
  }
  return "const" in schema ? { ...schema, enum: [schema.const] } : schema;
}

function pointed(reference, root) {
  const parts = reference.replace(/^#\/?/, "").split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
  return parts.reduce((at, part) => at?.[part], root) ?? {};
}

function without(schema, ...keys) {
  return Object.fromEntries(Object.entries(schema).filter(([key]) => !keys.includes(key)));
}
