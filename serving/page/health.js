// The view of health: what /metrics says, in figures and bars.

import { bar, by, complain, fillTable, make } from "./dom.js";
import * as service from "./service.js";

const EVERY = 3000; // milliseconds
let before = null, timer = null;

const numberOf = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value.toLocaleString("en", { maximumFractionDigits: 2 }));

const sum = (samples, name, wanted = {}) =>
  samples.filter((each) => each.name === name && Object.entries(wanted).every(([label, value]) => each.labels[label] === value))
    .reduce((total, each) => total + each.value, 0);

/** [{upTo, count}] of a histogram's buckets, which Prometheus adds up from the lowest. */
function bucketsOf(samples, name, wanted = {}) {
  const sums = [...new Set(samples.filter((each) => each.name === `${name}_bucket`).map((each) => each.labels.le))]
    .map((le) => ({ upTo: le === "+Inf" ? Infinity : Number(le), count: sum(samples, `${name}_bucket`, { ...wanted, le }) }))
    .sort((one, two) => one.upTo - two.upTo);
  return sums.map(({ upTo, count }, place) => ({ upTo, count: count - (place ? sums[place - 1].count : 0) }));
}

/** The bound below which this share of a histogram's entries lies; null of none. */
function boundOf(buckets, share) {
  const total = buckets.reduce((all, each) => all + each.count, 0);
  let count = 0;
  for (const bucket of buckets) {
    count += bucket.count;
    if (total && count >= share * total) return bucket.upTo;
  }
  return null;
}

function showHistogram(table, buckets, head) {
  const shown = buckets.slice(buckets.findIndex((each) => each.count), buckets.findLastIndex((each) => each.count) + 1);
  const total = buckets.reduce((all, each) => all + each.count, 0), highest = Math.max(...buckets.map((each) => each.count));
  fillTable(table, [head, "share", "count"], shown.map(({ upTo, count }) => [
    upTo === Infinity ? "more" : `up to ${upTo}`, make("span", { class: "score" }, bar(count / highest), `${numberOf(100 * count / total)} %`), numberOf(count)]));
}

async function refresh() {
  let samples, store, about;
  try {
    [samples, store, about] = await Promise.all([service.metrics(), service.ask("GET", "store"), service.about()]);
  } catch (error) {
    return complain(error);
  }
  complain();
  const now = { time: performance.now(), requests: sum(samples, "sidrec_requests_total") };
  const rate = before === null ? "…" : numberOf(1000 * (now.requests - before.requests) / (now.time - before.time));
  before = now;
  const batches = sum(samples, "sidrec_batch_size_count");
  const figures = {
    "Model": about.model,
    "Version of the catalogue": about.catalogue_version,
    "HTTP requests": numberOf(now.requests),
    "Requests a second": rate,
    "Lists a batch, mean": batches ? numberOf(sum(samples, "sidrec_batch_size_sum") / batches) : "–",
    "Waiting for the model": numberOf(sum(samples, "sidrec_queue_length")),
    "Events stored": numberOf(store.events),
    "Lists stored": numberOf(store.lists),
    "Lists waiting for the store": numberOf(sum(samples, "sidrec_lists_waiting")),
    "Lists lost": numberOf(sum(samples, "sidrec_lists_lost_total")),
    "Last event": store.last_event === null ? "none" : new Date(store.last_event / 1000).toISOString().slice(0, 19).replace("T", " "),
  };
  by("figures").replaceChildren(...Object.entries(figures).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const seconds = bucketsOf(samples, "sidrec_request_seconds", { route: "/recommend" });
  const [half, most] = [boundOf(seconds, 0.5), boundOf(seconds, 0.95)];
  const within = (bound) => (bound === Infinity ? "more than 10 s" : `${bound} s`);
  by("latency-note").textContent = half === null ? "No list has been asked for." : `Half of the calls of /recommend took at most ${within(half)}, 95 % at most ${within(most)}.`;
  showHistogram(by("latency"), seconds, "seconds");
  showHistogram(by("batches"), bucketsOf(samples, "sidrec_batch_size"), "requests");
  return undefined;
}

async function lookAtDrift() {
  by("drift-look").disabled = true;
  try {
    const { days, sentences } = await service.ask("GET", "drift");
    by("drift-note").textContent = `The last ${days} days of events, beside the training:`;
    by("drift").replaceChildren(...sentences.map((sentence) => make("li", {}, sentence)));
  } catch (error) {
    complain(error);
  }
  by("drift-look").disabled = false;
}

export function start() {
  by("drift-look").addEventListener("click", lookAtDrift);
}

/** Read the figures again and again while the view is seen. */
export function watch(isSeen) {
  clearInterval(timer);
  before = null;
  if (!isSeen) return;
  refresh();
  timer = setInterval(refresh, EVERY);
}
