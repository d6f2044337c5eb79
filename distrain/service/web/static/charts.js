/**
 * Draws the curves of runs with plotly; what it computes of their points is in points.js.
 *
 * A page has any number of <figure class="chart">, each with a <figcaption> and, inside it or right after it, a
 * <script type="application/json" class="chart-data"> with
 *
 *   {"better": "higher" | "lower" | null,
 *    "series": [{"name": "...", "number": 0, "start": 1764250000.0, "curve": {"step": [], "epoch": [], "time": [],
 *                "mean": [], "min": [], "max": [], "count": [], "is_exact": true}}]}
 *
 * `number` chooses colour and dashes, the same in all charts; `start` is where the time begins. Other scripts call
 * `charts.set(figure, data)` with such data. <div class="chart-controls"> gets the controls of all charts of the page,
 * and <div class="chart-legend"> their legend. No text of a run is given to plotly, which would read it as HTML.
 */
"use strict";

const charts = (() => {
  const { smooth, nearest, extremes, show, showSeconds, steps } = points;
  const COLOURS = 7;
  const DASHES = [["solid", ""], ["dash", "7 4"], ["dot", "2 3"]];
  const AXES = { step: "step", epoch: "epoch", time: "time since the start" };
  const FEW = 12; // points of a curve that are drawn as markers, too
  const view = { smoothing: 0, x: "step", log: false, band: true };
  const hidden = new Set(); // names of series
  const drawn = new Map(); // what belongs to a figure

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const startOf = (series) => series.start ?? series.curve.time.find(Number.isFinite);

  /** Return the position of each point on the x axis; null where it is not known. */
  function positions(chart, series) {
    if (view.x !== "time") return series.curve[view.x];
    const [seconds] = timeUnit(chart);
    return series.curve.time.map((time) => (Number.isFinite(time) ? (time - startOf(series)) / seconds : null));
  }

  /** Return the unit of an axis of time: the seconds in it, and its name. */
  function timeUnit(chart) {
    const longest = Math.max(0, ...chart.data.series.map((each) => (each.curve.time.at(-1) ?? 0) - startOf(each) || 0));
    if (longest > 7200) return [3600, "h"];
    return longest > 180 ? [60, "min"] : [1, "s"];
  }

  /** Return a colour of the style sheet as plotly takes it. */
  function colourOf(name) {
    const probe = make("span", { hidden: true });
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  }

  const faint = (colour, alpha) => colour.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
  const dashOf = (number) => DASHES[Math.floor(number / COLOURS) % DASHES.length];
  const visible = (chart) => chart.data.series.filter(({ name, curve }) => !hidden.has(name) && curve.step.length);

  function tracesOf(chart, series) {
    const { curve, number } = series;
    const x = positions(chart, series);
    const colour = colourOf(`series-${(number % COLOURS) + 1}`);
    const line = { color: colour, width: 1.75, dash: dashOf(number)[0], shape: "linear" };
    const common = { x, type: "scatter", hoverinfo: "none", showlegend: false };
    const traces = [];
    if (view.band && curve.count.some((count) => count > 1)) {
      const edge = { ...common, mode: "lines", line: { width: 0 } };
      traces.push({ ...edge, y: curve.min });
      traces.push({ ...edge, y: curve.max, fill: "tonexty", fillcolor: faint(colour, 0.16) });
    }
    const mode = curve.step.length <= FEW ? "lines+markers" : "lines";
    const marker = { color: colour, size: 5 };
    const pale = { ...common, mode: "lines", y: curve.mean, line: { ...line, width: 1 }, opacity: 0.3 };
    if (view.smoothing > 0) traces.push(pale);
    traces.push({ ...common, mode, marker, y: smooth(curve.mean, view.smoothing), line });
    return traces;
  }

  function layoutOf(chart) {
    const [muted, line] = [colourOf("muted"), colourOf("line")];
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11, color: muted };
    const axis = { gridcolor: line, zeroline: false, linecolor: line, ticks: "", fixedrange: false, automargin: true };
    const spike = { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: muted };
    const title = { text: AXES[view.x], font: { size: 11 }, standoff: 6 };
    const x = { ...axis, ...spike, title, showgrid: false, nticks: 7 };
    if (view.x === "time") x.ticksuffix = ` ${timeUnit(chart)[1]}`;
    return {
      font, xaxis: x, yaxis: { ...axis, type: view.log ? "log" : "linear", nticks: 6, exponentformat: "power" },
      margin: { l: 8, r: 10, t: 8, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "x", hoverdistance: -1, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      uirevision: `${view.x} ${view.log}`,
    };
  }

  function draw(figure) {
    const chart = drawn.get(figure);
    if (!chart.data || !chart.isNear) return;
    const traces = visible(chart).flatMap((series) => tracesOf(chart, series));
    const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
    Plotly.react(chart.plot, traces, layoutOf(chart), config);
    if (!chart.isBound) bind(figure, chart);
    summarise(figure, chart);
  }

  function bind(figure, chart) {
    chart.isBound = true;
    chart.plot.on("plotly_hover", (event) => point(chart, event.xvals[0]));
    chart.plot.on("plotly_unhover", () => (chart.tip.hidden = true));
    chart.plot.on("plotly_relayout", (change) => {
      if (!("xaxis.range[0]" in change || "xaxis.autorange" in change || "xaxis.range" in change)) return;
      const range = chart.plot.layout.xaxis.autorange ? null : chart.plot.layout.xaxis.range;
      chart.reset.hidden = range === null;
      const detail = range && stepsBetween(chart, range);
      figure.dispatchEvent(new CustomEvent("chart-zoom", { detail, bubbles: true }));
    });
    chart.plot.addEventListener("keydown", (event) => move(chart, event));
    chart.plot.addEventListener("blur", () => (chart.tip.hidden = true));
  }

  /** Return the steps of a part of the x axis; by epoch or time, those of the nearest points outside of it. */
  function stepsBetween(chart, [from, to]) {
    if (view.x === "step") return { first_step: Math.max(0, Math.floor(from)), last_step: Math.max(0, Math.ceil(to)) };
    const found = visible(chart).flatMap((series) => {
      const xs = positions(chart, series);
      const [first, last] = [nearest(xs, from), nearest(xs, to)];
      const outer = [Math.max(0, first - 1), Math.min(xs.length - 1, last + 1)];
      return first < 0 ? [] : outer.map((index) => series.curve.step[index]);
    });
    return found.length ? { first_step: Math.min(...found), last_step: Math.max(...found) } : null;
  }

  /** Show the values of all curves at the point nearest to x. */
  function point(chart, x) {
    const rows = visible(chart).map((series) => {
      const xs = positions(chart, series);
      const index = nearest(xs, x);
      return index < 0 ? null : { series, index, x: xs[index] };
    }).filter(Boolean);
    if (!rows.length) return;
    const { series, index } = rows[0];
    const epoch = series.curve.epoch[index];
    const place = [steps(series.curve, index), Number.isFinite(epoch) ? `epoch ${show(epoch, false)}` : ""];
    const time = series.curve.time[index];
    if (Number.isFinite(time)) place.push(showSeconds(time - startOf(series)));
    const lines = chart.data.series.length === 1 ? rows.flatMap(describe) : rows.map(nameValue);
    chart.tip.replaceChildren(make("p", { className: "is-head" }, place.filter(Boolean).join(", ")), ...lines);
    chart.tip.hidden = false;
    chart.at = rows[0].x;
    const axis = chart.plot._fullLayout.xaxis;
    const left = axis._offset + axis.d2p(rows[0].x);
    const space = chart.plot.clientWidth - chart.tip.offsetWidth;
    const beside = left + 16 <= space ? left + 16 : left - chart.tip.offsetWidth - 16;
    chart.tip.style.transform = `translate(${Math.max(0, beside)}px, ${chart.plot.offsetTop + 8}px)`;
  }

  /** Return a line of the tip: what is shown, and its value. */
  const tipLine = (text, value) => make("p", {}, make("span", {}, ...text), make("span", {}, value));

  function nameValue({ series: { name, number, curve }, index }) {
    return tipLine([swatch(number), ` ${name}`], show(curve.mean[index], curve.count[index] === 1));
  }

  function describe({ series: { curve }, index }) {
    const count = curve.count[index];
    if (count === 1) return [tipLine(["value"], show(curve.mean[index]))];
    const ends = [tipLine(["lowest"], show(curve.min[index])), tipLine(["highest"], show(curve.max[index]))];
    return [tipLine([`mean of ${count}`], show(curve.mean[index], false)), ...ends];
  }

  /** Move along the first curve with the arrow keys, and read out the value. */
  function move(chart, event) {
    const [series] = visible(chart);
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") chart.tip.hidden = true;
    if (!series || by === undefined) return;
    event.preventDefault();
    const xs = positions(chart, series);
    const now = chart.at === undefined ? -1 : nearest(xs, chart.at);
    const start = now < 0 && Number.isFinite(by) ? xs.length - 1 : now + by; // the keys begin at the newest point
    const next = Math.min(xs.length - 1, Math.max(0, start));
    if (xs[next] === null) return;
    point(chart, xs[next]);
    const words = [...chart.tip.querySelectorAll("p")].map((line) =>
      [...line.children].map((part) => part.textContent.trim()).filter(Boolean).join(" ") || line.textContent);
    chart.spoken.textContent = words.join(", ");
  }

  function summarise(figure, chart) {
    const word = { higher: "highest", lower: "lowest" }[chart.data.better] ?? "lowest";
    const rows = chart.data.series.filter(({ curve }) => curve.step.length).map(({ name, number, curve }) => {
      const { newest, best, value } = extremes(curve, chart.data.better);
      const isOne = curve.count[newest] === 1;
      return {
        name, number,
        newest: `${show(curve.mean[newest], isOne)}${isOne ? "" : ` (mean of ${curve.count[newest]})`}`,
        short: show(curve.mean[newest], false),
        shortBest: best < 0 ? "none" : show(value, false),
        at: steps(curve, newest),
        best: best < 0 ? "none" : show(value),
        bestAt: best < 0 ? "" : steps(curve, best),
        records: curve.count.reduce((sum, count) => sum + count, 0),
      };
    });
    const notes = [];
    const [one] = rows;
    if (rows.length === 1) notes.push(`newest ${one.short} at ${one.at}`, one.bestAt ? `${word} ${one.shortBest} at ${one.bestAt}` : "no value is finite");
    if (!rows.length) notes.push("no values yet");
    const isCut = visible(chart).some(({ curve }) => curve.min.some((value) => value !== null && value <= 0));
    if (view.log && isCut) notes.push("a log scale has no place for values of 0 and less");
    chart.reading.textContent = notes.join("; ");
    const caption = figure.querySelector("figcaption").firstChild.textContent.trim();
    chart.plot.setAttribute("aria-label", `Chart of ${caption} by ${AXES[view.x]}; arrow keys read out the values`);
    const head = ["", "newest", "at", word, "at", "records"].map((text) => make("th", { scope: "col" }, text || "run"));
    const body = rows.map((row) => make("tr", {}, make("th", { scope: "row" }, swatch(row.number), ` ${row.name}`),
      ...[row.newest, row.at, row.best, row.bestAt, row.records].map((text) => make("td", {}, String(text)))));
    chart.table.replaceChildren(
      make("caption", { className: "hidden" }, caption),
      make("thead", {}, make("tr", {}, ...head)),
      make("tbody", {}, ...body));
  }

  function swatch(number) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", `swatch series-${(number % COLOURS) + 1}`);
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(svg.namespaceURI, "line");
    Object.entries({ x1: 0, x2: 28, y1: 4, y2: 4, "stroke-dasharray": dashOf(number)[1] }).forEach(([key, value]) => {
      if (value !== "") line.setAttribute(key, value);
    });
    svg.append(line);
    return svg;
  }

  /** Build the parts of a figure once; it is drawn when it comes near the visible part of the page. */
  function prepare(figure) {
    const plot = make("div", { className: "plot", tabIndex: 0 });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", "Chart");
    const tip = make("div", { className: "chart-tip", hidden: true });
    tip.setAttribute("aria-hidden", "true");
    const spoken = make("p", { className: "hidden" });
    spoken.setAttribute("aria-live", "polite");
    const reset = make("button", { type: "button", className: "plain", hidden: true }, "Show all");
    reset.addEventListener("click", () => Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true }));
    const reading = make("p", { className: "reading" });
    const table = make("table");
    const scroll = make("div", { className: "scroll", tabIndex: 0 }, table);
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", "Values");
    figure.querySelector("figcaption").append(reset);
    figure.append(plot, reading, spoken, make("details", {}, make("summary", {}, "Values"), scroll), tip);
    drawn.set(figure, { plot, tip, spoken, reset, reading, table, data: null, isNear: false, isBound: false });
    nearby.observe(figure);
  }

  const nearby = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
      drawn.get(target).isNear = true;
      draw(target);
    });
    entries.filter((entry) => !entry.isIntersecting).forEach(({ target }) => (drawn.get(target).isNear = false));
  }, { rootMargin: "200px" });

  /** Give a figure its data, and draw it again. */
  function set(figure, data) {
    if (!drawn.has(figure)) prepare(figure);
    data.series.forEach((series, index) => (series.number ??= index));
    drawn.get(figure).data = data;
    draw(figure);
    showLegend();
  }

  const redraw = () => drawn.forEach((_, figure) => draw(figure));

  function showLegend() {
    const legend = document.querySelector(".chart-legend");
    if (!legend) return;
    const all = [...drawn.values()].flatMap(({ data }) => data?.series ?? []);
    const names = new Map(all.map(({ name, number }) => [name, number]));
    if (names.size === legend.childElementCount) return;
    legend.replaceChildren(...[...names].sort((a, b) => a[1] - b[1]).map(([name, number]) => {
      const button = make("button", { type: "button" }, swatch(number), name);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        redraw();
      });
      return button;
    }));
  }

  function addControls(place) {
    const smoothing = make("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0, name: "smoothing" });
    const value = make("output", { className: "number" }, "0.00");
    const options = Object.entries(AXES).map(([key, text]) => make("option", { value: key }, text));
    const x = make("select", { name: "x" }, ...options);
    const log = make("input", { type: "checkbox", name: "log" });
    const band = make("input", { type: "checkbox", name: "band", checked: true });
    const labels = [["Smoothing", smoothing, value], ["Across", x], [log, "Log scale"], [band, "Lowest to highest"]];
    place.classList.add("toolbar");
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", "All charts");
    place.replaceChildren(...labels.map((parts) => make("label", {}, ...parts)));
    place.addEventListener("input", () => {
      Object.assign(view, { smoothing: Number(smoothing.value), x: x.value, log: log.checked, band: band.checked });
      value.textContent = view.smoothing.toFixed(2);
      cancelAnimationFrame(addControls.frame);
      addControls.frame = requestAnimationFrame(redraw);
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".chart-controls").forEach(addControls);
    document.querySelectorAll("figure.chart").forEach((figure) => {
      const beside = figure.nextElementSibling?.matches(".chart-data") ? figure.nextElementSibling : null;
      const script = figure.querySelector(".chart-data") ?? beside;
      if (script) set(figure, JSON.parse(script.textContent));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  });

  return { set };
})();
