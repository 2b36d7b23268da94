"""What one device may say: the disks of a whole channel keep it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sdk.fleet.registry import ENTRY_BYTES, Room, said_bytes
from sdk.fleet.spending import HELD_BURST_BYTES, HELD_BYTES_PER_S, LOG_BURST_BYTES, Spending
from sdk.fleet.store import FleetStore
from sdk.labels import MAX_COUNTER, CodeRecord, Label, Quarantine
from sdk.wire import DeviceState
from tests.commands import headway
from tests.simulators import SimDevice
from tests.test_fleet_registry import judged
from tests.test_fleet_service import fleet_of

CODE = b"c" * 8000


def flood(device: SimDevice, codes: int) -> None:
    """Codes of samples and a feature space that nobody knows."""
    digest = hashlib.sha256(CODE).digest()
    for _ in range(codes):
        device.write(CodeRecord(bytes(32), os.urandom(32), "g", digest), CODE)


def test_a_station_takes_its_labels_to_many_backbones_at_once() -> None:
    label, code = ENTRY_BYTES, ENTRY_BYTES + 1584
    assert 5000 * (label + 7 * code) <= LOG_BURST_BYTES


def test_what_does_not_fit_is_refused_for_now_and_what_came_before_is_taken() -> None:
    device = SimDevice("a")
    device.write(Label(bytes(32), bytes(16), "ann"))
    flood(device, 3)
    sizes = [said_bytes(record) for record in device.log]
    assert sizes == [ENTRY_BYTES, *[ENTRY_BYTES + len(CODE)] * 3]
    for room, taken in ((0, 0), (sizes[0], 1), (sum(sizes[:3]), 3), (sum(sizes) - 1, 3), (sum(sizes), 4)):
        verdict = judged(device.log, room=Room(room, "so much"))
        assert len(verdict.accepted) == taken
        assert (verdict.refused is None) == (taken == 4)
    refused = judged(device.log, room=Room(0, "so much may come")).refused
    assert refused is not None
    assert "entry 1 of a is more than it may say now: so much may come" in refused.reason


@pytest.fixture
def store(tmp_path: Path) -> FleetStore:
    store = FleetStore(tmp_path / "fleet")
    with store.write() as ledger:
        ledger.note_state(DeviceState(device="a", channel="default", online=True), seen_utc=1.0)
    return store


def test_a_quarantined_device_may_say_little_and_a_released_one_as_before(store: FleetStore) -> None:
    spending = Spending()

    def left(now: float) -> int:
        with store.read() as ledger:
            return spending.room(ledger, "a", "default", now).size_bytes

    def hold(through: int) -> None:
        with store.write() as ledger:
            ledger.decide("default", [Quarantine("a", "", through, "flood", "bob")])

    with store:
        assert left(0.0) == LOG_BURST_BYTES
        hold(MAX_COUNTER)
        assert left(0.0) == HELD_BURST_BYTES
        device = SimDevice("a")
        flood(device, 100)
        spending.spend("a", device.log, 0.0)
        spent = sum(map(said_bytes, device.log))
        assert left(0.0) == HELD_BURST_BYTES - spent
        assert left(3600.0) == HELD_BURST_BYTES - spent + round(3600 * HELD_BYTES_PER_S)
        hold(0)
        assert left(3600.0) == LOG_BURST_BYTES
        with store.write() as ledger:
            ledger.decide("default", [Quarantine("a", "ann", MAX_COUNTER, "a person on it", "bob")])
        assert left(3600.0) == LOG_BURST_BYTES


def test_a_quarantined_device_fills_no_disk_and_loses_nothing(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    device, other = fleet.devices
    with fleet.store.write() as ledger:
        ledger.decide("default", [Quarantine("a", "", MAX_COUNTER, "flood", "bob")])
    flood(device, 150)
    fleet.run(lambda: bool(device.refusals))
    assert "while the device is quarantined" in device.refusals[0]
    assert device.acknowledged == HELD_BURST_BYTES // (ENTRY_BYTES + len(CODE))
    other.label(1)
    fleet.run(lambda: not other.outbox)
    assert device.outbox
    fleet.broker.now += 6 * 3600
    fleet.run(lambda: not device.outbox)


def test_who_says_much_in_a_day_is_named(store: FleetStore, capsys: pytest.CaptureFixture[str]) -> None:
    device = SimDevice("a")
    flood(device, 2100)
    with store:
        with store.write() as ledger:
            ledger.take("a", device.log, {})
            assert ledger.said_bytes("default", 0.0) == ledger.said_bytes("default", 10.0)
            assert ledger.said_bytes("default", 1e12) == {}
        told = headway(capsys, "fleet", "devices", "--dir", store.directory)
        assert "a: it has said 17 MB in the last 24 hours" in told.out
        found = json.loads(headway(capsys, "fleet", "devices", "--dir", store.directory, "--json").out)
        assert found["devices"][0]["said_bytes"] > 2100 * len(CODE)
