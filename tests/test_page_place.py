"""Who works by keys, or has the page read out, keeps the place while the page goes on, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, Screen, hex_of, opened, screen, serving, write_stream
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.browser

HELD = "document.activeElement.id || document.activeElement.dataset.row || document.activeElement.tagName"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("place") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("place") / "stream", {"rings": 8, "pit": 4})


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle, ASK_ALL) as found:
        yield found


def answer(on: Screen, name: str) -> str:
    """Press the button of a class by keys; return the sample that it was for."""
    sample = on.asked()
    on.settled()
    on.page.locator(f'#classes button[data-class="{name}"]').press("Enter")
    return sample


def test_after_a_label_the_question_has_the_focus_and_the_classes_come_next(
    device: Device, browser: Browser
) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        for name in ("scratch", "pit", "pit"):  # the first two change the order of the buttons
            sample = answer(on, name)
            expect(on.page.locator("#why")).to_be_focused()
            on.quiet()
            on.settled()
            assert on.asked() != sample
            expect(on.page.locator("#why")).to_be_focused()
            on.page.keyboard.press("Tab")
            expect(on.page.locator(f'#classes button[data-class="{name}"]')).to_be_focused()


def test_the_focus_stays_while_the_classes_change_places_and_pictures_come(
    device: Device, browser: Browser
) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').focus()
        on.page.evaluate("nowUsed(document.activeElement.dataset.id); drawClasses()")
        expect(on.page.locator("#classes button").first).to_be_focused()
        expect(on.page.locator("#classes button").first).to_have_attribute("data-class", "pit")
        on.page.route("**/image", lambda route: route.abort())
        on.page.evaluate("loaded.clear(); drawPicture()")
        expect(on.page.locator("#no-picture")).to_be_visible()
        expect(on.page.locator("#classes button").first).to_be_focused()
        expect(on.page.locator("#classes button").first).to_be_disabled()
        on.page.keyboard.press("Enter")  # not seen, not labelled
        on.page.unroute_all(behavior="ignoreErrors")
        on.page.locator("#load-again").press("Enter")
        expect(on.page.locator("#no-picture")).to_be_hidden()
        expect(on.page.locator("#why")).to_be_focused()
        assert on.page.evaluate("pending") == 0
    assert device.labels() == []


def test_undo_by_keys_keeps_its_place(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        second = [answer(on, name) for name in ("pit", "good")][1]
        on.quiet()
        on.page.locator("#undo").press("Enter")
        on.quiet()
        assert on.asked() == second
        expect(on.page.locator("#undo")).to_be_focused()
        on.until("performance.now() - undoneAt > BOUNCE_MS")
        on.page.keyboard.press("Enter")
        on.quiet()
        expect(on.page.locator("#undo")).to_be_disabled()
        expect(on.page.locator("#undo")).to_be_focused()


def test_the_next_question_is_read_out_where_the_focus_is_elsewhere(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        said = set()
        for _ in range(3):
            on.asked()
            on.settled()
            said.add(on.page.locator("#asked").text_content())
            assert on.page.locator("#why").inner_text() in str(on.page.locator("#asked").text_content())
            on.page.keyboard.press("1")
            on.quiet()
        assert len(said) > 1
        assert on.page.locator("#asked").get_attribute("role") == "status"


def test_a_thumbnail_keeps_the_focus(tmp_path: Path, bundle: Bundle, browser: Browser) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 3}, part_of=3)
    with serving(tmp_path / "data", stream, bundle) as device:
        asked = device.station.store.samples.newest(limit=1)[0].sample_id.hex()
        with screen(browser, f"{device.url}label?sample={asked}") as on:
            on.ready()
            on.asked()
            thumbnail = on.page.locator("#alike-pictures button").first
            for pressed in ("true", "false"):
                thumbnail.press("Enter")
                expect(thumbnail).to_have_attribute("aria-pressed", pressed)
                expect(thumbnail).to_be_focused()
            answer(on, "pit")  # and all that are alike are labelled
            on.quiet()
            expect(on.page.locator("#why")).to_be_focused()


def test_undo_on_learned_leaves_the_focus_in_its_row(device: Device, browser: Browser) -> None:
    for i, name in enumerate(("pit", "scratch", "good")):
        body = {"sample": hex_of("rings", i), "class_name": name}
        device.http.post("/api/labels", json=body).raise_for_status()
    device.settle()
    with screen(browser, device.url + "learned") as on:
        on.ready()
        row = on.page.locator("#labels tbody tr", has_text="scratch")
        key = row.get_attribute("data-row")
        row.get_by_role("button", name="Undo").press("Enter")
        expect(on.page.locator("#labels")).to_contain_text("scratch taken back")
        on.until(f"document.activeElement.dataset.row === '{key}'")
        assert on.page.evaluate("document.activeElement.tagName") == "TR"
        on.page.keyboard.press("Tab")
        assert on.page.evaluate("document.activeElement.closest('tr').dataset.row") == key


def test_where_the_row_is_gone_the_heading_of_its_section_has_the_focus(device: Device, browser: Browser) -> None:
    body = {"sample": hex_of("pit", 1), "class_name": "scratch"}
    device.http.post("/api/labels", json=body).raise_for_status()
    device.settle()
    with screen(browser, device.url + "learned") as on:
        on.ready()
        on.page.locator("#suspects").get_by_role("button", name="It is pit").press("Enter")
        expect(on.page.locator("#suspects")).to_contain_text("None: all labels agree")
        on.until(f"({HELD}) === 'suspects-title'")
