"""Releases cut into content-addressed chunks: cutting, keeping and fetching them over MQTT.

A release is a directory of flat files. Each file is cut into chunks named by their SHA-256; a descriptor lists
files and chunks; the descriptor is a chunk too, and its SHA-256 is the release id. So one id vouches for every
byte, and what is on disk under its name is never asked for again (docs/protocol.md, section 5).

Rules this module keeps:

- The receiver drives: it subscribes to the retained topics of at most 1 MiB of chunks at a time.
- No byte is used before its digest was checked, when it arrives and again when files are put together.
- Nothing is inferred from silence but the need to ask again: every wait has a timer, and what does not come is
  named in a `Want`, upon which the server publishes it anew.
- A download may end at any instruction and go on from there. A target directory appears whole, by one rename.

`Download` decides and neither reads the clock nor touches a socket or disk; `ChunkFetcher` is the rim around it.
Left to others: whether a release should be trusted or run at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from sdk.durable import sync_path
from sdk.errors import (
    BadFormat,
    BadSignature,
    BrokerError,
    HeadwayError,
    RemoteWireError,
    StoreCorrupt,
    StoreFull,
)
from sdk.mqtt import Message, MqttSession, MqttSettings, Traffic
from sdk.wire import (
    DEFAULT_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    ReleaseDescriptor,
    ReleaseFile,
    ReleaseRef,
    Topics,
    Want,
    decode_json,
    encode_json,
)

MAX_WANT_CHUNKS: Final = 256
HEARTBEAT_S: Final = 0.5
"""The longest the fetching thread sleeps, so that it sees a request to stop."""

SOURCE_AGAIN_S: Final = 60.0
"""A source that failed, or has not everything yet, is asked again after this long."""

log = logging.getLogger(__name__)


# Cutting


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
        return list(dict.fromkeys([self.ref.release_id, *_chunks_of(self.descriptor)]))

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


def _chunks_of(descriptor: ReleaseDescriptor) -> Iterator[str]:
    for file in descriptor.files:
        yield from file.chunks


# Keeping


class ChunkStore:
    """Chunks on disk under their digests.

    A chunk is written under another name and renamed, so a killed writer leaves none behind half written. After a
    power cut a chunk may still be torn; `get` finds that out by the digest and forgets it.

    Args:
        folder: Made if it is not there.
        durable: Sync each chunk to disk before its name appears. For the server; a device can ask again.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder = folder
        self._durable = durable
        with _disk(folder):
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
        if digest in self:
            return
        draft = self._folder / f".{digest}.{os.getpid()}.{threading.get_ident()}"
        try:
            with _disk(self._folder):
                with draft.open("wb") as stream:
                    stream.write(chunk)
                    if self._durable:
                        stream.flush()
                        os.fsync(stream.fileno())
                draft.replace(self._folder / digest)
        except HeadwayError:
            draft.unlink(missing_ok=True)  # a full disk must not fill further with halves
            raise

    def get(self, digest: str) -> bytes | None:
        """Return a chunk, checked; None if it is not there. A damaged one is removed."""
        chunk = self.raw(digest)
        if chunk is not None and hashlib.sha256(chunk).hexdigest() != digest:
            (self._folder / digest).unlink(missing_ok=True)
            return None
        return chunk

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
        """Remove all other chunks, and drafts of writers that are no more."""
        with _disk(self._folder):
            for entry in os.scandir(self._folder):
                if entry.name not in digests:
                    (self._folder / entry.name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the space left on this store's disk."""
        return shutil.disk_usage(self._folder).free


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
            raise StoreCorrupt(f"chunk {digest[:12]} of {file.name} is damaged", hint="Publish the bundle again.")
        parts.append(part)
    whole = b"".join(parts)
    if hashlib.sha256(whole).hexdigest() != file.sha256:
        raise BadSignature(f"{file.name} is not what its descriptor says", hint="Publish the bundle again.")
    return whole


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Say what a failing disk means, once for all writers here."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left for {folder}", hint="Free some space; the download goes on."
            ) from error
        raise StoreCorrupt(
            f"{folder} cannot be written: {error.strerror}", hint="Check the disk and its permissions."
        ) from error


class Chunks(Protocol):
    """Where chunks come from when files are put together."""

    def get(self, digest: str) -> bytes | None:
        """Return a chunk that has this digest; None if it is not there."""

    def raw(self, digest: str) -> bytes | None:
        """Return what stands under a chunk's name, checked or not; None if nothing does."""


def assemble(release: Release, store: Chunks, target: Path) -> set[str]:
    """Put a release's files together in a directory that appears by one rename, synced to disk.

    Returns the digests of missing or damaged chunks; empty when the target is there.

    Raises:
        BadSignature: all chunks are right but a file is not: the descriptor is wrong.
        StoreFull, StoreCorrupt: the disk.
    """
    if _is_complete(release, target):
        return set()
    draft = target.with_name(f".{target.name}.partial")
    missing: set[str] = set()
    with _disk(target.parent):
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
                shutil.rmtree(draft, ignore_errors=True)
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


def _is_complete(release: Release, target: Path) -> bool:
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


# Fetching: what to ask for, and when again


@dataclass(frozen=True)
class FetchLimits:
    """How a download behaves.

    Attributes:
        window_bytes: Asked for and not on disk yet; also what a kill may cost to receive again.
        window_chunks: The same in chunks, for releases of many small files; below the broker's inflight limit.
        stall_s: With chunks asked for and none coming for this long, they are named in a `Want`.
        stall_max_s: It grows up to this while nothing comes, and with the pace of slow links.
    """

    window_bytes: int = 1024 * 1024
    window_chunks: int = 48
    stall_s: float = 5.0
    stall_max_s: float = 30.0


class Receipt(str, Enum):
    """What became of a chunk that arrived."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CORRUPT = "corrupt"
    UNASKED = "unasked"


@dataclass(frozen=True)
class Step:
    """What to do now: topics to subscribe and unsubscribe, chunks to name in a `Want`, when to ask again."""

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    want: tuple[str, ...] = ()
    wake_at: float | None = None


class Download:
    """Decides which chunks of a release to ask for.

    Time is any clock that never goes back, in seconds, given with each call. Start with the release's reference;
    `learn` the descriptor as soon as it is there; repeat `poll`.

    Attributes:
        release: The release, once its descriptor is known.
        bytes_done: On disk, of `ref.size_bytes`.
        received_bytes: Payloads that arrived, useful or not.
        source_bytes: Chunks that another source than the broker gave.
        corrupt, duplicates, wanted: Counts of chunks.
    """

    def __init__(self, ref: ReleaseRef, limits: FetchLimits = FetchLimits()) -> None:
        self.ref = ref
        self.limits = limits
        self.release: Release | None = None
        self.bytes_done = 0
        self.received_bytes = 0
        self.source_bytes = 0
        self.corrupt = 0
        self.duplicates = 0
        self.wanted = 0
        self._online = False
        self._todo = deque([ref.release_id])
        self._asked: dict[str, float] = {}  # digest -> when
        self._have: set[str] = set()
        self._bound = {ref.release_id: MAX_CHUNK_BYTES}  # the most a chunk can have, for the window
        self._share: dict[str, int] = {}  # what a chunk adds to `bytes_done`
        self._answered: list[str] = []  # topics to leave
        self._want_at: dict[str, float] = {}  # chunks that came damaged, and when to name them in a `Want`
        self._quiet_since = 0.0
        self._arrived_at: float | None = None
        self._pace_s = 0.0
        self._waits = 0

    def learn(self, encoded: bytes) -> Release:
        """Take in the descriptor and return the release.

        Raises:
            BadFormat: it is no descriptor, or not that of the assigned release.
        """
        again = "The publisher is at fault: publish the bundle again."
        try:
            release = Release.parse(encoded)
        except RemoteWireError as error:
            raise BadFormat(f"release {self.ref.name!r}: {error}", hint=again) from error
        if (release.ref.release_id, release.ref.size_bytes) != (self.ref.release_id, self.ref.size_bytes):
            raise BadFormat(f"the descriptor is not that of {self.ref.name!r} as assigned", hint=again)
        self.release = release
        self._todo = deque(dict.fromkeys(_chunks_of(release.descriptor)))
        for file in release.descriptor.files:
            n, size = len(file.chunks), file.size_bytes
            # All chunks of a file but the last have one size c, so (n - 1) c < size: a bound without knowing c.
            bound = min(MAX_CHUNK_BYTES, (size - 1) // (n - 1) if n > 1 else size)
            for i, digest in enumerate(file.chunks):
                self._bound[digest] = max(self._bound.get(digest, 0), bound)
                self._share[digest] = self._share.get(digest, 0) + size * (i + 1) // n - size * i // n
        self.found([self.ref.release_id])
        return release

    def found(self, digests: Iterable[str]) -> None:
        """These are on disk: they will not be asked for."""
        new = {digest for digest in digests if digest in self._bound} - self._have
        self._have |= new
        if not new <= self._asked.keys():
            self._todo = deque(digest for digest in self._todo if digest not in new)
        for digest in new:
            self.bytes_done += self._share.get(digest, 0)
            self._want_at.pop(digest, None)
            if self._asked.pop(digest, None) is not None:
                self._answered.append(digest)

    def missing(self) -> list[str]:
        """Return the chunks that are not on disk and were not asked for at the broker yet."""
        return list(self._todo)

    def lost(self, digests: Iterable[str]) -> None:
        """These were thought to be on disk and are damaged or gone: ask for them again."""
        gone = [digest for digest in digests if digest in self._have]
        self._have.difference_update(gone)
        self._todo.extend(gone)
        self.bytes_done -= sum(self._share.get(digest, 0) for digest in gone)

    @property
    def complete(self) -> bool:
        """Whether every chunk is on disk."""
        return self.release is not None and not self._todo and not self._asked

    def connected(self, now: float) -> None:
        """The session is up; all topics asked for were subscribed again."""
        self._online = True
        self._quiet_since = now

    def disconnected(self) -> None:
        """The session is down: timers rest."""
        self._online = False

    def receive(self, digest: str, chunk: bytes, now: float) -> Receipt:
        """Take in what arrived on a chunk's topic. Only what is `NEW` is to be kept."""
        self.received_bytes += len(chunk)
        if digest in self._have:
            self.duplicates += 1
            return Receipt.DUPLICATE
        if digest not in self._bound:
            return Receipt.UNASKED
        if len(chunk) > MAX_CHUNK_BYTES or hashlib.sha256(chunk).hexdigest() != digest:
            self.corrupt += 1
            if digest in self._asked:
                self._want_at.setdefault(digest, now)
            return Receipt.CORRUPT
        if self._arrived_at is not None and digest in self._asked:
            # A gap as long as our patience means a slow link or a slow server: be more patient, then less again.
            gap_s = now - max(self._arrived_at, self._asked[digest])
            self._pace_s = max(2 * gap_s, 0.9 * self._pace_s)
        self._quiet_since = self._arrived_at = now
        self._waits = 0
        self.found([digest])
        return Receipt.NEW

    def poll(self, now: float) -> Step:
        """Return what to do now. Call it after every change and whenever its `wake_at` has come."""
        unsubscribe, self._answered = tuple(self._answered), []
        if not self._online:
            return Step(unsubscribe=unsubscribe)
        subscribe = self._fill_window(now)
        want: dict[str, None] = {}
        if self._asked and now >= self._quiet_since + self._patience_s():
            # What the broker lost it seldom lost alone: name those that would be asked for next, too.
            want = dict.fromkeys([*self._asked, *self._todo][:MAX_WANT_CHUNKS])
            subscribe = list(self._asked)
            self._quiet_since = now
            self._waits += 1
        for digest, due in self._want_at.items():
            if now >= due and len(want) < MAX_WANT_CHUNKS:
                want[digest] = None
                self._want_at[digest] = now + self.limits.stall_s
        self.wanted += len(want)
        timers = [*self._want_at.values()]
        if self._asked:
            timers.append(self._quiet_since + self._patience_s())
        return Step(tuple(subscribe), unsubscribe, tuple(want), min(timers, default=None))

    def _patience_s(self) -> float:
        limits = self.limits
        return min(limits.stall_max_s, max(limits.stall_s, self._pace_s) * 2.0 ** min(self._waits, 10))

    def _fill_window(self, now: float) -> list[str]:
        taken: list[str] = []
        used = sum(self._bound[digest] for digest in self._asked)
        while self._todo and len(self._asked) < self.limits.window_chunks:
            digest = self._todo[0]
            used += self._bound[digest]
            if self._asked and used > self.limits.window_bytes:
                break
            if not self._asked:
                self._quiet_since = now
            self._asked[digest] = now
            taken.append(self._todo.popleft())
        return taken


# Fetching: the rim


@dataclass(frozen=True)
class Fetched:
    """How a download went.

    Attributes:
        target: Where the release's files are.
        size_bytes: Of all files.
        received_bytes: Chunk payloads that came from the broker in this call.
        source_bytes: Those that came from another source.
        corrupt: Chunks whose digest was wrong; dropped and asked for again.
        wanted: Chunks named in a `Want`.
        duration_s: Of this call.
        traffic: All bytes of its MQTT session.
    """

    target: Path
    size_bytes: int
    received_bytes: int
    source_bytes: int
    corrupt: int
    wanted: int
    duration_s: float
    traffic: Traffic


class ChunkSource(Protocol):
    """Another place that may have chunks (`sdk.http_chunks`). What does not come from there is no loss."""

    def fetch(self, digests: Iterable[str], take: Callable[[str, bytes], None], stop: threading.Event) -> int:
        """Hand each chunk that comes to `take`, on this thread; return how many came."""


class ChunkFetcher:
    """Fetches releases for a device, over a connection of its own so that labels never wait behind one.

    Args:
        settings: The broker.
        device: This device's id; the connection is called `<device>-chunks`.
        channel: Named in every `Want`.
        folder: Where chunks wait until all are there; on the same disk as the targets.
        source: Asked before the broker, and again now and then while something is missing.
        limits: Window and timers.
    """

    def __init__(
        self,
        settings: MqttSettings,
        device: str,
        channel: str,
        folder: Path,
        *,
        source: ChunkSource | None = None,
        limits: FetchLimits = FetchLimits(),
    ) -> None:
        # Nothing is left at the broker between connections: the window is subscribed anew on each, and a killed
        # download is not sent what it no longer waits for.
        cert_file = settings.chunks_cert_file or settings.cert_file
        self._settings = replace(settings, session_expiry_s=0, cert_file=cert_file)
        self._device = device
        self._channel = channel
        self._topics = Topics(settings.prefix)
        self._folder = folder
        self._source = source
        self._limits = limits

    def fetch(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        stop: threading.Event | None = None,
    ) -> Fetched | None:
        """Bring a release's files into `target`; goes on for ever while the broker or the server is away.

        Args:
            ref: The release, as assigned.
            target: Directory to appear, by one rename, when all files are whole and synced.
            progress: Called with (bytes on disk, bytes in all) on this thread.
            stop: Set it to give up; what came stays on disk for the next call.

        Returns:
            How it went; None when stopped.

        Raises:
            BadFormat, BadSignature: the release contradicts itself; asking again will not help.
            StoreFull, StoreCorrupt: this machine's disk.
        """
        began = time.monotonic()
        store = ChunkStore(self._folder)
        download = Download(ref, self._limits)
        encoded = store.get(ref.release_id)
        if encoded is not None:
            self._learn(encoded, download, store, target)
        arrivals: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        session = MqttSession(
            self._settings,
            f"{self._device}-chunks",
            on_message=arrivals.put,
            on_connect=lambda _present: arrivals.put(None),
        )
        stop = stop or threading.Event()
        source_due = began
        try:
            while not self._finished(download, store, target):
                if stop.is_set():
                    return None
                if self._source is not None and time.monotonic() >= source_due:
                    came = self._ask_source(self._source, download, store, target, progress, stop)
                    source_due = time.monotonic() + SOURCE_AGAIN_S
                    if came:
                        continue
                session.start()
                if not session.connected:
                    download.disconnected()
                step = download.poll(time.monotonic())
                self._act(step, session)
                patience_s = HEARTBEAT_S
                if step.wake_at is not None:
                    patience_s = min(HEARTBEAT_S, max(0.0, step.wake_at - time.monotonic()))
                for message in _drain(arrivals, patience_s):
                    if message is None:
                        download.connected(time.monotonic())
                    else:
                        self._take(message, download, store, target)
                progress(download.bytes_done, ref.size_bytes)
        finally:
            session.close(flush_s=0.2)
        store.keep_only({ref.release_id})  # with it, asking for the same release again costs no traffic
        progress(ref.size_bytes, ref.size_bytes)
        return Fetched(
            target=target,
            size_bytes=ref.size_bytes,
            received_bytes=download.received_bytes,
            source_bytes=download.source_bytes,
            corrupt=download.corrupt,
            wanted=download.wanted,
            duration_s=time.monotonic() - began,
            traffic=session.traffic(),
        )

    def _ask_source(
        self,
        source: ChunkSource,
        download: Download,
        store: ChunkStore,
        target: Path,
        progress: Callable[[int, int], None],
        stop: threading.Event,
    ) -> int:
        """Take what another source has; return how many chunks that was."""

        def take(digest: str, chunk: bytes) -> None:
            store.put(digest, chunk)
            download.source_bytes += len(chunk)
            if digest == download.ref.release_id:
                self._learn(chunk, download, store, target)
            else:
                download.found([digest])
            progress(download.bytes_done, download.ref.size_bytes)

        came = 0
        if download.release is None:
            came = source.fetch([download.ref.release_id], take, stop)
        if download.release is not None:
            came += source.fetch(download.missing(), take, stop)
        return came

    def _finished(self, download: Download, store: ChunkStore, target: Path) -> bool:
        if not download.complete or download.release is None:
            return False
        missing = assemble(download.release, store, target)
        if missing:
            log.warning("%d chunks on disk were damaged; fetching them again", len(missing))
            download.lost(missing)
        return not missing

    def _learn(self, encoded: bytes, download: Download, store: ChunkStore, target: Path) -> None:
        release = download.learn(encoded)
        digests = release.digests()
        store.keep_only(frozenset(digests))
        done = _is_complete(release, target)
        download.found(digest for digest in digests if done or digest in store)
        missing_bytes = download.ref.size_bytes - download.bytes_done
        # Chunks and the files made from them are on disk together for a moment.
        if not done and store.free_bytes() < missing_bytes + download.ref.size_bytes:
            raise StoreFull(
                f"release {download.ref.name!r} needs {missing_bytes + download.ref.size_bytes} bytes of disk",
                hint=f"Free some space; {store.free_bytes()} bytes are left.",
            )

    def _take(self, message: Message, download: Download, store: ChunkStore, target: Path) -> None:
        digest = message.topic.rpartition("/")[2]
        if message.topic != self._topics.chunk(digest):
            return
        receipt = download.receive(digest, message.payload, time.monotonic())
        if receipt is Receipt.NEW:
            store.put(digest, message.payload, checked=True)
            if digest == download.ref.release_id:
                self._learn(message.payload, download, store, target)
        elif receipt is Receipt.CORRUPT:
            log.warning("chunk %s arrived damaged; asked for again", digest[:12])

    def _act(self, step: Step, session: MqttSession) -> None:
        if step.unsubscribe:
            session.unsubscribe(self._topics.chunk(digest) for digest in step.unsubscribe)
        if step.subscribe:
            session.subscribe(self._topics.chunk(digest) for digest in step.subscribe)
        if step.want:
            want = Want(channel=self._channel, chunks=list(step.want))
            try:
                session.publish(self._topics.up_want(self._device), encode_json(want))
            except BrokerError as error:
                log.debug("a want was not sent, the timer will repeat it: %s", error)


def _drain(arrivals: queue.SimpleQueue[Message | None], patience_s: float) -> Iterator[Message | None]:
    """Yield what has arrived, waiting for the first."""
    with contextlib.suppress(queue.Empty):
        yield arrivals.get(timeout=patience_s)
        while True:
            yield arrivals.get_nowait()
