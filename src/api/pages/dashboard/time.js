// The time, as the server has it. All that is told of is told by the server's clock, and the one of
// the machine that shows it may be wrong.
import { useEffect, useState } from "./preact-htm.js";

let offset = 0;

// The server has said what time it was when it answered.
export function heard(at) {
  offset = Date.parse(at) - Date.now();
}

// Milliseconds since 1970.
export function now() {
  return Date.now() + offset;
}

// Seconds from a moment in RFC 3339 until now; negative if it is to come.
export function secondsSince(at, moment = now()) {
  return (moment - Date.parse(at)) / 1000;
}

const ticking = new Set();
setInterval(() => {
  if (!document.hidden) for (const tick of ticking) tick();
}, 1000);

// The time, told anew every second: what uses it says how long ago something was.
export function useNow() {
  const [moment, setMoment] = useState(now());
  useEffect(() => {
    const tick = () => setMoment(now());
    ticking.add(tick);
    return () => ticking.delete(tick);
  }, []);
  return moment;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

// In the reader's own time zone; the day too, if it is not today.
export function local(at, moment = now()) {
  const date = new Date(at);
  const time = clock.format(date);
  return day.format(date) === day.format(moment) ? time : `${day.format(date)}, ${time}`;
}

// To the millisecond, to be found in a log.
export function exact(at) {
  return `${local(at)}.${at.slice(20, 23)}`;
}

// Hours and minutes alone.
export function minute(at) {
  return clock.format(new Date(at)).slice(0, 5);
}
