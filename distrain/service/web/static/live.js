/**
 * Keeps a page up to date without a reload: when an event says that something has changed, the page is fetched again,
 * and what has changed of its parts with `data-live` is replaced. A page that nobody sees fetches nothing.
 */
"use strict";

const live = (() => {
  const EVERY_MS = 1500;
  const AWAY = "The connection to distrain serve is lost: what is shown may have changed. It is tried again.";
  let isDue = false;
  let isBusy = false;
  let last = 0;
  let isAway = false; // whether the stream of events was interrupted

  function replace(old, fresh) {
    const checked = new Set([...old.querySelectorAll("input:checked")].map((box) => box.value));
    const chosen = old.querySelector("select")?.value;
    const open = new Set([...old.querySelectorAll("details[open][id]")].map((details) => details.id));
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const key = (element) => element.id || element.getAttribute("href") || element.value || element.dataset.call;
    old.className = fresh.className;
    old.replaceChildren(...fresh.childNodes);
    old.querySelectorAll("input[type=checkbox]").forEach((box) => (box.checked = checked.has(box.value)));
    const select = old.querySelector("select");
    if ([...(select?.options ?? [])].some((option) => option.value === chosen)) select.value = chosen;
    open.forEach((id) => old.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", ""));
    if (focused) [...old.querySelectorAll(focused.tagName)].find((each) => key(each) === key(focused))?.focus();
    old.dispatchEvent(new CustomEvent("refreshed", { bubbles: true }));
  }

  /** Whether somebody is typing in a part of the page, or has typed there without sending it. */
  function isEdited(part) {
    const fields = [...part.querySelectorAll("input:not([type=checkbox]), textarea")];
    return fields.some((field) => field === document.activeElement || field.value !== field.defaultValue);
  }

  async function refresh() {
    isDue = false;
    isBusy = true;
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.status === 404) warn("This is not here any more: it was deleted or moved. What is shown is its last state.");
      else if (answer.redirected) warn("Your session has ended: load this page again to log in.");
      if (!answer.ok || answer.redirected) return;
      warn("");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const old of document.querySelectorAll("[data-live]")) {
        const fresh = page.querySelector(`[data-live="${CSS.escape(old.dataset.live)}"]`);
        if (fresh && old.innerHTML !== fresh.innerHTML && !isEdited(old)) replace(old, fresh);
      }
    } catch {
      warn(AWAY); // the stream of events reports when it is back
    } finally {
      isBusy = false;
      last = performance.now();
      wait(3 * (last - began));
    }
  }

  /** Show above the page why it is not up to date; with an empty text, that it is. */
  function warn(text) {
    const place = document.getElementById("connection");
    if (place.textContent === text) return;
    place.textContent = text;
    place.hidden = !text;
  }

  function wait(atLeast = 0) {
    clearTimeout(wait.timer);
    if (!isDue || isBusy || document.hidden) return;
    wait.timer = setTimeout(refresh, Math.max(atLeast, last + EVERY_MS - performance.now(), 0));
  }

  /** Fetch the page again soon. */
  function request() {
    isDue = true;
    wait();
  }

  const names = new Set(JSON.parse(document.body.dataset.runs || "[]"));
  const followed = document.body.dataset.follow; // the run of this page

  function hearRuns({ changed, removed }) {
    const named = [...changed.map((row) => row.name ?? row.run.split("/").pop()), ...removed];
    if (names.size && !named.some((name) => names.has(name))) return;
    request();
    tell("metrics");
  }

  const hear = {
    reset: request,
    queue: request,
    devices: request,
    runs: hearRuns,
    status: request,
    metrics: (found) => tell("metrics", found),
    log: () => tell("log"),
  };
  const heard = ["reset", ...document.body.dataset.events.split(" ")]; // what this page shows

  const tell = (what, detail) => document.dispatchEvent(new CustomEvent(`new-${what}`, { detail }));

  /** Listen to the events of the server, after those that the page already shows, while the page is visible. */
  function listen() {
    listen.source?.close();
    if (document.hidden) return;
    const query = new URLSearchParams();
    if (followed) query.set("run", followed);
    if (listen.id) query.set("after", listen.id);
    listen.source = new EventSource(`/api/v1/events?${query}`);
    listen.source.addEventListener("error", () => {
      isAway = true;
      request(); // whose answer says why: the server is away, the run was deleted, or the session has ended
    });
    listen.source.addEventListener("open", () => {
      if (isAway) request();
      isAway = false;
    });
    heard.forEach((name) => {
      listen.source.addEventListener(name, (event) => {
        listen.id = event.lastEventId;
        hear[name](JSON.parse(event.data));
      });
    });
  }

  listen.id = document.body.dataset.position;
  document.addEventListener("visibilitychange", () => {
    listen();
    wait();
  });
  document.addEventListener("DOMContentLoaded", listen);
  document.addEventListener("changed", request);
  return { request };
})();
