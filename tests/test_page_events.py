"""A stream of events ends when whoever asked for it may no longer look: over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from device_agent.page.access import IDLE_OPERATOR_S, Access, Role
from device_agent.page.guard import SESSION_COOKIE
from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, chromium, opened, serving, wait_for, write_stream
from tests.processes import Doomed
from tests.test_page_access import PASSWORD, PIN, Clock, access, book, clock, logged_in
from tests.test_page_kill import serve_page
from tests.tiny import tiny_bundle

__all__ = ["access", "book", "clock"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("events") / "bundle")


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    stream = write_stream(tmp_path / "stream", {"rings": 1, "pit": 1})
    with serving(tmp_path / "data", stream, bundle) as found:
        yield found


def with_people(device: Device) -> None:
    device.access.add("Ann", Role.ADMIN, PASSWORD)
    device.access.add("Ben", Role.OPERATOR, PIN)


class Listener:
    """Somebody who listens to the state, on a thread of its own."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.heard = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        wait_for(lambda: self.heard > 0)

    def _listen(self) -> None:
        with self._http.stream("GET", "/api/events") as answer:
            for line in answer.iter_lines():
                self.heard += line.startswith("event: state")
        self.ended.set()

    def ends(self) -> bool:
        """Return whether the stream ends, as it should: its last bytes came, and nothing broke."""
        self._thread.join(60.0)
        return self.ended.is_set()


def log_out(http: httpx.Client) -> None:
    assert http.post("/api/logout").status_code == 200


def change_role(device: Device) -> None:
    device.access.remove("Ben")
    device.access.add("Ben", Role.ENGINEER, PASSWORD)


ENDS: dict[str, Callable[[Device, httpx.Client], object]] = {
    "logged out": lambda _device, ben: log_out(ben),
    "removed": lambda device, _ben: device.access.remove("Ben"),
    "another secret": lambda device, _ben: device.access.set_secret("Ben", "273645"),
    "another role": lambda device, _ben: change_role(device),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_stream_ends_with_the_session_it_was_asked_for_in(device: Device, how: str) -> None:
    with_people(device)
    with logged_in(device, "Ben", PIN) as ben, logged_in(device, "Ann", PASSWORD) as ann:
        stream, other = Listener(ben), Listener(ann)
        ENDS[how](device, ben)
        assert stream.ends()
        assert not other.ended.is_set(), "nobody else's does"
        log_out(ann)
        assert other.ends()


def test_a_machines_stream_ends_with_its_token(device: Device) -> None:
    with_people(device)
    value = device.access.add_token("plc", Role.OPERATOR)
    with httpx.Client(base_url=device.url, headers={"Authorization": f"Bearer {value}"}, timeout=60) as plc:
        stream = Listener(plc)
        device.access.remove_token("plc")
        assert stream.ends()


def test_a_stream_from_before_there_were_accounts_ends_with_the_first(device: Device) -> None:
    with httpx.Client(base_url=device.url, timeout=60) as anybody:
        stream = Listener(anybody)
        with_people(device)
        assert stream.ends()


def test_a_stream_does_not_keep_a_session_alive(access: Access, clock: Clock) -> None:
    """What it asks about its session is no use of it: who only left a page open is logged out as before."""
    token = access.log_in("Ben", PIN, "127.0.0.1")
    for _ in range(20):
        clock.now += IDLE_OPERATOR_S / 20
        assert access.session(token, used=False) is not None
    clock.now += 1.0
    assert access.session(token, used=False) is None
    used = access.log_in("Ben", PIN, "127.0.0.1")
    clock.now += IDLE_OPERATOR_S - 1.0
    assert access.session(used) is not None
    clock.now += IDLE_OPERATOR_S - 1.0
    assert access.session(used, used=False) is not None, "the control: this one was used"


@pytest.mark.browser
def test_the_page_of_somebody_who_was_removed_asks_to_log_in(device: Device) -> None:
    with_people(device)
    with logged_in(device, "Ben", PIN) as ben, chromium() as browser, opened(browser) as (context, on):
        context.add_cookies([{"name": SESSION_COOKIE, "value": ben.cookies[SESSION_COOKIE], "url": device.url}])
        on.page.goto(device.url)
        on.ready()
        device.access.remove("Ben")
        on.page.wait_for_url("**/login**")


def test_a_stream_says_that_it_is_alive_where_nothing_changes(device: Device) -> None:
    device.settle()
    with device.http.stream("GET", "/api/events", params={"seconds": 60}) as answer:
        assert any(line == "event: alive" for line in answer.iter_lines())


@pytest.mark.browser
def test_a_device_that_hangs_is_said_to_be_away_and_what_was_tapped_is_saved_once_it_goes_on(
    tmp_path: Path, bundle: Bundle
) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 2, "pit": 2})
    with serving(tmp_path / "data", stream, bundle, ASK_ALL):
        pass
    process = Doomed(serve_page, tmp_path / "data", stream, bundle.path)
    url = process.told()
    try:
        with chromium() as browser, opened(browser) as (_, on):
            on.page.goto(f"{url}label")
            on.ready()
            on.asked()
            on.settled()
            notice, state = on.page.locator("#notice"), on.page.locator("#device-state")
            expect(state).to_contain_text("Running")
            process.hang()
            on.page.locator("#classes button").first.click()
            expect(notice).to_contain_text("has not answered yet")
            expect(state).to_contain_text("No connection")
            expect(notice).to_contain_text("The device does not answer")
            assert on.page.evaluate("call('/api/shift', { within: 100 }).catch((error) => error.message)") == (
                "the device does not answer"
            )
            process.go_on()
            expect(on.page.locator("#saved")).to_contain_text("✓ saved")
            expect(state).not_to_contain_text("No connection")
            expect(notice).to_be_hidden()
    finally:
        process.kill()
