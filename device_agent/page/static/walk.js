// The pictures behind a figure, one after the other, where the page was opened from their list: it asks about these
// instead of what waits. The list is of one head and stays as it is while labels change, so places in it hold.
"use strict";

const WALKED = 12;  // pictures of one answer

let walk = null;  // {query, next: place to go on from, count, place and sample: of the picture that is shown, gone}

function walkFrom(address) {
  const asked = new URLSearchParams(address);
  if (!asked.has("figure")) return;
  const next = Number(asked.get("offset"));
  for (const each of ["sample", "offset", "limit"]) asked.delete(each);
  walk = { query: asked.toString(), next, count: Infinity, place: next, gone: false };
}

const walkLost = () => walk.gone && walk.next < walk.count;
const walksOn = () => !walk.gone && walk.next < walk.count;

// The device tells lists no longer that nobody has looked into for many heads: then nothing more comes of it.
async function listed(offset, limit) {
  try {
    return await call(`/api/quality/pictures?${walk.query}&offset=${offset}&limit=${limit}`);
  } catch (error) {
    walk.gone = error.status === 404;
    throw error;
  }
}

// Each look keeps the list for more heads.
async function stayIn() {
  if (!walk.gone) await listed(walk.place, 1);
}

// Those of the next few that are here to be seen, with what the head said that had never seen their part.
async function walkOn() {
  const { count, offset, pictures } = await listed(walk.next, WALKED);
  Object.assign(walk, { next: offset + pictures.length, count: pictures.length ? count : 0 });
  return pictures.flatMap(({ kept, class_id, decision, forced, probability }, i) =>
    kept ? [{ ...kept, place: offset + i, leftOut: { class_id, decision, forced, probability } }] : []);
}

// Says where in the list somebody is, and leads back there; the address is that of the picture shown.
function drawWalk(sample) {
  $("walk").hidden = !walk;
  $("skip").hidden = !walk;
  $("unsure").hidden = Boolean(walk);
  $("walked").hidden = !walk || Boolean(sample) || walk.next < walk.count;
  $("walk-lost").hidden = !walk || Boolean(sample) || !walkLost();
  if (!walk) return;
  if (sample) Object.assign(walk, { place: sample.place, sample: sample.sample });
  const page = Number($("walk").dataset.page), from = walk.place - (walk.place % page);
  const back = `/quality/pictures?${walk.query}${from ? `&offset=${from}` : ""}#p-${walk.sample}`;
  for (const link of document.querySelectorAll("[data-back]")) link.href = back;
  $("walk").textContent = t("label.walk", { n: walk.place + 1, count: walk.count });
  history.replaceState(null, "", `/label?${walk.query}&sample=${walk.sample}&offset=${walk.place}`);
}
