"""The page on a telephone and at 200 and 400 % zoom, in a real Chromium: what became of an answer is in sight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from device_agent.page.text import LANGUAGES
from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, opened, serving, write_stream
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.browser

SEEN = """
ids => ids.filter(id => {
  const box = document.getElementById(id).getBoundingClientRect();
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  const there = document.elementFromPoint(x, y);
  return !(box.top > -1 && box.bottom < innerHeight + 1 && there && there.closest(`#${id}`));
})
"""
"""Which of these are not wholly to be seen."""
SIZES = ((390, 844), (844, 390), (640, 400), (1280, 800), (1920, 1080))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("narrow") / "bundle")


@pytest.fixture(scope="module", params=[6, 40])
def device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle
) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("narrow")
    stream = write_stream(folder / "stream", {"rings": 12, "pit": 12})
    with serving(folder / "data", stream, bundle, ASK_ALL) as found:
        for i in range(request.param - 3):
            found.station.define_class(f"defect {i} at the edge", "ann")
        yield found


def refuse(route: Route) -> None:
    refusal: dict[str, Any] = {"error": "nothing can be stored: the disk is full", "hint": "Make room."}
    route.fulfill(status=507, json=refusal)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_what_became_of_an_answer_and_undo_stay_in_sight(
    device: Device, browser: Browser, size: tuple[int, int]
) -> None:
    with opened(browser, viewport={"width": size[0], "height": size[1]}) as (context, on):
        for language, _ in LANGUAGES:
            context.add_cookies([{"name": "headway-lang", "value": language, "url": device.url}])
            on.page.goto(device.url + "label")
            on.ready()
            on.asked()
            on.settled()
            on.page.locator("#classes button").last.click()
            on.quiet()
            on.settled()
            expect(on.page.locator("#saved")).to_contain_text("✓")
            assert on.page.evaluate(SEEN, ["stage", "why", "new-defect", "undo", "saved"]) == [], language
            on.page.route("**/api/labels", refuse, times=1)
            on.page.locator("#classes button").last.click()
            expect(on.page.locator("#saved.failed")).to_be_visible()
            assert on.page.evaluate(SEEN, ["undo", "saved"]) == [], language
            assert on.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), language
            on.page.locator("#undo").click()
            on.quiet()


def test_no_page_scrolls_sideways_at_four_times_the_size(device: Device, browser: Browser) -> None:
    device.settle()
    with opened(browser, viewport={"width": 320, "height": 256}) as (context, on):
        for language, _ in LANGUAGES:
            context.add_cookies([{"name": "headway-lang", "value": language, "url": device.url}])
            for path in (
                "",
                "label",
                "learned",
                "quality",
                "quality/pictures?figure=origin&name=release",
                "settings",
            ):
                on.page.goto(device.url + path)
                on.ready()
                on.page.wait_for_load_state("networkidle") if path.startswith(("learned", "quality")) else None
                wide = on.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, (language, path)
