"use strict";

/* What a report does with a script: show the values of a chart where the pointer is, and open for print what is not `on-screen` only. */

function showReading(figure, found, share) {
  const nearest = found.lines.map((line) =>
    line.at.reduce((best, at, number) => (Math.abs(at - share) < Math.abs(line.at[best] - share) ? number : best), 0)
  );
  const distance = (number) => Math.abs((found.lines[number].at[nearest[number]] ?? Infinity) - share);
  const closest = nearest.reduce((best, _, number) => (distance(number) < distance(best) ? number : best), 0);
  const { at, x } = found.lines[closest];
  if (!at.length) return;
  figure.querySelector(".cursor").setAttribute("d", `M${at[nearest[closest]] * 1000} 0V1000`);
  figure.querySelector(".reading").textContent = `at ${found.x} ${x[nearest[closest]]}`;
  figure.querySelectorAll(".value").forEach((value, number) => {
    value.textContent = found.lines[number].y[nearest[number]] ?? "-";
  });
}

function showNewest(figure, found) {
  figure.querySelector(".cursor").setAttribute("d", "");
  figure.querySelector(".reading").textContent = "";
  figure.querySelectorAll(".value").forEach((value, number) => {
    value.textContent = found.lines[number].newest;
  });
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const found = JSON.parse(figure.querySelector(".readings").textContent);
  const area = figure.querySelector(".area");
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    showReading(figure, found, (event.clientX - box.left) / box.width);
  });
  area.addEventListener("pointerleave", () => showNewest(figure, found));
}

const opened = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open], .on-screen)")) {
    details.open = true;
    opened.push(details);
  }
});
addEventListener("afterprint", () => {
  while (opened.length) opened.pop().open = false;
});
