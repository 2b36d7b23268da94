"""What a shift has brought: counters in quarters of an hour, kept over a restart.

They are for people, not for the books: they are written every few seconds, with each label, and at a stop. Parts
that a kill has kept from being written are counted from the history at the next start (`begin`); frames that were
under way then may be counted twice or not at all.

A clock may be wrong, and set right later. What it counted while it was ahead is of no shift until its time comes;
once the machine holds its clock to be right, that is dropped. So many quarters are kept, whatever their dates.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from fastapi.concurrency import run_in_threadpool

from device_agent.database import Database
from device_agent.history import PartRow
from device_agent.page.book import setting
from device_agent.parts import Part
from sdk.clock_state import clock_synchronised
from sdk.errors import StoreCorrupt, StoreFull
from sdk.wire import Verdict

SLOT_S: Final = 900
FLUSH_S: Final = 5.0
"""Between two writes."""
KEEP_SLOTS: Final = 60 * 24 * 3600 // SLOT_S
"""Quarters of an hour in which something was counted: at least two months."""
_COUNTED: Final = "counted"
"""Setting: the run that counted last, and the number of its last verdict that is counted here."""
SHIFTS: Final = "06:00 14:00 22:00"
"""When shifts begin, until somebody says otherwise."""


@dataclass(frozen=True)
class ShiftReport:
    """Counts since the shift began.

    Attributes:
        began_utc: When that was.
        frames: Inspected, each once however many tiles it is cut into.
        parts: Verdicts, as the outputs were given them.
        rejects: Of those, rejections, for whatever reason.
        unknown: Of those, parts whose worst tile was unknown.
        labels: That people gave.
    """

    began_utc: float
    frames: int
    parts: int
    rejects: int
    unknown: int
    labels: int


def _of_part(rejected: bool, unknown: bool) -> list[str]:
    return ["parts"] + ["rejects"] * rejected + ["unknown"] * unknown


def local(at_utc: float) -> datetime:
    """Return a time by the device's own clock and zone, as people on the line tell it."""
    return datetime.fromtimestamp(at_utc, timezone.utc).astimezone()


class ShiftCounter:
    """Counts frames and the verdicts of parts. Any thread may call.

    Args:
        book: The page's file.
        clock: Seconds since 1970; shifts are told by the device's local time.
        is_right: Whether the machine holds that clock to be right; None where it does not say.
    """

    def __init__(
        self,
        book: Database,
        clock: Callable[[], float] = time.time,
        *,
        is_right: Callable[[], bool | None] = clock_synchronised,
    ) -> None:
        self._book = book
        self._clock = clock
        self._is_right = is_right
        self._tidied = -1  # in this quarter
        self._written = ""
        self._run, self._number = "", 0  # the run under way, and the last of its verdicts that was counted
        self._lock = threading.Lock()
        self._new: Counter[tuple[int, str]] = Counter()

    def begin(self, run: str, behind: Callable[[str, int], Iterable[PartRow]]) -> None:
        """Count what an earlier run decided and a kill kept from being written; call it once, before all parts.

        Args:
            run: Names the run under way.
            behind: Returns the verdicts of a run that are behind a number, where it was the last run.
        """
        stored = setting(self._book, _COUNTED)
        last, _, number = (stored or "").rpartition(" ")
        with self._lock:
            for row in behind(last, int(number)) if last else ():
                unknown = row.unknown and bool(row.sample)
                slot = int((row.captured_utc + row.latency_ms / 1000) // SLOT_S)
                self._new.update({(slot, "frames"): row.frames})
                self._new.update((slot, each) for each in _of_part(row.verdict == Verdict.REJECT.value, unknown))
            self._run = run
        self.flush()

    def frame(self) -> None:
        """Count a frame that was inspected."""
        with self._lock:
            self._count(["frames"])

    def part(self, part: Part) -> None:
        """Count a part by its verdict: late and refused ones are rejects too."""
        unknown = part.finding is not None and part.finding.decision.unknown
        with self._lock:
            self._count(_of_part(part.verdict is Verdict.REJECT, unknown))
            self._number = max(self._number, part.number)

    def labelled(self, count: int) -> None:
        """Count labels, and write them: no history has them."""
        with self._lock:
            self._count(["labels"] * count)
        self.flush()

    def _count(self, what: list[str]) -> None:
        slot = self._slot()
        self._new.update((slot, each) for each in what)

    def _slot(self) -> int:
        return int(self._clock() // SLOT_S)

    async def write_on(self) -> None:
        """Write what is new every `FLUSH_S`, until cancelled; who cancels it calls `flush` for the rest."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await run_in_threadpool(self.flush)

    def flush(self) -> None:
        """Write what is new; where that cannot be, it is tried again next time."""
        with self._lock:
            counted = f"{self._run} {self._number}"
            if not self._new and (not self._run or counted == self._written):
                return
            new, self._new = self._new, Counter()
        try:
            with self._book.transaction(durable=False) as db:
                db.executemany(
                    "INSERT INTO counts VALUES (?, ?, ?)"
                    " ON CONFLICT (slot, what) DO UPDATE SET count = count + excluded.count",
                    [(slot, what, count) for (slot, what), count in new.items()],
                )
                if self._run:
                    db.execute("REPLACE INTO settings VALUES (?, ?)", (_COUNTED, counted))
                self._tidy(db)
            self._written = counted
        except (StoreFull, StoreCorrupt):
            with self._lock:
                self._new.update(new)

    def _tidy(self, db: sqlite3.Connection) -> None:
        """Take out, once in a quarter, what is too much, and what a clock that was ahead has counted."""
        slot = self._slot()
        if slot == self._tidied:
            return
        db.execute(
            "DELETE FROM counts WHERE slot IN"
            " (SELECT DISTINCT slot FROM counts ORDER BY slot DESC LIMIT -1 OFFSET ?)",
            (KEEP_SLOTS,),
        )
        if self._is_right():
            db.execute(
                "DELETE FROM counts WHERE slot > ?", (slot + 1,)
            )  # clocks are set back a little all the time
        self._tidied = slot

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
        first, last = int(began // SLOT_S), self._slot()
        with self._lock:
            found: Counter[str] = Counter()
            for (slot, what), count in self._new.items():
                if first <= slot <= last:
                    found[what] += count
        for what, count in self._book.rows(
            "SELECT what, sum(count) FROM counts WHERE slot BETWEEN ? AND ? GROUP BY what", first, last
        ):
            found[what] += count
        # Earlier agents counted parts of which no frame could be inspected apart: a shift may have begun with one.
        parts, rejects = found["parts"] + found["unseen"], found["rejects"] + found["unseen"]
        return ShiftReport(began, found["frames"], parts, rejects, found["unknown"], found["labels"])
