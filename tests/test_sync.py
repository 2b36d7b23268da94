"""Labels move between a device and its fleet once each, whatever the broker does, and never hold up the line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from device_agent.limits import StoreLimits
from device_agent.store import Store, check_store
from device_agent.sync import Sync, SyncCore, SyncLimits
from sdk.codes import code_digest
from sdk.errors import LabelError, RemoteWireError, StoreFull
from sdk.fleet.broker import Mosquitto
from sdk.fleet.core import FleetCore
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.labels import Body, Chain, CodeRecord, DefineClass, Label, Record
from sdk.mqtt import Message, MqttSession, MqttSettings, Publication
from sdk.wire import (
    WIRE_VERSION,
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    LabelBatch,
    LogSegment,
    Refusal,
    ReleaseRef,
    Result,
    Topics,
    UpdateEvent,
    UpdateState,
    Want,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)
from tests.builders import class_id_of, random_codes
from tests.simulators import Faults, SimBroker, refusing, wait_for

TOPICS = Topics()
SPACE = "ab" * 32
GOOD = class_id_of("good")
LIMITS = StoreLimits(reserve_bytes=0)
DEADLINE_S = 60.0
RESULT = Result(
    sample="0" * 64,
    decision="good",
    probability=1.0,
    novelty=0.0,
    unknown=False,
    captured_utc=0.0,
    latency_ms=1.0,
)


def write_label(store: Store, number: int) -> list[Record]:
    sample, code = hashlib.sha256(b"%d" % number).digest(), random_codes(1, seed=number)[0]
    bodies: list[Body] = [
        Label(sample, GOOD, "anna"),
        CodeRecord(bytes.fromhex(SPACE), sample, f"{store.device}/{number}", code_digest(code)),
    ]
    return store.log.append(bodies, {sample: code})


@dataclass
class Device:
    """A core with a real store, and what it told its agent."""

    store: Store
    limits: SyncLimits | None = None
    told: list[Record] = field(default_factory=list)
    desired: list[Desired] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = SyncCore(
            TOPICS,
            self.store,
            "default",
            on_records=self._records,
            on_desired=self.desired.append,
            state=self.state,
            limits=self.limits,
        )

    def _records(self, records: list[Record]) -> None:
        held = set(self.store.log.records())
        assert held.issuperset(records), "told before it was stored"
        self.told += records

    def state(self) -> DeviceState:
        return DeviceState(
            device=self.store.device, channel="default", online=True, outbox=self.store.log.outbox_depth()
        )

    def receive(self, topic: str, payload: bytes, now: float = 0.0, *, retained: bool = False) -> None:
        self.core.receive(Message(topic, payload, retained), now)

    def ack(self, through: int, now: float = 0.0, refused: Refusal | None = None) -> None:
        self.receive(TOPICS.ack(self.store.device), encode_json(Ack(through=through, refused=refused)), now)

    def segment(self, first: int, records: list[Record], now: float = 0.0) -> None:
        self.receive(TOPICS.log("default"), segment_of(first, records), now)


def segment_of(first: int, records: list[Record], channel: str = "default") -> bytes:
    return encode_msgpack(LogSegment(WIRE_VERSION, channel, first, records))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device whose fleet has said that it holds none of its entries yet."""
    with Store.open(tmp_path / "line-1", "line-1", limits=LIMITS) as store:
        opened = Device(store)
        opened.ack(0)
        yield opened


def foreign(count: int, device: str = "line-2") -> list[Record]:
    chain, records = Chain(device), []
    for number in range(count):
        body = Label(hashlib.sha256(b"%d" % number).digest(), GOOD, "ben")
        chain, entry = chain.write(body, counter=number + 1, wall_time_us=0)
        records.append(Record(entry))
    return records


def labels_in(publications: list[Publication]) -> list[int]:
    """Return the sequence numbers of the entries that are sent."""
    return [
        record.entry.seq
        for publication in publications
        if publication.topic.endswith("up/label")
        for record in decode_msgpack(publication.payload, LabelBatch).records
    ]


def asked_in(publications: list[Publication]) -> list[int | None]:
    """Return the positions from which the union is asked for."""
    wants = [each for each in publications if each.topic.endswith("up/want")]
    return [decode_json(each.payload, Want).log_from for each in wants]


# -- up


def test_entries_leave_the_outbox_when_the_fleet_has_committed_them(device: Device) -> None:
    device.core.connected(0.0)
    write_label(device.store, 1)
    assert labels_in(device.core.poll(0.0)) == [1, 2]
    assert device.store.log.outbox_depth() == 2
    device.ack(1)
    assert device.store.log.outbox_depth() == 1
    device.ack(2)
    assert device.store.log.outbox_depth() == 0


def test_nothing_is_sent_while_there_is_no_broker(device: Device) -> None:
    write_label(device.store, 1)
    assert device.core.poll(0.0) == []
    assert device.core.wake_at() is None
    device.core.connected(1.0)
    assert labels_in(device.core.poll(1.0)) == [1, 2]
    device.core.disconnected()
    assert device.core.poll(100.0) == []


def test_what_is_not_acknowledged_is_sent_again_ever_more_slowly(device: Device) -> None:
    device.core.connected(0.0)
    write_label(device.store, 1)
    sent_at = [now for now in range(0, 200) if labels_in(device.core.poll(float(now)))]
    assert sent_at == [0, 5, 15, 35, 75, 135, 195]
    device.ack(2, now=200.0)
    write_label(device.store, 2)
    again = [now for now in range(200, 220) if labels_in(device.core.poll(float(now)))]
    assert again == [200, 205, 215], "progress makes it patient no longer"


def test_a_new_label_does_not_wait_for_the_one_before(device: Device) -> None:
    device.core.connected(0.0)
    write_label(device.store, 1)
    assert labels_in(device.core.poll(0.0)) == [1, 2]
    write_label(device.store, 2)
    assert labels_in(device.core.poll(0.1)) == [3, 4]


def test_the_window_bounds_what_is_on_its_way(device: Device) -> None:
    device.core = Device(device.store, replace(SyncLimits(), window_records=3)).core
    device.core.connected(0.0)
    for number in range(3):
        write_label(device.store, number)
    assert labels_in(device.core.poll(0.0)) == [1, 2, 3]
    assert labels_in(device.core.poll(0.1)) == []
    device.ack(2, now=0.2)
    assert labels_in(device.core.poll(0.2)) == [4, 5]


def test_a_refused_entry_is_reported_and_not_hammered(device: Device) -> None:
    device.core.connected(0.0)
    write_label(device.store, 1)
    device.core.poll(0.0)
    device.ack(0, now=1.0, refused=Refusal(seq=1, reason="it contradicts the log"))
    assert device.core.fault == "the fleet refuses entry 1: it contradicts the log"
    write_label(device.store, 2)
    sent_at = [now for now in range(1, 130) if labels_in(device.core.poll(float(now)))]
    assert sent_at == [61, 121]
    device.ack(4, now=130.0)
    assert device.core.fault is None


# -- down


def test_the_union_is_asked_for_on_connect_and_after_silence(device: Device) -> None:
    device.core.connected(0.0)
    asked_at = [now for now in range(0, 61) if asked_in(device.core.poll(float(now)))]
    assert asked_at == [0, 30, 60]


def test_known_records_are_skipped_and_new_ones_told_once(device: Device) -> None:
    log = foreign(5)
    device.segment(1, log[:3])
    device.segment(1, log[:2])
    device.segment(2, log[1:])
    assert device.told == log
    assert device.store.log.position("default") == 5


def test_after_a_gap_the_device_asks_from_where_its_copy_ends(device: Device) -> None:
    device.core.connected(0.0)
    device.core.poll(0.0)
    log = foreign(6)
    device.segment(1, log[:2], now=10.0)
    device.segment(5, log[4:], now=10.0)
    assert device.told == log[:2]
    assert asked_in(device.core.poll(10.0)) == [3]
    device.segment(5, log[4:], now=10.5)
    assert asked_in(device.core.poll(10.5)) == [], "one answer at a time"
    device.segment(3, log[2:], now=11.0)
    assert device.told == log


def test_metadata_that_names_more_than_came_makes_it_ask(device: Device) -> None:
    device.core.connected(0.0)
    device.core.poll(0.0)
    meta = encode_json(ChannelMeta(channel="default", release=None, log_length=4))
    device.receive(TOPICS.meta("default"), meta, 10.0, retained=True)
    assert asked_in(device.core.poll(10.0)) == []
    assert asked_in(device.core.poll(12.0)) == [1]


def test_a_device_knows_whether_it_has_all_of_the_union_that_it_heard_of(device: Device) -> None:
    device.core.connected(0.0)
    assert device.core.caught_up() is None
    records = foreign(6)
    meta = encode_json(ChannelMeta(channel="default", release=None, log_length=6))
    device.receive(TOPICS.meta("default"), meta)
    device.segment(1, records[:4])
    assert device.core.caught_up() is False
    device.core.disconnected()
    assert device.core.caught_up() is False
    device.core.connected(0.0)
    device.segment(5, records[4:])
    assert device.core.caught_up() is None, "it was away, and the union may have grown"
    device.receive(TOPICS.meta("default"), meta)
    assert device.core.caught_up() is True
    device.core.disconnected()
    assert device.core.caught_up() is None


def test_a_device_does_not_wait_for_what_it_cannot_take_in(device: Device) -> None:
    device.core.connected(0.0)
    records = foreign(3)
    device.receive(TOPICS.meta("default"), encode_json(ChannelMeta(channel="default", release=None, log_length=3)))
    device.segment(1, records[:2])
    entry = msgspec.structs.replace(records[2].entry, prev=bytes(32))
    forged = msgspec.structs.replace(records[2], entry=entry)
    device.segment(3, [forged])
    assert device.core.fault is not None
    assert device.core.caught_up() is True
    device.segment(3, records[2:])
    assert device.core.caught_up() is True


def test_own_entries_that_come_back_are_not_told(device: Device) -> None:
    own = write_label(device.store, 1)
    device.segment(1, [*own, *foreign(1)])
    assert device.told == foreign(1)


def test_a_replaced_device_writes_nothing_before_its_earlier_log_is_back(device: Device, tmp_path: Path) -> None:
    log = write_label(device.store, 1)
    with Store.open(tmp_path / "fresh", "line-1", limits=LIMITS) as store:
        fresh = Device(store)
        fresh.core.connected(0.0)
        fresh.core.poll(0.0)
        fresh.ack(2)
        assert "holds 2 entries" in str(fresh.core.fault)
        assert asked_in(fresh.core.poll(2.0)) == [1]
        fresh.segment(1, log, now=3.0)
        assert fresh.core.fault is None
        write_label(store, 2)
        assert labels_in(fresh.core.poll(3.0)) == [3, 4]


def test_a_replaced_device_takes_no_label_while_its_earlier_log_comes(device: Device, tmp_path: Path) -> None:
    """One that it took would have the number of an entry on its way, and both logs would end there."""
    log = [*write_label(device.store, 1), *write_label(device.store, 2)]
    with Store.open(tmp_path / "fresh", "line-1", limits=LIMITS) as store:
        fresh = Device(store)
        fresh.core.connected(0.0)
        fresh.ack(4)
        fresh.segment(1, log[:2])
        with pytest.raises(StoreFull, match="holds 4 entries of this device, its store only 2"):
            write_label(store, 3)
    with Store.open(tmp_path / "fresh", "line-1", limits=LIMITS) as store:  # it is known after a restart
        with pytest.raises(StoreFull, match="holds 4 entries"):
            write_label(store, 3)
        again = Device(store)
        again.core.connected(0.0)
        again.segment(3, log[2:])
        assert (again.core.fault, store.log.acknowledged()) == (None, 4)
        write_label(store, 3)
        assert labels_in(again.core.poll(1.0)) == [5, 6]


def test_a_store_takes_no_entries_for_acknowledged_that_the_fleet_may_have_of_an_earlier_one(
    device: Device, tmp_path: Path
) -> None:
    log = write_label(device.store, 1)
    with Store.open(tmp_path / "fresh", "line-1", limits=LIMITS) as store:
        fresh = Device(store)
        write_label(store, 2)
        write_label(store, 3)  # before it first heard from its fleet
        fresh.core.connected(0.0)
        fresh.ack(2)
        fresh.segment(1, log)
        assert store.log.acknowledged() == 0
        assert "4 entries were written here before this device's earlier log came back" in str(fresh.core.fault)


@pytest.mark.parametrize("early", [1, 5], ids=["fewer than the fleet has", "more"])
def test_labels_given_before_a_devices_earlier_log_came_back_follow_it_after_a_restart(
    tmp_path: Path, early: int
) -> None:
    """A new store under an old id, in a plant whose broker is not there yet: what people say counts."""
    with FleetStore(tmp_path / "fleet") as fleet:
        service, now = FleetCore(fleet, TOPICS, ["default"]), 0.0

        def talk(device: Device, seconds: int = 40) -> None:
            nonlocal now
            for _ in range(seconds):
                now += 1.0
                sent = [Message(each.topic, each.payload) for each in device.core.poll(now)]
                for each in service.turn(sent, now=now, now_utc=1e9 + now, room_bytes=10**6):
                    if each.topic in device.core.subscriptions():
                        device.receive(each.topic, each.payload, now)

        def connected(store: Store) -> Device:
            device = Device(store)
            service.turn([Message(*left(device))], now=now, now_utc=1e9 + now, room_bytes=0)
            device.core.connected(now)
            return device

        def left(device: Device) -> tuple[str, bytes]:
            farewell = device.core.farewell()
            return farewell.topic, farewell.payload

        with Store.open(tmp_path / "old", "line-1", limits=LIMITS) as store:
            for number in range(3):
                write_label(store, number)
            talk(connected(store))
            before = list(store.log.records())
        with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as store:
            given = [record for number in range(early) for record in write_label(store, 10 + number)]
            device = connected(store)
            talk(device)
            assert "Restart" in _hint_of(store, before)
            assert store.log.acknowledged() == 0
        with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as store:
            assert list(store.log.records()) == []
            assert store.log.outbox_depth() == len(given)
            with pytest.raises(StoreFull):
                write_label(store, 20)
            device = connected(store)
            talk(device)
            assert (device.core.fault, store.log.outbox_depth()) == (None, 0)
            write_label(store, 20)
            talk(device)
        check_store(tmp_path / "new" / "store.sqlite3", whole=True)  # one chain
        with fleet.read() as ledger:
            held = ledger.records("default", 1)
        assert held[:6] == before
        assert [(each.entry.body, each.code, each.entry.wall_time_us) for each in held[6:-2]] == [
            (each.entry.body, each.code, each.entry.wall_time_us) for each in given
        ]
        assert device.told == held[:-2]


def _hint_of(store: Store, records: list[Record]) -> str:
    with pytest.raises(LabelError) as caught:
        store.log.receive(records, len(records), "default")
    return caught.value.hint


def test_a_device_whose_first_answers_were_lost_finds_its_entries_in_the_union(tmp_path: Path) -> None:
    with Store.open(tmp_path / "line-1", "line-1", limits=LIMITS) as store:
        device = Device(store)
        own = write_label(store, 1)
        device.core.connected(0.0)
        assert labels_in(device.core.poll(0.0)) == [1, 2]
        device.ack(2)
        assert store.log.acknowledged() == 0
        assert labels_in(device.core.poll(100.0)) == []
        write_label(store, 2)
        device.segment(1, own)
        assert store.log.acknowledged() == 2
        assert labels_in(device.core.poll(101.0)) == [3, 4]


def test_a_replaced_device_that_waits_for_its_earlier_log_rests_meanwhile(device: Device) -> None:
    device.core.connected(0.0)
    write_label(device.store, 1)
    device.core.poll(0.0)
    device.ack(4, now=1.0)
    now = 100.0  # no stretch of the union came
    device.core.poll(now)
    wake_at = device.core.wake_at()
    assert wake_at is not None
    assert wake_at > now, "it would ask again at once, for as long as nothing comes"


def test_records_that_contradict_ours_are_not_taken_and_shown(device: Device) -> None:
    device.segment(1, foreign(1))
    chain = Chain("line-2")
    _, forged = chain.write(DefineClass(GOOD, "good", "eve"), counter=1, wall_time_us=0)
    device.segment(2, [Record(forged)])
    assert device.core.fault is not None
    assert "contradicts" in device.core.fault
    assert device.store.log.position("default") == 1
    device.segment(2, foreign(2)[1:])
    assert device.core.fault is None


@pytest.mark.parametrize(
    ("topic", "payload", "retained"),
    [
        (TOPICS.ack("line-1"), b"", False),
        (TOPICS.ack("line-1"), b"not json", False),
        (TOPICS.ack("line-1"), b'{"v":2,"through":1,"refused":null}', False),
        (TOPICS.ack("line-1"), b'{"v":1,"through":-1,"refused":null}', False),
        (TOPICS.ack("line-1"), encode_json(Ack(through=0)), True),
        (TOPICS.log("default"), b"\x93\x01", False),
        (TOPICS.log("default"), segment_of(1, foreign(1)), True),
        (TOPICS.log("default"), segment_of(1, foreign(1), "other"), False),
        (TOPICS.down_log("line-1"), b"\xff" * 200, False),
        (TOPICS.desired("line-1"), b"{}", True),
        (TOPICS.meta("default"), b'{"v":1,"channel":"default"}', True),
    ],
)
def test_a_message_that_is_none_is_refused_and_changes_nothing(
    device: Device, topic: str, payload: bytes, retained: bool
) -> None:
    with pytest.raises(RemoteWireError):
        device.receive(topic, payload, retained=retained)
    assert list(device.store.log.records()) == []
    assert device.store.log.position("default") == 0


def test_an_assignment_reaches_the_agent_and_its_removal_does_not(device: Device) -> None:
    ref = ReleaseRef(release_id="0" * 64, name="r1", size_bytes=10)
    desired = Desired(release=ref, channel="default")
    device.receive(TOPICS.desired("line-1"), encode_json(desired), retained=True)
    device.receive(TOPICS.desired("line-1"), b"", retained=False)
    assert device.desired == [desired]


def test_a_full_disk_keeps_nothing_half_and_the_union_is_read_later(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_store_bytes=100 * 1024)
    log = foreign(1200)
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        device = Device(store)
        for first in range(0, 1200, 100):
            device.segment(first + 1, log[first : first + 100])
        assert device.core.fault is not None
        assert "full" in device.core.fault
        position = store.log.position("default")
        assert device.told == log[:position]
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert list(store.log.records()) == log[:position]
        device = Device(store)
        for first in range(0, 1200, 100):
            device.segment(first + 1, log[first : first + 100])
        assert list(store.log.records()) == log


# -- the state


def test_the_state_is_published_when_it_changes_and_not_too_often(device: Device) -> None:
    device.core.connected(0.0)

    def states(now: float) -> int:
        return sum(each.topic.endswith("/state") and each.retain for each in device.core.poll(now))

    assert states(0.0) == 1
    device.core.state_changed()
    assert states(5.0) == 0, "nothing is different"
    for number in range(3):
        write_label(device.store, number)
        device.core.state_changed()
    assert [states(now) for now in (10.0, 10.1, 10.5)] == [1, 0, 0]
    device.core.connected(20.0)
    assert states(20.0) == 1


def test_where_an_update_stands_is_due_again_ever_more_rarely_until_there_is_news(device: Device) -> None:
    core = device.core
    core.connected(0.0)
    first, second = (
        UpdateEvent(release_id="0" * 64, state=state) for state in (UpdateState.VERIFIED, UpdateState.COMMITTED)
    )

    def due(begin: int, end: int) -> list[int]:
        return [now for now in range(begin, end) if core.event_due(float(now))]

    assert due(0, 100) == []
    core.event_told(first)
    assert due(100, 700) == [160, 280, 520]
    core.event_told(first)  # as it is by whoever says it again
    assert due(700, 1001) == [1000]
    core.event_told(second)
    assert due(1001, 1200) == [1061, 1181]
    assert [later - now for now, later in pairwise(due(1200, 40_000))][-1] == 3600
    core.disconnected()
    assert due(40_000, 50_000) == []


# -- a whole fleet in virtual time


@pytest.mark.parametrize("seed", range(3))
def test_all_stores_agree_over_a_broker_that_drops_repeats_and_reorders(tmp_path: Path, seed: int) -> None:
    broker = SimBroker(seed, Faults(drop=0.2, repeat=0.2, delay_s=3.0))
    with contextlib.ExitStack() as opened:
        fleet = opened.enter_context(FleetStore(tmp_path / "fleet"))
        service = FleetCore(fleet, TOPICS, ["default"])
        stores = [
            opened.enter_context(Store.open(tmp_path / name, name, limits=LIMITS)) for name in ("a", "b", "c")
        ]
        devices = [Device(store) for store in stores]
        broker.subscribe("fleet", service.subscriptions())
        for device in devices:
            broker.subscribe(device.store.device, device.core.subscriptions())
            device.core.connected(0.0)
        made = 0
        while broker.now < 600.0:
            if broker.now < 60.0:
                for device in devices:
                    write_label(device.store, made)
                    made += 1
            if int(broker.now) % 97 == 50:  # the service is started anew, its state is on disk
                service = FleetCore(fleet, TOPICS, ["default"])
            _turn(broker, service, devices)
            broker.now += 1.0
            if broker.now > 60.0 and all(
                store.log.position("default") == 2 * made and store.log.outbox_depth() == 0 for store in stores
            ):
                break
        digests = set()
        for device in devices:
            records = sorted(device.store.log.records(), key=lambda r: (r.entry.device, r.entry.seq))
            assert len(records) == 2 * made
            assert device.store.log.outbox_depth() == 0
            assert len(device.told) == len(set(device.told)) == 4 * made // 3
            digests.add(hashlib.sha256(repr(records).encode()).hexdigest())
        assert len(digests) == 1
        with fleet.read() as ledger:
            assert ledger.log_length("default") == 2 * made


def _turn(broker: SimBroker, service: FleetCore, devices: list[Device]) -> None:
    for device in devices:
        for message in broker.collect(device.store.device):
            # Retained messages may come late as copies; a broker marks those only at subscription.
            device.core.receive(message, broker.now)
        device.core.state_changed()
        for publication in device.core.poll(broker.now):
            broker.publish(publication)
    arrived = [replace(message, retained=False) for message in broker.collect("fleet")]
    for publication in service.turn(arrived, now=broker.now, now_utc=broker.now, room_bytes=10**6):
        broker.publish(publication)


# -- a real broker


@contextlib.contextmanager
def serving(folder: Path, settings: MqttSettings) -> Iterator[FleetStore]:
    """Run a real fleet service on a thread."""
    stop = threading.Event()
    with FleetStore(folder) as fleet:
        service = FleetService(fleet, settings)
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        try:
            yield fleet
        finally:
            stop.set()
            thread.join(DEADLINE_S)


@contextlib.contextmanager
def syncing(folder: Path, name: str, settings: MqttSettings) -> Iterator[tuple[Store, Sync, list[Record]]]:
    told: list[Record] = []
    with Store.open(folder / name, name, limits=LIMITS) as store:

        def state() -> DeviceState:
            return DeviceState(
                device=name,
                channel="default",
                online=True,
                agent_version="7.7",
                outbox=store.log.outbox_depth(),
            )

        sync = Sync(
            settings,
            store,
            "default",
            on_records=told.extend,
            on_desired=lambda _desired: None,
            state=state,
            limits=SyncLimits(resend_s=0.5, ask_every_s=1.0, ask_gap_s=0.2, state_every_s=0.1, again_spread_s=1.0),
        )
        sync.start()
        try:
            yield store, sync, told
        finally:
            sync.stop()


@pytest.mark.broker
def test_labels_of_one_device_reach_the_other_and_survive_a_killed_broker(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    settings = MqttSettings(port=mosquitto.port)
    with (
        serving(tmp_path / "fleet", settings) as fleet,
        syncing(tmp_path, "a", settings) as (store_a, sync_a, _),
        syncing(tmp_path, "b", settings) as (store_b, sync_b, told_b),
    ):
        made = write_label(store_a, 0)
        sync_a.notify_outbox()
        wait_for(lambda: store_a.log.outbox_depth() == 0, DEADLINE_S, "the first acknowledgement")
        wait_for(lambda: told_b == made, DEADLINE_S, "the first label at b")
        mosquitto.kill()
        for number in range(1, 40):
            made += write_label(store_a, number)
            sync_a.notify_outbox()
        wait_for(lambda: not sync_a.status().connected, DEADLINE_S, "a noticing")
        mosquitto.start()
        wait_for(lambda: store_a.log.outbox_depth() == 0, DEADLINE_S, "the outbox emptying")
        wait_for(lambda: len(told_b) == len(made), DEADLINE_S, "all labels at b")
        assert told_b == made
        assert list(store_b.log.records()) == made
        wait_for(lambda: sync_b.status().log_position == len(made), DEADLINE_S, "the position")
        with fleet.read() as ledger:
            assert ledger.log_length("default") == len(made)
        assert sync_a.status().fault is None
        assert sync_a.traffic().head_bytes > 80 * 32


@pytest.mark.broker
def test_a_broker_that_comes_late_is_found_and_nothing_waited_for_it(mosquitto: Mosquitto, tmp_path: Path) -> None:
    settings = MqttSettings(port=mosquitto.port)
    mosquitto.kill()
    with syncing(tmp_path, "a", settings) as (store, sync, _):
        write_label(store, 1)
        sync.notify_outbox()
        sync.publish_result(RESULT)
        assert (sync.status().connected, sync.status().outbox) == (False, 2)
        mosquitto.start()
        with serving(tmp_path / "fleet", settings):
            wait_for(lambda: store.log.outbox_depth() == 0, DEADLINE_S, "the outbox emptying")


@pytest.mark.broker
def test_events_results_and_states_are_for_whoever_listens(mosquitto: Mosquitto, tmp_path: Path) -> None:
    settings = MqttSettings(port=mosquitto.port)
    heard: list[str] = []
    with (
        MqttSession(settings, "listener", on_message=lambda m: heard.append(TOPICS.kind_of(m.topic))) as listener,
        syncing(tmp_path, "a", settings) as (_, sync, _told),
    ):
        listener.connect(DEADLINE_S)
        listener.subscribe([TOPICS.up_event("a"), TOPICS.up_result("a"), TOPICS.state("a")])
        wait_for(lambda: "state" in heard, DEADLINE_S, "the state")
        sync.publish_event(UpdateEvent(release_id="0" * 64, state=UpdateState.VERIFIED))
        sync.publish_result(RESULT)
        wait_for(lambda: {"up/event", "up/result"} <= set(heard), DEADLINE_S, "the event and the result")
        sync.notify_state()


def known(fleet: FleetStore) -> DeviceState:
    with fleet.read() as ledger:
        found = ledger.device("a")
    assert found is not None
    return found.state


_RUN_FOR_EVER = """
import sys, threading
from pathlib import Path
from sdk.mqtt import MqttSettings
from tests.test_sync import syncing, write_label

with syncing(Path(sys.argv[1]), "a", MqttSettings(port=int(sys.argv[2]))) as (store, sync, _):
    number = 0
    while True:
        write_label(store, number)
        sync.notify_outbox()
        print(store.log.length(), flush=True)
        number += 1
        threading.Event().wait(0.01)
"""


@pytest.mark.broker
def test_a_killed_device_is_seen_as_offline_and_its_labels_arrive_once(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    settings = MqttSettings(port=mosquitto.port)
    seen: list[DeviceState] = []
    topic = TOPICS.state("a")
    with (
        serving(tmp_path / "fleet", settings) as fleet,
        MqttSession(
            settings,
            "watcher",
            on_message=lambda message: seen.append(decode_json(message.payload, DeviceState)),
        ) as watcher,
    ):
        watcher.connect(DEADLINE_S)
        watcher.subscribe([topic])
        child = subprocess.Popen(
            [sys.executable, "-c", _RUN_FOR_EVER, str(tmp_path), str(mosquitto.port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert child.stdout is not None
        wait_for(lambda: any(state.online for state in seen), DEADLINE_S, "the device being online")
        lines = [child.stdout.readline() for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait(DEADLINE_S)
        child.stdout.close()
        written = int([line for line in lines if line.endswith("\n")][-1])
        wait_for(lambda: not seen[-1].online, DEADLINE_S, "the last will")
        wait_for(lambda: not known(fleet).online, DEADLINE_S, "the fleet hearing the last will")
        assert known(fleet).agent_version == "7.7"  # what it said before it died
        with syncing(tmp_path, "a", settings) as (store, _, _told):
            assert store.log.length() >= written
            wait_for(lambda: store.log.outbox_depth() == 0, DEADLINE_S, "the outbox emptying")
            length = store.log.length()
            with fleet.read() as ledger:
                assert ledger.log_length("default") == length
        wait_for(lambda: not seen[-1].online, DEADLINE_S, "the goodbye")


def test_a_device_that_may_hear_nothing_says_so(tmp_path: Path) -> None:
    """It was connected and looked well, and no label of another device or release would ever come."""
    with refusing() as settings, syncing(tmp_path, "a", settings) as (_store, sync, _told):
        wait_for(lambda: sync.status().fault is not None, DEADLINE_S)
        assert "does not let this device hear all its topics (Not authorized)" in str(sync.status().fault)
