"""T1: a whole agent killed with signal 9 at random, while it inspects, labels and relearns, or takes releases.

A few times here, three hundred with `HEADWAY_ALL_CRASHES=1` (make soak). After each kill the store must be whole
and hold every label that was acknowledged, and the next agent must decide frames; in the long run within five
seconds, which the short one, beside other tests, does not hold it to.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent.agent import Agent
from device_agent.config import FolderCamera, PageSettings, RuntimeSettings, Site
from device_agent.store import STORE_NAME, check_store
from sdk.bundle import Bundle
from sdk.wire import UpdateState
from tests.processes import Doomed
from tests.simulators import wait_for
from tests.soak import SOAK, times
from tests.test_update import bundles, label_some, rig_on
from tests.tiny import class_id, picture, tiny_bundle

__all__ = ["bundles"]

RUNS = times(4, 200)
UPDATES = times(3, 100)
PICTURES = 12
LONGEST_S = 1.5
BOOT_S = 5.0
"""From the start of a process to its first decisions."""


class Boots:
    """How long agents took to serve after a kill. They are forked with everything imported (`Doomed`), so what
    Python takes for that is measured once and added."""

    def __init__(self) -> None:
        began_s = time.perf_counter()
        modules = "device_agent.agent, device_agent.page, device_agent.sync"
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, timeout=60)
        self._import_s = time.perf_counter() - began_s
        self.took_s: list[float] = []

    def count(self, began_s: float) -> None:
        self.took_s.append(time.perf_counter() - began_s + self._import_s)

    def judge(self) -> str:
        """Return the figure in words.

        In the long run the slowest must not be over the limit, where the machine had time for it: at a load of
        over two for each core a start says nothing.
        """
        worst_s, load, cores = max(self.took_s), os.getloadavg()[1], os.cpu_count() or 1
        assert worst_s <= BOOT_S or not SOAK or load > 2 * cores, f"a boot took {worst_s:.1f} s"
        median_s = sorted(self.took_s)[len(self.took_s) // 2]
        return (
            f"served after {median_s:.1f} s (median), {worst_s:.1f} s at most, "
            f"{self._import_s:.1f} s of it Python's imports (load {load:.1f} on {cores} cores)"
        )


def inspect_and_label(folder: Path, seed: int, tell: Callable[[Any], None]) -> None:
    """Run an agent, tell when it decides frames, then label for ever and tell each acknowledged entry."""
    site = Site(
        device="line-1",
        camera=FolderCamera(path=folder / "images", loop=True, rate_fps=100.0),
        data_dir=folder / "data",
        bundle=folder / "bundle",
        page=PageSettings(port=0),
        runtime=RuntimeSettings(threads=1),
    )
    roll = random.Random(seed)
    with Agent(site) as agent:
        threading.Thread(target=agent.run, args=(threading.Event(),), daemon=True).start()
        wait_for(lambda: agent.state().frames >= PICTURES, 60.0)
        tell(("decides", agent.state().frames))
        samples = agent.store.samples.newest(limit=PICTURES)
        while True:
            sample = roll.choice(samples).sample_id
            chosen = roll.choice(["good", "pit", "scratch", None])
            saved = agent.station.label(sample, None if chosen is None else class_id(chosen), "ann")
            tell(("label", saved.seq))


def test_an_agent_killed_at_any_moment_keeps_every_acknowledged_label_and_starts_again(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    for i in range(PICTURES):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture("pit" if i % 2 else "rings", 700 + i))
    roll, acknowledged, labels, boots = random.Random(7), 0, 0, Boots()
    for run in range(RUNS):
        began_s = time.perf_counter()
        child = Doomed(inspect_and_label, tmp_path, run)
        assert child.told()[0] == "decides", "it starts, and inspects"
        boots.count(began_s)
        time.sleep(roll.uniform(0.0, LONGEST_S))  # the moment of the kill, not a wait for something
        told = [seq for what, seq in child.kill() if what == "label"]
        labels += len(told)
        acknowledged = max([acknowledged, *told])
        facts = check_store(tmp_path / "data" / STORE_NAME, whole=True)
        assert facts.entries >= acknowledged
        assert facts.lost == 0
    assert labels > RUNS
    print(f"{RUNS} kills, {labels} labels acknowledged, none lost; {boots.judge()}")


def update_for_ever(folder: Path, bundle_folder: Path, tell: Callable[[Any], None]) -> None:
    """Install one release after the other for ever; tell each that is committed."""
    bundles = {name: Bundle.open(bundle_folder / name) for name in ("old", "new")}
    with rig_on(folder, bundles) as rig:
        tell(("serves", rig.updater.boot()))
        while True:
            for name in ("new", "old"):
                rig.install(bundles[name])
                tell(("committed", name))


@pytest.mark.usefixtures("bundles")
def test_a_device_killed_at_any_moment_of_an_update_serves_a_whole_release(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path, bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"], count=3)
    roll, committed, boots = random.Random(9), 0, Boots()
    for _ in range(UPDATES):
        began_s = time.perf_counter()
        child = Doomed(update_for_ever, tmp_path, bundles["new"].path.parent)
        assert child.told() == ("serves", True)
        boots.count(began_s)
        time.sleep(roll.uniform(0.0, LONGEST_S))
        committed += len(child.kill())
        # This rig's copying fetcher leaves a draft behind where the real one (`test_chunks`) takes its own up.
        for draft in (tmp_path / "slots").glob("*.draft"):
            shutil.rmtree(draft)
    with rig_on(tmp_path, bundles) as rig:
        assert rig.updater.boot()
        wait_for(lambda: rig.updater.status().state in (UpdateState.COMMITTED, UpdateState.ROLLED_BACK))
        assert {s.sample_id for s in rig.store.samples.newest(limit=20)} == ids
    print(f"{UPDATES} kills in updates, {committed} releases committed meanwhile, one served after each kill")
    print(boots.judge())
