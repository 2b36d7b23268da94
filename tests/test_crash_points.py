"""T2: a power cut after every single write, sync and rename of an eventful day loses nothing that was promised.

A real process's day (`crash_scenario`: a release, labels, a correction, a withdrawal, a release of another feature
space, a label) is noted write by write and played back; at every step the disk is left as a power cut would leave
it, by four rules (`crashes`), and a new agent's store, learner and updater start from that. The control is a disk
that answers syncs and keeps nothing: there the same check must find losses.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_agent.learner import Learner
from device_agent.store import STORE_NAME, Store, check_store
from sdk.bundle import Bundle
from sdk.errors import HeadwayError
from sdk.labels import Fold, Record
from sdk.wire import UpdateState
from tests.crash_scenario import LIMITS
from tests.crashes import Cut, Disk, Lie, Step, build_tracer, digest_of, traced, write_out
from tests.test_update import bundles, rig_on

__all__ = ["bundles"]

MEMORY = Path("/dev/shm")
EVERY: dict[Cut, int] = {Cut.LOST: 1, Cut.HOLLOW: 5, Cut.KEPT: 11, Cut.TORN: 7}
"""Each how many steps are looked at here; `HEADWAY_ALL_CRASHES=1` (make soak) looks at all."""


@dataclass(frozen=True)
class Day:
    """What happened, and what people were told."""

    root: str
    steps: list[Step]
    told: list[tuple[int, dict[str, object]]]
    """How many steps had been done when something was said, and what."""
    records: list[Record]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Day:
    folder = tmp_path_factory.mktemp("day")
    tracer = build_tracer(folder)
    if tracer is None:
        pytest.skip("needs a C compiler to note what a process writes")
    base, root = folder / "base", folder / "base" / "data"
    base.mkdir()
    source = bundles["new"].path.parent
    # The marks lie below the traced folder, so that they stand in the trace in their order; they are no part of
    # the disk.
    marks = base / "marks"
    steps = traced(tracer, base, folder / "log", "tests.crash_scenario", str(root), str(source), str(marks))
    kept: list[Step] = []
    told: list[tuple[int, dict[str, object]]] = []
    mark_files: set[int] = set()
    for step in steps:
        if step.kind == "o" and step.one == str(marks).encode():
            mark_files.add(step.file)
        elif step.kind in "wc" and step.file in mark_files:
            told.extend((len(kept), json.loads(line)) for line in step.one.splitlines())
        else:
            kept.append(step)
    with Store.open(root, "line-1", limits=LIMITS) as store:
        records = list(store.log.records())
    assert told[-1][1] == {"done": True}
    return Day(str(base), kept, told, records)


@pytest.fixture
def disk_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of states are synced to it."""
    folder = MEMORY / f"headway-{os.getpid()}" if os.access(MEMORY, os.W_OK) else tmp_path / "disk"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def wrong_after(left: Path, bundles: dict[str, Bundle], day: Day, said: list[dict[str, object]]) -> str | None:
    """Start an agent's parts from what a power cut left; return what is wrong with that, None where nothing is.

    Args:
        left: The data folder.
        bundles: The releases of the day.
        day: The day.
        said: What people had been told by then.
    """
    entries = max((int(str(each["entries"])) for each in said if "entries" in each), default=0)
    committed = [str(each["committed"]) for each in said if "committed" in each]
    try:
        with rig_on(left, bundles) as rig:
            held = list(rig.store.log.records())
            if held != day.records[: len(held)]:
                return "the log is not the beginning of the day's"
            if rig.store.log.length() < entries:
                return f"{entries} entries were acknowledged, {rig.store.log.length()} are there"
            for each in said:
                picture = each.get("picture")
                if picture and rig.store.samples.image(bytes.fromhex(str(picture))) is None:
                    return f"the picture of an acknowledged label is gone: {picture}"
            serves = rig.updater.boot()
            state = rig.updater.status().state
            if committed and (not serves or rig.served[0] is None):
                return f"nothing serves; the update is {state}"
            newest = [row for row in rig.store.updates.newest() if row.state is UpdateState.COMMITTED]
            if committed and committed[-1] not in {row.release_id for row in newest}:
                return f"release {committed[-1][:8]} was committed, and is no longer"
            if serves:
                bundle = bundles[str(rig.served[0])]
                learned = Learner(bundle, None, rig.store).status().live_set_digest
                if learned != digest_after(bundle, list(rig.store.log.records())):
                    return "the head is of another live set than the log's"
    except HeadwayError as error:
        return f"it does not start: {error}"
    if entries and check_store(left / STORE_NAME, whole=True).entries < entries:
        return "the store is not whole"
    return None


def digest_after(bundle: Bundle, records: list[Record]) -> str:
    base = bundle.base()
    fold = Fold(bundle.space(), base.codes.shape[1])
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    for record in records:
        fold.apply(record)
    return fold.digest()


def play(
    day: Day, bundles: dict[str, Bundle], folder: Path, cut: Cut, *, lie: Lie = Lie.NOTHING, every: int = 1
) -> tuple[int, list[str]]:
    """Cut the power after every step; return how many different states there were, and what was wrong."""
    disk = Disk(day.root, lie)
    seen: set[bytes] = set()
    wrong: list[str] = []
    for number, step in enumerate(day.steps):
        disk.do(step)
        if step.kind in "oc" or number % every:
            continue
        said = [what for at, what in day.told if at <= number + 1]
        left = {
            path.removeprefix("data").lstrip("/"): content
            for path, content in disk.after(cut).items()
            if path == "data" or path.startswith("data/")
        }
        key = digest_of(left) + len(said).to_bytes(2, "big")
        if key in seen or not (left or said):
            continue
        seen.add(key)
        target = folder / "state"
        write_out(left, target)
        fault = wrong_after(target, bundles, day, said)
        if fault is not None:
            wrong.append(f"step {number} ({step.kind}): {fault}")
        shutil.rmtree(target)
    return len(seen), wrong


@pytest.mark.parametrize("cut", list(Cut))
def test_a_power_cut_after_any_step_loses_nothing_that_was_acknowledged(
    day: Day, bundles: dict[str, Bundle], disk_folder: Path, cut: Cut
) -> None:
    every = 1 if os.environ.get("HEADWAY_ALL_CRASHES") else EVERY[cut]
    states, wrong = play(day, bundles, disk_folder, cut, every=every)
    assert wrong == []
    assert states > 10
    print(f"{cut.value}: {states} different states of {len(day.steps)} steps")


@pytest.mark.parametrize("lie", [Lie.FILES, Lie.NAMES])
def test_a_disk_that_only_says_that_it_has_synced_is_caught(
    day: Day, bundles: dict[str, Bundle], disk_folder: Path, lie: Lie
) -> None:
    """The control: without these syncs the same check must find what was acknowledged and lost."""
    _, wrong = play(day, bundles, disk_folder, Cut.LOST, lie=lie)
    assert any("were acknowledged" in fault for fault in wrong)
