// What is so, in whole sentences. Nothing here draws or asks: values go in, words come out.
//
// A sentence is an array of texts and of { text, to } for a part that leads to a view.
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

// A length of time as people say it: the two digits that matter.
export function span(seconds) {
  if (seconds < 0.95) return `${Math.max(seconds, 0).toFixed(seconds < 0.095 ? 2 : 1)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return wholeSpan(seconds);
}

// The same in whole seconds, for what is told anew every second.
export function wholeSpan(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
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

// The worst of it in a few words, and how bad it is: good, warn or bad.
export function verdict(stats) {
  const { database, upstream, reconciler } = stats;
  const held = attentionTotal(stats) - stats.attention.upstream_unreachable;
  if (database.status !== "ok") return { level: "bad", words: "Orders cannot be written" };
  if (reconciler.status === "none") return { level: "bad", words: "No reconciler runs" };
  if (reconciler.status === "overdue") return { level: "bad", words: "The reconciler has stopped" };
  if (upstream.status === "down") return { level: "bad", words: "The upstream does not answer" };
  if (held > 0) return { level: "warn", words: `${counted(held, "order needs", "orders need")} looking at` };
  if (attentionTotal(stats) > 0) return { level: "warn", words: "The upstream answers for some orders only" };
  return { level: "good", words: "All is well" };
}

// Each thing that orders depend on: how it is, since when, and what that means for them.
export function signs(stats, moment) {
  return [
    { name: "Database", ...database(stats, moment) },
    { name: "Upstream", ...upstream(stats, moment) },
    { name: "Reconciler", ...reconciler(stats, moment) },
  ];
}

function database({ database: { status, since, detail, bytes: size, wal_bytes: log } }, moment) {
  const time = since ? ` for ${lasting(since, moment)}` : "";
  if (status !== "ok") return { level: "bad", words: [`It has failed${time}: ${sentence(detail)} No order is acknowledged, and none is lost.`] };
  const room = log > 64e6 ? `, and ${bytes(log)} more in its log` : "";
  return { level: "good", words: [`It has taken orders${time}. It has ${bytes(size)} on disk${room}.`] };
}

function upstream(stats, moment) {
  const { status, since, detail, life } = stats.upstream;
  if (status === "unknown") return { level: "quiet", words: ["It was not asked for anything yet."] };
  if (status === "down") {
    // An error is an answer, and no use.
    const silence = /\banswered\b/.test(detail) ? "has given no usable answer" : "has not answered";
    return { level: "bad", words: [`The upstream ${silence} for ${lasting(since, moment)}: ${sentence(detail)} `, ...waiting(stats, moment)] };
  }
  const words = [`It has answered for ${lasting(since, moment)}. `];
  const { starts_per_second: pace, ceiling, reason } = stats.pace;
  if (life.expected_seconds !== null) {
    words.push(`It lives about ${wholeSpan(life.expected_seconds)}${pace === null ? "" : ` at ${rate(pace)} starts/s`}; `);
    words.push(`${restarted(stats.restarts.last_hour)} in the last hour. `);
  } else if (stats.restarts.last_hour) {
    words.push(`It has forgotten processes: ${restarted(stats.restarts.last_hour)} in the last hour. `);
  }
  if (pace !== null && ceiling !== null && pace < ceiling) {
    const told = life.expected_seconds === null ? `The pace of ${rate(pace)} starts/s is` : "The pace is";
    words.push(`${told} below its ceiling of ${rate(ceiling)}${reason ? `: ${sentence(reason)}` : "."}`);
  }
  const isTroubled = stats.attention.upstream_unreachable > 0;
  return { level: isTroubled ? "warn" : "good", words };
}

function restarted(count) {
  return count ? `${counted(count, "order was", "orders were")} started again` : "no order was started again";
}

// How many wait, and for how long at most.
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

// A schedule that is so dense that telling of each look would only flicker.
const DENSE_SECONDS = 3;

function reconciler(stats, moment) {
  const { status, since, detail, last_pass_at: last, next_pass_at: next, next_look_at: look } = stats.reconciler;
  if (status === "none") return { level: "bad", words: [`${sentence(capital(detail))} Orders are kept, and nothing else happens to them.`] };
  const leads = since ? `It has led for ${lasting(since, moment)}` : "It leads";
  const lastly = last ? `It looked at orders ${ago(last, moment)}` : "It has not looked at any order yet";
  if (status === "overdue") {
    const late = next ? `, and the next look was due ${ago(next, moment)}` : "";
    return { level: "bad", words: [`${lastly}${late}. Nothing happens to orders until one runs again.`] };
  }
  const words = [];
  const isDense = last && next && secondsSince(last, Date.parse(next)) <= DENSE_SECONDS && secondsSince(last, moment) <= DENSE_SECONDS;
  const isAtIt = next && secondsSince(next, moment) > 1;
  if (isDense) words.push(`${leads}, and looks at what is due every second or so. `);
  else if (isAtIt) words.push(`${lastly}, and is looking at them now. `);
  else words.push(`${lastly}${next ? `; the next look is ${until(next, moment)}` : ""}. `);
  const { PROCESSING } = stats.orders;
  if (PROCESSING && stats.upstream.status === "up") {
    const when = look && secondsSince(look, moment) < -1 ? ` The processes that run are asked for ${until(look, moment)}.` : "";
    words.push(`${counted(PROCESSING, "process runs", "processes run")}${stats.pace.window === null ? "" : ` of ${number(stats.pace.window)} at most`}.${when}`);
  }
  return { level: "good", words };
}

export function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// What a detail says, with a full stop.
export function sentence(text) {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

// In a list, what an event says beyond the status that it led to.
export const REMARKABLE = {
  adopted: "a process that ran already was taken over",
  restarted: "its process was forgotten; it was started again",
  failed_by_policy: "its process was forgotten; the policy made it fail",
  failed_by_operator: "its process was forgotten; an operator made it fail",
};

// In a list, why an order needs looking at.
export const ATTENTION = {
  start_refused: "start refused",
  upstream_unreachable: "no answer",
  unknown_status: "unknown status",
  process_lost: "process lost",
  max_starts: "held",
};
