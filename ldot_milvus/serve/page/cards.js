// The cards of the results. search/page.py writes the same markup.

import { thumbnail } from "./api.js";
import { h, percent } from "./dom.js";

export const ratio = (hit) => (hit.width && hit.height ? Math.min(Math.max(hit.width / hit.height, 0.7), 2.4) : 1.5);
export const firstLine = (text) => text.split("\n")[0];
export const baseName = (source) => source.split("/").pop();
export const title = (hit) => firstLine(hit.caption) || baseName(hit.source) || hit.id;

/** Add to hits their rank, and the one that the dot product gave them where a re-ranker changed it. */
export function ranked(hits) {
  const first = hits.filter((hit) => hit.rerank_score !== null).sort((one, other) => other.score - one.score);
  const before = new Map(first.map((hit, index) => [hit.id, index + 1]));
  return hits.map((hit, index) => ({ ...hit, rank: index + 1, before: before.get(hit.id) ?? null }));
}

export function card(hit, collection, link) {
  const img = h("img", {
    alt: title(hit),
    loading: hit.rank > 12 ? "lazy" : "eager",
    decoding: "async",
    src: thumbnail(hit.id, collection, 640),
  });
  img.addEventListener("error", () => img.replaceWith("This photo cannot be shown"), { once: true });
  const photo = h("a", { className: "photo", href: link, draggable: false }, img);
  const item = h(
    "li",
    { className: "card", data: { id: hit.id } },
    photo,
    h("button", { type: "button", className: "like", "aria-label": `More like ${title(hit)}` }, "More like this"),
    h("div", { className: "about" }, h("p", { className: "caption" }, title(hit)), numbers(hit)),
  );
  item.style.setProperty("--ratio", ratio(hit).toFixed(4));
  return item;
}

function numbers(hit) {
  const parts = [h("span", { className: "rank" }, h("span", { className: "hidden" }, "Rank "), String(hit.rank))];
  if (hit.probability !== null) parts.push(chance(hit.probability));
  else parts.push(h("span", {}, h("span", { className: "hidden" }, "Score "), score(hit).toFixed(2)));
  const moved = hit.before === null ? 0 : hit.before - hit.rank;
  if (moved) {
    const text = `${moved > 0 ? "↑" : "↓"} ${Math.abs(moved)}`;
    const told = `${moved > 0 ? "up" : "down"} ${Math.abs(moved)} by re-ranking`;
    parts.push(
      h(
        "span",
        { className: moved > 0 ? "up" : "down", title: `The re-ranker moved this photo from rank ${hit.before}` },
        h("span", { "aria-hidden": "true" }, text),
        h("span", { className: "hidden" }, told),
      ),
    );
  }
  return h("p", { className: "numbers" }, ...parts);
}

/** A probability as a bar and a percentage. */
export function chance(probability) {
  const bar = h("span");
  bar.style.width = percent(probability).replace(" ", "");
  return h(
    "span",
    {},
    h("span", { className: "bar", "aria-hidden": "true" }, bar),
    h("span", { className: "hidden" }, "Probability "),
    percent(probability),
  );
}

export const score = (hit) => hit.rerank_score ?? hit.score;

/** Move the focus among cards by arrow keys: to the neighbour in a row, or the nearest card of another row. */
export function moveFocus(event) {
  const links = [...event.currentTarget.querySelectorAll("a.photo")];
  const at = links.indexOf(event.target.closest?.("a.photo"));
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = {
    ArrowRight: () => links[at + 1],
    ArrowLeft: () => links[at - 1],
    ArrowDown: () => nearest(links.slice(at + 1), links[at], 1),
    ArrowUp: () => nearest(links.slice(0, at).reverse(), links[at], -1),
    Home: () => links[0],
    End: () => links.at(-1),
  }[event.key];
  if (!next) return;
  event.preventDefault();
  next()?.focus();
}

function nearest(links, from, direction) {
  const here = from.getBoundingClientRect();
  const middle = here.left + here.width / 2;
  const row = links.find((link) => direction * (link.getBoundingClientRect().top - here.top) > 5);
  if (!row) return null;
  const top = row.getBoundingClientRect().top;
  const distance = (link) => {
    const box = link.getBoundingClientRect();
    return Math.abs(box.left + box.width / 2 - middle);
  };
  return links
    .filter((link) => Math.abs(link.getBoundingClientRect().top - top) < 5)
    .reduce((best, link) => (distance(link) < distance(best) ? link : best));
}
