"""A fleet of hundreds of devices stays readable: a page at a time, those that want a look, and whole names."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from playwright.sync_api import expect, sync_playwright

from sdk.bundle import Bundle
from sdk.fleet.cli import fleet as fleet_command
from sdk.fleet.page.app import HOST, make_app
from sdk.fleet.page.view import MOST_TEACHERS, PAGE_ROWS, FleetView
from sdk.fleet.store import FleetStore, Learned
from sdk.labels import CodeRecord, Label
from sdk.web.server import serving_page
from sdk.wire import DeviceState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.simulators import SimDevice
from tests.test_fleet_page import CHROMIUM, CHROMIUM_ARGS

MANY = 2 * PAGE_ROWS + 30
AWAY, EMPTY = ("castings-left-0017", "castings-left-0204"), "castings-left-0111"


def name(number: int) -> str:
    return f"castings-left-{number:04d}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[FleetStore]:
    """Hundreds of devices that run the release and know all; two are away, and one has no release."""
    store = FleetStore(tmp_path_factory.mktemp("large") / "fleet")
    release = store.publish(bundle, channel="default").ref.release_id
    live = store.live_set("default")
    assert live is not None
    with store.write() as ledger:
        for number in range(MANY):
            state = DeviceState(
                device=name(number),
                channel="default",
                online=name(number) not in AWAY,
                release_id=None if name(number) == EMPTY else release,
                space=None if name(number) == EMPTY else bundle.space(),
                live_set_digest=live.digest,
            )
            ledger.note_state(state, seen_utc=1000.0)
    yield store
    store.close()


@pytest.fixture
def client(store: FleetStore) -> TestClient:
    return TestClient(make_app(FleetView(store, lambda: 1060.0)), base_url="http://127.0.0.1")


def shown(text: str) -> list[str]:
    return [part.partition("<")[0] for part in text.split('<th scope="row">')[1:]]


@pytest.mark.parametrize("path", ["/", "/part/devices"])
def test_a_page_shows_a_hundred_devices_and_the_way_to_the_others(client: TestClient, path: str) -> None:
    assert shown(client.get(path).text) == [name(number) for number in range(PAGE_ROWS)]
    last = client.get(path, params={"at": 3}).text
    assert shown(last) == [name(number) for number in range(2 * PAGE_ROWS, MANY)]
    assert f"201 to {MANY} of {MANY}" in last
    assert 'rel="prev"' in last
    assert 'rel="next"' not in last
    assert shown(client.get(path, params={"at": 99}).text) == shown(last), "a page that is no more is the last"


def test_those_that_want_a_look_are_counted_and_shown_alone(client: TestClient) -> None:
    assert "3 want a look" in client.get("/").text
    found = client.get("/", params={"only": "look"}).text
    assert shown(found) == sorted([*AWAY, EMPTY])
    assert f"{EMPTY}: no release serves on it" in found


def test_devices_are_found_by_a_part_of_their_names_and_the_refresh_keeps_it(client: TestClient) -> None:
    found = client.get("/", params={"find": "-020", "at": 1}).text
    assert shown(found) == [name(number) for number in range(200, 210)]
    assert 'hx-get="/part/devices?find=-020&amp;only=&amp;at=1"' in found
    assert "None of the 230 devices" in client.get("/", params={"find": "<b>nobody</b>"}).text
    assert "<b>nobody" not in client.get("/", params={"find": "<b>nobody</b>"}).text


@pytest.mark.parametrize("query", ["at=0", "at=-1", "at=x", "at=9999999", "only=all", f"find={'a' * 64}"])
def test_what_is_no_page_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/?{query}").status_code == 422
    assert client.get(f"/part/devices?{query}").status_code == 422


def test_other_programs_get_all_of_them(client: TestClient) -> None:
    assert len(client.get("/api/fleet").json()["devices"]) == MANY


@pytest.mark.browser
def test_a_reader_finds_a_device_and_what_is_typed_stays_while_the_page_goes_on(store: FleetStore) -> None:
    if not CHROMIUM.is_file():
        pytest.skip("needs Chromium")
    with serving_page(make_app(FleetView(store)), HOST, 0) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("tbody tr > th")).to_have_count(PAGE_ROWS)
        page.get_by_label("Device", exact=True).fill("0017")
        with page.expect_response("**/part/devices**", timeout=60_000):
            pass  # it has drawn itself anew meanwhile
        expect(page.get_by_label("Device", exact=True)).to_have_value("0017")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tbody tr > th")).to_have_text([AWAY[0]])
        page.get_by_role("link", name="All").click()
        page.get_by_role("link", name="Next").click()
        expect(page.get_by_text(f"101 to 200 of {MANY}")).to_be_visible()
        page.get_by_role("link", name="3 want a look").click()
        expect(page.locator("tbody tr > th")).to_have_text(sorted([*AWAY, EMPTY]))
        browser.close()


# The command


def listed(store: FleetStore, *more: str) -> Result:
    return CliRunner().invoke(fleet_command, ["devices", "--dir", str(store.directory), *more])


def test_a_list_that_goes_into_a_file_has_whole_names_in_one_line_each(store: FleetStore) -> None:
    lines = listed(store).output.splitlines()
    assert f"{MANY} devices, {MANY - 2} online, 3 want a look" in lines
    assert all(sum(name(number) in line and "default" in line for line in lines) == 1 for number in range(MANY))


def test_the_command_finds_and_looks_as_the_page_does(store: FleetStore) -> None:
    found = listed(store, "--look").output
    assert f"3 of {MANY} devices" in found
    assert f"{EMPTY}: no release serves on it" in found
    assert name(5) not in found
    only = json.loads(listed(store, "--find", "-020", "--look", "--json").output)
    assert [device["device"] for device in only["devices"]] == [AWAY[1]]
    assert json.loads(listed(store, "--find", "nobody", "--json").output)["devices"] == []


# Who taught what


def test_those_that_taught_least_are_one_column(tmp_path: Path, bundle: Bundle) -> None:
    code = code_of(bundle, picture("scratch", 7)).tobytes()
    space, digest = bytes.fromhex(bundle.space()), hashlib.sha256(code).digest()
    with FleetStore(tmp_path / "fleet") as store:
        store.publish(bundle, channel="default")
        for number in range(MOST_TEACHERS + 5):
            device = SimDevice(f"line-{number:02d}")
            for label in range(1 + number % 3):
                sample = hashlib.sha256(f"{number}/{label}".encode()).digest()
                device.write(CodeRecord(space, sample, f"{device.device}/{label}", digest), code)
                device.write(Label(sample, class_id_of("scratch"), "ann"))
            with store.write() as ledger:
                ledger.note_state(DeviceState(device=device.device, channel="default", online=True), seen_utc=1.0)
                ledger.take(device.device, device.log, {})
        view = FleetView(store)
        all_of_it, short = view.learned("default"), view.learned("default", most=MOST_TEACHERS)
    assert len(all_of_it["teachers"]) == MOST_TEACHERS + 6
    assert short["teachers"][0] == "release"
    assert short["teachers"][-1] == "5 others"
    assert len(short["teachers"]) == MOST_TEACHERS + 2
    for one, other in zip(all_of_it["classes"], short["classes"], strict=True):
        assert sum(one["counts"]) == sum(other["counts"]) == one["total"] == other["total"]
    assert "line-02" in short["teachers"], "of those that taught most"


class Slow(FleetStore):
    """A fleet whose union takes long to fold: until a second asks for it too, or for a moment."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.asked = 0
        self.first, self.second = threading.Event(), threading.Event()

    def learned(self, channel: str) -> Learned | None:
        self.asked += 1
        (self.first if self.asked == 1 else self.second).set()
        self.second.wait(0.5)
        return super().learned(channel)


def test_what_takes_long_is_made_once_for_all_who_look(tmp_path: Path, bundle: Bundle) -> None:
    store = Slow(tmp_path / "fleet")
    with store:
        store.publish(bundle, channel="default")
        view = FleetView(store)
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(view.classes, "default")
            assert store.first.wait(60.0)
            other = pool.submit(view.classes, "default")
            assert one.result(60.0) is other.result(60.0)
        assert not store.second.is_set()
