/** Shows the end of a log of a run, and follows it. */
"use strict";

(() => {
  const MOST = 400_000; // characters that are kept
  const place = document.getElementById("log-text");
  if (!place) return;
  const follow = document.getElementById("log-follow");
  const name = () => document.getElementById("log-name").value;
  let after = null;

  async function read(query) {
    const path = `/runs/${encodeURIComponent(place.dataset.run)}/logs`;
    return callApi("GET", `${path}?${new URLSearchParams({ log: name(), ...query })}`);
  }

  const toEnd = () => (place.scrollTop = place.scrollHeight);

  async function open() {
    try {
      const part = await read({ tail: 300 });
      place.textContent = part.text || "This log is empty.";
      after = part.after;
      toEnd();
    } catch (error) {
      after = null;
      place.textContent = error.message;
    }
  }

  async function extend() {
    if (!follow.checked || after === null || document.hidden) return;
    try {
      const part = await read({ after });
      if (part.first === 0 && after > 0) place.textContent = "";
      if (part.text) {
        place.textContent = (place.textContent + part.text).slice(-MOST);
        toEnd();
      }
      after = part.after;
    } catch {
      // the server is away, or the log is gone; the next event tries again
    }
  }

  document.addEventListener("change", ({ target }) => target.id === "log-name" && open());
  follow.addEventListener("change", extend);
  function hear() {
    hear.timer ??= setTimeout(() => {
      hear.timer = undefined;
      if (after === null) open();
      else extend();
    }, 500);
  }

  document.addEventListener("new-log", hear);
  document.addEventListener("new-metrics", hear); // of other ranks, whose logs are not reported
  if (place.dataset.exists) open();
  else place.textContent = "It has written no log yet.";
})();
