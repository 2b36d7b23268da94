"""What a device has of a release on its way: takes in chunks, whoever brought them, until the files are there.

Between `sdk.download`, which decides what to ask for, and the disk: the descriptor is in the folder of chunks
under its name, the other chunks are at their places in the unfinished files (`sdk.landing`).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sdk.chunks import GOES_ON, ChunkStore, is_complete
from sdk.download import USUAL_LIMITS, Download, FetchLimits, Receipt
from sdk.errors import StoreFull
from sdk.landing import Landing, remove_landings
from sdk.wire import ReleaseRef

log = logging.getLogger(__name__)


class Intake:
    """A release on its way. Begins where the last attempt ended.

    Args:
        ref: The release, as assigned.
        folder: Where it waits until all is there; on the same disk as the target.
        target: Directory to appear, by one rename, when all files are whole and synced.
        limits: Window and timers.

    Attributes:
        download: What to ask for.

    Raises:
        BadFormat, BadSignature: the release contradicts itself; asking again will not help.
        StoreFull, StoreCorrupt: this machine's disk. The methods raise the same.
    """

    def __init__(self, ref: ReleaseRef, folder: Path, target: Path, limits: FetchLimits = USUAL_LIMITS) -> None:
        self.download = Download(ref, limits)
        self._folder = folder
        self._target = target
        self._store = ChunkStore(folder, if_full=GOES_ON)
        self._landing: Landing | None = None  # with the descriptor, where the target is not there already
        encoded = self._store.get(ref.release_id)
        if encoded is not None:
            self._learn(encoded)

    def arrived(self, digest: str, chunk: bytes) -> None:
        """Take in what came on a chunk's topic, whatever it is."""
        receipt = self.download.receive(digest, chunk, time.monotonic())
        if receipt is Receipt.NEW:
            self._keep(digest, chunk)
        elif receipt is Receipt.CORRUPT:
            log.warning("chunk %s arrived damaged; asked for again", digest[:12])

    def brought(self, digest: str, chunk: bytes) -> None:
        """Take in a chunk from another source, which checked it."""
        self.download.source_bytes += len(chunk)
        self._keep(digest, chunk)
        self.download.found([digest])

    def finished(self) -> bool:
        """Return whether the target is there; make it appear where the last chunk has come."""
        if not self.download.complete:
            return False
        if self._landing is not None:
            self._landing.finish(self._target)
            self._landing = None
        # With the descriptor, asking for the same release again costs no traffic.
        self._store.keep_only({self.download.ref.release_id})
        return True

    def close(self) -> None:
        """Leave what came for the next attempt."""
        if self._landing is not None:
            self._landing.close()

    def _keep(self, digest: str, chunk: bytes) -> None:
        if digest == self.download.ref.release_id:
            self._store.put(digest, chunk, checked=True)
            self._learn(chunk)
        elif self._landing is not None:
            self._landing.put(digest, chunk)

    def _learn(self, encoded: bytes) -> None:
        download = self.download
        release = download.learn(encoded)
        self._store.keep_only({download.ref.release_id})
        remove_landings(self._folder, {download.ref.release_id})
        if is_complete(release, self._target):
            download.found(release.digests())
            return
        self._landing = landing = Landing(release, self._folder)
        download.found(landing.resume())
        missing_bytes = download.ref.size_bytes - download.bytes_done
        if self._store.free_bytes() < missing_bytes:
            raise StoreFull(
                f"release {download.ref.name!r} needs {missing_bytes} bytes of disk",
                hint=f"Free some space; {self._store.free_bytes()} bytes are left.",
            )
