"""A shift begins when the clock on the wall says so, in the nights too in which that clock is moved."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime

import pytest

BEGAN = """
import sys
from pathlib import Path
from device_agent.page.book import open_book
from device_agent.page.counts import ShiftCounter
book = open_book(Path(sys.argv[1]))
print(ShiftCounter(book, lambda: float(sys.argv[2])).shift_began())
book.close()
"""


@pytest.mark.parametrize(
    ("now", "began"),
    [
        ("2026-03-29T03:30+02:00", "2026-03-28T22:00+01:00"),  # 02:00 became 03:00
        ("2026-10-25T04:00+01:00", "2026-10-24T22:00+02:00"),  # 03:00 became 02:00
        ("2026-10-25T02:30+01:00", "2026-10-24T22:00+02:00"),  # half past two, for the second time
        ("2026-03-29T13:59+02:00", "2026-03-29T06:00+02:00"),
    ],
)
def test_a_shift_begins_by_the_clock_on_the_wall(tmp_path: object, now: str, began: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", BEGAN, str(tmp_path), str(datetime.fromisoformat(now).timestamp())],
        env={**os.environ, "TZ": "Europe/Berlin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(told.stdout) == datetime.fromisoformat(began).timestamp()
