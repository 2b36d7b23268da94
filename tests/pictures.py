"""The pictures of the page in docs/img, and others to look at: real pages in a real Chromium.

    headway demo                                      # draws the parts and makes a bundle: demo-out
    python -m tests.pictures demo-out docs/img        # 800 x 480, 1280 x 800, 1920 x 1080; one in the dark
    python -m tests.pictures demo-out look --all      # every page, size, theme and language

A device sees the demo's parts in two lots; a third of what it asks about is labelled, two of them wrongly.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from device_agent.camera import CameraState, Shot
from device_agent.queue import QueuePolicy
from sdk.bundle import Bundle
from sdk.images import decode, sample_id
from tests.pages import Device, Screen, chromium, opened, serving

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

PAGES: Final = ("now", "label", "learned", "quality", "settings")
SIZES: Final = ((800, 480), (1280, 800), (1920, 1080))
SEEN: Final = 160
LABELLED: Final = 18
HEADS: Final = 4
"""Labels between two heads that are tried."""
PATIENCE_S: Final = 600.0
WRONG: Final = (9, 15)
"""Of those, labelled as stains whatever they are."""


@contextmanager
def scene(demo: Path, folder: Path) -> Iterator[Device]:
    """Run a device in the midst of its work."""
    with (demo / "images" / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = {sample_id((demo / "images" / row["path"]).read_bytes()).hex(): row["label"] for row in rows}
    with (demo / "stream-a" / "index.csv").open(encoding="utf-8") as file:
        part_of = {row["path"]: row["group"] for row in csv.DictReader(file)}
    stream = sorted((demo / "stream-a").glob("*.png"))[:SEEN]
    first = folder / "stream"
    first.mkdir()
    shutil.copy(stream[0], first)
    policy = QueuePolicy(spot_check_share=0.15)  # the demo's head asks about little else
    with serving(folder / "data", first, Bundle.open(demo / "bundle"), policy) as device:
        device.camera.name, device.camera.tally.state = "camera-1", CameraState.LIVE
        device.camera.tally.frames = 1 + len(stream)
        names = {row["label"] for row in rows}
        for name in sorted(names - {each.name for each in device.station.classes()}):
            device.station.define_class(name, "Ann")
        for i, path in enumerate(stream):
            part, lot = part_of[path.name], f"B{2 * i // len(stream) + 7}"
            data = path.read_bytes()
            shot = Shot(decode(data), time.time(), f"line-1/{part}", "camera-1", data, part, lot=lot)
            device.inspect(shot)
        for i in range(LABELLED):
            waiting = device.http.get("/api/samples", params={"limit": 200, "status": "queued"}).json()
            if not waiting:
                break
            sample = waiting[i % len(waiting)]["sample"]
            said = "stain" if i in WRONG else truth[sample]
            body = {"sample": sample, "class_name": said, "operator": "Ann" if i % 3 else "Ben"}
            device.http.post("/api/labels", json=body).raise_for_status()
            if i % HEADS == 0:
                assert device.station.require().learner.wait_until_idle(PATIENCE_S)
        assert device.station.require().learner.wait_until_idle(PATIENCE_S)
        print(f"{len(device.labels())} labels, {device.state()['queue_depth']} wait", flush=True)
        yield device


def shoot(on: Screen, url: str, page: str, to: Path, *, whole: bool = False) -> None:
    """Take one picture."""
    on.page.goto(url + ("" if page == "now" else page))
    on.until("typeof latest !== 'undefined'")
    on.ready()
    if page == "label":
        on.asked()
    on.page.wait_for_timeout(1500)  # for pictures to be drawn; a late one does no harm
    on.page.screenshot(path=str(to), full_page=whole)
    with Image.open(to) as taken:
        # A third of the bytes; this method keeps rare colours, and each colour of the page means something.
        small = taken.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(to, optimize=True)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of a demo that has been played")
    parser.add_argument("out", type=Path)
    parser.add_argument("--all", action="store_true", help="every theme and language, and whole pages")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [("en", "light", size) for size in SIZES]
    if options.all:
        looks = [(lang, theme) for lang in ("en", "de", "zh") for theme in ("light", "dark")]
        wanted = [(*look, size) for look in looks for size in SIZES[:2]]
    with tempfile.TemporaryDirectory() as name, scene(options.demo, Path(name)) as device, chromium() as browser:
        for lang, theme, (width, height) in wanted:
            view: ViewportSize = {"width": width, "height": height}
            with opened(browser, viewport=view, has_touch=width == 800) as (context, on):
                cookies = {"headway-lang": lang, "headway-theme": theme}
                context.add_cookies([{"name": n, "value": v, "url": device.url} for n, v in cookies.items()])
                for page in PAGES:
                    mark = f"-{lang}-{theme}" if options.all else ""
                    shoot(on, device.url, page, options.out / f"page-{page}-{width}x{height}{mark}.png")
                    if options.all and page in ("learned", "quality", "settings"):
                        whole = options.out / f"page-{page}-{width}x{height}{mark}-whole.png"
                        shoot(on, device.url, page, whole, whole=True)
        if not options.all:
            with opened(browser, viewport={"width": 1280, "height": 800}, color_scheme="dark") as (_, on):
                shoot(on, device.url, "now", options.out / "page-now-1280x800-dark.png")


if __name__ == "__main__":
    main()
