"""The fleet's decisions: which label entries are taken, which chunks are published again, who is up to date.

Values in, values out; no database, socket or clock. `sdk.fleet.store` keeps what is decided here,
`sdk.fleet.core` asks for it turn by turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

from sdk.codes import MAX_FEATURE_SIZE
from sdk.errors import LabelError
from sdk.labels import (
    MAX_COUNTER_JUMP,
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Entry,
    KeepApart,
    Label,
    MergeClasses,
    Record,
    RenameClass,
    check_record,
    entry_hash,
)
from sdk.wire import Refusal, UpdateState

SEED_HOLD_S: Final = 1.0
"""A chunk just published is on its way to everybody who asks: not again within this time."""
WANT_BURST_CHUNKS: Final = 512
WANT_CHUNKS_PER_S: Final = 128.0
"""What one device's wants may make the service publish: a whole small release at once, then 8 MiB/s."""
CLASS_ENTRIES_BURST: Final = 1000
CLASS_ENTRIES_PER_S: Final = 120 / 3600
"""What one device may say about classes, their definitions, names and merges: at once the log of a station that
was by itself for years, then two a minute. Everybody keeps all of it for good, and every page lists it. The first
label of a class that the service has not heard of counts too: such a class needs no definition."""
ENTRY_BYTES: Final = 256
"""What an entry takes in a log beside its code."""
LOG_WINDOW_BYTES: Final = 2 * 1024 * 1024
"""A device asks again every two seconds while it is behind: about 700 records of d = 1280 a second."""
LOG_RESEND_S: Final = 5.0
"""A device that still asks for the same position after this long did not get what was sent."""


class Budgets:
    """What each device may still have done: so much at once, and so much a second.

    Args:
        burst: At once.
        per_s: From then on.
    """

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._left: dict[str, tuple[float, float]] = {}  # device -> what is left, as of

    def left(self, device: str, now: float) -> int:
        """Return how much is left; `now` are seconds of a clock that never goes back."""
        left, as_of = self._left.get(device, (self._burst, now))
        self._left[device] = min(self._burst, left + (now - as_of) * self._per_s), now
        return int(self._left[device][0])

    def spend(self, device: str, amount: int, now: float) -> None:
        """Note that so much was done, no more than was left."""
        self.left(device, now)
        self._left[device] = self._left[device][0] - amount, now


# Labels

AboutClasses = DefineClass | RenameClass | MergeClasses | KeepApart


class Room(NamedTuple):
    """How many bytes a device may say now, and by what rule, in words."""

    size_bytes: int
    words: str


def said_bytes(record: Record) -> int:
    """Return what a record takes in a log, about."""
    return ENTRY_BYTES + len(record.code or b"")


class Standing(NamedTuple):
    """Where a device's log ends at the service, and its last counter."""

    chain: Chain
    counter: int = 0


@dataclass(frozen=True)
class Verdict:
    """What becomes of a batch.

    Attributes:
        accepted: Records to store, in order.
        standing: Where the device's log ends with them.
        duplicates: Records that were stored before.
        refused: The first entry that is not taken, and why; nothing after it was looked at.
        gap: The batch begins after entries that have not come yet; the device sends from the acknowledged one.
        class_entries: How many of the accepted records are about classes, or the first to name one.
        new_classes: Those that the accepted records are the first to name.
    """

    accepted: tuple[Record, ...]
    standing: Standing
    duplicates: int = 0
    refused: Refusal | None = None
    gap: bool = False
    class_entries: int = 0
    new_classes: frozenset[bytes] = frozenset()


def judge(
    device: str,
    records: Iterable[Record],
    *,
    standing: Standing,
    hash_at: Callable[[int], bytes | None],
    highest_counter: int,
    feature_sizes: Mapping[bytes, int],
    class_entries: int | None = None,
    classes: AbstractSet[bytes] = frozenset(),
    room: Room | None = None,
) -> Verdict:
    """Decide which records of a batch extend a device's log.

    Args:
        device: Whose topic the batch came on.
        records: The batch, in its order.
        standing: Where the device's log ends so far.
        hash_at: Returns the stored entry's hash for a sequence number.
        highest_counter: The highest Lamport counter in the union of the device's channel.
        feature_sizes: Length of a code by feature space, where the service knows the space.
        class_entries: How many entries about classes may be taken now; None for any number. One beyond is refused
            for now: the device sends it again, and what follows, within a minute.
        classes: Those that were named before; a label with any other is about classes too.
        room: How much may be taken now; None for any amount. What does not fit is refused for now likewise.
    """
    accepted: list[Record] = []
    new_classes: set[bytes] = set()
    duplicates = about_classes = taken_bytes = 0
    fresh: dict[int, bytes] = {}

    def verdict(refused: Refusal | None = None, *, gap: bool = False) -> Verdict:
        return Verdict(tuple(accepted), standing, duplicates, refused, gap, about_classes, frozenset(new_classes))

    for record in records:
        entry = record.entry
        if entry.device == device and entry.seq <= standing.chain.seq:
            stored = fresh.get(entry.seq) or hash_at(entry.seq)
            if stored == entry_hash(entry):
                duplicates += 1
                continue
            reason = f"another entry {entry.seq} of {device} is stored already"
            return verdict(_refusal(entry.seq, reason))
        if entry.device == device and entry.seq > standing.chain.seq + 1:
            return verdict(gap=True)
        try:
            _check_content(record, device, standing, highest_counter, feature_sizes)
            chain = standing.chain.follow(entry)
            named = _class_of(entry.body)
            first = named is not None and named not in classes and named not in new_classes
            costs = isinstance(entry.body, AboutClasses) or first
            if class_entries is not None and about_classes + costs > class_entries:
                raise _too_many(entry)
            if room is not None and taken_bytes + said_bytes(record) > room.size_bytes:
                raise _too_much(entry, room)
        except LabelError as error:
            return verdict(_refusal(entry.seq, str(error)))
        about_classes += costs
        taken_bytes += said_bytes(record)
        if first and named is not None:
            new_classes.add(named)
        standing = Standing(chain, entry.counter)
        highest_counter = max(highest_counter, entry.counter)
        fresh[entry.seq] = chain.last_hash
        accepted.append(record)
    return verdict()


def _class_of(body: Body) -> bytes | None:
    """Return the class that an entry brings into use: a defined one, or a label's."""
    return body.class_id if isinstance(body, DefineClass | Label) else None


def _check_content(
    record: Record, device: str, standing: Standing, highest_counter: int, feature_sizes: Mapping[bytes, int]
) -> None:
    entry, body = record.entry, record.entry.body
    where = f"entry {entry.seq} of {entry.device}"
    if entry.device != device:
        raise LabelError(f"{where} came on the topic of {device}", hint="A device may send its own log only.")
    check_record(record)
    if entry.counter <= standing.counter:
        raise LabelError(
            f"{where}: counter {entry.counter} does not rise above {standing.counter}", hint="Order would be lost."
        )
    if entry.counter > highest_counter + MAX_COUNTER_JUMP:
        raise LabelError(
            f"{where}: counter {entry.counter} jumps more than 2^32 ahead of the fleet", hint="Check the device."
        )
    if record.code is not None and isinstance(body, CodeRecord):
        expected = feature_sizes.get(body.space, len(record.code))
        if len(record.code) != expected or len(record.code) > MAX_FEATURE_SIZE:
            raise LabelError(
                f"{where}: a code of {len(record.code)} values is no code of its space", hint="Check it."
            )


def _too_many(entry: Entry) -> LabelError:
    hourly = round(3600 * CLASS_ENTRIES_PER_S)
    return LabelError(
        f"entry {entry.seq} of {entry.device} is one too many about classes: {CLASS_ENTRIES_BURST} may come at "
        f"once, then {hourly} an hour; it and what follows it are taken in their turn",
        hint="If nobody renames, defines or labels with so many there, look at the device.",
    )


def _too_much(entry: Entry, room: Room) -> LabelError:
    return LabelError(
        f"entry {entry.seq} of {entry.device} is more than it may say now: {room.words}; it and what follows it "
        "are taken in their turn",
        hint="If nobody labels so many there, look at the device.",
    )


def _refusal(seq: int, reason: str) -> Refusal:
    return Refusal(seq=seq, reason=reason[:500])


# Chunks


class Seeder:
    """Decides which chunks to publish, in which order, and how often for whom."""

    def __init__(self) -> None:
        self._queue: dict[str, None] = {}
        self._seeded_at: dict[str, float] = {}
        self._budgets = Budgets(WANT_BURST_CHUNKS, WANT_CHUNKS_PER_S)

    def announce(self, digests: Iterable[str]) -> None:
        """Publish these, whenever they were published last."""
        for digest in digests:
            self._seeded_at.pop(digest, None)
            self._queue.setdefault(digest, None)

    def want(self, device: str, digests: Iterable[str], now: float) -> int:
        """A device asks for these; return how many will be published, within its budget."""
        left, taken = self._budgets.left(device, now), 0
        for digest in digests:
            if digest in self._queue or now - self._seeded_at.get(digest, -SEED_HOLD_S) < SEED_HOLD_S:
                continue
            if taken == left:
                break
            taken += 1
            self._queue[digest] = None
        self._budgets.spend(device, taken, now)
        return taken

    def next(self, now: float) -> str | None:
        """Return the chunk to publish now; None when there is nothing to do."""
        if not self._queue:
            return None
        digest = next(iter(self._queue))
        del self._queue[digest]
        self._seeded_at[digest] = now
        return digest

    @property
    def idle(self) -> bool:
        """Whether nothing is left to publish."""
        return not self._queue


# The union


class LogReader:
    """How far a device is in the union that it asked for, and what it may be sent now.

    Each `Want` says where the device's copy ends, and so acknowledges what came before. At most `LOG_WINDOW_BYTES`
    are on their way: a late joiner on a slow line gets a long union page by page, instead of all of it, and that
    several times, into its queue at the broker.

    Args:
        log_from: Where the first `Want` says to begin.
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, log_from: int, now: float) -> None:
        self.next = log_from
        self._log_from = log_from
        self._moved_at = now
        self._pages: list[tuple[int, int]] = []  # last position, bytes; sent and not acknowledged
        self._at_end = False

    def want(self, log_from: int, now: float) -> None:
        """The device asks again."""
        if log_from > self._log_from:
            self._pages = [(last, size) for last, size in self._pages if last >= log_from]
            self.next = max(self.next, log_from)
        elif log_from == self._log_from and now - self._moved_at < LOG_RESEND_S:
            return  # it asks for what is on its way
        else:
            self._pages = []
            self.next = log_from
        self._log_from = log_from
        self._moved_at = now
        self._at_end = False

    @property
    def may_send(self) -> bool:
        """Whether there is a page to send, and room for it."""
        return not self._at_end and sum(size for _, size in self._pages) < LOG_WINDOW_BYTES

    def sent(self, last: int, size_bytes: int, now: float) -> None:
        """A page up to this position was sent."""
        self._pages.append((last, size_bytes))
        self.next = last + 1
        self._moved_at = now

    def at_end(self) -> None:
        """All pages are on their way; what is new from now on goes to all devices anyway."""
        self._at_end = True


# Rollouts


def next_state(current: UpdateState | None, reported: UpdateState) -> UpdateState | None:
    """Return where a release stands on a device after it reported a state.

    A device may begin again after a power cut. What is committed is not un-committed by a late message: only a
    rollback or a new download is news then.
    """
    if current is UpdateState.COMMITTED and reported not in (UpdateState.ROLLED_BACK, UpdateState.DOWNLOADING):
        return current
    return reported


def settled(release_id: str, assigned: UpdateState | None, running: str | None) -> UpdateState | None:
    """Return how an assignment ended, None while it has not.

    A device that runs the release and sent no word about it has taken it: its word was lost.
    """
    if assigned in (UpdateState.COMMITTED, UpdateState.ROLLED_BACK):
        return assigned
    return UpdateState.COMMITTED if assigned is None and running == release_id else None
