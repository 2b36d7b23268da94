"""What the page says where several things are wrong at once: the worst first, and none of them hidden by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from device_agent.report import NONE_PASSES, OPERATING_LOST, lost_words
from sdk.bundle import Bundle
from tests.pages import Device, screen, serving, wait_for, write_stream
from tests.tiny import tiny_bundle

DEFECTS = ("pit", "scratch")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A release of defects only: no part passes."""
    return tiny_bundle(tmp_path_factory.mktemp("now") / "bundle", classes=DEFECTS)


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    """A device that has seen parts unlike any its head was scored on."""
    stream = write_stream(tmp_path / "stream", dict.fromkeys(DEFECTS, 1))
    strange = write_stream(tmp_path / "strange", {"rings": 60})
    with serving(tmp_path / "data", stream, bundle) as found:
        wait_for(lambda: found.station.require().learner.reference is not None)
        found.see(strange)
        assert found.state()["drift"]["alarm"] is True
        yield found


@pytest.mark.browser
@pytest.mark.parametrize(
    ("locale", "worst", "others", "says"),
    [
        ("en-US", "Parts look different", ["Every part is rejected", "Look at this"], "and 2 more"),
        ("de-DE", "Teile sehen anders aus", ["Jedes Teil wird aussortiert", "Bitte ansehen"], "und 2 weitere"),
        ("zh-CN", "工件外观有变化", ["所有工件都被剔除", "请注意"], "另有 2 项"),
    ],
)
def test_what_is_worst_hides_nothing_else(
    device: Device, browser: Browser, locale: str, worst: str, others: list[str], says: str
) -> None:
    device.station.operating.forgotten = True
    assert OPERATING_LOST in device.state()["faults"]
    with screen(browser, device.url, locale=locale) as on:
        expect(on.page.locator("#verdict .text")).to_have_text(worst)
        expect(on.page.locator("#others b")).to_have_text(others)
        expect(on.page.locator("#others")).to_contain_text(OPERATING_LOST)
        expect(on.page.locator("#device-state")).to_contain_text(f"{worst} +2 {says}")
        device.station.operating.forgotten = False
        device.station.serve_nothing()  # and with it what the parts looked like
        expect(on.page.locator("#others b")).to_have_count(0)
        expect(on.page.locator("#device-state .others")).to_have_text("")


@pytest.mark.browser
def test_nothing_is_said_twice_and_each_lost_camera_is_named(device: Device, browser: Browser) -> None:
    state, shift = device.state(), device.http.get("/api/shift").json()
    lost = [{**state["camera"], "name": name, "state": "lost"} for name in ("top", "side")]
    live = {**state["camera"], "name": "back", "state": "live"}
    faults = [lost_words("top"), lost_words("side"), NONE_PASSES, "the disk is full", "no broker"]
    state |= {"cameras": [*lost, live], "faults": faults, "drift": None}
    with screen(browser, device.url, locale="en-US") as on:
        on.ready()
        said = on.page.evaluate("message => conditions(message.state)", {"state": state, "shift": shift})
    assert [(each["level"], each["text"], each["n"]) for each in said] == [
        ("bad", "Camera lost", 1),
        ("bad", "Camera lost", 1),
        ("warn", "Every part is rejected", 1),
        ("warn", "Look at this", 2),
    ]
    assert [each["more"].split()[0] for each in said[:2]] == ["top", "side"]
    assert said[3]["more"].endswith(": the disk is full · no broker")


@pytest.mark.browser
def test_a_device_without_a_release_says_what_is_wrong_all_the_same(device: Device, browser: Browser) -> None:
    state = {
        **device.state(),
        "release": None,
        "faults": ["signed by nobody"],
        "none_passes": False,
        "drift": None,
    }
    with screen(browser, device.url, locale="en-US") as on:
        on.ready()
        said = on.page.evaluate("state => conditions(state)", state)
    assert [each["text"] for each in said] == ["Look at this", "No release yet"]
