/** Sets the colours that were chosen before, before the page is drawn, and remembers a new choice. */
"use strict";

(() => {
  const root = document.documentElement;
  const apply = (choice) => (choice ? (root.dataset.theme = choice) : delete root.dataset.theme);
  apply(localStorage.getItem("theme"));
  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    if (!select) return;
    select.value = root.dataset.theme ?? "";
    select.addEventListener("change", () => {
      localStorage.setItem("theme", select.value);
      apply(select.value);
    });
  });
})();
