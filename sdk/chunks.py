"""Chunks on disk under their digests, and the files of a release put together from them.

No byte is used before its digest was checked, when it arrives and again when files are put together. A target
directory appears whole, by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from sdk.durable import sync_path
from sdk.errors import BadSignature, HeadwayError, StoreCorrupt, StoreFull
from sdk.release import Release
from sdk.wire import ReleaseFile

UNREADABLE: Final = frozenset({errno.EIO, errno.EBADMSG})
"""What a disk says of a place on it that is bad, where it says it at all."""
TRY_AGAIN: Final = "Free some space, then try again."
GOES_ON: Final = "Free some space; the download goes on."


class ChunkStore:
    """Chunks on disk under their digests.

    A chunk is written under another name and renamed, so a killed writer leaves none behind half written. After a
    power cut a chunk may still be torn; `get` finds that out by the digest and forgets it.

    Args:
        folder: Made if it is not there.
        durable: Sync each chunk to disk before its name appears. For the server; a device can ask again.
        if_full: What to do where there is no space for a chunk.
        looks: Only look: the folder is not made, and a damaged chunk stays where it is.
    """

    def __init__(
        self, folder: Path, *, durable: bool = False, if_full: str = TRY_AGAIN, looks: bool = False
    ) -> None:
        self._folder = folder
        self._durable = durable
        self._if_full = if_full
        self._looks = looks
        if looks:
            return
        with disk_errors(folder, if_full):
            folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and (self._folder / digest).is_file()

    def put(self, digest: str, chunk: bytes, *, checked: bool = False) -> None:
        """Keep a chunk.

        Args:
            digest: Its name.
            chunk: Its bytes.
            checked: They were compared with the name just now, and need not be once more.

        Raises:
            BadSignature: it is not the chunk of that name.
            StoreFull: no space.
            StoreCorrupt: the disk refuses otherwise.
        """
        if not checked and hashlib.sha256(chunk).hexdigest() != digest:
            raise BadSignature(f"these bytes are not chunk {digest[:12]}", hint="Fetch it again.")
        if self._stands(digest):
            return
        draft = self._folder / f".{digest}.{os.getpid()}.{threading.get_ident()}"
        try:
            with disk_errors(self._folder, self._if_full):
                with draft.open("wb") as stream:
                    stream.write(chunk)
                    if self._durable:
                        stream.flush()
                        os.fsync(stream.fileno())
                draft.replace(self._folder / digest)
        except HeadwayError:
            draft.unlink(missing_ok=True)  # a full disk must not fill further with halves
            raise

    def _stands(self, digest: str) -> bool:
        try:
            return self.raw(digest) is not None
        except StoreCorrupt as error:
            return not _is_unreadable(error)

    def get(self, digest: str) -> bytes | None:
        """Return a chunk, checked; None if it is not there. A damaged one is removed."""
        chunk = self.raw(digest)
        if chunk is not None and hashlib.sha256(chunk).hexdigest() != digest:
            if not self._looks:
                (self._folder / digest).unlink(missing_ok=True)
            return None
        return chunk

    def is_whole(self, digest: str) -> bool:
        """Return whether a chunk is there and what it should be. A damaged one is removed.

        One that the disk cannot read any more is not whole, and stays until it is put again.

        Raises:
            StoreCorrupt: it may not be read.
        """
        try:
            return self.get(digest) is not None
        except StoreCorrupt as error:
            if _is_unreadable(error):
                return False
            raise

    def raw(self, digest: str) -> bytes | None:
        """Return what stands under a chunk's name, for who checks it by the file that it is part of."""
        file = self._folder / digest
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreCorrupt(f"{file} cannot be read: {error.strerror}", hint="Check the disk.") from error

    def read(self, file: ReleaseFile) -> bytes:
        """Return a whole file of a release, checked.

        Raises:
            StoreCorrupt: a chunk is missing or damaged.
            BadSignature: the file is not what the descriptor says.
        """
        return whole_file(self.get, file)

    def sync(self) -> None:
        """Make the names of what was put durable too."""
        sync_path(self._folder)

    def keep_only(self, digests: Container[str]) -> None:
        """Remove all other chunks, and drafts of writers that are no more. Folders are others' and stay."""
        with disk_errors(self._folder):
            for entry in os.scandir(self._folder):
                if entry.name not in digests and not entry.is_dir(follow_symlinks=False):
                    (self._folder / entry.name).unlink(missing_ok=True)

    def kept_bytes(self, digests: Iterable[str]) -> int:
        """Return how many bytes those of these chunks have that are there."""
        kept = 0
        for digest in set(digests):
            with contextlib.suppress(FileNotFoundError):
                kept += (self._folder / digest).stat().st_size
        return kept

    def free_bytes(self) -> int:
        """Return the space left on this store's disk."""
        return shutil.disk_usage(self._folder).free


def _is_unreadable(error: StoreCorrupt) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in UNREADABLE


def whole_file(get: Callable[[str], bytes | None], file: ReleaseFile) -> bytes:
    """Return a whole file of a release, checked.

    Args:
        get: Returns a chunk, checked; None where there is none.
        file: Which.

    Raises:
        StoreCorrupt: a chunk is missing or damaged.
        BadSignature: the file is not what the descriptor says.
    """
    parts = []
    for digest in file.chunks:
        part = get(digest)
        if part is None:
            raise StoreCorrupt(
                f"chunk {digest[:12]} of {file.name} is missing or damaged",
                hint="Put it back from its bundle: headway fleet doctor --mend-from BUNDLE; or from a backup.",
            )
        parts.append(part)
    whole = b"".join(parts)
    if hashlib.sha256(whole).hexdigest() != file.sha256:
        raise BadSignature(f"{file.name} is not what its descriptor says", hint="Publish the bundle again.")
    return whole


@contextlib.contextmanager
def disk_errors(folder: Path, if_full: str = TRY_AGAIN) -> Iterator[None]:
    """Say what a failing disk means, once for all writers of releases.

    Args:
        folder: What is written to.
        if_full: What to do where there is no space.

    Raises:
        StoreFull: no space.
        StoreCorrupt: the disk refuses otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left for {folder}", hint=if_full) from error
        raise StoreCorrupt(
            f"{folder} cannot be written: {error.strerror}", hint="Check the disk and its permissions."
        ) from error


class Chunks(Protocol):
    """Where chunks come from when files are put together."""

    def get(self, digest: str) -> bytes | None:
        """Return a chunk that has this digest; None if it is not there."""

    def raw(self, digest: str) -> bytes | None:
        """Return what stands under a chunk's name, checked or not; None if nothing does."""


def assemble(release: Release, store: Chunks, target: Path, *, if_full: str = TRY_AGAIN) -> set[str]:
    """Put a release's files together in a directory that appears by one rename, synced to disk.

    Returns the digests of missing or damaged chunks; empty when the target is there. Else nothing is left of it.

    Args:
        release: Which.
        store: Has its chunks.
        target: Where.
        if_full: What to do where there is no space.

    Raises:
        BadSignature: all chunks are right but a file is not: the descriptor is wrong.
        StoreFull, StoreCorrupt: the disk.
    """
    if is_complete(release, target):
        return set()
    draft = target.with_name(f".{target.name}.partial")
    missing: set[str] = set()
    with disk_errors(target.parent, if_full), _gone_at_the_end(draft):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for file in release.descriptor.files:
            whole = hashlib.sha256()
            with (draft / file.name).open("wb") as stream:
                for digest in file.chunks:
                    chunk = store.raw(digest) or b""
                    stream.write(chunk)
                    whole.update(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            if whole.hexdigest() == file.sha256:
                continue
            # The file's digest vouches for all of its chunks; which of them is torn is worth asking only now.
            gone = {digest for digest in file.chunks if store.get(digest) is None}
            if not gone:
                raise BadSignature(
                    f"{file.name} of release {release.descriptor.name!r} is not what its descriptor says",
                    hint="The publisher is at fault: publish the bundle again.",
                )
            missing |= gone
        if missing:
            return missing
        sync_path(draft)
        # A directory that is there and not complete is the wreck of an earlier slot.
        shutil.rmtree(target, ignore_errors=True)
        draft.replace(target)
        sync_path(target.parent)
    return set()


@contextlib.contextmanager
def _gone_at_the_end(draft: Path) -> Iterator[None]:
    """Remove a draft that was not renamed: on a full disk it has the room of what is written next."""
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_complete(release: Release, target: Path) -> bool:
    """Return whether a directory holds exactly a release's files; all of them are read."""
    files = {file.name: file for file in release.descriptor.files}
    if not target.is_dir() or {entry.name for entry in os.scandir(target)} != set(files):
        return False
    for name, file in files.items():
        path = target / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != file.sha256:
            return False
    return True
