"""Lines that were alone for a week, each with a new kind of defect: once they meet, all know all, in any order.

Real stores, learners and the fleet's service; the broker and the clock are simulated, so a week takes no time.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.sample import Sample
from device_agent.store import Store
from device_agent.sync import SyncCore
from sdk.bundle import Bundle
from sdk.fleet.core import FleetCore
from sdk.fleet.store import FleetStore
from sdk.labels import Fold
from sdk.wire import DeviceState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.simulators import TOPICS, Faults, SimBroker

DAY_S = 24 * 3600.0
ALONE = {"a": "pit", "b": "stain"}
"""What each line meets that no release and no other line knows; `c` meets nothing new."""
LINES = ("a", "b", "c")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", ("good", "scratch"))


class Line:
    """One line's device: its store, its head, and its side of the wire."""

    def __init__(self, folder: Path, name: str, bundle: Bundle, broker: SimBroker) -> None:
        self.bundle, self.broker, self.name = bundle, broker, name
        self.online = False
        self.store = Store.open(folder / name, name, clock=lambda: broker.now, limits=StoreLimits(reserve_bytes=0))
        self.learner = Learner(bundle, None, self.store, clock=lambda: broker.now)
        self.core = SyncCore(
            TOPICS,
            self.store,
            "default",
            on_records=self.learner.received,
            on_desired=lambda _desired: None,
            state=self.state,
        )

    def state(self) -> DeviceState:
        return DeviceState(device=self.name, channel="default", online=True, outbox=self.store.log.outbox_depth())

    def label(self, shows: str, number: int, class_id: bytes) -> None:
        image = picture(shows, number)
        sample = Sample(
            sample_id=hashlib.sha256(image).digest(),
            captured_utc=self.broker.now,
            group=f"{self.name}/{number}",
            space=self.bundle.space(),
            code=code_of(self.bundle, image),
            decision="good",
            class_id=class_id_of("good"),
            probability=0.9,
            novelty=0.1,
            unknown=False,
        )
        self.store.samples.put(sample, image)
        self.learner.label(sample.sample_id, class_id, "ann")

    def knows(self, shows: str) -> str:
        active = self.learner.head
        decided = active.head.decide(code_of(self.bundle, picture(shows, 99))[None])
        return "unknown" if decided.unknown[0] else active.names[decided.class_index[0]]

    def come(self) -> None:
        self.online = True
        self.broker.subscribe(self.name, self.core.subscriptions())
        self.core.connected(self.broker.now)

    def go(self) -> None:
        self.online = False
        self.broker.disconnect(self.name)
        self.core.disconnected()


class Plant:
    """All lines and the service, on one simulated broker."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder = folder
        self.broker = SimBroker(0, Faults(drop=0.1, repeat=0.2, delay_s=1.0))
        self.broker.now = 1000.0
        self.lines = {name: Line(folder, name, bundle, self.broker) for name in LINES}
        self.store = FleetStore(folder / "fleet")
        with self.store.read() as ledger:
            published = ledger.current("default") is not None
        if not published:
            self.store.publish(bundle, channel="default")
        self.restart()

    def restart(self) -> None:
        """Start the service, or start it again; what the broker held is gone."""
        self.broker.crash()
        self.core = FleetCore(self.store, TOPICS, ("default",))
        self.broker.subscribe("service", self.core.subscriptions())
        for publication in self.core.broker_connected(remembered=False):
            self.broker.publish(publication)

    def run(self, until: Callable[[], bool], limit_s: float = 3600.0) -> None:
        began = self.broker.now
        while not until():
            assert self.broker.now - began < limit_s, f"not reached after {limit_s:g} s"
            self.broker.now += 1.0
            for line in self.lines.values():
                if line.online:
                    for message in self.broker.collect(line.name):
                        line.core.receive(message, self.broker.now)
                    for publication in line.core.poll(self.broker.now):
                        self.broker.publish(publication)
            now = self.broker.now
            for publication in self.core.turn(
                self.broker.collect("service"), now=now, now_utc=now, room_bytes=1 << 30
            ):
                self.broker.publish(publication)

    def close(self) -> None:
        for line in self.lines.values():
            line.learner.stop()
            line.store.close()
        self.store.close()

    def week_alone(self) -> None:
        """Seven days: two parts a day are labelled, one of them wrong at first."""
        made = {name: self.lines[name].learner.define_class(shows, "ann") for name, shows in ALONE.items()}
        for day in range(7):
            self.broker.now += DAY_S
            for name, shows in ALONE.items():
                number = day * 10
                self.lines[name].label(shows, number, class_id_of("scratch") if day == 3 else made[name])
                self.lines[name].label("scratch", number, class_id_of("scratch"))
                if day == 3:
                    self.lines[name].label(shows, number, made[name])
        for line in self.lines.values():
            line.learner.run_until_idle()

    def drained(self, *names: str) -> bool:
        with self.store.read() as ledger:
            length = ledger.log_length("default")
        lines = [self.lines[name] for name in names]
        return all(
            not line.store.log.outbox_depth() and line.store.log.position("default") == length for line in lines
        )


@contextlib.contextmanager
def plant_in(folder: Path, bundle: Bundle) -> Iterator[Plant]:
    plant = Plant(folder, bundle)
    try:
        yield plant
    finally:
        plant.close()


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> tuple[Path, str]:
    """The stores of lines that were alone for a week, and the digest of what they have learned together."""
    folder = tmp_path_factory.mktemp("week")
    with plant_in(folder, bundle) as plant:
        plant.week_alone()
        a, b = plant.lines["a"], plant.lines["b"]
        assert (a.knows("pit"), b.knows("stain")) == ("pit", "stain")
        assert a.knows("stain") != "stain"
        assert b.knows("pit") != "pit"
        base, entry = bundle.base(), bundle.precision()
        fold = Fold(entry.space, entry.feature_size)
        fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
        for line in (a, b):
            for record in line.store.log.records():
                fold.apply(record)
        assert fold.live_samples() == len(base.codes) + 3 * 7  # both have seen the same scratches
        return folder, fold.digest()


@pytest.mark.parametrize("stay", [True, False], ids=["stay", "one at a time"])
@pytest.mark.parametrize("order", list(permutations(LINES)), ids="".join)
def test_after_a_week_alone_all_know_what_each_has_learned(
    tmp_path: Path, bundle: Bundle, week: tuple[Path, str], order: tuple[str, ...], stay: bool
) -> None:
    """Whoever comes first, and whether or not any two are ever there at once."""
    shutil.copytree(week[0], tmp_path / "plant")
    with plant_in(tmp_path / "plant", bundle) as plant:
        for name in order:
            plant.lines[name].come()
            plant.run(lambda name=name: plant.drained(name))  # type: ignore[misc]
            if not stay:
                plant.lines[name].go()
                plant.restart()
        if not stay:
            for name in order:  # the first ones have not heard of the last ones yet
                plant.lines[name].come()
        plant.run(lambda: plant.drained(*LINES))
        fleet = plant.store.live_set("default")
        assert fleet is not None
        assert fleet.digest == week[1]
        for line in plant.lines.values():
            line.learner.run_until_idle()
            assert [line.knows(shows) for shows in ("pit", "stain", "scratch")] == ["pit", "stain", "scratch"]
        learners = [line.learner for line in plant.lines.values()]
        assert {learner.status().live_set_digest for learner in learners} == {week[1]}
        assert len({learner.moments_digest() for learner in learners}) == 1
