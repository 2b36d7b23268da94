// The operating point: the slider shows what each escape rate would cost before anybody chooses it. The form keeps
// what is in force, to be sent as it was where nobody moved the slider or there is none. The device hears with each
// choice what was in force when it was made, and refuses it where somebody has chosen otherwise since.
"use strict";

const one = (x) => percent(x, 1);
const range = (rate) => `${one(rate.low)}–${one(rate.high)}`;

// The figures are of the rule that the checkbox says.
function drawCosts(form) {
  const byThreshold = $("by-threshold").checked;
  const point = JSON.parse(form.dataset.point);
  const costs = byThreshold ? point : JSON.parse(form.dataset.byClass);
  $("rule").textContent = byThreshold ? t("js.by-threshold") : t("js.by-class");
  $("of-threshold").classList.toggle("off", !byThreshold);
  $("rate-out").textContent = one(point.target);
  $("threshold").textContent = number(point.threshold, 3);
  $("escapes").textContent = one(costs.escapes.share);
  $("escapes-range").textContent = range(costs.escapes);
  $("overkill").textContent = one(costs.overkill.share);
  $("overkill-range").textContent = range(costs.overkill);
  for (const what of ["escapes", "overkill"]) {  // the pictures behind the figure that stands there
    const link = $(`${what}-behind`), rule = byThreshold ? `&escape_rate=${point.target}` : "";
    if (costs[what].count) link.href = JSON.parse(form.dataset.behind)[what] + rule;
    else link.removeAttribute("href");
    link.textContent = t("js.behind", { n: costs[what].count, of: costs[what].samples });
  }
  $("unreachable").hidden = !byThreshold || point.reachable;
}

// What somebody has ticked and moved and not saved yet; the form comes anew with each label of anybody's, and has it again.
let draft = null;
let done = null;      // what was saved last, while that is said
let said = "";        // beside the button
let dragging = false; // the slider, which must not be replaced under the finger
let missed = false;   // something new, meanwhile

const inForce = (form) => JSON.parse(form.dataset.seen);
const same = (one, other) => one.escape_rate === other.escape_rate && one.by_threshold === other.by_threshold
  && [...one.good].sort().join() === [...other.good].sort().join();

const offered = (form) => [...form.querySelectorAll("input[name=good]")].map((each) => each.value);

function wanted(form) {
  return {
    good: [...form.querySelectorAll("input[name=good]:checked")].map((each) => each.value),
    escape_rate: Number(form.dataset.rate),
    by_threshold: $("by-threshold") ? $("by-threshold").checked : Boolean(form.dataset.byThreshold),
  };
}

function say(text) {
  said = text;
  if ($("operating-saved").textContent !== text) $("operating-saved").textContent = text;
}

function keepDraft(form) {
  const now = wanted(form);
  done = null;
  draft = same(now, inForce(form)) ? null : { ...now, seen: inForce(form), offered: offered(form) };
  say(draft ? t("js.unsaved") : "");
}

function restoreDraft(form) {
  for (const each of form.querySelectorAll("input[name=good]")) {
    if (draft.offered.includes(each.value)) each.checked = draft.good.includes(each.value);
  }
  if (draft.escape_rate !== draft.seen.escape_rate) movedTo(form, draft.escape_rate);
  form.dataset.byThreshold = draft.by_threshold ? "yes" : "";
  if (!$("by-threshold")) return;
  $("by-threshold").checked = draft.by_threshold;
  drawCosts(form);
}

function movedTo(form, rate) {
  const points = JSON.parse(form.dataset.points), place = points.findIndex((each) => each.target === rate);
  form.dataset.rate = rate;
  if (place < 0) return;  // there is no slider just now
  form.dataset.point = JSON.stringify(points[place]);
  $("rate").value = place;
}

document.addEventListener("input", (event) => {
  const form = $("operating");
  if (!form.contains(event.target)) return;
  if (event.target.id === "rate") {
    movedTo(form, JSON.parse(form.dataset.points)[Number(event.target.value)].target);
    $("by-threshold").checked = true;
  }
  if (["rate", "by-threshold"].includes(event.target.id)) drawCosts(form);
  keepDraft(form);
});

document.addEventListener("pointerdown", (event) => { dragging = event.target.id === "rate"; });
for (const ends of ["pointerup", "pointercancel"]) {
  document.addEventListener(ends, () => {
    dragging = false;
    if (missed) document.body.dispatchEvent(new CustomEvent("chosen"));
    missed = false;
  });
}

document.body.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (!dragging) return;
  detail.shouldSwap = false;
  missed = true;
});

document.body.addEventListener("htmx:afterSwap", () => {
  const form = $("operating");
  if (draft && same(draft, inForce(form))) {  // its own answer is still on its way
    draft = null;
    said = "";
  } else if (draft && !same(draft.seen, inForce(form))) {
    draft = null;
    said = t("js.chosen-since");
  } else if (draft) restoreDraft(form);
  else if (done && !same(done, inForce(form))) {  // somebody else's choice is not
    done = null;
    said = "";
  }
  say(said);
});

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "operating") return;
  event.preventDefault();
  const form = $("operating"), chosen = wanted(form);
  try {
    await send("PUT", "/api/operating", { ...chosen, seen: inForce(form) });
    tell("");
    const now = $("operating");
    now.dataset.seen = JSON.stringify(chosen);  // in force from here on, and the form that says so is on its way
    keepDraft(now);                             // what was ticked while the answer was
    if (!draft) {
      done = chosen;
      say(t("js.done"));
    }
  } catch (error) {
    if (error.status !== 409) return say(t("js.not-saved", { why: error.message }));
    draft = null;
    say(t("js.chosen-since"));
  }
  document.body.dispatchEvent(new CustomEvent("chosen"));
});

$("print").addEventListener("click", () => window.print());
