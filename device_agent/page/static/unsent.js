// Answers on their way to the device's disk. This tab keeps each until the device has said what became of it: a page
// that is left sends the rest of them on its way out, and the next page, whichever it is, makes sure and tells of those
// that could not be saved. Only for whoever gave them: a label has the name of its session.
"use strict";

const UNSENT = "unsent";
const BREAKING_OFF_MS = 1000;
const unsent = () => JSON.parse(sessionStorage.getItem(UNSENT) || "[]");
const left = facts.loggedIn ? unsent() : [];  // by the page before
const sending = new Set();

function storeUnsent(entries) {
  try {
    sessionStorage.setItem(UNSENT, JSON.stringify(entries));
  } catch (error) {
    // A browser that stores nothing still asks before it leaves.
  }
}

// What to post and the samples that it is about; `of` is the key of the answer that an undo takes back.
function keepUnsent({ path, body, items = [], of = "" }) {
  const entry = { path, body, items, of, who: facts.who, key: `${Date.now()}-${Math.random()}` };
  storeUnsent([...unsent(), entry]);
  return entry;
}

const forgetUnsent = (key) => storeUnsent(unsent().filter((each) => each.key !== key));

// It arrives though the page is left meanwhile.
function deliver({ key, path, body }) {
  sending.add(key);
  return call(path, { method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

// Whether a request failed because the page ends: it arrives all the same, and the next page asks after it. Browsers
// break off what is on its way shortly before they say so; or somebody was asked and stays, and the device is away.
let mayEnd = false;
addEventListener("beforeunload", () => { mayEnd = true; });
async function endsHere(error) {
  if (mayEnd && !error.status) await new Promise((then) => setTimeout(then, BREAKING_OFF_MS));
  return leaving;
}

addEventListener("pagehide", () => {
  leaving = true;
  for (const entry of unsent()) {
    if (entry.of || entry.who !== facts.who) return;  // an undo may need the answer to one of these
    if (!sending.has(entry.key)) deliver(entry).catch(() => {});
  }
});

// Send what the page before has left; return what became of it.
async function sendLeft() {
  const saved = new Map(), failed = [], wrong = new Set();
  for (const entry of left) {
    if (!entry.of || !failed.includes(entry.of)) {  // what was not saved needs no undo
      try {
        if (entry.who !== facts.who) throw new Refused(t("js.left-other"));
        const body = entry.body || saved.get(entry.of);
        if (!body) throw new Refused(t("js.left-undo"));
        const answer = await deliver({ ...entry, body }).catch((error) => arrivedBefore(entry, error));
        if (entry.of) saved.delete(entry.of);
        else if (answer.seq) saved.set(entry.key, { first_seq: answer.first_seq, seq: answer.seq });
      } catch (error) {
        if (await endsHere(error)) break;
        failed.push(entry.key);
        wrong.add(error.message);
      }
    }
    forgetUnsent(entry.key);
  }
  return { saved, failed, why: [...wrong].join(" · ") };
}

// It may have reached the device before the page was left, and only its answer not the page.
async function arrivedBefore(entry, error) {
  if (error.status !== 409) throw error;
  if (entry.of) return {};
  const last = await Promise.all(entry.items.map(async (sample) => (await call(`/api/samples/${sample}/labels`))[0]));
  if (!last.every((each) => each && each.own && each.class_id === entry.body.class_id)) throw error;
  return last.length === 1 ? { first_seq: last[0].seq, seq: last[0].seq } : {};
}

if (facts.page !== "label" && left.length) {
  sendLeft().then(({ failed, why }) => { if (failed.length) tell(t("js.left", { n: failed.length, why })); });
}
