// What is searched, in the address of the page: the back button and a copied address work.

import { joined, parsed } from "./filters.js";

/**
 * text: words of the query. like: id of a row. photo: number of a dropped photo, which only this page has.
 * clauses: parts of the filter. min: least probability. open: id of the photo that is shown large.
 */
export function read() {
  const given = new URLSearchParams(location.search);
  return {
    text: given.get("q") ?? "",
    like: given.get("like"),
    photo: given.get("photo"),
    clauses: parsed(given.get("filter")),
    min: Math.min(Math.max(Number(given.get("min")) || 0, 0), 95),
    collection: given.get("collection"),
    open: given.get("open"),
  };
}

export function address(state) {
  const filter = joined(state.clauses);
  const values = {
    q: state.text,
    like: state.like,
    photo: state.photo,
    filter: filter && JSON.stringify(filter),
    min: state.min || null,
    collection: state.collection,
    open: state.open,
  };
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  return query ? `?${query}` : "./";
}

export const isEmpty = (state) => !state.text && !state.like && !state.photo;

/** Whether two states have the same results. */
export const sameSearch = (one, other) =>
  Boolean(one && other) && address({ ...one, open: null }) === address({ ...other, open: null });
