// What is shown goes old when the service does not answer: say so. Everything else is htmx's.
"use strict";
const stale = document.getElementById("stale");
for (const kind of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.body.addEventListener(kind, () => { stale.hidden = false; });
}
// htmx tells of a refusal before this, as of any answer.
document.body.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.xhr.status < 400) stale.hidden = true; });
// A refresh keeps where somebody has scrolled a table to.
let scrolled = [];
document.body.addEventListener("htmx:beforeSwap", () => {
  scrolled = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
});
document.body.addEventListener("htmx:afterSwap", () => {
  document.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
});
