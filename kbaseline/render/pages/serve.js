"use strict";
const at = (id) => document.getElementById(id);
const [form, input, drop, preview, answer, status, set, facts] =
  ["form", "image", "drop", "preview", "answer", "status", "set", "facts"].map(at);
const percent = (p) => (100 * p).toFixed(2) + " %";
let latest = 0;

function setStatus(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function fill(list, classes) {
  list.replaceChildren(...classes.map((one) => {
    const row = document.createElement("li");
    for (const [tag, kind, text] of [["bdi", "name", one.name], ["span", "p", percent(one.probability)]]) {
      const cell = row.appendChild(document.createElement(tag));
      cell.className = kind;
      cell.textContent = text;
    }
    const track = row.appendChild(document.createElement("span"));
    track.className = "track";
    const bar = track.appendChild(document.createElement("span"));
    bar.className = "bar";
    bar.style.width = percent(one.probability).replace(" ", "");
    return row;
  }));
  list.parentElement.hidden = !classes.length;
}

function clear() {
  for (const id of ["plain", "tta"]) if (at(id)) fill(at(id), []);
  set.hidden = true;
  facts.textContent = "";
}

function show(prediction) {
  const { classes, tta, image, milliseconds: ms } = prediction;
  fill(at("plain"), classes);
  if (tta) fill(at("tta"), tta.classes);
  const best = (tta || prediction).classes[0];
  const other = tta && classes[0].name !== best.name ? `; plain: ${classes[0].name}` : "";
  const named = `${best.name}, ${percent(best.probability)}${tta ? " with TTA" : ""}${other}`;
  setStatus(prediction.unfamiliar ? `None of these, probably. If one of them: ${named}` : named);
  const likely = (tta || prediction).set;
  set.hidden = !likely || prediction.unfamiliar;
  if (likely) set.textContent = `One of these in 90 % of cases: ${likely.join(", ")}`;
  const times = [["decoding", ms.decode], ["plain", ms.plain], ["TTA", ms.tta]].filter(([, t]) => t !== null);
  facts.textContent = `${image.format}, ${image.width} × ${image.height} pixels; ` +
    times.map(([what, t]) => `${what} ${t < 10 ? t.toFixed(1) : t.toFixed(0)} ms`).join(", ");
}

async function predict(file) {
  const mine = ++latest;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  clear();
  const limit = Number(form.dataset.max);
  if (file.size > limit) {
    answer.ariaBusy = "false";
    return setStatus(`${file.name}: more than ${limit / 1e6} MB; choose a smaller image.`, true);
  }
  answer.ariaBusy = "true";
  setStatus("Predicting …");
  try {
    const response = await fetch("/predict", { method: "POST", body: file });
    // With too many connections the refusal is no JSON.
    const busy = { error: "The server is busy; try again in a moment." };
    const result = response.status === 503 ? busy : await response.json();
    if (mine !== latest) return;  // another image was chosen in the meantime
    if (response.ok) show(result);
    else setStatus(result.error, true);
  } catch {
    if (mine === latest) setStatus("The server does not respond; check that it is running.", true);
  }
  if (mine !== latest) return;
  answer.ariaBusy = "false";
  answer.scrollIntoView({ block: "nearest" });
}

preview.addEventListener("load", () => {
  preview.hidden = false;
  preview.classList.toggle("pixels", Math.max(preview.naturalWidth, preview.naturalHeight) <= 96);
});
preview.addEventListener("error", () => { preview.hidden = true; });  // the browser cannot show every format
input.addEventListener("change", () => { if (input.files.length) predict(input.files[0]); });
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) predict(event.clipboardData.files[0]);
});
// Drops are handled on the whole page: elsewhere the browser would leave the page and open the file.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) predict(event.dataTransfer.files[0]);
  });
}
