"""The fleet service turn by turn, in virtual time, between devices and a broker that misbehaves."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.core import POLL_S, FleetCore
from sdk.fleet.database import DATABASE_NAME
from sdk.fleet.garbage import WANTED_S
from sdk.fleet.registry import CLASS_ENTRIES_BURST
from sdk.fleet.store import FleetStore
from sdk.labels import MAX_COUNTER_JUMP, DefineClass, Label, Record
from sdk.mqtt import Message, Publication
from sdk.wire import (
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    LabelBatch,
    Topics,
    UpdateEvent,
    UpdateState,
    Want,
    decode_json,
    encode_json,
    encode_msgpack,
)
from tests.builders import make_bundle
from tests.simulators import TOPICS, Faults, SimBroker, SimDevice, digest_of

PLENTY = 1 << 30


@dataclass
class Fleet:
    """A service and devices on a simulated broker."""

    directory: Path
    broker: SimBroker
    devices: list[SimDevice]
    channels: Sequence[str] = ("default",)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_service()
        self.connect_all()

    def start_service(self) -> None:
        """Start the service, or start it again: all it knows is in its directory."""
        self.store = FleetStore(self.directory)
        self.core = FleetCore(
            self.store, TOPICS, self.channels, lambda kind, more: self.events.append((kind, more))
        )

    def connect_all(self) -> None:
        self.broker.subscribe("service", self.core.subscriptions())
        for publication in self.core.broker_connected(remembered=False):
            self.broker.publish(publication)
        for device in self.devices:
            self.broker.subscribe(device.device, device.subscriptions())
            device.hurry()

    def join(self, device: SimDevice) -> SimDevice:
        self.devices.append(device)
        self.broker.subscribe(device.device, device.subscriptions())
        return device

    def turn(self, messages: Sequence[Message] = (), *, room_bytes: int = PLENTY) -> list[Publication]:
        """Take one turn with these messages instead of what the broker has."""
        return self.core.turn(messages, now=self.broker.now, now_utc=self.broker.now, room_bytes=room_bytes)

    def run(self, until: Callable[[], bool], limit_s: float = 120.0) -> None:
        began = self.broker.now
        while not until():
            assert self.broker.now - began < limit_s, f"not reached after {limit_s:g} s"
            self.broker.now += 0.1
            for device in self.devices:
                for message in self.broker.collect(device.device):
                    device.receive(message)
                for publication in device.poll(self.broker.now):
                    self.broker.publish(publication)
            for publication in self.turn(self.broker.collect("service")):
                self.broker.publish(publication)

    def stored(self) -> list[Record]:
        with self.store.read() as ledger:
            records: list[Record] = []
            while page := ledger.records("default", len(records) + 1):
                records += page
            return records

    def in_sync(self) -> bool:
        made = sum(len(device.log) for device in self.devices)
        return all(not d.outbox and len(d.union) == made for d in self.devices)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / name, backbone=name) for name in ("first", "second")]


def fleet_of(fleet_dir: Path, *names: str, faults: Faults | None = None, seed: int = 0) -> Fleet:
    broker = SimBroker(seed, faults or Faults())
    fleet = Fleet(fleet_dir, broker, [SimDevice(name) for name in names])
    fleet.run(lambda: len(registered(fleet)) == len(names))
    return fleet


def registered(fleet: Fleet) -> list[str]:
    with fleet.store.read() as ledger:
        return [device.device for device in ledger.devices()]


def only(publications: Sequence[Publication], topic: str) -> list[bytes]:
    return [p.payload for p in publications if p.topic == topic]


# Labels


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "faults",
    [Faults(repeat=1.0), Faults(delay_s=5.0), Faults(drop=0.4), Faults(drop=0.2, repeat=0.5, delay_s=3.0)],
    ids=["thrice", "shuffled", "lossy", "all"],
)
def test_every_label_is_stored_once_and_reaches_every_device(fleet_dir: Path, faults: Faults, seed: int) -> None:
    """Whatever is lost, repeated or shuffled, all sides end with the same live set, bit for bit."""
    fleet = fleet_of(fleet_dir, "a", "b", "c", faults=faults, seed=seed)
    for number in range(24):
        fleet.devices[number % 3].label(number % 17, name=f"class-{number % 3}")
        fleet.run(lambda end=fleet.broker.now + 0.2: fleet.broker.now >= end)  # type: ignore[misc]
    fleet.run(fleet.in_sync)
    made = [record for device in fleet.devices for record in device.log]
    stored = fleet.stored()
    assert len(stored) == len(made)
    assert {(r.entry.device, r.entry.seq) for r in stored} == {(r.entry.device, r.entry.seq) for r in made}
    assert all(device.union == stored for device in fleet.devices)
    assert {device.digest() for device in fleet.devices} == {digest_of(made)}
    assert not any(device.refusals for device in fleet.devices)


def test_a_broker_that_forgets_everything_costs_no_label(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b", faults=Faults(delay_s=1.0))
    for number in range(30):
        fleet.devices[number % 2].label(number)
        if number % 7 == 3:
            fleet.broker.crash()
            fleet.connect_all()
        fleet.run(lambda end=fleet.broker.now + 0.3: fleet.broker.now >= end)  # type: ignore[misc]
    fleet.run(fleet.in_sync)
    assert len(fleet.stored()) == sum(len(device.log) for device in fleet.devices)


def test_killed_between_commit_and_acknowledgement_it_stores_once_and_acknowledges(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    device = fleet.devices[0]
    device.label(1)
    batch = [Message(p.topic, p.payload) for p in device.batches()]
    lost = fleet.turn(batch)  # committed; all it says is lost with the process
    assert only(lost, TOPICS.ack("a"))
    assert device.outbox == 3
    fleet.start_service()
    assert len(fleet.stored()) == 3
    answers = fleet.turn(batch)
    assert decode_json(only(answers, TOPICS.ack("a"))[0], Ack) == Ack(through=3)
    assert not only(answers, TOPICS.log("default"))
    assert len(fleet.stored()) == 3


def test_nothing_is_acknowledged_when_the_database_fails(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path / "fleet", "a")
    device = fleet.devices[0]
    device.label(1)
    batch = [Message(p.topic, p.payload) for p in device.batches()]
    with sqlite3.connect(fleet.directory / DATABASE_NAME) as raw:
        raw.execute("ALTER TABLE entries RENAME TO hidden")
    with pytest.raises(FleetError, match="cannot be used"):
        fleet.turn(batch)
    with sqlite3.connect(fleet.directory / DATABASE_NAME) as raw:
        raw.execute("ALTER TABLE hidden RENAME TO entries")
    assert decode_json(only(fleet.turn(batch), TOPICS.ack("a"))[0], Ack) == Ack(through=3)


def test_a_batch_after_a_gap_is_answered_with_where_to_begin(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    device = fleet.devices[0]
    device.label(1)
    whole = Message(TOPICS.up_label("a"), device.batches()[0].payload)
    late = Message(TOPICS.up_label("a"), encode_msgpack(LabelBatch(1, device.log[1:])))
    answers = fleet.turn([late])
    assert decode_json(only(answers, TOPICS.ack("a"))[0], Ack) == Ack(through=0)
    assert fleet.stored() == []
    answers = fleet.turn([late, whole])
    assert [decode_json(p, Ack).through for p in only(answers, TOPICS.ack("a"))] == [0, 3]


def test_a_device_that_comes_late_gets_the_whole_union(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    for number in range(400):
        fleet.devices[number % 2].label(number)
    fleet.run(fleet.in_sync)
    late = fleet.join(SimDevice("late"))
    fleet.run(fleet.in_sync)
    assert late.digest() == fleet.devices[0].digest()
    assert late.segments > 1


def test_a_device_that_is_up_to_date_is_sent_nothing(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.devices[0].label(1)
    fleet.run(fleet.in_sync)
    want = encode_json(Want(channel="default", log_from=4))
    assert only(fleet.turn([Message(TOPICS.up_want("a"), want)]), TOPICS.down_log("a")) == []


def test_a_device_that_knows_more_than_the_fleet_is_reported(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.turn([Message(TOPICS.up_want("a"), encode_json(Want(channel="default", log_from=9)))])
    assert "ahead" in fleet.kinds()


def test_acknowledgements_do_not_wait_behind_bulk(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.store.publish(bundles[0], channel="default")
    fleet.devices[0].label(1)
    fleet.broker.now += POLL_S
    batch = [Message(p.topic, p.payload) for p in fleet.devices[0].batches()]
    answers = fleet.turn(batch, room_bytes=0)
    assert only(answers, TOPICS.ack("a"))
    assert not any(p.topic.startswith("headway/v1/chunk/") for p in answers)


# Refusals


def test_another_devices_labels_are_refused(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    fleet.devices[1].label(1)
    forged = Message(TOPICS.up_label("a"), fleet.devices[1].batches()[0].payload)
    ack = decode_json(only(fleet.turn([forged]), TOPICS.ack("a"))[0], Ack)
    assert ack.through == 0
    assert ack.refused is not None
    assert "came on the topic of a" in ack.refused.reason
    assert fleet.stored() == []
    assert ("refused", {"device": "a", "seq": 1, "reason": ack.refused.reason}) in fleet.events


def test_a_wild_counter_is_refused_and_the_rest_is_kept(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    device = fleet.devices[0]
    device.label(1)
    device._counter += MAX_COUNTER_JUMP + 1
    device.label(2)
    fleet.run(lambda: bool(device.refusals))
    assert "jumps more than 2^32" in device.refusals[0]
    assert device.acknowledged == 3
    assert len(fleet.stored()) == 3
    with fleet.store.read() as ledger:
        assert "jumps more than 2^32" in (ledger.devices()[0].refused or "")


def test_what_one_device_says_of_classes_is_taken_in_its_turn_and_its_labels_with_it(fleet_dir: Path) -> None:
    """One that writes definitions without end fills no page; an honest one with as many loses nothing."""
    fleet = fleet_of(fleet_dir, "a", "b")
    device, other = fleet.devices
    for number in range(CLASS_ENTRIES_BURST + 3):
        device.write(DefineClass(number.to_bytes(16, "big"), f"class {number}", "anna"))
    device.label(1)
    fleet.run(lambda: bool(device.refusals))
    assert f"entry {CLASS_ENTRIES_BURST + 1} of a is one too many about classes" in device.refusals[0]
    assert device.acknowledged == CLASS_ENTRIES_BURST
    with fleet.store.read() as ledger:
        assert "too many about classes" in (ledger.devices()[0].refused or "")
    other.label(2)
    fleet.run(lambda: not other.outbox)
    assert device.outbox
    fleet.run(fleet.in_sync)
    with fleet.store.read() as ledger:
        assert ledger.devices()[0].refused is None


def test_labels_of_classes_that_nobody_has_named_are_taken_in_their_turn(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    (device,) = fleet.devices
    for number in range(CLASS_ENTRIES_BURST + 3):
        device.write(Label(number.to_bytes(32, "big"), number.to_bytes(16, "big"), "anna"))
    fleet.run(lambda: bool(device.refusals))
    assert f"entry {CLASS_ENTRIES_BURST + 1} of a is one too many about classes" in device.refusals[0]
    assert device.acknowledged == CLASS_ENTRIES_BURST
    fleet.run(fleet.in_sync)


def test_a_device_whose_store_was_restored_from_an_old_copy_is_refused(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    device = fleet.devices[0]
    device.label(1)
    fleet.run(lambda: not device.outbox)
    twin = SimDevice("a")
    twin.label(99)
    answers = fleet.turn([Message(p.topic, p.payload) for p in twin.batches()])
    ack = decode_json(only(answers, TOPICS.ack("a"))[0], Ack)
    assert ack.refused is not None
    assert "another entry" in ack.refused.reason
    assert len(fleet.stored()) == 3


STATE = DeviceState(device="a", channel="default", online=True)
LABELS = SimDevice("a")
LABELS.label(1)
BATCH = LABELS.batches()[0].payload


@pytest.mark.parametrize(
    "message",
    [
        Message(TOPICS.up_label("a"), b""),
        Message(TOPICS.up_label("a"), b"\xc1"),
        Message(TOPICS.up_label("a"), BATCH[:-5]),
        Message(TOPICS.up_label("a"), BATCH + b"\x00"),
        Message(TOPICS.up_label("a"), b"\x92\x02" + BATCH[2:]),
        Message(TOPICS.up_label("a"), BATCH, retained=True),
        Message(TOPICS.up_label("A"), BATCH),
        Message(TOPICS.up_label("a\n"), BATCH),
        Message("other/dev/a/up/label", BATCH),
        Message(TOPICS.up_label("a"), bytes(200_000)),
        Message(TOPICS.up_want("a"), b"{}"),
        Message(TOPICS.up_want("a"), b'{"v":1,"channel":"default","log_from":0}'),
        Message(TOPICS.up_want("a"), b'{"v":1,"channel":"default","chunks":["../../etc/passwd"]}'),
        Message(TOPICS.up_event("a"), b'{"v":1,"release_id":"x","state":"committed"}'),
        Message(TOPICS.state("b"), encode_json(STATE)),
        Message(TOPICS.state("a"), b"[" * 100_000),
        Message(TOPICS.state("a"), b"\xff\xfe{}"),
        Message(TOPICS.state("a"), encode_json(STATE).replace(b'"v":1', b'"v":2')),
    ],
    ids=lambda message: f"{message.topic[-12:]!r} {message.payload[:8]!r}",
)
def test_a_message_that_breaks_the_protocol_changes_nothing(fleet_dir: Path, message: Message) -> None:
    fleet = fleet_of(fleet_dir, "a")
    before = registered(fleet)
    assert fleet.turn([message]) == []
    assert fleet.kinds()[-1] == "bad_message"
    assert registered(fleet) == before
    assert fleet.stored() == []


def test_labels_that_come_before_the_devices_state_are_taken_when_they_come_again(fleet_dir: Path) -> None:
    fleet = Fleet(fleet_dir, SimBroker(), [])
    device = SimDevice("a")
    device.label(1)
    batch = [Message(p.topic, p.payload) for p in device.batches()]
    assert only(fleet.turn(batch), TOPICS.ack("a")) == []
    assert "unknown_device" in fleet.kinds()
    state = Message(TOPICS.state("a"), device.state().payload)
    answers = fleet.turn([state, *batch])
    assert decode_json(only(answers, TOPICS.ack("a"))[-1], Ack).through == 3


def test_devices_of_channels_served_elsewhere_are_left_alone(fleet_dir: Path) -> None:
    fleet = Fleet(fleet_dir, SimBroker(), [])
    stranger = SimDevice("stranger", channel="elsewhere")
    stranger.label(1)
    messages = [Message(p.topic, p.payload) for p in [stranger.state(), *stranger.batches()]]
    assert fleet.turn(messages) == []
    assert registered(fleet) == []
    assert fleet.kinds().count("stranger") == 1
    fleet.turn(messages)
    assert fleet.kinds().count("stranger") == 1


def test_a_device_that_changes_its_channel_stays_where_its_log_is(fleet_dir: Path) -> None:
    fleet = Fleet(fleet_dir, SimBroker(), [], channels=("default", "other"))
    fleet.turn([Message(TOPICS.state("a"), encode_json(STATE))])
    moved = DeviceState(device="a", channel="other", online=True)
    fleet.turn([Message(TOPICS.state("a"), encode_json(moved))])
    assert "stranger" in fleet.kinds()
    with fleet.store.read() as ledger:
        assert [d.channel for d in ledger.devices()] == ["default"]


def test_a_device_is_on_no_channel_but_the_one_it_was_enrolled_on(fleet_dir: Path) -> None:
    """The broker's access list is all that its certificate says; in its state it may name any channel."""
    fleet = Fleet(fleet_dir, SimBroker(), [SimDevice("good", "b")], channels=("a", "b"))
    enrolled = {"spy": "a", "good": "b"}
    fleet.core = FleetCore(
        fleet.store,
        TOPICS,
        ("a", "b"),
        lambda kind, more: fleet.events.append((kind, more)),
        None,
        lambda: enrolled,
    )
    fleet.devices[0].label(1)
    fleet.run(lambda: not fleet.devices[0].outbox)
    spy = SimDevice("spy", "b")
    spy.label(2)
    want = Message(TOPICS.up_want("spy"), encode_json(Want(channel="b", log_from=1)))
    says = [Message(p.topic, p.payload) for p in (spy.state(), *spy.batches())]
    assert fleet.turn([*says, want]) == []
    assert registered(fleet) == ["good"]
    assert [more["error"] for kind, more in fleet.events if kind == "stranger"] == [
        "spy is on channel b, and was enrolled on a"
    ]
    spy.channel = "a"  # mended
    answers = fleet.turn([Message(p.topic, p.payload) for p in (spy.state(), *spy.batches())])
    assert decode_json(only(answers, TOPICS.ack("spy"))[-1], Ack).through == 3
    assert not only(answers, TOPICS.log("b"))


def test_nothing_more_is_taken_from_a_device_that_registered_on_anothers_channel(
    fleet_dir: Path, bundles: list[Bundle]
) -> None:
    """As it could before its enrolment was asked. It is away for that channel, so no rollout waits for it."""
    fleet = Fleet(fleet_dir, SimBroker(), [SimDevice("spy", "default")])
    fleet.run(lambda: registered(fleet) == ["spy"])
    announce(fleet, bundles[0])
    fleet.core = FleetCore(fleet.store, TOPICS, ("default",), enrolled=lambda: {"spy": "other"})
    spy = fleet.devices[0]
    spy.label(1)
    event = UpdateEvent(release_id="0" * 64, state=UpdateState.COMMITTED)
    told = [
        *(Message(p.topic, p.payload) for p in (spy.state(), *spy.batches())),
        Message(TOPICS.up_event("spy"), encode_json(event)),
        Message(TOPICS.up_want("spy"), encode_json(Want(channel="default", log_from=1, chunks=["0" * 64]))),
    ]
    assert fleet.turn(told) == []
    assert only(fleet.core.broker_connected(remembered=True), TOPICS.desired("spy")) == []
    assert fleet.stored() == []
    with fleet.store.read() as ledger:
        assert [device.state.online for device in ledger.devices()] == [False]


# Releases


def announce(fleet: Fleet, bundle: Bundle) -> list[Publication]:
    fleet.store.publish(bundle, channel="default")
    fleet.broker.now += POLL_S
    return fleet.turn()


def test_a_release_is_announced_chunks_first_then_metadata_then_assignments(
    fleet_dir: Path, bundles: list[Bundle]
) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    out = announce(fleet, bundles[0])
    with fleet.store.read() as ledger:
        current = ledger.current("default")
    assert current is not None
    chunks = [TOPICS.chunk(digest) for digest in current.release.digests()]
    notices = [TOPICS.meta("default"), TOPICS.desired("a"), TOPICS.desired("b")]
    assert [p.topic for p in out] == [*chunks, *notices]
    assert all(p.retain and p.qos == 1 for p in out)
    assert all(hashlib.sha256(p.payload).hexdigest() == p.topic[-64:] for p in out[: len(chunks)])
    assert decode_json(out[-1].payload, Desired).release == current.ref
    assert fleet.turn() == []


def test_a_release_published_while_the_service_was_away_is_announced_when_it_is_back(
    fleet_dir: Path, bundles: list[Bundle]
) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.store.publish(bundles[0], channel="default")
    fleet.start_service()
    assert not only(fleet.core.broker_connected(remembered=True), TOPICS.desired("a"))
    out = fleet.turn()
    assert out[0].topic.startswith("headway/v1/chunk/")
    assert out[-1].topic == TOPICS.desired("a")


@pytest.mark.parametrize("remembered", [True, False])
def test_a_broker_that_forgot_is_given_everything_again(
    fleet_dir: Path, bundles: list[Bundle], remembered: bool
) -> None:
    fleet = fleet_of(fleet_dir, "a")
    announce(fleet, bundles[0])
    out = fleet.core.broker_connected(remembered=remembered)
    assert [p.topic for p in out] == [TOPICS.meta("default"), TOPICS.desired("a")]
    chunks = [p for p in fleet.turn() if p.topic.startswith("headway/v1/chunk/")]
    assert bool(chunks) is not remembered


def test_a_new_device_is_told_what_to_run(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir)
    announce(fleet, bundles[0])
    out = fleet.turn([Message(TOPICS.state("a"), encode_json(STATE))])
    assert decode_json(only(out, TOPICS.desired("a"))[0], Desired).release.name == "first"
    assert decode_json(only(out, TOPICS.ack("a"))[0], Ack).through == 0


def test_wanted_chunks_are_published_again_and_unknown_ones_never(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a")
    chunks = [p for p in announce(fleet, bundles[0]) if "/chunk/" in p.topic]
    digest = chunks[1].topic[-64:]
    fleet.broker.now += 10.0
    want = encode_json(Want(channel="default", chunks=[digest, "0" * 64]))
    assert fleet.turn([Message(TOPICS.up_want("a"), want)]) == [chunks[1]]
    assert ("unknown_chunks", {"device": "a", "chunks": 1}) in fleet.events


def test_a_chunk_damaged_on_the_servers_disk_is_reported_and_not_published(
    fleet_dir: Path, bundles: list[Bundle]
) -> None:
    fleet = fleet_of(fleet_dir, "a")
    digest = announce(fleet, bundles[0])[1].topic[-64:]
    (fleet.directory / "chunks" / digest).write_bytes(b"flipped")
    fleet.broker.now += 10.0
    want = encode_json(Want(channel="default", chunks=[digest]))
    assert fleet.turn([Message(TOPICS.up_want("a"), want)]) == []
    assert "damaged_chunk" in fleet.kinds()


def test_old_chunks_leave_the_broker_after_every_device_moved_on(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    first = {p.topic for p in announce(fleet, bundles[0]) if "/chunk/" in p.topic}
    second = {p.topic for p in announce(fleet, bundles[1]) if "/chunk/" in p.topic}
    with fleet.store.read() as ledger:
        current = ledger.current("default")
    assert current is not None

    def run_it(name: str) -> list[Publication]:
        state = DeviceState(device=name, channel="default", online=True, release_id=current.ref.release_id)
        fleet.broker.now += POLL_S
        return fleet.turn([Message(TOPICS.state(name), encode_json(state))])

    assert not any("/chunk/" in p.topic for p in run_it("a"))
    cleared = [p for p in run_it("b") if "/chunk/" in p.topic]
    assert {p.topic for p in cleared} == first - second
    assert all(p.retain and p.payload == b"" for p in cleared)
    fleet.broker.now += POLL_S
    assert fleet.turn() == []


def on_broker(broker: set[str], out: Sequence[Publication]) -> None:
    """Let the broker keep, and forget, the chunks that a turn published."""
    for p in out:
        if "/chunk/" in p.topic and p.retain:
            (broker.add if p.payload else broker.discard)(p.topic)


@pytest.mark.parametrize("ends", ["an hour", "a new core", "the next release"])
def test_an_old_release_that_was_asked_for_once_leaves_the_broker_again(
    fleet_dir: Path, bundles: list[Bundle], ends: str
) -> None:
    """A device that wants what nobody needs gets it, and the broker does not keep it for good."""
    fleet = fleet_of(fleet_dir, "a")
    held: set[str] = set()

    def later(seconds: float, messages: Sequence[Message] = ()) -> None:
        fleet.broker.now += seconds
        on_broker(held, fleet.turn(messages))

    def runs_the_current() -> Message:
        with fleet.store.read() as ledger:
            current = ledger.current("default")
        assert current is not None
        state = DeviceState(device="a", channel="default", online=True, release_id=current.ref.release_id)
        return Message(TOPICS.state("a"), encode_json(state))

    first = {p.topic for p in announce(fleet, bundles[0]) if "/chunk/" in p.topic}
    second = {p.topic for p in announce(fleet, bundles[1]) if "/chunk/" in p.topic}
    held |= first | second
    later(POLL_S, [runs_the_current()])
    assert held == second, "the control"
    want = Message(TOPICS.up_want("a"), encode_json(Want(channel="default", chunks=[t[-64:] for t in first])))
    for _ in range(2):
        later(POLL_S, [want])
        later(WANTED_S - 2 * POLL_S, [runs_the_current()])
        assert held == first | second, "whoever asks may still be at it"
    if ends == "a new core":
        fleet.core = FleetCore(fleet.store, TOPICS, ["default"])
    elif ends == "the next release":
        on_broker(held, announce(fleet, bundles[0]))  # the old one, published again: needed now
        later(POLL_S, [runs_the_current()])
        assert held == first
        later(WANTED_S)
        assert held == first
        return
    else:
        later(POLL_S)
    later(POLL_S)
    later(POLL_S)
    assert held == second
    later(POLL_S, [want])
    assert held == first | second, "and again"


def test_update_events_show_how_far_a_device_is(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a")
    announce(fleet, bundles[0])
    with fleet.store.read() as ledger:
        current = ledger.current("default")
    assert current is not None
    event = UpdateEvent(release_id=current.ref.release_id, state=UpdateState.COMMITTED)
    fleet.turn([Message(TOPICS.up_event("a"), encode_json(event))])
    with fleet.store.read() as ledger:
        assert [a.state for a in ledger.assignments(current.id)] == [UpdateState.COMMITTED]


def test_a_reason_with_a_zero_in_it_stops_nobody(fleet_dir: Path, bundles: list[Bundle]) -> None:
    fleet = fleet_of(fleet_dir, "a")
    announce(fleet, bundles[0])
    with fleet.store.read() as ledger:
        current = ledger.current("default")
    assert current is not None
    state = UpdateState.ROLLED_BACK
    event = UpdateEvent(release_id=current.ref.release_id, state=state, reason="no \x00 disk")
    fleet.turn([Message(TOPICS.up_event("a"), encode_json(event))])
    with fleet.store.read() as ledger:
        (assignment,) = ledger.assignments(current.id)
    assert (assignment.state, assignment.reason) == (state, "no \ufffd disk")


def test_metadata_follows_the_log_for_those_who_missed_it(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a")
    fleet.devices[0].label(1)
    fleet.run(fleet.in_sync)
    topic = Topics().meta("default")
    fleet.run(lambda: decode_json(fleet.broker.retained[topic], ChannelMeta).log_length == 3, limit_s=3.0)
