// The operator's page. It asks the device every second and sends labels; it keeps nothing of its own but the
// operator's name. "Saved" is shown only when the device has answered that the label is on its disk.
"use strict";

const $ = (id) => document.getElementById(id);
const AIM_MS = 400;     // a finger already on its way meant the picture before
const percent = (x) => `${Math.round(100 * x)} %`;

let state = null;       // the newest /api/state
let current = null;     // the sample that is asked about
let picked = false;     // the operator picked it below; the queue does not replace it
let skipped = new Set();
let last = null;        // {sample, before}: what undo takes back
let sending = false;
let lookedAhead = null; // digest of the live set that the outlook is of
let changedAt = 0;      // when a picture last gave way to another by itself
let heat = false;       // the picture shows where the evidence for the decision lies
let shownFrames = -1;
let shownHead = "";

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.hint ? `${body.error}. ${body.hint}` : body.error);
  return body;
}

const post = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function say(text, failed = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("failed", failed);
}

// -- the question -------------------------------------------------------------------------------------------

async function nextQuestion() {
  const busy = () => sending || (picked && current);
  if (busy()) return;
  const before = current;
  const waiting = (await call("/api/queue?limit=50")).filter((each) => !skipped.has(each.sample));
  // While the answer travelled, the operator may have picked a picture or answered: theirs stays.
  if (busy() || current !== before) return;
  if (current && waiting.some((each) => each.sample === current.sample)) return;
  if (current) changedAt = Date.now();
  ask(waiting[0] || null, false);
}

function ask(sample, byHand) {
  current = sample;
  picked = byHand;
  $("shown").hidden = !sample;
  $("empty").hidden = Boolean(sample);
  $("skip").disabled = !sample;
  $("new-defect").disabled = !sample;
  $("where-button").disabled = !sample;
  if (sample) {
    drawPicture();
    $("why").textContent = sample.label ? `labelled ${sample.label}` : sample.reason || "picked by hand";
    $("guess").textContent = sample.unknown
      ? "The head does not know this."
      : `The head says ${sample.decision}, ${percent(sample.probability)} sure.`;
    const when = new Date(1000 * sample.captured_utc).toLocaleTimeString();
    $("where").textContent = [sample.source, when].filter(Boolean).join(" · ");
  } else {
    $("defect").hidden = true;
  }
  drawClasses();
  markChosen();
}

// The heatmap is of the head that serves now, so it is asked for anew each time.
function drawPicture() {
  $("where-button").setAttribute("aria-pressed", String(heat));
  if (current) $("picture").src = `/api/samples/${current.sample}/${heat ? "heatmap" : "image"}`;
}

$("picture").addEventListener("error", async () => {
  if (!heat || !current) return;
  heat = false;
  const path = `/api/samples/${current.sample}/heatmap`;
  drawPicture();
  await call(path).catch((error) => say(error.message, true));
});

// A class keeps its place and its key for as long as this browser remembers: a new one comes last.
function inPlace(classes) {
  const order = JSON.parse(localStorage.getItem("order") || "[]");
  for (const each of classes) if (!order.includes(each.id)) order.push(each.id);
  localStorage.setItem("order", JSON.stringify(order.slice(-1000)));
  return [...classes].sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
}

function drawClasses() {
  const box = $("classes");
  const classes = inPlace(state ? state.classes : []);
  const key = JSON.stringify([classes, current && current.sample, sending]);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...classes.map((each, i) => {
    const button = element("button", { type: "button", "data-class": each.name });
    if (i < 9) button.append(element("kbd", {}, String(i + 1)));
    button.append(element("span", {}, each.name), element("small", {}, String(each.labels)));
    button.disabled = !current || sending;
    if (current && current.forced_class_id === each.id && !current.unknown) button.classList.add("guess");
    button.addEventListener("click", () => {
      if (Date.now() - changedAt >= AIM_MS) save(each.id, each.name);
    });
    return button;
  }));
}

async function save(classId, name, sample = current) {
  if (!sample || sending) return;
  sending = true;
  drawClasses();
  say("saving…");
  try {
    const answer = await post("/api/labels", { sample: sample.sample, class_id: classId, operator: operator() });
    if (!answer.saved) throw new Error("The device did not say that the label is saved.");
    last = { sample, before: sample.label_class_id };
    $("undo").disabled = false;
    say(`✓ saved: ${name}`);
    if (current === sample) current = null;
  } catch (error) {
    say(`Not saved: ${error.message}`, true);
  } finally {
    sending = false;
    picked = picked && Boolean(current);
    shownFrames = -1;
    drawClasses();
    tick();
  }
}

async function undo() {
  if (!last || sending) return;
  sending = true;
  try {
    await post("/api/labels", { sample: last.sample.sample, class_id: last.before, operator: operator() });
    say("✓ taken back, as if it had never been learned");
    const sample = await call(`/api/samples/${last.sample.sample}`);
    last = null;
    $("undo").disabled = true;
    sending = false;
    ask({ ...sample, reason: sample.reason || "taken back" }, true);
  } catch (error) {
    say(`Not taken back: ${error.message}`, true);
  } finally {
    sending = false;
    shownFrames = -1;
    drawClasses();
  }
}

function skip() {
  if (!current) return;
  skipped.add(current.sample);
  ask(null, false);
  say("");
  nextQuestion().catch(offline);
}

const operator = () => $("operator").value.trim();

$("new-defect").addEventListener("click", () => {
  picked = true;  // the picture stays while its defect is being named
  $("defect").hidden = false;
  $("defect-name").focus();
});
$("defect-cancel").addEventListener("click", () => { $("defect").hidden = true; });
$("defect").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("defect-name").value.trim();
  const sample = current;
  const known = state && state.classes.find((each) => each.name.toLowerCase() === name.toLowerCase());
  try {
    const id = known ? known.id : (await post("/api/classes", { name, operator: operator() })).class_id;
    $("defect").hidden = true;
    $("defect-name").value = "";
    await save(id, name, sample);
  } catch (error) {
    say(`Not saved: ${error.message}`, true);
  }
});
$("where-button").addEventListener("click", () => { heat = !heat; drawPicture(); });
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("operator").value = localStorage.getItem("operator") || "";
$("operator").addEventListener("change", () => localStorage.setItem("operator", operator()));

document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape") { $("defect").hidden = true; event.target.blur(); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  const button = /^[1-9]$/.test(key) ? $("classes").children[Number(key) - 1]
    : { n: $("new-defect"), h: $("where-button"), s: $("skip"), u: $("undo") }[key];
  if (button && !button.disabled) { event.preventDefault(); button.click(); }
});

// -- what was learned ---------------------------------------------------------------------------------------

function drawHead() {
  const { head, release, score } = state;
  const key = JSON.stringify([head, release, score, state.label_to_live_ms, state.own_labels, state.latency_ms]);
  if (key === shownHead) return;
  shownHead = key;
  const chip = $("head-state");
  chip.textContent = head ? (head.busy && head.state === "provisional" ? "provisional, in its trial" : head.state) : "";
  chip.className = `chip ${head && head.state === "confirmed" ? "good" : "warn"}`;
  $("reason").textContent = head ? head.reason || "Learned; its trial is under way." : "No release yet.";
  const figures = [];
  if (score) figures.push([percent(score.balanced_accuracy), `right, likely ${percent(score.low)} to ${percent(score.high)}`]);
  figures.push([String(state.own_labels), "labels given here"]);
  if (state.label_to_live_ms !== null) figures.push([`${Math.round(state.label_to_live_ms)} ms`, "from label to live"]);
  if (state.latency_ms !== null) figures.push([`${state.latency_ms.toFixed(1)} ms`, "from frame to decision"]);
  $("figures").replaceChildren(...figures.map(([value, what]) =>
    element("div", {}, element("span", {}, what), element("b", {}, value))));
  $("score").hidden = !score;
  $("no-score").textContent = score
    ? score.summed ? `${score.samples} pictures are judged. ${score.summed} more of the release are learned from only: it came without their codes.` : ""
    : head ? "A score appears after the first label: every part is judged by a head that never learned it." : "";
  if (score) $("score").tBodies[0].replaceChildren(...score.classes.map(scoreRow));
}

async function drawOutlook() {
  const digest = state.live_set_digest;
  if (!state.head || state.head.busy || digest === lookedAhead) return;
  lookedAhead = digest;
  try {
    $("outlook").textContent = (await call("/api/outlook")).advice;
  } catch (error) {
    lookedAhead = null;
  }
}

function scoreRow(each) {
  const svg = "http://www.w3.org/2000/svg";
  const bar = document.createElementNS(svg, "svg");
  bar.setAttribute("viewBox", "0 0 100 10");
  bar.setAttribute("preserveAspectRatio", "none");
  const shape = (tag, attributes) => {
    const made = document.createElementNS(svg, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    bar.append(made);
  };
  shape("rect", { class: "track", x: 0, y: 3, width: 100, height: 4 });
  if (each.scored) {
    shape("rect", { class: "fill", x: 0, y: 3, width: 100 * each.recall, height: 4 });
    shape("line", { class: "range", x1: 100 * each.low, x2: 100 * each.high, y1: 5, y2: 5 });
    for (const end of [each.low, each.high]) shape("line", { class: "range", x1: 100 * end, x2: 100 * end, y1: 1, y2: 9 });
  }
  const text = each.scored ? `${percent(each.recall)}` : "one part only";
  const row = element("tr", {}, element("td", { title: each.name }, each.name), element("td", {}, bar), element("td", {}, text));
  row.title = each.scored
    ? `${each.name}: ${percent(each.recall)}, likely ${percent(each.low)} to ${percent(each.high)}, ${each.samples} pictures of ${each.groups} parts`
    : `${each.name}: label pictures of a second part to score it`;
  return row;
}

// -- now ----------------------------------------------------------------------------------------------------

async function drawSamples() {
  if (state.frames === shownFrames) return;
  shownFrames = state.frames;
  const samples = await call("/api/samples?limit=24");
  const old = new Map([...$("samples").children].map((each) => [each.dataset.key, each]));
  $("samples").replaceChildren(...samples.map((each) => {
    const key = [each.sample, each.status, each.decision, each.label].join("|");
    return old.get(key) || tile(each, key);
  }));
  markChosen();
}

function tile(each, key) {
  const what = each.label || each.decision;
  const more = each.label ? `said ${each.decision}` : each.status === "queued" ? "asks"
    : each.unknown ? "" : percent(each.probability);
  const made = element("button", {
    type: "button", "data-key": key, "data-sample": each.sample, title: `${each.source}\n${each.reason}`,
    class: each.status === "labelled" ? "labelled" : each.unknown ? "unknown" : "",
  },
  element("img", { src: `/api/samples/${each.sample}/image`, alt: "", loading: "lazy" }),
  element("span", { class: "what" }, what),
  element("span", { class: "more" }, more));
  made.addEventListener("click", () => { ask(each, true); window.scrollTo({ top: 0, behavior: "smooth" }); });
  return made;
}

function markChosen() {
  for (const each of $("samples").children) {
    each.classList.toggle("chosen", Boolean(current) && each.dataset.sample === current.sample);
  }
}

// -- the device ---------------------------------------------------------------------------------------------

function drawDevice() {
  const { release, camera, mqtt } = state;
  $("release").textContent = release ? `${release.name} · ${release.precision} · ${release.runtime}` : "no release yet";
  const chips = [[`camera ${camera.state}`, camera.state === "live" ? "good" : camera.state === "lost" ? "bad" : ""]];
  if (camera.bad) chips.push([`${camera.bad} bad files`, "warn"]);
  if (mqtt) chips.push([mqtt.connected ? "fleet connected" : "fleet offline", mqtt.connected ? "good" : "warn"]);
  else chips.push(["works alone", ""]);
  if (state.drift && state.drift.alarm) chips.push(["parts look different", "bad"]);
  if (mqtt && state.outbox) chips.push([`${state.outbox} to send`, "warn"]);
  $("chips").replaceChildren(...chips.map(([text, kind]) => element("li", { class: kind }, text)));
  $("rate").textContent = state.frames
    ? `${state.frames} frames inspected, ${state.unknown} unknown` : "no frame inspected yet";
  $("waiting").textContent = state.queue_depth ? `${state.queue_depth} waiting` : "";
  const drifted = state.drift && state.drift.alarm
    ? ["Parts look different from those this head was scored on. Look at the newest ones, and at the light and the lens."] : [];
  notice(release ? [...state.faults, ...drifted].join(" · ")
    : "This device has no release yet: it inspects nothing. It starts by itself when one is published to it.");
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function offline() {
  notice("The device does not answer. Nothing is lost; this page tries again.");
}

async function tick() {
  try {
    state = await call("/api/state");
    drawDevice();
    drawHead();
    drawOutlook();
    await drawSamples();
    await nextQuestion();
    drawClasses();
  } catch (error) {
    offline();
  }
}

async function run() {
  for (;;) {
    await tick();
    await new Promise((done) => setTimeout(done, 1000));
  }
}
run();
