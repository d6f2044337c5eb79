/**
 * Lets buttons and forms change something through the REST interface.
 *
 * <button data-method="POST" data-call="/runs/NAME/stop" data-done="..."> sends a request. With `data-question` and
 * `data-consequence` it asks first. <form data-method data-call> sends its fields as JSON, those with
 * data-type="number" as numbers and with data-type="words" as lists. `data-done` is announced, `data-next` opened.
 */
"use strict";

/** Return a message as a sentence; one that begins with a name or a key keeps it as it is. */
const asSentence = (text) => (/^[a-z]+[ ,:]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text);

function announce(text, isBad = false) {
  const place = document.getElementById("announcement");
  place.className = `toast notice ${isBad ? "is-bad" : "is-good"}`;
  place.textContent = asSentence(text);
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => (place.textContent = ""), isBad ? 20000 : 6000);
}

/** Resolve to whether the user agrees. */
function confirmWith({ question, consequence }) {
  const dialog = document.getElementById("confirmation");
  document.getElementById("question").textContent = question;
  document.getElementById("consequence").textContent = consequence ?? "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function readForm(form) {
  const fields = [...form.elements].filter((field) => field.name && field.type !== "submit");
  return Object.fromEntries(fields.map((field) => {
    const kind = field.dataset.type;
    if (kind === "words") return [field.name, field.value.split(/[\s,]+/).filter(Boolean)];
    return [field.name, kind === "number" ? Number(field.value) : field.value];
  }));
}

async function act(source, body) {
  const { method, call, done, next, question } = source.dataset;
  if (question && !(await confirmWith(source.dataset))) return;
  source.setAttribute("aria-busy", "true");
  try {
    await callApi(method, call, body);
    if (next) {
      location.assign(next);
      return;
    }
    announce(done);
    document.dispatchEvent(new CustomEvent("changed"));
  } catch (error) {
    announce(error.message, true);
  } finally {
    source.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-call]");
  if (button) act(button);
  const copied = event.target.closest("button[data-copy]");
  if (copied) {
    const text = document.getElementById(copied.dataset.copy).textContent;
    const isRefused = () => announce("The browser does not let this page copy.", true);
    navigator.clipboard.writeText(text).then(() => announce("Copied."), isRefused);
  }
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-call]");
  if (!form) return;
  event.preventDefault();
  act(form, readForm(form));
});
