// The view in the address, so that back, forward, reload and shared links work. The names are those of
// the API's parameters.
import { html, useEffect, useState } from "./preact-htm.js";

export const STATUSES = ["CREATED", "PROCESSING", "FULFILLED", "FAILED"];

// The initial view: the latest changes, no order open.
export const START = { list: "latest", statuses: [], attention: null, after: null, order: null };

// The list of all orders. Without a filter, the latest changes are shown.
export const ALL = { ...START, list: "orders" };

export function filtered(filter) {
  return { ...ALL, ...filter };
}

export function read(search) {
  const query = new URLSearchParams(search);
  const wanted = new Set(query.getAll("status").flatMap((words) => words.split(",")));
  // Unknown values are sent too: the response says which exist.
  const statuses = [...STATUSES.filter((status) => wanted.delete(status)), ...wanted];
  const attention = query.get("attention");
  const isFiltered = statuses.length > 0 || attention !== null || query.get("list") === "all";
  return {
    list: isFiltered ? "orders" : "latest",
    statuses,
    attention,
    after: isFiltered ? query.get("after") : null,
    order: query.get("order"),
  };
}

export function address(view) {
  const query = new URLSearchParams();
  if (view.list === "orders") {
    for (const status of view.statuses) query.append("status", status);
    if (view.attention !== null) query.set("attention", view.attention);
    if (!view.statuses.length && view.attention === null) query.set("list", "all");
    if (view.after) query.set("after", view.after);
  }
  if (view.order !== null) query.set("order", view.order);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

// Returns true if two views show the same list, on any page and with any order open.
export function sameList(one, other) {
  const list = (view) => address({ ...view, after: null, order: null });
  return list(one) === list(other);
}

const listeners = new Set();

export function go(view) {
  if (address(view) !== location.pathname + location.search) {
    history.pushState(null, "", address(view));
  }
  for (const listener of listeners) listener();
}

export function useView() {
  const [view, setView] = useState(() => read(location.search));
  useEffect(() => {
    const follow = () => setView(read(location.search));
    listeners.add(follow);
    addEventListener("popstate", follow);
    return () => {
      listeners.delete(follow);
      removeEventListener("popstate", follow);
    };
  }, []);
  return view;
}

// A link that the page handles itself, unless it is opened in another tab or window.
export function Link({ to, children, ...attributes }) {
  const follow = (event) => {
    const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (!isPlain) return;
    event.preventDefault();
    go(to);
  };
  return html`<a href=${address(to)} onClick=${follow} ...${attributes}>${children}</a>`;
}
