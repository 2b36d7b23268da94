"""Choosing what is rejected, while others label and choose: no choice is lost unsaid, and none comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from sdk.bundle import Bundle
from tests.pages import Device, Screen, hex_of, opened, screen, serving, write_stream
from tests.tiny import CLASSES, class_id, tiny_bundle

GOOD, PIT, SCRATCH = (class_id(name).hex() for name in ("good", "pit", "scratch"))
USE = "Use this from now on"
CHANGED = "what is rejected was changed meanwhile"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("operating") / "bundle")


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    stream = write_stream(tmp_path / "stream", dict.fromkeys(CLASSES, 2))
    with serving(tmp_path / "data", stream, bundle) as found:
        found.settle()
        yield found


def label(device: Device, name: str) -> None:
    body = {"sample": hex_of(name, 0), "class_id": class_id(name).hex()}
    device.http.post("/api/labels", json=body).raise_for_status()


def chosen(device: Device) -> tuple[list[str], float, bool]:
    found = device.http.get("/api/operating").raise_for_status().json()
    return found["good"], found["escape_rate"], found["by_threshold"]


def as_seen(device: Device) -> dict[str, Any]:
    good, rate, by_threshold = chosen(device)
    return {"good": good, "escape_rate": rate, "by_threshold": by_threshold}


def mark(on: Screen) -> None:
    """Let it be seen whether the form has come anew."""
    on.ready()
    on.page.evaluate("$('operating').marked = true")


def anew(on: Screen) -> None:
    on.until("!$('operating').marked")


def test_a_choice_of_what_was_seen_otherwise_is_refused_and_nothing_is_kept(device: Device) -> None:
    seen = as_seen(device)
    device.http.put("/api/operating", json={**seen, "escape_rate": 0.0, "seen": seen}).raise_for_status()
    now = chosen(device)
    for stale in (seen, {**as_seen(device), "good": []}, {**as_seen(device), "by_threshold": True}):
        answer = device.http.put("/api/operating", json={"good": [GOOD, PIT], "escape_rate": 0.05, "seen": stale})
        assert answer.status_code == 409
        assert "nothing is saved" in answer.json()["error"]
        assert chosen(device) == now
    again = {**as_seen(device), "seen": seen}  # an answer got lost, and it is sent again
    device.http.put("/api/operating", json=again).raise_for_status()
    device.http.put("/api/operating", json={"good": [SCRATCH]}).raise_for_status()  # who says nothing of it, may
    assert chosen(device)[0] == [SCRATCH]


@pytest.mark.browser
def test_what_is_ticked_and_moved_stays_while_others_label(device: Device, browser: Browser) -> None:
    before = chosen(device)
    with screen(browser, device.url + "quality", locale="en-US") as on:
        mark(on)
        on.page.get_by_label("pit", exact=True).check()
        on.page.locator("#rate").fill("0")
        expect(on.page.locator("#operating-saved")).to_have_text("Not saved yet.")
        label(device, "scratch")
        anew(on)
        expect(on.page.get_by_label("pit", exact=True)).to_be_checked()
        expect(on.page.locator("#rate-out")).to_have_text("0.0 %")
        expect(on.page.locator("#rate")).to_have_value("0")
        expect(on.page.locator("#by-threshold")).to_be_checked()
        expect(on.page.locator("#operating-saved")).to_have_text("Not saved yet.")
        assert chosen(device) == before
        on.page.get_by_role("button", name=USE).click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        assert chosen(device) == (sorted([GOOD, PIT]), 0.0, True)
        on.page.get_by_label("pit", exact=True).uncheck()
        expect(on.page.locator("#operating-saved")).to_have_text("Not saved yet.")
        on.page.get_by_label("pit", exact=True).check()
        expect(on.page.locator("#operating-saved")).to_have_text("")


@pytest.mark.browser
def test_what_is_ticked_before_the_form_comes_anew_is_no_others_choice(device: Device, browser: Browser) -> None:
    """What was chosen here is in force from the answer on, whenever the form comes that says so."""
    with screen(browser, device.url + "quality", locale="en-US") as on:
        mark(on)
        on.page.get_by_label("pit", exact=True).check()
        held: list[Route] = []
        on.page.route("**/quality/part", lambda route: held.append(route), times=1)  # noqa: PLW0108
        on.page.get_by_role("button", name=USE).click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        on.page.get_by_label("scratch", exact=True).check()
        expect(on.page.locator("#operating-saved")).to_have_text("Not saved yet.")
        while not held:
            on.page.wait_for_timeout(20)
        held[0].continue_()
        anew(on)
        expect(on.page.get_by_label("scratch", exact=True)).to_be_checked()
        expect(on.page.locator("#operating-saved")).to_have_text("Not saved yet.")
        on.page.get_by_label("scratch", exact=True).uncheck()
        expect(on.page.locator("#operating-saved")).to_have_text("")
        assert chosen(device)[0] == sorted([GOOD, PIT])


@pytest.mark.browser
def test_a_page_that_was_open_before_hears_of_a_choice(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "quality", locale="en-US") as on:
        mark(on)
        other = {"good": [GOOD, SCRATCH], "escape_rate": 0.01, "by_threshold": True}
        device.http.put("/api/operating", json=other).raise_for_status()
        expect(on.page.get_by_label("scratch", exact=True)).to_be_checked()
        on.page.locator("#rate").fill("4")  # and moves only this
        on.page.get_by_role("button", name=USE).click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        assert chosen(device) == (sorted([GOOD, SCRATCH]), 0.02, True)
        device.http.put("/api/operating", json={"good": [GOOD]}).raise_for_status()
        expect(on.page.get_by_label("scratch", exact=True)).not_to_be_checked()
        expect(on.page.locator("#operating-saved")).to_have_text("")  # what is in force was not done here


@pytest.mark.browser
def test_whoever_chooses_while_somebody_else_does_is_told_and_sees_what_is_in_force(
    device: Device, browser: Browser
) -> None:
    with screen(browser, device.url + "quality", locale="en-US") as on:
        mark(on)
        on.page.get_by_label("pit", exact=True).check()
        device.http.put("/api/operating", json={"good": [GOOD, SCRATCH]}).raise_for_status()
        expect(on.page.locator("#operating-saved")).to_contain_text(CHANGED)
        expect(on.page.get_by_label("scratch", exact=True)).to_be_checked()
        expect(on.page.get_by_label("pit", exact=True)).not_to_be_checked()
    assert chosen(device)[0] == sorted([GOOD, SCRATCH])


@pytest.mark.browser
def test_a_page_that_has_not_heard_of_a_choice_does_not_undo_it(device: Device, browser: Browser) -> None:
    with opened(browser, locale="en-US") as (_, on):
        on.page.goto(device.url + "quality")
        mark(on)
        on.page.evaluate("events.close()")
        device.http.put("/api/operating", json={"good": [GOOD, SCRATCH]}).raise_for_status()
        on.page.locator("#rate").fill("4")
        on.page.get_by_role("button", name=USE).click()
        expect(on.page.locator("#operating-saved")).to_contain_text(CHANGED)
        expect(on.page.get_by_label("scratch", exact=True)).to_be_checked()
        assert chosen(device) == (sorted([GOOD, SCRATCH]), 0.01, False)
        on.page.locator("#rate").fill("4")
        on.page.get_by_role("button", name=USE).click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        assert chosen(device) == (sorted([GOOD, SCRATCH]), 0.02, True)


@pytest.mark.browser
def test_the_slider_is_not_replaced_under_the_finger(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "quality", locale="en-US") as on:
        mark(on)
        slider = on.page.locator("#rate")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        on.page.mouse.move(box["x"] + box["width"] / 2, middle)
        on.page.mouse.down()
        label(device, "scratch")
        on.until("missed")
        on.page.mouse.move(box["x"] + box["width"] - 1, middle, steps=3)
        expect(on.page.locator("#rate-out")).to_have_text("20.0 %")
        on.page.mouse.up()
        anew(on)
        expect(on.page.locator("#rate-out")).to_have_text("20.0 %")
