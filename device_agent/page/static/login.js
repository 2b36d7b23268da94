// A name and a PIN or password. The digits are for gloves.
"use strict";

const secret = $("secret");
$("name").value = localStorage.getItem("login-name") || "";
($("name").value ? secret : $("name")).focus();

document.querySelector(".pad").addEventListener("click", (event) => {
  const digit = event.target.dataset.digit;
  if (!digit) return;
  secret.value = digit === "back" ? secret.value.slice(0, -1) : secret.value + digit;
});

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await post("/api/login", { name: $("name").value, secret: secret.value });
    localStorage.setItem("login-name", $("name").value.trim());
    location.href = $("login").dataset.then;
  } catch (error) {
    $("login-wrong").textContent = error.message;
    secret.value = "";
    secret.focus();
  }
});
