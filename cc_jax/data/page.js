// SPDX-License-Identifier: Apache-2.0
// The gallery: what is shown is in the address, #licence=CC0-1.0&q=hat&page=2.
"use strict";
const at = (id) => document.getElementById(id);
const gallery = at("gallery");
const figures = [...gallery.querySelectorAll("figure")];
const texts = figures.map((figure) => figure.textContent.toLowerCase());
const size = Number(gallery.dataset.page);

function show() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const licence = asked.get("licence") || "";
  const q = asked.get("q") || "";
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const found = figures.filter((figure, i) =>
    (!licence || figure.dataset.licence === licence) &&
    words.every((word) => texts[i].includes(word)));
  const pages = Math.max(1, Math.ceil(found.length / size));
  const wanted = Math.trunc(Number(asked.get("page"))) || 1;
  const page = Math.min(pages, Math.max(1, wanted));
  const shown = new Set(found.slice((page - 1) * size, page * size));
  for (const figure of figures) figure.hidden = !shown.has(figure);
  at("licence").value = licence;
  if (at("q") !== document.activeElement) at("q").value = q;
  const first = found.length ? (page - 1) * size + 1 : 0;
  const last = Math.min(page * size, found.length);
  at("status").textContent = found.length
    ? first + " to " + last + " of " + found.length : "no picture matches";
  at("back").disabled = page <= 1;
  at("on").disabled = page >= pages;
  return page;
}

function go(page) {
  const now = new URLSearchParams();
  if (at("licence").value) now.set("licence", at("licence").value);
  if (at("q").value.trim()) now.set("q", at("q").value.trim());
  if (page > 1) now.set("page", page);
  history.replaceState(null, "", "#" + now);
  show();
}

at("licence").addEventListener("change", () => go(1));
at("q").addEventListener("input", () => go(1));
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("back").addEventListener("click", () => go(show() - 1));
at("on").addEventListener("click", () => go(show() + 1));
addEventListener("hashchange", show);
at("controls").hidden = false;
show();
