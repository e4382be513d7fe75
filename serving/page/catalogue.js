// The view of the catalogue: its items, which can be added, changed and removed, and its versions.

import { by, complain, copyable, counted, fillTable, later, make, matching, say, shortened, textOf } from "./dom.js";
import { INTERNAL, columnsOf, valueOf } from "./filters.js";
import * as service from "./service.js";

const ON_A_PAGE = 20, LONG = 160, SAMPLE = 200;
let offset = 0, columns = {}, edited = null, removed = null, number = 0;
let changed = async () => {}; // what else shows the catalogue

export async function refresh() {
  const query = by("catalogue-search").value.trim(), mine = (number += 1);
  let answer, versions;
  try {
    [answer, versions] = await Promise.all([service.items(query, ON_A_PAGE, offset), service.ask("GET", "catalogue/versions")]);
    if (!answer.items.length && answer.total) { // the last item of the last page has been removed
      offset = Math.floor((answer.total - 1) / ON_A_PAGE) * ON_A_PAGE;
      answer = await service.items(query, ON_A_PAGE, offset);
    }
    if (!Object.keys(columns).length) columns = editable((await service.items("", SAMPLE)).items);
  } catch (error) {
    return complain(error);
  }
  if (mine !== number) return undefined;
  complain();
  const last = offset + answer.items.length;
  by("catalogue-note").textContent = `${query ? matching(answer.total) : counted(answer.total, "item")}. What is saved here is in the next list.`;
  by("place").textContent = answer.total ? `${offset + 1} to ${last} of ${answer.total}` : "no item";
  by("previous").disabled = offset === 0;
  by("next").disabled = last >= answer.total;
  const names = Object.keys(columns).filter((name) => name !== "item_id" && name !== "title");
  fillTable(by("items"), ["title", "id", ...names, "semantic ID", "change"], answer.items.map((item) => [
    make("span", { class: "title" }, item.title), copyable(item.item_id), ...names.map((name) => shortened(textOf(item[name]), LONG)), make("code", {}, item.sid), buttons(item)]));
  showVersions(versions);
  return undefined;
}

/** The columns as their source had them: `text` is sidrec's, and given_text what the source called so. */
function editable(rows) {
  return columnsOf(rows.map(({ text, given_text: given, ...rest }) => (given === undefined ? rest : { ...rest, text: given })));
}

const cellOf = (item, name) => (name === "text" ? item.given_text : item[name]);

function buttons(item) {
  const name = shortened(item.title);
  return make("span", { class: "line" },
    make("button", { type: "button", class: "small", "aria-label": `Edit ${name}`, onclick: () => openEdit(item) }, "edit"),
    make("button", { type: "button", class: "small", "aria-label": `Remove ${name}`, onclick: () => openRemove(item) }, "remove"));
}

function showVersions({ current, versions }) {
  fillTable(by("versions"), ["version", "made from", "time (UTC)", "added", "removed", "changed", "items"], versions.toReversed().map((each) => [
    `${each.number}${each.number === current ? " (current)" : ""}`, each.after || "–", each.time.slice(0, 19).replace("T", " ") || "–",
    each.added, each.removed, each.changed, each.items]));
}

/** item: null for a new one. */
function openEdit(item) {
  edited = item;
  by("edit-heading").textContent = item === null ? "Add an item" : "Edit an item";
  by("new-sids").checked = false;
  by("new-sids-choice").hidden = item === null;
  complain(null, by("edit-alert"));
  by("edit-fields").replaceChildren(...Object.entries(columns).map(([name, { type }]) => {
    const id = `field-${name}`, field = make("input", { id, autocomplete: "off", "data-column": name, ...(name === "item_id" && item !== null ? { readonly: true } : {}) });
    field.value = item === null ? "" : textOf(cellOf(item, name));
    field.before = field.value; // a field of one line leaves line breaks out
    const hint = { number: "a number", boolean: "true or false", list: "separated by commas" }[type];
    return make("div", {}, make("label", { for: id }, name, hint ? make("small", {}, ` ${hint}`) : null), field);
  }));
  by("edit").showModal();
  by("edit-fields").querySelector("input:not([readonly])").focus();
}

/** What the form says: of an item that is there, the columns that have changed. Throws where a text is no cell of its column. */
function recordOf() {
  const record = {};
  for (const field of by("edit-fields").querySelectorAll("input")) {
    const name = field.dataset.column, { type, inner } = columns[name], text = field.value;
    if (name !== "item_id" && text === field.before) continue;
    const parts = type === "list" ? text.split(",").map((each) => valueOf(each.trim(), inner)) : valueOf(text, type);
    if (text !== "" && [parts].flat().includes(undefined)) throw new Error(`${name}: ${shortened(text)} is not ${inner === "number" ? "a number" : "true or false"}.`);
    record[name] = text === "" ? null : parts;
  }
  return record;
}

async function save(event) {
  event.preventDefault();
  await change(by("edit"), by("edit-alert"), () => service.ask("POST", "items", { items: [recordOf()], new_sids: by("new-sids").checked }));
}

function openRemove(item) {
  removed = item;
  complain(null, by("remove-alert"));
  by("remove-title").textContent = shortened(item.title, LONG);
  by("remove").showModal();
  by("remove-cancel").focus();
}

async function remove(event) {
  event.preventDefault();
  await change(by("remove"), by("remove-alert"), () => service.ask("DELETE", `items/${encodeURIComponent(removed.item_id)}`));
}

/** Do it, close the dialog and show what is there now; or leave it open with what the service says. */
async function change(dialog, place, work) {
  let made;
  try {
    made = await work();
  } catch (error) {
    return complain(error, place);
  }
  dialog.close();
  await Promise.all([refresh(), changed()]);
  by("catalogue-search").focus(); // the button that was pressed is no more
  say(`Version ${made.catalogue_version}: ${made.added} added, ${made.changed} changed, ${made.removed} removed; ${counted(made.items, "item")}.`);
  return undefined;
}

/** whenChanged: called after every change. */
export function start(whenChanged) {
  changed = whenChanged;
  const go = (pages) => () => { offset = Math.max(0, offset + pages * ON_A_PAGE); refresh(); };
  by("catalogue-form").addEventListener("submit", (event) => event.preventDefault());
  by("catalogue-search").addEventListener("input", later(() => { offset = 0; refresh(); }));
  by("previous").addEventListener("click", go(-1));
  by("next").addEventListener("click", go(1));
  by("add-item").addEventListener("click", () => openEdit(null));
  by("edit-form").addEventListener("submit", save);
  by("remove-form").addEventListener("submit", remove);
  for (const name of ["edit", "remove"]) by(`${name}-cancel`).addEventListener("click", () => by(name).close());
}
