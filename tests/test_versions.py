"""T23: versions N - 1, N and N + 1 of the stores' schemas and of the wire meet: read, or refused without harm.

Going back to an earlier Headway keeps every label: it refuses a store that a newer one has changed, leaves every
byte of it as it is, and the newer one goes on with it.
"""

from __future__ import annotations

import hashlib
import lzma
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from device_agent import history
from device_agent.database import Database
from device_agent.schema import MIGRATIONS
from device_agent.store import STORE_NAME, Store
from sdk import wire
from sdk.errors import FleetError, RemoteWireError, StoreCorrupt
from sdk.fleet.database import DATABASE_NAME
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message
from sdk.wire import WIRE_VERSION, Ack, decode_json, decode_msgpack, encode_json
from tests.simulators import TOPICS
from tests.test_fleet_service import fleet_of
from tests.test_sync import LIMITS, Device, segment_of, write_label

NEXT = "ALTER TABLE records ADD COLUMN colour TEXT NOT NULL DEFAULT ''"
"""What a later version may do to the store."""


def kinds(of: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


MESSAGES = sorted(kinds(wire._Message), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("version", [WIRE_VERSION - 1, WIRE_VERSION + 1])
def test_a_message_of_another_version_is_refused_for_its_version(kind: type[msgspec.Struct], version: int) -> None:
    with pytest.raises(RemoteWireError, match=r"\$\.v"):
        decode_json(b'{"v":%d}' % version, kind)


@pytest.mark.parametrize("kind", [wire.LabelBatch, wire.LogSegment])
@pytest.mark.parametrize("version", [WIRE_VERSION - 1, WIRE_VERSION + 1])
def test_a_batch_of_another_version_is_refused_for_its_version(kind: type[msgspec.Struct], version: int) -> None:
    members = [version, *[None] * (len(kind.__struct_fields__) - 1)]
    with pytest.raises(RemoteWireError, match=r"\$\[0\]"):
        decode_msgpack(msgspec.msgpack.encode(members), kind)


def test_a_member_that_only_a_later_version_knows_is_refused() -> None:
    later = encode_json(Ack(through=3)).replace(b'"v":1', b'"v":1,"colour":"red"')
    with pytest.raises(RemoteWireError, match="colour"):
        decode_json(later, Ack)


def of_the_next_version(payload: bytes) -> bytes:
    """Return a batch as a later version would say it: its first member is the version."""
    plain = payload if payload[0] >= 0x90 else lzma.decompress(payload)
    return plain[:1] + bytes([WIRE_VERSION + 1]) + plain[2:]


def test_a_fleet_takes_the_labels_of_its_own_version_beside_a_device_of_the_next(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    ours, theirs = fleet.devices
    for device in (ours, theirs):
        device.label(1)
    batch = theirs.batches()[0]
    later = Message(batch.topic, of_the_next_version(batch.payload))
    assert fleet.turn([later]) == []
    assert fleet.kinds()[-1] == "bad_message"
    assert fleet.stored() == []
    fleet.run(fleet.in_sync)  # once it speaks this version: nothing of it is lost
    assert len(fleet.stored()) == len(ours.log) + len(theirs.log)


def test_a_device_keeps_its_labels_until_its_fleet_speaks_its_version(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        device = Device(store)
        mine = write_label(store, 1)
        later = encode_json(Ack(through=len(mine))).replace(b'"v":1', b'"v":%d' % (WIRE_VERSION + 1))
        with pytest.raises(RemoteWireError):
            device.receive(TOPICS.ack("line-1"), later)
        segment = segment_of(1, mine)
        with pytest.raises(RemoteWireError):
            device.receive(TOPICS.log("default"), of_the_next_version(segment))
        assert store.log.outbox_depth() == len(mine)
        device.ack(0)
        device.ack(len(mine))
        assert store.log.outbox_depth() == 0
        assert list(store.log.records()) == mine


def test_going_back_a_version_is_refused_and_keeps_every_label(tmp_path: Path) -> None:
    newer = (*MIGRATIONS, (NEXT,))
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        labels = write_label(store, 1)
    Database(tmp_path / STORE_NAME, newer, max_bytes=2**30).close()  # the next version was here
    before = digests(tmp_path)
    with pytest.raises(StoreCorrupt, match=f"has schema {len(newer)}") as refused:
        Store.open(tmp_path, "line-1", limits=LIMITS)
    assert "or a newer one" in refused.value.hint
    assert digests(tmp_path) == before
    database = Database(tmp_path / STORE_NAME, newer, max_bytes=2**30)
    assert database.value("SELECT count(*) FROM records WHERE colour = ''") == len(labels)
    database.close()


def test_a_history_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    written = history.History(tmp_path, 10)
    written.close()
    folder = next(tmp_path.rglob(history.FILE_NAME)).parent
    later = (*history._MIGRATIONS, ("CREATE TABLE colours (name TEXT)",))
    Database(folder / history.FILE_NAME, later, max_bytes=2**30).close()
    before = digests(folder)
    with pytest.raises(StoreCorrupt, match="has schema"):
        history.History(tmp_path, 10)
    assert digests(folder) == before


def test_a_fleet_that_goes_back_a_version_is_refused_and_keeps_every_label(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.devices[0].label(1)
    fleet.run(fleet.in_sync)
    held = fleet.stored()
    fleet.store.close()
    if not (fleet_dir / DATABASE_NAME).exists():
        pytest.skip("its database is a server's: tests/test_fleet_store.py has that one")
    with sqlite3.connect(fleet_dir / DATABASE_NAME) as raw:
        (ours,) = raw.execute("SELECT version_num FROM alembic_version").fetchone()
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(FleetError, match="newer Headway"):
        FleetStore(fleet_dir)
    with sqlite3.connect(fleet_dir / DATABASE_NAME) as raw:
        raw.execute("UPDATE alembic_version SET version_num = ?", (ours,))
    raw.close()
    fleet.start_service()
    assert fleet.stored() == held
    fleet.store.close()


def digests(folder: Path) -> dict[str, str]:
    """Return what a folder's files hold; SQLite's shared memory is no content."""
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.endswith("-shm")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.stat().st_size}
