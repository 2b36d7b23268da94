"""Answers and undos that get lost on their way, or that somebody else overtakes, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from device_agent.page.access import Role
from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, Screen, opened, screen, serving, wait_for, write_stream
from tests.tiny import class_id, tiny_bundle

pytestmark = pytest.mark.browser

NAMES = {class_id(name): name for name in ("good", "pit", "scratch")} | {None: "undone"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("lost") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("lost") / "stream", {"rings": 8, "pit": 4})


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle, ASK_ALL) as found:
        yield found


def tap(on: Screen, name: str) -> str:
    """Tap the button of a class; return the sample that it was for."""
    sample = on.asked()
    on.settled()
    on.page.locator(f'#classes button[data-class="{name}"]').click()
    return sample


def undo(on: Screen) -> None:
    """Tap undo, once a tap is no bounce of the last one."""
    on.until("performance.now() - undoneAt > BOUNCE_MS")
    on.page.locator("#undo").click()


def lose(route: Route) -> None:
    """Let the device do it, and lose what it says."""
    route.fetch()
    route.abort("connectionreset")


def said(device: Device) -> list[tuple[str, str]]:
    return [(each.sample.hex(), NAMES[each.class_id]) for each in device.labels()]


def elsewhere(device: Device, sample: str, name: str) -> None:
    body = {"sample": sample, "class_name": name, "operator": "Anna"}
    device.http.post("/api/labels", json=body).raise_for_status()


@pytest.mark.parametrize("account", [False, True])
def test_a_label_whose_answer_is_lost_is_saved_once_and_can_be_undone(
    device: Device, browser: Browser, account: bool
) -> None:
    """It was told as somebody else's: "Labelled pit meanwhile, by Ben" to Ben."""
    with opened(browser) as (_, on):
        if account:
            device.access.add("Ben", Role.ADMIN, "correct horse battery")
            on.page.goto(device.url + "login")
            on.page.locator("#name").fill("Ben")
            on.page.locator("#secret").fill("correct horse battery")
            on.page.locator("#secret").press("Enter")
            on.page.wait_for_url(device.url)
        on.page.goto(device.url + "label")
        on.ready()
        if not account:
            on.page.evaluate("localStorage.setItem('operator', 'Ben')")
        on.page.route("**/api/labels", lose, times=1)
        sample = tap(on, "pit")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: pit")
        assert on.asked() != sample
        assert said(device) == [(sample, "pit")]
        undo(on)
        on.quiet()
        assert on.asked() == sample
    assert said(device) == [(sample, "pit"), (sample, "undone")]


def test_labels_of_one_go_whose_answer_is_lost_are_undone_in_one_go(
    tmp_path: Path, bundle: Bundle, browser: Browser
) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 3}, part_of=3)
    with serving(tmp_path / "data", stream, bundle) as device, opened(browser) as (_, on):
        asked = device.station.store.samples.newest(limit=1)[0].sample_id.hex()
        on.page.goto(f"{device.url}label?sample={asked}")
        on.ready()
        on.asked()
        on.page.locator("#together").click()
        on.page.route("**/api/labels", lose, times=1)
        tap(on, "pit")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: 3 × pit")
        undo(on)
        on.quiet()
        assert [name for _, name in said(device)] == ["pit"] * 3 + ["undone"] * 3


def test_an_undo_whose_answer_is_lost_takes_back_once(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        first, second = tap(on, "good"), tap(on, "pit")
        on.quiet()
        on.page.route("**/api/labels/undo", lose, times=1)
        undo(on)
        expect(on.page.locator("#saved")).to_contain_text("✓ taken back")
        assert on.asked() == second
        undo(on)
        on.quiet()
        expect(on.page.locator("#undo")).to_be_disabled()
    assert said(device) == [(first, "good"), (second, "pit"), (second, "undone"), (first, "undone")]


def test_what_does_not_reach_the_device_is_sent_until_it_does(device: Device, browser: Browser) -> None:
    with opened(browser) as (context, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.asked()
        on.until("queue.length > 1 && (loaded.get(queue[0].sample) || {}).seen")
        context.set_offline(True)
        first = tap(on, "pit")
        expect(on.page.locator("#saved")).to_contain_text("Not saved yet: 1.")
        expect(on.page.locator("#saved.failed")).to_be_visible()
        second = tap(on, "good")
        expect(on.page.locator("#saved")).to_contain_text("Not saved yet: 2.")
        expect(on.page.locator("#device-state")).to_contain_text("No connection")
        assert device.labels() == []
        context.set_offline(False)
        expect(on.page.locator("#saved")).to_have_text("✓ saved: good")
        expect(on.page.locator("#saved.failed")).to_have_count(0)
    assert said(device) == [(first, "pit"), (second, "good")]


def test_a_proxy_that_says_the_device_is_away_is_no_answer(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.page.route("**/api/labels", lambda route: route.fulfill(status=502, body="Bad Gateway"), times=1)
        sample = tap(on, "pit")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: pit")
    assert said(device) == [(sample, "pit")]


def test_what_somebody_else_says_before_it_arrives_is_theirs(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        on.page.evaluate("localStorage.setItem('operator', 'Ben')")
        on.page.route("**/api/queue*", lambda route: route.abort())
        on.until("!asking")  # it has not heard of the other answer yet
        on.page.route("**/api/labels", lambda route: route.abort(), times=1)
        sample = tap(on, "pit")
        expect(on.page.locator("#saved")).to_contain_text("Not saved yet: 1.")
        elsewhere(device, sample, "pit")
        expect(on.page.locator("#saved")).to_have_text("Not saved: Labelled pit meanwhile, by Anna")
        expect(on.page.locator("#undo")).to_be_disabled()
        on.page.unroute_all(behavior="ignoreErrors")
    assert said(device) == [(sample, "pit")]


def test_an_answer_of_the_page_before_waits_for_the_device_too(device: Device, browser: Browser) -> None:
    sample = device.http.get("/api/queue").json()[0]["sample"]
    with opened(browser) as (_, on):
        on.page.goto(device.url)
        on.ready()
        body = {"samples": [sample], "seen": {sample: None}, "class_id": class_id("pit").hex()}
        left = {"path": "/api/labels", "items": [sample], "of": "", "key": "1", "body": body, "who": ""}
        on.page.evaluate("left => storeUnsent([left])", left)
        on.page.route("**/api/labels", lambda route: route.abort(), times=1)
        on.page.goto(device.url)
        wait_for(lambda: said(device) == [(sample, "pit")])
        on.until("unsent().length === 0")
        expect(on.page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize(("name", "why"), [("scratch", "Labelled scratch"), (None, "Taken back")])
def test_an_undo_that_somebody_overtook_is_told_and_those_before_it_go_on(
    device: Device, browser: Browser, name: str | None, why: str
) -> None:
    """It was offered again at every tap, and none before it could be undone."""
    with screen(browser, "about:blank") as on:
        on.page.goto(device.url + "label")
        on.ready()
        first, second = tap(on, "good"), tap(on, "pit")
        on.quiet()
        if name:
            elsewhere(device, second, name)
        else:
            body = {"sample": second, "class_id": None, "operator": "Anna"}
            device.http.post("/api/labels", json=body).raise_for_status()
        undo(on)
        expect(on.page.locator("#saved")).to_have_text(f"Not taken back: {why} meanwhile, by Anna")
        expect(on.page.locator("#undo")).to_be_enabled()
        undo(on)
        expect(on.page.locator("#saved")).to_contain_text("✓ taken back")
        expect(on.page.locator("#undo")).to_be_disabled()
        on.problems.clear()  # the refusal
        assert on.asked() == first
    assert said(device) == [(first, "good"), (second, "pit"), (second, name or "undone"), (first, "undone")]
