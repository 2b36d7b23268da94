"""What a shift has brought: counters in quarters of an hour, kept over a restart.

They are for people, not for the books: they are written every few seconds and at a stop, and a crash loses what
came since.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from fastapi.concurrency import run_in_threadpool

from device_agent.camera import Shot
from device_agent.database import Database
from device_agent.page.book import setting
from device_agent.station import Seen
from sdk.errors import StoreCorrupt, StoreFull

SLOT_S: Final = 900
FLUSH_S: Final = 5.0
"""Between two writes."""
KEEP_S: Final = 60 * 24 * 3600
SHIFTS: Final = "06:00 14:00 22:00"
"""When shifts begin, until somebody says otherwise."""


@dataclass(frozen=True)
class ShiftReport:
    """Counts since the shift began. `rejects` is None where no class is known to be good."""

    began_utc: float
    frames: int
    parts: int
    rejects: int | None
    unknown: int
    labels: int


def local(at_utc: float) -> datetime:
    """Return a time by the device's own clock and zone, as people on the line tell it."""
    return datetime.fromtimestamp(at_utc, timezone.utc).astimezone()


class ShiftCounter:
    """Counts frames as a station sees them. Any thread may call.

    Args:
        book: The page's file.
        clock: Seconds since 1970; shifts are told by the device's local time.
    """

    def __init__(self, book: Database, clock: Callable[[], float] = time.time) -> None:
        self._book = book
        self._clock = clock
        self._lock = threading.Lock()
        self._new: Counter[tuple[int, str]] = Counter()
        self._last_group = ""
        self._judged = False

    def see(self, shot: Shot, seen: Seen) -> None:
        """Count one frame."""
        decision = seen.decision
        with self._lock:
            what = ["frames"]
            if shot.group != self._last_group:
                self._last_group = shot.group
                what.append("parts")
                # A part counts by its first frame here; what goes out is the line's outputs' business.
                what += ["rejects"] * bool(decision.rejected) + ["unknown"] * decision.unknown
            self._judged = decision.rejected is not None
            self._count(what)

    def unseen(self) -> None:
        """Count a part of which no frame could be inspected."""
        with self._lock:
            self._count(["unseen"])

    def labelled(self, count: int) -> None:
        """Count labels."""
        with self._lock:
            self._count(["labels"] * count)

    def _count(self, what: list[str]) -> None:
        slot = int(self._clock() // SLOT_S)
        self._new.update((slot, each) for each in what)

    async def write_on(self) -> None:
        """Write what is new every `FLUSH_S`, until cancelled; who cancels it calls `flush` for the rest."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await run_in_threadpool(self.flush)

    def flush(self) -> None:
        """Write what is new; where that cannot be, it is tried again next time."""
        with self._lock:
            if not self._new:
                return
            new, self._new = self._new, Counter()
        try:
            with self._book.transaction(durable=False) as db:
                db.executemany(
                    "INSERT INTO counts VALUES (?, ?, ?)"
                    " ON CONFLICT (slot, what) DO UPDATE SET count = count + excluded.count",
                    [(slot, what, count) for (slot, what), count in new.items()],
                )
                db.execute("DELETE FROM counts WHERE slot < ?", (int((self._clock() - KEEP_S) // SLOT_S),))
        except (StoreFull, StoreCorrupt):
            with self._lock:
                self._new.update(new)

    def shift_began(self) -> float:
        """Return when this shift began, seconds since 1970."""
        # Without the zone's offset of now: last night's may be another.
        now = local(self._clock()).replace(tzinfo=None)
        times = (setting(self._book, "shifts") or SHIFTS).split()
        begins = [
            day.replace(hour=int(t[:2]), minute=int(t[3:5]), second=0, microsecond=0)
            for day in (now, now - timedelta(days=1))
            for t in times
        ]
        return max(begin for begin in begins if begin <= now).timestamp()

    def report(self) -> ShiftReport:
        """Return what this shift has brought."""
        began = self.shift_began()
        first = int(began // SLOT_S)
        with self._lock:
            found: Counter[str] = Counter()
            for (slot, what), count in self._new.items():
                if slot >= first:
                    found[what] += count
        for what, count in self._book.rows(
            "SELECT what, sum(count) FROM counts WHERE slot >= ? GROUP BY what", first
        ):
            found[what] += count
        rejects = found["rejects"] + found["unseen"] if self._judged or found["rejects"] else None
        parts = found["parts"] + found["unseen"]
        return ShiftReport(began, found["frames"], parts, rejects, found["unknown"], found["labels"])
