"""Erasing codes that are older than a plant wants to keep them: events stay, codes go.

A code reveals something of its picture. The log's hash chain covers a code's digest, so the code can be taken out
and the chain still holds (docs/labels.md, section 1). What is erased is said in the log: the fleet appends a code
record without a code, the last word on that sample, so that every device's live set stays the fleet's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sdk.fleet.store import FleetStore, Ledger
from sdk.labels import CodeRecord, Record

AT_ONCE: Final = 256
"""Codes erased in one transaction: a running service waits for no more."""
DAY_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Policy:
    """What may go.

    Attributes:
        older_than_s: Codes that came before that many seconds.
        live_too: Those that count now as well: these samples are then no longer learned from. Without it only what
            nothing rests on: withdrawn samples, and feature spaces that no release in use has.
    """

    older_than_s: float
    live_too: bool = False


@dataclass(frozen=True)
class Due:
    """One sample's codes in one feature space that the policy lets go.

    Attributes:
        body: Its newest code record.
        positions: Where the channel's log has records of it with a code.
        size_bytes: Of these codes.
        live: Whether it counts now.
    """

    body: CodeRecord
    positions: tuple[int, ...]
    size_bytes: int
    live: bool


def due(store: FleetStore, channel: str, policy: Policy, now_utc: float) -> list[Due]:
    """Return what a policy lets go of a channel, in the order of its log. Nothing is changed.

    Cost: the whole log is read once.
    """
    learned = store.learned(channel)
    live = frozenset(() if learned is None else learned.live.samples)
    held = frozenset(() if learned is None else (hold.device for hold in learned.holds))
    with store.read() as ledger:
        in_use = ledger.spaces_in_use(channel)
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
    out = []
    current = None if learned is None else bytes.fromhex(learned.live.space)
    for (space, sample), (body, positions, size, received_utc) in found.items():
        counts = space == current and sample in live
        retired = space not in in_use
        # In a space that is in use but not the current one, nobody here can say whether the code counts.
        idle = retired or (space == current and not counts and (space, sample) not in may_return)
        if positions and received_utc < now_utc - policy.older_than_s and (idle or policy.live_too):
            out.append(Due(body, tuple(positions), size, counts))
    return out


def _coded(ledger: Ledger, channel: str) -> Iterator[tuple[int, Record, float]]:
    position = 1
    while page := ledger.received(channel, position):
        for at, (record, received_utc) in enumerate(page, position):
            if isinstance(record.entry.body, CodeRecord):
                yield at, record, received_utc
        position += len(page)


def erase(store: FleetStore, channel: str, what: Sequence[Due]) -> int:
    """Erase codes, and say so in the log; return how many.

    Killed at any point, what was erased is said and what was not is as it was; the next run goes on.
    """
    count = 0
    for begin in range(0, len(what), AT_ONCE):
        some = what[begin : begin + AT_ONCE]
        with store.write() as ledger:
            ledger.decide(channel, [each.body for each in some])
            count += ledger.erase_codes(channel, [position for each in some for position in each.positions])
    return count
