// SPDX-License-Identifier: Apache-2.0
// Blind votes. Which model is on which side is not in this page.
"use strict";
const at = (id) => document.getElementById(id);
const page = JSON.parse(at("pairs").textContent);
const place = "cc-jax-votes-" + page.id;

function begin() {
  const number = crypto.getRandomValues(new Uint32Array(1))[0];
  return { page: page.id, voter: number.toString(16).padStart(8, "0"), votes: [] };
}

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(place));
    if (found && found.page === page.id) return found;
  } catch (error) { /* Nothing readable was kept: begin. */ }
  return begin();
}

let state = read();

// An order for each voter, the same whenever the page is opened again.
function order() {
  let seed = parseInt(state.voter, 16) || 1;
  const random = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const found = page.pairs.map((_, i) => i);
  for (let i = found.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

let places = order();
let shown = performance.now();

function show() {
  const count = state.votes.length;
  const total = page.pairs.length;
  const over = count >= total;
  at("main").hidden = over;
  at("done").hidden = !over;
  at("bar").value = total ? count / total : 1;
  at("count").textContent = count + " of " + total;
  at("export").disabled = !count;
  at("undo").disabled = !count;
  if (over) return;
  const pair = page.pairs[places[count]];
  at("prompt").textContent = pair.prompt;
  at("left-image").src = pair.left;
  at("right-image").src = pair.right;
  shown = performance.now();
}

function save() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    at("count").textContent = "Votes cannot be kept in this browser: export them";
  }
}

function vote(choice) {
  const count = state.votes.length;
  if (count >= page.pairs.length) return;
  const seconds = Math.round((performance.now() - shown) / 100) / 10;
  state.votes.push({ pair: page.pairs[places[count]].id, choice, seconds });
  show();
  save();
}

function undo() {
  state.votes.pop();
  show();
  save();
}

function send() {
  const whole = { ...state, complete: state.votes.length >= page.pairs.length };
  const blob = new Blob([JSON.stringify(whole, null, 2)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "votes-" + page.id + "-" + state.voter + ".json";
  link.click();
}

const keys = {
  ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"),
  ArrowDown: () => vote("neither"), Backspace: undo,
};
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
at("left").addEventListener("click", () => vote("left"));
at("right").addEventListener("click", () => vote("right"));
at("tie").addEventListener("click", () => vote("neither"));
at("undo").addEventListener("click", undo);
at("export").addEventListener("click", send);
at("clear").addEventListener("click", () => {
  if (!confirm("Forget all your votes?")) return;
  state = begin();
  places = order();
  show();
  save();
});
show();
save();
