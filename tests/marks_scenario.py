"""A device that keeps what heads said of its master parts, three times; `test_master_marks` cuts its power."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from device_agent.limits import StoreLimits
from device_agent.master_marks import MasterMarks
from device_agent.masters import Mark
from device_agent.store import Store

LIMITS = StoreLimits(reserve_bytes=0)
SPACE = "ab" * 32
PARTS = [hashlib.sha256(bytes([number])).digest() for number in range(200)]


def marks(turn: int) -> dict[bytes, Mark]:
    """Return what is kept at each turn; nothing before the first."""
    return {part: Mark(row % 5 >= turn, row % 7 < turn) for row, part in enumerate(PARTS)} if turn else {}


def main(folder: Path) -> None:
    """Keep marks."""
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        for turn in (1, 2, 3):
            MasterMarks(store, SPACE).keep(marks(turn))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
