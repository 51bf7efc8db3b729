// The dashboard: reads the statistics every two seconds, follows the stream of events, and shows the
// view in the address. It uses the public API alone, and in `order-service dev` the simulator's buttons.
import { useView } from "./address.js";
import { Charts } from "./charts.js";
import { Dev, IS_DEV } from "./dev.js";
import { List } from "./list.js";
import { Order } from "./order.js";
import { html, render, useEffect, useRef, useState } from "./preact-htm.js";
import { ask } from "./server.js";
import { Counts, State } from "./state.js";
import { feed } from "./stream.js";
import { now, setServerTime } from "./time.js";
import { verdict } from "./words.js";

const POLL_MS = 2000;
// The program reads its whole journal before its first response, which may take seconds.
const FIRST_TIMEOUT_MS = 30_000;
const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

// The statistics as last read; if they cannot be read now, with the reason and its time.
function useStats() {
  const [known, setKnown] = useState({ stats: null, error: null, since: null });
  useEffect(() => {
    let timer = null;
    let isGone = false;
    let options = { timeout: FIRST_TIMEOUT_MS };
    const read = async () => {
      clearTimeout(timer);
      const begun = new Date(now()).toISOString();
      try {
        const stats = await ask("/stats", options);
        options = {};
        setServerTime(stats.at);
        setKnown({ stats, error: null, since: null });
      } catch (error) {
        setKnown((before) => ({ ...before, error: error.message, since: before.since ?? begun }));
      }
      clearTimeout(timer);
      if (!isGone && !document.hidden) timer = setTimeout(read, POLL_MS);
    };
    // A hidden page sends no requests.
    const follow = () => {
      if (document.hidden) return feed.stop();
      feed.start();
      read();
    };
    follow();
    document.addEventListener("visibilitychange", follow);
    return () => {
      isGone = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", follow);
    };
  }, []);
  return known;
}

// The verdict for screen readers, announced when it changes.
function useVerdict({ stats, error }) {
  const words = error ? "The state cannot be read" : stats && verdict(stats).words;
  useEffect(() => {
    document.title = words ? `${words} · order service` : "Order service";
  }, [words]);
  return words;
}

function useMode() {
  const [mode, setMode] = useState(feed.mode);
  useEffect(() => feed.listen((message) => message.mode && setMode(message.mode)), []);
  return mode;
}

function Dashboard() {
  const view = useView();
  const known = useStats();
  const words = useVerdict(known);
  // A dead stream is noticed only after a while.
  const streaming = useMode();
  const mode = known.error ? "off" : streaming;
  // Closing an order returns the focus to its row, or to the list.
  const opened = useRef(null);
  useEffect(() => {
    if (view.order === null && opened.current !== null) {
      const row = document.querySelector(`a[data-id="${CSS.escape(opened.current)}"]`);
      (row ?? document.getElementById("list-title"))?.focus();
    }
    opened.current = view.order;
  }, [view.order]);
  return html`
    <p class="unseen" role="status">${words}</p>
    <div class="top">
      <${State} known=${known} />
      <${Charts} known=${known} />
    </div>
    ${IS_DEV && html`<${Dev} />`}
    <${Counts} known=${known} view=${view} />
    <div class=${`work ${view.order === null ? "" : "has-order"}`} id="orders">
      <${List} view=${view} known=${known} mode=${mode} />
      ${view.order === null
        ? html`<p class="hint">Open an order to see what has happened to it, and what happens next.</p>`
        : html`<${Order} key=${view.order} view=${view} />`}
    </div>
    <p class="zone faint">${ZONE === "UTC" ? "Times are UTC." : `Times are those of ${ZONE}. Logs and the API have UTC.`}</p>
  `;
}

const root = document.getElementById("dashboard");
root.replaceChildren();
render(html`<${Dashboard} />`, root);
