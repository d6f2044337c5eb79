/** Submits the form of a new run through the REST interface, and shows what is wrong with it at the field. */
"use strict";

(() => {
  const form = document.getElementById("submit");
  const values = JSON.parse(document.getElementById("values").textContent);
  const changes = document.getElementById("changes");
  const recipe = () => form.elements.recipe?.value ?? "";
  const lines = () => [...changes.querySelectorAll(".change")];

  function showNow() {
    lines().forEach((line) => {
      const [key, value] = line.querySelectorAll("input");
      const now = values[recipe()]?.[key.value.trim()];
      value.placeholder = now === undefined ? "value" : `now ${now}`;
    });
  }

  function addLine() {
    const line = lines()[0].cloneNode(true);
    const number = lines().length + 1;
    line.querySelectorAll("input").forEach((input, index) => {
      input.value = "";
      input.setAttribute("aria-label", `${index ? "Value" : "Key"} of change ${number}`);
    });
    changes.append(line);
    line.querySelector("input").focus();
    showNow();
  }

  /** Return what a text means: a number, true, false, a list, or the text itself. */
  function parse(text) {
    try {
      return JSON.parse(text);
    } catch {
      return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
    }
  }

  function read() {
    const set = {};
    for (const line of lines()) {
      const [key, value] = [...line.querySelectorAll("input")].map((input) => input.value.trim());
      if (key) set[key] = parse(value);
    }
    const body = {
      set,
      devices: { kind: form.elements.kind.value, count: Number(form.elements.count.value) },
      priority: Number(form.elements.priority.value),
    };
    if (form.elements.data.value.trim()) body.data = form.elements.data.value.trim();
    return { ...body, ...(form.dataset.run ? { run: form.dataset.run } : { recipe: recipe() }) };
  }

  /** Return the name of the field that a sentence on a fault is about. */
  function fieldOf(sentence, body) {
    if (Object.keys(body.set).some((key) => sentence.includes(key))) return "set";
    if (/\b(GPUs?|CPU|devices?)\b/.test(sentence)) return "devices";
    if (/\bpriority\b/.test(sentence)) return "priority";
    if (body.data && sentence.includes(body.data)) return "data";
    if (/\b(data|folder)\b/.test(sentence)) return "data";
    return /\brecipe\b/.test(sentence) ? "recipe" : "";
  }

  function showFault(sentence, field) {
    const text = asSentence(sentence);
    form.querySelectorAll(".fault").forEach((place) => {
      place.textContent = place.id === `${field}-fault` ? text : "";
      place.hidden = !place.textContent;
    });
    const general = document.getElementById("fault");
    const isAtField = text !== "" && document.getElementById(`${field}-fault`) !== null;
    general.textContent = isAtField ? "The run was not submitted: see the field below." : text;
    general.hidden = text === "";
    form.querySelectorAll("[aria-invalid]").forEach((element) => element.removeAttribute("aria-invalid"));
    if (!text) return;
    const names = { set: "key", devices: "count" };
    const wrong = isAtField ? form.querySelector(`[name="${names[field] ?? field}"]`) : null;
    wrong?.setAttribute("aria-invalid", "true");
    (wrong ?? general).scrollIntoView({ block: "center" });
    wrong?.focus();
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = read();
    if (!form.elements.count.checkValidity()) return showFault("enter how many devices, 1 or more", "devices");
    if (!form.elements.priority.checkValidity()) return showFault("enter a whole number as the priority", "priority");
    const send = document.getElementById("send");
    send.setAttribute("aria-disabled", "true");
    try {
      const [name] = [await callApi("POST", "/runs", body)].flat().map((found) => found.run ?? found.name);
      location.assign(`/runs/${encodeURIComponent(name)}`);
    } catch (error) {
      showFault(error.message, fieldOf(error.message, body));
    } finally {
      send.removeAttribute("aria-disabled");
    }
  });
  form.addEventListener("input", showNow);
  document.getElementById("add").addEventListener("click", addLine);
})();
