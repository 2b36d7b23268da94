// What every page shares: texts, calls to the device, the stream of its state, buttons that act.
// Nothing is kept here but what the page shows; the device is asked again for everything else.
"use strict";

const REFUSED_MS = 5000;  // until the device is asked again after it refused to tell its state
const SILENT_MS = 11000;  // the device says something every 5 s; after so much silence it is asked whether it is there
const THERE_MS = 5000;    // how long it may take to say so
const READ_MS = 30000;    // how long it may take to tell anything else
const LATE_MS = 4000;     // a write that is not answered by then is told of; it goes on

const facts = JSON.parse(document.getElementById("page-facts").textContent);
const $ = (id) => document.getElementById(id);
const number = (x, digits) => x.toFixed(digits).replace(".", t("common.decimal"));
const percent = (x, digits = 0) => t("common.percent", { n: number(100 * x, digits) });

function t(key, values = {}) {
  return (facts.texts[key] || key).replace(/\{([a-z_]+)\}/g, (_, name) => (name in values ? values[name] : ""));
}

class Refused extends Error {
  constructor(text, status = 0) { super(text); this.status = status; }
}

let leaving = false;  // this page ends: what fails now fails for that

// What is read is given up in time, or a device that hangs would be waited for without end. What is written never is:
// it may have been done.
async function call(path, options = {}) {
  return options.method && options.method !== "GET" ? unlessLate(ask(path, options)) : within(options.within || READ_MS, path, options);
}

async function within(ms, path, options) {
  const end = new AbortController(), timer = setTimeout(() => end.abort(), ms);
  try {
    return await ask(path, { ...options, signal: end.signal });
  } finally {
    clearTimeout(timer);
  }
}

async function unlessLate(asked) {
  const timer = setTimeout(() => { late.add(asked); drawNotice(); }, LATE_MS);
  try {
    return await asked;
  } finally {
    clearTimeout(timer);
    if (late.delete(asked)) drawNotice();
  }
}

async function ask(path, options) {
  const headers = { ...(options.headers || {}) };
  if (options.method && options.method !== "GET") headers["X-Headway-CSRF"] = facts.csrf;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    throw new Refused(t("js.no-answer"));
  }
  if (answer.status === 401 && facts.loggedIn) {
    leaving = true;
    location.href = `/login?then=${encodeURIComponent(location.pathname + location.search)}`;
  }
  const body = await answer.json().catch(() => {
    if (answer.ok) throw new Refused(t("js.no-answer"));  // it broke off
    return {};
  });
  if (!answer.ok) throw new Refused(refusal(answer.status, body), answer.status);
  return body;
}

// In the reader's language what kind of thing is wrong; in brackets the device's own words, for whoever can help.
function refusal(status, { error = "", hint = "" }) {
  const kind = facts.texts[`refused.${status}`] ? t(`refused.${status}`) : String(status);
  const own = hint ? `${error}. ${hint}` : error;
  return own ? `${kind} (${own})` : kind;
}

const send = (method, path, body) =>
  call(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const post = (path, body) => send("POST", path, body);
const operator = () => (facts.accounts ? "" : (localStorage.getItem("operator") || "").trim());
const named = () => (operator() ? { operator: operator() } : {});

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A name may be divided after what joins its words, rather than within one.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

function cookie(name, value) {
  document.cookie = `${name}=${value}; Path=/; Max-Age=31536000; SameSite=Strict${location.protocol === "https:" ? "; Secure" : ""}`;
}

// -- the state of the device ----------------------------------------------------------------------------------

let latest = null;      // {state, shift}
let learnedKey = "";
let chosenKey = "";
const listeners = [];
const onState = (listener) => { listeners.push(listener); if (latest) listener(latest); };

// The camera that is worst off.
const WORST_FIRST = ["lost", "ended", "opening", "live"];
const cameraOf = (state) => [...state.cameras].sort((a, b) => WORST_FIRST.indexOf(a.state) - WORST_FIRST.indexOf(b.state))[0];

// All that is wrong, the worst first: {level, mark, text, more, n}, n of them. Levels: good, wait, warn, bad. What the
// page says in words of its own is not among the device's faults once more.
function conditions(state) {
  const found = [], said = new Set();
  const say = (level, mark, text, more = "", n = 1) => found.push({ level, mark, text, more, n });
  for (const { name } of state.cameras.filter((each) => each.state === "lost")) {
    said.add(facts.faults.lost.replace("{name}", () => name));
    say("bad", "✕", t("state.camera-lost"), state.cameras.length > 1 ? t("state.camera-lost-one", { name }) : t("state.camera-lost-more"));
  }
  if (state.drift && state.drift.alarm) say("bad", "!", t("state.drift"), t("state.drift-more"));
  if (state.none_passes) {
    said.add(facts.faults.none_passes);
    say("warn", "!", t("state.none-passes"), state.good_chosen ? t("state.none-passes-again") : t("state.none-passes-more"));
  }
  const faults = state.faults.filter((each) => !said.has(each));
  if (faults.length) say("warn", "!", t("state.fault"), t("state.fault-more", { what: faults.join(" · ") }), faults.length);
  if (!state.release) say("wait", "…", t("state.waiting"), state.mqtt ? t("state.waiting-more") : t("state.waiting-alone"));
  else if (cameraOf(state).state === "ended") say("warn", "■", t("state.ended"), t("state.ended-more"));
  if (!found.length) say("good", "✓", t("state.running"));
  return found;
}

// What is worst, with how many `others` there are; on Now these stand under it.
function showConditions([worst, ...others]) {
  const count = others.reduce((sum, each) => sum + each.n, worst.n - 1);
  const bar = $("device-state");
  showCondition(bar, worst);
  bar.title = [worst, ...others].map(({ text, more }) => [text, more].filter(Boolean).join(". ")).join("\n");
  const told = count ? [` +${count}`, ` ${t("state.others", { n: count })}`] : ["", ""];
  bar.querySelectorAll(".others span").forEach((each, i) => { if (each.textContent !== told[i]) each.textContent = told[i]; });
  const box = $("others"), key = JSON.stringify(others);
  showCondition($("verdict"), worst);
  if (!box || box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...others.map(({ level, mark, text, more }) => element("p", { class: `other ${level}` },
    element("span", { class: "mark", "aria-hidden": "true" }, mark), " ", element("span", {}, element("b", {}, text), ` ${more}`))));
}

function showCondition(box, { level, mark, text, more }) {
  if (!box) return;
  const base = box.className.split(" ")[0];
  box.className = `${base} ${level}`;
  for (const [part, value] of [[".mark", mark], [".text", text], [".more", more]]) {
    const place = box.querySelector(part);
    if (place && place.textContent !== value) place.textContent = value;
  }
}

function heard(message) {
  latest = message;
  const { state } = message;
  showConditions(conditions(state));
  $("waiting").textContent = state.queue_depth;
  $("waiting").hidden = !state.queue_depth;
  gone = false;
  drawNotice();
  const key = JSON.stringify([state.head && [state.head.number, state.head.state, state.head.busy, state.head.trial], state.live_set_digest]);
  if (learnedKey && key !== learnedKey) document.body.dispatchEvent(new CustomEvent("learned"));
  learnedKey = key;
  const choice = JSON.stringify(state.operating);
  if (chosenKey && choice !== chosenKey) document.body.dispatchEvent(new CustomEvent("chosen"));
  chosenKey = choice;
  for (const listener of listeners) listener(message);
}

let told = "";           // stays while the page does, or until the next button
let gone = false;        // the device does not answer
const late = new Set();  // writes that it has not answered yet

function drawNotice() {
  const text = gone ? `${t("state.away")}. ${t("state.away-more")}` : told || (late.size ? t("js.late") : "");
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("notice").hidden = !text;
}

function tell(text) {
  told = text;
  drawNotice();
}

function away() {
  showConditions([{ level: "bad", mark: "✕", text: t("state.away"), more: t("state.away-more"), n: 1 }]);
  gone = true;
  drawNotice();
}

let events = null;
let heardAt = 0;
let wondering = false;

function listen() {
  if (events) events.close();
  heardAt = performance.now();
  events = new EventSource("/api/events");
  events.addEventListener("state", (event) => { heardAt = performance.now(); heard(JSON.parse(event.data)); });
  events.addEventListener("alive", () => { heardAt = performance.now(); if (gone && latest) heard(latest); });
  events.addEventListener("error", async () => {
    away();
    // After a lost connection the browser tries again by itself, after a refusal never: the session may be over,
    // which `call` sees, or there were too many requests.
    if (events.readyState !== EventSource.CLOSED) return;
    await call("/api/shift").catch(() => {});
    setTimeout(listen, REFUSED_MS);
  });
}

// A device that hangs, or whose cable is pulled, ends no stream: it only falls silent.
async function wonder() {
  if (wondering || performance.now() - heardAt < SILENT_MS) return;
  wondering = true;
  try {
    await call("/api/shift", { within: THERE_MS });
    listen();
  } catch (error) {
    if (!error.status) away();
  } finally {
    wondering = false;
  }
}

if (facts.loggedIn) {
  listen();
  setInterval(wonder, 1000);
  addEventListener("offline", away);
  addEventListener("online", listen);  // a stream that outlived it would say nothing before the next change
  addEventListener("pagehide", () => events.close());
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

// -- buttons that act -----------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-post], [data-delete]");
  if (!button || button.disabled) return;
  if (button.dataset.ask && !window.confirm(button.dataset.ask)) return;
  button.disabled = true;
  tell("");
  try {
    if (button.dataset.post) await post(button.dataset.post, { ...JSON.parse(button.dataset.body), ...(button.dataset.post.startsWith("/api/labels") ? named() : {}) });
    else await call(button.dataset.delete, { method: "DELETE" });
    button.textContent = t("js.done");
    if (button.dataset.delete) location.reload();
    else document.body.dispatchEvent(new CustomEvent("learned"));
  } catch (error) {
    button.disabled = false;
    tell(t("js.not-saved", { why: error.message }));
  }
});
