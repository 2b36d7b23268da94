// Answers on their way to the device's disk. This tab keeps each until the device has said what became of it: a page
// that is left sends the rest of them on its way out, and the next page, whichever it is, makes sure and tells of those
// that could not be saved. Only for whoever gave them: a label has the name of its session. Where no answer comes at
// all, nobody knows whether it was saved: it is sent again until one does, and a refusal is compared with what is there.
"use strict";

const UNSENT = "unsent";
const BREAKING_OFF_MS = 1000;
const SEND_AGAIN_MS = 2000;
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

// What to post and the samples that it is about; `of` is the key of the answer that an undo takes back, `undoes` its
// samples.
function keepUnsent({ path, body, items = [], of = "", undoes = [] }) {
  const entry = { path, body, items, of, undoes, who: facts.who, key: `${Date.now()}-${Math.random()}` };
  storeUnsent([...unsent(), entry]);
  return entry;
}

const forgetUnsent = (key) => storeUnsent(unsent().filter((each) => each.key !== key));

// It arrives though the page is left meanwhile.
function deliver({ key, path, body }) {
  sending.add(key);
  return call(path, { method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

// What the device says at last. `waiting` is called each time that it has said nothing; `lost`: it may have it already.
async function delivered(entry, waiting = () => {}, lost = false) {
  let refused = null;
  for (;;) {
    try {
      return refused ? await arrivedBefore(entry, refused) : await deliver(entry);
    } catch (error) {
      if (lost && error.status === 409 && !refused) { refused = error; continue; }
      sending.delete(entry.key);
      if (!unanswered(error) || await endsHere(error)) throw error;
      lost = true;
      waiting();
      await new Promise((then) => setTimeout(then, SEND_AGAIN_MS));
    }
  }
}

// Nor is it the device that says these, but a proxy that it does not answer.
const unanswered = (error) => [0, 502, 504].includes(error.status);

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
async function sendLeft(waiting) {
  const saved = new Map(), failed = [], wrong = new Set();
  for (const entry of left) {
    if (!entry.of || !failed.includes(entry.of)) {  // what was not saved needs no undo
      try {
        if (entry.who !== facts.who) throw new Refused(t("js.left-other"));
        const body = entry.body || saved.get(entry.of);
        if (!body) throw new Refused(t("js.left-undo"));
        const answer = await delivered({ ...entry, body }, waiting, true);
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

// What was refused may have reached the device before, and only its answer not the page. Then it is as it was said.
async function arrivedBefore({ body, items, of, undoes = [] }, error) {
  const said = await Promise.all((of ? undoes : items).map((sample) => call(`/api/samples/${sample}/labels`)));
  if (!said.every(of ? (rows) => isUndone(rows, body) : ([last]) => last && isSaid(last, body))) throw error;
  if (of) return {};
  const last = said.map(([row]) => row), seqs = last.map((row) => row.seq);
  // What was saved at once has one time; what lies between other entries is not for an undo of all.
  return last.every((row) => row.at_utc === last[0].at_utc) ? { first_seq: Math.min(...seqs), seq: Math.max(...seqs) } : {};
}

const isSaid = (row, { class_id, operator }) => row.own && row.class_id === class_id && row.who === (facts.name || operator || "");

// The entry that was to be undone, and since then nothing but what the sample was before it.
function isUndone([last, before], { first_seq, seq }) {
  return Boolean(before) && before.own && before.seq >= first_seq && before.seq <= seq && last.own && last.class_id === before.before_class_id;
}

if (facts.page !== "label" && left.length) {
  sendLeft().then(({ failed, why }) => { if (failed.length) tell(t("js.left", { n: failed.length, why })); });
}
