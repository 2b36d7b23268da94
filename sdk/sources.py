"""Who said what of one thing, and whose word counts: the last one in order whose source is not quarantined.

A *source* is a device, or one operator on a device. A quarantine says up to which Lamport counter its events do
not count. What it said is kept: released, in whatever order all this arrives, it is as if it had never been
quarantined; quarantined, as if it had never been there (docs/labels.md, section 5).

No files, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

ANYBODY: Final = ""
"""Instead of an operator: the whole device."""
MERGES: Final = "*merges"
"""Instead of an operator: which classes are one, or are not, whoever says so on the device. In a fleet that is for
its people to say (docs/labels.md, section 5)."""


class Order(NamedTuple):
    """The total order of entries."""

    counter: int
    device: str


@dataclass(frozen=True, slots=True)
class Said:
    """Something that a source said of one thing: `counter` and `device` are its order."""

    counter: int
    device: str
    operator: str

    @property
    def order(self) -> Order:
        """Its place in the total order."""
        return Order(self.counter, self.device)

    @property
    def source(self) -> tuple[str, str]:
        """The device, and the operator on it."""
        return self.device, self.operator

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """Device and operator of each source that it is held back with."""
        return (self.device, ANYBODY), self.source


@dataclass(frozen=True)
class Hold:
    """A source's events up to a counter do not count, and why.

    Attributes:
        device: Whose events.
        operator: This operator's on it; `ANYBODY` for all of the device's.
        through: Events with a Lamport counter up to this one.
        reason: Why, in words.
        by: Who decided it.
        wall_time_us: When, by the service's clock, microseconds since 1970.
    """

    device: str
    operator: str
    through: int
    reason: str
    by: str
    wall_time_us: int


class Holds:
    """All quarantines: per source the last word in order. Order and repetition change nothing."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[Order, Hold]] = {}

    def put(self, order: Order, hold: Hold) -> bool:
        """Take in one decision; return whether it may change whose word counts."""
        key = hold.device, hold.operator
        old = self._last.get(key)
        if old is not None and old[0] >= order:
            return False
        self._last[key] = order, hold
        return hold.through != (0 if old is None else old[1].through)

    def counts(self, said: Said) -> bool:
        """Return whether this word counts."""
        if not self._last:
            return True
        return all(key not in self._last or said.counter > self._last[key][1].through for key in said.sources)

    def standing(self) -> list[Hold]:
        """Return the quarantines that hold something back, by device and operator."""
        return [hold for _, (_, hold) in sorted(self._last.items()) if hold.through]

    def last(self, device: str, operator: str = ANYBODY) -> Hold | None:
        """Return the last decision about a source, a release too; None where there was none."""
        found = self._last.get((device, operator))
        return None if found is None else found[1]


S = TypeVar("S", bound=Said)


class Sayings(Generic[S]):
    """What sources said of each key; `get` is the word that counts.

    Of each source the last word is kept and no other: a quarantine goes up to a counter, so where the last does
    not count, none before it does. Nearly every key has one source, which costs one entry. However many it has,
    one more word costs no more.

    Args:
        holds: Whose word counts; call `recount` where these changed.
    """

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self._winner: dict[bytes, S] = {}
        self._others: dict[bytes, dict[tuple[str, str], S]] = {}  # of each key by source, without the winner

    def put(self, key: bytes, said: S) -> None:
        """Take in one word."""
        winner, others = self._winner.get(key), self._others.get(key, {})
        mine = winner is not None and winner.source == said.source
        before = winner if mine else others.get(said.source)
        if before is not None and before.order >= said.order:
            return
        # Where an earlier word of a source counts, so does a later one.
        if self._holds.counts(said) and (winner is None or winner.order < said.order):
            others.pop(said.source, None)
            if winner is not None and not mine:
                others[winner.source] = winner
            self._winner[key] = said
        else:
            others[said.source] = said
        self._keep_others(key, others)

    def _keep_others(self, key: bytes, others: dict[tuple[str, str], S]) -> None:
        if others:
            self._others[key] = others
        else:
            self._others.pop(key, None)

    def _settle(self, key: bytes, kept: list[S]) -> None:
        counting = [each for each in kept if self._holds.counts(each)]
        winner = max(counting, key=lambda each: each.order, default=None)
        if winner is None:
            self._winner.pop(key, None)
        else:
            self._winner[key] = winner
        self._keep_others(key, {each.source: each for each in kept if each is not winner})

    def recount(self, device: str) -> bool:
        """Look again whose word counts where a device has said something; return whether another does now."""
        keys = [key for key, winner in self._winner.items() if winner.device == device]
        keys += [key for key, others in self._others.items() if any(source[0] == device for source in others)]
        changed = False
        for key in keys:
            before = self._winner.get(key)
            self._settle(key, self.all_of(key))
            changed |= self._winner.get(key) is not before
        return changed

    def get(self, key: bytes) -> S | None:
        """Return the word that counts; None where nobody's does."""
        return self._winner.get(key)

    def all_of(self, key: bytes) -> list[S]:
        """Return the last word of every source, whether or not it counts."""
        winner = self._winner.get(key)
        return [*self._others.get(key, {}).values(), *([] if winner is None else [winner])]

    def alone(self, key: bytes) -> bool:
        """Return whether nobody but the source of the word that counts said anything of this key."""
        return key not in self._others

    def __contains__(self, key: bytes) -> bool:
        return key in self._winner

    def __iter__(self) -> Iterator[bytes]:
        """Yield the keys of which somebody's word counts."""
        return iter(self._winner)

    def everybodys(self) -> Iterable[bytes]:
        """Return the keys of which anybody said anything."""
        return self._winner.keys() | self._others.keys()
