// What happens from now on: one stream of the journal for the whole page. It is read with fetch and
// not with EventSource, which tells neither why a stream is refused nor where it begins, and gives
// up for good after a 503.
import { ask, askPage, trouble } from "./server.js";

// The server sends a comment every 15 s: a stream that is silent for longer is dead.
const SILENCE_MS = 40_000;
// A stream says at once where it begins. A proxy on the way may keep it back until it ends, which it
// does not.
const FIRST_MS = 3000;
// Between two attempts to connect.
const PAUSE_MS = 1000;
// Between two pages while there is no stream, and pages until it is tried again.
const POLL_MS = 3000;
const POLLS = 10;

// Tells its listeners { begin: seq } whenever it begins, when all that is known may be old, and
// { events } from then on. Its `mode` is "live", "polling" (no place for a stream), "blocked" (none gets through)
// or "off".
class Feed {
  mode = "off";
  #listeners = new Set();
  #running = null;
  #begun = null;

  // A listener that comes late is told where the feed has begun.
  listen(listener) {
    this.#listeners.add(listener);
    if (this.#begun !== null) listener({ begin: this.#begun });
    return () => this.#listeners.delete(listener);
  }

  start() {
    if (this.#running) return;
    this.#running = new AbortController();
    this.#run(this.#running.signal);
  }

  // A page that no one looks at holds no stream: there are not many places.
  stop() {
    this.#running?.abort();
    this.#running = null;
    this.#turn("off");
  }

  #tell(news) {
    if ("begin" in news) this.#begun = news.begin;
    if ("events" in news) this.#begun = news.events.at(-1).seq;
    for (const listener of this.#listeners) listener(news);
  }

  #turn(mode) {
    if (mode === this.mode) return;
    this.mode = mode;
    if (mode === "off") this.#begun = null;
    for (const listener of this.#listeners) listener({ mode });
  }

  async #run(signal) {
    while (!signal.aborted) {
      try {
        await this.#stream(signal);
      } catch (error) {
        if (signal.aborted) return;
        const mode = { "too-many-streams": "polling", blocked: "blocked" }[error.kind];
        if (mode) await this.#poll(mode, signal).catch(() => {});
      }
      if (signal.aborted) return;
      this.#turn("off");
      await pause(PAUSE_MS, signal);
    }
  }

  async #stream(signal) {
    const silence = new AbortController();
    const listen = AbortSignal.any([signal, silence.signal]);
    let isBegun = false;
    let timer = setTimeout(() => silence.abort(), FIRST_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      const answer = await fetch("/event?after=latest", { headers, signal: listen });
      if (!answer.ok) throw await trouble(answer);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        const messages = (rest + value).split("\n\n");
        rest = messages.pop();
        this.#take(messages);
        isBegun = true;
      }
    } catch (error) {
      throw !isBegun && silence.signal.aborted ? Object.assign(new Error("no stream gets through"), { kind: "blocked" }) : error;
    } finally {
      clearTimeout(timer);
    }
  }

  // The first event says where the stream begins.
  #take(messages) {
    const events = [];
    for (const message of messages) {
      const fields = new Map(message.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (!fields.has("data")) continue;
      const data = JSON.parse(fields.get("data"));
      if (fields.get("event") !== "position") events.push(data);
      else {
        this.#tell({ begin: data.seq });
        this.#turn("live");
      }
    }
    if (events.length) this.#tell({ events });
  }

  async #poll(mode, signal) {
    let last = await newest(signal);
    this.#tell({ begin: last });
    this.#turn(mode);
    for (let polls = 0; polls < POLLS; polls += 1) {
      await pause(POLL_MS, signal);
      for (let more = true; more;) {
        const { items, next } = await askPage(`/event?after=${last}&limit=1000`, { signal });
        if (items.length) this.#tell({ events: items });
        last = items.at(-1)?.seq ?? last;
        more = next !== null;
      }
    }
  }
}

// The number of the newest event. Only a stream tells it; without one it follows from the counts:
// a created order has one event, a processing one two, a settled one three, and each repeated start
// is one more. Then the journal is read to its end, should there be more.
async function newest(signal) {
  const { orders, restarts } = await ask("/stats", { signal });
  const { CREATED, PROCESSING, FULFILLED, FAILED } = orders;
  let last = CREATED + 2 * PROCESSING + 3 * (FULFILLED + FAILED) + restarts.total;
  for (let more = true; more;) {
    const { items, next } = await askPage(`/event?after=${last}&limit=1000`, { signal });
    last = items.at(-1)?.seq ?? last;
    more = next !== null;
  }
  return last;
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

export const feed = new Feed();
