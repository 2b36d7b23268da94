"""Classes on the page: a mistyped one is mended, and goes with its undo; nothing that has labels goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Locator, expect

from device_agent.page import create_app
from device_agent.report import MqttReport, State, camera_report, station_state
from sdk.bundle import Bundle
from sdk.labels import Body, Chain, DefineClass, Label, MergeClasses, Record, RenameClass, new_class_id
from tests.pages import Device, hex_of, opened, screen, serving, write_stream
from tests.tiny import class_id, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("classes") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("classes") / "stream", {"rings": 6, "pit": 4})


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle) as found:
        yield found


def send(device: Device, method: str, path: str, **body: Any) -> Any:
    return device.http.request(method, path, json=body).raise_for_status().json()


def offered(device: Device) -> list[str]:
    """Return what the buttons say."""
    return [each["name"] for each in device.state()["classes"]]


def put_away(device: Device) -> list[str]:
    return [each["name"] for each in device.http.get("/api/classes").json() if each["put_away"]]


def define(device: Device, name: str) -> str:
    return str(send(device, "POST", "/api/classes", name=name)["class_id"])


def label(device: Device, sample: str, **said: Any) -> dict[str, int]:
    saved = send(device, "POST", "/api/labels", sample=sample, **said)
    return {"first_seq": saved["first_seq"], "seq": saved["seq"]}


def undo(device: Device, entries: dict[str, int]) -> None:
    send(device, "POST", "/api/labels/undo", **entries)


def test_a_mistyped_class_goes_with_the_undo_of_its_only_label(device: Device) -> None:
    first = define(device, "Krazter")
    assert "Krazter" in offered(device)
    entries = label(device, hex_of("rings", 0), class_id=first)
    assert "Krazter" in offered(device)
    undo(device, entries)
    assert ("Krazter" in offered(device), put_away(device)) == (False, ["Krazter"])
    assert "Krazter" not in device.http.get("/quality").text
    # Whoever types it again has the same class, once, and it goes again with what it was brought for.
    assert define(device, "krazter ") == first
    assert "Krazter" in offered(device)
    undo(device, label(device, hex_of("rings", 0), class_id=first))
    assert put_away(device) == ["Krazter"]


def test_it_is_away_after_a_restart_and_back_when_somebody_labels_with_it(
    tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    with serving(tmp_path / "data", stream, bundle) as device:
        undo(device, label(device, hex_of("rings", 0), class_id=define(device, "Krazter")))
        send(device, "PUT", f"/api/classes/{define(device, 'never used')}/put-away", put_away=True)
    with serving(tmp_path / "data", stream, bundle) as device:
        assert put_away(device) == ["Krazter", "never used"]
        for name in ("Krazter", "never used"):
            label(device, hex_of("rings", 0), class_name=name)
            assert name in offered(device)


def test_a_class_whose_labels_were_corrected_goes_too(device: Device) -> None:
    label(device, hex_of("rings", 0), class_id=define(device, "Krazter"))
    label(device, hex_of("rings", 1), class_name="Krazter")
    label(device, hex_of("rings", 0), class_id=define(device, "Kratzer"))
    assert put_away(device) == []
    label(device, hex_of("rings", 1), class_name="Kratzer")
    assert put_away(device) == ["Krazter"]
    assert "Kratzer" in offered(device)


def test_what_another_device_has_undone_is_put_away_here_too(device: Device) -> None:
    chain, theirs, sample = Chain("line-2"), new_class_id(), bytes.fromhex(hex_of("pit", 1))
    bodies: list[Body] = [DefineClass(theirs, "Krazter", "bo"), Label(sample, theirs, "bo")]
    for n, body in enumerate(bodies, 1):
        chain, entry = chain.write(body, counter=90 + n, wall_time_us=0)
        device.station.store.log.receive([Record(entry)], n)
    assert "Krazter" in offered(device), "its label stands, though no code of it has come yet"
    _, entry = chain.write(Label(sample, None, "bo"), counter=99, wall_time_us=0)
    device.station.store.log.receive([Record(entry)], 3)
    assert ("Krazter" in offered(device), put_away(device)) == (False, ["Krazter"])


def test_a_class_that_nobody_has_used_yet_stays_until_it_is_put_away(device: Device) -> None:
    prepared = define(device, "prepared")
    assert "prepared" in offered(device)
    row = send(device, "PUT", f"/api/classes/{prepared}/put-away", put_away=True)
    assert (row["put_away"], offered(device)) == (True, ["good", "pit", "scratch"])
    row = send(device, "PUT", f"/api/classes/{prepared}/put-away", put_away=False)
    assert (row["put_away"], "prepared" in offered(device)) == (False, True)


def test_what_has_labels_or_came_with_the_release_is_not_put_away(device: Device) -> None:
    used = define(device, "used")
    label(device, hex_of("rings", 0), class_id=used)
    for which, status, said in (
        (used, 409, "has labels"),
        (class_id("pit").hex(), 409, "with the release"),
        ("0" * 32, 404, "no class"),
    ):
        answer = device.http.put(f"/api/classes/{which}/put-away", json={"put_away": True})
        assert (answer.status_code, said in answer.json()["error"]) == (status, True)
    assert put_away(device) == []


def test_a_merged_class_has_the_name_of_the_one_it_became_part_of(device: Device) -> None:
    """Else the name that was given last would stay: the mistyped one."""
    wrong = define(device, "Krazter")
    label(device, hex_of("rings", 0), class_id=wrong)
    before = {each["name"]: each["labels"] for each in device.http.get("/api/classes").json()}
    merged = send(device, "POST", f"/api/classes/{wrong}/merge", into=class_id("scratch").hex())
    assert merged["name"] == "scratch"
    rows = {each["name"]: each["labels"] for each in device.http.get("/api/classes").json()}
    assert rows == {"good": before["good"], "pit": before["pit"], "scratch": before["scratch"] + 1}
    bodies = [record.entry.body for record in device.station.store.log.records()][-2:]
    assert [type(body) for body in bodies] == [MergeClasses, RenameClass]
    gone = max(wrong, class_id("scratch").hex())  # the id that does not stand for both any more
    passes = device.http.post(f"/api/classes/{gone}/merge", json={"into": class_id("good").hex()})
    assert (passes.status_code, "one class that passes" in passes.json()["error"]) == (409, True)
    again = device.http.post(f"/api/classes/{wrong}/merge", json={"into": class_id("scratch").hex()})
    assert (again.status_code, "one class already" in again.json()["error"]) == (409, True)
    passes = device.http.post(f"/api/classes/{class_id('pit').hex()}/merge", json={"into": class_id("good").hex()})
    assert (passes.status_code, "one class that passes" in passes.json()["error"]) == (409, True)
    none = device.http.post(f"/api/classes/{wrong}/merge", json={"into": "0" * 32})
    assert none.status_code == 404


@pytest.mark.parametrize("gone", [b"\xff" * 16, b"\x00" * 16])
def test_what_was_labelled_as_a_class_that_is_gone_is_called_by_names(device: Device, gone: bytes) -> None:
    """The smaller id stands for both; whichever that is, no id is shown."""
    learner = device.station.require().learner
    device.station.store.log.append([DefineClass(gone, "Krazter", "bo")])
    for i in range(3):
        label(device, hex_of("rings", i), class_id=gone.hex())
    learner.wait_until_idle(60)
    send(device, "POST", f"/api/classes/{gone.hex()}/merge", into=class_id("scratch").hex())
    stands = min(gone, class_id("scratch"))
    names = {
        "en": "scratch" if gone == stands else "Krazter (now scratch)",
        "de": "scratch" if gone == stands else "Krazter (jetzt scratch)",
    }
    undo(device, label(device, hex_of("rings", 0), class_id=class_id("pit").hex()))
    said = [(each["label"], each["before"]) for each in device.http.get("/api/labels?limit=3").json()]
    assert said == [(names["en"], "pit"), ("pit", names["en"]), (names["en"], None)]
    own = device.http.get(f"/api/samples/{hex_of('rings', 1)}/labels").json()
    assert [each["label"] for each in own] == [names["en"]]
    for language, name in names.items():
        device.http.cookies.set("headway-lang", language)
        for page in ("labels", "heads", "part", "suspects"):
            shown = device.http.get(f"/learned/{page}").text
            assert gone.hex()[:8] not in shown.replace(gone.hex(), "")
            assert name in shown or page in ("heads", "suspects")
    learner.wait_until_idle(60)
    for report in (device.http.get("/api/quality").json(), device.state()["score"]):
        assert gone.hex()[:8] not in str(report).replace(gone.hex(), "")


def test_in_a_fleet_the_fleet_merges(device: Device) -> None:
    def state() -> State:
        camera, broker = camera_report(device.camera), MqttReport("broker:8883", False, 0, 0)
        return station_state(
            device.station, channel="default", version="0", started_utc=0.0, camera=camera, mqtt=broker
        )

    wrong = define(device, "Krazter")
    with TestClient(create_app(device.station, state, access=device.access), base_url=device.url) as http:
        answer = http.post(f"/api/classes/{wrong}/merge", json={"into": class_id("scratch").hex()})
        assert (answer.status_code, "headway fleet classes" in answer.json()["hint"]) == (409, True)
        page = http.get("/settings").text
    assert ("Merge…" in page, "merged by the fleet" in page) == (False, True)


@pytest.mark.browser
def test_the_button_of_a_mistyped_class_goes_with_its_undo(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + f"label?sample={hex_of('rings', 0)}") as on:
        on.ready()
        on.asked()
        on.settled()
        on.page.keyboard.press("n")
        on.page.locator("#defect-name").fill("Krazter")
        on.page.keyboard.press("Enter")
        expect(on.page.locator('#classes button[data-class="Krazter"]')).to_have_count(1)
        on.quiet()
        on.page.keyboard.press("u")
        on.quiet()
        expect(on.page.locator('#classes button[data-class="Krazter"]')).to_have_count(0)
    assert put_away(device) == ["Krazter"]


@pytest.mark.browser
def test_an_engineer_mends_the_classes_in_the_settings(device: Device, browser: Browser) -> None:
    label(device, hex_of("rings", 0), class_id=define(device, "Krazter"))
    define(device, "prepared")
    with opened(browser) as (_, on):
        on.page.goto(device.url + "settings")
        on.ready()

        def row(name: str) -> Locator:
            return on.page.locator(f'#classes-section tr[data-name="{name}"]')

        expect(row("Krazter").get_by_role("button", name="Put away")).to_have_count(0)
        row("Krazter").get_by_role("button", name="Rename").click()
        on.page.locator("#class-name").fill("pit")
        on.page.keyboard.press("Enter")
        expect(on.page.locator("#class-rename .wrong")).to_contain_text("there is a class 'pit' already")
        on.page.locator("#class-name").fill("Kratzer")
        on.page.keyboard.press("Enter")
        expect(row("Kratzer")).to_have_count(1)
        row("prepared").get_by_role("button", name="Put away").click()
        expect(row("prepared")).to_contain_text("put away")
        assert "prepared" not in offered(device)
        row("prepared").get_by_role("button", name="Bring back").click()
        expect(row("prepared").get_by_role("button", name="Put away")).to_have_count(1)
        row("Kratzer").get_by_role("button", name="Merge…").click()
        on.page.locator("#class-into").select_option(label="scratch")
        expect(on.page.locator("#class-merge-said")).to_contain_text("“Kratzer” (labels: 1) becomes “scratch” (")
        on.page.get_by_role("button", name="Merge for good").click()
        expect(row("Kratzer")).to_have_count(0)
        assert [line for line in on.problems if "409" not in line] == []
    assert offered(device) == ["good", "pit", "prepared", "scratch"]
