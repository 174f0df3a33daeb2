// The opened photo: its scores and fields, and the regions that each word of the query found.

import { picture, thumbnail, why } from "./api.js";
import { chance, title } from "./cards.js";
import { path } from "./filters.js";
import { $, button, h } from "./dom.js";
import { draw } from "./heat.js";

const HINT = "Point at a word to see which part of the photo it matches.";

const shown = { hit: null, explanation: null, pinned: null };

/**
 * Show a photo.
 * context: collection, text (null where words are not told), count of results, and the functions filter(clause),
 * like(hit), close(), step(by).
 */
export function open(hit, context) {
  const viewer = $("viewer");
  const name = title(hit);
  Object.assign(shown, { hit, explanation: null, pinned: null, context });
  $("viewer-caption").textContent = name;
  $("place").textContent = hit.rank ? `${hit.rank} of ${context.count}` : "";
  $("previous").disabled = !hit.rank || hit.rank === 1;
  $("next").disabled = !hit.rank || hit.rank === context.count;
  $("words").replaceChildren();
  $("found").textContent = "";
  showPicture(hit, context.collection, name);
  showScores(hit);
  showFields(hit, context);
  if (!viewer.open) viewer.showModal();
  if (context.text) explain(hit, context);
}

export const close = () => $("viewer").open && $("viewer").close();

/** Set up the buttons and keys; they call the functions of the context of the photo that is shown. */
export function connect() {
  const viewer = $("viewer");
  $("close").addEventListener("click", () => shown.context.close());
  $("previous").addEventListener("click", () => shown.context.step(-1));
  $("next").addEventListener("click", () => shown.context.step(1));
  $("like").addEventListener("click", () => shown.context.like(shown.hit));
  viewer.addEventListener("cancel", (event) => {
    event.preventDefault();
    shown.context.close();
  });
  viewer.addEventListener("click", (event) => event.target === viewer && shown.context.close());
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const words = [...$("words").querySelectorAll("button")];
    const at = words.indexOf(event.target);
    if (at >= 0) words[at + by]?.focus();
    else shown.context.step(by);
  });
  $("picture").addEventListener("load", () => $("viewer").classList.remove("loading"));
  $("picture").addEventListener("error", () => {
    $("viewer").classList.remove("loading");
    $("found").textContent = "This photo cannot be shown: its file has moved or changed.";
  });
}

function showPicture(hit, collection, name) {
  const frame = document.querySelector(".frame");
  frame.style.setProperty("--ratio", hit.width && hit.height ? (hit.width / hit.height).toFixed(4) : "1.5");
  // What the card has already loaded is there at once, under the larger picture.
  frame.style.backgroundImage = `url("${new URL(thumbnail(hit.id, collection, 640), document.baseURI)}")`;
  $("viewer").classList.add("loading");
  $("picture").alt = name;
  $("picture").src = picture(hit.id, collection);
  draw($("heat"), null);
}

async function explain(hit, { text, collection }) {
  let explanation;
  try {
    explanation = await why(hit.id, text, collection);
  } catch (problem) {
    if (shown.hit === hit) $("found").textContent = problem.message;
    return;
  }
  if (shown.hit !== hit) return; // another photo was opened meanwhile
  const most = Math.max(...explanation.weights.flat(), 1e-6);
  shown.explanation = { ...explanation, most };
  const characters = Array.from(text); // places count code points
  const parts = [];
  let end = 0;
  explanation.words.forEach((word, index) => {
    parts.push(characters.slice(end, word.start).join(""), wordButton(word, index, most));
    end = word.end;
  });
  $("words").replaceChildren(...parts, characters.slice(end).join(""));
  light(null);
}

function wordButton(word, index, most) {
  const strongest = Math.max(...shown.explanation.weights[index]);
  const made = button(word.text, () => {
    shown.pinned = shown.pinned === index ? null : index;
    light(shown.pinned);
  });
  made.className = "word";
  made.style.setProperty("--strength", (strongest / most).toFixed(3));
  made.setAttribute("aria-pressed", "false");
  made.addEventListener("mouseenter", () => light(index));
  made.addEventListener("mouseleave", () => light(shown.pinned));
  made.addEventListener("focus", () => light(index));
  made.addEventListener("blur", () => light(shown.pinned));
  return made;
}

/** Show the regions that a word found; null shows the photo as it is. */
function light(index) {
  const { explanation, pinned } = shown;
  if (!explanation) return;
  [...$("words").querySelectorAll("button")].forEach((word, other) => {
    word.setAttribute("aria-pressed", other === pinned);
    word.classList.toggle("lit", other === index);
  });
  const weights = index === null ? null : brightness(explanation.weights[index], explanation.most);
  const any = weights?.some((weight) => weight > 0);
  draw($("heat"), any ? explanation.regions : null, weights);
  $("found").textContent = index === null ? HINT : told(explanation.words[index].text, explanation, weights, any);
}

/** Scale the weights of a word so that its best region is visible, brighter the better it matches. */
function brightness(weights, most) {
  const best = Math.max(...weights);
  if (best < 0.02 * most) return weights.map(() => 0);
  return weights.map((weight) => (weight / best) * (0.5 + (0.5 * best) / most));
}

/** Tell in words where a word was found, for those who do not see the picture. */
function told(word, { regions, names }, weights, any) {
  if (!any) return `“${word}” matches no part of this photo.`;
  const best = weights.indexOf(Math.max(...weights));
  const [x0, y0, x1, y1] = regions[best];
  const third = (middle, words) => words[Math.min(Math.floor(3 * middle), 2)];
  const row = third((y0 + y1) / 2, ["top", "", "bottom"]);
  const column = third((x0 + x1) / 2, ["left", "", "right"]);
  const place = row || column ? `at the ${[row, column].filter(Boolean).join(" ")}` : "in the middle";
  return `“${word}” matches most ${place}${names[best] ? `, which looks like “${names[best]}”` : ""}.`;
}

function showScores(hit) {
  const rows = [];
  const line = (name, value, rank) =>
    rows.push(h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value), h("td", {}, rank ? `rank ${rank}` : "")));
  if (hit.probability !== null && hit.probability !== undefined) line("Probability", chance(hit.probability), null);
  if (hit.score !== null && hit.score !== undefined) line("Dot product", hit.score.toFixed(3), hit.before ?? hit.rank);
  if (hit.rerank_score !== null && hit.rerank_score !== undefined) line("Re-ranked", hit.rerank_score.toFixed(2), hit.rank);
  $("scores").hidden = rows.length === 0;
  $("scores").tBodies[0].replaceChildren(...rows);
}

function showFields(hit, context) {
  const entries = [];
  const add = (name, value) => entries.push(h("dt", {}, name), h("dd", {}, ...value));
  const captions = hit.caption.split("\n").slice(1).filter(Boolean);
  if (captions.length) add("Also", captions.map((text) => h("p", {}, text)));
  if (hit.width) add("Size", [`${hit.width} × ${hit.height}`]);
  for (const [key, value] of Object.entries(hit.metadata)) {
    if (typeof value === "string" && /^https?:\/\//.test(value)) {
      add(key, [h("a", { href: value, rel: "noopener noreferrer", target: "_blank" }, value)]);
    } else if (["string", "boolean", "number"].includes(typeof value)) {
      const only = button("only these", () => context.filter({ [path(key)]: value }));
      only.setAttribute("aria-label", `Show only photos with ${key} ${value}`);
      add(key, [`${value} `, only]);
    }
  }
  if (hit.source) add("File", [hit.source]);
  $("fields-of-photo").replaceChildren(...entries);
}
