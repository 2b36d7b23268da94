"""The label log as a learner has folded it: the classes, the live rows, and which of these nobody has learned yet.

Each record of the store is folded once, in the order in which it was committed there. What contradicts itself is
counted and left out: every device of the fleet does the same, so live sets still agree.

No lock: every call needs the learner's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from device_agent.former_names import FormerNames
from device_agent.learned import ClassInfo, twins, unheard
from device_agent.moments import labelled_by
from device_agent.naming import Naming
from device_agent.provisional import Changes, joined
from device_agent.store import Store
from device_agent.turns import Turns
from sdk.class_names import key_of
from sdk.head import Head
from sdk.labels import REFUSALS, RELEASE_DEVICE, CodeRecord, Fold, Label, Record

TOLD_EVERY: Final = 5000
"""Entries folded: some seconds on a small device, which inspects nothing at its start before its head is there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What there is to learn: changes, and the live set they lead to.

    Attributes:
        changes: Since the head that they are to be learned by.
        digest: Of the live set.
        samples: Its size.
        through: Arrival number of the last record in it.
        canonical: The class id that stands for each of the changes' and of those asked about.
    """

    changes: Changes
    digest: str
    samples: int
    through: int
    canonical: dict[bytes, bytes]


class Folded:
    """A store's log, folded onto a release.

    Args:
        store: Whose log.
        fold: Of the release.
        turns: Told of a record that contradicts itself.
        former: What the classes of earlier releases were called.

    Attributes:
        device: Whose log.
        fold: What it folds to.
        refused: Records that contradict themselves.
        naming: What the classes are called, and by whose word: swapped whole. Needs no lock.
        is_own: Whether a row was labelled by this station's operators. Needs no lock.
    """

    def __init__(self, store: Store, fold: Fold, turns: Turns, former: FormerNames) -> None:
        self.device = store.device
        self.fold = fold
        self.refused = 0
        # Not a method: who keeps it must not keep this fold, and 70 MB with it, until garbage is collected.
        self.is_own = labelled_by(store.device)
        self.naming = Naming.of(fold, store.device, former.names)
        self._store = store
        self._turns = turns
        self._former = former
        self._through = 0  # arrival number of the last record folded
        self._read = 0
        self._changes: Changes = {}  # folded, and taken by nobody to learn
        self._in_flight: Changes = {}  # being learned: not in the latest head

    def catch_up(self, through: int | None = None) -> None:
        """Fold what the store has and we have not seen, and remember whose rows changed.

        Args:
            through: Arrival number of the last record to fold; None for all.

        Raises:
            StoreFull, StoreCorrupt: the log could not be read.
        """
        renamed = False
        while batch := self._store.log.records_after(self._through):
            for arrival, record in batch:
                if through is not None and arrival > through:
                    batch = []
                    break
                self._fold_one(record)
                self._through = arrival
                renamed |= not isinstance(record.entry.body, Label | CodeRecord)
            if not batch:
                break
        if renamed:
            self.naming = Naming.of(self.fold, self.device, self._former.names)

    def _fold_one(self, record: Record) -> None:
        self._read += 1
        if self._read % TOLD_EVERY == 0:
            _log.info("reading the label log: %d of %d entries", self._read, self._store.log.count())
        try:
            changed = self.fold.changes(record)
        except REFUSALS as error:
            # The fleet should not have taken it. Everybody refuses it alike, so live sets still agree.
            self.refused += 1
            self._turns.fault = str(error)
            return
        for sample, (before, after) in changed.items():
            self._changes[sample] = (self._changes[sample][0] if sample in self._changes else before, after)

    def labelled_here(self, after: int) -> list[tuple[bytes, bytes | None]]:
        """Return samples with the class that people here gave them after this arrival number. Needs no lock."""
        return self._store.log.labelled_here(after)

    @property
    def waiting(self) -> bool:
        """Whether something was folded that nobody has taken to learn."""
        return bool(self._changes)

    def take(self) -> Changes:
        """Return what nobody has taken yet, to be learned now; it is in flight until `learned`.

        After a failure there is something in flight already, which `in_flight` includes and this does not.
        """
        changes, self._changes = self._changes, {}
        self._in_flight = joined(self._in_flight, changes)
        return changes

    def learned(self) -> None:
        """Note that what was taken has been learned."""
        self._in_flight = {}

    def in_flight(self, counted: frozenset[bytes]) -> Work:
        """Return what was taken and is not learned yet. `counted` are class ids of the latest head's moments."""
        return self._work(self._in_flight, counted)

    def ahead(self, counted: frozenset[bytes]) -> Work:
        """Return all that the latest head has not learned, whether somebody took it or not."""
        return self._work(joined(self._in_flight, self._changes), counted)

    def _work(self, changes: Changes, counted: frozenset[bytes]) -> Work:
        classes = {row.class_id for rows in changes.values() for row in rows if row is not None}
        return Work(
            changes=changes,
            digest=self.fold.digest(),
            samples=self.fold.live_samples(),
            through=self._through,
            canonical={c: self.fold.canonical(c) for c in classes | counted},
        )

    # -- classes --------------------------------------------------------------------------------------------------

    def classes(self) -> list[ClassInfo]:
        """Return the classes that exist, by name."""
        labels, own = Counter(self.fold.summed_counts()), Counter[bytes]()
        for (class_id, device), count in self.fold.labels_by().items():
            root = self.fold.canonical(class_id)
            labels[root] += count
            if device == self._store.device:
                own[root] += count
        names = self.fold.class_names()
        # Those too that labels are of and that nobody names: to be named, or made one with others.
        names |= {class_id: self.name(names, class_id) for class_id in labels}
        infos = [ClassInfo(class_id, name, own[class_id], labels[class_id]) for class_id, name in names.items()]
        return sorted(infos, key=lambda each: (each.name.casefold(), each.class_id))

    def twins(self, brought: Collection[bytes]) -> str:
        """Return which labels are of other classes than the release's of these names, in words; empty for none."""
        return twins_of(self.fold, self.naming, self._former.names, brought)

    def unheard(self) -> str:
        """Return which classes were merged on this device and are not one, in a sentence; empty for none."""
        merges = self.fold.unheard_merges()
        if not merges:
            return ""
        names = self.fold.class_names()
        return unheard(merges, lambda class_id: self.name(names, class_id), self.device)

    def names_of(self, head: Head) -> tuple[str, ...]:
        """Return a head's class names, in column order."""
        names = self.fold.class_names()
        # A merge that this head has not learned yet: go by the merged class's name.
        return tuple(self.name(names, class_id) for class_id in head.class_ids)

    def name(self, names: dict[bytes, str], class_id: bytes) -> str:
        """Return what people call a class, of the names that there are. A hint without the lock."""
        return _name(names, self.fold.canonical(class_id), self._former.names, class_id)


def _name(names: Mapping[bytes, str], root: bytes, former: Mapping[bytes, str], class_id: bytes) -> str:
    """Return what people call a class.

    Args:
        names: Of the classes that have one.
        root: What stands for it after merges.
        former: What the classes of earlier releases were called.
        class_id: Which.
    """
    name = names.get(root)
    if name is None:
        # Only an earlier release had it, or its definition is still to come: logs come one after the other.
        name = former.get(class_id)
        if name is None:
            return f"class {class_id.hex()[:6]}"
        if key_of(name) in map(key_of, names.values()):
            return f"{name} ({class_id.hex()[:6]})"
    return name


def twins_of(fold: Fold, naming: Naming, former: Mapping[bytes, str], brought: Collection[bytes]) -> str:
    """Return which labels are of other classes than the release's of these names, in words; empty for none.

    Args:
        fold: What everybody said.
        naming: Of this fold.
        former: What the classes of earlier releases were called.
        brought: The release's classes.
    """
    labels = Counter[bytes]()
    for (class_id, device), count in fold.labels_by().items():
        if device != RELEASE_DEVICE:
            labels[fold.canonical(class_id)] += count
    names = fold.class_names()
    return twins(naming.twins(labels, brought), lambda each: _name(names, fold.canonical(each), former, each))
