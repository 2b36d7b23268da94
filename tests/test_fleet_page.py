"""The fleet's page: what it shows is what is on disk, it goes on by itself, and says when it is old."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect, sync_playwright

from sdk.bundle import Bundle
from sdk.errors import ConfigError
from sdk.fleet.cli_devices import learned_words, wants_a_look
from sdk.fleet.page.app import HOST, make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.rollout import Plan
from sdk.fleet.store import FleetStore
from sdk.labels import CodeRecord, Label
from sdk.web.bodies import MAX_BODY_BYTES
from sdk.web.server import serving_page
from sdk.wire import DeviceState, HeadState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.simulators import SimDevice
from tests.test_fleet_rollout import POOR, Floor

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = ["--no-sandbox", "--disable-gpu"]
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(folder / name, backbone=name) for name in ("first", "second")}


@pytest.fixture
def floor(fleet_dir: Path, bundles: dict[str, Bundle]) -> Floor:
    """Four devices that run the first release, of which `a` has labelled."""
    floor = Floor(fleet_dir)
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    teacher = SimDevice("a")
    for number in range(3):
        teacher.label(number, NASTY)
    with floor.store.write() as ledger:
        ledger.take("a", teacher.log, {})
    return floor


@pytest.fixture
def app(floor: Floor) -> FastAPI:
    return make_app(FleetView(floor.store, lambda: floor.now))


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1")


def test_devices_are_shown_as_they_are(floor: Floor, client: TestClient) -> None:
    floor.away.add("c")
    floor.tell("c")
    text = client.get("/").text
    assert "3 of 4 online" in text
    assert "4 run the release" in text
    assert text.count('<th scope="row">') == 4
    assert "90%" in text
    fleet = client.get("/api/fleet").json()
    assert [device["online"] for device in fleet["devices"]] == [True, True, False, True]
    assert fleet["channels"][0]["log_length"] == 7


def test_which_headway_the_devices_run_is_said(floor: Floor, client: TestClient) -> None:
    usual, other = "0.1.0+20261127101905.g461e062ab", "0.1.0+20261126080000.g9061b0842"
    with floor.store.write() as ledger:
        for name, built in (("line-7", usual), ("line-9", other), ("line-8", usual)):
            state = DeviceState(device=name, channel="other", online=True, agent_version=built)
            ledger.note_state(state, seen_utc=floor.now)
    assert f"Headway {usual} on 2 devices; {other} on line-9<" in client.get("/part/devices").text


def test_what_needs_a_look_is_said_in_words(floor: Floor, client: TestClient) -> None:
    state = DeviceState(device="new", channel="default", online=True, head_state=HeadState.PROVISIONAL)
    own = DeviceState(device="line-9", channel="default", online=True, space="ab" * 32)
    wrong = msgspec.structs.replace(own, device="line-8", faults=['every part is rejected: [good] is "none"'])
    with floor.store.write() as ledger:
        for each in (state, own, wrong):
            ledger.note_state(each, seen_utc=floor.now)
    text = client.get("/part/devices").text
    assert "new: no release serves on it" in text
    assert "line-8: every part is rejected: [good] is &#34;none&#34;" in text
    assert "line-9: " not in text  # its bundle is its settings'
    assert "its own bundle" in text
    assert "new: its newest head is on trial" in text
    assert "No fleet service runs" in text


@pytest.mark.parametrize(
    ("changes", "shown", "trouble"),
    [
        ({}, "all of it", False),
        ({"head_digest": None}, "all of it", False),  # an older device
        ({"head_digest": "cd" * 32, "head_samples": 891, "taken_back": True}, "heard, taken back", True),
        ({"head_digest": "cd" * 32, "head_samples": 891}, "heard, not learned yet", False),
        ({"live_set_digest": "ef" * 32}, "behind", True),
    ],
    ids=["agrees", "older", "taken back", "learning", "behind"],
)
def test_a_head_that_was_taken_back_does_not_look_like_the_fleets(
    floor: Floor, client: TestClient, changes: dict[str, Any], shown: str, trouble: bool
) -> None:
    live = floor.store.live_set("default")
    assert live is not None
    state = DeviceState(
        device="line-1", channel="default", online=True, space=live.space, live_samples=898,
        live_set_digest=live.digest, head_digest=live.digest, head_samples=898,
    )  # fmt: skip
    with floor.store.write() as ledger:
        ledger.note_state(msgspec.structs.replace(state, **changes), seen_utc=floor.now)
    (device,) = [one for one in client.get("/api/fleet").json()["devices"] if one["device"] == "line-1"]
    assert (learned_words(device) or "other").replace("=fleet", "all of it") == shown
    assert wants_a_look(device) is trouble
    text = client.get("/part/devices").text
    assert f">{shown}</span>" in text
    words = "it decides by 891 samples where it has heard of 898"
    assert (words in text) is bool(changes.get("taken_back"))


def test_what_no_head_learns_from_is_said(fleet_dir: Path, bundles: dict[str, Bundle]) -> None:
    """A code of a wrong length is taken while no release says how long its space's codes are."""
    teacher, sample, code = SimDevice("a"), class_id_of("sample 1") * 2, b"abc"
    space = bytes.fromhex(bundles["first"].space())
    teacher.write(CodeRecord(space, sample, "a/1", hashlib.sha256(code).digest()), code)
    teacher.write(Label(sample, class_id_of("scratch"), "anna"))
    floor = Floor(fleet_dir, ("a",))
    with floor.store.write() as ledger:
        ledger.take("a", teacher.log, ledger.feature_sizes())
    floor.store.publish(bundles["first"], channel="default")
    app = make_app(FleetView(floor.store, lambda: floor.now))
    text = TestClient(app, base_url="http://127.0.0.1").get("/part/devices").text
    assert "records that contradict themselves and count nowhere: 1<" in text


def test_a_rollout_is_shown_wave_by_wave_and_why_it_halted(
    floor: Floor, client: TestClient, bundles: dict[str, Bundle]
) -> None:
    floor.store.publish(bundles["second"], channel="default", plan=Plan(waves=["1", "100%"], soak_s=60))
    floor.turn()
    floor.turn()
    assert "0 of 1" in client.get("/rollout/default").text
    floor.obey()
    floor.turn()
    assert "Wave 1 has it and does well" in client.get("/part/rollout/default").text
    floor.quality["a"] = POOR
    floor.tell("a")
    floor.turn()
    text = client.get("/rollout/default").text
    assert "Halted." in text
    assert "a knows its own labels 30 points less well" in text
    assert "90% → 60%" in text
    assert "3 devices of the channel are not reached yet" in text
    assert "second: halted" in client.get("/").text
    assert ("1 of 1 still run it" in text, ">still runs it</span>" in text) == (True, True)
    floor.obey()
    text = client.get("/part/rollout/default").text
    assert ("0 of 1 still run it" in text, ">gone back</span>" in text, ">committed" in text) == (
        True,
        True,
        False,
    )


def test_a_rollout_that_ended_does_not_claim_what_was_published_since(
    floor: Floor, client: TestClient, bundles: dict[str, Bundle]
) -> None:
    floor.store.publish(bundles["second"], channel="default", plan=Plan(waves=["100%"], soak_s=0))
    for _ in range(2):
        floor.turn()
        floor.obey()
    floor.turn()
    text = client.get("/part/rollout/default").text
    assert "second is the channel's release" in text
    assert text.count(">committed</span>") == 4
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    text = client.get("/part/rollout/default").text
    assert "first was published since, and is the channel's release" in text
    assert (text.count("runs another now"), ">committed</span>" in text) == (4, False)


def test_who_taught_what_and_how_far_each_label_came(fleet_dir: Path, bundles: dict[str, Bundle]) -> None:
    bundle = bundles["first"]
    store = FleetStore(fleet_dir)
    store.publish(bundle, channel="default")
    image = picture("scratch", 7)
    code = code_of(bundle, image).tobytes()
    sample, digest = hashlib.sha256(image).digest(), hashlib.sha256(code).digest()
    device = SimDevice("line-1")
    device.write(CodeRecord(bytes.fromhex(bundle.space()), sample, "line-1/7", digest), code)
    device.write(Label(sample, class_id_of("scratch"), "ann"))
    with store.write() as ledger:
        ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
        ledger.note_state(
            DeviceState(device="line-2", channel="default", online=True, log_position=2), seen_utc=1.0
        )
        ledger.take("line-1", device.log, {})
    found = FleetView(store).learned("default")
    assert found["teachers"] == ["release", "line-1"]
    assert {c["name"]: c["counts"] for c in found["classes"]} == {"good": [12, 0], "scratch": [12, 1]}
    (label,) = found["labels"]
    assert (label["class"], label["operator"], label["reached"]) == ("scratch", "ann", 1)
    with store.write() as ledger:
        device.write(Label(sample, None, "ann"))
        ledger.take("line-1", device.log, {})
    again = FleetView(store).learned("default")
    assert {c["name"]: c["total"] for c in again["classes"]} == {"good": 12, "scratch": 12}
    assert again["labels"][0]["class"] == "withdrawn"
    store.close()


@pytest.mark.parametrize("path", ["/rollout/default", "/learned/nowhere", "/rollout/nowhere"])
def test_what_is_not_there_is_told_with_a_hint(path: str, client: TestClient) -> None:
    page = client.get(path)
    assert page.status_code == 404
    assert "there " in page.text
    answer = client.get(f"/api{path}")
    assert answer.status_code == 404
    assert answer.json()["hint"]


@pytest.mark.parametrize("path", ["/rollout/%2e%2e%2fetc", "/static/..%2f..%2fapp.py", "/learned/A B"])
def test_paths_that_are_no_channels_lead_nowhere(path: str, client: TestClient) -> None:
    assert client.get(path).status_code in (404, 422)


def test_names_are_text_and_the_browser_is_told_to_trust_nothing_else(floor: Floor, client: TestClient) -> None:
    with floor.store.write() as ledger:
        state = DeviceState(device="x", channel="default", online=True, release_id="0" * 64, agent_version=NASTY)
        ledger.note_state(state, seen_utc=1.0)
    for path in ("/", "/learned/default"):
        answer = client.get(path)
        assert NASTY not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")


def test_a_page_elsewhere_cannot_read_the_fleet_under_another_name(app: FastAPI) -> None:
    with serving_page(app, HOST, 0) as address:
        assert httpx.get(address).status_code == 200
        rebound = httpx.get(address, headers={"host": "evil.example"})
    assert rebound.status_code == 400
    assert "fleet" not in rebound.text


def test_a_long_body_is_refused_and_not_read(client: TestClient) -> None:
    answer = client.post("/", content=bytes(MAX_BODY_BYTES + 1))
    assert (answer.status_code, sorted(answer.json())) == (413, ["error", "hint"])
    assert client.get("/").status_code == 200


def test_a_port_that_is_taken_is_told(app: FastAPI) -> None:
    with serving_page(app, HOST, 0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot be served") as caught, serving_page(app, HOST, port):
            pass
        assert caught.value.hint


# In a real browser


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's Chromium at /usr/bin/chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("fleet_dir", ["sqlite"], indirect=True)
def test_the_page_goes_on_by_itself_and_says_when_it_is_old(
    floor: Floor, app: FastAPI, bundles: dict[str, Bundle], page: Page
) -> None:
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    with serving_page(app, HOST, 0) as address:
        page.goto(address)
        expect(page.get_by_text("4 of 4 online")).to_be_visible(timeout=60_000)
        floor.away.add("b")
        floor.tell("b")
        expect(page.get_by_text("3 of 4 online")).to_be_visible(timeout=60_000)
        floor.store.publish(bundles["second"], channel="default", plan=Plan(waves=["1", "100%"], soak_s=60))
        floor.turn()
        floor.turn()
        page.goto(f"{address}rollout/default")
        expect(page.get_by_text("Wave 1 takes it.")).to_be_visible(timeout=60_000)
        floor.obey()
        floor.turn()
        expect(page.get_by_text("Wave 1 has it and does well.")).to_be_visible(timeout=60_000)
        assert problems == []
    expect(page.get_by_text("No answer from the fleet service")).to_be_visible(timeout=60_000)


@pytest.mark.browser
@pytest.mark.parametrize("fleet_dir", ["sqlite"], indirect=True)
def test_the_page_says_that_it_is_old_while_the_service_refuses(app: FastAPI, page: Page) -> None:
    with serving_page(app, HOST, 0) as url:
        page.goto(url)
        page.route("**/part/**", lambda route: route.fulfill(status=500, body="the database is away"))
        expect(page.get_by_text("No answer from the fleet service")).to_be_visible(timeout=60_000)
        page.unroute("**/part/**")
        expect(page.get_by_text("No answer from the fleet service")).to_be_hidden(timeout=60_000)
