"""Who labelled what and when, read from the label log, and what taking it back means.

Nothing is kept here that is not in the log: undoing appends labels that say what was said before. Rules:

- Undo is exact. A sample gets the label that it had before the event that is undone: an earlier one by anybody,
  the release's own, or none. The live set, and so the head, is then as if the event had never been.
- Only the newest event on a sample can be undone: an older one has no say any more.
- Restoring a head takes back this device's labels since it, all at once or none. What other devices said since
  stays, and the plan says whether the result is exactly that head's live set.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from device_agent.heads_and_updates import HeadRow
from device_agent.store import Store
from device_agent.withdrawn import is_alone
from sdk.errors import LabelError
from sdk.labels import CodeRecord, DefineClass, Label, Record

_CODED: Final = (CodeRecord, DefineClass)
"""Entries that change no label by themselves."""

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


@dataclass(frozen=True)
class Restoration:
    """The labels that bring an earlier head back.

    Attributes:
        labels: Samples with the class they had then; None withdraws.
        exact: Nothing has come from elsewhere since, so the live set will be that head's.
    """

    labels: tuple[tuple[bytes, bytes | None], ...]
    exact: bool


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
        self._of_sample: dict[bytes, list[LabelEvent]] = {}
        self._by_arrival: list[LabelEvent] = []
        self._own: dict[int, LabelEvent] = {}
        self._others_arrived = 0  # arrival of the newest entry from elsewhere that can change a live set
        self._merged_at = 0

    def _catch_up(self) -> None:
        while batch := self._store.log.records_after(self._through):
            for arrival, record in batch:
                self._read(arrival, record)
                self._through = arrival

    def _read(self, arrival: int, record: Record) -> None:
        entry, body = record.entry, record.entry.body
        own = entry.device == self._store.device
        if not own and not isinstance(body, DefineClass):
            self._others_arrived = arrival
        if not isinstance(body, Label):
            if not isinstance(body, _CODED):
                self._merged_at = arrival
            return
        event = LabelEvent(
            entry.counter,
            entry.device,
            entry.seq,
            arrival,
            entry.wall_time_us,
            body.sample,
            body.class_id,
            body.operator,
        )
        insort(self._of_sample.setdefault(body.sample, []), event)
        self._by_arrival.append(event)
        if own:
            self._own[entry.seq] = event

    def _before(self, event: LabelEvent) -> bytes | None:
        events = self._of_sample[event.sample]
        place = events.index(event)
        return events[place - 1].class_id if place else self._base_class(event.sample)

    def rows(self, limit: int, offset: int = 0) -> list[LabelRow]:
        """Return label events, the newest to arrive first."""
        with self._lock:
            self._catch_up()
            end = len(self._by_arrival) - offset
            return [self._row(event) for event in reversed(self._by_arrival[max(0, end - limit) : max(0, end)])]

    def _row(self, event: LabelEvent) -> LabelRow:
        newest = self._of_sample[event.sample][-1]
        return LabelRow(event, self._before(event), newest is event, event.device == self._store.device)

    def of_sample(self, sample: bytes) -> list[LabelRow]:
        """Return the events of one sample, the last word first."""
        with self._lock:
            self._catch_up()
            return [self._row(event) for event in reversed(self._of_sample.get(sample, []))]

    def said_twice(self, sample: bytes) -> bool:
        """Return whether the last two events on a sample agree: somebody looked again and confirmed the label."""
        with self._lock:
            self._catch_up()
            events = self._of_sample.get(sample, [])
            if not events or events[-1].class_id is None:
                return False
            before = events[-2].class_id if len(events) > 1 else self._base_class(sample)
            return before == events[-1].class_id

    def last_own(self) -> LabelRow | None:
        """Return the newest label of this device's operators; None before the first."""
        with self._lock:
            self._catch_up()
            return self._row(self._own[max(self._own)]) if self._own else None

    def undoing(self, first_seq: int, seq: int) -> list[tuple[bytes, bytes | None]]:
        """Return the labels that undo those of this device's log entries from `first_seq` to `seq`.

        Raises:
            LabelError: there is none among them, or somebody has labelled one of the samples since.
        """
        with self._lock:
            self._catch_up()
            events = [self._own[number] for number in sorted(self._own) if first_seq <= number <= seq]
            if not events:
                raise LabelError(
                    f"entries {first_seq} to {seq} of this device's log hold no label", hint="Look at its history."
                )
            first: dict[bytes, LabelEvent] = {}
            for event in events:
                first.setdefault(event.sample, event)
            newest = {event.sample: event for event in events}
            if any(self._of_sample[event.sample][-1] is not event for event in newest.values()):
                raise LabelError(
                    "somebody has labelled this picture since", hint="Undo that label first, or label it again."
                )
            return [(sample, self._before(event)) for sample, event in first.items()]

    def restoring(self, row: HeadRow) -> Restoration:
        """Return the labels that bring the live set of an earlier head back, as far as this device may.

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
            for sample in dict.fromkeys(e.sample for e in self._by_arrival if e.arrival > row.through):
                events = self._of_sample[sample]
                if events[-1].device != self._store.device or events[-1].arrival <= row.through:
                    continue  # somebody else had the last word, or nothing that counts has changed
                then = [event for event in events if event.arrival <= row.through]
                class_id = then[-1].class_id if then else self._base_class(sample)
                if class_id != events[-1].class_id:
                    labels.append((sample, class_id))
            exact = max(self._others_arrived, self._merged_at) <= row.through
            return Restoration(tuple(labels), exact)
