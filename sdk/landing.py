"""The files of a release while their chunks come: each chunk is written at its place in its file.

So what came is on disk once, a download needs the release's own size and no more, and nothing is copied when the
last chunk is there. Rules this module keeps:

- Only chunks whose digest was checked are written. After an interruption nothing is believed: what stands at each
  place is read and compared with its digest, and a hole or a torn block is a chunk that did not come yet.
- A file's own digest is checked too, over the same bytes in their order, before anybody sees the file.
- The target appears whole, by one rename, after everything was synced.

The chunks of a file have one size, but for the last, which may be smaller (docs/protocol.md, section 5). The
descriptor does not say which size; the first chunk that comes does, and an empty file's name keeps it:

    chunks/<release id>.landing/backbone.onnx@114688
    chunks/<release id>.landing/files/backbone.onnx
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Final

from sdk.chunks import GOES_ON, disk_errors
from sdk.durable import sync_path
from sdk.errors import BadFormat, BadSignature
from sdk.release import Release
from sdk.wire import ReleaseFile

SUFFIX: Final = ".landing"
"""Ends the name of a folder of unfinished files; before it is the release id."""
FILES: Final = "files"


class Landing:
    """A release's unfinished files. Not for two at once.

    Args:
        release: What is to come.
        folder: Where the folder of unfinished files is made; on the same disk as the targets.

    Raises:
        StoreFull, StoreCorrupt: the disk.
    """

    def __init__(self, release: Release, folder: Path) -> None:
        self._name = release.descriptor.name
        self._folder = folder / f"{release.ref.release_id}{SUFFIX}"
        with disk_errors(self._folder, GOES_ON):
            (self._folder / FILES).mkdir(parents=True, exist_ok=True)
        self._files = [_Unfinished(self._folder, file) for file in release.descriptor.files]
        self._places: dict[str, list[tuple[_Unfinished, int]]] = {}
        for file in self._files:
            for index, digest in enumerate(file.spec.chunks):
                self._places.setdefault(digest, []).append((file, index))

    def resume(self) -> set[str]:
        """Return the chunks that are on disk from an earlier attempt; everything there is read and checked.

        Raises:
            StoreFull, StoreCorrupt: the disk.
        """
        with disk_errors(self._folder, GOES_ON):
            for file in self._files:
                file.find()
            return {
                digest
                for digest, places in self._places.items()
                if all(index in file.there for file, index in places)
            }

    def put(self, digest: str, chunk: bytes) -> None:
        """Write a chunk at every place where the release has it.

        Args:
            digest: Of a chunk of this release.
            chunk: Its bytes, checked.

        Raises:
            BadFormat: the file is not cut into chunks of one size.
            StoreFull, StoreCorrupt: the disk.
        """
        with disk_errors(self._folder, GOES_ON):
            for file, index in self._places[digest]:
                file.put(index, chunk)

    def finish(self, target: Path) -> None:
        """Make the target appear; every chunk must be there.

        Raises:
            BadSignature: a file is not what the descriptor says though its chunks are: the descriptor is wrong.
            StoreFull, StoreCorrupt: the disk.
        """
        with disk_errors(target.parent, GOES_ON):
            for file in self._files:
                if not file.finish():
                    self.discard()
                    raise BadSignature(
                        f"{file.spec.name} of release {self._name!r} is not what its descriptor says",
                        hint="The publisher is at fault: publish the bundle again.",
                    )
            sync_path(self._folder / FILES)
            sync_path(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            # A directory that is there and not complete is the wreck of an earlier slot.
            shutil.rmtree(target, ignore_errors=True)
            (self._folder / FILES).replace(target)
            sync_path(target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove what came."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Leave the files as they are, to go on with later."""
        for file in self._files:
            file.close()


class _Unfinished:
    """One file.

    Attributes:
        spec: What it shall be.
        there: Indices of the chunks that are on disk.
    """

    def __init__(self, folder: Path, spec: ReleaseFile) -> None:
        self.spec = spec
        self.there: set[int] = set()
        self._folder = folder
        self._chunk_bytes: int | None = None
        self._handle: int | None = None
        self._whole = hashlib.sha256()
        self._hashed = 0  # so many chunks from the first are in `_whole`

    def find(self) -> None:
        """Take what an earlier attempt left, as far as its digests are right."""
        for note in self._folder.glob(f"{self.spec.name}@*"):
            number = note.name.rpartition("@")[2]
            if not self.there and number.isascii() and number.isdigit() and self._is_cut_into(int(number)):
                self._open(int(number))
                self._check_all()
            if not self.there:  # a size of other chunks than came, or none that came whole
                self.close()
                self._chunk_bytes = None
                note.unlink()

    def _check_all(self) -> None:
        for index, digest in enumerate(self.spec.chunks):
            chunk = self._read(index)
            if hashlib.sha256(chunk).hexdigest() == digest:
                self.there.add(index)
                self._hash(index, chunk)

    def put(self, index: int, chunk: bytes) -> None:
        if index in self.there:
            return
        chunk_bytes = self._chunk_bytes or self._size_told_by(index, len(chunk))
        if chunk_bytes is None or len(chunk) != self._size_of(index, chunk_bytes):
            raise BadFormat(
                f"{self.spec.name} is not cut into chunks of one size",
                hint="The publisher is at fault: publish the bundle again.",
            )
        handle = self._open(chunk_bytes)
        written, view = 0, memoryview(chunk)
        while written < len(chunk):
            written += os.pwrite(handle, view[written:], index * chunk_bytes + written)
        self.there.add(index)
        self._hash(index, chunk)

    def finish(self) -> bool:
        """Sync it; return whether it is what it should be."""
        if self._whole.hexdigest() != self.spec.sha256:
            return False
        handle = self._open(self._chunk_bytes or 0)
        os.ftruncate(handle, self.spec.size_bytes)
        os.fsync(handle)
        self.close()
        return True

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _open(self, chunk_bytes: int) -> int:
        if self._handle is None:
            self._chunk_bytes = chunk_bytes
            (self._folder / f"{self.spec.name}@{chunk_bytes}").touch()
            path = self._folder / FILES / self.spec.name
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._handle

    def _read(self, index: int) -> bytes:
        """Return what stands at a chunk's place; less, or nothing, where the file ends before."""
        assert self._handle is not None
        assert self._chunk_bytes is not None
        return os.pread(self._handle, self._size_of(index, self._chunk_bytes), index * self._chunk_bytes)

    def _hash(self, index: int, chunk: bytes) -> None:
        """Take a chunk into the file's digest, and those after it that came before it."""
        if index != self._hashed:
            return
        self._whole.update(chunk)
        self._hashed += 1
        while self._hashed in self.there:
            self._whole.update(self._read(self._hashed))
            self._hashed += 1

    def _is_cut_into(self, chunk_bytes: int) -> bool:
        """Return whether its size is so many chunks of this size, the last at most as large."""
        size, n = self.spec.size_bytes, len(self.spec.chunks)
        return (n - 1) * chunk_bytes < size <= n * chunk_bytes

    def _size_of(self, index: int, chunk_bytes: int) -> int:
        return min(chunk_bytes, self.spec.size_bytes - index * chunk_bytes)

    def _size_told_by(self, index: int, size: int) -> int | None:
        """Return the size of its chunks, where one of them has this size; None where none can be."""
        n = len(self.spec.chunks)
        if index == n - 1 > 0:
            size, rest = divmod(self.spec.size_bytes - size, n - 1)
            if rest:
                return None
        return size if self._is_cut_into(size) else None


def remove_landings(folder: Path, keep: Container[str]) -> None:
    """Remove the unfinished files of other releases than these.

    Raises:
        StoreFull, StoreCorrupt: the disk.
    """
    with disk_errors(folder, GOES_ON):
        for path in folder.glob(f"*{SUFFIX}"):
            if path.name.removesuffix(SUFFIX) not in keep:
                shutil.rmtree(path)
