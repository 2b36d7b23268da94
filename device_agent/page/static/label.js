// One picture at a time. The next one is shown before the answer to the last is back; "saved" is said only when the
// device has answered that the label is on its disk. What could not be saved comes back and is asked again; what the
// device has not answered is sent until it does. Nobody can
// label a picture that is not there to be seen, nor, unawares, one of which somebody has said something meanwhile.
"use strict";

const BOUNCE_MS = 250;  // a glove that bounces, or a finger on its way, meant the picture before
const AHEAD = 4;        // pictures loaded before they are asked about
const MAX_UNDO = 50;
const MAX_ZOOM = 12;
const FOR_GOOD = [400, 404, 409, 422];  // refusals of an undo that another try does not change
const LOAD_AGAIN_MS = 5000;  // until a picture that could not be loaded is tried again by itself

let queue = [];         // what waits, most important first
let current = null;     // what is asked about
let byHand = null;      // a sample that somebody picked on another page
let taken = new Map();  // samples answered here whose answer the queue may not know yet, and when they were answered
let pending = 0;        // answers on their way to the disk
let chain = Promise.resolve();
let undoable = [];      // {key, sample, items, saved: the log's entries, once they are there}
let together = false;   // the answer is for all that look alike
let out = new Set();    // but not for these
let heat = false;
let changedAt = 0;
let undoneAt = -BOUNCE_MS;
let defectOf = null;    // what the open dialog asks about: {sample, together, out, named}
let asking = false;
let hungry = false;
const loaded = new Map();  // sample -> <img>, at most a few

// -- what waits -----------------------------------------------------------------------------------------------

async function refill() {
  if (asking) { hungry = true; return; }
  asking = true;
  try {
    do {
      hungry = false;
      if (walk) {
        const more = walksOn();
        await lookOn();
        await fill();
        if (!current && (more || queue.length)) show(queue.shift() || null);
        else preload();
        await stayIn();
        continue;
      }
      const asked = performance.now();
      const waiting = await call("/api/queue?limit=30");
      for (const [sample, at] of taken) if (at < asked && !pending) taken.delete(sample);
      queue = waiting.filter((each) => !taken.has(each.sample) && !(current && each.sample === current.sample));
      const fresh = current && waiting.find((each) => each.sample === current.sample);
      if (fresh && JSON.stringify(fresh.alike) !== JSON.stringify(current.alike)) nowAlike(fresh);
      if (current && !fresh && current.sample !== byHand) await stillAsked();
      if (!current) show(queue.shift() || null);
      else preload();
    } while (hungry);
  } catch (error) {
    if (walk && walkLost()) {
      say(t("js.walk-lost"), true);
      if (!current) show(queue.shift() || null);
    } else if (walk && !walk.gone && error.status) say(error.message, true);
    // Else the stream says that the device is away.
  } finally {
    asking = false;
  }
}

// The picture asked about waits no longer: somebody may have answered elsewhere, or it is kept no longer. Without an
// answer it stays: the one given here was undone, or the queue had no more room for it.
async function stillAsked() {
  const asked = current;
  const now = await lookAgain(asked);
  if (current !== asked || (now && (!now.label || now.label_class_id === asked.label_class_id))) return;
  const text = now ? await meanwhile(now) : t("refused.404");
  if (current !== asked) return;
  say(text);
  if (defectOf && defectOf.sample === asked) $("defect-wrong").textContent = text;
  next();
}

// As `refill`, of a list.
async function fill() {
  while (queue.length < AHEAD && walksOn()) {
    const more = await walkOn();
    queue.push(...more);  // another queue than before, if somebody has answered meanwhile
  }
}

// The picture shown, of a list: somebody may have said something else of it, or deleted it.
async function lookOn() {
  const asked = current;
  if (!asked || pending) return;
  const now = await lookAgain(asked);
  if (current !== asked || (now && now.label_class_id === asked.label_class_id)) return;
  const text = now ? await meanwhile(now) : t("refused.404");
  if (current !== asked) return;
  say(text);
  if (now) show(now);
  else next();
}

// A sample as it is now; null where it is not kept any more.
async function lookAgain(sample) {
  try {
    const { place, leftOut } = sample;  // in a list
    return { ...await call(`/api/samples/${sample.sample}`), place, leftOut };
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

async function meanwhile(now) {
  const [last] = await call(`/api/samples/${now.sample}/labels`);
  return saidMeanwhile(now.label, last);
}

function saidMeanwhile(name, last) {
  const who = last && !last.who.startsWith("p-") ? last.who : "";  // another device's people are only ids here
  if (!name) return who ? t("js.meanwhile-undone", { who }) : t("js.meanwhile-undone-other");
  return who ? t("js.meanwhile", { name, who }) : t("js.meanwhile-other", { name });
}

// Other pictures are alike now. Whoever chose "together" has not seen those that came since.
function nowAlike(fresh) {
  const left = (each) => out.has(each) || (together && !current.alike.includes(each));
  out = new Set(fresh.alike.filter(left));
  current = fresh;
  drawAlike();
}

function preload() {
  const wanted = [current, ...queue.slice(0, AHEAD)].filter(Boolean).map((each) => each.sample);
  for (const sample of wanted) picture(sample);
  for (const [sample, image] of loaded) {
    if (!wanted.includes(sample)) { if (!image.isConnected) image.removeAttribute("src"); loaded.delete(sample); }
  }
}

function picture(sample) {
  if (!loaded.has(sample) || loaded.get(sample).failedAt) {
    const image = element("img", { src: `/api/samples/${sample}/image`, class: "picture", draggable: "false" });
    image.alt = "";
    image.decoding = "sync";
    loaded.set(sample, image);
    // A browser may have no room to decode a large one ahead; what it has read it shows all the same.
    image.decode().then(() => came(sample, image, true), () => came(sample, image, image.complete && image.naturalWidth > 0));
  }
  return loaded.get(sample);
}

function came(sample, image, well) {
  if (loaded.get(sample) !== image) return;  // it was let go of, which fails too
  image.seen = well;
  image.failedAt = well ? 0 : performance.now();
  image.hidden = !well;  // or the browser draws its own sign of a broken one
  if (!current || current.sample !== sample) return;
  changedAt = performance.now();  // a finger on its way has not seen it
  drawSeen();
}

const seen = () => Boolean(current && loaded.has(current.sample) && loaded.get(current.sample).seen);

// What is not seen is not labelled.
function drawSeen() {
  const image = current && loaded.get(current.sample);
  const from = document.activeElement;
  $("no-picture").hidden = !(image && image.failedAt);
  for (const each of ["new-defect", "take-back"]) allow($(each), seen());
  drawClasses();
  keepPlace(from);
}

// A button that must not be pressed just now keeps the focus: a disabled one loses it, and with it somebody's place.
const allow = (button, may) => button.setAttribute("aria-disabled", String(!may));
const allowed = (button) => button.getAttribute("aria-disabled") !== "true";
const allowUndo = () => allow($("undo"), undoable.length > 0);

// What had the focus is there no more: the question has it then, and the classes come next.
function keepPlace(from) {
  if (from === document.activeElement && from.checkVisibility()) return;
  if ($("main").contains(document.activeElement) && document.activeElement.checkVisibility()) return;
  if (from !== document.body) $("why").focus({ preventScroll: true });
}

function drawPicture() {
  const stage = $("stage");
  for (const old of stage.querySelectorAll(".picture")) old.remove();
  if (!current) return;
  const image = picture(current.sample);
  image.alt = t("label.picture");
  stage.prepend(image);
  zoomTo(1);
  drawHeat();
  drawSeen();
}

$("load-again").addEventListener("click", () => { if (current) drawPicture(); });

// -- the question ---------------------------------------------------------------------------------------------

function show(sample) {
  const from = document.activeElement;
  current = sample;
  together = false;
  out = new Set();
  changedAt = performance.now();
  const stage = $("stage");
  drawWalk(sample);
  $("empty").hidden = Boolean(sample || walk);
  $("over").hidden = !sample;
  drawPicture();
  if (sample) {
    stage.dataset.sample = sample.sample;
    $("why").textContent = why(sample);
    const now = says(sample);
    if (sample.leftOut) $("guess").textContent = t(now.class_id ? "why.left-out" : "why.left-out-unknown", { name: now.class_id ? now.decision : now.forced, sure: percent(now.probability) });
    else $("guess").textContent = now.class_id ? t("why.says", { name: now.decision, sure: percent(now.probability) }) : t("why.not-known");
  } else {
    delete stage.dataset.sample;
    $("why").textContent = t("label.title");
    $("guess").textContent = "";
  }
  $("take-back").hidden = !sample || !sample.label_class_id;
  for (const each of ["unsure", "skip"]) allow($(each), sample);
  drawAlike();
  drawSeen();
  preload();
  if (sample) stage.scrollIntoView({ block: "nearest" });  // where the page scrolls, somebody is down at the classes
  if ($("classes").contains(from)) $("why").focus({ preventScroll: true });  // and so it is read
  else keepPlace(from);
  if (!sample) readOut(["walked", "walk-lost", "empty"].filter((each) => !$(each).hidden).map((each) => $(each).innerText).join());
  else if (document.activeElement !== $("why")) readOut([$("why").textContent, $("guess").textContent].join(". "));
}

// For who does not see it. The same words twice in a row are read twice.
function readOut(text) {
  $("asked").textContent = $("asked").textContent === text ? `${text}\u00a0` : text;
}

// What the head that serves now says: the one that saw the picture may have known less.
function says(sample) {
  return sample.leftOut || sample.now || { class_id: sample.unknown ? null : sample.forced_class_id, decision: sample.decision, probability: sample.probability };
}

function why(sample) {
  if (sample.label) return t("why.labelled", { name: sample.label });
  if (sample.unsure) return t("why.unsure");
  if (!sample.question) return t("why.picked");
  return t(`why.${sample.question.kind}`, { first: sample.question.first, second: sample.question.second });
}

function next() {
  show(queue.shift() || null);
  if (queue.length < AHEAD) refill();
}

// -- classes --------------------------------------------------------------------------------------------------

const used = () => JSON.parse(localStorage.getItem("used") || "[]");

function inOrder(classes) {
  if (localStorage.getItem("order") === "fixed") return classes;
  const order = used();
  const place = (each) => (order.includes(each.id) ? order.indexOf(each.id) : order.length);
  return [...classes].sort((a, b) => place(a) - place(b));
}

function nowUsed(classId) {
  localStorage.setItem("used", JSON.stringify([classId, ...used().filter((each) => each !== classId)].slice(0, 200)));
}

function drawClasses() {
  const box = $("classes");
  const classes = inOrder(latest ? latest.state.classes : []);
  const said = current && says(current).class_id;
  const key = JSON.stringify([classes.map((each) => [each.id, each.name]), said]);
  if (box.dataset.key !== key) arrange(box, classes, said);
  box.dataset.key = key;
  for (const button of box.children) allow(button, seen());
}

// A class keeps its button, and the focus with it.
function arrange(box, classes, said) {
  const from = box.contains(document.activeElement) ? document.activeElement : null;
  const old = new Map([...box.children].map((each) => [each.dataset.id, each]));
  box.replaceChildren(...classes.map((each, i) => {
    const button = old.get(each.id) || element("button", { type: "button", "data-id": each.id });
    button.dataset.class = each.name;
    button.classList.toggle("guess", each.id === said);
    button.replaceChildren(...(i < 9 ? [element("kbd", {}, String(i + 1))] : []), element("span", {}, ...breakable(each.name)));
    return button;
  }));
  if (from && from.isConnected) from.focus({ preventScroll: true });
}

$("classes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && seen()) answer({ class_id: button.dataset.id }, button.dataset.class);
});

// -- answers --------------------------------------------------------------------------------------------------

const bounced = () => performance.now() - changedAt < BOUNCE_MS;

function answered() {
  const items = together ? [current.sample, ...current.alike.filter((each) => !out.has(each))] : [current.sample];
  for (const each of items) taken.set(each, Infinity);
  queue = queue.filter((each) => !items.includes(each.sample));
  return items;
}

function answer(said, name, made = false) {
  if (!current || bounced()) return;
  if (!said.class_id) together = false;  // what was picked is taken back, not what looks like it
  const sample = current, items = answered();
  // What was shown of each: where somebody else has answered since, the device refuses.
  const shown = Object.fromEntries(items.map((each) => [each, each === sample.sample ? sample.label_class_id : null]));
  if (said.class_id) nowUsed(said.class_id);
  next();
  const last = { sample, items, saved: null };
  const body = { samples: items, seen: shown, ...said, ...named() };
  last.key = keep({ path: "/api/labels", body, items }, sample, async (entry) => {
    try {
      last.saved = known(await delivered(entry, notYet));
      if (!last.saved) undoable = undoable.filter((each) => each !== last);
    } catch (error) {
      undoable = undoable.filter((each) => each !== last);
      if (made && !leaving) forgetClass(said.class_id);
      throw error;
    }
    if (!said.class_id) return t("js.taken-back");
    return items.length > 1 ? t("js.saved-n", { n: items.length, name }) : t("js.saved", { name });
  });
  undoable = [...undoable, last].slice(-MAX_UNDO);
  allowUndo();
}

const known = (saved) => (saved.seq ? saved : null);

const notYet = () => say(t("js.not-yet", { n: pending }), true);

// Answers reach the disk one after the other, in the order they were given. `wrong` says that it was not done.
function keep(what, sample, work, wrong = (why) => t("js.not-saved", { why })) {
  const entry = keepUnsent(what), { items } = entry;
  pending += 1;
  say(pending > 1 ? t("js.saving-n", { n: pending }) : t("js.saving"));
  chain = chain.then(async () => {
    try {
      const text = await work(entry);
      pending -= 1;
      if (pending || text) say(pending ? t("js.saving-n", { n: pending }) : text);
      forgetUnsent(entry.key);
      for (const each of items) taken.set(each, performance.now());
    } catch (error) {
      if (await endsHere(error)) return;
      pending -= 1;
      forgetUnsent(entry.key);
      for (const each of items) taken.delete(each);
      await notSaved(error, sample, wrong);
    }
    allowUndo();
    if (!pending && queue.length < AHEAD) refill();
  });
  return entry.key;
}

addEventListener("beforeunload", (event) => {
  if (!pending || leaving) return;
  event.preventDefault();
  event.returnValue = true;  // what browsers of before 2023 want
});

// What the page before was left with is sent before anything else.
function finishLeft() {
  const items = left.flatMap((entry) => entry.items);
  for (const each of items) taken.set(each, Infinity);
  pending += 1;
  say(t("js.saving-n", { n: left.length }));
  chain = sendLeft(() => say(t("js.not-yet", { n: unsent().length }), true)).then(({ saved, failed, why }) => {
    pending -= 1;
    for (const each of items) taken.set(each, performance.now());
    for (const entry of left) if (failed.includes(entry.key)) for (const each of entry.items) taken.delete(each);
    const labels = left.filter((entry) => saved.has(entry.key));
    undoable = [...labels.map((entry) => ({ key: entry.key, sample: { sample: entry.items[0] }, items: entry.items, saved: saved.get(entry.key) })), ...undoable];
    allowUndo();
    if (failed.length) say(t("js.left", { n: failed.length, why }), true);
    else if (!pending && !leaving) say(t("js.saved-left", { n: left.length }));
    refill();
  });
}

// It is asked about again, at once; but for a picture of which somebody else has said something meanwhile.
async function notSaved(error, sample, wrong) {
  let why = error.message, again = sample;
  if (sample && error.status === 409) {
    const now = await lookAgain(sample).catch(() => sample);
    if (now) again = now;
    if (now && now.label && now.label_class_id !== sample.label_class_id) {
      why = await meanwhile(now).catch(() => why);
      if (sample.sample !== byHand && !walk) again = null;
    }
  }
  say(wrong(why), true);
  if (again) back(again);
}

function back(sample) {
  if (current && current.sample !== sample.sample) queue.unshift(current);
  queue = queue.filter((each) => each.sample !== sample.sample);
  show(sample);
}

function say(text, failed = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("failed", failed);
}

function unsure() {
  if (!current || bounced()) return;
  const sample = current;
  taken.set(sample.sample, Infinity);
  next();
  keep({ path: `/api/samples/${sample.sample}/unsure`, body: {}, items: [sample.sample] }, sample, async (entry) => {
    await delivered(entry, notYet);
    return t("js.saved-unsure");
  });
}

function undo() {
  if (!undoable.length || performance.now() - undoneAt < BOUNCE_MS) return;
  undoneAt = performance.now();
  const last = undoable.pop();
  const entries = () => last.saved && { first_seq: last.saved.first_seq, seq: last.saved.seq, ...named() };
  allowUndo();
  keep({ path: "/api/labels/undo", body: entries(), of: last.key, undoes: last.items }, null, async (entry) => {
    if (!last.saved) return "";  // and that has been said
    try {
      await delivered({ ...entry, body: entries() }, notYet);
    } catch (error) {
      if (!FOR_GOOD.includes(error.status)) { undoable.push(last); throw error; }
      throw new Refused(await overtaken(last).catch(() => "") || error.message, error.status);
    }
    taken.delete(last.sample.sample);
    const again = await lookAgain(last.sample).catch(() => null);
    if (again) back(again);
    refill();
    return t("js.undone");
  }, (why) => t("js.not-undone", { why }));
}

// Who has said something of a sample since; nothing where nobody has.
async function overtaken({ items, saved }) {
  for (const sample of items) {
    const [last] = await call(`/api/samples/${sample}/labels`);
    if (last && !(last.own && last.seq >= saved.first_seq && last.seq <= saved.seq)) return saidMeanwhile(last.label, last);
  }
  return "";
}

// -- pictures that look the same ------------------------------------------------------------------------------

function drawAlike() {
  const alike = current ? current.alike : [];
  $("alike").hidden = !alike.length;
  $("together").setAttribute("aria-pressed", String(together));
  const n = alike.length - out.size;
  $("together-text").textContent = together ? t("label.together-on", { n: n + 1 }) : t("label.together", { n: alike.length });
  const from = $("alike-pictures").contains(document.activeElement) ? document.activeElement : null;
  const old = new Map([...$("alike-pictures").children].map((each) => [each.dataset.sample, each]));
  $("alike-pictures").replaceChildren(...alike.map((sample, i) => {
    const button = old.get(sample) || element("button", { type: "button", "data-sample": sample, "aria-label": t("label.take-out", { n: i + 1 }) },
      element("img", { src: `/api/samples/${sample}/image`, alt: "", loading: "lazy" }));
    if (!old.has(sample)) button.firstChild.addEventListener("error", () => leaveOut(sample, button));
    button.setAttribute("aria-pressed", String(together && !out.has(sample)));
    return button;
  }));
  if (from && from.isConnected) from.focus({ preventScroll: true });
}

// Its picture is not there to be seen.
function leaveOut(sample, button) {
  button.disabled = true;
  if (!current || !current.alike.includes(sample)) return;
  out.add(sample);
  drawAlike();
}

$("together").addEventListener("click", () => { together = !together; drawAlike(); });
$("alike-pictures").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const sample = button.dataset.sample;
  if (!together) together = true;
  else if (out.has(sample)) out.delete(sample);
  else out.add(sample);
  drawAlike();
});

// -- a new defect: its name, its picture, two taps ----------------------------------------------------------------
// While the dialog is open, a save that fails or an undo may bring another picture to the front behind it. The answer
// is for the picture in the dialog, once, and for none where the dialog was closed.

function openDefect(event) {
  if (!seen() || bounced()) return;
  const names = latest ? latest.state.classes.map((each) => each.name.toLowerCase()) : [];
  const usual = t("js.defects").split("|").filter((name) => !names.includes(name.toLowerCase()));
  $("suggestions").replaceChildren(...usual.slice(0, 6).map((name) => element("button", { type: "button", "data-name": name }, name)));
  $("defect-picture").src = picture(current.sample).src;
  defectOf = { sample: current, together, out };
  $("defect-name").value = "";
  $("defect-wrong").textContent = "";
  $("defect").showModal();
  if (!event.detail) $("defect-name").focus();  // by a key; a touch would bring up the keyboard over the usual names
}

// Whoever types means the name, wherever the focus is; space and Enter press what has it.
function typeName(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.key.length !== 1 || event.key === " ") return;
  $("defect-name").focus();
}

// A class that was to come with a label that was refused: it has none, and the device offers it to nobody.
function forgetClass(id) {
  if (latest) latest.state.classes = latest.state.classes.filter((each) => each.id !== id || each.labels);
  drawClasses();
}

async function nameDefect(typed) {
  const asked = defectOf;
  if (!asked || asked.named) return;
  const name = typed.trim().replace(/\s+/g, " ");
  if (!name) { $("defect-wrong").textContent = t("js.name-it"); return; }
  asked.named = true;
  const known = latest && latest.state.classes.find((each) => each.name.toLowerCase() === name.toLowerCase());
  try {
    const id = known ? known.id : (await post("/api/classes", { name, put_away: true, ...named() })).class_id;
    if (defectOf !== asked || !$("defect").open) return;
    if (!known && latest) latest.state.classes.push({ id, name, labels: 0, own_labels: 0 });
    $("defect").close();
    defectOf = null;
    if (!current || current.sample !== asked.sample.sample) {
      back(asked.sample);
      ({ together, out } = asked);
    }
    changedAt = -BOUNCE_MS;  // two taps have been for this picture: none of them bounced
    answer({ class_id: id }, name, !known);
  } catch (error) {
    asked.named = false;
    if (defectOf === asked) $("defect-wrong").textContent = t("js.not-saved", { why: error.message });
  }
}

$("new-defect").addEventListener("click", openDefect);
$("defect").addEventListener("keydown", typeName);
$("suggestions").addEventListener("click", (event) => { if (event.target.dataset.name) nameDefect(event.target.dataset.name); });
$("defect-form").addEventListener("submit", (event) => { event.preventDefault(); nameDefect($("defect-name").value); });
$("defect-cancel").addEventListener("click", () => $("defect").close());
$("defect").addEventListener("close", () => { if (!$("defect").open) defectOf = null; });
$("unsure").addEventListener("click", unsure);
$("undo").addEventListener("click", undo);
$("skip").addEventListener("click", () => { if (current && !bounced()) next(); });
$("take-back").addEventListener("click", () => { if (seen()) answer({ class_id: null }, ""); });

// -- looking closely --------------------------------------------------------------------------------------------

let zoom = 1, panX = 0, panY = 0;
const fingers = new Map();
let pinch = null;

function zoomTo(factor, x = 0, y = 0) {
  const before = zoom;
  zoom = Math.min(MAX_ZOOM, Math.max(1, factor));
  // The point under the finger stays there.
  panX = zoom === 1 ? 0 : x - ((x - panX) * zoom) / before;
  panY = zoom === 1 ? 0 : y - ((y - panY) * zoom) / before;
  place();
}

function pan(x, y) {
  const box = $("stage").getBoundingClientRect();
  const limit = (size) => ((zoom - 1) * size) / 2;
  panX = Math.max(-limit(box.width), Math.min(limit(box.width), panX + x));
  panY = Math.max(-limit(box.height), Math.min(limit(box.height), panY + y));
  place();
}

function place() {
  for (const each of $("stage").querySelectorAll(".picture")) each.style.transform = `translate(${panX}px, ${panY}px) scale(${zoom})`;
}

function fromCentre(event) {
  const box = $("stage").getBoundingClientRect();
  return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
}

$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomTo(zoom * (event.deltaY < 0 ? 1.25 : 0.8), ...fromCentre(event));
}, { passive: false });
$("stage").addEventListener("dblclick", (event) => zoomTo(zoom > 1 ? 1 : 3, ...fromCentre(event)));
$("stage").addEventListener("pointerdown", (event) => { if (event.target.closest("a")) return; fingers.set(event.pointerId, event); $("stage").setPointerCapture(event.pointerId); pinch = null; });
$("stage").addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) {
    const [a, b] = [...fingers.values()];
    const apart = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    if (pinch) zoomTo((zoom * apart) / pinch, ...fromCentre({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 }));
    pinch = apart;
  } else if (zoom > 1) pan(event.clientX - before.clientX, event.clientY - before.clientY);
});
for (const end of ["pointerup", "pointercancel"]) $("stage").addEventListener(end, (event) => { fingers.delete(event.pointerId); pinch = null; });
$("zoom-in").addEventListener("click", () => zoomTo(zoom * 1.6));
$("zoom-out").addEventListener("click", () => zoomTo(zoom / 1.6));
$("zoom-fit").addEventListener("click", () => zoomTo(1));

// The heatmap is of the head that serves now, so it is asked for anew each time.
function drawHeat() {
  $("heat").setAttribute("aria-pressed", String(heat));
  for (const old of $("stage").querySelectorAll(".over-picture")) old.remove();
  if (!heat || !current) return;
  const over = element("img", { class: "picture over-picture", src: `/api/samples/${current.sample}/heatmap`, alt: "", draggable: "false" });
  over.addEventListener("error", async () => {
    heat = false;
    over.remove();
    $("heat").setAttribute("aria-pressed", "false");
    if (current) await call(`/api/samples/${current.sample}/heatmap`).catch((error) => say(error.message, true));
  });
  $("stage").querySelector(".picture").after(over);
  place();
}

$("heat").addEventListener("click", () => { heat = !heat; drawHeat(); });

// -- keys ---------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || $("defect").open) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (event.target === $("stage")) {
    const step = { arrowleft: [60, 0], arrowright: [-60, 0], arrowup: [0, 60], arrowdown: [0, -60] }[key];
    if (step) { event.preventDefault(); pan(...step); return; }
  }
  const zoomed = { "+": () => zoomTo(zoom * 1.6), "-": () => zoomTo(zoom / 1.6), "0": () => zoomTo(1) }[key];
  if (zoomed) { zoomed(); return; }
  const button = /^[1-9]$/.test(key) ? $("classes").children[Number(key) - 1]
    : { n: $("new-defect"), h: $("heat"), s: walk ? $("skip") : $("unsure"), t: $("take-back"), u: $("undo"), g: $("together") }[key];
  if (button && allowed(button) && !button.closest("[hidden]")) { event.preventDefault(); button.click(); }
});

// -- begin --------------------------------------------------------------------------------------------------------

let begun = false;  // what somebody picked is shown first, also where the queue answers sooner

async function begin() {
  byHand = new URLSearchParams(location.search).get("sample");
  walkFrom(location.search);
  if (walk && !await inList()) walk = null;
  if (walk) byHand = null;
  if (byHand) {
    try {
      show(await call(`/api/samples/${encodeURIComponent(byHand)}`));
    } catch (error) {
      say(error.message, true);
    }
    history.replaceState(null, "", "/label");
  }
  begun = true;
  await refill();
  if (!current) show(null);
}

// Whether what was picked is where the address says; the first picture of the list is it then.
async function inList() {
  try {
    await fill();
    if (queue.length && queue[0].sample === byHand) return true;
    say(t("js.walk-lost"), true);
  } catch (error) {
    say(walk.gone ? t("js.walk-lost") : error.message, true);
  }
  queue = [];
  return false;
}

let heardKey = "";
if (left.length) finishLeft();
onState(({ state }) => {
  drawClasses();
  const image = current && loaded.get(current.sample);
  if (image && image.failedAt && performance.now() - image.failedAt > LOAD_AGAIN_MS) drawPicture();
  const key = JSON.stringify([state.queue_depth, state.live_set_digest, state.head && state.head.number]);
  if (key === heardKey) return;
  heardKey = key;
  if (begun) refill();
});
begin();
