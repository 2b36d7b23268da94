"""What a process takes: memory now and at most, threads, open files, processor time. Linux only.

Read from /proc, since psutil, which has the others, does not have the most memory that a process ever held.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MB: Final = 1_000_000
WATCH_S: Final = 0.1
"""Between two readings of memory."""


@dataclass(frozen=True)
class Taken:
    """What a process takes.

    Attributes:
        resident_bytes: Now.
        peak_bytes: The most that was ever resident.
        threads: Now.
    """

    resident_bytes: int
    peak_bytes: int
    threads: int


def taken(pid: int | None = None) -> Taken:
    """Return what a process takes; this one where None.

    Raises:
        FileNotFoundError: there is no such process, or it has ended and is not waited for.
    """
    lines = Path(f"/proc/{pid or os.getpid()}/status").read_text(encoding="utf-8").splitlines()
    found = {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
    if "VmRSS" not in found:
        raise FileNotFoundError(f"process {pid} has ended")
    resident, peak = (int(found[name][0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Taken(resident, peak, int(found["Threads"][0]))


def open_files(pid: int) -> int:
    """Return how many files, sockets and the like a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """The lowest and the highest resident memory of a process while the block runs.

    Args:
        pid: Asked which, each time: it may end and start anew. This one by default.
        every_s: Between two readings.
    """

    def __init__(self, pid: Callable[[], int] = os.getpid, *, every_s: float = WATCH_S) -> None:
        self._pid, self._every_s = pid, every_s
        self.lowest_mb, self.highest_mb = float("inf"), 0.0
        self._read()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._every_s):
            self._read()

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            now_mb = taken(self._pid()).resident_bytes / MB
            self.lowest_mb, self.highest_mb = min(self.lowest_mb, now_mb), max(self.highest_mb, now_mb)
