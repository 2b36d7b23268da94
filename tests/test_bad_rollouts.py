"""T18: thirteen kinds of bad release, each rolled out to twenty lines: gone by itself, from one line, for good.

The first line's update machine is the real one, with its store, labels, trials and time limits; what it fetches
from, its runtime and its station are simulators at the seams. The other lines take whatever they are assigned, so
one wave too many would be seen. The service's rollout is the real one, in virtual time. `test_bad_release` has the
same with a whole agent and a broker.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from device_agent.config import RuntimeSettings
from device_agent.pace import ReleaseWatch, check_pace
from device_agent.pipeline import Pipeline
from device_agent.runtime import Runtime, check_golden
from device_agent.store import Store
from device_agent.update import MAX_STARTS, Release
from sdk.bundle import Bundle, write_bundle
from sdk.errors import InferenceFailed
from sdk.fleet.rollout import Plan, RolloutState
from sdk.mqtt import Message
from sdk.wire import Desired, Quality, UpdateEvent, UpdateState, decode_json, encode_json
from tests.builders import class_id_of, make_bundle, open_projection
from tests.simulators import TOPICS, wait_for
from tests.test_fleet_rollout import WELL, Floor
from tests.test_update import LIMITS, Rig, admit, label_some

LINES: Final = tuple(f"line-{number:02}" for number in range(20))
REAL: Final = LINES[0]
MAX_REACHED: Final = 1
"""max(1, 5 %) of twenty."""
PLAN: Final = Plan(waves=["1", "10%", "100%"], soak_s=30, deadline_s=3600)
FAST: Final = RuntimeSettings(max_frame_ms=10.0)
ENDS: Final = (UpdateState.COMMITTED, UpdateState.ROLLED_BACK)
HOURS: Final = 2
"""Virtual ones, after which nothing must have moved."""

Features = npt.NDArray[np.float32]


class Changed:
    """A runtime that does something to every batch of features."""

    def __init__(self, inner: Runtime, change: Callable[[Features], Features]) -> None:
        self.name, self.feature_size = inner.name, inner.feature_size
        self._inner, self._change = inner, change

    def features(self, batch: npt.NDArray[np.float32]) -> Features:
        return self._change(self._inner.features(batch))


def crash(_features: Features) -> Features:
    raise InferenceFailed("the runtime ended: illegal instruction", hint="Export again.")


def slow(features: Features) -> Features:
    time.sleep(3 * FAST.max_frame_ms / 1000)
    return features


@dataclass(frozen=True)
class Bad:
    """A bad release.

    Attributes:
        why: A part of the reason that the line or the fleet gives.
        bundle: Which bundle is published as it.
        change: What its backbone does to features.
        takes_over: Called where it takes over.
        frames_ms: What the line's frames take in it.
        fails: What the agent says of it in service, beside that.
        dies: The agent dies whenever it serves.
        quality: How the line does with it; the same where None.
    """

    why: str
    bundle: str = "bad"
    change: Callable[[Features], Features] | None = None
    takes_over: Callable[[], None] = lambda: None
    frames_ms: float = 5.0
    fails: str = ""
    dies: bool = False
    quality: Quality | None = None


def no_memory() -> None:
    raise RuntimeError("no memory for its head")


BAD: Final = {
    "crashes when it is tried": Bad("illegal instruction", change=crash),
    "crashes when it takes over": Bad("no memory for its head", takes_over=no_memory),
    "crashes on the line's frames": Bad("3 frames in a row failed", fails="3 frames in a row failed"),
    "takes the agent down at every start": Bad(f"start {MAX_STARTS} times", dies=True),
    "computes other figures": Bad("on the golden inputs", change=lambda features: features[:, ::-1]),
    "computes no figures": Bad("not finite", change=lambda features: features * np.float32(np.nan)),
    "has another's golden inputs": Bad("on the golden inputs", bundle="wrong-golden"),
    "is slow when it is tried": Bad("ms on this device, at most 10 are allowed", change=slow),
    "is slow on the line's frames": Bad("ms on the line, at most 10 are allowed", frames_ms=40.0),
    "takes twice the time": Bad("45 ms for a frame, 20 before", quality=structs.replace(WELL, latency_ms=45.0)),
    "confuses what was labelled here": Bad("Taken back", bundle="swapped"),
    "knows what was labelled here less well": Bad(
        "knows its own labels 30 points less well", quality=structs.replace(WELL, recall=0.6)
    ),
    "calls much unknown": Bad("calls 30% of its parts unknown", quality=structs.replace(WELL, unknown=0.3)),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    good, scratch = class_id_of("good"), class_id_of("scratch")
    swapped = {"good": scratch, "scratch": good}
    made = {
        "first": make_bundle(folder / "first"),
        "bad": make_bundle(folder / "bad", backbone="seed-2"),
        "swapped": make_bundle(folder / "swapped", backbone="seed-4", class_ids=swapped, per_class=40),
    }
    files = {each.name: (made["bad"].path / each.name).read_bytes() for each in made["bad"].manifest.files}
    files["golden.safetensors"] = (made["swapped"].path / "golden.safetensors").read_bytes()
    manifest = structs.replace(made["bad"].manifest, name="wrong-golden")
    made["wrong-golden"] = write_bundle(folder / "wrong-golden", files, manifest)
    return made


@dataclass
class Line:
    """One line's real update machine, and an agent around it that lives through a bad release."""

    folder: Path
    store: Store
    bundles: dict[str, Bundle]
    bad: Bad
    said: list[UpdateEvent] = field(default_factory=list)
    served: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        taken = [decode_json(row.job, Desired).release for row in self.store.updates.newest()]
        self.release_names = {ref.release_id: ref.name for ref in taken}
        self._start()

    def _start(self) -> None:
        """Start the agent's updater: at the beginning, and whenever the agent has died."""
        self.rig = Rig(
            self.folder,
            [bundle.path for bundle in self.bundles.values()],
            self.store,
            watch_s=600.0,
            names=self.release_names,
            served=self.served,
            on_serve=self._takes_over,
            on_event=self.said.append,
            admit=self._admit,
        )
        self.rig.updater.boot()

    def _is_bad(self, bundle: Bundle) -> bool:
        return bundle.digest() == self.bundles[self.bad.bundle].digest()

    def _admit(self, bundle: Bundle) -> Runtime:
        if self.bad.change is None or not self._is_bad(bundle):
            return admit(bundle)
        runtime = Changed(open_projection(bundle, "fp32"), self.bad.change)
        check_golden(runtime, bundle)
        check_pace(FAST, (Pipeline(bundle, None, runtime), bundle), None)
        return runtime

    def _takes_over(self, release: Release | None) -> None:
        if release is not None and self._is_bad(release.bundle):
            self.bad.takes_over()

    def take(self, desired: Desired) -> None:
        """Take an assignment to its end, as the agent would."""
        ref = desired.release
        self.release_names[ref.release_id] = ref.name
        self.rig.updater.start(desired)

        def ended() -> bool:
            status = self.rig.updater.status()
            if status.release_id != ref.release_id:
                return self.serves() == ref.name and status.state in ENDS  # it is back there already
            if status.state is UpdateState.PROVISIONAL and self.served[-1:] == [ref.name]:
                self._live_with(ref.name, ref.release_id)
            return status.state in ENDS

        wait_for(ended, what=f"the end of {ref.name}")

    def _live_with(self, name: str, release_id: str) -> None:
        if name != self.bad.bundle:
            self.rig.updater.confirm(release_id)
        elif self.bad.dies:
            self.stop()
            self._start()
        else:
            watch, said = ReleaseWatch(FAST), None
            while said is None:
                said = watch.saw(release_id, self.bad.frames_ms)
            why = self.bad.fails or said
            self.rig.updater.fail(release_id, why) if why else self.rig.updater.confirm(release_id)

    def serves(self) -> str | None:
        return self.served[-1] if self.served else None

    def stop(self) -> None:
        self.rig.updater.stop()


class Plant(Floor):
    """Twenty lines, the first of them real."""

    def __init__(self, directory: Path, line: Line) -> None:
        self.line = line
        self.taken: Desired | None = None
        self.ever: dict[str, set[str]] = {}
        super().__init__(directory, ())
        self.quality = dict.fromkeys(LINES, WELL)
        self.running = {device: desired.release.release_id for device, desired in self.desired.items()}

    def obey(self) -> None:
        for device, desired in self.desired.items():
            self.ever.setdefault(desired.release.name, set()).add(device)
        mine = self.desired.get(REAL)
        if mine is not None and mine != self.taken:
            self.taken = mine
            self.line.take(mine)
            serves = self.line.serves()
            ids = {name: release_id for release_id, name in self.line.release_names.items()}
            if serves is not None:
                self.running[REAL] = ids[serves]
            bad = self.line.bad
            self.quality[REAL] = bad.quality if serves == bad.bundle and bad.quality is not None else WELL
            said, self.line.said[:] = list(self.line.said), []
            for event in said:
                self.turn(Message(TOPICS.up_event(REAL), encode_json(event)))
            self.tell(REAL)
        self.away.add(REAL)  # the others
        super().obey()
        self.away.discard(REAL)


@contextmanager
def plant_at(folder: Path, bundles: dict[str, Bundle], bad: Bad) -> Iterator[Plant]:
    with Store.open(folder / "line", REAL, limits=LIMITS) as store:
        line = Line(folder / "line", store, bundles, bad)
        plant = Plant(folder / "fleet", line)
        try:
            yield plant
        finally:
            line.stop()
            plant.store.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Path:
    """Return the folders of a plant on its first release, with labels on the real line."""
    folder = tmp_path_factory.mktemp("prepared")
    with plant_at(folder, bundles, BAD["crashes when it is tried"]) as plant:
        for device in LINES:
            plant.tell(device)
        plant.store.publish(bundles["first"], channel="default")
        plant.turn()
        plant.obey()
        label_some(plant.line.store, bundles["first"])
    return folder


@contextmanager
def rolling_out(
    folder: Path, prepared: Path, bundles: dict[str, Bundle], bad: Bad, plan: Plan = PLAN
) -> Iterator[Plant]:
    """Run a plant that begins to roll a bad release out."""
    shutil.copytree(prepared, folder / "plant", symlinks=True)
    with plant_at(folder / "plant", bundles, bad) as plant:
        plant.store.publish(bundles[bad.bundle], channel="default", plan=plan)
        plant.turn()
        plant.turn()
        yield plant


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_release_goes_by_itself_from_the_first_line_and_does_not_come_back(
    tmp_path: Path, prepared: Path, bundles: dict[str, Bundle], kind: str
) -> None:
    bad = BAD[kind]
    with rolling_out(tmp_path, prepared, bundles, bad) as plant:
        for _ in range(3):
            plant.obey()
            plant.wait(PLAN.soak_s)
        assert plant.stands() == (RolloutState.HALTED, 1)
        assert bad.why in str(plant.reports[-1]["reason"])
        attempts, served = plant.line.store.updates.newest(), list(plant.line.served)
        for _ in range(HOURS):
            plant.line.rig.updater.say_again()
            plant.obey()
            plant.wait(3600.0)
        assert plant.stands() == (RolloutState.HALTED, 1)
        assert len(plant.ever[bad.bundle]) <= MAX_REACHED
        assert set(plant.names().values()) == {"first"}
        assert plant.line.serves() == "first"
        # Never to and fro: each release was taken in once, and what serves has not changed since.
        assert (plant.line.store.updates.newest(), plant.line.served) == (attempts, served)
        assert served.count(bad.bundle) <= (MAX_STARTS if bad.dies else 1)


def test_a_plan_that_forgives_everything_would_have_gone_on(
    tmp_path: Path, prepared: Path, bundles: dict[str, Bundle]
) -> None:
    """The control: the same bad release under a plan that lets any line do so much worse."""
    forgiving = structs.replace(PLAN, max_unknown_rise=1.0)
    with rolling_out(tmp_path, prepared, bundles, BAD["calls much unknown"], forgiving) as plant:
        for _ in range(len(PLAN.waves) + 1):
            plant.obey()
            plant.wait(PLAN.soak_s)
        assert plant.stands()[0] is RolloutState.DONE
        assert plant.ever["bad"] == set(LINES)
