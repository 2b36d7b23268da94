"""Pictures on the device's disk, one file per sample, named by its digest.

A picture is written when its sample is seen, and made durable (`sync`) when the sample is labelled or somebody
looks at it to do so: syncing each frame would wear flash storage out for pictures nobody will ever look at. What
a power cut leaves half written is told apart by its digest and counts as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from sdk.durable import sync_path

_MAX_KNOWN: Final = 10_000
"""Pictures remembered as durable, under a megabyte; beyond it all are forgotten, and synced once more."""


class ImageFolder:
    """Pictures under `folder/ab/<sha256>`. Errors are OSError: the store translates them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = os.fspath(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._writes = 0
        self._durable: set[bytes] = set()  # pictures that this process has synced

    @contextlib.contextmanager
    def coming(self, sample_id: bytes, image: bytes | None) -> Iterator[None]:
        """Write a picture that is there, by one rename, when the block ends; not where it raises, nor durable yet.

        Does nothing for None, and where it is there already.
        """
        # Paths as text, and files without a buffer: pathlib and io take longer than the system does.
        path = self._name(sample_id)
        if image is None or _is_of_size(path, len(image)):
            yield
            return
        draft = f"{path}.partial"
        try:
            _write(draft, image)
            yield
            os.rename(draft, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)  # a full disk needs the room
            raise
        with self._lock:
            self._writes += 1
            self._durable.discard(sample_id)

    def put(self, sample_id: bytes, image: bytes) -> None:
        """Write a picture; not yet durable. Does nothing where it is there already."""
        with self.coming(sample_id, image):
            pass

    def get(self, sample_id: bytes) -> bytes | None:
        """Return the picture; None where it is not there, or not what its name says."""
        try:
            image = self._path(sample_id).read_bytes()
        except FileNotFoundError:
            return None
        return image if hashlib.sha256(image).digest() == sample_id else None

    def size_bytes(self, sample_id: bytes) -> int:
        """Return a picture's size on disk; 0 where it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return self._path(sample_id).stat().st_size
        return 0

    def sync(self, sample_id: bytes) -> None:
        """Make a picture durable: file, folder, and folder of folders. Does nothing where it is not there, or is
        durable already: three syncs are most of what a label would wait for."""
        path = self._path(sample_id)
        with self._lock:
            writes, durable = self._writes, sample_id in self._durable
        if durable:
            return
        try:
            sync_path(path)
        except FileNotFoundError:
            return  # not asked before: it may be dropped at any moment
        for each in (path.parent, self.folder):
            sync_path(each)
        with self._lock:
            if self._writes == writes:  # else it may have been written again since we opened it
                if len(self._durable) >= _MAX_KNOWN:
                    self._durable.clear()
                self._durable.add(sample_id)

    def is_durable(self, sample_id: bytes) -> bool:
        """Return whether this process has made the picture durable; false for one that it only found."""
        with self._lock:
            return sample_id in self._durable

    def drop(self, sample_ids: Iterable[bytes]) -> None:
        """Delete pictures."""
        for sample_id in sample_ids:
            with self._lock:
                self._durable.discard(sample_id)
            self._path(sample_id).unlink(missing_ok=True)

    def erase(self, sample_id: bytes) -> bool:
        """Delete a picture so that a power cut does not bring it back; return whether there was one."""
        there = os.path.lexists(self._name(sample_id))
        self.drop([sample_id])
        with contextlib.suppress(FileNotFoundError):
            sync_path(self._path(sample_id).parent)
        return there

    def sweep(self) -> None:
        """Delete half-written pictures, left by a crash."""
        for path in self.folder.glob("??/*.partial"):
            path.unlink(missing_ok=True)

    def _path(self, sample_id: bytes) -> Path:
        return Path(self._name(sample_id))

    def _name(self, sample_id: bytes) -> str:
        name = sample_id.hex()
        return f"{self._root}/{name[:2]}/{name}"


def _is_of_size(file: str, size_bytes: int) -> bool:
    """Return whether a file is there and no less and no more."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(file).st_size == size_bytes
    return False


def _write(file: str, data: bytes) -> None:
    """Write a file anew, its folder with it where that is missing."""
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        opened = os.open(file, how, 0o666)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(file))
        opened = os.open(file, how, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(opened, left) :]
    finally:
        os.close(opened)
