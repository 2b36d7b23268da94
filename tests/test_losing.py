"""Labels whose pictures no device has any more: said before they count no more, and shown where they do not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.channel_ledger import Device
from sdk.fleet.losing import Loss, check_losses, losses, lost
from sdk.fleet.metrics import FleetMetrics
from sdk.fleet.page.view import FleetView
from sdk.fleet.retention import Policy, due, erase
from sdk.fleet.store import FleetStore
from sdk.labels import CodeRecord, Fold, Label
from sdk.wire import DeviceState, PrecisionTime
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import headway
from tests.simulators import SimDevice

SCRATCH = class_id_of("scratch")
BROUGHT = 1000
"""The first of the pictures that each release brings itself."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("releases")
    return [make_bundle(folder / f"r{i}", backbone=f"seed-{i}") for i in range(2)]


def sample_of(number: int) -> bytes:
    return hashlib.sha256(picture("good", number)).digest()


def label(line: SimDevice, bundle: Bundle, *numbers: int) -> None:
    for number in numbers:
        code = code_of(bundle, picture("good", number)).tobytes()
        space, digest = bytes.fromhex(bundle.space()), hashlib.sha256(code).digest()
        line.write(CodeRecord(space, sample_of(number), f"{line.device}/{number}", digest), code)
        line.write(Label(sample_of(number), SCRATCH, "ann"))


def tell(fleet: FleetStore, line: SimDevice, pictures: int | None, space: str) -> None:
    """Let a line send its log, and say how many of its labelled pictures it has."""
    times = [PrecisionTime(precision="fp32", frame_ms=10.0)]
    state = DeviceState(
        device=line.device,
        channel="default",
        online=True,
        space=space,
        precisions=times,
        labelled_pictures=pictures,
    )
    with fleet.write() as ledger:
        ledger.note_state(state, seen_utc=1.0)
        ledger.take(line.device, line.log, {})


@pytest.fixture
def fleet(fleet_dir: Path, releases: list[Bundle]) -> Iterator[FleetStore]:
    """Return a fleet whose line-b was replaced after 4 of 6 labels, and whose line-c is gone, with 2."""
    with FleetStore(fleet_dir) as store:
        store.publish(releases[0], channel="default")
        for name, numbers, pictures in (
            ("line-a", (0, 1, 2, BROUGHT), 4),
            ("line-b", range(10, 16), 2),
            ("line-c", (20, 21), 2),
            ("line-d", (30,), None),
        ):
            line = SimDevice(name)
            label(line, releases[0], *numbers)
            tell(store, line, pictures, releases[0].space())
        with store.write() as ledger:
            ledger.forget("line-c")
        yield store


LOST = [Loss("line-b", 4, gone=False), Loss("line-c", 2, gone=True)]


def device(name: str, pictures: int | None) -> Device:
    state = DeviceState(device=name, channel="default", online=False, labelled_pictures=pictures)
    return Device(name, "default", state, 1.0, 0, None)


@pytest.mark.parametrize(
    ("own", "to_say", "pictures", "labels"),
    [
        (18, 18, 3, 15),
        (18, 18, 18, 0),
        (18, 18, 20, 0),  # labelled by somebody else since
        (18, 18, None, 0),  # of a version before: it does not say
        (18, 3, 3, 3),  # of the others the codes are there already; these may be any
        (18, 0, 0, 0),
    ],
)
def test_so_many_labels_would_be_lost(own: int, to_say: int, pictures: int | None, labels: int) -> None:
    found = lost(Counter({"a": own}), Counter({"a": to_say} if to_say else {}), [device("a", pictures)])
    assert sum(loss.labels for loss in found) == labels


def test_a_state_of_before_the_last_labels_tells_of_no_loss() -> None:
    """Labels reach the fleet with the log, and its pictures are counted when a device tells its state again."""
    state = DeviceState(device="a", channel="default", online=True, labelled_pictures=1, own_labels=2)
    before = dataclasses.replace(device("a", None), state=state)
    assert lost(Counter({"a": 2}), Counter({"a": 2}), [before]) == [Loss("a", 1, gone=False)]
    assert lost(Counter({"a": 9}), Counter({"a": 9}), [before]) == [Loss("a", 1, gone=False)]
    state = DeviceState(device="a", channel="default", online=True, labelled_pictures=1, live_set_digest="ab" * 32)
    learning = dataclasses.replace(before, state=state)
    assert lost(Counter({"a": 9}), Counter({"a": 9}), [learning], "ab" * 32) == [Loss("a", 8, gone=False)]
    assert lost(Counter({"a": 9}), Counter({"a": 9}), [learning], "cd" * 32) == []


def test_what_is_not_agreed_to_is_refused_by_name() -> None:
    check_losses(LOST, 6)
    with pytest.raises(
        FleetError, match=r"6 labels .* 4 labels of line-b: it does not have their pictures; 2 "
    ) as no:
        check_losses(LOST, 5)
    assert "--max-lost-labels 6" in no.value.hint


def test_labels_of_devices_without_the_pictures_are_lost(fleet: FleetStore, releases: list[Bundle]) -> None:
    assert losses(fleet, "default", releases[1], None) == LOST
    assert losses(fleet, "default", releases[0], None) == []  # the same feature space


def test_what_has_a_code_there_already_is_not_lost(fleet: FleetStore, releases: list[Bundle]) -> None:
    line = SimDevice("line-e")
    label(line, releases[0], 40)
    label(line, releases[1], 40)
    tell(fleet, line, 0, releases[0].space())
    assert losses(fleet, "default", releases[1], None) == LOST


def test_publishing_says_it_before_and_does_it_only_when_told(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    publish = ("fleet", "publish", releases[1].path, "--dir", fleet.directory, "--accept-licence", "none")
    refused = headway(capsys, *publish)
    assert (refused.code, "4 labels of line-b" in refused.err) == (2, True), refused
    with fleet.read() as ledger:
        current = ledger.current("default")
    assert current is not None
    assert current.space == releases[0].space()
    done = headway(capsys, *publish, "--max-lost-labels", "6")
    assert done.code == 0, done
    assert "will not count: 2 labels of line-c: it is gone" in done.out


def test_labels_that_count_nowhere_are_shown(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.publish(releases[1], channel="default")
    told = json.loads(headway(capsys, "fleet", "devices", "--dir", fleet.directory, "--json").out)
    # What the release brings itself has a code.
    assert told["channels"][0]["codeless_labels"] == {"line-a": 3, "line-b": 6, "line-c": 2, "line-d": 1}
    assert {one["device"]: one["codeless_labels"] for one in told["devices"]}["line-b"] == 6
    words = "without a code in this release's feature space: 6 of line-b, 3 of line-a, 2 of line-c, 1 of line-d"
    assert words in headway(capsys, "fleet", "devices", "--dir", fleet.directory).out
    assert words in FleetView(fleet).fleet()["channels"][0]["without_effect"][0]
    metrics = generate_latest(FleetMetrics(fleet).registry).decode()
    assert 'headway_fleet_labels_without_code{channel="default"} 12.0' in metrics


def test_what_a_policy_erased_for_good_is_not_told_as_lost(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """A plant that forgets old codes every year would have a warning for ever, and not see the next."""
    erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), 4e9))
    fleet.publish(releases[1], channel="default")
    line = SimDevice("line-e")
    label(line, releases[0], 50)
    tell(fleet, line, 0, releases[0].space())
    told = json.loads(headway(capsys, "fleet", "devices", "--dir", fleet.directory, "--json").out)["channels"][0]
    assert (told["codeless_labels"], told["erased_labels"]) == ({"line-e": 1}, 12)


def test_a_fold_tells_which_labels_have_no_code(releases: list[Bundle]) -> None:
    line, fold = SimDevice("line-a"), Fold(releases[0].space(), len(code_of(releases[0], picture("good", 0))))
    label(line, releases[0], 0)
    label(line, releases[1], 1)
    line.write(Label(sample_of(2), None, "ann"))
    for record in line.log:
        fold.apply(record)
    assert fold.codeless() == {sample_of(1): "line-a"}
