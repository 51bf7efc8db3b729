// The orders: the latest changes, newest first, or those with some status, oldest first, as the API
// pages them. Both are live.
import { Link, go } from "./address.js";
import { html, useEffect, useRef, useState } from "./preact-htm.js";
import { askPage } from "./server.js";
import { Status } from "./state.js";
import { feed } from "./stream.js";
import { local, useNow } from "./time.js";
import { ATTENTION, EVENTS, ago, counted } from "./words.js";

const PAGE = 50;
// Events that are read for the latest changes: an order has three, mostly.
const EVENTS_READ = 3 * PAGE;
// A list that is shown is read again at most so often, however much happens.
const PAUSE_MS = 1000;

export function List({ view, known }) {
  return html`<section class="list" aria-labelledby="list-title">
    <div class="list-head">
      <h2 id="list-title" tabindex="-1">${title(view)}</h2>
      <${Search} view=${view} />
    </div>
    ${view.list === "latest" ? html`<${Latest} view=${view} />` : html`<${Page} key=${title(view)} view=${view} known=${known} />`}
  </section>`;
}

function title({ list, statuses, attention }) {
  if (list === "latest") return "Latest changes";
  const isOpen = statuses.join() === "CREATED,PROCESSING";
  const words = isOpen ? "Open orders" : statuses.length ? `Orders that are ${statuses.join(" or ")}` : "All orders";
  return attention ? (statuses.length ? `${words} and need looking at` : "Orders that need looking at") : words;
}

// An order by its id: the whole of it, for the API knows no other search.
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

// The orders that changed last, each with its last event. It is kept from the feed alone, and shown
// in the order of change, unless someone points at it: then nothing moves away.
function Latest({ view }) {
  const [rows, setRows] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const [held, setHeld] = useState(null);
  useEffect(() => {
    let last = new Map();
    let frame = null;
    const show = () => {
      frame ??= setTimeout(() => {
        frame = null;
        const newest = [...last.values()].sort((one, other) => other.seq - one.seq).slice(0, PAGE);
        last = new Map(newest.map((event) => [event.order_id, event]));
        setRows(newest);
      }, 100);
    };
    const take = (events) => {
      for (const event of events) {
        if (event.seq > (last.get(event.order_id)?.seq ?? 0)) last.set(event.order_id, event);
      }
      show();
    };
    const begin = async (seq) => {
      try {
        const { items } = await askPage(`/event?after=${Math.max(0, seq - EVENTS_READ)}&limit=${EVENTS_READ}`);
        setTrouble(null);
        take(items);
      } catch (error) {
        setTrouble(error.message);
      }
    };
    const ignore = feed.listen(({ begin: seq, events }) => {
      if (seq !== undefined) begin(seq);
      if (events) take(events);
    });
    return () => (ignore(), clearTimeout(frame));
  }, []);
  const hold = (isHeld) => setHeld(isHeld ? (before) => before ?? rows.map(({ order_id: id }) => id) : null);
  if (trouble && !rows) return html`<p class="bad">The latest changes cannot be read: ${trouble}.</p>`;
  if (!rows) return html`<p class="faint">Reading …</p>`;
  if (!rows.length) return html`<p class="empty">There is no order yet. The first appears here as soon as it is created.</p>`;
  const byId = new Map(rows.map((event) => [event.order_id, event]));
  const kept = held ? held.filter((id) => byId.has(id)) : [...byId.keys()];
  const newer = rows.length - kept.length;
  return html`
    <p class="note">Each order with its last change, newest first.${newer > 0 && html` <b>${counted(newer, "order")} more</b>, shown when you leave the list.`}</p>
    <${Table} columns=${["Order", "Status", "Changed"]} label="Latest changes" hold=${hold}>
      ${kept.map((id) => {
        const event = byId.get(id);
        return html`<${Row} key=${id} id=${id} view=${view} status=${event.to} at=${event.at} note=${EVENTS[event.reason]} />`;
      })}
    <//>`;
}

// One page of a list, as the API pages it. It is read again when something has happened.
function Page({ view, known }) {
  const [page, setPage] = useState({ items: null, next: null, trouble: null, of: null });
  const again = useRef(() => {});
  const query = new URLSearchParams();
  for (const status of view.statuses) query.append("status", status);
  if (view.attention) query.set("attention", "true");
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
        setPage({ ...(await askPage(path, { signal: gone.signal })), trouble: null, of: path });
      } catch (error) {
        if (gone.signal.aborted) return;
        setPage((before) => ({ ...before, trouble: error.message }));
      }
      isReading = false;
      timer = setTimeout(() => ((timer = null), isOld && read()), PAUSE_MS);
    };
    again.current = () => (isReading || timer ? (isOld = true) : read());
    read();
    const ignore = feed.listen(({ begin, events }) => (begin !== undefined || events) && again.current());
    return () => (ignore(), clearTimeout(timer), gone.abort());
  }, [path]);
  // What needs looking at is not in the journal: the statistics tell that it has changed.
  const attention = JSON.stringify(known.stats?.attention);
  useEffect(() => again.current(), [attention]);
  const { items, next, trouble } = page;
  if (trouble && !items) {
    return html`<p class="bad">The orders cannot be read: ${trouble}.</p>
      ${view.after && html`<p><${Link} to=${{ ...view, after: null }}>From the first page<//></p>`}`;
  }
  if (!items) return html`<p class="faint">Reading …</p>`;
  const pages = html`<nav class="pages" aria-label="Pages">
    ${view.after ? html`<${Link} to=${{ ...view, after: null }}>First page<//>` : html`<span class="faint">First page</span>`}
    ${next ? html`<${Link} to=${{ ...view, after: next }} rel="next">Next page<//>` : html`<span class="faint">No more</span>`}
  </nav>`;
  if (!items.length) return html`<p class="empty">There is none${view.after ? " on this page" : ""} now.</p>${view.after && pages}`;
  return html`
    <p class="note">In the order of creation.${trouble && html` <b class="bad">Not up to date: ${trouble}.</b>`}</p>
    <div aria-busy=${page.of !== path} class=${page.of === path ? "" : "stale"}>
      <${Table} columns=${["Order", "Status", "Changed"]} label=${title(view)}>
        ${items.map((order) => html`<${Row} key=${order.id} id=${order.id} view=${view} status=${order.status}
          at=${order.updated_at} note=${noteOf(order)} isNeedy=${order.attention !== null} />`)}
      <//>
    </div>
    ${pages}`;
}

function noteOf({ attention, starts }) {
  if (attention) return ATTENTION[attention.reason]?.brief ?? attention.reason;
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
  const isOpen = view.order === id;
  return html`<tr class=${isOpen ? "open" : ""}>
    <td>
      <${Link} to=${{ ...view, order: id }} data-id=${id} aria-current=${isOpen ? "true" : null}><bdi>${id}</bdi><//>
      ${note && html`<span class=${`row-note ${isNeedy ? "needy" : ""}`}>${note}</span>`}
    </td>
    <td><${Status} of=${status} /></td>
    <td><time datetime=${at} title=${local(at, moment)}>${ago(at, moment)}</time></td>
  </tr>`;
}
