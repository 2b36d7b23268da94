"""Which classes pass is this station's to say: no other device's name or merge makes a defect pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from device_agent.accepting import Target
from device_agent.page.app import create_app
from device_agent.page.book import set_setting, setting
from device_agent.parts import Ledger
from device_agent.report import State
from sdk.bundle import Bundle
from sdk.labels import Body, Chain, DefineClass, MergeClasses, Record, RenameClass, fleet_log_of
from tests.pages import Device, hex_of, serving, write_stream
from tests.simulators import wait_for
from tests.tiny import class_id, picture, tiny_bundle

GOOD, PIT, SCRATCH = map(class_id, ("good", "pit", "scratch"))
FLEET = fleet_log_of("default")
CHOOSE = "does not pass until somebody here chooses the good classes"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("naming") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("naming") / "stream", {"pit": 1})


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle) as found:
        yield found


def says(device: Device, who: str, bodies: Sequence[Body]) -> None:
    """Let another device, or the fleet, say this, and wait until it is learned."""
    log = device.station.store.log
    held = [record.entry for record in log.records()]
    chain, counter = Chain(who), max((entry.counter for entry in held), default=0)
    for entry in held:
        chain = chain.follow(entry) if entry.device == who else chain
    records = []
    for number, body in enumerate(bodies, counter + 1):
        chain, entry = chain.write(body, counter=number, wall_time_us=0)
        records.append(Record(entry))
    log.receive(records, log.position() + len(records))
    device.station.require().learner.received(records)
    device.settle()


def passes(device: Device, shows: str) -> bool:
    """Return whether a part with this picture is passed, as the line would."""
    decision = device.station.inspect(picture(shows, 700)).decision
    return not Ledger(("good",)).bad(decision)


def faults(device: Device) -> list[str]:
    return list(device.http.get("/api/state").json()["faults"])


def unasked() -> State:
    raise AssertionError


def called(device: Device, class_id: bytes) -> str:
    return next(each.name for each in device.station.classes() if each.class_id == class_id)


def test_a_defect_that_another_device_calls_good_does_not_pass(device: Device) -> None:
    assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
    says(device, "evil", [RenameClass(GOOD, "fine?", "eve"), RenameClass(SCRATCH, "Good", "eve")])
    assert called(device, SCRATCH) == "Good"
    assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
    named = "evil named 'scratch' 'Good': it does not pass until somebody here says so"
    assert {named, "evil named 'good' 'fine?': it passes as before"} <= set(faults(device))
    assert device.http.get("/api/operating").json()["good"] == [GOOD.hex()]
    device.http.put("/api/operating", json={"good": [GOOD.hex(), SCRATCH.hex()]}).raise_for_status()
    assert (passes(device, "good"), passes(device, "scratch")) == (True, True)
    assert named not in faults(device)


def test_a_defect_that_took_the_good_class_s_name_does_not_pass_as_no_class_is_left_that_does(
    device: Device,
) -> None:
    """Without an operating point the line would go by the name that is shown."""
    says(device, FLEET, [MergeClasses(GOOD, PIT, "ann"), RenameClass(PIT, "good", "ann")])
    wait_for(lambda: len(device.station.require().learner.head.head.class_ids) == 2)
    assert (passes(device, "good"), passes(device, "pit")) == (False, False)
    assert device.http.get("/api/state").json()["none_passes"]


def test_a_class_that_another_device_invents_with_a_good_name_passes_once_people_here_say_so(
    device: Device,
) -> None:
    other = b"\1" * 16
    says(device, "line-2", [DefineClass(other, "i.O.", "bo")])
    assert "line-2 named a class 'i.O.': it does not pass until somebody here says so" in faults(device)
    chosen = {"good": [GOOD.hex(), other.hex()]}
    device.http.put("/api/operating", json=chosen).raise_for_status()
    device.http.put(f"/api/classes/{other.hex()}", json={"name": "ok"}).raise_for_status()
    device.settle()
    assert not [each for each in faults(device) if "line-2" in each]
    assert other in device.station.operating.good({other: "ok"})


def test_a_program_that_labels_by_name_does_not_label_another_class(device: Device) -> None:
    """The good class under a defect's name would be taught that defect."""
    says(device, "evil", [RenameClass(SCRATCH, "mark", "eve"), RenameClass(GOOD, "scratch", "eve")])
    body = {"sample": hex_of("pit", 0), "class_name": "scratch"}
    answer = device.http.post("/api/labels", json=body)
    assert (answer.status_code, "2 classes are called 'scratch'" in answer.json()["error"]) == (409, True)
    device.http.post("/api/labels", json={**body, "class_name": "mark"}).raise_for_status()
    assert device.labels()[-1].class_id == SCRATCH


def test_of_many_classes_called_good_those_that_are_known_here_are_told(device: Device) -> None:
    flood: list[Body] = [DefineClass(bytes([i]) * 16, "good", "eve") for i in range(20)]
    says(device, "evil", [*flood, RenameClass(SCRATCH, "good", "eve")])
    told = [each for each in faults(device) if "good" in each or "such" in each]
    assert told[0] == "evil named 'scratch' 'good': it does not pass until somebody here says so"
    assert (len(told), told[-1]) == (6, "16 more such names")
    assert not passes(device, "scratch")


def test_what_people_here_call_good_passes_and_what_they_call_a_defect_does_not(device: Device) -> None:
    """As an earlier version's page let them do, before they had chosen the good classes."""
    device.station.rename_class(GOOD, "dull", "ann")
    device.station.rename_class(SCRATCH, "OK", "ann")
    device.settle()
    assert (passes(device, "good"), passes(device, "scratch")) == (False, True)
    says(device, FLEET, [RenameClass(SCRATCH, "fein", "ann")])  # another word for it
    assert passes(device, "scratch")
    assert faults(device) == []


def test_a_name_typed_here_changes_what_passes_only_once_people_have_chosen(device: Device) -> None:
    def renamed(class_id: bytes, name: str) -> tuple[int, str]:
        answer = device.http.put(f"/api/classes/{class_id.hex()}", json={"name": name})
        device.settle()
        return answer.status_code, answer.json().get("error", "")

    taken_out = (409, "'good' passes by its name, and would not as 'dull'")
    assert renamed(GOOD, "dull") == taken_out
    assert renamed(SCRATCH, "i.O.") == (409, "'scratch' does not pass, and would by the name 'i.O.'")
    assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
    assert renamed(SCRATCH, "Good") == (409, "there is a class 'good' already")
    assert renamed(b"\1" * 16, "ok")[0] == 404
    assert [renamed(GOOD, "OK")[0], renamed(SCRATCH, "groove")[0]] == [200, 200]
    assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
    assert "their names say what passes" in device.http.get("/settings").text
    device.http.put("/api/operating", json={"good": [GOOD.hex()]}).raise_for_status()
    assert [renamed(GOOD, "dull")[0], renamed(SCRATCH, "i.O.")[0]] == [200, 200]
    assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
    assert "their names say what passes" not in device.http.get("/settings").text


@pytest.mark.parametrize("chosen", [False, True], ids=["by name", "chosen"])
def test_a_class_that_passes_made_one_with_a_defect_does_not_pass(
    tmp_path: Path, bundle: Bundle, stream: Path, chosen: bool
) -> None:
    with serving(tmp_path / "data", stream, bundle) as device:
        if chosen:
            device.http.put("/api/operating", json={"good": [GOOD.hex()]}).raise_for_status()
        assert (passes(device, "good"), passes(device, "scratch")) == (True, False)
        says(device, FLEET, [MergeClasses(GOOD, SCRATCH, "ann"), RenameClass(GOOD, "good", "ann")])
        wait_for(lambda: len(device.station.require().learner.head.head.class_ids) == 2)
        assert (passes(device, "good"), passes(device, "scratch")) == (False, False)
        assert [each for each in faults(device) if CHOOSE in each and "'good'" in each and "'scratch'" in each]
        one = min(GOOD, SCRATCH).hex()
        device.http.put("/api/operating", json={"good": [one]}).raise_for_status()
        assert (passes(device, "good"), passes(device, "pit")) == (True, False)
        assert faults(device) == []
    with serving(tmp_path / "data", stream, bundle) as device:
        assert (passes(device, "good"), passes(device, "pit")) == (True, False)
        assert device.http.get("/api/operating").json()["lost"] == []


def test_what_an_earlier_version_wrote_down_keeps_what_was_one_class_then(
    tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    with serving(tmp_path / "data", stream, bundle) as device:
        says(device, FLEET, [MergeClasses(GOOD, SCRATCH, "ann")])
        one = min(GOOD, SCRATCH).hex()
        set_setting(device.book, "operating", f'{{"good":["{one}"],"escape_rate":0.05,"by_threshold":false}}')
        create_app(device.station, unasked, access=device.access, counter=device.counter)
        assert device.station.operating.target == Target(sorted([GOOD.hex(), SCRATCH.hex()]), 0.05, whole=True)
        assert passes(device, "good")
        stored = setting(device.book, "operating")
        assert stored is not None
        assert msgspec.json.decode(stored, type=Target) == device.station.operating.target
