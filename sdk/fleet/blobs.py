"""Where a fleet keeps the chunks of its releases: its own folder, or any place that fsspec has a name for.

By default `DIR/chunks` is all there is (`sdk.chunks.ChunkStore`, synced to disk). A URL in `DIR/chunks.url`, such
as `s3://bucket/fleet`, names another place; `DIR/chunks` is then a copy of what this machine has used, so that
serving devices waits for no network. Rules this module keeps:

- A chunk is named by its digest and checked when it is read, here and at the device: a place may lose or damage
  chunks, never change one unnoticed.
- A chunk is in the place, whole, when `put` returns. A writer that is killed leaves no half under a chunk's name:
  object stores make an object appear at once; elsewhere it is written under another name and moved.
- A release becomes a row of the database only after that (`sdk.fleet.store`): a crash in between costs publishing
  it again and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from sdk.chunks import UNREADABLE, ChunkStore, whole_file
from sdk.durable import write_whole
from sdk.errors import BadSignature, FleetError, StoreCorrupt, StoreFull
from sdk.wire import ReleaseFile

FOLDER_NAME: Final = "chunks"
URL_NAME: Final = "chunks.url"
_AT_ONCE: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"})
"""Places where an object appears whole, or not at all, by themselves."""
_S3: Final = ("s3://", "s3a://")
_S3_ONCE: Final = {"connect_timeout": 5, "read_timeout": 10, "retries": {"total_max_attempts": 1}}
"""A store that is away is told in 0.7 s, not in 22: s3fs tries again by itself, and so does the service."""
_FOREIGN: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("fsspec.exceptions", "FSTimeoutError"),
)
"""What file systems let through of the libraries below them, where these are in use. The rest is an `OSError`."""
_EXAMPLE: Final = "Such as s3://bucket/fleet or file:///srv/fleet; fsspec's documentation has more."
_IF_FULL: Final = "Free some space on that disk, and give the command again."
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Blobs(Protocol):
    """Chunks by their digests; `sdk.chunks.ChunkStore` is one."""

    def __contains__(self, digest: object) -> bool:
        """Return whether a chunk is kept."""

    def put(self, digest: str, chunk: bytes) -> None:
        """Keep a chunk: it is there, whole, when this returns."""

    def get(self, digest: str) -> bytes | None:
        """Return a chunk, checked; None if it is not there or damaged."""

    def is_whole(self, digest: str) -> bool:
        """Return whether a chunk is where chunks are kept, and what it should be. A damaged one is removed."""

    def read(self, file: ReleaseFile) -> bytes:
        """Return a whole file of a release, checked."""

    def sync(self) -> None:
        """Make all that was put durable."""


def name_place(directory: Path, url: str) -> None:
    """Let a fleet keep its chunks at a URL from now on, and copy there what its folder has whole.

    Args:
        directory: The fleet's; made if it is not there.
        url: As fsspec takes it. Credentials belong where its file system looks for them, not into it.

    Raises:
        FleetError: there is no such place, what it needs is not installed, or the fleet names another one.
        StoreCorrupt, StoreFull: it cannot be written.
    """
    file = directory / URL_NAME
    place = place_at(url)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.read_text().strip() != url:
            raise FleetError(
                f"{file} names another place",
                hint=f"Leave --chunks-at out; to move, copy the chunks, then mend {file}.",
            )
        folder = directory / FOLDER_NAME
        for there in sorted(folder.iterdir()) if folder.is_dir() else ():
            if there.is_file() and (chunk := _whole(there)) is not None:
                place.put(there.name, chunk)
        write_whole(file, f"{url}\n".encode())
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint="Name a directory you may write to.") from error


def _whole(file: Path) -> bytes | None:
    """Return a chunk of a folder; None where it is damaged, or the disk cannot read it any more."""
    try:
        chunk = file.read_bytes()
    except OSError as error:
        if error.errno in UNREADABLE:
            return None
        raise
    return chunk if hashlib.sha256(chunk).hexdigest() == file.name else None


def blobs_of(directory: Path, *, looks: bool = False) -> Blobs:
    """Return where a fleet's directory says its chunks are.

    Args:
        directory: The fleet's.
        looks: Only look: nothing is made, copied or removed, whatever is damaged.

    Raises:
        FleetError: it names a place that is not known, or needs what is not installed.
        StoreCorrupt, StoreFull: the folder cannot be written.
    """
    own = ChunkStore(directory / FOLDER_NAME, durable=True, if_full=_IF_FULL, looks=looks)
    url = named_place(directory)
    return own if url is None else CachedChunks(place_at(url, looks=looks), own, looks=looks)


def named_place(directory: Path) -> str | None:
    """Return the URL that a fleet's directory names for its chunks; None where they are in its own folder.

    Raises:
        FleetError: it may not be read.
    """
    file = directory / URL_NAME
    try:
        return file.read_text().strip() if file.is_file() else None
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint="Let this user read it.") from error


def folder_at(url: str) -> Path | None:
    """Return the folder of this machine that a URL names; None for any other place."""
    return Path(url.partition("://")[2]) if url.startswith(("file:///", "local:///")) else None


def place_at(url: str, *, looks: bool = False) -> Blobs:
    """Return the place that a URL names; a folder of this machine is synced as the fleet's own is.

    Args:
        url: It.
        looks: As of `blobs_of`.

    Raises:
        FleetError: there is no such place, or what it needs is not installed.
        StoreCorrupt, StoreFull: it cannot be written.
    """
    folder = folder_at(url)
    if folder is not None:
        return ChunkStore(folder, durable=True, if_full=_IF_FULL, looks=looks)
    return UrlChunks(url, looks=looks)


class UrlChunks:
    """Chunks below a URL that fsspec opens.

    Args:
        url: Such as `s3://bucket/fleet`, `sftp://host/fleet`, `memory://fleet`.
        looks: As of `blobs_of`.

    Raises:
        FleetError: fsspec knows no such place, or what it needs is not installed.
    """

    def __init__(self, url: str, *, looks: bool = False) -> None:
        import fsspec

        self.url = url
        self._looks = looks
        if "://" not in url:
            raise FleetError(f"{url[:80]!r} is no URL", hint=_EXAMPLE)
        try:
            self._files, self._root = fsspec.core.url_to_fs(
                url, **({"config_kwargs": _S3_ONCE} if url.startswith(_S3) else {})
            )
        except (ImportError, ValueError) as error:
            words = " ".join(str(error).split())[:200]
            raise FleetError(f"{url[:80]} cannot be used: {words}", hint=_EXAMPLE) from error
        protocol = self._files.protocol
        self._at_once = bool(_AT_ONCE & {protocol, *(() if isinstance(protocol, str) else protocol)})
        if looks:
            return
        with self._place():
            self._files.makedirs(self._root, exist_ok=True)

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest}"

    def __contains__(self, digest: object) -> bool:
        with self._place():
            return isinstance(digest, str) and bool(self._files.isfile(self._path(digest)))

    def put(self, digest: str, chunk: bytes) -> None:
        """Keep a chunk: it is there, whole, when this returns.

        Raises:
            BadSignature: it is not the chunk of that name.
            StoreFull, StoreCorrupt: the place does not take it.
        """
        if hashlib.sha256(chunk).hexdigest() != digest:
            raise BadSignature(f"these bytes are not chunk {digest[:12]}", hint="Fetch it again.")
        path = self._path(digest)
        with self._place():
            with contextlib.suppress(FileNotFoundError):
                if self._files.info(path)["size"] == len(chunk):
                    return
            if self._at_once:
                self._files.pipe_file(path, chunk)
                return
            draft = f"{self._root}/.{digest}.{os.getpid()}.{threading.get_ident()}"
            try:
                self._files.pipe_file(draft, chunk)
                self._files.mv(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.rm_file(draft)
                raise

    def get(self, digest: str) -> bytes | None:
        """Return a chunk, checked; None if it is not there. A damaged one is removed.

        Raises:
            StoreCorrupt: the place does not answer.
        """
        with self._place():
            try:
                chunk: bytes = self._files.cat_file(self._path(digest))
            except FileNotFoundError:
                return None
            if hashlib.sha256(chunk).hexdigest() != digest:
                if not self._looks:
                    self._files.rm_file(self._path(digest))
                return None
            return chunk

    def is_whole(self, digest: str) -> bool:
        """Return whether a chunk is there and what it should be; as `get`."""
        return self.get(digest) is not None

    def read(self, file: ReleaseFile) -> bytes:
        """Return a whole file of a release, checked; raises as `sdk.chunks.whole_file`."""
        return whole_file(self.get, file)

    def sync(self) -> None:
        """Nothing: what such a place has taken is there."""

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Say what a failing place means."""
        try:
            yield
        except _place_errors() as error:
            words = " ".join(str(error).split())[:200]
            kind = StoreFull if isinstance(error, OSError) and error.errno in _FULL else StoreCorrupt
            raise kind(
                f"{self.url} cannot be used: {words}", hint="Check that place, and who may use it."
            ) from error


def _place_errors() -> tuple[type[Exception], ...]:
    """Return what a file system may raise when its place does not answer."""
    loaded = ((sys.modules.get(module), name) for module, name in _FOREIGN)
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))


class CachedChunks:
    """A place's chunks, with a copy on this disk of those that were used here.

    Args:
        place: Where they are kept.
        near: The copy. It may be deleted at any time.
        looks: As of `blobs_of`.
    """

    def __init__(self, place: Blobs, near: ChunkStore, *, looks: bool = False) -> None:
        self._place = place
        self._near = near
        self._looks = looks

    def __contains__(self, digest: object) -> bool:
        return digest in self._near or digest in self._place

    def put(self, digest: str, chunk: bytes) -> None:
        """Keep a chunk in the place, then here."""
        self._place.put(digest, chunk)
        self._near.put(digest, chunk)

    def get(self, digest: str) -> bytes | None:
        """Return a chunk, checked; None if the place has none, or a damaged one."""
        chunk = None
        with contextlib.suppress(StoreCorrupt):  # of the copy, which is not needed
            chunk = self._near.get(digest)
        if chunk is None:
            chunk = self._place.get(digest)
            if chunk is not None and not self._looks:
                self._near.put(digest, chunk)
        return chunk

    def is_whole(self, digest: str) -> bool:
        """Return whether the place has a chunk as it should be, the copy aside. Damaged ones are removed."""
        self._near.is_whole(digest)
        return self._place.is_whole(digest)

    def read(self, file: ReleaseFile) -> bytes:
        """Return a whole file of a release, checked; raises as `sdk.chunks.whole_file`."""
        return whole_file(self.get, file)

    def sync(self) -> None:
        """Make all that was put durable."""
        self._place.sync()
        self._near.sync()
