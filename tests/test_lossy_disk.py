"""T3: the power goes while a whole agent works on a real file system that forgets what was not synced.

A few times here, a hundred with `HEADWAY_ALL_CRASHES=1` (make soak). `test_crash_points` looks at every step of
one day, by a list of what was done; here SQLite, its locks and its shared memory go through the kernel. The
controls are the same checks on syncs that are not asked for, and on a disk that lies about them.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_agent.store import STORE_NAME, check_store
from sdk.errors import StoreCorrupt
from tests.lossy_disk import LossyDisk, missing
from tests.processes import Doomed
from tests.simulators import wait_for
from tests.soak import times
from tests.test_kills import LONGEST_S, PICTURES, inspect_and_label
from tests.tiny import picture, tiny_bundle

RUNS = times(3, 100)
LABELS = 20
"""Told by an agent on a disk that lies, before its power goes."""

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize(("synchronous", "kept"), [("FULL", 20), ("NORMAL", 0), ("OFF", 0)])
def test_only_full_syncs_keep_every_commit(tmp_path: Path, synchronous: str, kept: int) -> None:
    """The store runs with FULL (`device_agent.database`); the others are the control."""
    below, mount = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    with LossyDisk(below, mount) as disk:
        db = sqlite3.connect(mount / "x.sqlite3", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE labels (seq)")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        for seq in range(20):
            db.execute("INSERT INTO labels VALUES (?)", (seq,))
        disk.cut()
    with LossyDisk(below, mount):
        after = sqlite3.connect(mount / "x.sqlite3")
        assert after.execute("SELECT count(*) FROM labels").fetchone() == (kept,)
        after.close()


def prepare(folder: Path) -> None:
    tiny_bundle(folder / "bundle")
    for name in ("images", "below"):
        (folder / name).mkdir()
    for i in range(PICTURES):
        (folder / "images" / f"{i}.png").write_bytes(picture("pit" if i % 2 else "rings", 700 + i))


def test_an_agent_whose_power_goes_at_any_moment_keeps_every_acknowledged_label(tmp_path: Path) -> None:
    prepare(tmp_path)
    roll, acknowledged, labels = random.Random(3), 0, 0
    for run in range(RUNS):
        with LossyDisk(tmp_path / "below", tmp_path / "data") as disk:
            child = Doomed(inspect_and_label, tmp_path, run)
            assert child.told()[0] == "decides", "it starts from what the last cut left, and inspects"
            time.sleep(roll.uniform(0.0, LONGEST_S))  # the moment of the cut, not a wait for something
            disk.cut()
        told = [seq for what, seq in child.kill() if what == "label"]
        labels += len(told)
        acknowledged = max([acknowledged, *told])
        with LossyDisk(tmp_path / "below", tmp_path / "data"):
            facts = check_store(tmp_path / "data" / STORE_NAME, whole=True)
        assert facts.entries >= acknowledged
        assert facts.lost == 0
    assert labels > RUNS
    print(f"{RUNS} power cuts, {labels} labels acknowledged, none lost")


def test_a_disk_that_lies_about_syncs_is_found_out(tmp_path: Path) -> None:
    """The control: on it the same check finds labels that were acknowledged and are gone."""
    prepare(tmp_path)
    with LossyDisk(tmp_path / "below", tmp_path / "data", lie=True) as disk:
        child = Doomed(inspect_and_label, tmp_path, 0)
        assert child.told()[0] == "decides"
        acknowledged = max(child.told()[1] for _ in range(LABELS))
        disk.cut()
    child.kill()
    with LossyDisk(tmp_path / "below", tmp_path / "data"):
        try:
            held = check_store(tmp_path / "data" / STORE_NAME, whole=True).entries
        except StoreCorrupt:
            held = 0
    assert held < acknowledged


OWNER = """
import signal, sys
from pathlib import Path
from tests.lossy_disk import LossyDisk
with LossyDisk(Path(sys.argv[1]), Path(sys.argv[2])):
    print("mounted", flush=True)
    signal.pause()
"""


def test_a_run_that_is_killed_leaves_nothing_mounted(tmp_path: Path) -> None:
    """Or the folders of that run could not be removed by the next one."""
    below, mount = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    command = [sys.executable, "-c", OWNER, str(below), str(mount)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mounted\n"
        assert os.path.ismount(mount)
        os.killpg(owner.pid, signal.SIGKILL)
    wait_for(lambda: str(mount) not in Path("/proc/self/mountinfo").read_text(), what="the mount going")
    mount.rmdir()
