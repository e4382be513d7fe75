// Conditions on the catalogue's columns, and what its columns are by the cells that the service shows.

import { by, make } from "./dom.js";

export const INTERNAL = ["item_index", "sid"]; // made by sidrec; and text, which is made of other columns
const OPS = {
  number: ["=", "!=", "<", "<=", ">", ">=", "in"],
  boolean: ["=", "!="],
  text: ["=", "!=", "contains", "in", "<", "<=", ">", ">="],
  list: ["contains"],
};
const WORDS = { "=": "is", "!=": "is not", in: "is one of", contains: "contains" };
const MOST_SUGGESTED = 50;

/** {name: {type, inner, values}} of some items' cells. type: number, boolean, text or list; inner: of a list's entries. */
export function columnsOf(rows) {
  const columns = {};
  for (const name of Object.keys(rows[0] ?? {}).filter((each) => !INTERNAL.includes(each))) {
    const cells = rows.map((row) => row[name]).filter((cell) => cell !== null && cell !== undefined);
    const type = typeOf(cells[0]), entries = cells.flat();
    columns[name] = { type, inner: type === "list" ? typeOf(entries[0]) : type, values: [...new Set(entries)] };
  }
  return columns;
}

function typeOf(cell) {
  if (Array.isArray(cell)) return "list";
  return typeof cell === "number" || typeof cell === "boolean" ? typeof cell : "text";
}

/** What a typed text is in a column of that type; undefined where it is none. */
export function valueOf(text, type) {
  if (type === "text") return text;
  if (type === "boolean") return { true: true, false: false }[text.trim().toLowerCase()];
  return text.trim() === "" || Number.isNaN(Number(text)) ? undefined : Number(text);
}

let counter = 0;

/** A row of fields for a condition. changed: called when it says something else. */
export function addCondition(columns, changed) {
  const names = Object.keys(columns).sort((one, two) => (one === "item_id") - (two === "item_id")); // last, for few ask for it
  const number = (counter += 1), list = `values-${number}`;
  const column = make("select", { "aria-label": "Column", onchange: reset }, ...names.map((name) => make("option", { value: name }, name)));
  const op = make("select", { "aria-label": "Comparison", onchange: changed });
  const value = make("input", { "aria-label": "Value", list, autocomplete: "off", oninput: changed });
  const values = make("datalist", { id: list });
  const row = make("div", { class: "condition", role: "group", "aria-label": `Condition ${number}` }, column, op, value, values,
    make("button", { type: "button", "aria-label": `Remove condition ${number}`, onclick: () => { row.remove(); changed(); by("add-condition").focus(); } }, "×"));

  function reset() {
    const { type, values: seen } = columns[column.value];
    op.replaceChildren(...OPS[type].map((each) => make("option", { value: each }, WORDS[each] ?? each)));
    value.value = "";
    value.placeholder = type === "boolean" ? "true or false" : type === "number" ? "a number" : "a text";
    values.replaceChildren(...(seen.length <= MOST_SUGGESTED ? seen.map((each) => make("option", { value: String(each).slice(0, 200) })) : []));
    changed();
  }
  by("conditions").append(row);
  reset();
  column.focus();
}

/** The conditions that are whole, as the service takes them. `in` takes values between commas. */
export function conditions(columns) {
  const said = [];
  for (const row of by("conditions").children) {
    const [column, op, field] = row.querySelectorAll("select, input");
    const type = columns[column.value].inner;
    field.removeAttribute("aria-invalid");
    if (field.value === "") continue;
    const value = op.value === "in" ? field.value.split(",").map((each) => valueOf(each.trim(), type)) : valueOf(field.value, type);
    if ([value].flat().includes(undefined)) field.setAttribute("aria-invalid", "true");
    else said.push({ column: column.value, op: op.value, value });
  }
  return said;
}
