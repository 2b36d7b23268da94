"""Memory that learning took for a moment goes back to the system, where the C library is glibc.

glibc learns from the first large array that is freed to keep such memory for the next one. A trial of a head takes
hundreds of megabytes for seconds; on a device they belong to the camera and the rest of the system afterwards.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

LARGE_BYTES: Final = 4 * 1024**2
"""Arrays from this size on are mapped one by one and given back when freed: the learner's matrices. Frames and
tensors of usual cameras stay below it, so that no frame waits for fresh pages."""
ARENAS: Final = 2
"""Heaps for all threads together; by default eight for each core, each of which keeps what it once needed."""
_TRIM, _MAP, _ARENAS = -1, -3, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX


def give_back_now() -> bool:
    """Give free pages between what is in use back to the system; return whether it could be.

    A trial leaves arrays below `LARGE_BYTES` behind that grow with the labels: heaps of threads keep their pages,
    with what came meanwhile above them. A millisecond, five at most, in which other threads may wait for memory.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    trim(0)
    return True


def give_back_memory() -> bool:
    """Set this process's allocator so; return whether it could be. Call it before the first large array."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, macOS
        return False
    return all(
        mallopt(option, value) for option, value in ((_TRIM, LARGE_BYTES), (_MAP, LARGE_BYTES), (_ARENAS, ARENAS))
    )


def set_modules_apart() -> None:
    """Spare the collector what was loaded and stays as long as this process, which it would look through for ever.

    Call it when all that is large has been imported, and before anything is made that may be replaced: a release
    that an update replaces would else keep whatever refers to itself.
    """
    gc.collect()
    gc.freeze()
