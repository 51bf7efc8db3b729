// The verdict, the dependencies, and the counts, which link to the lists.
import { ALL, Link, START, STATUSES, filtered, sameList } from "./address.js";
import { html } from "./preact-htm.js";
import { local, secondsSince, useNow } from "./time.js";
import { ATTENTION, capital, counted, number, openOrders, signs, verdict, wholeSpan } from "./words.js";

export function State({ known }) {
  const moment = useNow();
  const { stats, error, since } = known;
  if (!stats) {
    return html`<section class="state" aria-labelledby="verdict">
      <h2 id="verdict" class=${error ? "bad" : "quiet"}>${error ? "The state cannot be read" : "Reading …"}</h2>
      ${error
        ? html`<p>${capital(error)}, since ${local(since, moment)}. It is retried every two seconds.</p>`
        : html`<p class="faint">The first time, the program reads its whole journal.</p>`}
    </section>`;
  }
  const { level, words } = verdict(stats);
  return html`<section class=${`state ${error ? "stale" : ""}`} aria-labelledby="verdict">
    ${error
      ? html`<h2 id="verdict" class="bad">The state cannot be read</h2>
        <p class="unread"><strong>${capital(error)}</strong>, since ${local(since, moment)}, for ${wholeSpan(secondsSince(since, moment))}.
          The grey parts are outdated. It is retried every two seconds.</p>`
      : html`<h2 id="verdict" class=${level}>${words}</h2>`}
    <dl class="signs">
      ${signs(stats, error ? Date.parse(stats.at) : moment).map((sign) => html`<div key=${sign.name} class=${sign.level}>
        <dt><${Mark} level=${sign.level} />${sign.name}</dt>
        <dd>${sign.words.map((part) => (part.to ? html`<${Link} to=${part.to}>${part.text}<//>` : part))}</dd>
      </div>`)}
    </dl>
  </section>`;
}

// A shape for each level, so that it does not depend on colour.
function Mark({ level }) {
  const shapes = {
    good: html`<circle cx="8" cy="8" r="5" />`,
    warn: html`<path d="M8 2 15 14H1Z" />`,
    bad: html`<path d="M3 3H13V13H3Z" />`,
    quiet: html`<circle cx="8" cy="8" r="4" class="hollow" />`,
  };
  return html`<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">${shapes[level]}</svg>`;
}

// Numbers of orders. Each links to its list.
export function Counts({ known, view }) {
  const { stats, error } = known;
  // Links are shown before their counts, so that nothing moves when those arrive.
  const count = (orders) => (stats ? number(orders(stats)) : "–");
  const all = ({ orders }) => Object.values(orders).reduce((sum, of) => sum + of, 0);
  const { operator = 0, itself = 0 } = stats?.attention_by ?? {};
  const reasons = Object.entries(stats?.attention ?? {}).filter(([, orders]) => orders > 0);
  const tiles = [
    { label: "Latest changes", value: null, to: START },
    { label: "All", value: count(all), to: ALL },
    { label: "Open", value: count(openOrders), to: filtered({ statuses: ["CREATED", "PROCESSING"] }) },
    ...STATUSES.map((status) => ({ label: status, value: count(({ orders }) => orders[status]), to: filtered({ statuses: [status] }), status })),
    { label: "Need an operator", value: count(({ attention_by: by }) => by.operator), to: filtered({ attention: "operator" }), needy: operator > 0 },
  ];
  return html`<nav class=${`counts ${error ? "stale" : ""}`} aria-label="Orders by status">
    <ul>
      ${tiles.map(({ label, value, to, status, needy: isNeedy }) => html`<li key=${label}>
        <${Link} to=${to} class=${isNeedy ? "needy" : ""} aria-current=${sameList(to, view) ? "page" : null}>
          <span class="value">${value ?? html`<${Newest} />`}</span>
          <span class="label">${status && html`<${Status} of=${status} bare />`}${label}</span>
        <//>
      </li>`)}
    </ul>
    ${reasons.length > 0 && html`<p class=${`reasons ${operator > 0 ? "held" : ""}`}>${operator > 0 && `${counted(operator, "order needs", "orders need")} an operator. `}${itself > 0 && html`<${Link} to=${filtered({ attention: "itself" })}>${counted(itself, "order proceeds by itself", "orders proceed by themselves")}<//>. `}${capital(reasons.map(([reason, orders]) => `${ATTENTION[reason]}: ${number(orders)}`).join(", "))}.</p>`}
  </nav>`;
}

function Newest() {
  return html`<svg class="newest" viewBox="0 0 24 16" aria-hidden="true"><path d="M2 3H22M2 8H16M2 13H10" /></svg>`;
}

// A status: its word and a shape of its own, or the shape alone beside a word.
export function Status({ of, bare }) {
  const shapes = {
    CREATED: html`<circle cx="8" cy="8" r="5" class="hollow" />`,
    PROCESSING: html`<circle cx="8" cy="8" r="5" class="hollow" /><path d="M8 3A5 5 0 0 1 8 13Z" />`,
    FULFILLED: html`<circle cx="8" cy="8" r="6" />`,
    FAILED: html`<path class="hollow" d="M3.5 3.5 12.5 12.5M12.5 3.5 3.5 12.5" />`,
  };
  const mark = html`<svg class=${`mark ${of}`} viewBox="0 0 16 16" aria-hidden="true">${shapes[of]}</svg>`;
  return bare ? mark : html`<span class="status">${mark}${of}</span>`;
}
