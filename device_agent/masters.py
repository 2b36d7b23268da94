"""Master parts: pictures of known class that every head must still tell, and that none learns from.

Quality engineers keep a master (a limit sample, a challenge part) of each thing that an inspection must never get
wrong, and show them to it before a shift. A head that tells them worse than the best one that served, by more than
`MAX_DROP` of their mean recall, is taken back, whoever's labels brought it, and however few labels there are to
score it by otherwise. One that a person here asked for, by taking labels back, stays, and its price is told.

Here is what heads say of them; where their pictures and codes come from is `master_folder`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from sdk.class_names import key_of
from sdk.codes import Codes
from sdk.head import Head
from sdk.reason import Reason

MAX_DROP: Final = 0.05
"""Of the mean recall of master parts. One that is lost of five, in one of three classes, is more than that."""


class Told(NamedTuple):
    """What a head says of one master part: a class's name, empty for unknown, and whether that is right."""

    file: Path
    sample: bytes
    wanted: str
    shown: str
    right: bool


class Telling(NamedTuple):
    """What a head says of the master parts that it can be asked about, and whose class it knows none of.

    Attributes:
        told: Parts of known classes.
        strange: Classes of the others, as the folders are called.
        undone: So many of those told wrongly were told until a person here took labels back.
    """

    told: list[Told]
    strange: tuple[str, ...]
    undone: int = 0


@dataclass(frozen=True)
class MasterCodes:
    """Master parts in one feature space; row i of each belongs to part i.

    Attributes:
        files: Where their pictures are.
        samples: SHA-256 of the pictures, 32 bytes each.
        classes: Names of their classes, as the folders are called.
        codes: (m, d) int8.
    """

    files: tuple[Path, ...]
    samples: tuple[bytes, ...]
    classes: tuple[str, ...]
    codes: Codes

    def told(self, head: Head, names: Callable[[bytes], str]) -> list[Told]:
        """Return what a head says of each part of a class that it knows.

        Args:
            head: Of the same feature space.
            names: Class id to the name people use.
        """
        if not self.files:
            return []
        known = [names(class_id) for class_id in head.class_ids]
        keys = {key_of(name) for name in known}
        decisions = head.decide(self.codes)
        shown = [
            "" if unknown else known[index]
            for unknown, index in zip(decisions.unknown, decisions.class_index, strict=True)
        ]
        return [
            Told(file, sample, wanted, said, key_of(said) == key_of(wanted))
            for file, sample, wanted, said in zip(self.files, self.samples, self.classes, shown, strict=True)
            if key_of(wanted) in keys
        ]

    def strange(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the classes that are none of these names, however written: a slip, or one that was renamed."""
        keys = {key_of(name) for name in known}
        return tuple(sorted({name for name in self.classes if key_of(name) not in keys}))


class MasterSide(NamedTuple):
    """Master parts, and a head of the same feature space.

    Attributes:
        parts: Their codes.
        head: Calibrated.
        names: Class id to the name people use.
        learned: Samples that the head has learned from: a part among them shows nothing.
    """

    parts: MasterCodes
    head: Head
    names: Callable[[bytes], str]
    learned: frozenset[bytes]

    def right(self) -> dict[bytes, bool]:
        """Return for each part whether the head tells it; what is called unknown is missed."""
        told = self.parts.told(self.head, self.names)
        return {each.sample: each.right for each in told if each.sample not in self.learned}


class Mark(NamedTuple):
    """What is kept of one master part.

    Attributes:
        right: Whether the best head told it.
        undone: It was told until a person here took labels back, and is not since.
    """

    right: bool
    undone: bool = False


class Best:
    """What the head said of master parts that told them best: many small steps down are one large one.

    Of the heads of one release that were confirmed on this device.

    Args:
        marks: By part, as they were kept.
        keep: Keeps them durably; called with all of them where one has changed.
    """

    def __init__(
        self, marks: Mapping[bytes, Mark] | None = None, keep: Callable[[Mapping[bytes, Mark]], None] | None = None
    ) -> None:
        self._marks = dict(marks or {})
        self._keep = keep or (lambda _: None)

    def of(self, confirmed: MasterSide) -> dict[bytes, bool]:
        """Return for each part that a confirmed head can be asked about whether the best head told it.

        That is the confirmed head itself from now on, where it tells them as well.
        """
        now = confirmed.right()
        known = {sample: self._marks.get(sample, Mark(right)) for sample, right in now.items()}
        best = {sample: mark.right for sample, mark in known.items()}
        recalls = _recalls(confirmed.parts, {sample: (best[sample], right) for sample, right in now.items()})
        if recalls and np.mean([then - since for then, since in recalls.values()]) <= 0:
            best = now
        self._mark({each: Mark(best[each], known[each].undone and not now[each]) for each in now})
        return best

    def undone(self, lost: Iterable[bytes]) -> None:
        """Take parts for lost because a person here took labels back: what follows is not blamed for them."""
        self._mark(dict.fromkeys(lost, Mark(right=False, undone=True)))

    def is_undone(self, sample: bytes) -> bool:
        """Return whether a part was told until a person here took labels back, and by no confirmed head since."""
        mark = self._marks.get(sample)
        return mark is not None and mark.undone

    def _mark(self, marks: Mapping[bytes, Mark]) -> None:
        now = {**self._marks, **marks}
        if now != self._marks:
            self._marks = now  # swapped whole: the page asks on threads of its own
            self._keep(now)


def judge(before: MasterSide, after: MasterSide, best: Best | None = None) -> Reason | None:
    """Return why a head must go, or None where it tells master parts as well as the one before.

    Compared are classes that the head before knows, by mean recall. A head of one class is no judge: telling it
    from another is a new ability. Of one release a head no longer knows a class only because its labels were
    withdrawn, which is what was asked for; a release that does not know it has lost it.

    Args:
        before: Serves where the other goes.
        after: Is judged.
        best: Of the heads of one release that `before` came after; the best of these is compared with. None
            between two releases.
    """
    if len(before.head.class_ids) < 2:
        return None
    was, now = before.right() if best is None else best.of(before), after.right()
    asked = was if best is None else [sample for sample in was if sample in now]
    both = {sample: (was[sample], now.get(sample, False)) for sample in asked if sample not in after.learned}
    recalls = _recalls(before.parts, both)
    drops = {name: then - since for name, (then, since) in recalls.items()}
    if not drops or np.mean(list(drops.values())) <= MAX_DROP:
        return None
    worst = max(drops, key=lambda name: drops[name])
    then, since = recalls[worst]
    return Reason("masters", name=worst, share=since, before=then)


def price_of(before: MasterSide, after: MasterSide, best: Best | None) -> Reason | None:
    """Return what a head costs that stays in any case, None for nothing, and count it for what follows.

    Args:
        before: Served before.
        after: Stays.
        best: Of the heads of this release.
    """
    was, now = before.right(), after.right()
    both = [sample for sample in now if sample in was]
    lost = [sample for sample in both if was[sample] and not now[sample]]
    if len(lost) <= sum(now[sample] and not was[sample] for sample in both):
        return None
    if best is not None:
        best.undone(lost)
    return Reason("undone-masters", times=len(lost), of=len(both))


def _recalls(parts: MasterCodes, both: Mapping[bytes, tuple[bool, bool]]) -> dict[str, tuple[float, float]]:
    """Return two heads' recalls by class, from what each said of parts."""
    by_class: dict[str, list[tuple[bool, bool]]] = {}
    written: dict[str, str] = {}  # one class in two ways is one class all the same
    for sample, name in zip(parts.samples, parts.classes, strict=True):
        if sample in both:
            by_class.setdefault(written.setdefault(key_of(name), name), []).append(both[sample])
    means = {name: np.mean(rights, axis=0) for name, rights in by_class.items()}
    return {name: (float(one), float(other)) for name, (one, other) in means.items()}
