"""Which chunks of a release to ask for, and when again (docs/protocol.md, section 5).

Rules this module keeps:

- The receiver drives: it asks for at most 1 MiB of chunks at a time.
- Nothing is inferred from silence but the need to ask again: every wait has a timer, and what does not come is
  named in a `Want`, upon which the server publishes it anew.

`Download` decides and neither reads the clock nor touches a socket or disk; `sdk.fetch` is the rim around it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sdk.errors import BadFormat, RemoteWireError
from sdk.release import Release, chunks_of
from sdk.wire import MAX_CHUNK_BYTES, ReleaseRef

MAX_WANT_CHUNKS: Final = 256


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


USUAL_LIMITS: Final = FetchLimits()


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

    def __init__(self, ref: ReleaseRef, limits: FetchLimits = USUAL_LIMITS) -> None:
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
        self._todo = deque(dict.fromkeys(chunks_of(release.descriptor)))
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
