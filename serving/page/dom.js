// Elements and what every view says. Whatever the service sends becomes text nodes and attributes, never markup.

export const by = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/** An element. fields: on… are listeners, true and false are switches, all others attributes. */
export function make(tag, fields = {}, ...children) {
  return filled(document.createElement(tag), fields, children);
}

export function draw(tag, fields = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), fields, children);
}

function filled(element, fields, children) {
  for (const [name, value] of Object.entries(fields)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Heads and rows of cells, which a phone shows as one card a row. cells: texts or elements. */
export function fillTable(table, heads, rows) {
  const head = make("tr", { role: "row" }, ...heads.map((name) => make("th", { role: "columnheader", scope: "col" }, name)));
  const body = rows.map((cells) =>
    make("tr", { role: "row" }, ...cells.map((cell, place) => make("td", { role: "cell", "data-head": heads[place] }, cell))));
  table.replaceChildren(make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, ...body));
}

/** A bar of a share from 0 to 1; the figure beside it says the same. */
export function bar(share) {
  const part = draw("rect", { width: Math.max(0, Math.min(1, share)) * 100, height: 8, rx: 1.5, class: "part" });
  return draw("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { width: 100, height: 8, rx: 1.5, class: "whole" }), part);
}

/** An id that a click copies; where the browser lets nobody copy, it is selected. */
export function copyable(id) {
  const text = make("code", {}, id);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(id);
      say(`Copied ${shortened(id)}.`);
    } catch {
      getSelection().selectAllChildren(text);
      say(`${shortened(id)} is selected; press Ctrl+C.`);
    }
  };
  return make("span", { class: "id" }, text, make("button", { type: "button", class: "small", "aria-label": `Copy id ${shortened(id)}`, onclick: copy }, "copy"));
}

/** At most that many letters, none of them cut in two. */
export function shortened(text, most = 60) {
  const letters = [...text.slice(0, 2 * most + 2)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

/** A number of things in words: 1 item, 2 items. */
export const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** How many items match, in words. */
export const matching = (total) => `${counted(total, "item")} ${total === 1 ? "matches" : "match"}`;

/** A cell of the catalogue as a text. */
export function textOf(cell) {
  if (cell === null || cell === undefined) return "";
  if (Array.isArray(cell)) return cell.join(", ");
  return typeof cell === "object" ? JSON.stringify(cell) : String(cell);
}

/** For whoever hears the page: what has just happened. */
export function say(sentence) {
  by("status").textContent = sentence;
}

/** What went wrong, in the service's words; nothing where nothing did. */
export function complain(error = null, place = by("alert")) {
  const sentence = error === null ? "" : error.message;
  if (place.textContent !== sentence) place.textContent = sentence; // the same one is not read out again
  if (error?.status === 401 || error?.status === 403) by("access").open = true;
}

/** `work` again only when `milliseconds` have passed without another call. */
export function later(work, milliseconds = 150) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}
