// The operating point: the slider shows what each escape rate would cost before anybody chooses it.
"use strict";

const one = (x) => percent(x, 1);
const range = (rate) => `${one(rate.low)}–${one(rate.high)}`;

function chosen() {
  const form = $("operating");
  const points = JSON.parse(form.dataset.points);
  return { form, point: $("rate") ? points[Number($("rate").value)] : null };
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "rate") return;
  const { point } = chosen();
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
  const { form, point } = chosen();
  const good = [...form.querySelectorAll("input[name=good]:checked")].map((each) => each.value);
  try {
    await send("PUT", "/api/operating", {
      good,
      escape_rate: point ? point.target : 0.01,
      by_threshold: Boolean(point && $("by-threshold").checked),
    });
    document.body.dispatchEvent(new CustomEvent("chosen"));
    notice("");
    document.body.addEventListener("htmx:afterSwap", () => { $("operating-saved").textContent = t("js.done"); }, { once: true });
  } catch (error) {
    $("operating-saved").textContent = t("js.not-saved", { why: error.message });
  }
});

$("print").addEventListener("click", () => window.print());
