"""A device that is there and has nothing to say for weeks is not taken for gone, and one that is gone is.

Real stores, the device's and the service's side of the wire; the broker and the clock are simulated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.limits import StoreLimits
from device_agent.store import Store
from device_agent.sync import SyncCore
from sdk.bundle import Bundle
from sdk.fleet.core import SEEN_EVERY_S, FleetCore
from sdk.fleet.garbage import GONE_S
from sdk.fleet.store import FleetStore
from sdk.mqtt import Publication
from sdk.wire import DeviceState, UpdateEvent, UpdateState, Want, encode_json
from tests.builders import make_bundle
from tests.simulators import TOPICS, SimBroker

DAY_S = 24 * 3600.0
STEP_S = DAY_S / 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(folder / name, backbone=name) for name in ("first", "second")}


class Idle:
    """A device whose state never changes: no part comes, nobody labels, its release serves."""

    def __init__(self, folder: Path, name: str, release_id: str, broker: SimBroker) -> None:
        self.broker, self.name = broker, name
        self.store = Store.open(folder / name, name, clock=lambda: broker.now, limits=StoreLimits(reserve_bytes=0))
        self.core = SyncCore(
            TOPICS,
            self.store,
            "default",
            on_records=lambda _records: None,
            on_desired=lambda _desired: None,
            state=lambda: DeviceState(device=name, channel="default", online=True, release_id=release_id),
        )
        self.online = True
        broker.subscribe(name, self.core.subscriptions())
        self.core.connected(broker.now)

    def turn(self) -> None:
        if self.online:
            for message in self.broker.collect(self.name):
                self.core.receive(message, self.broker.now)
            for publication in self.core.poll(self.broker.now):
                self.broker.publish(publication)

    def vanish(self) -> None:
        """Lose power: the broker tells of it."""
        self.online = False
        self.broker.disconnect(self.name)
        self.broker.publish(self.core.farewell())


class Plant:
    """Two releases, of which `a` could not take the second and stays on the first, and `b` runs it."""

    def __init__(self, folder: Path, bundles: dict[str, Bundle]) -> None:
        self.broker = SimBroker()
        self.broker.now = time.time()
        self.store = FleetStore(folder / "fleet")
        self.core = FleetCore(self.store, TOPICS, ("default",))
        self.broker.subscribe("service", self.core.subscriptions())
        for publication in self.core.broker_connected(remembered=True):
            self.broker.publish(publication)
        self.devices: dict[str, Idle] = {}
        self.releases = []
        for device, name in (("a", "first"), ("b", "second")):
            release = self.store.publish(bundles[name], channel="default").release
            self.releases.append(release)
            self.devices[device] = Idle(folder, device, release.ref.release_id, self.broker)
            self.run(60.0, step_s=1.0)
        assert self.kept()

    def run(self, for_s: float, step_s: float) -> None:
        until = self.broker.now + for_s
        while self.broker.now < until:
            self.broker.now += step_s
            for device in self.devices.values():
                device.turn()
            now = self.broker.now
            for publication in self.core.turn(
                self.broker.collect("service"), now=now, now_utc=now, room_bytes=1 << 30
            ):
                self.broker.publish(publication)

    def something_happens(self) -> None:
        """`b` restarts: with every news of a device the service looks which chunks nobody needs."""
        event = UpdateEvent(release_id=self.releases[1].ref.release_id, state=UpdateState.COMMITTED)
        self.broker.publish(Publication(TOPICS.up_event("b"), encode_json(event)))
        self.run(5.0, step_s=1.0)

    def kept(self) -> bool:
        """Return whether the broker has all chunks of the first release."""
        return all(TOPICS.chunk(digest) in self.broker.retained for digest in self.releases[0].digests())


@pytest.fixture
def plant(tmp_path: Path, bundles: dict[str, Bundle]) -> Iterator[Plant]:
    plant = Plant(tmp_path, bundles)
    yield plant
    for device in plant.devices.values():
        device.store.close()
    plant.store.close()


def test_a_device_that_is_there_keeps_its_release_on_the_broker_however_idle_it_is(plant: Plant) -> None:
    plant.run(GONE_S + 5 * DAY_S, step_s=STEP_S)
    plant.something_happens()
    with plant.store.read() as ledger:
        device = ledger.device("a")
    assert device is not None
    assert plant.broker.now - device.last_seen_utc < SEEN_EVERY_S + 2 * STEP_S
    assert plant.kept()


def test_one_that_is_gone_does_not(plant: Plant) -> None:
    """The control: its power is off."""
    plant.devices["a"].vanish()
    plant.run(GONE_S - 2 * STEP_S, step_s=STEP_S)
    plant.something_happens()
    assert plant.kept()
    plant.run(DAY_S, step_s=STEP_S)
    plant.something_happens()
    assert not plant.kept()


def test_who_comes_back_after_long_gets_its_chunks_again(plant: Plant) -> None:
    plant.devices["a"].vanish()
    plant.run(GONE_S + DAY_S, step_s=STEP_S)
    plant.something_happens()
    assert not plant.kept()
    chunks = plant.releases[0].digests()
    for first in range(0, len(chunks), 256):
        want = Want(channel="default", chunks=chunks[first : first + 256])
        plant.broker.publish(Publication(TOPICS.up_want("a"), encode_json(want)))
    plant.run(10.0, step_s=1.0)
    assert plant.kept()


def test_what_a_stranger_asks_for_is_no_sign_of_anybody(plant: Plant) -> None:
    plant.broker.publish(Publication(TOPICS.up_want("nobody"), encode_json(Want(channel="default", log_from=1))))
    plant.run(5.0, step_s=1.0)
    with plant.store.read() as ledger:
        assert [device.device for device in ledger.devices()] == ["a", "b"]
