"""The page for anyone: no axe-core violation in either theme, every text in every language, nothing cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from playwright.sync_api import Browser

from device_agent.page.access import Role
from device_agent.page.text import LANGUAGES, TEXTS
from sdk.bundle import Bundle
from tests.pages import Device, Screen, hex_of, opened, running, serving, write_stream
from tests.tiny import tiny_bundle

PAGE = Path(__file__).parents[1] / "device_agent" / "page"
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
"""axe-core 4.14.1, MPL-2.0, from npm: for tests only."""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PATHS = ("", "label", "learned", "quality", "quality/pictures?figure=origin&name=station", "settings")
SMALL = """
[...document.querySelectorAll(
  'button, nav a, a.button, a.figure, select, input:not([type=checkbox]):not([type=range])')]
  .filter(each => each.checkVisibility())
  .map(each => [each.getBoundingClientRect(), each.outerHTML.slice(0, 80)])
  .filter(([box]) => box.height < 44 || box.width < 24)
  .map(([box, html]) => `${box.width} x ${box.height}: ${html}`)
"""
CUT = """
[...document.querySelectorAll('section')]
  .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
  .map(each => `${each.scrollWidth} of ${each.clientWidth}: ${each.outerHTML.slice(0, 80)}`)
"""
"""Panels whose text runs out of them; what may scroll sideways does so in a box of its own."""
SIZES = ((800, 480), (1280, 800), (1920, 1080))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("anyone") / "bundle", maps=True)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Device]:
    """A device with all there is to show: labels, a suspect, heads, a group that waits, an unsure picture."""
    folder = tmp_path_factory.mktemp("anyone")
    stream = write_stream(folder / "stream", {"rings": 6, "pit": 4, "scratch": 4, "good": 4}, part_of=2)
    with serving(folder / "data", stream, bundle) as found:
        found.station.define_class("rings", "ann")
        for name, i, said in (("rings", 0, "rings"), ("rings", 2, "rings"), ("pit", 1, "scratch")):
            body = {"sample": hex_of(name, i), "class_name": said, "operator": "Ann"}
            found.http.post("/api/labels", json=body).raise_for_status()
            found.settle()
        found.http.post(f"/api/samples/{hex_of('rings', 5)}/unsure").raise_for_status()
        yield found


def violations(on: Screen) -> list[str]:
    """Return what axe-core finds wrong with the page as it is now."""
    on.page.evaluate(AXE)
    found: dict[str, Any] = on.page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(device: Device, browser: Browser, theme: str) -> None:
    with opened(browser, viewport={"width": 1280, "height": 800}, reduced_motion="reduce") as (context, on):
        context.add_cookies([{"name": "headway-theme", "value": theme, "url": device.url}])
        for path in PATHS:
            on.page.goto(device.url + path)
            on.ready()
            on.page.wait_for_load_state("networkidle") if path not in ("", "label") else on.page.wait_for_timeout(
                300
            )
            assert violations(on) == [], path
        figure = {"figure": "origin", "name": "station"}
        first = device.http.get("/api/quality/pictures", params=figure).json()["pictures"][0]["sample"]
        on.page.goto(f"{device.url}label?sample={first}&figure=origin&name=station")
        on.ready()
        on.asked()
        assert on.page.locator("#walk").is_visible()
        assert violations(on) == [], "label, from a list"
        on.page.goto(f"{device.url}label?sample={hex_of('rings', 4)}")
        on.ready()
        on.asked()
        on.page.locator("#together").click()
        assert violations(on) == [], "label with a group"
        on.settled()
        on.page.locator("#new-defect").click()
        assert violations(on) == [], "new defect"
        assert on.problems == []


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_where_people_log_in(
    tmp_path: Path, bundle: Bundle, browser: Browser, theme: str
) -> None:
    stream = write_stream(tmp_path / "stream", {"pit": 1})
    with running(tmp_path / "data", stream) as device, opened(browser) as (context, on):
        context.add_cookies([{"name": "headway-theme", "value": theme, "url": device.url}])
        on.page.goto(device.url)  # no release yet
        on.ready()
        assert violations(on) == []
        device.access.add("Ann", Role.ADMIN, "correct horse")
        on.page.goto(device.url)
        assert violations(on) == []
        on.page.get_by_label("Name").fill("Ann")
        on.page.get_by_label("PIN or password").fill("correct horse")
        on.page.keyboard.press("Enter")
        on.page.wait_for_url(device.url)
        on.page.goto(device.url + "settings")
        on.ready()
        assert violations(on) == []


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_nothing_is_wider_than_the_screen_and_buttons_fit_a_finger(
    device: Device, browser: Browser, size: tuple[int, int]
) -> None:
    with opened(browser, viewport={"width": size[0], "height": size[1]}, has_touch=True) as (context, on):
        for language, _ in LANGUAGES:
            context.add_cookies([{"name": "headway-lang", "value": language, "url": device.url}])
            for path in PATHS:
                on.page.goto(device.url + path)
                on.ready()
                wide = on.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, (language, path)
                assert on.page.evaluate(CUT) == [], (language, path)
                small = on.page.evaluate(SMALL)
                assert small == [], (language, path)
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        # Picture, classes and tools are on the screen without scrolling.
        for what in ("#stage", "#classes button", "#new-defect", "#unsure", "#undo", "#saved"):
            box = on.page.locator(what).first.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= size[1], what


@pytest.mark.browser
def test_the_keyboard_reaches_everything(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        reached = set()
        for _ in range(60):
            on.page.keyboard.press("Tab")
            reached.add(
                on.page.evaluate("document.activeElement.id || document.activeElement.dataset.class || ''")
            )
        assert {"stage", "heat", "zoom-in", "new-defect", "unsure", "good", "pit", "rings", "scratch"} <= reached


@pytest.mark.browser
@pytest.mark.parametrize(("language", "said"), [("de", "Zuordnen"), ("zh", "标注")])
def test_the_page_speaks_the_language_that_was_chosen(
    device: Device, browser: Browser, language: str, said: str
) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "settings")
        on.ready()
        on.page.locator(f'[data-cookie="headway-lang"][data-value="{language}"]').click()
        on.page.wait_for_load_state()
        assert on.page.locator("html").get_attribute("lang") == language
        assert said in on.page.locator("nav").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize(("language", "said"), [("en", "your account"), ("de", "dieses Konto"), ("zh", "此账户")])
def test_a_refusal_is_told_in_the_readers_language_with_the_devices_own_words(
    device: Device, browser: Browser, language: str, said: str
) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "settings")
        on.ready()
        on.page.locator(f'[data-cookie="headway-lang"][data-value="{language}"]').click()
        on.page.wait_for_load_state()
        body = {"error": "operators may not roll back", "hint": "Ask an engineer."}
        told = on.page.evaluate("body => [refusal(403, body), refusal(403, {}), refusal(418, body)]", body)
    assert told[0].startswith(said)
    assert told[0].endswith("(operators may not roll back. Ask an engineer.)")
    assert told[1].startswith(said)
    assert told[2].startswith("418 (")


def used() -> set[str]:
    """Return the keys that templates, scripts and code name; those that are put together end with a star."""
    keys: set[str] = set()
    for file in (*PAGE.glob("templates/*.html"), *PAGE.glob("static/[!h]*.js"), *PAGE.glob("*.py")):
        if file.name == "text.py":
            continue
        text = file.read_text(encoding="utf-8")
        keys |= set(re.findall(r"""\bt\(\s*["'`]([a-z]+\.[a-z-]+)["']""", text))
        keys |= {f"{start}*" for start in re.findall(r"""\bt\(["']([a-z]+\.(?:[a-z-]+\.)?)["'] ~""", text)}
        keys |= {f"{start}*" for start in re.findall(r"""\bt\(`([a-z]+\.(?:[a-z]+-)?)\$\{""", text)}
        keys |= {f"{start}*" for start in re.findall(r"""\bt\(f"([a-z]+\.)\{""", text)}
    return keys


def test_every_text_that_is_used_exists_and_every_text_is_used() -> None:
    keys = used()
    exact = {key for key in keys if not key.endswith("*")}
    starts = tuple(key[:-1] for key in keys if key.endswith("*"))
    assert exact <= set(TEXTS)
    assert [key for key in TEXTS if key not in exact and not key.startswith(starts)] == []


def test_every_text_is_there_in_every_language_with_the_same_places() -> None:
    for key, text in TEXTS.items():
        assert len(text) == len(LANGUAGES), key
        assert all(each.strip() for each in text) or key == "common.space", key
        places = [{name for _, name, _, _ in Formatter().parse(each) if name} for each in text]
        assert places[0] == places[1] == places[2], key
        assert key.startswith("common.") or text[2] in ("CSV",) or re.search(r"[\u4e00-\u9fff{]", text[2]), key


def test_templates_hold_no_text_of_their_own() -> None:
    """What is between tags comes from `text`, but for marks, names and numbers."""
    for file in PAGE.glob("templates/*.html"):
        text = re.sub(r"\{[{%#].*?[}%#]\}", "", file.read_text(encoding="utf-8"), flags=re.S)
        between = re.findall(r">([^<]+)<", re.sub(r"<(script|kbd|code).*?</\1>", "", text, flags=re.S))
        words = [w for each in between for w in re.findall(r"[A-Za-z]{2,}", each)]
        assert [w for w in words if w not in ("Headway", "OpenAPI")] == [], file.name
