"""Room on the disk: labels find it longest.

Samples are refused while less than a reserve is free. A label that finds no room has the ballast given up for it,
which is made again when there is room for it beside the reserve.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from device_agent.ballast import Ballast
from device_agent.database import Database
from device_agent.limits import StoreLimits
from sdk.errors import StoreFull

T = TypeVar("T")

_log = logging.getLogger(__name__)

BALLAST_NAME: Final = "ballast"
LOOK_S: Final = 0.5
"""A disk that was found free enough is looked at again after this long: nobody would notice sooner that other
programs have filled it, and two system calls for each frame were a tenth of what storing one took."""
LOOK_SHARE: Final = 1 / 64
"""And before this share of the reserve has been written since, so that labels find all the rest, however fast
frames come."""
ROW_BYTES: Final = 64 * 1024
"""What a sample's row takes of SQLite's log, besides its picture: a dozen pages."""


class Room:
    """The room that a store has. Any thread may call.

    Args:
        folder: The agent's data folder.
        db: The store's.
        limits: How much is kept free, and how large the ballast is.
        clock: Monotonic seconds.
    """

    def __init__(
        self, folder: Path, db: Database, limits: StoreLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._db = db
        self._clock = clock
        self._reserve_bytes = limits.reserve_bytes
        self._ballast = Ballast(folder / BALLAST_NAME, limits.ballast_bytes)
        self._unlooked_s = float("-inf")  # until then, and for so many bytes, the disk need not be looked at
        self._unlooked_bytes = 0.0

    @property
    def ballast_given_up(self) -> bool:
        """Whether the disk was full, and is not free enough yet to make the ballast again."""
        return self._ballast.given_up

    def make_ballast(self) -> None:
        """Make the ballast where it is missing and there is room for it."""
        self._ballast.fill(self._reserve_bytes)

    def check_reserve(self, size_bytes: int) -> None:
        """Refuse where the reserve is all that is free; make the ballast again where there is more.

        The disk is asked now and then, see `LOOK_S` and `LOOK_SHARE`; but each time while it is too full, so that
        samples are kept again as soon as there is room.

        Args:
            size_bytes: Of the picture that is about to be written, with its row.

        Raises:
            StoreFull: less than the reserve is free.
            OSError: the disk does not say.
        """
        with self._db.lock:
            now_s = self._clock()
            self._unlooked_bytes -= size_bytes + ROW_BYTES
            if now_s < self._unlooked_s and self._unlooked_bytes >= 0:
                return
            free = shutil.disk_usage(self._folder).free
            if free < self._reserve_bytes:
                raise StoreFull(
                    f"less than {self._reserve_bytes // 1024**2} MiB are free in {self._folder}",
                    hint="Free space; until then samples are not kept, decisions and labels go on.",
                )
            self._ballast.fill(self._reserve_bytes, free)
            self._unlooked_s, self._unlooked_bytes = now_s + LOOK_S, self._reserve_bytes * LOOK_SHARE

    def found_for(self, write: Callable[[], T]) -> T:
        """Write; where the disk is full, give the ballast up for it and write again."""
        # One at a time: a second write would find no ballast, where the first has just made room by it.
        with self._db.lock:
            try:
                written = write()
            except StoreFull:
                if not self._ballast.give_up():
                    raise
                self._unlooked_s = float("-inf")
                _log.error("the disk is full: the ballast was given up for labels; free space soon")
                self._db.shrink()
                written = write()
            if self._ballast.given_up:
                # SQLite's log takes ten times a label's size until it is written back, which needs room too.
                self._db.shrink()
            return written
