"""Chunks that releases of a fleet have lost, and the bundle that brings them back.

A chunk is named by its digest, and the database has what each release is made of. So whoever has a release's
bundle can put back what a disk lost, also while a rollout is under way and without a key: nothing is published,
assigned or signed by that, and no release can become another one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from sdk.bundle import MANIFEST_NAME, Bundle, Manifest, encode_manifest, format_of
from sdk.fleet.channel_ledger import Publication
from sdk.fleet.garbage import in_use
from sdk.fleet.store import FleetStore
from sdk.release import Release, describe
from sdk.wire import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES


@dataclass(frozen=True)
class Lacking:
    """A release that a channel has, or is getting, and so many of its chunks that are missing or damaged."""

    channel: str
    name: str
    release_id: str
    missing: int
    chunks: int


def lacking(store: FleetStore) -> list[Lacking]:
    """Return which releases that a channel has, or is getting, lack chunks; reads all that they have.

    Raises:
        StoreCorrupt: the place where chunks are kept does not answer.
    """
    with store.read() as ledger:
        found: list[Publication] = [each for channel in ledger.channels() for each in in_use(ledger, channel)]
    counts = {
        (each.channel, each.ref.release_id): Lacking(
            each.channel,
            each.ref.name,
            each.ref.release_id,
            sum(not store.chunks.is_whole(digest) for digest in each.release.digests()),
            len(each.release.digests()),
        )
        for each in found
    }
    return [each for each in counts.values() if each.missing]


def put_back(store: FleetStore, bundle: Bundle) -> int:
    """Store what releases of any channel, past ones too, have lost and a bundle has; return how many chunks.

    Its other chunks are not stored: nobody would ever need them.

    Raises:
        BadFormat: the bundle cannot be read.
        StoreFull: no space.
        StoreCorrupt: the place where chunks are kept does not answer.
    """
    with store.read() as ledger:
        releases = {
            each.ref.release_id: each.release
            for channel in ledger.channels()
            for cleared in (True, False)
            for each in ledger.publications(channel, cleared=cleared)
        }
    known = {digest for release in releases.values() for digest in release.digests()}
    count = 0

    def put(digest: str, chunk: bytes) -> None:
        nonlocal count
        if digest in known and not store.chunks.is_whole(digest):
            store.chunks.put(digest, chunk)
            count += 1

    describe(bundle.path, bundle.manifest.name, bundle.file_names(), put=put)
    files = {(file.name, file.sha256) for file in bundle.manifest.files}
    of_it = [release for release in releases.values() if files == {*_files(release)}]
    for release in of_it:
        put(release.ref.release_id, release.encoded)
    if not all(store.chunks.is_whole(digest) for release in of_it for digest in _manifest_of(release)):
        for encoded in _manifests(bundle.manifest):
            for size in (DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES):  # as `describe` cuts
                for at in range(0, len(encoded), size):
                    piece = encoded[at : at + size]
                    put(hashlib.sha256(piece).hexdigest(), piece)
    store.chunks.sync()
    return count


def _files(release: Release) -> Iterator[tuple[str, str]]:
    return ((file.name, file.sha256) for file in release.descriptor.files if file.name != MANIFEST_NAME)


def _manifest_of(release: Release) -> list[str]:
    return [digest for file in release.descriptor.files if file.name == MANIFEST_NAME for digest in file.chunks]


def _manifests(manifest: Manifest) -> Iterator[bytes]:
    """Yield all that the manifest of a release of the same files may be: with another precision in front."""
    version = format_of(manifest)
    for order in itertools.permutations(manifest.precisions):  # of four at most
        yield encode_manifest(msgspec.structs.replace(manifest, precisions=list(order), format=version))
