"""Whether this machine's clock is held right."""

from __future__ import annotations

import ctypes
from typing import Final

_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised


def clock_synchronised() -> bool | None:
    """Return whether the kernel holds its clock to be synchronised; None where it does not say."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # struct timex begins with `modes`: all zero only asks. It is 208 bytes on 64-bit Linux.
        state = libc.adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
