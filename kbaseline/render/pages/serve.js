"use strict";
const at = (id) => document.getElementById(id);
const [form, input, drop, preview, answer, status, facts] =
  ["form", "image", "drop", "preview", "answer", "status", "facts"].map(at);
const percent = (p) => (100 * p).toFixed(2) + " %";
let turn = 0;

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function rank(list, classes) {
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
  for (const id of ["plain", "tta"]) if (at(id)) rank(at(id), []);
  facts.textContent = "";
}

function show(found) {
  rank(at("plain"), found.classes);
  if (found.tta) rank(at("tta"), found.tta.classes);
  const best = (found.tta || found).classes[0];
  const other = found.tta && found.classes[0].name !== best.name ? `; plain says ${found.classes[0].name}` : "";
  say(`${best.name}, ${percent(best.probability)}${found.tta ? " with TTA" : ""}${other}`);
  const { image, milliseconds: ms } = found;
  const times = [["decoding", ms.decode], ["plain", ms.plain], ["TTA", ms.tta]].filter(([, t]) => t !== null);
  facts.textContent = `${image.format}, ${image.width} × ${image.height} pixels; ` +
    times.map(([what, t]) => `${what} ${t < 10 ? t.toFixed(1) : t.toFixed(0)} ms`).join(", ");
}

async function ask(file) {
  const mine = ++turn;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  clear();
  const limit = Number(form.dataset.max);
  if (file.size > limit) {
    answer.ariaBusy = "false";
    return say(`${file.name}: more than ${limit / 1e6} MB.`, true);
  }
  answer.ariaBusy = "true";
  say("Predicting …");
  try {
    const reply = await fetch("/predict", { method: "POST", body: file });
    const found = await reply.json();
    if (mine !== turn) return;  // another picture came in the meantime
    if (reply.ok) show(found);
    else say(found.error, true);
  } catch {
    if (mine === turn) say("The server does not answer; is it still running?", true);
  }
  if (mine !== turn) return;
  answer.ariaBusy = "false";
  answer.scrollIntoView({ block: "nearest" });
}

preview.addEventListener("load", () => {
  preview.hidden = false;
  preview.classList.toggle("pixels", Math.max(preview.naturalWidth, preview.naturalHeight) <= 96);
});
preview.addEventListener("error", () => { preview.hidden = true; });  // the browser cannot show every format
input.addEventListener("change", () => { if (input.files.length) ask(input.files[0]); });
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) ask(event.clipboardData.files[0]);
});
// Wherever it is dropped: a browser would otherwise leave the page and show the file.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) ask(event.dataTransfer.files[0]);
  });
}
