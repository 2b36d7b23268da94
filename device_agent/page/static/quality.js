// The operating point: the slider shows what each escape rate would cost before anybody chooses it. The form keeps
// what is in force, to be sent as it was where nobody moved the slider or there is none.
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
  $("unreachable").hidden = !byThreshold || point.reachable;
}

document.addEventListener("input", (event) => {
  const form = $("operating");
  if (event.target.id === "rate") {
    const point = JSON.parse(form.dataset.points)[Number(event.target.value)];
    form.dataset.rate = point.target;
    form.dataset.point = JSON.stringify(point);
    $("by-threshold").checked = true;
  } else if (event.target.id !== "by-threshold") return;
  drawCosts(form);
});

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "operating") return;
  event.preventDefault();
  const form = $("operating");
  const good = [...form.querySelectorAll("input[name=good]:checked")].map((each) => each.value);
  try {
    await send("PUT", "/api/operating", {
      good,
      escape_rate: Number(form.dataset.rate),
      by_threshold: $("by-threshold") ? $("by-threshold").checked : Boolean(form.dataset.byThreshold),
    });
    document.body.dispatchEvent(new CustomEvent("chosen"));
    tell("");
    document.body.addEventListener("htmx:afterSwap", () => { $("operating-saved").textContent = t("js.done"); }, { once: true });
  } catch (error) {
    $("operating-saved").textContent = t("js.not-saved", { why: error.message });
  }
});

$("print").addEventListener("click", () => window.print());
