// Semantic IDs: what two items share, and the tree of a list.

import { draw, make, shortened } from "./dom.js";

const ROW = 24, STEP = 16, LETTER = 7.4, MOST_DRAWN = 40;

/** ["<a_12>", "<b_7>"] of "<a_12><b_7>". */
export const codesOf = (sid) => sid.match(/<[^<>]+>/g) ?? [];

/** How many codes two items share from the first one on. */
export function shared(sid, other) {
  const [one, two] = [codesOf(sid), codesOf(other)];
  let length = 0;
  while (length < one.length && one[length] === two[length]) length += 1;
  return length;
}

/** The history's item with the longest shared prefix, of equal ones the newest: {item, length}; null where none shares a code. */
export function nearest(sid, history) {
  let best = null;
  for (const item of history) {
    const length = shared(sid, item.sid);
    if (length && length >= (best?.length ?? 0)) best = { item, length };
  }
  return best;
}

/** The codes of a semantic ID, those that are shared in bold and underlined. */
export function sidText(sid, length) {
  const codes = codesOf(sid);
  const same = codes.slice(0, length).join("");
  return make("code", { class: "sid" }, same ? make("b", {}, same) : null, codes.slice(length).join(""));
}

/** The nodes of the items' prefixes, codes with one child joined with it: {codes, children, items}. */
function treeOf(items) {
  const root = { codes: [], children: new Map(), items: [] };
  for (const item of items) {
    let node = root;
    for (const code of codesOf(item.sid)) {
      if (!node.children.has(code)) node.children.set(code, { codes: [code], children: new Map(), items: [] });
      node = node.children.get(code);
    }
    node.items.push(item);
  }
  return root;
}

function joined(node) {
  while (node.children.size === 1 && !node.items.length) {
    const [child] = node.children.values();
    node = { ...child, codes: [...node.codes, ...child.codes] };
  }
  return node;
}

/** Lines of the picture from top to bottom: {level, parent, bold, plain, item, near}. bold: the codes that `near` of the history has, too. */
function linesOf(items, history) {
  const lines = [];
  const walk = (node, level, parent, prefix) => {
    const whole = [...prefix, ...node.codes];
    const has = Math.max(0, ...history.map((item) => shared(whole.join(""), item.sid))) - prefix.length;
    const bold = Math.max(0, Math.min(has, node.codes.length));
    const codes = { bold: node.codes.slice(0, bold).join(""), plain: node.codes.slice(bold).join("") };
    const [item, ...more] = node.items; // the first one stands beside its codes
    const near = item || !bold ? null : nearest(whole.join(""), history).item; // whose codes these are
    const place = lines.push({ level, parent, ...codes, item, near }) - 1;
    for (const child of node.children.values()) walk(joined(child), level + 1, place, whole);
    for (const each of more) lines.push({ level: level + 1, parent: place, bold: "", plain: "", item: each });
  };
  for (const child of treeOf(items).children.values()) walk(joined(child), 0, -1, []);
  return lines;
}

/** The picture of a list's semantic IDs, as wide as its place. */
export function tree(items, history, width) {
  const drawn = items.slice(0, MOST_DRAWN), lines = linesOf(drawn, history);
  const x = (line) => 8 + line.level * STEP, y = (place) => ROW * place + ROW / 2;
  const label = `A tree of ${drawn.length} semantic IDs; ${lines.filter((line) => line.bold).length} of its branches have codes of the history. The list says the same of every item.`;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${ROW * lines.length}`, width, height: ROW * lines.length, role: "img", "aria-label": label });
  lines.forEach((line, place) => {
    if (line.parent < 0) return;
    const from = lines[line.parent];
    picture.append(draw("path", { class: "edge", d: `M${x(from)} ${y(line.parent) + 5}V${y(place)}H${x(line) - 5}` }));
  });
  lines.forEach((line, place) => picture.append(...drawnLine(line, x(line), y(place), width)));
  return picture;
}

function drawnLine({ bold, plain, item, near }, x, y, width) {
  const codes = draw("text", { x: x + 11, y: y + 4.5, class: "codes" }, draw("tspan", { class: "has" }, bold), draw("tspan", {}, plain));
  const branch = [draw("circle", { cx: x, cy: y, r: 4.5, class: bold ? "node has" : "node" }), codes];
  const left = x + 20 + LETTER * (bold + plain).length, room = (width - left) / LETTER;
  if (near) branch.push(draw("text", { x: left, y: y + 4.5, class: "near" }, `as ${shortened(near.title, Math.max(4, Math.floor(room - 4)))}`));
  if (!item) return branch;
  return [
    ...branch,
    draw("rect", { x: left, y: y - 9, width: 26, height: 18, rx: 4, class: "leaf" }),
    draw("text", { x: left + 13, y: y + 4.5, class: "rank" }, item.rank),
    draw("text", { x: left + 34, y: y + 4.5, class: "leaf-title" }, shortened(item.title, Math.max(4, Math.floor(room - 5)))),
  ];
}
