/** Fetches the curves of a run, or of the runs of a comparison, draws them, and adds what is recorded meanwhile. */
"use strict";

(() => {
  const POINTS = 800; // the most of a curve
  const EVERY_MS = 2000;
  const AT_ONCE = 40; // keys of a request
  const section = document.getElementById("curves");
  if (!section) return;
  const runs = readRuns();
  const place = document.getElementById("charts");
  const figures = () => [...place.querySelectorAll("figure.chart")];
  const whole = new Map(); // the curves of all runs over the whole training, by key
  const zoomed = new Map(); // the range of steps that a figure shows a part of, by figure
  const finer = new Map(); // the range whose own curves a figure shows, by figure
  let isBusy = false;

  /** Return the runs that are drawn: when each started, and which metrics it has, if that is known. */
  function readRuns() {
    const compared = document.getElementById("compared");
    if (compared) return JSON.parse(compared.textContent).map(({ keys, ...run }) => ({ ...run, keys: new Set(keys) }));
    return [{ name: section.dataset.run, start: Number(section.dataset.start) || undefined }];
  }

  async function read(run, keys, range = {}) {
    const query = new URLSearchParams({ keys: keys.join(","), points: POINTS, ...range });
    return (await callApi("GET", `/runs/${encodeURIComponent(run.name)}/metrics?${query}`)).curves;
  }

  async function readAll(keys, range) {
    const found = new Map(keys.map((key) => [key, []]));
    await Promise.all(runs.map(async (run, number) => {
      const own = run.keys ? keys.filter((key) => run.keys.has(key)) : keys;
      for (let first = 0; first < own.length; first += AT_ONCE) {
        const part = own.slice(first, first + AT_ONCE);
        const curves = await read(run, part, range);
        part.forEach((key) => found.get(key).push({ name: run.name, start: run.start, number, curve: curves[key] }));
      }
    }));
    found.forEach((series) => series.sort((a, b) => a.number - b.number));
    return found;
  }

  const draw = (figure, series) => charts.set(figure, { better: figure.dataset.better || null, series });
  const isOpen = (figure) => figure.closest("details.fold")?.open ?? true;

  async function load(wanted) {
    if (!wanted.length) return;
    const found = await readAll(wanted.map((figure) => figure.dataset.key));
    wanted.forEach((figure) => whole.set(figure.dataset.key, found.get(figure.dataset.key)));
    await Promise.all(wanted.map(show));
  }

  /** Draw a figure: the whole curves, or more points of the part to which it is zoomed. */
  async function show(figure) {
    const range = zoomed.get(figure);
    const series = whole.get(figure.dataset.key);
    if (!range || series.every(({ curve }) => curve.is_exact)) {
      finer.delete(figure);
      draw(figure, series);
    } else if (finer.get(figure) !== range) {
      const part = (await readAll([figure.dataset.key], range)).get(figure.dataset.key);
      if (zoomed.get(figure) !== range) return; // it was zoomed again meanwhile
      finer.set(figure, range);
      draw(figure, part);
    }
  }

  /** Fetch what was recorded since; a curve whose records are all drawn only grows. */
  async function update() {
    const drawn = figures().filter((figure) => whole.has(figure.dataset.key) && isOpen(figure));
    const growing = drawn.filter((figure) => isGrowing(whole.get(figure.dataset.key)));
    if (growing.length) {
      const oldest = Math.min(...growing.flatMap((figure) => whole.get(figure.dataset.key)).map(lastStep));
      const found = await readAll(growing.map((figure) => figure.dataset.key), { first_step: oldest + 1 });
      growing.forEach((figure) => {
        const key = figure.dataset.key;
        if (extend(whole.get(key), found.get(key))) draw(figure, whole.get(key));
      });
    }
    await load(drawn.filter((figure) => !growing.includes(figure)));
  }

  const lastStep = ({ curve }) => curve.step.at(-1) ?? 0;
  const isShort = ({ curve }) => curve.is_exact && curve.step.length < POINTS;
  const isGrowing = (series) => series.length > 0 && series.every(isShort);

  /** Append newer points to curves; returns whether there were any. */
  function extend(series, newer) {
    let hasGrown = false;
    for (const { number, curve } of newer) {
      const own = series.find((each) => each.number === number)?.curve;
      const first = own ? curve.step.findIndex((step) => step > (own.step.at(-1) ?? 0)) : -1;
      if (first < 0) continue;
      hasGrown = true;
      const columns = Object.keys(own).filter((name) => Array.isArray(own[name]));
      columns.forEach((name) => own[name].push(...curve[name].slice(first)));
      own.is_exact &&= curve.is_exact;
    }
    return hasGrown;
  }

  function report(error) {
    if (!(error instanceof TypeError)) announce(error.message, true); // else the server is away
  }

  async function guarded(task) {
    if (isBusy) return;
    isBusy = true;
    try {
      await task();
    } catch (error) {
      report(error);
    } finally {
      isBusy = false;
    }
  }

  section.addEventListener("chart-zoom", async ({ target, detail }) => {
    if (detail) zoomed.set(target, detail);
    else zoomed.delete(target);
    try {
      await show(target);
    } catch (error) {
      report(error);
    }
  });

  /** Add the charts of metrics that were recorded for the first time after the page was made. */
  async function addFigures() {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const known = new Map([...place.children].map((group) => [group.dataset.group, group]));
    let previous = null;
    for (const fresh of [...page.getElementById("charts").children]) {
      const own = known.get(fresh.dataset.group);
      if (!own) place.insertBefore(fresh, previous ? previous.nextSibling : place.firstChild);
      else fresh.querySelectorAll("figure.chart").forEach((figure) => addFigure(own, figure));
      previous = own ?? fresh;
    }
    document.getElementById("no-curves").hidden = figures().length > 0;
    await loadOpen();
  }

  function addFigure(group, figure) {
    const own = [...group.querySelectorAll("figure.chart")];
    if (!own.some((each) => each.dataset.key === figure.dataset.key)) group.querySelector(".charts").append(figure);
  }

  const loadOpen = () => load(figures().filter((figure) => isOpen(figure) && !whole.has(figure.dataset.key)));

  function hear({ detail }) {
    const known = new Set(figures().map((figure) => figure.dataset.key));
    const keys = new Set((detail?.records ?? []).flatMap((record) => Object.keys(record)));
    const isNew = [...keys].some((key) => key.includes("/") && !known.has(key));
    hear.hasNew ||= isNew;
    hear.timer ??= setTimeout(() => {
      hear.timer = undefined;
      if (!document.hidden) guarded(catchUp);
    }, EVERY_MS);
  }

  async function catchUp() {
    if (hear.hasNew) {
      hear.hasNew = false;
      await addFigures();
    }
    await update();
  }

  section.addEventListener("toggle", () => guarded(loadOpen), true);
  document.addEventListener("new-metrics", hear);
  document.addEventListener("DOMContentLoaded", () => guarded(loadOpen));
})();
