// The cards of the models: numbers of now with their last minutes, replicas, and what was scaled why.

import { byId, element, keyed, setAttribute, setText } from "./dom.js";
import { NOTHING, ago, clock, count, duration, percent, plural, rate } from "./format.js";
import { Series, drawSparkline, makeSparkline } from "./sparkline.js";
import { inEngines, queued, replicas, standing } from "./standing.js";

// Each number of a card: what it is called, its value now, how that is written, and what is said below it.
const NUMBERS = [
  {
    name: "Tokens a second",
    value: (model) => model.last_minute.tokens_per_s,
    write: rate,
    below: (model) => `${plural(model.last_minute.requests, "request")} in the last minute`,
  },
  {
    name: "Running",
    value: (model) => inEngines(model).running ?? model.in_flight,
    write: count,
    below: (model) => `${count(model.in_flight)} in flight`,
  },
  {
    name: "Queue",
    value: queued,
    write: count,
    below: (model) => `${count(inEngines(model).waiting)} in engines, ${count(model.held)} held`,
  },
  {
    name: "KV cache in use",
    value: (model) => inEngines(model).kvUsage,
    write: percent,
    below: (model) => (model.backends.length > 1 ? "mean of the replicas" : "of its blocks"),
    top: 1,
  },
  {
    name: "First token",
    value: (model) => model.last_minute.first_token_s?.p50 ?? null,
    write: duration,
    below: (model) => quantiles(model.last_minute.first_token_s),
  },
  {
    name: "Time per token",
    value: (model) => model.last_minute.time_per_token_s?.p50 ?? null,
    write: duration,
    below: (model) => quantiles(model.last_minute.time_per_token_s),
  },
];

const REPLICA_COLUMNS = ["Replica", "State", "Running", "Waiting", "KV cache", "In flight", "Taken", "Last error"];

const quantiles = (times) => (times ? `p50; p95 ${duration(times.p95)}` : "no stream in the last minute");

const series = new Map(); // of each model and number

export function showModels(state) {
  const names = new Set(state.models.map((model) => model.name));
  for (const name of series.keys()) if (!names.has(name)) series.delete(name);
  byId("no-models").hidden = state.models.length > 0;
  keyed(byId("model-list"), state.models, (model) => model.name, makeCard, (card, model) => {
    showCard(card, model, state.now);
  });
}

function makeCard(model) {
  series.set(model.name, NUMBERS.map(() => new Series()));
  const title = element("h3");
  const replicaTable = scrolling(`Replicas of ${model.name}`, element("table", {}, head(REPLICA_COLUMNS), element("tbody")));
  const history = element("ol", { class: "history" });
  return element(
    "article",
    { class: "card model" },
    element("div", { class: "line" }, title, element("span", { class: "badge" })),
    element("p", { class: "hint" }),
    element("dl", { class: "numbers" }),
    replicaTable,
    element("div", { class: "scaling", hidden: "" }, element("h4", {}, "Scaling"), history),
  );
}

function showCard(card, model, now) {
  const [line, about, numbers, replicaTable, scaling] = card.children;
  const { word, mood } = standing(model);
  setText(line.children[0], model.name);
  setText(line.children[1], word);
  setAttribute(line.children[1], "data-mood", mood);
  setText(about, aboutOf(model));
  numbers.hidden = isAsleep(model);
  keyed(numbers, NUMBERS, (number) => number.name, makeNumber, (tile, number) => {
    showNumber(tile, number, model, series.get(model.name)[NUMBERS.indexOf(number)], now);
  });
  replicaTable.hidden = model.backends.length === 0;
  keyed(replicaTable.querySelector("tbody"), model.backends, (backend) => backend.url, makeReplica, (row, backend) => {
    showReplica(row, backend, now);
  });
  showHistory(scaling, model.history ?? [], now);
}

/** Nothing runs and nothing is wanted: six dashes would say no more. */
function isAsleep(model) {
  return model.backends.length === 0 && model.held === 0 && model.last_minute.requests === 0;
}

function aboutOf(model) {
  const also = model.aliases.length > 0 ? `also ${model.aliases.join(", ")}; ` : "";
  const loading = model.loading > 0 ? `, ${count(model.loading)} loading` : "";
  return `${also}${replicas(model)} replicas ready${loading}; ${model.strategy}`;
}

function makeNumber(number) {
  const value = element("dd", {}, element("b"), element("span", { class: "below" }), makeSparkline());
  return element("div", {}, element("dt", {}, number.name), value);
}

function showNumber(tile, number, model, past, now) {
  const value = number.value(model);
  past.add(now, value);
  const [shown, below, spark] = tile.children[1].children;
  setText(shown, number.write(value));
  setText(below, number.below(model));
  drawSparkline(spark, past, `Last five minutes, at most ${number.write(past.highest)}`, number.top);
}

// replicas

function makeReplica() {
  const cells = REPLICA_COLUMNS.slice(1).map(() => element("td"));
  cells[0].append(element("span", { class: "badge" }));
  const meter = element("meter", { min: "0", max: "1", high: "0.95", "aria-hidden": "true" });
  cells[3].append(meter, element("span"));
  return element("tr", {}, element("th", { scope: "row" }), ...cells);
}

const MOODS = { ready: "good", loading: "busy", draining: "idle", open: "bad", stale: "bad" };

function showReplica(row, backend, now) {
  const [name, state, running, waiting, kv, inFlight, taken, error] = row.children;
  setText(name, shortUrl(backend.url));
  setAttribute(name, "title", backend.url);
  setText(state.firstElementChild, backend.state);
  setAttribute(state.firstElementChild, "data-mood", MOODS[backend.state] ?? "idle");
  setText(running, count(backend.reported?.running));
  setText(waiting, count(backend.reported?.waiting));
  const usage = backend.reported?.kv_usage ?? null;
  kv.firstElementChild.hidden = usage === null;
  kv.firstElementChild.value = usage ?? 0;
  setText(kv.lastElementChild, percent(usage));
  setText(inFlight, count(backend.in_flight));
  setText(taken, count(backend.taken));
  setText(error, backend.last_error ? `${backend.last_error.message}, ${ago(backend.last_error.at, now)}` : NOTHING);
}

/** Of a socket, the end of its path says most. */
function shortUrl(url) {
  return url.startsWith("unix:") ? url.slice(url.lastIndexOf("/") + 1) : url.replace(/^https?:\/\//, "");
}

// what was scaled

function showHistory(place, history, now) {
  place.hidden = history.length === 0;
  keyed(place.querySelector("ol"), history, (each) => `${each.at} ${each.from} ${each.to}`, makeScaling, (item, each) => {
    setText(item.children[0], `${each.from} → ${each.to}`);
    setText(item.children[1], String(each.reason));
    setText(item.children[2], ago(each.at, now));
    setAttribute(item.children[2], "title", clock(each.at));
  });
}

function makeScaling() {
  return element("li", {}, element("b"), element("span"), element("time", { class: "below" }));
}

// tables

function scrolling(label, ...children) {
  return element("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, ...children);
}

function head(columns) {
  return element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name))));
}
