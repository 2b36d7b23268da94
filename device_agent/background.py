"""Work that can wait: on threads that give way to frames, and not before its time.

A thread's priority is its own and can only be lowered, so what must be prompt and what can wait run on different
threads. Measured on two cores that the line keeps busy (docs/agent.md): the lower the priority of what can wait,
the less it shows in the frames' latency, although all threads share one interpreter lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

LOWEST: Final = 19
"""As nice as a thread can be: on a busy core it gets a seventieth of the time that a stage of the line gets."""

QUIET_S: Final = 0.3
"""A trial begins when no label has come for this long: about as long as one solve."""
MAX_QUIET_S: Final = 3.0
"""And no sooner than the next label may be expected, of somebody who labels one after the other: the one that came
meanwhile would end it, in vain. It does not wait longer than this."""

_T = TypeVar("_T")


def give_way(nice: int) -> None:
    """Lower this thread's priority below that of the process, as far as the system has one for each thread."""
    with contextlib.suppress(OSError):  # where the system will not, frames wait a little longer
        lowered = min(os.getpriority(os.PRIO_PROCESS, 0) + nice, LOWEST)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), lowered)


class Background:
    """One thread of the lowest priority. Any thread may call."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name, give_way, (LOWEST,))

    def run(self, work: Callable[[], _T]) -> _T:
        """Do it there, and return what it gives or raises."""
        return self._pool.submit(work).result()

    def stop(self) -> None:
        """Wait for what is being done, and end."""
        self._pool.shutdown()


class Rhythm:
    """How quickly one label follows the other.

    >>> rhythm = Rhythm()
    >>> rhythm.beat(10.0); rhythm.pause_s()
    0.3
    >>> rhythm.beat(11.0); rhythm.pause_s()
    1.5
    """

    def __init__(self) -> None:
        self._last_s = self._gap_s = 0.0

    def beat(self, now_s: float) -> None:
        """A label came."""
        self._gap_s, self._last_s = now_s - self._last_s, now_s

    def pause_s(self) -> float:
        """Return for how long no label must have come before the next is not to be expected any more."""
        expected_s = 1.5 * self._gap_s
        return max(QUIET_S, expected_s) if expected_s <= MAX_QUIET_S else QUIET_S
