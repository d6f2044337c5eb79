/** Counts the selected runs, and lets as many of them be compared as a comparison takes. */
"use strict";

(() => {
  const form = document.getElementById("selection");
  if (!form) return;
  const bar = document.getElementById("chosen");
  const most = Number(form.dataset.most);
  const boxes = () => [...form.querySelectorAll("input[name=runs]")];

  function update() {
    const count = boxes().filter((box) => box.checked).length;
    bar.hidden = count === 0;
    document.getElementById("compare").disabled = count < 2 || count > most;
    const advice = count < 2 ? "; select another one to compare" : count > most ? `; at most ${most} are compared` : "";
    document.getElementById("chosen-count").textContent = `${count} selected${advice}`;
  }

  form.addEventListener("change", update);
  form.addEventListener("refreshed", update);
  document.getElementById("unselect").addEventListener("click", () => {
    boxes().forEach((box) => (box.checked = false));
    update();
    boxes()[0]?.focus();
  });
  update();
})();
