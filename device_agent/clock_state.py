"""Whether this machine's clock is held right."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")
"""Touched whenever systemd's own client has set the clock (systemd-timesyncd.service(8)); gone at each boot."""
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised


def clock_synchronised(timesyncd: Path = TIMESYNCD) -> bool | None:
    """Return whether the kernel holds its clock to be synchronised; None where nobody says.

    A service whose unit has ProtectClock=yes may not ask the kernel, though asking changes nothing.

    Args:
        timesyncd: Says so where the kernel may not be asked.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # struct timex begins with `modes`: all zero only asks. It is 208 bytes on 64-bit Linux.
        state = libc.adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return True if timesyncd.exists() else None
    return bool(state != _TIME_ERROR)
