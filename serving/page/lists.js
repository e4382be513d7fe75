// The view of lists: a history that is clicked together, and what comes after it.

import { bar, by, complain, copyable, counted, later, make, matching, say, shortened, textOf } from "./dom.js";
import { INTERNAL, addCondition, columnsOf, conditions } from "./filters.js";
import * as service from "./service.js";
import { codesOf, nearest, sidText, tree } from "./sids.js";

const MOST_HITS = 8, SAMPLE = 200, LONGEST_CELL = 40;
const SHOWN_ALREADY = [...INTERNAL, "item_id", "title", "text"]; // text is made of the other columns
let history = []; // items, oldest first
let columns = {}, shown = [], asked = 0, searched = 0, hasFailed = false; // the last search

export async function search() {
  const query = by("search").value.trim(), number = (searched += 1);
  let answer;
  try {
    answer = await service.items(query, MOST_HITS);
  } catch (error) {
    hasFailed = true;
    return complain(error);
  }
  if (number !== searched) return undefined; // another search has begun
  if (hasFailed) complain();
  hasFailed = false;
  by("hits").replaceChildren(...answer.items.map(hit));
  if (query) say(answer.total > MOST_HITS ? `${matching(answer.total)}; these are the first ${MOST_HITS}.` : `${matching(answer.total)}.`);
  return undefined;
}

function hit(item) {
  const add = () => {
    history.push(item);
    showHistory();
    say(`Added ${shortened(item.title)} as number ${history.length}.`);
    refresh();
  };
  return make("li", {}, make("button", { type: "button", class: "hit", onclick: add },
    make("span", { class: "title" }, item.title), make("span", { class: "quiet" }, item.item_id), make("span", { class: "plus", "aria-hidden": "true" }, "+")));
}

function showHistory() {
  by("history").replaceChildren(...history.map((item, place) => make("li", {},
    make("span", { class: "title" }, item.title),
    place ? make("button", { type: "button", class: "small", "aria-label": `Move ${shortened(item.title)} one earlier`, onclick: () => move(place) }, "↑") : null,
    make("button", { type: "button", class: "small", "aria-label": `Remove ${shortened(item.title)} from the history`, onclick: () => remove(place) }, "×"),
    make("span", { class: "below" }, copyable(item.item_id)))));
  by("history-note").textContent = history.length ? "oldest first" : "Nothing yet: click items that the search shows.";
}

function move(place) {
  history.splice(place - 1, 0, ...history.splice(place, 1));
  showHistory();
  by("history").children[place - 1].querySelector("button").focus();
  refresh();
}

function remove(place) {
  const [item] = history.splice(place, 1);
  showHistory();
  say(`Removed ${shortened(item.title)}.`);
  const next = by("history").children[Math.min(place, history.length - 1)];
  (next?.querySelector('[aria-label^="Remove"]') ?? by("search")).focus();
  refresh();
}

function request() {
  const diversity = by("diversity").valueAsNumber;
  return {
    history: history.map((item) => item.item_id),
    k: by("k").valueAsNumber,
    keep_seen: by("keep-seen").checked,
    where: conditions(columns),
    ...(diversity >= 1 ? { diversity } : {}),
  };
}

/** Ask for the list, and of two answers show the later question's. */
export async function refresh() {
  if (!by("options").checkValidity()) return complain(new Error("Give whole numbers of 1 or more."));
  const number = (asked += 1), body = request(), besides = by("beside").checked;
  let answers, items;
  try {
    answers = await Promise.all(["recommend", ...(besides ? ["beside/recommend"] : [])].map((path) => service.list(path, body)));
    items = await service.itemsOf([...new Set(answers.flatMap((answer) => answer.items.map((item) => item.item_id)))]);
  } catch (error) {
    return complain(error);
  }
  if (number !== asked) return undefined;
  complain();
  show(answers[0], answers[1] ?? null, items);
  return undefined;
}

/** items: by id, with all columns. */
function show(answer, other, items) {
  shown = answer.items;
  const inBoth = new Set(other?.items.map((item) => item.item_id).filter((id) => shown.some((item) => item.item_id === id)));
  by("reason").hidden = answer.reason === null;
  by("reason").textContent = answer.reason ?? "";
  fill(by("list"), shown, items, inBoth, true);
  by("list-note").textContent = noteOf(answer, shown);
  by("beside-answer").hidden = other === null;
  document.body.classList.toggle("two", other !== null);
  if (other !== null) {
    fill(by("beside-list"), other.items, items, inBoth, false);
    by("beside-note").textContent = [noteOf(other, other.items), other.reason, `${counted(inBoth.size, "item")} ${inBoth.size === 1 ? "is" : "are"} in both lists.`].filter(Boolean).join(" ");
  }
  drawTree();
  say(`${counted(history.length, "item")} in the history, ${shown.length} recommended${shown.length ? `, first ${shortened(shown[0].title)}` : ""}.`);
}

function noteOf(answer, items) {
  const scored = items.some((item) => item.score !== null);
  return `By ${answer.model}, version ${answer.catalogue_version} of its catalogue. ${scored ? "A bar is the probability of the item, beside that of the first." : ""}`;
}

function fill(place, listed, items, inBoth, withNearest) {
  const highest = Math.max(...listed.map((item) => item.score ?? -Infinity));
  place.replaceChildren(...listed.map((item) => make("li", { value: item.rank },
    make("span", { class: "title" }, item.title),
    inBoth.has(item.item_id) ? make("span", { class: "tag" }, "in both") : null,
    item.cold ? make("span", { class: "tag" }, "new: not in training") : null,
    item.score === null ? null : make("span", { class: "score" }, bar(Math.exp(item.score - highest)), probability(item.score)),
    cellsOf(items.get(item.item_id) ?? {}),
    ...(withNearest ? why(item) : [make("span", { class: "below" }, copyable(item.item_id), sidText(item.sid, 0))]))));
}

/** The catalogue's columns of an item, such as its price; null where it has none. */
function cellsOf(item) {
  const cells = Object.entries(item).filter(([name, cell]) => !SHOWN_ALREADY.includes(name) && textOf(cell) !== "");
  return cells.length ? make("span", { class: "below cells" }, ...cells.map(([name, cell]) => make("span", {}, `${name}: ${shortened(textOf(cell), LONGEST_CELL)}`))) : null;
}

function why(item) {
  const near = nearest(item.sid, history), length = near?.length ?? 0;
  const ids = make("span", { class: "below" }, copyable(item.item_id), sidText(item.sid, length));
  if (!history.length) return [ids];
  const first = length === 1 ? "the first code" : `${length} codes`;
  const sentence = near
    ? ["Nearest in the history: ", make("q", {}, near.item.title), ` (${length === codesOf(item.sid).length ? "the same item" : `${first} shared`})`]
    : ["No item of the history shares its first code."];
  return [ids, make("span", { class: near ? "why" : "why quiet" }, ...sentence)];
}

/** A log probability as per cent with two digits that say something. */
function probability(score) {
  const percent = 100 * Math.exp(score);
  if (percent < 0.001) return "< 0.001 %";
  return `${percent >= 10 ? percent.toFixed(0) : percent.toPrecision(2)} %`;
}

function drawTree() {
  by("tree-section").hidden = !shown.length;
  const width = by("tree").clientWidth;
  if (shown.length && width) by("tree").replaceChildren(tree(shown, history, width));
}

/** The catalogue has changed: take its titles and columns as they are now. */
export async function renew() {
  const ids = [...new Set(history.map((item) => item.item_id))];
  const [sample, now] = await Promise.all([service.items("", SAMPLE), service.itemsOf(ids)]);
  columns = columnsOf(sample.items);
  history = history.map((item) => now.get(item.item_id) ?? item);
  showHistory();
  await Promise.all([search(), refresh()]);
}

export function start() {
  const soon = later(refresh);
  by("search").addEventListener("input", later(search));
  by("options").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["k", "diversity", "keep-seen", "beside"]) by(id).addEventListener("input", soon);
  by("add-condition").addEventListener("click", () => addCondition(columns, soon));
  new ResizeObserver(drawTree).observe(by("tree"));
}
