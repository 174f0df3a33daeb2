// Calls of the HTTP API. A call waits while the model is loaded, and asks for a token where the service wants one.

import { h } from "./dom.js";

/** What went wrong, in one line for people. */
export class Problem extends Error {
  constructor(status, code, text) {
    super(text);
    this.status = status;
    this.code = code;
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function call(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { credentials: "same-origin", ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "unreachable", "The service does not answer: check that it runs.");
    }
    if (response.ok) return response.json();
    const told = await response.json().catch(() => ({}));
    if (response.status === 401) {
      await askForToken();
    } else if (told.code === "loading" || response.status === 429) {
      if (told.code === "loading") document.dispatchEvent(new CustomEvent("loading"));
      await pause(Number(response.headers.get("Retry-After")) || 2);
    } else {
      throw new Problem(response.status, told.code || "http", told.error || `The service answers ${response.status}.`);
    }
    options.signal?.throwIfAborted();
  }
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const collections = () => call("v1/collections");
export const search = (query, signal) => post("v1/search", query, signal);
export const why = (id, text, collection) => post(`v1/rows/${encodeURIComponent(id)}/why`, { text, collection });
export const row = (id, collection) => call(`v1/rows/${encodeURIComponent(id)}?${named(collection)}`);
export const runs = () => call("v1/runs");
export const failures = () => call("v1/failures");
export const retry = (keys) => post("v1/failures/retry", { keys });

export function searchByPhoto(file, options, signal) {
  const form = new FormData();
  form.append("file", file);
  form.append("options", JSON.stringify(options));
  return call("v1/search/image", { method: "POST", body: form, signal });
}

export const thumbnail = (id, collection, size) =>
  `v1/rows/${encodeURIComponent(id)}/thumbnail?${named(collection, { size })}`;
export const picture = (id, collection) => `v1/rows/${encodeURIComponent(id)}/picture?${named(collection)}`;

function named(collection, others = {}) {
  return new URLSearchParams(collection ? { collection, ...others } : others).toString();
}

let asking = null; // one prompt for all calls that wait for a token

function askForToken() {
  asking ??= new Promise((resolve) => {
    const value = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
    const problem = h("p", { className: "problem", role: "alert" });
    const form = h(
      "form",
      {},
      h("h2", { id: "token-title" }, "This service asks for a token"),
      h("label", { htmlFor: "token" }, "Token"),
      value,
      problem,
      h("button", { type: "submit" }, "Continue"),
    );
    const dialog = h("dialog", { className: "token", "aria-labelledby": "token-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const response = await fetch("v1/session", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ token: value.value }),
      }).catch(() => null);
      if (response?.ok) {
        dialog.remove();
        asking = null;
        resolve();
      } else {
        problem.textContent = response ? "This token is not accepted." : "The service does not answer.";
        value.select();
      }
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
