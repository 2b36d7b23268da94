"""Erasing codes that are older than a plant wants to keep them: events stay, codes go.

A code reveals something of its picture. The log's hash chain covers a code's digest, so the code can be taken out
and the chain still holds (docs/labels.md, section 1). What is erased is said in the log: the fleet appends a code
record without a code, the last word on that sample, so that every device's live set stays the fleet's. Where a
sample has a code left in another space, its device says it anew when this one is in use again (section 7).

So a sample's codes go together: in one transaction, side by side in the log, that of the release in service last.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from sdk.fleet.store import FleetStore, Ledger
from sdk.labels import CodeRecord, Record

AT_ONCE: Final = 256
"""Codes erased in one transaction, to the end of a sample: a running service waits for no more."""
DAY_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Policy:
    """What may go.

    Attributes:
        older_than_s: Codes that came before that many seconds.
        live_too: Those that count now as well: these samples are then no longer learned from, nor where a release
            that the channel had brings them. Without it only what nothing rests on: withdrawn samples, and feature
            spaces that no release in use has (`Ledger.spaces_in_use`), and of these not the samples that a release
            brings itself.
    """

    older_than_s: float
    live_too: bool = False


@dataclass(frozen=True)
class Due:
    """One sample's codes in one feature space that the policy lets go.

    Attributes:
        body: Its newest code record.
        positions: Where the channel's log has records of it with a code; none where a release alone brings one.
        size_bytes: Of these codes.
        live: Whether it counts now.
        labelled: Whether it is labelled: going back to a release of this space, its label would count.
    """

    body: CodeRecord
    positions: tuple[int, ...]
    size_bytes: int
    live: bool
    labelled: bool


def due(store: FleetStore, channel: str, policy: Policy, now_utc: float) -> list[Due]:
    """Return what a policy lets go of a channel, sample by sample in the order of its log. Nothing is changed.

    Cost: the whole log is read once.
    """
    learned = store.learned(channel)
    live = frozenset(() if learned is None else learned.live.samples)
    labelled = live if learned is None else live.union(learned.codeless, learned.erased)
    withdrawn = frozenset(() if learned is None else learned.withdrawn)
    held = frozenset(() if learned is None else (hold.device for hold in learned.holds))
    with store.read() as ledger:
        in_use, published = ledger.spaces_in_use(channel), ledger.published(channel)
        found: dict[tuple[bytes, bytes], tuple[CodeRecord, list[int], int, float]] = {}
        may_return: set[tuple[bytes, bytes]] = set()  # of a source that is quarantined: released, it counts again
        for position, record, received_utc in _coded(ledger, channel):
            body = record.entry.body
            assert isinstance(body, CodeRecord)
            key = body.space, body.sample
            if record.entry.device in held:
                may_return.add(key)
            _, positions, size, _ = found.get(key, (body, [], 0, 0.0))
            size += 0 if record.code is None else len(record.code)
            positions += [] if record.code is None else [position]
            found[key] = body, positions, size, received_utc
    # Their codes are in the bundle whatever is erased here: without them it would only know less than it brings.
    released = {} if policy.live_too else {space: store.released(one).keys() for space, one in published.items()}
    out = []
    current = None if learned is None else bytes.fromhex(learned.live.space)
    for (space, sample), (body, positions, size, received_utc) in found.items():
        counts = space == current and sample in live
        retired = space not in in_use
        # In a space that is in use but not the current one, nobody here can say whether the code counts; but that
        # of a sample whose label was taken back does not, such as of a picture that was deleted.
        nowhere = sample in withdrawn or (space == current and not counts)
        idle = retired or (nowhere and (space, sample) not in may_return)
        old = bool(positions) and received_utc < now_utc - policy.older_than_s
        if old and (idle or policy.live_too) and sample not in released.get(space, ()):
            out.append(Due(body, tuple(positions), size, counts, sample in labelled))
    if policy.live_too:
        goes = {(each.body.space, each.body.sample) for each in out}
        kept = {key[1] for key, (_, positions, _, _) in found.items() if positions and key not in goes}
        gone = {sample for _, sample in found} - kept
        for body in _brought(store, channel, gone, found.keys()):
            counts = body.space == current and body.sample in live
            out.append(Due(body, (), 0, counts, body.sample in labelled))
    return _by_sample(out, in_use, current)


def _brought(
    store: FleetStore, channel: str, gone: AbstractSet[bytes], said: AbstractSet[tuple[bytes, bytes]]
) -> list[CodeRecord]:
    """Return what releases of the channel say of samples of which the log keeps no code, where no device said it.

    Unsaid, a move to such a release or precision would bring them back.
    """
    out: dict[tuple[bytes, bytes], CodeRecord] = {}
    for space, samples in store.brought(channel) if gone else ():
        for sample in gone & samples.keys():
            if (space, sample) not in said:
                group, code = samples[sample]
                out[space, sample] = CodeRecord(space, sample, group, hashlib.sha256(code).digest())
    return list(out.values())


def _by_sample(what: Sequence[Due], in_use: AbstractSet[bytes], current: bytes | None) -> list[Due]:
    """Return it sample by sample, of each those spaces first in which the fewest devices would miss it."""
    first: dict[bytes, int] = {}
    for at, each in enumerate(what):
        first.setdefault(each.body.sample, at)

    def place(each: Due) -> tuple[int, bool, bool]:
        return first[each.body.sample], each.body.space == current, each.body.space in in_use

    return sorted(what, key=place)


@dataclass(frozen=True)
class Missing:
    """What would not count at once, should a channel go back to a release.

    Attributes:
        release: Its name; empty where no release of the channel had this feature space.
        precision: Its precision with this space; empty likewise.
        samples: Labelled samples whose codes there are let go.
    """

    release: str
    precision: str
    samples: int


def missing(store: FleetStore, channel: str, what: Sequence[Due]) -> list[Missing]:
    """Return what going back would find without its codes, by release."""
    with store.read() as ledger:
        published, current = ledger.published(channel), ledger.current(channel)
    now = None if current is None else bytes.fromhex(current.space)
    counts = Counter(each.body.space for each in what if each.labelled and each.body.space != now)
    return [
        Missing(one.ref.name, store.precision_of(one), samples)
        if (one := published.get(space)) is not None
        else Missing("", "", samples)
        for space, samples in counts.items()
    ]


def _coded(ledger: Ledger, channel: str) -> Iterator[tuple[int, Record, float]]:
    position = 1
    while page := ledger.received(channel, position):
        for at, (record, received_utc) in enumerate(page, position):
            if isinstance(record.entry.body, CodeRecord):
                yield at, record, received_utc
        position += len(page)


def erase(store: FleetStore, channel: str, what: Sequence[Due]) -> int:
    """Erase codes, and say so in the log; return how many.

    Killed at any point, what was erased is said and what was not is as it was, each sample whole; the next run
    goes on.
    """
    count = 0
    for some in _transactions(what):
        with store.write() as ledger:
            ledger.decide(channel, [each.body for each in some])
            count += ledger.erase_codes(channel, [position for each in some for position in each.positions])
    return count


def _transactions(what: Sequence[Due]) -> Iterator[list[Due]]:
    """Yield it in parts, each with all that goes of its samples."""
    samples: dict[bytes, list[Due]] = {}
    for each in what:
        samples.setdefault(each.body.sample, []).append(each)
    some: list[Due] = []
    for dues in samples.values():
        some += dues
        if len(some) >= AT_ONCE:
            yield some
            some = []
    if some:
        yield some
