"""Work that can wait gives way while somebody waits for a label to be saved.

Learning and trials share the interpreter with the page, and run at a lower priority. On a busy machine a save that
needs the interpreter a dozen times would wait a dozen times for a thread that is itself waiting for a core: with
1,200 labels and a trial running, 95 % of saves took up to 374 ms that way (docs/page.md). So whoever computes asks
`give_way` between its steps, and stops there while a save is on its way.

Frames have a priority, and still wait for the interpreter: `breathe` says why, and what is done about it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

GIVE_WAY_S: Final = 0.5
"""Five times what a save may take."""
SWITCH_S: Final = 0.0005
"""Within this a thread that computes in Python lets others in: ten times sooner than Python's default, because a
save asks for the interpreter after each of its dozen reads and writes."""
BREATH_EVERY_S: Final = 0.0005
"""As often as Python's own switch would come, where it comes."""
BREATH_S: Final = 0.00001
"""Linux makes some 70 us of it (timer slack), which is as long as another thread needs to wake."""

_T = TypeVar("_T")
_breathed = threading.local()


def breathe() -> None:
    """Let waiting threads have the interpreter, if the calling one computed for a while. Ask between short steps.

    Python's switch interval does not do it. A thread that waits asks for the interpreter when it has not been
    released for that interval; but whoever calls small steps of NumPy, LAPACK or SQLite releases it every few
    microseconds and has it back before the other is awake, which each time waits anew. Measured, one thread beside
    600 left-out groups of five samples: 1 % of its awakenings came 9 ms late and more; 0.6 ms with this.
    """
    now_s = time.monotonic()
    if now_s - getattr(_breathed, "at_s", 0.0) > BREATH_EVERY_S:
        time.sleep(BREATH_S)
        _breathed.at_s = time.monotonic()


class Courtesy:
    """Knows whether a save is on its way. Any thread may call.

    Args:
        give_way_s: A save that takes longer than this holds nobody up any more: it waits for something else.
    """

    def __init__(self, give_way_s: float = GIVE_WAY_S) -> None:
        self._give_way_s = give_way_s
        self._lock = threading.Lock()
        self._saves = 0
        self._free = threading.Event()
        self._free.set()
        self._until_s = 0.0

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Let what can wait give way until this ends."""
        with self._lock:
            self._saves += 1
            self._until_s = time.monotonic() + self._give_way_s
            self._free.clear()
        try:
            yield
        finally:
            with self._lock:
                self._saves -= 1
                if not self._saves:
                    self._free.set()

    def give_way(self) -> None:
        """Return when no save is on its way, or the newest takes too long. Where there is none, only `breathe`."""
        breathe()
        while not self._free.is_set():
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                return
            self._free.wait(left_s)


def step_back(nice: int) -> None:
    """Let the rest of this process go before the calling thread: frames are not to wait for what it computes."""
    with contextlib.suppress(OSError):  # where the system will not, frames wait a little longer
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)


def aside(nice: int, work: Callable[[], _T]) -> _T:
    """Return what `work` returns, computed on a thread that steps back so far, while the calling one waits.

    A thread that stepped back stays there where the process has no right to raise priorities, and threads that it
    starts inherit it: a runtime opened by it would serve at a low priority for ever.
    """
    with ThreadPoolExecutor(1, "aside", step_back, (nice,)) as thread:
        return thread.submit(work).result()


def switch_often() -> None:
    """Let threads of this process that only answer come in between those that compute."""
    sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
