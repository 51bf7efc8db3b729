// The server's time. All times shown are by the server's clock; the browser's may be wrong.
import { useEffect, useState } from "./preact-htm.js";

let offset = 0;

// Sets the server's time, from a response that just arrived.
export function setServerTime(at) {
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

// The current time, updated every second, for texts with relative times.
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

// Formats a time in the reader's time zone, with the day if it is not today.
export function local(at, moment = now()) {
  const date = new Date(at);
  const time = clock.format(date);
  return day.format(date) === day.format(moment) ? time : `${day.format(date)}, ${time}`;
}

// Formats a time to the millisecond, to find it in a log.
export function exact(at) {
  return `${local(at)}.${at.slice(20, 23)}`;
}

// Formats hours and minutes.
export function minute(at) {
  return clock.format(new Date(at)).slice(0, 5);
}
