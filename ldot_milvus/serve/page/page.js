// The search page: what is asked, what was found, and which photo is open.

import * as api from "./api.js";
import { card, moveFocus, ranked } from "./cards.js";
import { $, button, counted, h, message, percent } from "./dom.js";
import { clausesOf, joined, showChips, showFields } from "./filters.js";
import { dropped, onPhoto, showGiven } from "./photos.js";
import { address, isEmpty, read, sameSearch } from "./state.js";
import * as viewer from "./viewer.js";

const PAGE = 30; // photos that are loaded at a time
const MOST = 1000; // the service answers no further
const EXAMPLES = ["a dog running on the beach", "two people riding horses", "a red bus in a city", "food on a table"];

const end = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && more(), { rootMargin: "600px" });

let state = read();
let about = []; // what GET /v1/collections says
let found = { state: null, hits: [], complete: true };
let running = null; // the search that is being answered

const collection = () => about.find(({ name }) => name === state.collection) ?? about[0];

/** Go to another state, as a new entry of the history or in place of the present one. */
function go(change, { replace = false } = {}) {
  state = { ...state, ...change };
  history[replace ? "replaceState" : "pushState"](null, "", address(state));
  show();
}

async function show() {
  $("text").value = state.text;
  $("min").value = state.min;
  $("min-value").textContent = percent(state.min / 100);
  $("collection").value = collection()?.name ?? "";
  $("least").hidden = !(collection()?.probabilities && state.text);
  showChips(state.clauses, filter);
  showGiven(state.photo, state.like, state.collection);
  document.title = state.text ? `${state.text} – Photo search` : "Photo search";
  if (!sameSearch(found.state, state)) await start();
  showOpen();
}

async function start() {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = { ...state };
  if (isEmpty(asked)) {
    found = { state: asked, hits: [], complete: true };
    $("results").replaceChildren();
    $("more").hidden = true;
    return welcome();
  }
  if (asked.photo && !dropped(asked.photo)) {
    found = { state: asked, hits: [], complete: true };
    $("results").replaceChildren();
    return message("This photo is no longer here", "Drop it again, or describe what you are looking for.");
  }
  $("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => ($("status").textContent = "Searching …"), 400);
  try {
    const started = performance.now();
    const hits = ranked(await ask(asked, 0, mine.signal));
    found = { state: asked, hits, complete: hits.length < PAGE };
    message();
    $("results").replaceChildren(...hits.map(cardOf));
    showFields(hits, asked.clauses, filter);
    tell(performance.now() - started);
    if (hits.length === 0) nothing(asked);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    found = { state: null, hits: [], complete: true };
    $("results").replaceChildren();
    $("status").textContent = "";
    failed(problem);
  } finally {
    clearTimeout(slow);
    if (running === mine) {
      $("results").removeAttribute("aria-busy");
      offerMore();
    }
  }
}

function ask(asked, offset, signal) {
  const options = { k: Math.min(PAGE, MOST - offset), offset };
  if (asked.collection) options.collection = asked.collection;
  if (asked.clauses.length) options.filter = joined(asked.clauses);
  if (asked.min && asked.text && !asked.photo && !asked.like) options.min_probability = asked.min / 100;
  const answer = asked.photo
    ? api.searchByPhoto(dropped(asked.photo), options, signal)
    : api.search(asked.like ? { ...options, id: asked.like } : { ...options, text: asked.text }, signal);
  return answer.then(({ hits }) => hits);
}

async function more() {
  if (found.complete || running?.more) return;
  const current = running;
  current.more = true;
  $("more").disabled = true;
  try {
    const hits = await ask(found.state, found.hits.length, current.signal);
    const known = new Set(found.hits.map(({ id }) => id));
    const start = found.hits.length;
    const added = hits
      .filter(({ id }) => !known.has(id))
      .map((hit, index) => ({ ...hit, rank: start + index + 1, before: null }));
    found.hits.push(...added);
    found.complete = hits.length < PAGE || found.hits.length >= MOST;
    $("results").append(...added.map(cardOf));
    tell();
  } catch (problem) {
    if (problem.name !== "AbortError") $("status").textContent = problem.message;
    found.complete = problem.name !== "AbortError" && problem.status === 400;
  } finally {
    current.more = false;
    $("more").disabled = false;
    offerMore();
  }
}

/** Show the button if there is more; it is pressed by itself when it comes near. */
function offerMore() {
  end.disconnect();
  $("more").hidden = found.complete;
  if (!found.complete) end.observe($("more"));
}

function cardOf(hit) {
  return card(hit, state.collection, address({ ...found.state, open: hit.id }));
}

function tell(milliseconds) {
  const count = `${counted(found.hits.length, "photo")}${found.complete ? "" : " so far"}`;
  const time = milliseconds === undefined ? "" : `, found in ${Math.max(1, Math.round(milliseconds))} ms`;
  $("status").textContent = found.hits.length ? count + time : "";
}

function welcome() {
  $("status").textContent = "";
  const rows = collection()?.rows;
  message(
    rows === 0 ? "This collection is empty" : "What are you looking for?",
    rows === 0
      ? "Ingest photos first: celery -A workers enqueue PATH"
      : `Describe it in your own words, or drop a photo here to find others like it. ${rows ? `This collection has ${counted(rows, "row")}.` : ""}`,
    ...(rows === 0 ? [] : EXAMPLES.map((text) => button(text, () => go({ text, open: null })))),
  );
}

function nothing(asked) {
  const buttons = [];
  if (asked.min) buttons.push(button("Show less likely photos", () => go({ min: 0 })));
  if (asked.clauses.length) buttons.push(button("Remove the filters", () => go({ clauses: [] })));
  const advice = asked.min
    ? `No photo matches with a probability of at least ${asked.min} %.`
    : asked.clauses.length
      ? "No photo fits the filters."
      : "Describe it in other words.";
  message("Nothing found", advice, ...buttons);
  $("status").textContent = "Nothing found";
}

function failed(problem) {
  if (["filter", "usage", "shape"].includes(problem.code) && state.clauses.length) {
    $("filters").hidden = false;
    $("filter-button").setAttribute("aria-expanded", "true");
    $("json").closest("details").open = true;
    $("json-problem").textContent = problem.message;
  }
  message("The search did not work", problem.message, button("Try again", () => start().then(showOpen)));
}

const moreLike = (id) => go({ like: id, text: "", photo: null, open: null, min: 0 });
const filter = (clauses) => go({ clauses, open: null });

async function showOpen() {
  if (!state.open) {
    viewer.close();
    return;
  }
  let hit = found.hits.find(({ id }) => id === state.open);
  if (!hit) {
    try {
      const row = await api.row(state.open, state.collection);
      hit = { ...row, score: null, rerank_score: null, probability: null, rank: null, before: null };
    } catch (problem) {
      message("This photo cannot be opened", problem.message, button("Back to the results", close));
      return;
    }
  }
  viewer.open(hit, {
    collection: state.collection,
    text: collection()?.words && state.text && !state.like && !state.photo ? state.text : null,
    count: found.hits.length,
    filter: (clause) => filter([...state.clauses.filter((other) => Object.keys(other)[0] !== Object.keys(clause)[0]), clause]),
    like: ({ id }) => moreLike(id),
    close,
    step: (by) => {
      const next = found.hits[found.hits.findIndex(({ id }) => id === state.open) + by];
      if (next) go({ open: next.id }, { replace: true });
    },
  });
}

function close() {
  const id = state.open;
  if (history.state?.opened) history.back();
  else go({ open: null }, { replace: true });
  requestAnimationFrame(() => document.querySelector(`.card[data-id="${CSS.escape(id)}"] a`)?.focus());
}

function connect() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value.trim();
    if (text) go({ text, like: null, photo: null, open: null });
    $("text").blur(); // hides the keyboard of a phone
  });
  $("results").addEventListener("click", (event) => {
    const like = event.target.closest(".like");
    if (like) return moreLike(like.parentElement.dataset.id);
    const link = event.target.closest("a.photo");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return; // in another tab
    event.preventDefault();
    state = { ...state, open: link.parentElement.dataset.id };
    history.pushState({ opened: true }, "", address(state));
    showOpen();
  });
  $("results").addEventListener("keydown", moveFocus);
  $("more").addEventListener("click", more);
  $("min").addEventListener("input", () => ($("min-value").textContent = percent($("min").value / 100)));
  $("min").addEventListener("change", () => go({ min: Number($("min").value), open: null }));
  $("collection").addEventListener("change", () =>
    go({ collection: $("collection").value, clauses: [], like: null, open: null }),
  );
  $("filter-button").addEventListener("click", () => {
    $("filters").hidden = !$("filters").hidden;
    $("filter-button").setAttribute("aria-expanded", String(!$("filters").hidden));
  });
  $("apply").addEventListener("click", () => {
    try {
      const text = $("json").value.trim();
      filter(text ? clausesOf(JSON.parse(text)) : []);
    } catch (error) {
      $("json-problem").textContent = `This is not JSON: ${error.message}`;
    }
  });
  $("given-remove").addEventListener("click", () => go({ like: null, photo: null, open: null }));
  onPhoto((photo) => go({ photo, text: "", like: null, open: null, min: 0 }));
  addEventListener("popstate", () => {
    state = read();
    show();
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, dialog");
    if (event.key !== "/" || typing) return;
    event.preventDefault();
    $("text").focus();
  });
  document.addEventListener("loading", () => ($("status").textContent = "The model is being loaded …"));
  viewer.connect();
}

async function begin() {
  connect();
  try {
    about = await api.collections();
  } catch (problem) {
    return message("The service cannot be used", problem.message, button("Try again", () => location.reload()));
  }
  $("collection").replaceChildren(...about.map(({ name }) => h("option", { value: name }, name)));
  $("collections").hidden = about.length < 2;
  $("status").textContent = "";
  await show();
}

begin();
