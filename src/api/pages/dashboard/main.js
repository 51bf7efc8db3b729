// The dashboard: reads the statistics every two seconds, follows the stream of events, and shows what
// the address says. It uses the public API alone, and in `order-service dev` the simulator's buttons.
import { useView } from "./address.js";
import { Charts } from "./charts.js";
import { Dev, IS_DEV } from "./dev.js";
import { List } from "./list.js";
import { Order } from "./order.js";
import { html, render, useEffect, useRef, useState } from "./preact-htm.js";
import { ask } from "./server.js";
import { Counts, State } from "./state.js";
import { feed } from "./stream.js";
import { heard, now } from "./time.js";
import { verdict } from "./words.js";

const POLL_MS = 2000;
// The program reads its whole journal before it first answers, which takes seconds if that is long.
const FIRST_PATIENCE_MS = 30_000;
const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

// The statistics: what was last read, and if they cannot be read now, why and since when.
function useStats() {
  const [known, setKnown] = useState({ stats: null, trouble: null, since: null });
  useEffect(() => {
    let timer = null;
    let isGone = false;
    let options = { patience: FIRST_PATIENCE_MS };
    const read = async () => {
      clearTimeout(timer);
      const begun = new Date(now()).toISOString();
      try {
        const stats = await ask("/stats", options);
        options = {};
        heard(stats.at);
        setKnown({ stats, trouble: null, since: null });
      } catch (error) {
        setKnown((before) => ({ ...before, trouble: error.message, since: before.since ?? begun }));
      }
      clearTimeout(timer);
      if (!isGone && !document.hidden) timer = setTimeout(read, POLL_MS);
    };
    // A page that no one looks at asks for nothing.
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

// What is said to those who do not see the page: only when it has become another.
function useVerdict({ stats, trouble }) {
  const words = trouble ? "The state cannot be read" : stats && verdict(stats).words;
  useEffect(() => {
    document.title = words ? `${words} · order service` : "Order service";
  }, [words]);
  return words;
}

function useMode() {
  const [mode, setMode] = useState(feed.mode);
  useEffect(() => feed.listen((news) => news.mode && setMode(news.mode)), []);
  return mode;
}

function Dashboard() {
  const view = useView();
  const known = useStats();
  const words = useVerdict(known);
  // A stream can be silent for a while before it is taken for dead.
  const streaming = useMode();
  const mode = known.trouble ? "off" : streaming;
  // Whoever closes an order goes on where they were: at its row, or at the list.
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

const place = document.getElementById("dashboard");
place.replaceChildren();
render(html`<${Dashboard} />`, place);
