"""A release with other ids for the same classes: refused, or published beside them, with a way back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import UnknownClassError
from sdk.fleet.store import FleetStore
from sdk.labels import CodeRecord, Label
from sdk.wire import DeviceState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import Ended, headway
from tests.simulators import SimDevice

CLASSES = ("good", "scratch")
OTHER_IDS = {name: hashlib.md5(name.encode()).digest() for name in CLASSES}
LABELLED = 5


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", CLASSES)


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same pictures and classes, exported without the ids of the first."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "again", CLASSES, class_ids=OTHER_IDS)


def labelled(bundle: Bundle) -> SimDevice:
    """Return a line that has called five pictures scratches, by the bundle's id."""
    line = SimDevice("line-1")
    for number in range(LABELLED):
        image = picture("scratch", number)
        code, sample = code_of(bundle, image).tobytes(), hashlib.sha256(image).digest()
        digest = hashlib.sha256(code).digest()
        line.write(CodeRecord(bytes.fromhex(bundle.space()), sample, f"part-{number}", digest), code)
        line.write(Label(sample, class_id_of("scratch"), "ann"))
    return line


@pytest.fixture
def fleet(fleet_dir: Path, first: Bundle) -> Iterator[FleetStore]:
    with FleetStore(fleet_dir) as store:
        store.publish(first, channel="default")
        line = labelled(first)
        with store.write() as ledger:
            ledger.note_state(DeviceState(device=line.device, channel="default", online=True), seen_utc=1.0)
            ledger.take(line.device, line.log, {})
        yield store


def publish(capsys: pytest.CaptureFixture[str], fleet: FleetStore, bundle: Bundle, *more: str) -> Ended:
    return headway(
        capsys, "fleet", "publish", bundle.path, "--dir", fleet.directory, "--accept-licence", "unknown", *more
    )


def classes(capsys: pytest.CaptureFixture[str], fleet: FleetStore, *more: str) -> Ended:
    return headway(capsys, "fleet", "classes", "--dir", fleet.directory, "--json", *more)


def shown(capsys: pytest.CaptureFixture[str], fleet: FleetStore) -> dict[bytes, tuple[str, int]]:
    """Return the classes that the command lists, by id, with their labels."""
    listed = json.loads(classes(capsys, fleet).out)["classes"]
    return {bytes.fromhex(one["class_id"]): (one["name"], one["labels"]) for one in listed}


def on_a_device(folder: Path, bundle: Bundle, fleet: FleetStore) -> dict[bytes, tuple[str, int]]:
    """Return the classes that a device shows with that release and all that the fleet knows, with their labels."""
    with fleet.read() as ledger:
        union = ledger.records("default", 1)
    with Store.open(folder, "line-9", limits=StoreLimits()) as store:
        learner = Learner(bundle, None, store)
        store.log.receive(union, len(union), "default")
        learner.received(union)
        learner.run_until_idle()
        found = {each.class_id: (each.name, each.labels) for each in learner.classes()}
        assert sum(labels for _, labels in found.values()) == learner.status().live_samples
        learner.stop()
    return found


def current(fleet: FleetStore) -> str:
    with fleet.read() as ledger:
        publication = ledger.current("default")
    assert publication is not None
    return publication.ref.release_id


# What is published


def test_other_ids_for_the_same_names_are_refused_with_the_way_out(
    fleet: FleetStore, again: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    before = current(fleet)
    ended = publish(capsys, fleet, again)
    assert ended.code == 2
    assert "('good', 'scratch')" in ended.err
    assert "--classes-from" in ended.err
    assert current(fleet) == before


def test_the_same_ids_are_published_as_ever(
    fleet: FleetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a class less, and one more."""
    bundle = make_bundle(tmp_path / "next", ("good", "stain"), class_ids={"stain": OTHER_IDS["good"]})
    assert publish(capsys, fleet, bundle).code == 0
    # Of what is gone there are operators' labels: it keeps its name, and has codes again when its line made them.
    for found in (shown(capsys, fleet), on_a_device(tmp_path / "data", bundle, fleet)):
        assert found[class_id_of("scratch")][0] == "scratch"


def test_a_channel_without_devices_may_change_its_mind(
    fleet_dir: Path, first: Bundle, again: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with FleetStore(fleet_dir) as store:
        store.publish(first, channel="default")
        assert publish(capsys, store, again).code == 0


def test_published_beside_them_both_have_names_and_merge_makes_them_one(
    fleet: FleetStore, again: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = class_id_of("scratch"), OTHER_IDS["scratch"]
    assert publish(capsys, fleet, again, "--new-classes").code == 0
    for found in (shown(capsys, fleet), on_a_device(tmp_path / "one", again, fleet)):
        assert found[old] == ("scratch", LABELLED)
        assert found[new][0] == "scratch"
    live = fleet.live_set("default")
    assert live is not None
    assert sum(labels for _, labels in shown(capsys, fleet).values()) == len(live)
    assert classes(capsys, fleet, "merge", old.hex()[:8], new.hex()[:8], "--by", "ann", "--yes").code == 0
    (scratch,) = [one for one in shown(capsys, fleet).values() if one[0] == "scratch"]
    assert scratch[1] > LABELLED
    assert scratch in on_a_device(tmp_path / "two", again, fleet).values()


def test_once_merged_the_older_bundle_is_the_way_back(
    fleet: FleetStore, first: Bundle, again: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    told = publish(capsys, fleet, again, "--new-classes")
    assert publish(capsys, fleet, first).code == 2, "the control"
    merges = [line.split()[1:] for line in told.out.splitlines() if line.startswith("  headway fleet classes")]
    assert [headway(capsys, *words, "--yes").code for words in merges] == [0, 0]
    assert [name for name, _ in shown(capsys, fleet).values()] == list(CLASSES)
    assert publish(capsys, fleet, first).code == 0


def test_what_was_accepted_once_is_not_asked_about_again(
    fleet: FleetStore, again: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(capsys, fleet, again, "--new-classes").code == 0
    assert publish(capsys, fleet, again).code == 0


def test_classes_that_a_release_brings_no_more_are_named(
    fleet: FleetStore, again: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those that it has under another id: merging makes these one."""
    fewer = make_bundle(tmp_path / "fewer", ("good", "stain"))
    ended = publish(capsys, fleet, fewer)
    assert ended.err == (
        "note: first also brings scratch, and fewer does not: devices will know of it what operators label\n"
    )
    assert publish(capsys, fleet, fewer).err == "", "the same once more"
    assert publish(capsys, fleet, again, "--new-classes").err == (
        "note: fewer also brings stain, and again does not: devices will know of it what operators label\n"
    )


# What was published by an earlier Headway, which looked at nothing


@pytest.fixture
def orphaned(fleet: FleetStore, again: Bundle) -> FleetStore:
    fleet.publish(again, channel="default")
    return fleet


def test_labels_of_no_class_are_listed_by_the_name_they_had_and_merged(
    orphaned: FleetStore, again: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = class_id_of("scratch"), OTHER_IDS["scratch"]
    found = shown(capsys, orphaned)
    assert found[old] == ("scratch", LABELLED)
    live = orphaned.live_set("default")
    assert live is not None
    assert sum(labels for _, labels in found.values()) == len(live)
    assert any(
        {pair["one"]["class_id"], pair["other"]["class_id"]} == {old.hex(), new.hex()}
        for pair in json.loads(classes(capsys, orphaned).out)["proposed"]
    )
    assert classes(capsys, orphaned, "merge", old.hex()[:8], new.hex()[:8], "--yes").code == 0
    assert "scratch" in {name for name, _ in on_a_device(tmp_path / "data", again, orphaned).values()}


def test_without_its_release_it_is_listed_by_its_id(
    orphaned: FleetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chunks of the release that had it were cleared away."""
    with orphaned.read() as ledger:
        oldest, newest = ledger.publications("default", cleared=False)
    for digest in {*oldest.release.digests()} - {*newest.release.digests()}:
        (orphaned.directory / "chunks" / digest).unlink()
    old = class_id_of("scratch")
    assert shown(capsys, orphaned)[old] == (f"class {old.hex()[:6]}", LABELLED)


def test_a_device_lists_it_and_lets_its_operator_name_it(
    orphaned: FleetStore, again: Bundle, tmp_path: Path
) -> None:
    old = class_id_of("scratch")
    assert on_a_device(tmp_path / "one", again, orphaned)[old] == (f"class {old.hex()[:6]}", LABELLED)
    with orphaned.read() as ledger:
        union = ledger.records("default", 1)
    with Store.open(tmp_path / "two", "line-9", limits=StoreLimits()) as store:
        learner = Learner(again, None, store)
        store.log.receive(union, len(union), "default")
        learner.received(union)
        learner.run_until_idle()
        learner.rename_class(old, "old scratch", "ann")
        assert (old, "old scratch") in {(each.class_id, each.name) for each in learner.classes()}
        with pytest.raises(UnknownClassError):
            learner.rename_class(bytes(16), "nobody's", "ann")
        learner.stop()
