// Sentences about the state, from plain values. Nothing here renders or sends requests.
//
// A sentence is an array of texts, and of { text, to } for links to a view.
import { START, filtered } from "./address.js";
import { secondsSince } from "./time.js";

const OPEN = filtered({ statuses: ["CREATED", "PROCESSING"] });

const numbers = new Intl.NumberFormat("en-GB");

export function number(value) {
  return numbers.format(value);
}

export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

// Formats a duration, rounded to two significant digits.
export function span(seconds) {
  if (seconds < 0.95) return `${Math.max(seconds, 0).toFixed(seconds < 0.095 ? 2 : 1)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return wholeSpan(seconds);
}

// Like `span`, but in whole units, for texts that are updated every second.
export function wholeSpan(seconds) {
  if (seconds < 119.5) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7170) return `${Math.round(seconds / 60)} min`;
  if (seconds < 171_000) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

export function ago(at, moment) {
  const seconds = secondsSince(at, moment);
  return seconds < 1 ? "just now" : `${wholeSpan(seconds)} ago`;
}

export function until(at, moment) {
  const seconds = -secondsSince(at, moment);
  return seconds < 1 ? "now" : `in ${wholeSpan(seconds)}`;
}

function lasting(at, moment) {
  return wholeSpan(secondsSince(at, moment));
}

export function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  const power = Math.min(count ? Math.floor(Math.log10(count) / 3) : 0, units.length - 1);
  const value = count / 1000 ** power;
  return `${value < 10 && power ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

export function rate(perSecond) {
  return perSecond < 10 ? String(Number(perSecond.toFixed(1))) : number(Math.round(perSecond));
}

export function openOrders(stats) {
  return stats.orders.CREATED + stats.orders.PROCESSING;
}

export function attentionTotal(stats) {
  return Object.values(stats.attention).reduce((sum, count) => sum + count, 0);
}

// Returns the worst problem in a few words, and its level: good, warn or bad.
export function verdict(stats) {
  const { database, upstream, reconciler } = stats;
  const { operator, itself } = stats.attention_by;
  if (database.status !== "ok") return { level: "bad", words: "Orders cannot be written" };
  if (reconciler.status === "none") return { level: "bad", words: "No reconciler runs" };
  if (reconciler.status === "overdue") return { level: "bad", words: "The reconciler has stopped" };
  if (upstream.status === "down") return { level: "bad", words: "The upstream is down" };
  if (upstream.status === "up" && upstream.detail) return { level: "warn", words: "The upstream throttles requests" };
  if (operator > 0) return { level: "warn", words: `${counted(operator, "order needs", "orders need")} an operator` };
  if (stats.attention.upstream_unreachable > 0) return { level: "warn", words: "The upstream answers for some orders only" };
  if (upstream.status === "unknown") return { level: "good", words: "Not known yet whether the upstream answers" };
  // Without a number: a new one would be announced every two seconds.
  return { level: "good", words: itself > 0 ? "Everything runs, some orders are delayed" : "Everything runs" };
}

// Returns a sentence for each dependency: its state, since when, and the effect on orders.
export function signs(stats, moment) {
  return [
    { name: "Database", ...database(stats, moment) },
    { name: "Upstream", ...upstream(stats, moment) },
    { name: "Reconciler", ...reconciler(stats, moment) },
  ];
}

function database({ database: { status, since, detail, bytes: size, wal_bytes: log } }, moment) {
  const time = since ? ` for ${lasting(since, moment)}` : "";
  if (status !== "ok") return { level: "bad", words: [`It has failed${time}: ${sentence(detail)} Creations are answered with 503.`] };
  const ofLog = log > 0 ? `, ${bytes(log)} of it in its log` : "";
  return { level: "good", words: [`It has taken orders${time}. It has ${bytes(size + log)} on disk${ofLog}.`] };
}

function upstream(stats, moment) {
  const { status, since, detail, life } = stats.upstream;
  if (status === "unknown") return { level: "quiet", words: ["It is not known yet whether it answers."] };
  if (status === "down") {
    // An error is an answer, but not a usable one.
    const silence = /\banswered\b/.test(detail) ? "has given no usable answer" : "has not answered";
    return { level: "bad", words: [`The upstream ${silence} for ${lasting(since, moment)}: ${sentence(detail)} `, ...waiting(stats, moment)] };
  }
  const words = [`It has answered for ${lasting(since, moment)}${detail ? `, but ${sentence(detail)}` : "."} `];
  const { starts_per_second: pace, reason, in_flight: inFlight, window, wait_seconds: wait, resting_until: rest } = stats.pace;
  if (life.expected_seconds !== null) {
    words.push(`It restarts about every ${wholeSpan(life.expected_seconds)}; `);
    words.push(`${restarted(stats.restarts.last_hour)} in the last hour. `);
  } else if (stats.restarts.last_hour) {
    words.push(`It has lost processes: ${restarted(stats.restarts.last_hour)} in the last hour. `);
  }
  if (rest !== null && secondsSince(rest, moment) < 0) {
    words.push(`It has requested a pause (Retry-After): nothing is started for ${wholeSpan(-secondsSince(rest, moment))}. `);
  }
  if (pace !== null && reason) words.push(`The start rate is reduced to ${rate(pace)}/s: ${sentence(reason)} `);
  // While the window is full, no wait is estimated.
  if (wait === null && window !== null && inFlight >= window && stats.orders.CREATED) {
    words.push(`No order is started until a process has ended: at most ${number(window)} processes run at once, because the upstream forgets them when it crashes. `);
  }
  if (pace !== null && wait > LONG_WAIT_SECONDS) {
    words.push(`${counted(stats.orders.CREATED, "order waits", "orders wait")} to be started, about ${wholeSpan(wait)} or more at ${rate(pace)} starts/s.`);
  }
  const isFailing = detail !== null || stats.attention.upstream_unreachable > 0;
  return { level: isFailing ? "warn" : "good", words };
}

function restarted(count) {
  return count ? `${counted(count, "order was", "orders were")} started again` : "no order was started again";
}

// Returns the number of waiting orders, and the age of the oldest.
function waiting(stats, moment) {
  const open = openOrders(stats);
  if (open === 0) return ["No order waits for it."];
  const many = { text: counted(open, "order"), to: OPEN };
  const verb = open === 1 ? " waits" : " wait";
  if (!stats.oldest_open) return [many, `${verb}.`];
  const { id, created_at: at } = stats.oldest_open;
  const oldest = { text: open === 1 ? "for" : "the oldest for", to: { ...START, order: id } };
  return [many, `${verb}, `, oldest, ` ${lasting(at, moment)}.`];
}

// Shorter waits for a start are not mentioned.
const LONG_WAIT_SECONDS = 10;

// With a shorter interval between passes, the time of each would only flicker.
const DENSE_SECONDS = 3;

function reconciler(stats, moment) {
  const { status, since, detail, last_pass_at: last, next_pass_at: next, next_look_at: poll } = stats.reconciler;
  if (status === "none") {
    const ended = since ? `, ${ago(since, moment)}` : "";
    return { level: "bad", words: [`${sentence(capital(detail) + ended)} Orders are stored, but do not proceed until one runs.`] };
  }
  const leads = since ? `It has led for ${lasting(since, moment)}` : "It leads";
  const lastly = last ? `The last pass ended ${ago(last, moment)}` : "No pass has ended yet";
  if (status === "overdue") {
    // After the clock was set back, the last pass is ahead of it.
    const past = last && secondsSince(last, moment) < 0 ? "" : `${lastly}. `;
    return { level: "bad", words: [`${past}${sentence(capital(detail))} Orders do not proceed until it runs again.`] };
  }
  const words = [];
  // The heartbeat is written every few seconds: with a shorter interval, both times are outdated.
  const isDense = last && next && Math.abs(secondsSince(last, Date.parse(next))) <= DENSE_SECONDS;
  if (isDense) words.push(`${leads}, with a pass every second or so. `);
  else if (next && secondsSince(next, moment) > 1) words.push(`${lastly}; the next was due ${ago(next, moment)}. `);
  else words.push(`${lastly}${next ? `; the next is due ${until(next, moment)}` : ""}. `);
  const { PROCESSING } = stats.orders;
  if (PROCESSING && stats.upstream.status === "up") {
    const lost = stats.attention.process_lost;
    const missing = lost > 0 ? `; ${counted(lost, "process is", "processes are")} lost` : "";
    const most = stats.pace.window === null ? "" : ` (limit: ${number(stats.pace.window)})`;
    const when = poll && secondsSince(poll, moment) < -1 ? ` The next poll is ${until(poll, moment)}.` : "";
    words.push(`${counted(PROCESSING, "order is", "orders are")} PROCESSING${most}${missing}.${when}`);
  }
  return { level: "good", words };
}

// Returns the share of FAILED among settled orders, or null if none is settled.
export function failedShare({ orders: { FULFILLED, FAILED } }) {
  const settled = FULFILLED + FAILED;
  if (settled === 0) return null;
  const share = (100 * FAILED) / settled;
  if (FAILED > 0 && share < 1) return "less than 1 %";
  if (FULFILLED > 0 && share > 99) return "more than 99 %";
  return `${Math.round(share)} %`;
}

export function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// Returns a text with a full stop.
export function sentence(text) {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

// Notes in lists about events that say more than their status.
export const REMARKABLE = {
  adopted: "an existing process was adopted",
  restarted: "its process was lost; it was started again",
  failed_by_policy: "its process was lost; failed by the policy",
  failed_by_operator: "its process was lost; failed by an operator",
};

// Notes in lists about attention.
export const ATTENTION = {
  start_refused: "start refused",
  upstream_unreachable: "no answer",
  unknown_status: "unknown status",
  process_lost: "process lost",
  max_starts: "held",
};
