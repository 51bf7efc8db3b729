// Buttons of `order-service dev`: they create orders, and break and repair the simulator. The page's meta
// element `dev` enables them.
import { html, useEffect, useState } from "./preact-htm.js";
import { ask, post } from "./server.js";
import { counted } from "./words.js";

const DEV = document.querySelector("meta[name=dev]").content;
export const IS_DEV = DEV !== "none";

const POLL_MS = 2000;
// Number of concurrent requests: a browser makes six, and the stream and the statistics need some.
const AT_ONCE = 3;

export function Dev() {
  const [message, setMessage] = useState("");
  return html`<section class="dev" aria-labelledby="dev-title">
    <div class="row"><h2 id="dev-title">Try it out</h2><span class="message" role="status">${message}</span></div>
    <${Create} say=${setMessage} />
    ${DEV === "simulator" && html`<${Simulator} say=${setMessage} />`}
  </section>`;
}

function Create({ say }) {
  const [isBusy, setBusy] = useState(false);
  const create = async (count) => {
    setBusy(true);
    const run = Date.now().toString(36).slice(-5);
    const ids = Array.from({ length: count }, (_, at) => (count === 1 ? `try-${run}` : `try-${run}-${at + 1}`));
    let created = 0;
    let failure = null;
    const some = async () => {
      for (let id = ids.pop(); id !== undefined && !failure; id = ids.pop()) {
        try {
          await post("/order", { id });
          created += 1;
        } catch (error) {
          failure ??= error;
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, some));
    if (failure) say(`Created ${counted(created, "order")}; then creation failed: ${failure.message}.`);
    else say(count === 1 ? `Created the order try-${run}.` : `Created ${created} orders.`);
    setBusy(false);
  };
  return html`<div class="row"><span class="what" id="create-label">Create</span>
    <div class="buttons" role="group" aria-labelledby="create-label">
      ${[1, 10, 100].map((count) => html`<button type="button" key=${count} aria-disabled=${isBusy}
        onClick=${() => isBusy || create(count)}>${counted(count, "order")}</button>`)}
    </div></div>`;
}

function Simulator({ say }) {
  const [state, setState] = useState(null);
  useEffect(() => {
    const read = () => document.hidden || ask("/dev/simulator").then(setState, () => {});
    read();
    const timer = setInterval(read, POLL_MS);
    return () => clearInterval(timer);
  }, []);
  if (!state) return null;
  const change = async (choice, words) => {
    try {
      setState(await post(`/dev/simulator/${choice}`));
      say(words);
    } catch (error) {
      say(`The change failed: ${error.message}.`);
    }
  };
  return html`<div class="row"><span class="what" id="break-label">Upstream</span>
    <div class="buttons" role="group" aria-labelledby="break-label">
      ${state.choices.map((choice) => html`<button type="button" key=${choice} aria-pressed=${state.now === choice}
        aria-describedby="break-now" onClick=${() => change(choice, `Faults: ${choice}.`)}>${choice}</button>`)}
      <button type="button" onClick=${() => change("crash", "The upstream has crashed and lost all processes.")}>crash now</button>
    </div>
    <p class="faint" id="break-now">${state.effect ?? "other faults, set at its control address"}${state.is_alive ? "" : "; it has crashed and is down"}</p>
  </div>`;
}
