"""What a fleet does of a device that says codes of samples that it has not labelled: named, and obeyed nowhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk.bundle import Bundle
from sdk.fleet.retention import Policy, due
from sdk.fleet.store import FleetStore
from sdk.labels import MAX_COUNTER, CodeRecord, Label, Quarantine
from sdk.wire import DeviceState
from tests.builders import class_id_of, make_bundle
from tests.commands import headway
from tests.simulators import SimDevice

EVERYTHING = Policy(0.0, live_too=True)
LATER = 4e9
"""After every code of a test has come."""
OWN = hashlib.sha256(b"a picture that the line labelled").digest()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "release")


def say(line: SimDevice, bundle: Bundle, sample: bytes, code: bytes) -> None:
    line.write(CodeRecord(bytes.fromhex(bundle.space()), sample, "g", hashlib.sha256(code).digest()), code)


@pytest.fixture
def fleet(fleet_dir: Path, bundle: Bundle) -> Iterator[FleetStore]:
    """A fleet whose line labelled one picture, and where evil gave each of the release's the code of another."""
    line, evil, base = SimDevice("line-1"), SimDevice("evil"), bundle.base()
    codes = [code.tobytes() for code in base.codes]
    line.write(Label(OWN, base.class_ids[0], "ann"))
    say(line, bundle, OWN, codes[0])
    for sample, code in zip(base.samples, codes[::-1], strict=True):
        say(evil, bundle, sample, code)
    with FleetStore(fleet_dir) as store:
        store.publish(bundle, channel="default")
        with store.write() as ledger:
            for device in (line, evil):
                state = DeviceState(device=device.device, channel="default", online=True)
                ledger.note_state(state, seen_utc=1.0)
                ledger.take(device.device, device.log, {})
        yield store


def quarantine(fleet: FleetStore) -> None:
    with fleet.write() as ledger:
        ledger.decide("default", [Quarantine("evil", "", MAX_COUNTER, "swapped", "bob")])


def test_it_is_named_and_changes_nothing(
    fleet: FleetStore, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    live = fleet.live_set("default")
    assert live is not None
    told = dict(zip(live.samples, (code.tobytes() for code in live.codes[:]), strict=True))
    base = bundle.base()
    assert {sample: told[sample] for sample in base.samples} == {
        sample: code.tobytes() for sample, code in zip(base.samples, base.codes, strict=True)
    }
    found = json.loads(headway(capsys, "fleet", "devices", "--dir", fleet.directory, "--json").out)
    assert {one["device"]: one["foreign_codes"] for one in found["devices"]} == {
        "evil": len(base.samples),
        "line-1": 0,
    }
    named = f"it has said codes of {len(base.samples)} samples that it has not labelled"
    assert named in headway(capsys, "fleet", "devices", "--dir", fleet.directory, "--look").out
    assert "evil has said codes of" in headway(capsys, "fleet", "suspects", "--dir", fleet.directory).out


@pytest.mark.parametrize("held", [False, True], ids=["counting", "quarantined"])
def test_a_policy_takes_no_sample_of_a_release_for_its_word(fleet: FleetStore, bundle: Bundle, held: bool) -> None:
    if held:
        quarantine(fleet)
    found = due(fleet, "default", EVERYTHING, LATER)
    assert {each.body.sample for each in found.what} == {OWN}
    assert (found.held, found.brought, found.emptied) == (len(bundle.base().samples), 0, ())
    assert due(fleet, "default", Policy(0.0), LATER).what == []


def test_codes_of_what_nobody_labelled_go(fleet: FleetStore, bundle: Bundle) -> None:
    """What a flood left, of a device that is quarantined too: nothing rests on it, whoever counts."""
    evil, nobodys = SimDevice("flood"), hashlib.sha256(b"nobody's").digest()
    say(evil, bundle, nobodys, bundle.base().codes[0].tobytes())
    evil.write(CodeRecord(bytes(32), nobodys, "g", hashlib.sha256(b"noise").digest()), b"noise")
    with fleet.write() as ledger:
        ledger.note_state(DeviceState(device="flood", channel="default", online=True), seen_utc=1.0)
        ledger.take("flood", evil.log, {})
        ledger.decide("default", [Quarantine("flood", "", MAX_COUNTER, "flood", "bob")])
    assert [each.body.sample for each in due(fleet, "default", Policy(0.0), LATER).what] == [nobodys, nobodys]


def test_a_class_of_the_release_is_not_emptied_unless_that_is_meant(
    fleet: FleetStore, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    base, line = bundle.base(), SimDevice("line-2")
    name = bundle.class_names()[base.class_ids[0]]
    some = [row for row, class_id in enumerate(base.class_ids) if class_id == base.class_ids[0]]
    for row in some:
        line.write(Label(base.samples[row], base.class_ids[row], "ann"))
        say(line, bundle, base.samples[row], base.codes[row].tobytes())
    with fleet.write() as ledger:
        ledger.note_state(DeviceState(device="line-2", channel="default", online=True), seen_utc=1.0)
        ledger.take("line-2", line.log, {})
    command = ("fleet", "retention", "--dir", fleet.directory, "--older-than", "0", "--live-too")
    told = headway(capsys, *command, "--dry-run").out
    assert f"of these {len(some)} the release brings itself; class {name} would lose all" in told
    before = fleet.live_set("default")
    refused = headway(capsys, *command)
    after = fleet.live_set("default")
    assert refused.code == 2
    assert f"of {name!r} no sample would count any more" in refused.err
    assert before is not None
    assert after is not None
    assert before.digest == after.digest
    assert headway(capsys, *command, "--empty-classes").code == 0
    assert class_id_of(name) not in (fleet.live_set("default") or before).class_ids
