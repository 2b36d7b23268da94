"""Releases cut into content-addressed chunks.

A release is a directory of flat files. Each file is cut into chunks named by their SHA-256; a descriptor lists
files and chunks; the descriptor is a chunk too, and its SHA-256 is the release id. So one id vouches for every
byte (docs/protocol.md, section 5).

Left to others: whether a release should be trusted or run at all, and where its chunks are (`sdk.chunks`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdk.errors import BadFormat
from sdk.wire import (
    DEFAULT_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    ReleaseDescriptor,
    ReleaseFile,
    ReleaseRef,
    decode_json,
    encode_json,
)


@dataclass(frozen=True)
class Release:
    """A release as it is published.

    Attributes:
        descriptor: Its files and their chunks.
        encoded: The descriptor's bytes: the release's first chunk.
    """

    descriptor: ReleaseDescriptor
    encoded: bytes

    @property
    def ref(self) -> ReleaseRef:
        """What assignments call it."""
        return ReleaseRef(
            release_id=hashlib.sha256(self.encoded).hexdigest(),
            name=self.descriptor.name,
            size_bytes=sum(file.size_bytes for file in self.descriptor.files),
        )

    def digests(self) -> list[str]:
        """Return the digests of all its chunks, each once, the descriptor first."""
        return list(dict.fromkeys([self.ref.release_id, *chunks_of(self.descriptor)]))

    @classmethod
    def parse(cls, encoded: bytes) -> Release:
        """Return the release that a descriptor's bytes say.

        Raises:
            RemoteWireError: they are no descriptor.
            BadFormat: one that contradicts itself.
        """
        release = cls(decode_json(encoded, ReleaseDescriptor), encoded)
        names = [file.name for file in release.descriptor.files]
        if len(set(names)) != len(names) or {".", ".."} & set(names):
            raise BadFormat("a release lists a file twice, or a folder", hint="Publish the bundle again.")
        for file in release.descriptor.files:
            n = len(file.chunks)
            if not n <= file.size_bytes <= n * MAX_CHUNK_BYTES:
                raise BadFormat(
                    f"{file.name} of {file.size_bytes} bytes cannot be {n} chunks",
                    hint="Publish the bundle again.",
                )
        return release


def describe(
    directory: Path,
    name: str,
    file_names: Iterable[str],
    *,
    put: Callable[[str, bytes], None] = lambda _digest, _chunk: None,
) -> Release:
    """Return the release that files of a directory make.

    Args:
        directory: Where the files are.
        name: What people call the release.
        file_names: Which files belong to it.
        put: Called with each chunk's digest and bytes, the descriptor's last.

    Raises:
        BadFormat: a file cannot be read, or all together are too large to describe in one chunk.
    """
    names = sorted(file_names)
    # Larger chunks make a shorter descriptor: 112 KiB serve up to about 195 MiB, the largest about 210.
    for chunk_bytes in (DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES):
        sizes = [_size_of(directory / file) for file in names]
        digest_bytes = 70 * sum(-(-size // chunk_bytes) for size in sizes) + 300 * len(names)
        if digest_bytes < MAX_MESSAGE_BYTES:
            break
    else:
        raise BadFormat(
            f"{directory} has {sum(sizes)} bytes, too many to publish", hint="Leave out a precision nobody runs."
        )
    files = [_cut_file(directory / file, chunk_bytes, put) for file in names]
    descriptor = ReleaseDescriptor(name=name, files=files)
    release = Release(descriptor, encode_json(descriptor))
    put(release.ref.release_id, release.encoded)
    return release


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise BadFormat(f"{file} cannot be read: {error.strerror}", hint="Export or copy it again.") from error


def _cut_file(file: Path, chunk_bytes: int, put: Callable[[str, bytes], None]) -> ReleaseFile:
    whole, chunks, size = hashlib.sha256(), [], 0
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(chunk_bytes):
                digest = hashlib.sha256(chunk).hexdigest()
                put(digest, chunk)
                chunks.append(digest)
                whole.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise BadFormat(f"{file} cannot be read: {error.strerror}", hint="Export or copy it again.") from error
    return ReleaseFile(name=file.name, size_bytes=size, sha256=whole.hexdigest(), chunks=chunks)


def chunks_of(descriptor: ReleaseDescriptor) -> Iterator[str]:
    """Yield the digests of the files' chunks, a repeated one each time."""
    for file in descriptor.files:
        yield from file.chunks
