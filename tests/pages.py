"""A device's page over a real socket, and a real Chromium to use it with."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from argon2 import PasswordHasher

from device_agent.camera import Camera, Shot, open_camera
from device_agent.config import FolderCamera
from device_agent.database import Database
from device_agent.limits import StoreLimits
from device_agent.page import ShiftCounter, create_app
from device_agent.page.access import Access
from device_agent.page.book import open_book
from device_agent.parts import Finding, Ledger
from device_agent.queue import QueuePolicy
from device_agent.report import State, camera_report, station_state
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.images import sample_id
from sdk.labels import Label
from sdk.web.server import PageServer
from tests.tiny import picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM: Final = Path("/usr/bin/chromium")
CHROMIUM_ARGS: Final = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DEADLINE_S: Final = 60.0
ASK_ALL: Final = QueuePolicy(ask_below=1.0, spot_check_share=1.0)
"""Every picture is asked about, and none falls out of the queue."""
CHEAP: Final = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""argon2id all the same: what it costs is not tested here."""


@dataclass
class Device:
    station: Station
    url: str
    http: httpx.Client
    access: Access
    book: Database
    camera: Camera
    counter: ShiftCounter

    def state(self) -> dict[str, Any]:
        return dict(self.http.get("/api/state").raise_for_status().json())

    def see(self, folder: Path) -> None:
        for shot in open_camera(FolderCamera(path=folder), "line-1").shots(threading.Event()):
            self.inspect(shot)

    def inspect(self, shot: Shot) -> None:
        """Decide about a part of one picture, and count it."""
        ledger, key, decision = Ledger(("good",)), object(), self.station.see(shot).decision
        ledger.expect(key, "", shot.captured_utc, shot.at_s, math.inf)
        self.counter.frame()
        for part in ledger.decided(key, 0, [Finding(shot, decision)], time.monotonic()):
            self.counter.part(part)

    def labels(self) -> list[Label]:
        """Return the label events that are on disk, in the order they were written."""
        bodies = [record.entry.body for record in self.station.store.log.records()]
        return [body for body in bodies if isinstance(body, Label)]

    def settle(self) -> None:
        """Wait until everything that is on disk is learned and tried."""
        assert self.station.require().learner.wait_until_idle(DEADLINE_S)

    def digest(self) -> str:
        """Return the digest of all that is labelled."""
        self.settle()
        return self.station.require().learner.live_set().digest

    def decides(self, image: bytes) -> str:
        """Return the class that the next frame with this picture would be taken for."""
        return self.station.inspect(image).decision.forced


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something comes true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.02)


def hex_of(name: str, i: int) -> str:
    """Return the sample id of `picture(name, 500 + i)`."""
    return sample_id(picture(name, 500 + i)).hex()


def write_stream(folder: Path, counts: dict[str, int], *, part_of: int = 1) -> Path:
    """Write pictures that no bundle saw, so many of each class; `part_of` of them show one part."""
    folder.mkdir(parents=True)
    lines = ["path,group"]
    for name, count in counts.items():
        for i in range(count):
            (folder / f"{name}-{i}.png").write_bytes(picture(name, 500 + i))
            lines.append(f"{name}-{i}.png,{name}-part-{i // part_of}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder


@contextlib.contextmanager
def running(
    folder: Path,
    pictures: Path,
    policy: QueuePolicy | None = None,
    masters: Path | None = None,
    public_url: str = "",
) -> Iterator[Device]:
    """Run a device's page, without a release."""
    camera = open_camera(FolderCamera(path=pictures), "line-1")
    limits = StoreLimits(queue=10_000, keep_samples=10_000) if policy is ASK_ALL else None
    with Store.open(folder, "line-1", limits=limits) as store:
        station = Station(store, policy=policy, masters=masters)

        def state() -> State:
            report = camera_report(camera)
            return station_state(station, channel="default", version="0", started_utc=0.0, camera=report)

        book = open_book(folder)
        access = Access(book, hasher=CHEAP)
        server = PageServer("127.0.0.1", 0)
        counter = ShiftCounter(book)
        server.start(create_app(station, state, access=access, public_url=public_url, counter=counter))
        try:
            with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as http:
                yield Device(station, server.url, http, access, book, camera, counter)
        finally:
            server.stop()
            station.close()
            book.close()


@contextlib.contextmanager
def serving(folder: Path, pictures: Path, bundle: Bundle, policy: QueuePolicy | None = None) -> Iterator[Device]:
    """Run the page of a device with a release that has seen all pictures."""
    with running(folder, pictures, policy) as device:
        device.station.serve(bundle, None, open_runtime(bundle, None))
        device.see(pictures)
        yield device


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a real Chromium; the test is skipped where there is none."""
    if not CHROMIUM.is_file():
        pytest.skip("needs Debian's Chromium at /usr/bin/chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * DEADLINE_S)

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclass
class Screen:
    """A page of a browser, and what went wrong in it."""

    page: Page
    problems: list[str]

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true.

        Playwright's own waiting builds its function in the page, which the page's policy forbids, as it should.
        """
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.page.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline_s, f"{expression} did not come true in time"
            self.page.wait_for_timeout(10)

    def ready(self) -> None:
        """Wait until the page has heard from the device."""
        self.until("latest !== null")

    def asked(self) -> str:
        """Return the sample that is asked about, once one is."""
        self.until("document.getElementById('stage').dataset.sample !== undefined")
        return str(self.page.locator("#stage").get_attribute("data-sample"))

    def quiet(self) -> None:
        """Wait until every answer is on disk, as the page understands it."""
        self.until("pending === 0")

    def settled(self) -> None:
        """Let the time pass in which a bouncing finger is not believed, from when the picture can be seen."""
        self.until("(!current || seen()) && performance.now() - changedAt > BOUNCE_MS")


@contextlib.contextmanager
def screen(browser: Browser, url: str, **context: Any) -> Iterator[Screen]:
    """Open a page; at the end nothing may have gone wrong in it."""
    with opened(browser, **context) as (_, found):
        found.page.goto(url)
        yield found
        assert found.problems == []


@contextlib.contextmanager
def opened(browser: Browser, **context: Any) -> Iterator[tuple[BrowserContext, Screen]]:
    """Give a context of its own with one page."""
    made = browser.new_context(**context)
    made.set_default_timeout(1000 * DEADLINE_S)
    page = made.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield made, Screen(page, problems)
    made.close()
