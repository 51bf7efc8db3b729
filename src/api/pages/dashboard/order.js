// One order, in the sentences of /order/{id}/explain.
import { Link } from "./address.js";
import { IS_DEV } from "./dev.js";
import { html, useEffect, useRef, useState } from "./preact-htm.js";
import { ask, orderPath } from "./server.js";
import { Status } from "./state.js";
import { feed } from "./stream.js";
import { exact, local, secondsSince, useNow } from "./time.js";
import { ago, span } from "./words.js";

// Minimum interval between two reads.
const PAUSE_MS = 500;

// Maximum intervals, because the sentences contain durations.
const OPEN_MS = 2000;
const SETTLED_MS = 30_000;

function isSettled({ order }) {
  return order.status === "FULFILLED" || order.status === "FAILED";
}

// The current explanation of an order.
function useExplained(id) {
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
      // The feed restarts when the page is shown again.
      if (document.hidden) return;
      isReading = true;
      isOld = false;
      let wait = OPEN_MS;
      try {
        const explained = await ask(`${orderPath(id)}/explain`, { signal });
        setFound({ explained, error: null });
        if (isSettled(explained)) wait = SETTLED_MS;
      } catch (error) {
        if (signal.aborted) return;
        setFound((before) => ({ ...before, error: error }));
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

export function Order({ view }) {
  const id = view.order;
  const found = useExplained(id);
  const heading = useRef();
  useEffect(() => {
    heading.current.focus({ preventScroll: true });
    heading.current.scrollIntoView({ block: "nearest" });
  }, [id]);
  const status = found?.explained && `${id} is ${found.explained.order.status}`;
  return html`<section class="order" aria-labelledby="order-title">
    <div class="order-head">
      <h2 id="order-title" tabindex="-1" ref=${heading}><span class="faint">Order</span> <bdi>${id}</bdi></h2>
      <${Link} to=${{ ...view, order: null }} class="close">Close<//>
    </div>
    <p class="unseen" role="status">${status}</p>
    <${Content} found=${found} />
  </section>`;
}

function Content({ found }) {
  const moment = useNow();
  if (!found) return html`<p class="faint">Reading …</p>`;
  const { explained, error } = found;
  if (error?.status === 404) return html`<p><strong>There is no order with this id.</strong> Ids are compared exactly, including case.</p>`;
  if (!explained) return html`<p class="bad">It cannot be read: ${error.message}. It is retried.</p>`;
  const { order, summary, events, observed, why, next, advice } = explained;
  return html`
    ${error && html`<p class="bad">Not up to date: ${error.message}.</p>`}
    <p class="lead"><${Status} of=${order.status} /> <span>since ${local(order.updated_at, moment)}, ${ago(order.updated_at, moment)}</span></p>
    <p>${summary}</p>
    ${order.attention ? html`<div class="attention"><${Sentences} title=${order.attention.by === "operator" ? "Why it needs an operator" : "Why it does not proceed"} of=${[...why, ...advice]} /></div>` : html`<${Sentences} title="Why it is where it is" of=${why} />`}
    <${Sentences} title="What happens next" of=${next} />
    <h3>What happened</h3>
    <${Timeline} events=${events} />
    <${Sentences} title="What was observed" of=${observed} />
    <h3>In a shell</h3>
    ${reading(explained).map((command) => html`<${Command} key=${command.command} ...${command} />`)}
    ${explained.commands.length > 0 && html`<h3>In a shell where the service runs</h3>
      ${!IS_DEV && html`<p class="faint">In the folder of <code>orders.db</code>, or with <code>--database-url</code> and the path of the database.</p>`}
      ${explained.commands.map((command) => html`<${Command} key=${command.command} ...${command} />`)}`}
  `;
}

function Sentences({ title, of }) {
  return of.length > 0 && html`<h3>${title}</h3>${of.map((text) => html`<p>${text}</p>`)}`;
}

function Timeline({ events }) {
  return html`<ol class="timeline">
    ${events.map((event, at) => html`<li key=${at}>
      <time datetime=${event.at} title=${event.at}>${exact(event.at)}</time>
      <span>${event.text}</span>
      ${at > 0 && html`<span class="faint">after ${span(secondsSince(events[at - 1].at, Date.parse(event.at)))}</span>`}
    </li>`)}
  </ol>`;
}

// Returns commands that only read, for any machine.
function reading(explained) {
  const url = location.origin + orderPath(explained.order.id);
  const commands = [{ effect: "Reads this order.", command: `curl -sS ${url}` }];
  if (!isSettled(explained)) commands.push({ effect: "Waits until it is settled, for a minute at most.", command: `curl -sS ${url} -H 'Prefer: wait=60'` });
  return commands;
}

// A command with a button that copies it, which browsers allow only on this machine and over HTTPS.
function Command({ effect, command: line }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => {
    const copied = () => {
      setCopied(true);
      setTimeout(() => setCopied(false), 2000);
    };
    // The user may deny it. The button then stays as it is.
    navigator.clipboard.writeText(line).then(copied, () => {});
  };
  return html`<div class="command">
    <p>${effect}</p>
    <div><code>${line}</code>
      ${navigator.clipboard && html`<button type="button" onClick=${copy} aria-label=${isCopied ? "Copied" : `Copy: ${line}`}>${isCopied ? "Copied" : "Copy"}</button>`}</div>
  </div>`;
}
