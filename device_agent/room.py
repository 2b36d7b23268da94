"""Room on the disk: labels find it longest.

Samples are refused while less than a reserve is free. A label that finds no room has the ballast given up for it,
which is made again when there is room for it beside the reserve.
"""

from __future__ import annotations

import logging
import shutil
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


class Room:
    """The room that a store has. Any thread may call.

    Args:
        folder: The agent's data folder.
        db: The store's.
        limits: How much is kept free, and how large the ballast is.
    """

    def __init__(self, folder: Path, db: Database, limits: StoreLimits) -> None:
        self._folder = folder
        self._db = db
        self._reserve_bytes = limits.reserve_bytes
        self._ballast = Ballast(folder / BALLAST_NAME, limits.ballast_bytes)

    @property
    def ballast_given_up(self) -> bool:
        """Whether the disk was full, and is not free enough yet to make the ballast again."""
        return self._ballast.given_up

    def make_ballast(self) -> None:
        """Make the ballast where it is missing and there is room for it."""
        self._ballast.fill(self._reserve_bytes)

    def check_reserve(self) -> None:
        """Refuse where the reserve is all that is free; make the ballast again where there is more.

        Raises:
            StoreFull: less than the reserve is free.
            OSError: the disk does not say.
        """
        with self._db.lock:
            free = shutil.disk_usage(self._folder).free
            if free < self._reserve_bytes:
                raise StoreFull(
                    f"less than {self._reserve_bytes // 1024**2} MiB are free in {self._folder}",
                    hint="Free space; until then samples are not kept, decisions and labels go on.",
                )
            self._ballast.fill(self._reserve_bytes, free)

    def found_for(self, write: Callable[[], T]) -> T:
        """Write; where the disk is full, give the ballast up for it and write again."""
        # One at a time: a second write would find no ballast, where the first has just made room by it.
        with self._db.lock:
            try:
                written = write()
            except StoreFull:
                if not self._ballast.give_up():
                    raise
                _log.error("the disk is full: the ballast was given up for labels; free space soon")
                self._db.shrink()
                written = write()
            if self._ballast.given_up:
                # SQLite's log takes ten times a label's size until it is written back, which needs room too.
                self._db.shrink()
            return written
