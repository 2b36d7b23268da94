"""What the classes of a proof have been called, by whose word, and whether a decision's name can be a class's.

A digest covers which sample is of which class, and no name (docs/labels.md, section 3): the bundle's names are
certain, those that entries of a log give are the word of whoever holds the file, until that log is compared with
the fleet's. So here a name counts by where it is from:

- the bundle's name of a class that is as likely, or is one with such a class as the head had learned it: as it is;
- one that an entry gives, and no other class has had: as it is, and the entry is told;
- one that an entry takes from a class that has it: not at all, for no device lets its people do that, but where
  the logs are the fleet's, of which two stations may have done it at once;
- one that another class had before, or has from elsewhere, or that comes by a merge which the head had not
  learned: only where the logs are the fleet's, for whoever writes a file could have written this.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from sdk.class_names import key_of
from sdk.labels import DefineClass, Entry, MergeClasses, Quarantine, Record, RenameClass
from sdk.merges import Merges

NAMING: Final = (DefineClass, RenameClass, MergeClasses)
"""What may give a class another name."""


@dataclass(frozen=True)
class Named:
    """The entry of a log by which a class is called what it is called.

    Attributes:
        name: That.
        bundle: What the bundle calls the class; empty where it has none of that id.
        merged: It says that this class is one with another one, whose name it is.
        device, seq, operator: Who said it.
        at_utc: By that device's clock; seconds since 1970.
    """

    name: str
    bundle: str
    merged: bool
    device: str
    seq: int
    operator: str
    at_utc: float


@dataclass(frozen=True)
class Called:
    """A name that a class has had.

    Attributes:
        named: By which entry; None where the bundle calls it so, or nobody calls it anything.
        doubt: Why it is the word of the file alone, and no more than that; empty where it counts.
        wrong: Why no device can have called the class so; empty where one can.
    """

    named: Named | None = None
    doubt: str = ""
    wrong: str = ""


@dataclass
class _Span:
    """A name that a class had, from one place in the file to another.

    Attributes:
        class_id, name: Which, and what.
        since, until: Places: it had it at `since`, and at `until` no more. Of one that came too late to count they
            are the same.
        entry: That gave it; None for the bundle.
        first: The class had none before.
    """

    class_id: bytes
    name: str
    order: tuple[int, str]
    since: int
    until: float
    entry: Entry | None
    first: bool


@dataclass
class Names:
    """The names of a bundle, and what entries say of them, in the order in which they came.

    Args:
        bundle: Class id to name.
    """

    bundle: Mapping[bytes, str]
    _place: int = field(init=False, default=0)
    _spans: dict[str, list[_Span]] = field(init=False, default_factory=dict)  # by the key of their name
    _now: dict[bytes, _Span] = field(init=False, default_factory=dict)  # by what stands for a class
    _named: set[bytes] = field(init=False, default_factory=set)
    _roots: Merges = field(init=False, default_factory=Merges)  # whether or not they count
    _merges: list[tuple[Entry, MergeClasses]] = field(init=False, default_factory=list)
    _held: set[str] = field(init=False, default_factory=set)  # devices that the fleet held back

    def __post_init__(self) -> None:
        for class_id, name in self.bundle.items():
            self._call(class_id, name, (0, ""), None)

    def hear(self, record: Record) -> None:
        """Note what an entry says of names, whether or not the head had learned it."""
        entry, body = record.entry, record.entry.body
        self._place += 1
        if isinstance(body, MergeClasses):
            self._merges.append((entry, body))
            self._join(body)
        elif isinstance(body, (DefineClass, RenameClass)):
            self._call(body.class_id, body.name, (entry.counter, entry.device), entry)
        elif isinstance(body, Quarantine):
            self._held.add(body.device)

    def _join(self, body: MergeClasses) -> None:
        """Two classes go by the last name of either: the other name is free from here on."""
        found = [self._now.pop(self._roots.canonical(each), None) for each in (body.one, body.other)]
        self._roots.join(body.one, body.other)
        named = sorted((each for each in found if each is not None), key=lambda span: span.order)
        for span in named[:-1]:
            span.until = min(span.until, self._place)
        if named:
            self._now[self._roots.canonical(body.one)] = named[-1]

    def _call(self, class_id: bytes, name: str, order: tuple[int, str], entry: Entry | None) -> None:
        span = _Span(class_id, name, order, self._place, math.inf, entry, class_id not in self._named)
        self._spans.setdefault(key_of(name), []).append(span)
        self._named.add(class_id)
        root = self._roots.canonical(class_id)
        before = self._now.get(root)
        if before is not None and order < before.order:
            span.until = self._place
            return
        if before is not None:
            before.until = self._place
        self._now[root] = span

    def called(
        self, name: str, likely: Sequence[bytes], canonical: Callable[[bytes], bytes], compared: bool
    ) -> Called:
        """Return how one of some classes came to be called so.

        Args:
            name: As it was shown.
            likely: The classes that may have been meant, the likeliest first.
            canonical: What stands for a class by the merges that the head had learned.
            compared: The logs are the fleet's, so that what they say of names was said.
        """
        ones = {canonical(each) for each in likely}
        family = {each for each in {*self._named, *likely} if canonical(each) in ones}
        if any(self.bundle.get(each) == name for each in family):
            return Called()
        alike = self._spans.get(key_of(name), [])
        given = [each for each in alike if each.class_id in family and each.name == name]
        if given:
            return self._by(given, [each for each in alike if each.class_id not in family], likely, compared)
        if not family & self._named:
            # It has its name from an earlier release: any that no other class has.
            return Called(wrong="which is the name of another class" if alike else "")
        return self._by_merge(name, family, likely, compared)

    def _by(self, given: list[_Span], others: list[_Span], likely: Sequence[bytes], compared: bool) -> Called:
        """Return how a class has a name that entries gave it, and others may have or have had."""
        first = min((each.since for each in others), default=math.inf)
        alone = [each for each in given if each.since < first]
        if alone or compared:
            return Called(self._by_entry((alone or given)[-1], likely))
        one = self._roots.canonical(likely[0])
        rivals = [
            each
            for each in others
            if self._roots.canonical(each.class_id) != one
            and (each.entry is None or each.entry.device not in self._held)
        ]
        rivals.sort(key=lambda span: span.since)
        began = [each.since for each in rivals]
        ended = list(accumulate((each.until for each in rivals), max))

        def is_taken(span: _Span) -> bool:
            at = bisect_left(began, span.since)
            return not span.first and at > 0 and ended[at - 1] > span.since

        free = [each for each in given if not is_taken(each)]
        named = self._by_entry((free or given)[-1], likely)
        if free:
            doubt = (
                f"another class has been called {named.name!r} too, and which was when is this file's word alone"
            )
            return Called(named, doubt=doubt)
        wrong = f"as which another class went when entry {named.seq} of {named.device} called this one so"
        return Called(named, wrong=wrong)

    def _by_merge(self, name: str, family: set[bytes], likely: Sequence[bytes], compared: bool) -> Called:
        """Return how a class goes by a name of another one, by a merge that the head had not learned."""
        had = {each.class_id for each in self._spans.get(key_of(name), []) if each.name == name}

        def together(count: int) -> bool:
            merges = Merges()
            for each in family:
                merges.join(likely[0], each)
            for _, body in self._merges[:count]:
                merges.join(body.one, body.other)
            one = merges.canonical(likely[0])
            return any(merges.canonical(each) == one for each in had)

        count = bisect_left(range(len(self._merges) + 1), True, key=together)
        if count > len(self._merges):
            return Called(wrong="as which it never went")
        named = self._told(name, self._merges[count - 1][0], likely, merged=True)
        doubt = f"that its class is one with {name!r} the head had not learned: it is this file's word alone"
        return Called(named, doubt="" if compared else doubt)

    def _by_entry(self, span: _Span, likely: Sequence[bytes]) -> Named:
        assert span.entry is not None  # the bundle's names were asked for first
        return self._told(span.name, span.entry, [span.class_id, *likely])

    def _told(self, name: str, entry: Entry, classes: Iterable[bytes], *, merged: bool = False) -> Named:
        bundle = next((self.bundle[each] for each in classes if each in self.bundle), "")
        operator = str(getattr(entry.body, "operator", ""))
        return Named(name, bundle, merged, entry.device, entry.seq, operator, entry.wall_time_us / 1e6)
