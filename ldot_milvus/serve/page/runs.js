// The page about ingestion: runs with their progress, and what failed.

import * as api from "./api.js";
import { $, button, counted, h, message, percent } from "./dom.js";

const SECONDS = 2; // between two looks at a run that is not complete
const QUIET = 15; // without one

async function look() {
  let active = false;
  try {
    const [runs, failed] = await Promise.all([api.runs(), api.failures()]);
    active = runs.some((run) => !run.complete);
    show(runs, failed);
  } catch (problem) {
    message("The runs cannot be read", problem.message, button("Try again", look));
    return;
  }
  if (!document.hidden) setTimeout(look, 1000 * (active ? SECONDS : QUIET));
  else document.addEventListener("visibilitychange", look, { once: true });
}

function show(runs, failed) {
  message(...(runs.length ? [] : ["Nothing was ingested yet", "Ingest photos with: celery -A workers enqueue PATH"]));
  const current = runs.filter((run) => !run.complete).length;
  const status = runs.length ? `${current ? counted(current, "run") + " in progress" : "No run in progress"}` : "";
  if ($("status").textContent !== status) $("status").textContent = status; // is read aloud when it changes
  $("runs").replaceChildren(...runs.map(run));
  $("failed").hidden = failed.total === 0;
  const rest = failed.total - failed.failures.length;
  $("failed-title").textContent = `${counted(failed.total, "failure")}${rest ? `, the last ${failed.failures.length}` : ""}`;
  $("failures").replaceChildren(...failed.failures.map(failure));
}

function run(state) {
  const share = state.items ? state.done / state.items : 1;
  const bar = h("progress", { max: 1, value: share, "aria-label": `Progress of run ${state.run}` });
  const counts = ["added", "updated", "unchanged", "deleted", "near_duplicates", "failed"]
    .filter((name) => state.sums[name])
    .map((name) => h("span", { className: name === "failed" ? "problem" : "" }, `${state.sums[name].toLocaleString("en")} ${name.replace("_", "-")}`));
  const rate = state.rate >= 1 ? `${state.rate.toFixed(state.rate < 10 ? 1 : 0)} a second` : `${Math.round(60 * state.rate)} a minute`;
  const left = state.complete ? "complete" : state.seconds_left === null ? "time left not known yet" : `${duration(state.seconds_left)} left`;
  return h(
    "li",
    { className: state.complete ? "run" : "run active" },
    h("p", { className: "run-title" }, h("b", {}, state.collection), ` ${state.task} `, h("span", { className: "more" }, `${when(state.started)}, run ${state.run}`)),
    bar,
    h("p", { className: "numbers" }, h("span", { className: "rank" }, `${state.done.toLocaleString("en")} of ${state.items.toLocaleString("en")}`), h("span", {}, percent(share)), h("span", {}, left), state.rate ? h("span", {}, rate) : null, ...counts),
    state.trouble ? h("p", { className: "problem" }, `Waiting: ${state.trouble}`) : null,
  );
}

function failure(item) {
  const picture = item.row ? h("img", { src: api.thumbnail(item.row, null, 160), alt: "", width: 56, height: 42, loading: "lazy" }) : null;
  const again = button("Retry", () => retry([item.key]));
  again.setAttribute("aria-label", `Retry ${item.source}`);
  return h(
    "tr",
    {},
    h("td", {}, h("div", { className: "source" }, picture, h("span", {}, item.source))),
    h("td", {}, item.reason),
    h("td", {}, String(item.attempt)),
    h("td", { className: "when" }, when(item.time)),
    h("td", {}, again),
  );
}

async function retry(keys) {
  try {
    const { runs } = await api.retry(keys);
    $("retried").textContent = `Begun: ${runs.map((id) => `run ${id}`).join(", ") || "nothing to retry"}`;
    look();
  } catch (problem) {
    $("retried").textContent = problem.message;
  }
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const when = (seconds) => new Date(1000 * seconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

$("retry").addEventListener("click", () => retry(null));
look();
