"""What devices send up is not signed: what a broker's owner can do with it, and what stops at the service.

Who may speak at all, and on which topics, is `test_enroll`'s. Here somebody owns the broker, and speaks as line-1.
"""

from __future__ import annotations

import copy
from pathlib import Path

import msgspec
import pytest

from sdk.labels import Record
from sdk.mqtt import Message
from sdk.wire import Ack, LabelBatch, decode_json, encode_msgpack
from tests.simulators import TOPICS, SimDevice
from tests.test_fleet_service import Fleet, fleet_of, only

DEVICE = "line-1"


def said_by(fleet: Fleet, records: list[Record]) -> Ack:
    """Let somebody say records in the device's name; return the service's answer."""
    message = Message(TOPICS.up_label(DEVICE), encode_msgpack(LabelBatch(1, records)))
    return decode_json(only(fleet.turn([message]), TOPICS.ack(DEVICE))[0], Ack)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A service that has a device's first label."""
    made = fleet_of(tmp_path / "fleet", DEVICE)
    made.devices[0].label(1)
    made.run(lambda: not made.devices[0].outbox)
    return made


def forged(fleet: Fleet) -> list[Record]:
    """Return a label that the device never gave, in its name and continuing its log as everybody could read it."""
    thief = copy.deepcopy(fleet.devices[0])
    thief.label(99)
    return thief.log[len(fleet.devices[0].log) :]


def test_a_brokers_owner_can_invent_a_label_and_the_devices_next_one_shows_it(fleet: Fleet) -> None:
    """Not protected, and said so in docs/trust.md; what is protected is that it cannot stay unseen."""
    invented = forged(fleet)
    assert said_by(fleet, invented).refused is None
    assert fleet.stored()[-1] == invented[-1]
    fleet.devices[0].label(2)
    fleet.run(lambda: bool(fleet.devices[0].refusals))
    assert "another entry" in fleet.devices[0].refusals[0]
    with fleet.store.read() as ledger:
        assert "another entry" in (ledger.devices()[0].refused or "")
    assert any(kind == "refused" for kind in fleet.kinds())


def test_a_label_altered_on_its_way_stops_the_log_there(fleet: Fleet) -> None:
    """The chain does not say who wrote; it says that what follows was written after something else."""
    device = fleet.devices[0]
    device.label(2)
    device.label(3)
    first, *rest = device.log[device.acknowledged :]
    altered = Record(msgspec.structs.replace(first.entry, wall_time_us=1), first.code)
    ack = said_by(fleet, [altered, *rest])
    assert ack.refused is not None
    assert "does not continue the log" in ack.refused.reason
    assert fleet.stored()[-1] == altered
    with fleet.store.read() as ledger:
        assert "does not continue the log" in (ledger.devices()[0].refused or "")


def test_a_label_left_out_on_the_way_is_asked_for(fleet: Fleet) -> None:
    device = fleet.devices[0]
    device.label(2)
    before = fleet.stored()
    ack = said_by(fleet, device.log[device.acknowledged + 1 :])
    assert (ack.through, ack.refused) == (len(before), None)
    assert fleet.stored() == before
    fleet.run(lambda: not device.outbox)
    assert fleet.stored() == device.log


def test_another_devices_labels_and_another_log_are_refused(fleet: Fleet) -> None:
    before = fleet.stored()
    for name, number in ((DEVICE, 50), ("line-2", 5)):
        other = SimDevice(name)
        other.label(number)
        assert said_by(fleet, other.log).refused is not None
        assert fleet.stored() == before


def test_without_the_chain_an_altered_log_would_look_like_any_other(fleet: Fleet) -> None:
    """The control: linked anew from where the device's log ends, the same words are taken."""
    thief = copy.deepcopy(fleet.devices[0])
    thief.label(2)
    thief.label(3)
    assert said_by(fleet, thief.log[fleet.devices[0].acknowledged :]).refused is None
