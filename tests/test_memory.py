"""What a trial took goes back to the system, and the control shows that it otherwise does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

_TAKE = """
import sys
from device_agent.memory import give_back_memory
if sys.argv[1] == "back":
    assert give_back_memory()
import numpy as np
def resident():
    return next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmRSS"))
np.ones(3_000_000)  # freed at once: from now on glibc keeps arrays up to this size
before, kept = resident(), []
for _ in range(8):
    matrix = np.ones(1_638_400)  # 1280 x 1280 float64
    kept.append((matrix, np.ones(10)))
    pinned = np.ones(30_000)  # lies above it, as a frame might, and stays
    kept.append((pinned, None))
kept = [pair for pair in kept if len(pair[0]) < 1_000_000]
del matrix
print(resident() - before)
"""


def printed(how: str, script: str = _TAKE) -> int:
    done = subprocess.run(
        [sys.executable, "-c", script, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_large_matrices_go_back_to_the_system_when_they_are_freed() -> None:
    assert printed("back") < 20
    assert printed("as it is") > 60


_LEAVE = """
import sys
from device_agent.memory import give_back_memory, give_back_now
assert give_back_memory()
import numpy as np
def resident():
    return next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmRSS"))
before, pinned = resident(), []
strips = []
for _ in range(80):
    strips.append(np.ones(131_072))  # 1 MiB, as a strip of codes might be: below what is mapped one by one
    pinned.append(np.ones(8_000))  # lies above it, and stays; no hole that imports left behind has room for many
del strips
if sys.argv[1] == "back":
    assert give_back_now()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_what_a_trial_leaves_between_what_stays_goes_back_when_it_ends() -> None:
    assert printed("back", _LEAVE) < 20
    assert printed("as it is", _LEAVE) > 60


_SPARE = """
import gc, sys
import numpy, onnxruntime
from device_agent.memory import set_modules_apart
class Knot: pass
knot = Knot()
knot.itself, alive = knot, []
import weakref
gone = weakref.ref(knot, alive.append)
before = len(gc.get_objects())
del knot
if sys.argv[1] == "spare":
    set_modules_apart()
    assert alive, "what was garbage went"
later = Knot()
later.itself = later
seen = weakref.ref(later, alive.append)
del later
gc.collect()
assert len(alive) == 2, "garbage of later goes as ever"
print(100 * len(gc.get_objects()) // before)
"""


def test_garbage_of_later_is_looked_for_among_what_came_later() -> None:
    assert printed("spare", _SPARE) < 10  # %
    assert printed("as it is", _SPARE) > 90
