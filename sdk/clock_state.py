"""Whether this machine's clock is held right."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Final

from sdk.finding import Finding, Level

EARLIEST_UTC: Final = 1_767_225_600.0
"""2026-01-01: this version did not exist before it, so a clock that says so has been reset."""
SET_CLOCK: Final = "sudo timedatectl set-ntp true, or set it: sudo date -u -s '2026-...'"
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


def judged(now_utc: float, synchronised: bool | None, *, then: str) -> Finding:
    """Return how a clock is by what it says itself, and by what the kernel says of it.

    Args:
        now_utc: What it says, seconds since 1970.
        synchronised: See `clock_synchronised`.
        then: What a wrong one does here, for people: a sentence.
    """
    says = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_utc))
    if now_utc < EARLIEST_UTC:
        return Finding("clock", Level.FAULT, f"the clock says {says} UTC, which cannot be", f"{SET_CLOCK}. {then}")
    if synchronised is False:
        return Finding(
            "clock",
            Level.NOTE,
            f"{says} UTC, not synchronised",
            "sudo timedatectl set-ntp true; without the internet, name the plant's server in "
            "/etc/systemd/timesyncd.conf.",
        )
    known = "synchronised" if synchronised else "the kernel does not say whether it is synchronised"
    return Finding("clock", Level.GOOD, f"{says} UTC, {known}")
