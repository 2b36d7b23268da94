"""Classes named alike on two lines: proposed with evidence, merged or told apart by a person, never silently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.alike import ALIKE, MAX_PROPOSALS, names_alike, propose
from sdk.fleet.cli import fleet as fleet_command
from sdk.fleet.cli import fleet_overview
from sdk.fleet.cli_devices import troubles_of
from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.store import FleetStore
from sdk.labels import CodeRecord, DefineClass, Fold, KeepApart, Label, MergeClasses, RenameClass
from sdk.liveset import LiveSet
from sdk.wire import DeviceState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import Ended, headway
from tests.cost import lines_run
from tests.simulators import SimDevice


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", ("good", "scratch"))


def teach(bundle: Bundle, device: str, name: str, shows: str, first: int) -> SimDevice:
    """Return a device that has invented a class of this name, and labelled five pictures of what it shows."""
    line = SimDevice(device)
    line.write(DefineClass(class_id_of(device), name, "ann"))
    for number in range(first, first + 5):
        image = picture(shows, number)
        code, sample = code_of(bundle, image).tobytes(), hashlib.sha256(image).digest()
        digest = hashlib.sha256(code).digest()
        line.write(CodeRecord(bytes.fromhex(bundle.space()), sample, f"{device}/{number}", digest), code)
        line.write(Label(sample, class_id_of(device), "ann"))
    return line


@pytest.fixture
def fleet(fleet_dir: Path, bundle: Bundle) -> Iterator[FleetStore]:
    """Three lines: two call the same defect alike, the third calls another defect as the first does."""
    lines = [
        teach(bundle, "line-1", "Pit mark", "pit", 0),
        teach(bundle, "line-2", "pit-marks", "pit", 100),
        teach(bundle, "line-3", "stain", "stain", 200),
    ]
    with FleetStore(fleet_dir) as store:
        store.publish(bundle, channel="default")
        with store.write() as ledger:
            for line in lines:
                state = DeviceState(device=line.device, channel="default", online=True)
                ledger.note_state(state, seen_utc=1.0)
                ledger.take(line.device, line.log, {})
        yield store


def classes(capsys: pytest.CaptureFixture[str], fleet: FleetStore, *args: str, as_json: bool = True) -> Ended:
    more = ("--json",) if as_json else ()
    return headway(capsys, "fleet", "classes", "--dir", fleet.directory, *more, *args)


def names(*of: str) -> tuple[str, ...]:
    """Return the first digits of the ids of these lines' classes."""
    return tuple(class_id_of(each).hex()[:8] for each in of)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Scratch", "scratch", True),
        ("scratch", "scratches", True),
        ("Kratzer", "KRATZER ", True),
        ("größe", "GROSSE", True),
        ("Réticule", "reticule", True),
        ("oil-spot", "Oil spot", True),
        ("划痕", "划 痕", True),
        ("pit", "pin", False),
        ("scratch", "crack", False),
        ("Kratzer", "scratch", False),
        ("划痕", "凹坑", False),
        ("---", "???", False),
    ],
)
def test_names_are_compared_as_people_write_them(one: str, other: str, alike: bool) -> None:
    assert (names_alike(one, other) >= ALIKE, names_alike(other, one) >= ALIKE) == (alike, alike)


def of_no_release(labels: int = 0) -> LiveSet:
    """Return a live set of as many labels of one class, `IDS[0]`."""
    fold = Fold("00" * 32, 2)
    samples, codes = [i.to_bytes(32, "big") for i in range(labels)], np.ones((labels, 2), np.int8)
    fold.add_base(samples, [IDS[0]] * labels, ["g"] * labels, codes, {})
    return fold.live_set()


IDS = [i.to_bytes(16, "big") for i in range(5000)]


@given(st.lists(st.text("abAé1 _-ß", min_size=1, max_size=8), max_size=14, unique=True))
@settings(max_examples=60, deadline=None)
def test_no_pair_is_left_out_of_a_channel_of_usual_size(names: list[str]) -> None:
    called = dict(zip(IDS, names, strict=False))
    every = [
        (names_alike(called[one], called[other]), one, other)
        for one, other in combinations(called, 2)
        if names_alike(called[one], called[other]) >= ALIKE
    ]
    expected = sorted(every, key=lambda each: (-each[0], each[1:]))[:MAX_PROPOSALS]
    found = propose(of_no_release(), called)
    assert [(pair.names_alike, pair.one.class_id, pair.other.class_id) for pair in found] == expected


def test_however_many_classes_somebody_defines_few_pairs_are_compared() -> None:
    def cost(classes: int) -> int:
        names = {IDS[i]: f"class {i:03}" for i in range(classes)}
        return lines_run(lambda: propose(of_no_release(), names))

    assert cost(320) < 3 * cost(160)


def test_a_flood_of_classes_does_not_hide_those_that_labels_are_of() -> None:
    names = {class_id: f"nothing {i:04} at all" for i, class_id in enumerate(IDS)} | {IDS[4999]: "pit 1"}
    assert names_alike("pit 1", "Pit-1") == 1
    found = propose(of_no_release(3), names | {IDS[0]: "Pit-1"}, released=[IDS[4999]])
    assert (found[0].one.class_id, found[0].other.class_id) == (IDS[0], IDS[4999])


def test_a_pair_is_proposed_with_what_its_codes_say(fleet: FleetStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = fleet.live_set("default")
    found = json.loads(classes(capsys, fleet).out)
    (pair,) = found["proposed"]
    sides = {side["name"]: side for side in (pair["one"], pair["other"])}
    assert set(sides) == {"Pit mark", "pit-marks"}
    assert sides["Pit mark"]["devices"] == ["line-1"]
    assert [side["taken_for_other"] for side in sides.values()] == [1.0, 1.0]
    assert "100% of which would be called" in classes(capsys, fleet, as_json=False).out
    after = fleet.live_set("default")
    assert before is not None
    assert after is not None
    assert after.digest == before.digest  # looking merges nothing


def test_parts_that_look_different_are_told_as_such(
    fleet_dir: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with FleetStore(fleet_dir) as store:
        store.publish(bundle, channel="default")
        for line in (teach(bundle, "line-1", "mark", "pit", 0), teach(bundle, "line-2", "Mark", "good", 100)):
            with store.write() as ledger:
                ledger.note_state(DeviceState(device=line.device, channel="default", online=True), seen_utc=1.0)
                ledger.take(line.device, line.log, {})
        (pair,) = json.loads(classes(capsys, store).out)["proposed"]
        seen = {side["devices"][0]: side["taken_for_other"] for side in (pair["one"], pair["other"])}
        assert seen["line-2"] == 0.0  # good parts are called good without it


def test_merged_by_command_the_devices_know_one_class(
    fleet: FleetStore, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = classes(capsys, fleet, "merge", *names("line-1", "line-2"), "--name", "pit", "--by", "ann", "--yes")
    done = json.loads(ended.out)
    assert (done["kind"], done["by"], done["utc"] > 0) == ("merge", "ann", True)
    found = json.loads(classes(capsys, fleet).out)
    assert found["proposed"] == []
    assert [one["name"] for one in found["classes"]] == ["good", "pit", "scratch", "stain"]
    with fleet.read() as ledger:
        union = ledger.records("default", 1)
    with Store.open(tmp_path / "data", "line-9", limits=StoreLimits()) as store:
        learner = Learner(bundle, None, store)
        store.log.receive(union, len(union), "default")
        learner.received(union)
        learner.run_until_idle()
        assert sorted(each.name for each in learner.classes()) == ["good", "pit", "scratch", "stain"]
        live = fleet.live_set("default")
        assert live is not None
        assert learner.status().live_set_digest == live.digest
        learner.stop()


def test_a_merge_says_what_it_is_about_and_asks(fleet: FleetStore, bundle: Bundle) -> None:
    """It is for good. A class that somebody mistyped and never used must not rename one with many labels."""
    mistyped = SimDevice("line-4")
    mistyped.write(DefineClass(class_id_of("line-4"), "Pit mrak", "ann"))
    with fleet.write() as ledger:
        ledger.note_state(DeviceState(device="line-4", channel="default", online=True), seen_utc=1.0)
        ledger.take("line-4", mistyped.log, {})
    wrong, right = names("line-4", "line-1")
    asked = ["classes", "--dir", str(fleet.directory), "merge", "Pit mrak", right, "--by", "ann"]
    words = f"'Pit mrak' ({wrong}, 0 labels) and 'Pit mark' ({right}, 5 labels)"

    def kept() -> list[str]:
        with fleet.read() as ledger:
            return [type(entry.body).__name__ for entry in ledger.decisions("default")]

    def answered(answer: str, *more: str) -> Result:
        return CliRunner().invoke(fleet_command, [*asked, *more], input=answer)

    no = answered("n\n")
    assert f"{words} become one class, called 'Pit mark', on every device. It cannot be undone." in no.stderr
    assert (str(no.exception), kept()) == ("nothing was merged", [])
    nobody = answered("")
    assert isinstance(nobody.exception, FleetError)
    assert ("--yes" in nobody.exception.hint, kept()) == (True, [])
    yes = answered("y\n")
    assert f"{words} are one class now, called 'Pit mark', by ann" in yes.stdout
    assert kept() == ["MergeClasses", "RenameClass"]
    learned = fleet.learned("default")
    assert learned is not None
    assert sorted(learned.names.values()) == ["Pit mark", "good", "pit-marks", "scratch", "stain"]


def test_told_apart_they_are_not_proposed_again_and_the_page_says_who_said_so(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    page = TestClient(make_app(FleetView(fleet)), base_url="http://127.0.0.1")
    text = page.get("/learned/default").text
    assert "are named alike" in text
    assert "headway fleet classes --dir DIR merge" in text
    classes(capsys, fleet, "apart", *names("line-2", "line-1"), "--by", "bob")
    assert json.loads(classes(capsys, fleet).out)["proposed"] == []
    text = page.get("/part/learned/default").text
    assert "are named alike" not in text
    assert "said to be different by bob" in text
    assert page.get("/api/classes/default").json()["decided"][0]["kind"] == "apart"


def joined(fleet: FleetStore, line: SimDevice) -> None:
    """Let a device register and send its log."""
    with fleet.write() as ledger:
        ledger.note_state(DeviceState(device=line.device, channel="default", online=True), seen_utc=1.0)
        ledger.take(line.device, line.log, {})


def test_what_a_device_says_of_two_classes_is_taken_shown_and_does_not_count(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one device would make defects pass on every line. For all lines the fleet's people say it."""
    before = fleet.live_set("default")
    line = SimDevice("line-4")
    line.write(KeepApart(class_id_of("line-1"), class_id_of("line-2"), "ann"))
    line.write(MergeClasses(class_id_of("good"), class_id_of("scratch"), "ann"))
    line.write(MergeClasses(class_id_of("scratch"), class_id_of("good"), "bob"))
    joined(fleet, line)
    found = json.loads(classes(capsys, fleet).out)
    assert (len(found["proposed"]), len(found["classes"])) == (1, 5)
    assert [(one["device"], one["operator"]) for one in found["unheard"]] == [("line-4", "ann")]
    after = fleet.live_set("default")
    assert before is not None
    assert after is not None
    assert after.digest == before.digest
    said = found["unheard"][0]["words"]
    assert "made one on line-4, which does not count" in said
    assert said in classes(capsys, fleet, as_json=False).out
    page = TestClient(make_app(FleetView(fleet)), base_url="http://127.0.0.1")
    assert "made one on line-4, which does not count" in page.get("/part/learned/default").text
    assert "Nobody is." in page.get("/suspects/default").text  # quarantined
    (row,) = [each for each in fleet_overview(fleet)["devices"] if each["device"] == "line-4"]
    merged = "it merged 2 pairs of classes, which does not count: see headway fleet classes"
    assert (troubles_of(row), row["quarantine"]) == ([merged, "no release serves on it"], [])
    with fleet.read() as ledger:
        kinds = [type(record.entry.body).__name__ for record in ledger.records("default", 1)]
    assert kinds[-4:] == ["Quarantine", "KeepApart", "MergeClasses", "MergeClasses"]  # no line ever goes by them
    line.write(MergeClasses(class_id_of("line-1"), class_id_of("line-2"), "ann"))
    joined(fleet, line)
    with fleet.read() as ledger:
        assert len(ledger.decisions("default")) == 1
    said = [one["merge"] for one in json.loads(classes(capsys, fleet).out)["unheard"]][1]
    classes(capsys, fleet, *said.partition("--dir DIR ")[2].split(), "--yes")
    found = json.loads(classes(capsys, fleet).out)
    assert (len(found["unheard"]), len(found["classes"])) == (1, 4)
    # Labels of the class whose id does not stand for both go by the name of both.
    names = {row["class"] for row in FleetView(fleet).learned("default")["labels"]}
    assert len(names) == 2
    assert not any(name.startswith("class ") for name in names)
    classes(capsys, fleet, "apart", "good", "scratch")
    assert json.loads(classes(capsys, fleet).out)["unheard"] == []


def test_a_station_that_merged_alone_joins_with_its_labels_and_says_what_does_not_count(
    fleet: FleetStore, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path / "data", "line-9", limits=StoreLimits()) as store:
        learner = Learner(bundle, None, store)
        mistyped = learner.define_class("scartch", "ann")
        one = SimDevice("line-9")
        for record in teach(bundle, "line-9", "pit", "scratch", 300).log[1:]:
            body = record.entry.body
            body = Label(body.sample, mistyped, "ann") if isinstance(body, Label) else body
            one.write(body, record.code)
        codes = {
            record.entry.body.sample: np.frombuffer(record.code or b"", np.int8)
            for record in one.log
            if isinstance(record.entry.body, CodeRecord)
        }
        store.log.append([record.entry.body for record in one.log], codes)
        learner.merge_classes(mistyped, class_id_of("scratch"), "ann", name="scratch")
        learner.define_class("dent", "ann")
        learner.run_until_idle()
        assert sorted(each.name for each in learner.classes()) == ["dent", "good", "scratch"]
        assert learner.status().unheard == ""
        with fleet.write() as ledger:
            ledger.note_state(DeviceState(device="line-9", channel="default", online=True), seen_utc=1.0)
            taken = ledger.take("line-9", store.log.outbox(100), {})
        assert (taken.verdict.refused, taken.verdict.standing.chain.seq) == (None, store.log.length())

        def hears() -> None:
            with fleet.read() as ledger:
                union = ledger.records("default", 1)
            store.log.receive(union, len(union), "default")
            learner.received(union)
            learner.run_until_idle()

        hears()
        live = fleet.live_set("default")
        assert live is not None
        assert learner.status().live_set_digest == live.digest
        known = {each.name: each.own_labels for each in learner.classes()}
        assert (known["scartch"], known["scratch"], "dent" in known) == (5, 0, True)
        assert learner.status().quarantine == ""
        assert "'scartch' and 'scratch' were merged here and are two classes" in learner.status().unheard
        classes(capsys, fleet, "merge", "scartch", "scratch", "--yes")
        hears()
        assert {each.name: each.own_labels for each in learner.classes()}["scratch"] == 5
        assert learner.status().unheard == ""
        learner.stop()


def test_a_name_that_a_device_gave_a_class_of_the_release_is_shown(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    line = SimDevice("line-4")
    line.write(RenameClass(class_id_of("scratch"), "Good.", "ann"))
    joined(fleet, line)
    (found,) = json.loads(classes(capsys, fleet).out)["renamed"]
    assert (found["released"], found["name"], found["device"]) == ("scratch", "Good.", "line-4")
    assert "'scratch' in the release, called 'Good.' by line-4" in classes(capsys, fleet, as_json=False).out
    # Who is asked whether it is one with the good class hears what it is.
    asked = ["classes", "--dir", str(fleet.directory), "merge", "good", names("scratch")[0]]
    assert "'Good.' (" in CliRunner().invoke(fleet_command, asked, input="n\n").stderr
    assert ", 'scratch' in the release) become one" in CliRunner().invoke(fleet_command, asked, input="n\n").stderr
    line.write(RenameClass(class_id_of("scratch"), "Scratch", "ann"))
    joined(fleet, line)
    assert json.loads(classes(capsys, fleet).out)["renamed"] == []


def test_a_class_of_the_release_is_proposed_with_a_new_one_but_not_with_another_of_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = make_bundle(tmp_path / "two", ("scratch a", "scratch b"))
    with FleetStore(tmp_path / "fleet") as store:
        store.publish(released, channel="default")
        assert json.loads(classes(capsys, store).out)["proposed"] == []
        line = teach(released, "line-1", "Scratch A", "scratch a", 0)
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
            ledger.take("line-1", line.log, {})
        found = json.loads(classes(capsys, store).out)["proposed"]
        assert {found[0]["one"]["name"], found[0]["other"]["name"]} == {"scratch a", "Scratch A"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("merge", "good", "nothing"), "'nothing' names no class"),
        (("merge", "good", "good"), "are one class already"),
        (("merge", "Pit mark", "pit-marks", "--name", "Good"), "is no name for this class"),
        (("merge", "Pit mark", "pit-marks", "--name", " "), "is no name for this class"),
        (("apart", "good", "abc"), "names no class"),
    ],
)
def test_what_cannot_be_said_of_classes_is_refused(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    ended = classes(capsys, fleet, *args)
    assert (ended.code, message in ended.err) == (2, True), ended.err
    with fleet.read() as ledger:
        assert ledger.decisions("default") == []


def test_saying_it_twice_is_refused(fleet: FleetStore, capsys: pytest.CaptureFixture[str]) -> None:
    classes(capsys, fleet, "apart", "Pit mark", "pit-marks")
    assert "known to be different" in classes(capsys, fleet, "apart", "pit-marks", "Pit mark").err
    classes(capsys, fleet, "merge", "Pit mark", "pit-marks", "--yes")
    assert "are one class already" in classes(capsys, fleet, "merge", *names("line-1", "line-1")).err
