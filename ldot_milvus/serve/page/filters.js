// Filters by sight: fields of the photos that were found, as conditions to click, and the conditions that apply.

import { $, button, h } from "./dom.js";

const NUMBERS = { width: "Width", height: "Height" };
const MOST_VALUES = 12;
const MOST_LENGTH = 60;

/** A filter in the form of docs/filters.md as a list of clauses, all of which must match. */
export function clausesOf(filter) {
  if (!filter || typeof filter !== "object") return [];
  return Object.entries(filter).flatMap(([key, value]) =>
    key === "$and" && Array.isArray(value) ? value.flatMap(clausesOf) : [{ [key]: value }],
  );
}

export function joined(clauses) {
  if (clauses.length < 2) return clauses[0] ?? null;
  const keys = clauses.map((clause) => Object.keys(clause)[0]);
  return new Set(keys).size === keys.length ? Object.assign({}, ...clauses) : { $and: clauses };
}

export function parsed(text) {
  try {
    return clausesOf(JSON.parse(text));
  } catch {
    return [];
  }
}

/** The path of a key in metadata: keys with unusual characters are quoted. */
export const path = (key) => (/^[^."\\[\]]+$/.test(key) ? `metadata.${key}` : `metadata[${JSON.stringify(key)}]`);

/** Show the clauses as chips with a button that removes them. */
export function showChips(clauses, change) {
  $("chips").replaceChildren(
    ...clauses.map((clause, index) => {
      const remove = button("✕", () => change(clauses.filter((_, other) => other !== index)));
      remove.setAttribute("aria-label", `Remove the filter ${described(clause)}`);
      return h("li", { className: "chip" }, described(clause), remove);
    }),
  );
  $("json").value = clauses.length ? JSON.stringify(joined(clauses)) : "";
  $("json-problem").textContent = "";
}

function described(clause) {
  const [field, condition] = Object.entries(clause)[0];
  const name = field.replace(/^metadata\./, "");
  if (condition === null || typeof condition !== "object") return `${name}: ${condition}`;
  const signs = { $gte: "≥", $lte: "≤", $gt: ">", $lt: "<", $ne: "≠", $eq: "=", $contains: "contains", $like: "like" };
  const parts = Object.entries(condition).map(([operator, value]) =>
    signs[operator] && typeof value !== "object" ? `${signs[operator]} ${value}` : null,
  );
  return parts.length && !parts.includes(null) ? `${name} ${parts.join(", ")}` : JSON.stringify(clause);
}

/** Offer conditions on the fields of these photos. */
export function showFields(hits, clauses, change) {
  const values = new Map();
  const note = (field, value) => {
    if (!["string", "boolean"].includes(typeof value) || String(value).length > MOST_LENGTH) return;
    if (/^https?:/.test(value) || value === "") return;
    if (!values.has(field)) values.set(field, new Map());
    values.get(field).set(value, (values.get(field).get(value) ?? 0) + 1);
  };
  for (const hit of hits) {
    note("namespace", hit.namespace);
    for (const [key, value] of Object.entries(hit.metadata)) note(path(key), value);
  }
  const groups = [...values]
    .filter(([field, counts]) => counts.size <= MOST_VALUES && (field !== "namespace" || counts.size > 1))
    .filter(([, counts]) => counts.size > 1 || [...counts.values()][0] < hits.length)
    .map(([field, counts]) => choices(field, counts, clauses, change));
  const numbers = Object.entries(NUMBERS).map(([field, label]) => least(field, label, clauses, change));
  const size = h("fieldset", {}, h("legend", {}, "size in pixels, at least"), ...numbers);
  $("fields").replaceChildren(...groups, size);
}

function choices(field, counts, clauses, change) {
  const sorted = [...counts].sort((one, other) => other[1] - one[1]);
  return h(
    "fieldset",
    {},
    h("legend", {}, field.replace(/^metadata\./, "")),
    ...sorted.map(([value, count]) => {
      const choice = button(`${value} `, () => change([...clauses.filter((clause) => !(field in clause)), { [field]: value }]));
      choice.append(h("span", { className: "count" }, String(count)));
      choice.setAttribute("aria-pressed", clauses.some((clause) => clause[field] === value));
      return choice;
    }),
  );
}

function least(field, label, clauses, change) {
  const given = clauses.find((clause) => field in clause)?.[field]?.$gte ?? "";
  const id = `least-${field}`;
  const input = h("input", { id, type: "number", min: 0, step: 1, value: given, placeholder: "any" });
  input.addEventListener("change", () => {
    const others = clauses.filter((clause) => !(field in clause));
    change(input.value ? [...others, { [field]: { $gte: Number(input.value) } }] : others);
  });
  return h("label", { htmlFor: id }, label, input);
}
