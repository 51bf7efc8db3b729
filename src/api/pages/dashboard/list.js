// Lists of orders: the latest changes, newest first, or filtered orders, oldest first, in the API's
// pages. Both are updated live.
import { Link, go } from "./address.js";
import { html, useEffect, useRef, useState } from "./preact-htm.js";
import { askPage } from "./server.js";
import { Status } from "./state.js";
import { feed } from "./stream.js";
import { local, useNow } from "./time.js";
import { ATTENTION, REMARKABLE, ago, attentionTotal, counted } from "./words.js";

const PAGE = 50;
// Number of orders in the latest changes, and of events read for them: an order usually has three.
const LATEST = 30;
const EVENTS_READ = 3 * LATEST;
const NEEDY_READ = 200;

// Titles by the value of the API's parameter `attention`.
const WITH_ATTENTION = {
  true: "have attention",
  false: "have no attention",
  operator: "need an operator",
  itself: "proceed by themselves",
};

const STILL_OPEN = ["CREATED", "PROCESSING"];
// Minimum interval between two reads of a list.
const PAUSE_MS = 1000;

export function List({ view, known, mode }) {
  return html`<section class="list" aria-labelledby="list-title">
    <div class="list-head">
      <h2 id="list-title" tabindex="-1">${title(view)}</h2>
      <${Search} view=${view} />
    </div>
    ${view.list === "latest" ? html`<${Latest} view=${view} known=${known} mode=${mode} />` : html`<${Page} key=${title(view)} view=${view} known=${known} mode=${mode} />`}
  </section>`;
}

function title({ list, statuses, attention }) {
  if (list === "latest") return "Latest changes";
  const isOpen = statuses.join() === STILL_OPEN.join();
  const words = isOpen ? "Open orders" : statuses.length ? `Orders that are ${statuses.join(" or ")}` : "All orders";
  if (attention === null) return words;
  const condition = WITH_ATTENTION[attention] ?? `have the attention ${attention}`;
  return statuses.length ? `${words} ${isOpen ? "that" : "and"} ${condition}` : `Orders that ${condition}`;
}

// Opens an order by its whole id: the API has no other search.
function Search({ view }) {
  const field = useRef();
  const find = (event) => {
    event.preventDefault();
    const id = field.current.value.trim();
    if (id) go({ ...view, order: id });
  };
  return html`<form class="search" role="search" onSubmit=${find}>
    <label for="find">Order</label>
    <input id="find" ref=${field} type="text" placeholder="its whole id" maxlength="256" autocomplete="off" autocapitalize="off" spellcheck="false" />
    <button type="submit">Open</button>
  </form>`;
}

// The orders that changed last, each with its last event, from the feed. Sorted by change, except while
// the pointer or focus is in the list: then rows stay in place.
function Latest({ view, known, mode }) {
  const [rows, setRows] = useState(null);
  const [error, setError] = useState(null);
  const [held, setHeld] = useState(null);
  const needy = useNeedy(known);
  useEffect(() => {
    let last = new Map();
    let frame = null;
    const show = () => {
      frame ??= setTimeout(() => {
        frame = null;
        const newest = [...last.values()].sort((one, other) => other.seq - one.seq).slice(0, LATEST);
        last = new Map(newest.map((event) => [event.order_id, event]));
        setRows(newest);
      }, 100);
    };
    // Events that arrive while the latest ones are read; null otherwise.
    let meanwhile = null;
    const take = (events) => {
      meanwhile?.push(...events);
      for (const event of events) {
        if (event.seq > (last.get(event.order_id)?.seq ?? 0)) last.set(event.order_id, event);
      }
      show();
    };
    // The program may have been restarted with another database, so earlier data is dropped. A failed read
    // is repeated from the newest event by then.
    const begin = async (seq) => {
      const since = [];
      meanwhile = since;
      try {
        const { items } = await askPage(`/event?after=${Math.max(0, seq - EVENTS_READ)}&limit=${EVENTS_READ}`);
        if (meanwhile !== since) return;
        meanwhile = null;
        setError(null);
        last = new Map();
        take([...items, ...since]);
      } catch (error) {
        if (meanwhile !== since) return;
        setError(error.message);
        // The feed of a hidden page begins again when it is shown.
        setTimeout(() => meanwhile === since && !document.hidden && begin(since.at(-1)?.seq ?? seq), PAUSE_MS);
      }
    };
    const ignore = feed.listen(({ begin: seq, events }) => {
      if (seq !== undefined) begin(seq);
      if (events) take(events);
    });
    return () => (ignore(), clearTimeout(frame), (meanwhile = null));
  }, []);
  const hold = (isHeld) => setHeld(isHeld ? (before) => before ?? rows.map(({ order_id: id }) => id) : null);
  if (error && !rows) return html`<p class="bad">The latest changes cannot be read: ${error}.</p>`;
  if (!rows) return html`<p class="faint">Reading …</p>`;
  if (!rows.length) return html`<p class="empty">There is no order yet. The first appears here as soon as it is created.</p>`;
  const byId = new Map(rows.map((event) => [event.order_id, event]));
  const kept = held ? held.filter((id) => byId.has(id)) : [...byId.keys()];
  const newer = rows.length - kept.length;
  return html`
    <p class="note">Each order with its last change, newest first. <${Mode} of=${mode} />${error && html` <b class="bad">Not up to date: ${error}.</b>`}${newer > 0 && html` <b>${counted(newer, "order")} more</b>, shown when you leave the list.`}</p>
    <${Table} columns=${["Order", "Status", "Changed"]} label="Latest changes" hold=${hold}>
      ${kept.map((id) => {
        const event = byId.get(id);
        const attention = STILL_OPEN.includes(event.to) ? needy.get(id) : null;
        const note = attention ? noteOf({ attention }) : REMARKABLE[event.reason];
        return html`<${Row} key=${id} id=${id} view=${view} status=${event.to} at=${event.at} note=${note} isNeedy=${attention?.by === "operator"} />`;
      })}
    <//>`;
}

const NONE = new Map();

// Attention by order id, of the oldest orders if there are many. It is not in the journal; the
// statistics show when it has changed.
function useNeedy({ stats }) {
  const [needy, setNeedy] = useState(NONE);
  const attention = JSON.stringify([stats?.attention, stats?.attention_by]);
  const count = stats ? attentionTotal(stats) : 0;
  useEffect(() => {
    if (!count) return setNeedy(NONE);
    const gone = new AbortController();
    const read = () => {
      if (gone.signal.aborted) return;
      askPage(`/order?attention=true&limit=${NEEDY_READ}`, { signal: gone.signal })
        .then(({ items }) => setNeedy(new Map(items.map((order) => [order.id, order.attention]))))
        .catch(again);
    };
    const again = () => setTimeout(document.hidden ? again : read, PAUSE_MS);
    read();
    return () => gone.abort();
  }, [attention]);
  return needy;
}

const MODES = {
  live: "Changes appear as they happen.",
  polling: "Too many streams are open: changes appear within seconds.",
  blocked: "No stream arrives: changes appear within seconds.",
  off: "Connecting: changes do not appear now.",
};

function Mode({ of }) {
  return html`<span class=${`mode ${of}`}>${MODES[of]}</span>`;
}

// One page of a list, read again after each event.
function Page({ view, known, mode }) {
  const [page, setPage] = useState({ items: null, next: null, error: null, of: null });
  const again = useRef(() => {});
  const query = new URLSearchParams();
  for (const status of view.statuses) query.append("status", status);
  if (view.attention !== null) query.set("attention", view.attention);
  query.set("limit", PAGE);
  if (view.after) query.set("after", view.after);
  const path = `/order?${query}`;
  useEffect(() => {
    const gone = new AbortController();
    let timer = null;
    let isReading = false;
    let isOld = false;
    const read = async () => {
      isReading = true;
      isOld = false;
      try {
        setPage({ ...(await askPage(path, { signal: gone.signal })), error: null, of: path });
      } catch (error) {
        if (gone.signal.aborted) return;
        setPage((before) => ({ ...before, error: error.message }));
        // A filter that is refused stays refused.
        isOld ||= error.status === null || error.status >= 500;
      }
      isReading = false;
      timer = setTimeout(() => ((timer = null), isOld && !document.hidden && read()), PAUSE_MS);
    };
    again.current = () => (isReading || timer ? (isOld = true) : read());
    read();
    const ignore = feed.listen(({ begin, events }) => (begin !== undefined || events) && again.current());
    return () => (ignore(), clearTimeout(timer), gone.abort());
  }, [path]);
  // Attention is not in the journal; the statistics show when it has changed.
  const attention = JSON.stringify([known.stats?.attention, known.stats?.attention_by]);
  useEffect(() => again.current(), [attention]);
  const { items, next, error } = page;
  if (error && !items) {
    return html`<p class="bad">The orders cannot be read: ${error}.</p>
      ${view.after && html`<p><${Link} to=${{ ...view, after: null }}>From the first page<//></p>`}`;
  }
  if (!items) return html`<p class="faint">Reading …</p>`;
  const pages = html`<nav class="pages" aria-label="Pages of the list">
    ${view.after ? html`<${Link} to=${{ ...view, after: null }}>First page<//>` : html`<span class="faint">First page</span>`}
    ${next ? html`<${Link} to=${{ ...view, after: next }} rel="next">Next page<//>` : html`<span class="faint">No more</span>`}
  </nav>`;
  if (!items.length) return html`<p class="empty">There is none${view.after ? " on this page" : ""} now.</p>${view.after && pages}`;
  return html`
    <p class="note">In the order of creation. <${Mode} of=${mode} />${error && html` <b class="bad">Not up to date: ${error}.</b>`}</p>
    <div aria-busy=${page.of !== path} class=${page.of === path ? "" : "stale"}>
      <${Table} columns=${["Order", "Status", "Changed"]} label=${title(view)}>
        ${items.map((order) => html`<${Row} key=${order.id} id=${order.id} view=${view} status=${order.status}
          at=${order.updated_at} note=${noteOf(order)} isNeedy=${order.attention?.by === "operator"} />`)}
      <//>
    </div>
    ${pages}`;
}

function noteOf({ attention, starts }) {
  if (attention) return ATTENTION[attention.reason] ?? attention.reason;
  return starts > 1 ? `started ${starts} times` : null;
}

function Table({ columns, label, hold, children }) {
  const holding = hold && {
    onPointerEnter: (event) => event.pointerType === "mouse" && hold(true),
    onPointerLeave: (event) => event.pointerType === "mouse" && hold(false),
    onfocusin: () => hold(true),
    onfocusout: (event) => event.currentTarget.contains(event.relatedTarget) || hold(false),
  };
  return html`<table class="orders" aria-label=${label} ...${holding}>
    <thead><tr>${columns.map((column) => html`<th scope="col" key=${column}>${column}</th>`)}</tr></thead>
    <tbody>${children}</tbody>
  </table>`;
}

function Row({ id, view, status, at, note, isNeedy }) {
  const moment = useNow();
  const isShown = view.order === id;
  return html`<tr class=${isShown ? "open" : ""}>
    <td>
      <${Link} to=${{ ...view, order: id }} data-id=${id} aria-current=${isShown ? "true" : null}><bdi>${id}</bdi><//>
      ${note && html`<span class=${`row-note ${isNeedy ? "needy" : ""}`}>${note}</span>`}
    </td>
    <td><${Status} of=${status} /></td>
    <td><time datetime=${at} title=${local(at, moment)}>${ago(at, moment)}</time></td>
  </tr>`;
}
