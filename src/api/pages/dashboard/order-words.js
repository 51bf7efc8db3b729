// One order in whole sentences: why it is where it is, what happens next and when, and what can be
// typed about it. Nothing here draws or asks.
import { ATTENTION, counted, rate, sentence, span, until, wholeSpan } from "./words.js";
import { secondsSince } from "./time.js";
import { orderPath } from "./server.js";

export function isSettled(order) {
  return order.status === "FULFILLED" || order.status === "FAILED";
}

// How it is, in a sentence.
export function situation(order, moment) {
  const took = span(secondsSince(order.created_at, Date.parse(order.updated_at)));
  const times = order.starts === 1 ? "once" : `${order.starts} times`;
  if (isSettled(order)) return `It took ${took} from its creation to its end. ${order.starts ? `It was started ${times}.` : "It was not started from here."}`;
  const starts = order.status === "CREATED" ? `A start was sent ${times}, and it is not known whether it had any effect.` : `It was started ${times}.`;
  return `It is open, for ${wholeSpan(secondsSince(order.created_at, moment))}. ${order.starts ? starts : "It was not started yet."}`;
}

export function trouble({ reason, detail }) {
  const whole = ATTENTION[reason]?.whole ?? `It needs looking at: ${reason}.`;
  return `${whole} ${sentence(detail[0].toUpperCase() + detail.slice(1))}`;
}

// What happens next, and when. `look` is the moment of the next look, as the server said.
export function next(order, look, stats, moment) {
  if (isSettled(order)) return ["Nothing: it is settled, and that never changes."];
  const { attention } = order;
  if (stats?.reconciler.status === "overdue" || stats?.reconciler.status === "none") {
    return ["Nothing, until a reconciler runs again."];
  }
  if (stats?.upstream.status === "down") {
    return [
      `The upstream is asked again ${stats.reconciler.next_pass_at ? until(stats.reconciler.next_pass_at, moment).replace(/^now$/, "within seconds") : "by itself"}, about one order for all. When it answers, this order goes on by itself.`,
      "Its status does not change before that: silence says nothing about its process.",
    ];
  }
  if (attention?.reason === "max_starts") return ["Nothing by itself, until someone decides, or --max-starts is raised."];
  if (attention?.reason === "process_lost" && !attention.next_attempt_at) {
    return ["It is looked for again in the next pass. If it is missing still, it goes as the reconciler's --lost-process says: it is started again, held, or made FAILED."];
  }
  // The policy is the reconciler's alone.
  if (attention?.reason === "process_lost") {
    return [`Under --lost-process hold: nothing by itself, until someone decides. Otherwise it goes on ${until(attention.next_attempt_at, moment).replace(/^now$/, "in the next pass")}.`];
  }
  if (attention?.next_attempt_at) return [`It is tried again by itself ${until(attention.next_attempt_at, moment)}.`];
  const when = look ? until(new Date(look).toISOString(), moment) : "soon";
  if (order.status === "CREATED") return [`Its process is started when its turn comes; the next look is ${when}.`, ...turn(stats)];
  const lasts = stats?.upstream.process_seconds;
  const usual = lasts ? ` A process lasts ${span(lasts)} on average.` : "";
  return [`Its process is asked for ${when}; when it has ended, the order is FULFILLED or FAILED.${usual}`];
}

function turn(stats) {
  const pace = stats?.pace.starts_per_second;
  const created = stats?.orders.CREATED ?? 0;
  if (!pace || created < 2) return [];
  return [`${counted(created, "order waits", "orders wait")} to be started, at ${rate(pace)} starts/s: that takes about ${span(created / pace)} for all.`];
}

// A word as a shell takes it.
function quoted(word) {
  return /^[\w./:-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

// What can be pasted into a shell, and what it does.
export function commands(order, origin) {
  const id = order.id.startsWith("-") ? `-- ${quoted(order.id)}` : quoted(order.id);
  const url = quoted(origin + orderPath(order.id));
  const all = [{ does: "Asks for this order", line: `curl -sS ${url}` }];
  if (!isSettled(order)) all.push({ does: "Waits for its end, for a minute at most", line: `curl -sS ${url} -H 'Prefer: wait=60'` });
  all.push({ does: "Tells more, on the machine that has the database", line: `order-service explain ${id}` });
  const reason = order.attention?.reason;
  if (reason === "process_lost" || reason === "max_starts" || reason === "start_refused") {
    all.push({ does: "Starts it again, which repeats the work if it was done", line: `order-service restart ${id}` });
  }
  if (order.status === "PROCESSING" && (reason === "process_lost" || reason === "max_starts")) {
    all.push({ does: "Settles it as FAILED, for ever", line: `order-service fail ${id}` });
  }
  return all;
}
