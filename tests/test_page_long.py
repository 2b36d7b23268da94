"""Long names on a small screen: no class is cut so that it could be another, and nothing leaves its panel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from device_agent.page.text import LANGUAGES
from tests.pages import Device, hex_of, opened, serving, write_stream
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.browser

LONG = ("Oberflächenbeschädigung durch Fremdkörper", "Oberflächenbeschädigung durch Werkzeug", "X" * 60)
PATHS = ("", "label", "learned", "quality", "settings")
BEYOND = """
[...document.querySelectorAll('section, .counters div, fieldset, form, .check, button')]
  .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
  .filter(each => !['auto', 'scroll'].includes(getComputedStyle(each).overflowX) || each.matches('section'))
  .map(each => `${each.scrollWidth} of ${each.clientWidth}: ${each.outerHTML.slice(0, 80)}`)
"""
"""Boxes whose content runs out of them sideways."""
CUT_OFF = """
(which) => [...document.querySelectorAll(which)].filter(each => each.checkVisibility())
  .filter(each => each.scrollHeight > each.clientHeight + 1 || each.scrollWidth > each.clientWidth + 1)
  .map(each => each.textContent)
"""
NARROW = """
[...document.querySelectorAll('tbody th')].filter(each => each.checkVisibility() && each.clientWidth < 72)
  .map(each => each.textContent)
"""
"""Names of rows that are written one letter below the other."""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("long")
    bundle = tiny_bundle(folder / "bundle")
    stream = write_stream(folder / "stream", {"rings": 5, "pit": 3, "scratch": 2})
    with serving(folder / "data", stream, bundle) as found:
        for name in LONG:
            found.station.define_class(name, "ann")
        for i, said in enumerate((LONG[0], LONG[1], LONG[0])):
            body = {"sample": hex_of("rings", i), "class_name": said, "operator": "Ann"}
            found.http.post("/api/labels", json=body).raise_for_status()
            found.settle()
        yield found


@pytest.mark.parametrize("size", [(1024, 600), (800, 480)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_long_names_stay_within_their_panels(device: Device, browser: Browser, size: tuple[int, int]) -> None:
    with opened(browser, viewport={"width": size[0], "height": size[1]}) as (context, on):
        for language, _ in LANGUAGES:
            context.add_cookies([{"name": "headway-lang", "value": language, "url": device.url}])
            for path in PATHS:
                on.page.goto(device.url + path)
                on.ready()
                on.page.wait_for_load_state("networkidle") if path in ("learned", "quality") else None
                wide = on.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, (language, path)
                assert on.page.evaluate(BEYOND) == [], (language, path)
                assert on.page.evaluate(NARROW) == [], (language, path)


def test_the_buttons_of_two_classes_never_read_the_same(device: Device, browser: Browser) -> None:
    with opened(browser, viewport={"width": 1024, "height": 600}) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        assert {*LONG} <= {*on.page.locator("#classes button span").all_inner_texts()}
        assert on.page.evaluate(CUT_OFF, "#classes button, #classes button span") == []


@pytest.mark.parametrize("size", [(1024, 600), (800, 480)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_unknown_is_written_out_below_a_part(device: Device, browser: Browser, size: tuple[int, int]) -> None:
    with opened(browser, viewport={"width": size[0], "height": size[1]}) as (context, on):
        for language, _ in LANGUAGES:
            context.add_cookies([{"name": "headway-lang", "value": language, "url": device.url}])
            on.page.goto(device.url)
            on.ready()
            on.until("document.querySelectorAll('#strip .what').length > 5")
            cut = on.page.evaluate(CUT_OFF, "#strip .what")
            assert [text for text in cut if "?" in text] == [], language
