// Looks are kept in this browser; accounts and tokens on the device.
"use strict";

for (const button of document.querySelectorAll("[data-cookie]")) {
  button.addEventListener("click", () => { cookie(button.dataset.cookie, button.dataset.value); location.reload(); });
}

function drawOrder() {
  const order = localStorage.getItem("order") === "fixed" ? "fixed" : "recent";
  for (const button of document.querySelectorAll("[data-order]")) button.setAttribute("aria-pressed", String(button.dataset.order === order));
}
for (const button of document.querySelectorAll("[data-order]")) {
  button.addEventListener("click", () => { localStorage.setItem("order", button.dataset.order); drawOrder(); });
}
drawOrder();

if ($("operator")) {
  $("operator").value = localStorage.getItem("operator") || "";
  $("operator").addEventListener("input", () => localStorage.setItem("operator", $("operator").value.trim()));
}
if ($("logout")) {
  $("logout").addEventListener("click", async () => { await post("/api/logout", {}).catch(() => {}); location.href = "/login"; });
}

// What is refused stands beside what was typed until the next try: the page's notice is above, out of sight.
for (const form of document.querySelectorAll("form[data-form]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = form.querySelector(".wrong");
    wrong.textContent = "";
    try {
      const made = await post(form.dataset.form, Object.fromEntries(new FormData(form)));
      if (!form.dataset.show) { location.reload(); return; }
      const shown = form.querySelector(".shown");
      shown.hidden = false;
      shown.querySelector("code").textContent = made[form.dataset.show];
    } catch (error) {
      wrong.textContent = t("js.not-saved", { why: error.message });
    }
  });
}
