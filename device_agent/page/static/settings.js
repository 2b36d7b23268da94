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

// -- another PIN, password or role ----------------------------------------------------------------------------

// A dialog that puts what `body` returns to the address that `path` does, and then calls `done`.
function asks(dialog, path, body, done) {
  const form = dialog.querySelector("form"), wrong = dialog.querySelector(".wrong");
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => form.reset());  // no secret stays in it
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      await send("PUT", path(), body());
      done();
    } catch (error) {
      wrong.textContent = t("js.not-saved", { why: error.message });
    }
  });
  return () => { wrong.textContent = ""; dialog.showModal(); };
}

if ($("own-secret")) {
  const open = asks($("own-secret"), () => "/api/secret", () => ({ old: $("own-old").value, new: $("own-new").value }), () => { location.href = "/login"; });
  $("own-secret-open").addEventListener("click", open);
}

if ($("account-change")) {
  let account = null;
  const open = asks($("account-change"), () => `/api/accounts/${encodeURIComponent(account.account)}`, () => {
    const secret = $("account-secret").value;
    return { role: $("account-role").value, ...(secret ? { secret } : {}) };
  }, () => location.reload());
  // What an operator has may be a PIN, which is too little for the others.
  const need = () => { $("account-secret").required = account.role === "operator" && $("account-role").value !== "operator"; };
  $("account-role").addEventListener("change", need);
  for (const button of document.querySelectorAll("[data-account]")) {
    button.addEventListener("click", () => {
      account = button.dataset;
      $("account-change-title").textContent = t("js.change-title", { name: account.account });
      $("account-role").value = account.role;
      need();
      open();
    });
  }
}
