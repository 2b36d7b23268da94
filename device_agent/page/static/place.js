// Who works by keys, or has the page read out, keeps the place: a part of the page that comes anew takes the focus with
// what it replaces. The row that had it has it again (`data-row`); where that is gone, the heading of its section.
"use strict";

let held = null;   // had the focus last, and nobody has pointed elsewhere since
let place = null;  // in the part that comes anew: {row, rows}

document.addEventListener("focusin", (event) => { held = event.target; });
document.addEventListener("pointerdown", () => { held = null; });

document.body.addEventListener("htmx:beforeSwap", ({ detail: { target } }) => {
  place = null;
  if (!held || !target.contains(held) || ![document.body, held].includes(document.activeElement)) return;
  const row = held.closest("[data-row]");
  place = { row: row && row.dataset.row, rows: target.querySelectorAll("[data-row]").length };
});

document.body.addEventListener("htmx:afterSwap", ({ detail: { target } }) => {
  if (!place || target.contains(document.activeElement)) return;  // htmx itself finds what has an id
  const rows = [...target.querySelectorAll("[data-row]")];
  const same = rows.find((each) => each.dataset.row === place.row) || (place.row ? null : rows[place.rows]);  // More
  if (same) { same.focus({ preventScroll: true }); return; }
  const heading = target.closest("section, main").querySelector("h1, h2");
  heading.tabIndex = -1;
  heading.focus();
});
