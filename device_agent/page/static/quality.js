// The operating point: the slider shows what each escape rate would cost before anybody chooses it. The form keeps
// what is in force, to be sent as it was where nobody moved the slider or there is none.
"use strict";

const one = (x) => percent(x, 1);
const range = (rate) => `${one(rate.low)}–${one(rate.high)}`;

function chosen() {
  const form = $("operating");
  const points = JSON.parse(form.dataset.points);
  return { form, point: points[Number($("rate").value)] };
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "rate") return;
  const { form, point } = chosen();
  form.dataset.rate = point.target;
  $("rate-out").textContent = one(point.target);
  $("escapes").textContent = one(point.escapes.share);
  $("escapes-range").textContent = range(point.escapes);
  $("overkill").textContent = one(point.overkill.share);
  $("overkill-range").textContent = range(point.overkill);
  $("threshold").textContent = number(point.threshold, 3);
  $("unreachable").hidden = point.reachable;
  $("by-threshold").checked = true;
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
    notice("");
    document.body.addEventListener("htmx:afterSwap", () => { $("operating-saved").textContent = t("js.done"); }, { once: true });
  } catch (error) {
    $("operating-saved").textContent = t("js.not-saved", { why: error.message });
  }
});

$("print").addEventListener("click", () => window.print());
