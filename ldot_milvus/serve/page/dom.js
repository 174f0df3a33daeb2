// Small helpers for elements. What comes from the collection is hostile input: it is only ever set as text.

export const $ = (id) => document.getElementById(id);

/** Make an element: h("p", { className: "more" }, "text", child). Attributes with a dash are set as attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show a message of one heading, perhaps a line of explanation, and buttons; without arguments, hide it. */
export function message(heading, explanation, ...buttons) {
  const box = $("message");
  box.hidden = !heading;
  const line = explanation ? h("p", {}, explanation) : null;
  const row = buttons.length ? h("p", { className: "choices" }, ...buttons) : null;
  box.replaceChildren(...(heading ? [h("p", { className: "heading" }, heading), line, row].filter(Boolean) : []));
}

export const button = (text, onclick) => h("button", { type: "button", className: "plain", onclick }, text);
export const percent = (share) => `${Math.round(100 * share)} %`;
export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
