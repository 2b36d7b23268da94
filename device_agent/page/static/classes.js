// The table of classes in Settings: rename, merge, put away and bring back.
"use strict";

const classRows = [...document.querySelectorAll("#classes-section tr[data-id]")].map((row) => row.dataset);
let classOf = null;  // the row that a dialog is about

const said = () => (operator() ? { operator: operator() } : {});

// Done is shown by the page anew; what was refused by the words beside the button, or in the page's notice.
async function changeClass(method, path, body, wrong) {
  tell("");
  try {
    await send(method, `/api/classes/${path}`, body);
    location.reload();
  } catch (error) {
    const text = t("js.not-saved", { why: error.message });
    if (wrong) wrong.textContent = text;
    else tell(text);
  }
}

function openClass(dialog) {
  dialog.querySelector(".wrong").textContent = "";
  dialog.showModal();
}

function sayMerge() {
  const into = classRows.find((each) => each.id === $("class-into").value);
  $("class-merge-said").textContent = into
    ? t("js.merge-said", { name: classOf.name, n: classOf.labels, into: into.name, m: into.labels })
    : "";
}

const classDo = {
  rename() {
    $("class-name").value = classOf.name;
    openClass($("class-rename"));
    $("class-name").select();
  },
  merge() {
    const others = classRows.filter((each) => each.id !== classOf.id && each.away === "0");
    $("class-into").replaceChildren(element("option", { value: "" }, "–"), ...others.map((each) => element("option", { value: each.id }, each.name)));
    openClass($("class-merge"));
    sayMerge();
  },
  away: () => changeClass("PUT", `${classOf.id}/put-away`, { put_away: true }),
  back: () => changeClass("PUT", `${classOf.id}/put-away`, { put_away: false }),
};

if ($("classes-section")) {
  $("classes-section").addEventListener("click", (event) => {
    const button = event.target.closest("[data-class-do]");
    if (!button) return;
    classOf = button.closest("tr").dataset;
    classDo[button.dataset.classDo]();
  });
  for (const dialog of [$("class-rename"), $("class-merge")]) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  }
  $("class-into").addEventListener("change", sayMerge);
  $("class-rename").addEventListener("submit", (event) => {
    event.preventDefault();
    changeClass("PUT", classOf.id, { name: $("class-name").value, ...said() }, $("class-rename").querySelector(".wrong"));
  });
  $("class-merge").addEventListener("submit", (event) => {
    event.preventDefault();
    changeClass("POST", `${classOf.id}/merge`, { into: $("class-into").value, ...said() }, $("class-merge").querySelector(".wrong"));
  });
}
