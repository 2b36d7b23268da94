"""page: how fast a label is saved, how the page grows, what it weighs, and what a kill leaves of a label.

    python -m benchmarks.page                        # all of it; about ten minutes
    python -m benchmarks.page --labels 200 --kills 0 # the speed only
    python -m benchmarks.page --labels 80 --known 1200 --pace-s 1 --kills 0 --parts 0  # as people label

A real Chromium at 1280 x 800 uses the page of a device in this process; so browser, page and learning share the
cores. Every label is a tap on a button, and its times are taken in the browser, by its own clock.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from playwright.sync_api import Response

from tests.pages import ASK_ALL, Device, Screen, chromium, opened, serving, write_stream
from tests.test_page_kill import Killed
from tests.tiny import class_id, tiny_bundle

QUESTION: Final = "how fast is a label saved, what does the page weigh, what does a kill leave?"
WARM_UP: Final = 20
TOGETHER: Final = 60
CLASSES: Final = ("good", "pit", "scratch")
PARTS_OF: Final = 3
"""Pictures of one part in the rehearsed shift: a camera with three looks."""
TAP: Final = """
classId => new Promise(done => {
  changedAt = 0;
  const before = current && current.sample, began = performance.now();
  const found = {};
  const finish = () => { if (found.saved && found.next) { watch.disconnect(); done(found); } };
  const watch = new MutationObserver(() => {
    if (!found.saved && document.getElementById('saved').textContent.startsWith('✓')) {
      found.saved = performance.now() - began;
      finish();
    }
  });
  watch.observe(document.getElementById('saved'), { childList: true, characterData: true, subtree: true });
  document.querySelector(`#classes [data-id="${classId}"]`).click();
  const shown = () => {
    const picture = document.querySelector('#stage .picture');
    const changed = !current || current.sample !== before;
    const there = !current || (changed && picture && picture.complete && picture.naturalWidth > 0);
    if (!there) { requestAnimationFrame(shown); return; }
    requestAnimationFrame(() => { found.next = performance.now() - began; finish(); });
  };
  shown();
})
"""


def speed_and_growth(folder: Path, labels: int, *, known: int, pace_s: float) -> dict[str, Any]:
    """Return milliseconds from tap to "saved" and to the next picture, and how the page grew over these labels.

    Args:
        folder: For the device's data.
        labels: Taps.
        known: Labels that the device has already.
        pace_s: Pause before each tap. Trials run in it, as they do when people label.
    """
    stream = write_stream(folder / "stream", {name: (labels + known) // len(CLASSES) + 60 for name in CLASSES})
    bundle = tiny_bundle(folder / "bundle")
    saved: list[float] = []
    shown: list[float] = []
    memory: list[float] = []
    with (
        serving(folder / "data", stream, bundle, ASK_ALL) as device,
        chromium() as browser,
        opened(browser, viewport={"width": 1280, "height": 800}) as (context, on),
    ):
        _know(device, known)
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        session = context.new_cdp_session(on.page)
        for i in range(labels):
            on.until("seen()")
            on.page.wait_for_timeout(1000 * pace_s)
            took = on.page.evaluate(TAP, class_id(CLASSES[i % len(CLASSES)]).hex())
            if i >= WARM_UP:
                saved.append(took["saved"])
                shown.append(took["next"])
            if i in (min(100, labels // 2), labels - 1):
                memory.append(_heap_bytes(session))
        _check(device, known + labels)
    return {
        "labels": labels,
        "known": known,
        "pace_s": pace_s,
        "tap_to_saved_ms": _spread(saved),
        "next_picture_ms": _spread(shown),
        "heap_bytes": memory,
        "growth": memory[-1] / memory[0],
    }


def _know(device: Device, labels: int) -> None:
    """Label so many of what waits, a few at a time."""
    waiting = device.station.store.samples.queue(labels)
    for first in range(0, len(waiting), TOGETHER):
        some = waiting[first : first + TOGETHER]
        said = [(each.sample_id, class_id(Path(each.source).name.split("-")[0])) for each in some]
        device.station.label_all(said, "benchmark")
    device.settle()


def _heap_bytes(session: Any) -> float:
    session.send("HeapProfiler.collectGarbage")
    return float(session.send("Runtime.getHeapUsage")["usedSize"])


def _check(device: Device, labels: int) -> None:
    found = len(device.labels())
    if found != labels:
        raise SystemExit(f"{found} labels are on disk, {labels} were said to be saved")


def _spread(values: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95, 99)}


def weight(folder: Path) -> dict[str, int]:
    """Return the bytes of each page without its pictures, nothing compressed, nothing from a cache."""
    stream = write_stream(folder / "stream", {"rings": 4})
    found: dict[str, int] = {}
    with (
        serving(folder / "data", stream, tiny_bundle(folder / "bundle"), ASK_ALL) as device,
        chromium() as browser,
    ):
        for path in ("", "label", "learned", "quality", "settings"):
            with opened(browser) as (_, on):
                sizes: list[int] = []
                on.page.on("response", partial(_weigh, sizes))
                on.page.goto(device.url + path)
                on.ready()
                on.page.wait_for_timeout(1500)
                found[path or "now"] = sum(sizes)
    return found


def _weigh(sizes: list[int], response: Response) -> None:
    if not (response.url.endswith("/api/events") or "/image" in response.url or "/heatmap" in response.url):
        sizes.append(len(response.body()))


def taps(folder: Path, parts: int) -> dict[str, float]:
    """Return taps per label on a shift's queue, by an operator who labels what looks the same in one go."""
    stream = write_stream(
        folder / "stream", dict.fromkeys(("rings", *CLASSES), PARTS_OF * parts), part_of=PARTS_OF
    )
    bundle = tiny_bundle(folder / "bundle")
    truth = {row.split(",")[0]: row.split("-")[0] for row in (stream / "index.csv").read_text().splitlines()[1:]}
    count = {"taps": 0, "labels": 0, "answers": 0}
    with serving(folder / "data", stream, bundle) as device, chromium() as browser:
        device.station.define_class("rings", "")
        with opened(browser, has_touch=True) as (_, on):
            on.page.goto(device.url + "label")
            on.ready()
            while _answer(device, on, truth, count):
                pass
        if len(device.labels()) != count["labels"]:
            raise SystemExit(f"{len(device.labels())} labels are on disk, {count['labels']} were given")
    return {**count, "taps_per_label": count["taps"] / count["labels"]}


def _answer(device: Device, on: Screen, truth: dict[str, str], count: dict[str, int]) -> bool:
    """Answer one question as somebody would who sees what it is; return false when nothing is asked any more."""
    on.quiet()
    device.settle()
    on.page.wait_for_timeout(600)
    on.page.evaluate("refill()")
    sample = on.page.evaluate("current && current.sample")
    if not sample:
        return False

    def what(each: str) -> str:
        kept = device.station.store.samples.get(bytes.fromhex(each))
        return "" if kept is None else truth[Path(kept.source).name]

    on.settled()
    alike = on.page.evaluate("current.alike")
    together = [each for each in alike if what(each) == what(sample)]
    if together:
        on.page.locator("#together").tap()
        count["taps"] += 1
        for each in set(alike) - set(together):
            on.page.locator(f'#alike-pictures [data-sample="{each}"]').tap()
            count["taps"] += 1
    on.page.locator(f'#classes [data-class="{what(sample)}"]').tap()
    count["taps"] += 1
    count["answers"] += 1
    count["labels"] += 1 + len(together)
    return True


def kills(folder: Path, times: int) -> dict[str, Any]:
    """Lose power so often between a tap and "saved"; return where the kills fell. What is half on disk ends it."""
    device = Killed(folder, {"rings": 2 * times + 8})
    chance = random.Random(0)
    for _ in range(times):
        device.once(chance.random())
    return {"kills": times, "half": 0, **device.lost_at}


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=QUESTION)
    parser.add_argument("--labels", type=int, default=2000, metavar="N", help="taps; 0 leaves them out")
    parser.add_argument("--known", type=int, default=0, metavar="N", help="labels given before")
    parser.add_argument("--pace-s", type=float, default=0.0, metavar="S", help="pause before each tap")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="0 leaves them out")
    parser.add_argument("--parts", type=int, default=12, metavar="N", help="of each class in the rehearsed shift")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for what, wanted, run in (
            (
                "speed",
                options.labels,
                lambda at: speed_and_growth(at, options.labels, known=options.known, pace_s=options.pace_s),
            ),
            ("weight_bytes", 1, weight),
            ("taps", options.parts, lambda at: taps(at, options.parts)),
            ("kills", options.kills, lambda at: kills(at, options.kills)),
        ):
            if wanted:
                at = Path(name) / what
                at.mkdir()
                found[what] = run(at)
                print(f"  {what}: {found[what]}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
