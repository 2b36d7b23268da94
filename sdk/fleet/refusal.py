"""Since when, and why, the fleet's database takes nothing, for whoever looks: on a full disk all else looks well.

The one service notes it in a file that is as long before as after: a disk without room takes no other. It tells of
the service that runs, and nothing where none does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from sdk.damaged import DAMAGED
from sdk.errors import DatabaseAway

REFUSAL_NAME: Final = "refusal.json"
_BYTES: Final = 4096
"""A block of a disk: written where it is, all at once."""
_MAX_WORDS: Final = 1000

log = logging.getLogger(__name__)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing could be stored since a time, why, and what to do about it."""

    since_utc: float
    error: str
    hint: str


class Refusals:
    """Notes what the database does not take, and that it takes something again.

    Args:
        directory: The fleet's.
        clock: Seconds since 1970.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = directory / REFUSAL_NAME
        self._clock = clock
        self._found: Refusal | None = None
        self.noting = False
        """Whether this is the one service."""

    @property
    def failing(self) -> bool:
        """Whether the last that was to be stored was not."""
        return self._found is not None

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Note it for others too, for the block."""
        self.noting = True
        self._note()
        try:
            yield
        finally:
            self._found = None
            self._note()
            self.noting = False

    def failed(self, error: DatabaseAway) -> None:
        """Note that the database has not taken what it should."""
        words = Refusal(
            since_utc=self._clock() if self._found is None else self._found.since_utc,
            error=str(error)[:_MAX_WORDS],
            hint=error.hint[:_MAX_WORDS],
        )
        if words != self._found:
            self._found = words
            self._note()

    def stored(self) -> None:
        """Note that it has taken something. Cost: nothing where nothing was wrong."""
        if self._found is not None:
            self._found = None
            self._note()

    def _note(self) -> None:
        if not self.noting:
            return
        content = b"" if self._found is None else msgspec.json.encode(self._found)
        try:
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(handle, content.ljust(_BYTES), 0)
            finally:
                os.close(handle)
        except OSError as error:  # page and metrics are the service's own, and say it all the same
            log.debug("%s: %s", self._file, error.strerror)

    def now(self) -> Refusal | None:
        """Return what the service that runs notes, or one that was killed has left."""
        if self.noting:
            return self._found
        try:
            content = self._file.read_bytes().strip()
            return msgspec.json.decode(content, type=Refusal) if content else None
        except (OSError, *DAMAGED):
            return None
