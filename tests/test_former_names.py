"""What was labelled under an earlier release's classes is told by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from device_agent.former_names import KEPT_AS, MAX_NAMES, FormerNames
from device_agent.limits import StoreLimits
from device_agent.parts import Ledger
from device_agent.store import Store
from sdk.labels import DefineClass, MergeClasses, fleet_log_of
from tests.pages import Device, hex_of, serving, write_stream
from tests.test_naming import says
from tests.tiny import class_id, other_id, picture, tiny_bundle


def test_a_release_without_a_class_leaves_its_labels_their_name(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "before", classes=("good", "pit"))
    after = tiny_bundle(tmp_path / "after", classes=("good", "scratch"))
    stream = write_stream(tmp_path / "stream", {"rings": 2})
    with serving(tmp_path / "data", stream, before) as device:
        sample = device.http.get("/api/samples").json()[0]["sample"]
        body = {"sample": sample, "class_id": class_id("pit").hex()}
        device.http.post("/api/labels", json=body).raise_for_status()
    with serving(tmp_path / "data", stream, after) as device:
        (row,) = device.http.get("/api/labels").json()
        assert row["label"] == "pit"
        assert [each["name"] for each in device.http.get("/api/classes").json()].count("pit") == 0


@pytest.fixture
def exported_anew(tmp_path: Path) -> Iterator[Device]:
    """A device that people labelled good parts on, and whose bundle has other ids for the same classes since."""
    before = tiny_bundle(tmp_path / "before")
    after = tiny_bundle(tmp_path / "after", id_of=other_id)
    stream = write_stream(tmp_path / "stream", {"good": 20})
    with serving(tmp_path / "data", stream, before) as device:
        learner = device.station.require().learner
        samples = [bytes.fromhex(hex_of("good", i)) for i in range(20)]
        learner.label_all([(each, class_id("good")) for each in samples], "anna")
        device.settle()
    with serving(tmp_path / "data", stream, after) as device:
        device.settle()
        yield device


def shown(device: Device) -> dict[str, bool]:
    """Return as what good parts are shown, each with whether all that are shown so pass."""
    found: dict[str, bool] = {}
    for i in range(1000, 1040):
        decision = device.station.inspect(picture("good", i)).decision
        found[decision.shown] = found.get(decision.shown, True) and not Ledger(("good",)).bad(decision)
    return found


def test_what_people_labelled_good_under_other_ids_of_the_same_classes_passes_and_is_told(
    exported_anew: Device,
) -> None:
    twin = f"good ({class_id('good').hex()[:6]})"
    assert shown(exported_anew) == {"good": True, twin: True}
    (fault,) = exported_anew.state()["faults"]
    assert fault.startswith(f"20 labels are of {twin!r}, another class than this release's 'good'")
    assert "--classes-from" in fault


def test_a_twin_is_merged_on_the_page_and_passes_still(exported_anew: Device) -> None:
    merge = {"into": other_id("good").hex(), "operator": "ann"}
    exported_anew.http.post(f"/api/classes/{class_id('good').hex()}/merge", json=merge).raise_for_status()
    exported_anew.settle()
    assert (shown(exported_anew), exported_anew.state()["faults"]) == ({"good": True}, [])


def test_twins_that_the_fleet_makes_one_pass_on_a_device_that_had_both(exported_anew: Device) -> None:
    """As `headway fleet publish --new-classes` writes it, and the command that it prints."""
    old, new = class_id("good"), other_id("good")
    says(exported_anew, fleet_log_of("default"), [DefineClass(old, "good", ""), MergeClasses(old, new, "")])
    assert (shown(exported_anew), exported_anew.state()["faults"]) == ({"good": True}, [])


def test_a_twin_that_people_give_another_name_is_no_twin(exported_anew: Device) -> None:
    exported_anew.station.rename_class(class_id("good"), "free", "ann")
    exported_anew.settle()
    assert (shown(exported_anew), exported_anew.state()["faults"]) == ({"good": True, "free": True}, [])


def test_a_class_that_people_made_and_a_bundle_brings_anew_is_told(tmp_path: Path) -> None:
    """It has the id that was made here only where the export was given that."""
    stream = write_stream(tmp_path / "stream", {"rings": 2})
    with serving(tmp_path / "data", stream, tiny_bundle(tmp_path / "before")) as device:
        rings = device.station.define_class("rings", "ann")
        device.settle()
    after = tiny_bundle(tmp_path / "after", classes=("good", "pit", "rings"))
    with serving(tmp_path / "data", stream, after) as device:
        device.station.label(bytes.fromhex(hex_of("rings", 0)), rings, "ann")
        device.settle()
        (fault,) = device.state()["faults"]
        assert fault.startswith("1 label is of 'rings', another class than this release's 'rings'")


def test_master_parts_go_by_the_name_that_a_twin_had(exported_anew: Device) -> None:
    naming, head = exported_anew.station.require().learner.naming, exported_anew.station.require().learner.head
    words = naming.words(head.head.class_ids)
    assert [words[each] for each in (class_id("good"), other_id("good"))] == ["good", "good"]
    assert class_id("pit") not in words, "nobody labelled with it"


def test_names_are_of_the_newest_release_and_so_many(tmp_path: Path) -> None:
    def number(i: int) -> bytes:
        return i.to_bytes(16, "big")

    with Store.open(tmp_path, "line-1", limits=StoreLimits()) as store:
        FormerNames(store).note({number(i): f"class {i}" for i in range(MAX_NAMES)})
        FormerNames(store).note({number(1): "one", number(MAX_NAMES): "new"})
        kept = FormerNames(store).names
    assert len(kept) == MAX_NAMES
    assert (kept[number(1)], kept[number(MAX_NAMES)], number(0) in kept) == ("one", "new", False)


@pytest.mark.parametrize("value", [b"", b"\xff", msgspec.msgpack.encode({b"a" * 16: 1}), b"\x81\xc4\x01a\xa1\xff"])
def test_names_that_are_none_stop_no_start(tmp_path: Path, value: bytes) -> None:
    with Store.open(tmp_path, "line-1", limits=StoreLimits()) as store:
        store.keep(KEPT_AS, value)
        assert FormerNames(store).names == {}
