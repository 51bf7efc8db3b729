// Future events: one stream of the journal for the whole page. It is read with fetch, because
// EventSource reports neither the reason of a refusal nor the start of the stream, and gives up after a
// 503.
import { ask, askPage, errorOf } from "./server.js";

// The server sends a comment every 15 s: a stream that is silent for longer is dead.
const SILENCE_MS = 40_000;
// A stream begins with its cursor at once, unless a proxy withholds it until its end.
const FIRST_MS = 3000;
// Pause before a reconnection.
const PAUSE_MS = 1000;
// Interval of pages without a stream, and number of pages before the stream is retried.
const POLL_MS = 3000;
const POLLS = 10;

// Emits { begin: seq } whenever it begins, when earlier data may be outdated, and then { events }. Its
// `mode` is "live", "polling" (no slot for a stream), "blocked" (a proxy withholds it) or "off".
class Feed {
  mode = "off";
  #listeners = new Set();
  #running = null;
  #begun = null;

  // A late listener gets the start of the feed.
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

  // A hidden page holds no stream, because slots are few.
  stop() {
    this.#running?.abort();
    this.#running = null;
    this.#setMode("off");
  }

  #emit(message) {
    if ("begin" in message) this.#begun = message.begin;
    if ("events" in message) this.#begun = message.events.at(-1).seq;
    for (const listener of this.#listeners) listener(message);
  }

  #setMode(mode) {
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
      this.#setMode("off");
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
      if (!answer.ok) throw await errorOf(answer);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        const messages = (rest + value).split("\n\n");
        rest = messages.pop();
        this.#parse(messages);
        isBegun = true;
      }
    } catch (error) {
      throw !isBegun && silence.signal.aborted ? Object.assign(new Error("no stream arrives"), { kind: "blocked" }) : error;
    } finally {
      clearTimeout(timer);
    }
  }

  // The first event has the start of the stream.
  #parse(messages) {
    const events = [];
    for (const message of messages) {
      const fields = new Map(message.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (!fields.has("data")) continue;
      const data = JSON.parse(fields.get("data"));
      if (fields.get("event") !== "position") events.push(data);
      else {
        this.#emit({ begin: data.seq });
        this.#setMode("live");
      }
    }
    if (events.length) this.#emit({ events });
  }

  async #poll(mode, signal) {
    let { newest_event: last } = await ask("/stats", { signal });
    this.#emit({ begin: last });
    this.#setMode(mode);
    for (let polls = 0; polls < POLLS; polls += 1) {
      await pause(POLL_MS, signal);
      for (let more = true; more;) {
        const { items, next } = await askPage(`/event?after=${last}&limit=1000`, { signal });
        if (items.length) this.#emit({ events: items });
        last = items.at(-1)?.seq ?? last;
        more = next !== null;
      }
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

export const feed = new Feed();
