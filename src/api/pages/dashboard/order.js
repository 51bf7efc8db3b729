// One order: how it is, why, what happens next and when, what has happened, and what can be typed.
import { Link } from "./address.js";
import { html, useEffect, useRef, useState } from "./preact-htm.js";
import { commands, isSettled, next, situation, trouble as troubleOf } from "./order-words.js";
import { askPage, orderPath, request } from "./server.js";
import { Status } from "./state.js";
import { feed } from "./stream.js";
import { exact, local, now, secondsSince, useNow } from "./time.js";
import { EVENTS, ago, span } from "./words.js";

// It is read again at most so often, however much happens to it.
const PAUSE_MS = 500;

// The order and its journal, as they are now: read again when it changes, and, while it is open,
// when the reconciler has looked at it.
function useOrder(id) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    const gone = new AbortController();
    const { signal } = gone;
    let timer = null;
    let isReading = false;
    let isOld = false;
    const later = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(read, ms);
    };
    async function read() {
      clearTimeout(timer);
      // The feed begins anew when someone looks again.
      if (document.hidden) return;
      isReading = true;
      isOld = false;
      let wait = 5000;
      try {
        const answer = await request(orderPath(id), { signal });
        const order = await answer.json();
        const seconds = Number(answer.headers.get("retry-after")) || null;
        const { items: events } = await askPage(`/event?order_id=${encodeURIComponent(id)}&limit=1000`, { signal });
        setFound({ order, events, look: seconds && now() + seconds * 1000, trouble: null });
        wait = isSettled(order) ? null : Math.max(seconds ?? 1, 1) * 1000;
      } catch (error) {
        if (signal.aborted) return;
        setFound((before) => ({ ...before, trouble: error }));
        if (error.status === 404) wait = null;
      }
      isReading = false;
      if (isOld) later(PAUSE_MS);
      else if (wait !== null) later(wait);
    }
    const soon = () => (isReading ? (isOld = true) : later(PAUSE_MS / 10));
    read();
    const ignore = feed.listen(({ begin, events }) => {
      if (begin !== undefined || events?.some((event) => event.order_id === id)) soon();
    });
    return () => (ignore(), clearTimeout(timer), gone.abort());
  }, [id]);
  return found;
}

export function Order({ view, stats }) {
  const id = view.order;
  const found = useOrder(id);
  const heading = useRef();
  useEffect(() => {
    heading.current.focus({ preventScroll: true });
    heading.current.scrollIntoView({ block: "nearest" });
  }, [id]);
  const status = found?.order && `${id} is ${found.order.status}`;
  return html`<section class="order" aria-labelledby="order-title">
    <div class="order-head">
      <h2 id="order-title" tabindex="-1" ref=${heading}><span class="faint">Order</span> <bdi>${id}</bdi></h2>
      <${Link} to=${{ ...view, order: null }} class="close">Close<//>
    </div>
    <p class="unseen" role="status">${status}</p>
    <${Content} found=${found} stats=${stats} />
  </section>`;
}

function Content({ found, stats }) {
  const moment = useNow();
  if (!found) return html`<p class="faint">Reading …</p>`;
  const { order, events, look, trouble } = found;
  if (trouble?.status === 404) {
    return html`<p><strong>There is no order with this id.</strong> Ids are compared exactly, case and all.</p>`;
  }
  if (!order) return html`<p class="bad">It cannot be read: ${trouble.message}. It is tried again.</p>`;
  return html`
    ${trouble && html`<p class="bad">Not up to date: ${trouble.message}.</p>`}
    <p class="lead"><${Status} of=${order.status} /> <span>since ${local(order.updated_at, moment)}, ${ago(order.updated_at, moment)}</span></p>
    <p>${situation(order, moment)}</p>
    ${order.attention && html`<div class="attention">
      <h3>Why it needs looking at</h3>
      <p>${troubleOf(order.attention)}</p>
      <p class="faint">Since ${local(order.attention.since, moment)}, ${ago(order.attention.since, moment)}.</p>
    </div>`}
    <h3>What happens next</h3>
    ${next(order, look, stats, moment).map((words) => html`<p>${words}</p>`)}
    <h3>What happened</h3>
    <${Timeline} events=${events} />
    <h3>In a shell</h3>
    ${commands(order, location.origin).map((command) => html`<${Command} key=${command.line} ...${command} />`)}
  `;
}

function Timeline({ events }) {
  return html`<ol class="timeline">
    ${events.map((event, at) => html`<li key=${event.seq} class=${event.to}>
      <time datetime=${event.at} title=${event.at}>${exact(event.at)}</time>
      <span>${EVENTS[event.reason] ?? event.reason}${event.to !== event.from && html` <${Status} of=${event.to} />`}</span>
      ${at > 0 && html`<span class="faint">after ${span(secondsSince(events[at - 1].at, Date.parse(event.at)))}</span>`}
    </li>`)}
  </ol>`;
}

// A command to copy, by hand where the browser does not let a page do it: it does on this machine
// and over HTTPS alone.
function Command({ does, line }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(line);
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return html`<div class="command">
    <p>${does}</p>
    <div><code>${line}</code>
      ${navigator.clipboard && html`<button type="button" onClick=${copy} aria-label=${isCopied ? "Copied" : `Copy: ${line}`}>${isCopied ? "Copied" : "Copy"}</button>`}</div>
  </div>`;
}
