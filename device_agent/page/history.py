"""Who labelled what and when, read from the label log, and what taking it back means.

Nothing is kept here that is not in the log: undoing appends labels that say what was said before. Rules:

- Undo is exact. A sample gets the label that it had before the event that is undone: an earlier one by anybody,
  the release's own, or none. The live set, and so the head, is then as if the event had never been.
- Only the newest event on a sample can be undone: an older one has no say any more.
- Restoring a head takes back this device's labels since it, all at once or none. What other devices said since
  stays; whether the result is exactly that head's live set, its digest says.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from device_agent.heads_and_updates import HeadRow
from device_agent.store import Store
from device_agent.withdrawn import is_alone
from sdk.errors import LabelError
from sdk.labels import Label, Record

T = TypeVar("T")
BaseClass = Callable[[bytes], bytes | None]
"""The class that the release itself gives a sample; None where it has none."""


class LabelEvent(NamedTuple):
    """One label event of the log. Events of a sample sort by who has the last word."""

    counter: int
    device: str
    seq: int
    arrival: int
    at_us: int
    sample: bytes
    class_id: bytes | None
    operator: str


@dataclass(frozen=True)
class LabelRow:
    """A label event with what it changed.

    Attributes:
        event: What was said.
        before: The class that the sample had before; None for none.
        current: Nobody has said anything about the sample since.
        own: It was said on this device.
    """

    event: LabelEvent
    before: bytes | None
    current: bool
    own: bool


class ClassUse(NamedTuple):
    """How often a label was given with a class, and of how many samples that is the last word."""

    given: int
    standing: int


class _Numbered(Generic[T]):
    """Values of which many are equal, each by a number."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._number: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self.values)

    def find(self, value: T) -> int | None:
        """Return the number of a value; None where it has none."""
        return self._number.get(value)

    def __call__(self, value: T) -> int:
        """Return the number of a value, a new one where it has none."""
        number = self._number.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class _Events:
    """Label events by the order of their arrival, in columns: 52 bytes for each, as objects they are 500.

    Those of a sample are a chain from the last word back.
    """

    def __init__(self) -> None:
        self.arrivals = array("q")
        self._counters, self._seqs, self._at_us = array("q"), array("q"), array("q")
        self._sample, self._class, self._device, self._operator = array("i"), array("i"), array("i"), array("i")
        self._before = array("i")  # the event before it on the same sample; -1 for none
        self._samples, self._classes = _Numbered[bytes](), _Numbered[bytes | None]()
        self._devices, self._operators = _Numbered[str](), _Numbered[str]()
        self._newest = array("i")  # by sample

    def __len__(self) -> int:
        return len(self.arrivals)

    def __getitem__(self, number: int) -> LabelEvent:
        return LabelEvent(
            self._counters[number],
            self._devices.values[self._device[number]],
            self._seqs[number],
            self.arrivals[number],
            self._at_us[number],
            self._samples.values[self._sample[number]],
            self._classes.values[self._class[number]],
            self._operators.values[self._operator[number]],
        )

    def seq(self, number: int) -> int:
        """Return the event's number in its device's log."""
        return self._seqs[number]

    def append(self, event: LabelEvent) -> int:
        """Take an event in; return its number."""
        number, sample = len(self), self._samples(event.sample)
        self._counters.append(event.counter)
        self._seqs.append(event.seq)
        self.arrivals.append(event.arrival)
        self._at_us.append(event.at_us)
        self._sample.append(sample)
        self._class.append(self._classes(event.class_id))
        self._device.append(self._devices(event.device))
        self._operator.append(self._operators(event.operator))
        if sample == len(self._newest):
            self._newest.append(-1)
        later, before = -1, self._newest[sample]
        while before >= 0 and self._order(before) > self._order(number):
            later, before = before, self._before[before]
        self._before.append(before)
        if later < 0:
            self._newest[sample] = number
        else:
            self._before[later] = number
        return number

    def _order(self, number: int) -> tuple[int, str, int]:
        return self._counters[number], self._devices.values[self._device[number]], self._seqs[number]

    def before(self, number: int) -> LabelEvent | None:
        """Return the event that came before it on the same sample."""
        before = self._before[number]
        return None if before < 0 else self[before]

    def newest(self, number: int) -> int:
        """Return the number of the last word on the sample of an event."""
        return self._newest[self._sample[number]]

    def uses(self) -> dict[bytes | None, ClassUse]:
        """Return how the classes were used, before merges; None is used by who takes a label back."""
        given, standing = Counter(self._class), Counter(self._class[number] for number in self._newest)
        return {self._classes.values[n]: ClassUse(count, standing[n]) for n, count in given.items()}

    def of_sample(self, sample: bytes) -> Iterator[int]:
        """Yield the numbers of a sample's events, the last word first."""
        found = self._samples.find(sample)
        number = -1 if found is None else self._newest[found]
        while number >= 0:
            yield number
            number = self._before[number]

    def samples_since(self, arrival: int) -> list[bytes]:
        """Return the samples of the events that arrived after this one, each once, in order."""
        numbers = dict.fromkeys(self._sample[bisect_right(self.arrivals, arrival) :])
        return [self._samples.values[number] for number in numbers]


class LabelHistory:
    """The label events of a store, kept up with its log. Any thread may call.

    Args:
        store: Where the log is.
        base_class: What the serving release says of a sample of its own.
    """

    def __init__(self, store: Store, base_class: BaseClass) -> None:
        self._store = store
        self._base_class = base_class
        self._lock = threading.Lock()
        self._through = 0
        self._events = _Events()
        self._own = array("i")  # numbers of the events that this device's log has, in its order
        self._used: tuple[int, dict[bytes | None, ClassUse]] = (0, {})  # of so many events

    def _catch_up(self) -> None:
        while batch := self._store.log.records_after(self._through):
            for arrival, record in batch:
                self._read(arrival, record)
                self._through = arrival

    def _read(self, arrival: int, record: Record) -> None:
        entry, body = record.entry, record.entry.body
        own = entry.device == self._store.device
        if not isinstance(body, Label):
            return
        number = self._events.append(
            LabelEvent(
                entry.counter,
                entry.device,
                entry.seq,
                arrival,
                entry.wall_time_us,
                body.sample,
                body.class_id,
                body.operator,
            )
        )
        if own:
            self._own.append(number)

    def _before(self, number: int) -> bytes | None:
        before = self._events.before(number)
        return self._base_class(self._events[number].sample) if before is None else before.class_id

    def rows(self, limit: int, offset: int = 0) -> list[LabelRow]:
        """Return label events, the newest to arrive first."""
        with self._lock:
            self._catch_up()
            end = max(0, len(self._events) - offset)
            return [self._row(number) for number in reversed(range(max(0, end - limit), end))]

    def _row(self, number: int) -> LabelRow:
        event, newest = self._events[number], self._events.newest(number)
        return LabelRow(event, self._before(number), newest == number, event.device == self._store.device)

    def uses(self) -> dict[bytes | None, ClassUse]:
        """Return how each class was used in labels, ids before merges."""
        with self._lock:
            self._catch_up()
            if self._used[0] != len(self._events):
                self._used = len(self._events), self._events.uses()
            return self._used[1]

    def of_sample(self, sample: bytes) -> list[LabelRow]:
        """Return the events of one sample, the last word first."""
        with self._lock:
            self._catch_up()
            return [self._row(number) for number in self._events.of_sample(sample)]

    def said_twice(self, sample: bytes, canonical: Callable[[bytes], bytes]) -> bool:
        """Return whether the last two events on a sample agree: somebody looked again and confirmed the label.

        Args:
            sample: Which.
            canonical: Gives the id that stands for a class: it may have been made part of another in between.
        """
        with self._lock:
            self._catch_up()
            newest = next(self._events.of_sample(sample), None)
            said = None if newest is None else self._events[newest].class_id
            if newest is None or said is None:
                return False
            before = self._before(newest)
            return before is not None and canonical(before) == canonical(said)

    def last_own(self) -> LabelRow | None:
        """Return the newest label of this device's operators; None before the first."""
        with self._lock:
            self._catch_up()
            return self._row(self._own[-1]) if self._own else None

    def undoing(self, first_seq: int, seq: int) -> list[tuple[bytes, bytes | None]]:
        """Return the labels that undo those of this device's log entries from `first_seq` to `seq`.

        Raises:
            LabelError: there is none among them, or somebody has labelled one of the samples since.
        """
        with self._lock:
            self._catch_up()
            begin = bisect_left(self._own, first_seq, key=self._events.seq)
            numbers = self._own[begin : bisect_right(self._own, seq, key=self._events.seq)]
            if not numbers:
                raise LabelError(
                    f"entries {first_seq} to {seq} of this device's log hold no label", hint="Look at its history."
                )
            first: dict[bytes, int] = {}
            for number in numbers:
                first.setdefault(self._events[number].sample, number)
            newest = {self._events[number].sample: number for number in numbers}
            if any(self._events.newest(number) != number for number in newest.values()):
                raise LabelError(
                    "somebody has labelled this picture since", hint="Undo that label first, or label it again."
                )
            return [(sample, self._before(number)) for sample, number in first.items()]

    def restoring(self, row: HeadRow) -> list[tuple[bytes, bytes | None]]:
        """Return the labels that bring the live set of an earlier head back, as far as this device may: samples
        with the class that they had then, None for none.

        Raises:
            LabelError: it is one that no reading of the log gives (`withdrawn.is_alone`).
        """
        if is_alone(row):
            raise LabelError(
                f"head {row.number} left out what had come before a label was taken back",
                hint="Roll back to the head before it, or to the one after it.",
            )
        with self._lock:
            self._catch_up()
            labels: list[tuple[bytes, bytes | None]] = []
            for sample in self._events.samples_since(row.through):
                last, *earlier = (self._events[number] for number in self._events.of_sample(sample))
                if last.device != self._store.device or last.arrival <= row.through:
                    continue  # somebody else had the last word, or nothing that counts has changed
                then = next((event for event in earlier if event.arrival <= row.through), None)
                class_id = self._base_class(sample) if then is None else then.class_id
                if class_id != last.class_id:
                    labels.append((sample, class_id))
            return labels
