// What the line is doing: the newest part, the shift, the last parts.
"use strict";

const SHOWN = 24;
let newest = null;
let heat = false;
let shownFrames = -1;
let shownLabels = "";

function markOf(sample) {
  if (sample.label) return { level: "good", mark: "✎", text: sample.label };
  if (sample.unknown) return { level: "warn", mark: "?", text: t("now.unknown") };
  if (sample.good === null) return { level: "wait", mark: "–", text: sample.decision }; // nobody said what passes
  const bad = !sample.good;
  return { level: bad ? "bad" : "good", mark: bad ? "✕" : "✓", text: sample.decision };
}

async function drawParts({ state }) {
  const labels = `${state.live_set_digest} ${state.queue_depth}`;
  if (state.frames === shownFrames && labels === shownLabels) return;
  shownFrames = state.frames;
  shownLabels = labels;
  const samples = await call(`/api/samples?limit=${SHOWN}`);
  newest = samples[0] || null;
  drawLive();
  const old = new Map([...$("strip").children].map((each) => [each.dataset.key, each]));
  $("strip").replaceChildren(...samples.map((each) => {
    const key = [each.sample, each.status, each.decision, each.label, each.good].join("|");
    return old.get(key) || tile(each, key);
  }));
}

function tile(sample, key) {
  const { level, mark, text } = markOf(sample);
  const more = sample.label ? t("now.labelled") : sample.by_threshold ? byThreshold(sample)
    : sample.status === "queued" ? t("now.asks") : percent(sample.probability);
  return element("a", { href: `/label?sample=${sample.sample}`, "data-key": key, "data-sample": sample.sample, class: `part ${level}` },
    element("img", { src: `/api/samples/${sample.sample}/image`, alt: "", loading: "lazy" }),
    element("span", { class: "what", title: text }, element("span", { class: "mark", "aria-hidden": "true" }, mark), ` ${text}`),
    element("span", { class: "quiet" }, more));
}

function drawLive() {
  const image = $("live-picture");
  $("live").disabled = !newest;
  $("live-none").hidden = Boolean(newest);
  image.hidden = !newest;
  if (!newest) return;
  $("live").setAttribute("aria-pressed", String(heat));
  const wanted = `/api/samples/${newest.sample}/${heat ? "heatmap" : "image"}`;
  if (image.getAttribute("src") !== wanted) image.src = wanted;
  const { level, mark, text } = markOf(newest);
  const box = $("live-decision");
  box.className = `decision ${level}`;
  box.querySelector(".mark").textContent = mark;
  box.querySelector(".text").replaceChildren(...breakable(text));
  box.querySelector(".sure").replaceChildren(...breakable(sureOf(newest)));
}

// Which probability of a defect decided, where the threshold says otherwise than the class that is shown.
function byThreshold(sample) {
  const defect = sample.defect, near = Math.min(defect, 1 - defect); // thresholds lie near either end
  const said = { defect: percent(defect, near < 0.01 ? 2 : 0) };
  return sample.rejected ? t("now.rejected-by", said) : t("now.passed-by", said);
}

// How sure the device is of its own decision, which is another than what people said.
function sureOf(sample) {
  const sure = percent(sample.probability);
  if (!sample.label && sample.by_threshold) return byThreshold(sample);
  if (!sample.label) return sample.unknown ? "" : t("now.sure", { sure });
  return sample.unknown ? t("now.labelled-unknown") : t("now.labelled-said", { name: sample.decision, sure });
}

$("live").addEventListener("click", () => { tell(""); heat = !heat; drawLive(); });
$("live-picture").addEventListener("error", async () => {
  if (!heat || !newest) return;
  heat = false;
  const path = `/api/samples/${newest.sample}/heatmap`;
  drawLive();
  await call(path).catch((error) => tell(error.message));
});

function put(id, text) {
  if ($(id).textContent !== String(text)) $(id).textContent = text;
}

function drawFacts({ state, shift }) {
  $("ask").hidden = !state.queue_depth;
  put("ask", t("now.ask", { n: state.queue_depth }));
  put("count-parts", shift.parts.toLocaleString(document.documentElement.lang));
  put("count-rejects", shift.rejects);
  put("count-unknown", shift.unknown);
  put("count-labels", shift.labels);
  put("since", t("now.since", { time: new Date(1000 * shift.began_utc).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit", hour12: false }) }));
  const { release, head, mqtt } = state, camera = cameraOf(state);
  const frames = state.cameras.reduce((sum, each) => sum + each.frames, 0);
  put("fact-release", release ? `${release.name} · ${release.precision} · ${release.runtime}` : "–");
  put("fact-head", head ? t("now.head-is", { number: head.number, state: t(`now.${head.state}`) }) : "–");
  put("fact-camera", camera.state === "live" ? t("now.live-camera", { n: frames }) : t(`now.camera-${camera.state}`, { name: camera.name }));
  put("fact-fleet", !mqtt ? t("now.fleet-none") : mqtt.connected ? t("now.fleet-on") : t("now.fleet-off", { n: state.outbox }));
}

onState((message) => {
  drawFacts(message);
  drawParts(message).catch(() => {});
});
