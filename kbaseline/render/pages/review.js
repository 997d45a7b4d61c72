"use strict";
const at = (id) => document.getElementById(id);
const KEYS = "1234567890";
let state = null;
let current = 0;

function make(tag, text, parent) {
  const one = document.createElement(tag);
  one.textContent = text;
  parent?.append(one);
  return one;
}

function figure(address, caption) {
  const box = make("figure", "", at("pictures"));
  const image = make("img", "", box);
  image.src = address;
  image.alt = caption;
  make("figcaption", caption, box);
}

function classes(item) {
  const names = [...state.classes];
  // The suggested class comes first, so that its key is always 1.
  return item.suggested ? [item.suggested, ...names.filter((name) => name !== item.suggested)] : names;
}

function show() {
  const { items } = state;
  const decided = items.filter((item) => item.decision).length;
  at("done").max = Math.max(items.length, 1);
  at("done").value = decided;
  at("pictures").replaceChildren();
  at("classes").replaceChildren();
  if (!items.length) {
    at("status").textContent = "Nothing to decide: the audit found nothing.";
    return;
  }
  const item = items[current];
  const done = decided === items.length ? "; all decided" : "";
  at("status").textContent = `${current + 1} of ${items.length}, ${decided} decided${done}`;
  figure(item.image, `${item.name} (${item.split})`);
  if (item.beside) figure(item.beside, item.beside_name);
  const { decision } = item;
  const said = decision ? ` Decided: ${decision.action}${decision.action === "relabel" ? ` as ${decision.label}` : ""}.` : "";
  at("why").textContent = `Labelled ${item.label}; ${item.why}.${said}`;
  for (const button of document.querySelectorAll("[data-action]")) {
    button.classList.toggle("chosen", decision?.action === button.dataset.action);
  }
  classes(item).forEach((name, index) => {
    const button = make("button", "", at("classes"));
    if (index < KEYS.length) make("kbd", KEYS[index], button);
    make("bdi", name, button);
    button.classList.toggle("chosen", decision?.action === "relabel" && decision.label === name);
    button.addEventListener("click", () => decide("relabel", name));
  });
}

async function send(address, body) {
  const response = await fetch(address, { method: "POST", body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function decide(action, label) {
  try {
    state = await send("/decide", { item: current, action, label });
    move(1);
  } catch (error) {
    at("status").textContent = `Not saved: ${error.message}`;
  }
}

async function undo() {
  if (state.last === null) return;
  current = state.last;
  try {
    state = await send("/undo", {});
    show();
  } catch (error) {
    at("status").textContent = `Not undone: ${error.message}`;
  }
}

function move(step) {
  current = Math.min(Math.max(current + step, 0), Math.max(state.items.length - 1, 0));
  show();
}

function act(action) {
  if (!state?.items.length) return;
  if (action === "undo") undo();
  else if (action === "back") move(-1);
  else if (action === "next") move(1);
  else decide(action);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !state?.items.length) return;
  const action = { k: "keep", d: "drop", u: "undo", arrowleft: "back", arrowright: "next" }[event.key.toLowerCase()];
  const name = classes(state.items[current])[KEYS.indexOf(event.key)];
  if (action) act(action);
  else if (KEYS.includes(event.key) && name) decide("relabel", name);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => act(button.dataset.action));
}
fetch("/items").then((response) => response.json()).then((answer) => {
  state = answer;
  show();
});
