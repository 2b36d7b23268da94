"""A fleet whose database comes back from yesterday's copy ends where one that was never restored would be.

Real stores, learners and both sides of the wire; the broker and the clock are simulated. What was said since the
copy is offered again by the devices; what people decided since lies beside the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.fleet.broker import Mosquitto
from sdk.fleet.core import FleetCore
from sdk.fleet.database import DATABASE_NAME
from sdk.fleet.restoring import DECISIONS_NAME, MARKS_NAME
from sdk.fleet.store import FleetStore
from sdk.labels import MAX_COUNTER, Quarantine, entry_hash
from sdk.mqtt import Message, MqttSettings, Publication
from sdk.wire import (
    DeviceState,
    Want,
    encode_json,
)
from tests.builders import class_id_of, make_bundle, picture
from tests.simulators import TOPICS, SimBroker, wait_for
from tests.test_offline_week import Line
from tests.test_sync import device, serving, syncing, write_label

__all__ = ["device"]

SCRATCH, GOOD = class_id_of("scratch"), class_id_of("good")
LINES = ("a", "b", "c")
HELD = Quarantine("b", "", MAX_COUNTER, "camera upside down", "anna")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", ("good", "scratch"))


def copied(fleet: Path, copy: Path) -> Path:
    """Copy a fleet's database as the guide says; return the copy."""
    with (
        contextlib.closing(sqlite3.connect(fleet / DATABASE_NAME)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    return copy


def put_back(fleet: Path, copy: Path) -> None:
    """Put a copy in the place of a fleet's database, as the guide says."""
    for file in fleet.glob(f"{DATABASE_NAME}*"):
        file.unlink()
    shutil.copy(copy, fleet / DATABASE_NAME)


class Told(Line):
    """A line that says how much of the union it has."""

    def state(self) -> DeviceState:
        log = self.store.log
        return DeviceState(
            device=self.name,
            channel="default",
            online=True,
            outbox=log.outbox_depth(),
            log_position=log.position("default"),
        )

    def take_back(self, number: int) -> None:
        """Label something and withdraw that: entries that leave nothing."""
        self.label("scratch", number, SCRATCH)
        self.learner.label(hashlib.sha256(picture("scratch", number)).digest(), None, "ann")


class Plant:
    """Three lines and a service on a simulated broker."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.fleet = folder, folder / "fleet"
        self.broker = SimBroker()
        self.broker.now = 1000.0
        self.lines = {name: Told(folder, name, bundle, self.broker) for name in LINES}
        self.events: Counter[str] = Counter()
        self.begin()
        self.store.publish(bundle, channel="default")
        for line in self.lines.values():
            line.come()

    def begin(self) -> None:
        """Start the service."""
        self.store = FleetStore(self.fleet)
        self.core = FleetCore(self.store, TOPICS, ("default",), lambda kind, _more: self.events.update([kind]))
        self.broker.subscribe("service", self.core.subscriptions())
        for publication in self.core.broker_connected(remembered=False):
            self.broker.publish(publication)

    def end(self) -> None:
        self.broker.disconnect("service")
        self.store.close()

    def run(self, until: Callable[[], bool], limit_s: float = 1800.0) -> None:
        began = self.broker.now
        while not until():
            assert self.broker.now - began < limit_s, f"not reached after {limit_s:g} s"
            self.broker.now += 1.0
            now = self.broker.now
            for line in self.lines.values():
                if line.online:
                    for message in self.broker.collect(line.name):
                        line.core.receive(message, now)
                    for publication in line.core.poll(now):
                        self.broker.publish(publication)
            arrived = self.broker.collect("service")
            for publication in self.core.turn(arrived, now=now, now_utc=now, room_bytes=1 << 30):
                self.broker.publish(publication)

    def equal(self) -> bool:
        """Return whether the fleet has all that every line has said, and they all its union."""
        with self.store.read() as ledger:
            length, ends = ledger.log_length("default"), ledger.log_ends("default")
        logs = {name: line.store.log for name, line in self.lines.items()}
        return all(ends.get(n, (0, b""))[0] == log.length() and log.position("default") == length
                   for n, log in logs.items())  # fmt: skip

    def digests(self) -> set[str]:
        """Return the names of what the fleet and each line has learned."""
        live = self.store.live_set("default")
        assert live is not None
        for line in self.lines.values():
            line.learner.run_until_idle()
        return {live.digest, *(line.learner.status().live_set_digest for line in self.lines.values())}

    def first_day(self) -> None:
        for name, line in self.lines.items():
            for number in range(3):
                line.label("scratch", 10 * LINES.index(name) + number, SCRATCH)
        self.run(self.equal)

    def second_day(self) -> None:
        self.lines["a"].label("scratch", 40, SCRATCH)
        self.lines["a"].label("scratch", 0, GOOD)  # a correction of the first day's
        self.lines["b"].label("scratch", 41, SCRATCH)
        self.run(self.equal)
        self.lines["a"].label("scratch", 42, SCRATCH)
        self.run(self.equal)

    def third_day(self) -> None:
        """`c`, which said nothing on the second, is the first to speak."""
        self.lines["c"].label("scratch", 50, SCRATCH)
        for _ in range(3):
            self.lines["c"].label("scratch", 51, GOOD)
        self.run(lambda: self.lines["c"].store.log.outbox_depth() == 0)
        self.lines["a"].label("scratch", 52, SCRATCH)

    def decide(self) -> None:
        with self.store.write() as ledger:
            ledger.decide("default", [HELD])
        self.run(self.equal)

    def copied(self) -> Path:
        """Copy the database; return the copy."""
        return copied(self.fleet, self.folder / "copy.db")

    def restore(self, copy: Path) -> None:
        """Put a copy of the database in its place, and start the service."""
        self.end()
        put_back(self.fleet, copy)
        self.begin()


@contextlib.contextmanager
def plant_in(folder: Path, bundle: Bundle) -> Iterator[Plant]:
    plant = Plant(folder, bundle)
    try:
        yield plant
    finally:
        for line in plant.lines.values():
            line.learner.stop()
            line.store.close()
        plant.store.close()


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> dict[bool, str]:
    """What a fleet has learned that was never restored, with a quarantine on the second day and without."""
    found = {}
    for decided in (True, False):
        with plant_in(tmp_path_factory.mktemp("never"), bundle) as plant:
            plant.first_day()
            plant.second_day()
            if decided:
                plant.decide()
            plant.third_day()
            plant.run(plant.equal)
            (found[decided],) = plant.digests()
    assert found[True] != found[False]
    return found


@pytest.mark.parametrize("broker", ["kept", "lost"])
def test_a_restored_database_is_made_whole_again(
    tmp_path: Path, bundle: Bundle, never: dict[bool, str], broker: str
) -> None:
    with plant_in(tmp_path, bundle) as plant:
        plant.first_day()
        copy = plant.copied()
        plant.second_day()
        plant.decide()
        if broker == "lost":
            plant.broker.crash()
        plant.restore(copy)
        for line in plant.lines.values() if broker == "lost" else ():
            line.come()
        plant.third_day()
        plant.run(plant.equal)
        assert plant.digests() == {never[True]}
        before = plant.store.live_set("default")
        plant.end()
        plant.begin()  # the next start has nothing to say
        plant.run(plant.equal)
        with plant.store.read() as ledger:
            assert len(ledger.restored("default")) == 1
        assert before is not None
        assert plant.digests() == {before.digest}


def test_a_device_that_was_away_all_the_time_reads_on_from_where_the_copy_ended(
    tmp_path: Path, bundle: Bundle, never: dict[bool, str]
) -> None:
    """By its count it is behind, while what it has there is not what is there now."""
    with plant_in(tmp_path, bundle) as plant:
        plant.first_day()
        copy = plant.copied()
        plant.second_day()
        plant.lines["b"].go()
        plant.restore(copy)
        b = plant.lines["b"].store.log.position("default")
        plant.third_day()
        for number in range(60, 75):
            plant.lines["c"].take_back(number)
        plant.run(lambda: plant.lines["c"].store.log.outbox_depth() == 0)
        with plant.store.read() as ledger:
            assert ledger.log_length("default") > b, "the union has outgrown what it knows"
        plant.lines["b"].come()
        plant.run(plant.equal)
        assert plant.digests() == {never[False]}


def test_a_whole_directory_that_comes_back_is_noticed_by_the_first_device_that_knows_more(
    tmp_path: Path, bundle: Bundle, never: dict[bool, str]
) -> None:
    """Such as a machine's snapshot: nothing beside the database tells."""
    with plant_in(tmp_path, bundle) as plant:
        plant.first_day()
        plant.end()
        shutil.copytree(plant.fleet, tmp_path / "snapshot")
        plant.begin()
        plant.second_day()
        plant.end()
        shutil.rmtree(plant.fleet)
        shutil.copytree(tmp_path / "snapshot", plant.fleet)
        plant.begin()
        plant.third_day()
        plant.run(plant.equal)
        assert plant.events["restored"] == 1
        assert plant.digests() == {never[False]}


@pytest.mark.broker
@pytest.mark.parametrize("broker", ["kept", "killed"])
def test_over_a_real_broker_two_devices_make_it_whole_while_they_go_on(
    mosquitto: Mosquitto, tmp_path: Path, broker: str
) -> None:
    settings, fleet = MqttSettings(port=mosquitto.port), tmp_path / "fleet"
    with syncing(tmp_path, "a", settings) as (a, sync_a, _), syncing(tmp_path, "b", settings) as (b, sync_b, _):

        def say(numbers: range) -> None:
            for number in numbers:
                write_label(a, number)
                write_label(b, 100 + number)
            sync_a.notify_outbox()
            sync_b.notify_outbox()

        def equal(store: FleetStore) -> bool:
            with store.read() as ledger:
                length, ends = ledger.log_length("default"), ledger.log_ends("default")
            return all(
                ends.get(one.device, (0, b""))[0] == one.log.length() and one.log.position("default") == length
                for one in (a, b)
            )

        with serving(fleet, settings) as store:
            say(range(3))
            wait_for(lambda: equal(store), what="the first day")
            copied(fleet, tmp_path / "copy.db")
            say(range(3, 6))
            wait_for(lambda: equal(store), what="the second day")
        put_back(fleet, tmp_path / "copy.db")
        if broker == "killed":
            mosquitto.restart()
        with serving(fleet, settings) as store:
            say(range(6, 9))
            wait_for(lambda: equal(store), what="all of it")
            with store.read() as ledger:
                union = {entry_hash(record.entry) for record in ledger.records("default", 1)}
        assert len(union) == 36
        for one in (a, b):
            assert {entry_hash(record.entry) for record in one.log.records()} == union


# What people decided


def own_end(store: FleetStore) -> tuple[int, bytes] | None:
    with store.read() as ledger:
        return ledger.own_end("default")


def decide(store: FleetStore, *devices: str) -> None:
    with store.write() as ledger:
        ledger.decide("default", [msgspec.structs.replace(HELD, device=device) for device in devices])


def replaced(store: FleetStore, copy: Path) -> FleetStore:
    """Put a copy in the place of a fleet's database; return the fleet, opened."""
    store.close()
    put_back(store.directory, copy)
    return FleetStore(store.directory)


@pytest.fixture
def decided(tmp_path: Path) -> tuple[FleetStore, Path]:
    """A fleet with one decision, a copy of its database, and two decisions since."""
    store = FleetStore(tmp_path / "fleet")
    decide(store, "a")
    store.close()
    shutil.copy(store.directory / DATABASE_NAME, tmp_path / "copy.db")
    store = FleetStore(tmp_path / "fleet")
    decide(store, "b")
    decide(store, "c")
    return store, tmp_path / "copy.db"


def test_decisions_since_the_copy_are_back_when_the_fleet_is_opened(decided: tuple[FleetStore, Path]) -> None:
    store, copy = decided
    before = own_end(store)
    with replaced(store, copy) as again:
        assert own_end(again) == before
        with again.read() as ledger:
            said = [record.entry.body for record in ledger.own("default")]
        assert [body.device for body in said if isinstance(body, Quarantine)] == ["a", "b", "c"]
        decide(again, "d")  # the chain goes on
    with replaced(again, copy) as third:
        assert own_end(third) is not None
        assert (own_end(third) or (0,))[0] == 4


def test_a_torn_line_costs_the_next_one_nothing(decided: tuple[FleetStore, Path]) -> None:
    store, copy = decided
    lines = store.directory / DECISIONS_NAME / "default.jsonl"
    lines.write_bytes(lines.read_bytes()[:-40])
    with replaced(store, copy) as again:
        assert (own_end(again) or (0,))[0] == 2, "the third was lost with the disk"
        decide(again, "e")
    with replaced(again, copy) as third:
        assert (own_end(third) or (0,))[0] == 3


def test_decisions_of_a_fleet_from_before_there_was_such_a_file_are_written_into_it(
    decided: tuple[FleetStore, Path],
) -> None:
    store, copy = decided
    shutil.rmtree(store.directory / DECISIONS_NAME)
    end = own_end(store)
    store.close()
    FleetStore(store.directory).close()
    with replaced(store, copy) as again:
        assert own_end(again) == end


@pytest.mark.parametrize("content", [b"no json\n", b'{"seq": 3}\n', b"\0\xff\n", b""])
def test_what_is_no_decision_does_not_count(decided: tuple[FleetStore, Path], content: bytes) -> None:
    store, copy = decided
    (store.directory / DECISIONS_NAME / "default.jsonl").write_bytes(content)
    with replaced(store, copy) as again:
        assert (own_end(again) or (0,))[0] == 1


def test_decisions_that_contradict_the_database_do_not_count(
    decided: tuple[FleetStore, Path], caplog: pytest.LogCaptureFixture
) -> None:
    store, copy = decided
    other = (store.directory / DECISIONS_NAME / "default.jsonl").read_bytes()
    with replaced(store, copy) as again:
        lines = again.directory / DECISIONS_NAME / "default.jsonl"
        lines.unlink()
        again.close()
    with replaced(again, copy) as third:
        decide(third, "x")
        end = own_end(third)
        (third.directory / DECISIONS_NAME / "default.jsonl").write_bytes(other)
    with FleetStore(third.directory) as last:
        assert own_end(last) == end
    assert "contradict it, and do not count" in caplog.text


# What tells


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"default": {"length": 0, "last": ""}}', b"\xff", b'{"\xff": {}}']
)
def test_a_mark_that_says_nothing_tells_nothing(decided: tuple[FleetStore, Path], content: bytes) -> None:
    store, _ = decided
    store.close()
    (store.directory / MARKS_NAME).write_bytes(content)
    with FleetStore(store.directory) as again:
        assert again.came_back == frozenset()


def test_another_entry_where_the_mark_is_makes_devices_read_all_again(decided: tuple[FleetStore, Path]) -> None:
    store, _ = decided
    store.close()
    (store.directory / MARKS_NAME).write_text(json.dumps({"default": {"length": 2, "last": "ab" * 32}}))
    with FleetStore(store.directory) as again, again.read() as ledger:
        assert [one.since for one in ledger.restored("default")] == [0]
    with FleetStore(store.directory) as again, again.read() as ledger:
        assert len(ledger.restored("default")) == 1, "once"


def test_a_device_that_claims_to_know_more_is_believed_once_a_run(tmp_path: Path) -> None:
    """What that costs is bounded by what this run has written: `since` is where it began."""
    broker = SimBroker()
    with FleetStore(tmp_path / "fleet") as store:
        core = FleetCore(store, TOPICS, ("default",))
        broker.subscribe("service", core.subscriptions())
        for number in range(5):
            state = DeviceState(device="liar", channel="default", online=True, log_position=10**9 + number)
            broker.publish(Publication(TOPICS.state("liar"), encode_json(state), retain=True))
            core.turn(broker.collect("service"), now=float(number), now_utc=1e9, room_bytes=0)
        with store.read() as ledger:
            assert [one.since for one in ledger.restored("default")] == [0]


def test_a_device_reads_again_once_for_each_time_that_the_fleet_came_back(tmp_path: Path) -> None:
    """The message that says so is retained, and comes with every release and label: read each time it would be a
    union again and again. Also after a restart of the device."""
    times = {"a" * 16: 30, "b" * 16: 20}

    def said(store: Store, restored: dict[str, int]) -> tuple[bool, int]:
        news = store.log.union_restored("default", restored)
        store.log.receive([], 40, "default")
        return news, store.log.position("default")

    with Store.open(tmp_path, "line-1") as store:
        store.log.receive([], 40, "default")
        assert store.log.union_restored("default", times)
        assert store.log.position("default") == 20
        assert said(store, times) == (False, 40)
    with Store.open(tmp_path, "line-1") as store:
        assert said(store, times) == (False, 40)
        assert store.log.union_restored("default", {**times, "c" * 16: 35})
        assert store.log.position("default") == 35
        assert store.log.position("other") == 0
        assert store.log.union_restored("other", times), "another channel's union is another"


def test_what_a_device_knows_of_another_channel_tells_nothing_of_its_own(tmp_path: Path) -> None:
    """Its settings were moved to a channel where its log is not: it stays where it registered."""
    broker = SimBroker()
    with FleetStore(tmp_path / "fleet") as store:
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="a", channel="castings", online=True), seen_utc=1.0)
        for channels in (("default",), ("default", "castings")):
            core = FleetCore(store, TOPICS, channels)
            moved = DeviceState(device="a", channel="default", online=True, log_position=50)
            asks = Want(channel="default", log_from=51)
            for topic, payload in (
                (TOPICS.state("a"), encode_json(moved)),
                (TOPICS.up_want("a"), encode_json(asks)),
            ):
                broker.now += 1.0
                core.turn([Message(topic, payload)], now=broker.now, now_utc=1e9, room_bytes=0)
        with store.read() as ledger:
            assert [ledger.restored(channel) for channel in ("default", "castings")] == [[], []]
