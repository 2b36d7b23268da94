"""A release on a medium that is carried: written on a server, read on a device. Plain files, no archive.

    FOLDER/headway.json     which release, for which channel (`StickIndex`)
    FOLDER/trust.json       the fleet's signed metadata, the message of `<p>/trust`; missing where it has no keys
    FOLDER/chunks/<sha256>  the release's chunks, as on the broker (docs/protocol.md, section 5)

Rules this module keeps:

- Nothing that is read here is believed: names are built from digests and three constants, links and whatever is no
  plain file are refused, sizes are bounded before a byte is read, every chunk is checked against its name.
- `headway.json` is written last and old chunks are removed after it: pulled out at any moment, the stick holds the
  release before, the new one, or says that it holds none.
- Who signed what is not judged here. A device judges it as it judges what the broker brings (docs/trust.md).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sdk.bundle import Bundle
from sdk.chunks import ChunkStore
from sdk.durable import sync_path, write_whole
from sdk.errors import BadFormat, BadSignature, RemoteWireError, StoreCorrupt, StoreFull, Unreadable
from sdk.release import Release, describe
from sdk.structs import prepare
from sdk.wire import (
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    ChannelName,
    ReleaseRef,
    Version,
    decode_json,
    encode_json,
)

INDEX_NAME: Final = "headway.json"
TRUST_NAME: Final = "trust.json"
CHUNKS_NAME: Final = "chunks"
_PLUG_IN: Final = "Plug it in again; if that does not help, pack it anew."
_PACK: Final = "Pack it anew with `headway bundle pack`; somebody may have changed it."


class StickIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a stick says that it brings. It vouches for nothing, as an assignment does not."""

    v: Version = WIRE_VERSION
    channel: ChannelName
    release: ReleaseRef


prepare(StickIndex)


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        ref: The release.
        new_bytes: Of chunks that were not there before.
    """

    ref: ReleaseRef
    new_bytes: int


def pack(bundle: Bundle, folder: Path, *, channel: str, trust: bytes | None) -> Packed:
    """Write a bundle's release into a folder, in place of the one that is there.

    Args:
        bundle: A verified bundle.
        folder: On the stick; made where it is missing. Nothing else in it is touched.
        channel: Whose devices it is for.
        trust: The fleet's signed metadata; None where it has no keys.

    Raises:
        BadFormat: the bundle changed meanwhile or is too large, or the folder's `chunks` is a link.
        StoreFull: no room; what was there before is still whole.
        StoreCorrupt: the stick takes no writes.
    """
    if (folder / CHUNKS_NAME).is_symlink():
        raise BadFormat(f"{folder / CHUNKS_NAME} is a link", hint="Name another folder, or remove it.")
    chunks = ChunkStore(folder / CHUNKS_NAME, durable=True)
    new_bytes = 0

    def put(digest: str, chunk: bytes) -> None:
        nonlocal new_bytes
        if chunks.get(digest) is None:  # reads it: what a stick has kept for a year may be damaged
            chunks.put(digest, chunk)
            new_bytes += len(chunk)

    release = describe(bundle.path, bundle.manifest.name, bundle.file_names(), put=put)
    index = StickIndex(channel=channel, release=release.ref)
    try:
        sync_path(folder / CHUNKS_NAME)
        if trust is None:
            (folder / TRUST_NAME).unlink(missing_ok=True)
        else:
            write_whole(folder / TRUST_NAME, trust)
        write_whole(folder / INDEX_NAME, encode_json(index))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no space left for {folder}", hint="Free some space on it and pack again.") from error
        raise StoreCorrupt(
            f"{folder} cannot be written: {error.strerror}", hint="Is it write-protected?"
        ) from error
    chunks.keep_only(frozenset(release.digests()))
    return Packed(release.ref, new_bytes)


class Stick:
    """A packed folder, opened for reading. Use it in a `with` block.

    Args:
        folder: As it was given to `pack`.

    Attributes:
        index: What it says that it brings.
        trust: The signed metadata on it, unchecked; None without.

    Raises:
        Unreadable: there is nothing, or it cannot be read.
        BadFormat: it is no packed release, or has links where files belong.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chunks: int | None = None
        self._root = self._open(str(folder), os.O_DIRECTORY, None)
        try:
            self.index = self._index()
            self.trust: bytes | None = None
            if TRUST_NAME in os.listdir(self._root):
                self.trust = self._read(TRUST_NAME, MAX_MESSAGE_BYTES, self._root)
            self._chunks = self._open(CHUNKS_NAME, os.O_DIRECTORY | os.O_NOFOLLOW, self._root)
        except BaseException:
            self.close()
            raise

    def _index(self) -> StickIndex:
        try:
            return decode_json(self._read(INDEX_NAME, MAX_MESSAGE_BYTES, self._root), StickIndex)
        except RemoteWireError as error:
            raise BadFormat(f"{self._folder / INDEX_NAME}: {error}", hint=_PACK) from error

    def close(self) -> None:
        """Let go of it, so that it can be taken out."""
        for handle in (self._chunks, self._root):
            if handle is not None:
                os.close(handle)
        self._chunks = None

    def __enter__(self) -> Stick:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def release(self) -> Release:
        """Return the release that it brings.

        Raises:
            BadFormat: its descriptor is none, or not that of the release it names.
            BadSignature, Unreadable: as `get`.
        """
        ref = self.index.release
        try:
            release = Release.parse(self.get(ref.release_id))
        except RemoteWireError as error:
            raise BadFormat(f"release {ref.name!r}: {error}", hint=_PACK) from error
        if release.ref.size_bytes != ref.size_bytes:
            raise BadFormat(f"the descriptor is not that of {ref.name!r} as named", hint=_PACK)
        return release

    def get(self, digest: str) -> bytes:
        """Return a chunk.

        Raises:
            BadSignature: it is not what its name says.
            BadFormat: it is no plain file.
            Unreadable: it is missing, or the stick is.
        """
        chunk = self._read(digest, MAX_CHUNK_BYTES, self._chunks)
        if hashlib.sha256(chunk).hexdigest() != digest:
            raise BadSignature(f"chunk {digest[:12]} on {self._folder} was changed or cut short", hint=_PACK)
        return chunk

    def raw(self, digest: str) -> bytes:
        """Return a chunk, as `get`: nothing on a stick is worth reading twice."""
        return self.get(digest)

    def _read(self, name: str, limit: int, folder: int | None) -> bytes:
        # O_NONBLOCK: opening a pipe would wait for whoever writes to it.
        handle = self._open(name, os.O_NOFOLLOW | os.O_NONBLOCK, folder)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            os.close(handle)
            raise BadFormat(f"{name} on {self._folder} is no file of at most {limit} bytes", hint=_PACK)
        with os.fdopen(handle, "rb") as stream:
            try:
                content = stream.read(limit + 1)
            except OSError as error:
                raise self._unreadable(name, error) from error
        if len(content) > limit:
            raise BadFormat(f"{name} on {self._folder} grows while it is read", hint=_PACK)
        return content

    def _open(self, name: str, flags: int, folder: int | None) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
        except OSError as error:
            link = folder is not None and error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
            if link:
                raise BadFormat(f"{name} on {self._folder} is a link, or no plain file", hint=_PACK) from error
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: OSError) -> Unreadable:
        where = name if name == str(self._folder) else f"{name} on {self._folder}"
        return Unreadable(f"{where} cannot be read: {error.strerror}", hint=_PLUG_IN)


def copy_chunks(
    stick: Stick, store: ChunkStore, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Release:
    """Copy a stick's release into a chunk store, in which nothing else is left; return the release.

    Called again after it was cut off, it copies what is missing, and wants room for that alone. The names are
    durable when it returns.

    Args:
        stick: The stick.
        store: Where its chunks go.
        progress: Called with (chunks done, chunks in all).

    Raises:
        BadFormat, BadSignature, Unreadable: as `Stick.release` and `Stick.get`.
        StoreFull, StoreCorrupt: the disk that is written to.
    """
    release = stick.release()
    digests = release.digests()
    store.keep_only(frozenset(digests))
    # The chunks, and beside them the files that will be made from them.
    needed, kept, free = 2 * release.ref.size_bytes, store.kept_bytes(digests), store.free_bytes()
    if free + kept < needed:
        raise StoreFull(
            f"release {release.ref.name!r} needs {needed} bytes of disk",
            hint=f"Free some space; {free + kept} bytes are left for it.",
        )
    for done, digest in enumerate(digests):
        progress(done, len(digests))
        if store.get(digest) is None:
            store.put(digest, stick.get(digest))
    store.sync()
    progress(len(digests), len(digests))
    return release
