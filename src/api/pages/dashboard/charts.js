// Throughput: orders created and settled in each minute of the last hour, and the time to settle. A
// table has the same figures.
/* global uPlot */
import { html, useEffect, useRef, useState } from "./preact-htm.js";
import { local, minute } from "./time.js";
import { counted, failedShare, number, span } from "./words.js";

const HEIGHT = 130;

export function Charts({ known }) {
  const { stats, error } = known;
  if (!stats) return html`<section class="charts"><h2>The last hour</h2></section>`;
  const { per_minute: minutes, time_to_settle: time } = stats;
  const failed = failedShare(stats);
  const settled = html`<b>${counted(time.orders, "order")}</b> settled`;
  return html`<section class=${`charts ${error ? "stale" : ""}`} aria-labelledby="pace-title">
    <h2 id="pace-title">The last hour</h2>
    <${Minutes} minutes=${minutes} />
    <p class="times">${time.orders === 0
      ? "No order was settled."
      : html`${settled}: half of them within <b>${span(time.p50_seconds)}</b> of their creation, 95 of 100 within <b>${span(time.p95_seconds)}</b>.`}${failed !== null && html` Of all settled orders, <b>${failed}</b> are FAILED.`}</p>
  </section>`;
}

function Minutes({ minutes }) {
  const [hovered, setHovered] = useState(null);
  const shown = minutes[hovered] ?? minutes.at(-1);
  const created = minutes.reduce((sum, { created: count }) => sum + count, 0);
  const settled = minutes.reduce((sum, { settled: count }) => sum + count, 0);
  const summary = `${counted(created, "order")} created and ${number(settled)} settled in the last hour`;
  return html`<figure>
    <figcaption>
      <span class="legend"><i class="swatch created"></i>created <b>${number(shown.created)}</b></span>
      <span class="legend"><i class="swatch settled"></i>settled <b>${number(shown.settled)}</b></span>
      <span class="faint">${shown === minutes.at(-1) ? "in this minute so far" : `in the minute from ${minute(shown.at)}`}</span>
    </figcaption>
    <${Plot} minutes=${minutes} summary=${summary} hover=${setHovered} />
    <details>
      <summary>As a table</summary>
      <div class="scroll" tabindex="0" role="region" aria-label="Created and settled per minute">
        <table>
          <caption>${summary}</caption>
          <thead><tr><th scope="col">Minute from</th><th scope="col">Created</th><th scope="col">Settled</th></tr></thead>
          <tbody>${[...minutes].reverse().map((of) => html`<tr key=${of.at}>
            <th scope="row"><time datetime=${of.at} title=${local(of.at)}>${minute(of.at)}</time></th>
            <td>${number(of.created)}</td><td>${number(of.settled)}</td>
          </tr>`)}</tbody>
        </table>
      </div>
    </details>
  </figure>`;
}

// Returns a colour of the style sheet in the current scheme, because the canvas does not support
// light-dark().
function colour(element, name) {
  element.style.color = `var(--${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

function options(element, width, hover) {
  const line = colour(element, "line");
  const axis = { stroke: colour(element, "faint"), grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const stepped = uPlot.paths.stepped({ align: 1 });
  const series = (name, more) => ({ label: name, stroke: colour(element, name), width: 1.5, paths: stepped, points: { show: false }, ...more });
  return {
    width,
    height: HEIGHT,
    // The last label is below the end of the axis.
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { setScale: false }, points: { size: 7 } },
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(high * 1.05, 4)] } },
    axes: [
      { ...axis, space: 60, size: 28, values: (_, ticks) => ticks.map((at) => minute(at * 1000)) },
      { ...axis, space: 32, size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] },
    ],
    series: [{}, series("created", { fill: colour(element, "created-faint") }), series("settled", { dash: [6, 3] })],
    hooks: { setCursor: [({ cursor }) => hover(cursor.idx ?? null)] },
  };
}

function Plot({ minutes, summary, hover }) {
  const container = useRef();
  const plot = useRef();
  const values = useRef();
  // A minute is drawn up to the start of the next, so the last one needs a next one.
  const drawn = [...minutes, { ...minutes.at(-1), at: new Date(Date.parse(minutes.at(-1).at) + 60_000) }];
  values.current = [
    drawn.map(({ at }) => new Date(at).getTime() / 1000),
    drawn.map(({ created }) => created),
    drawn.map(({ settled }) => settled),
  ];
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      const element = container.current;
      plot.current = new uPlot(options(element, element.clientWidth, hover), values.current, element);
    };
    const fit = new ResizeObserver(([{ contentRect }]) => plot.current?.setSize({ width: contentRect.width, height: HEIGHT }));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    draw();
    fit.observe(container.current);
    scheme.addEventListener("change", draw);
    return () => {
      fit.disconnect();
      scheme.removeEventListener("change", draw);
      plot.current.destroy();
    };
  }, []);
  useEffect(() => plot.current.setData(values.current), [minutes]);
  return html`<div class="plot" ref=${container} role="img" aria-label=${`Chart: ${summary}`}></div>`;
}
