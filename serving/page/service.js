// Calls of the service. The key is in this variable and nowhere else.

let key = "";

export function useKey(text) {
  key = text.trim();
}

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function answerOf(method, path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The service does not answer; is it running?");
  }
  if (response.ok) return response;
  let sentence = `The service answered ${response.status}.`;
  try {
    sentence = String((await response.json()).detail);
  } catch { /* no JSON: the number says it */ }
  throw new Refused(response.status, sentence);
}

export const ask = async (method, path, body) => (await answerOf(method, path, body)).json();

export const items = (query, limit, offset = 0) => ask("GET", `items?${new URLSearchParams({ query, limit, offset })}`);

const TOGETHER = 25; // ids in one address

/** The items of these ids, by id; those that the catalogue lacks are missing. */
export async function itemsOf(ids) {
  const parts = [];
  for (let first = 0; first < ids.length; first += TOGETHER) parts.push(ids.slice(first, first + TOGETHER));
  const answers = await Promise.all(parts.map((part) =>
    ask("GET", `items?${new URLSearchParams([["limit", TOGETHER], ...part.map((id) => ["item_id", id])])}`)));
  return new Map(answers.flatMap((answer) => answer.items).map((item) => [item.item_id, item]));
}

export const about = () => ask("GET", "healthz");

/** One list. path: recommend, or beside/recommend for the other bundle's. */
export async function list(path, request) {
  const { lists, ...rest } = await ask("POST", path, { requests: [request] });
  return { ...rest, ...lists[0] };
}

/** [{name, labels, value}] of what Prometheus reads. */
export async function metrics() {
  const text = await (await answerOf("GET", "metrics")).text();
  return text.split("\n").filter((line) => line && !line.startsWith("#")).map((line) => {
    const [, name, labels, value] = line.match(/^([^{\s]+)(?:\{(.*)\})? (\S+)/);
    const pairs = [...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, held]) => [label, held]);
    return { name, labels: Object.fromEntries(pairs), value: Number(value.replace("Inf", "Infinity")) };
  });
}
