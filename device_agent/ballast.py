"""A file that takes room on the disk, to be given up for labels when other programs have taken all the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


class Ballast:
    """The ballast file. Errors of the disk mean that there is none; they are never raised.

    Args:
        path: The file.
        size_bytes: Its size; 0 for none at all.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    @property
    def given_up(self) -> bool:
        """Whether it should be there and is not."""
        return bool(self._size_bytes) and not self._path.exists()

    def fill(self, spare_bytes: int, free_bytes: int | None = None) -> None:
        """Make the file where it is missing and the disk has room for it and `spare_bytes` beside it."""
        if not self.given_up:
            return
        draft = self._path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._path.parent).free if free_bytes is None else free_bytes
            if free < self._size_bytes + spare_bytes:
                return
            try:
                with draft.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, self._size_bytes)
                draft.rename(self._path)
            finally:
                draft.unlink(missing_ok=True)

    def give_up(self) -> bool:
        """Delete the file if the disk is full; return whether that made room."""
        with contextlib.suppress(OSError):
            if self._path.exists() and shutil.disk_usage(self._path.parent).free < self._size_bytes:
                self._path.unlink()
                return True
        return False
