"""What the figures of the quality report count: the left-out samples of one head, and those behind each figure.

A figure and its pictures are read from the same `Counted`, which never changes, so that they agree however much is
learned meanwhile. The last few heads whose figures somebody looked at are held (`CountedHeads`), and more of those
whose pictures somebody goes through: whoever corrects labels there makes new heads by that, and keeps the list all
the same, whoever else looks at the figures of those.

Of which camera, lot, shift and origin a sample is, is read once for each head too.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from device_agent.heads import Reference
from device_agent.sample import Sample, SampleStatus
from sdk.head import probabilities_of
from sdk.moments import Ints
from sdk.operating import Rate, judged, operating_point
from sdk.score import decisions_right, share

HELD: Final = 4
"""Heads whose figures were looked at, the one that serves too; 0.9 MB each at 5,000 samples of 13 classes."""
LISTED: Final = 16
"""Heads, beside these, whose pictures were: a list that is lost is lost to who corrects in it."""
MIN_SLICE_GROUPS: Final = 3
"""A slice of fewer parts tells nothing."""
MAX_SLICES: Final = 24
"""Of one kind, those of most parts: a line sees hundreds of lots."""
RELEASE: Final = "release"
STATION: Final = "station"
_TILE: Final = re.compile(r", tile \d+ of \d+$")
"""What `recipe` puts behind a source."""
SliceKind = Literal["origin", "camera", "lot", "shift"]
Bools = npt.NDArray[np.bool_]


class Chosen(NamedTuple):
    """The samples behind a figure.

    Attributes:
        rows: Places in the left-out samples. What was decided wrongly comes first, of that what has its picture
            here, of that what the head was surest of; of what was decided rightly, what it was least sure of.
        of: So many samples the figure is a share of.
    """

    rows: Ints
    of: int


@dataclass(frozen=True)
class Slice:
    """How often the decision is right among some of the left-out samples."""

    kind: SliceKind
    name: str
    right: Rate


class Counted:
    """The left-out samples of one head as the figures count them.

    Args:
        reference: The head's.
        columns: What each sample is of, by the kind of slice; None where that is not known.
        here: (n,) whether its picture is on this device.

    Attributes:
        reference: As given.
        said: (n,) the class decided if it had to be one, as a place in `left_out.class_ids`.
        unknown: (n,) whether the decision shown is "unknown".
        right: (n,) whether the decision shown is the label.
        probability: (n,) of the class `said`.
    """

    def __init__(
        self, reference: Reference, columns: Mapping[SliceKind, Sequence[str | None]], here: Bools
    ) -> None:
        left_out, calibration = reference.left_out, reference.calibration
        self.reference = reference
        self.said: Ints = left_out.scores.argmax(1)
        self.unknown = left_out.unknown(calibration)
        self.right = decisions_right(left_out, calibration)
        self.probability = probabilities_of(left_out.scores, calibration.temperature)[
            np.arange(len(self.said)), self.said
        ]
        self._columns, self._here = columns, here

    @property
    def number(self) -> int:
        """Of the head."""
        return self.reference.number

    def of(self, kind: SliceKind, row: int) -> str | None:
        """Return the camera, lot, shift or origin of a sample."""
        return self._columns[kind][row]

    def confusion(self, truth: int) -> tuple[list[int], int]:
        """Return as which class the samples of one were decided: how often as each, and how often as unknown."""
        of_class = self.reference.left_out.truth == truth
        counts = np.bincount(self.said[of_class & ~self.unknown], minlength=len(self.reference.left_out.class_ids))
        return counts.tolist(), int((of_class & self.unknown).sum())

    def slices(self) -> list[Slice]:
        """Return how often it is right by origin, camera, lot and shift."""
        return [each for kind in self._columns for each in self._sliced(kind)]

    # -- what is behind them --------------------------------------------------------------------------------------

    def cell(self, truth: int, said: int | None) -> Chosen:
        """Return what is labelled as one class and decided as another, None for unknown; of all of that class."""
        of_class = self.reference.left_out.truth == truth
        decided = self.unknown if said is None else ~self.unknown & (self.said == said)
        return self._chosen(of_class & decided, int(of_class.sum()))

    def recall(self, truth: int) -> Chosen:
        """Return what the recall of a class rests on."""
        left_out = self.reference.left_out
        return self._whole((left_out.truth == truth) & left_out.counts)

    def slice(self, kind: SliceKind, name: str) -> Chosen:
        """Return what is of one camera, lot, shift or origin."""
        return self._whole(np.array([each == name for each in self._columns[kind]], bool))

    def costs(self, good: Collection[bytes], escape_rate: float | None) -> tuple[Chosen, Chosen]:
        """Return the defects that pass and the good parts that are rejected.

        Args:
            good: Ids of the classes that are not defects.
            escape_rate: By the threshold that keeps it; None by the class that is decided.

        Raises:
            HeadError: there is no good class or no defect among the left-out samples.
        """
        _, left_out, calibration = self.reference
        threshold = None
        if escape_rate is not None:
            threshold = operating_point(left_out, calibration, good, escape_rate=escape_rate).threshold
        found = judged(left_out, calibration, good, threshold=threshold)
        defects, goods = int((found.tells & ~found.good).sum()), int((found.tells & found.good).sum())
        return self._chosen(found.escapes, defects), self._chosen(found.overkill, goods)

    def _whole(self, which: Bools) -> Chosen:
        return self._chosen(which, int(which.sum()))

    def _chosen(self, which: Bools, of: int) -> Chosen:
        rows = np.flatnonzero(which)
        right = self.right[rows]
        sure = self.probability[rows]
        return Chosen(rows[np.lexsort((np.where(right, sure, -sure), ~self._here[rows], right))], of)

    def _sliced(self, kind: SliceKind) -> list[Slice]:
        left_out, names = self.reference.left_out, self._columns[kind]
        values = sorted({name for name in names if name})
        if len(values) < 2:
            return []
        column = np.array([name or "" for name in names], object)
        found: list[Slice] = []
        for value in values:
            rows = column == value
            groups = len(np.unique(left_out.groups[rows]))
            if groups >= MIN_SLICE_GROUPS:
                right = self.right[rows]
                rate = Rate(*share(right, left_out.groups[rows]), int(rows.sum()), groups, int(right.sum()))
                found.append(Slice(kind, value, rate))
        most = sorted(found, key=lambda each: -each.right.groups)[:MAX_SLICES]
        return [each for each in found if each in most]


class CountedHeads:
    """The heads whose figures were looked at last. Any thread may call.

    Args:
        reference: Returns the left-out samples of the head that is confirmed; None before they are scored.
        kept: Returns those of these samples that are kept on this device.
        shift: Returns which shift a time falls into.
    """

    def __init__(
        self,
        reference: Callable[[], Reference | None],
        kept: Callable[[Sequence[bytes]], dict[bytes, Sample]],
        shift: Callable[[float], str],
    ) -> None:
        self._reference, self._kept, self._shift = reference, kept, shift
        self._lock = threading.Lock()
        self._held: dict[int, Counted] = {}  # by the head's number; who was looked at last comes last
        self._listed: set[int] = set()  # of these, whose pictures somebody goes through

    def now(self) -> Counted | None:
        """Return what the figures of the confirmed head count; None before it is scored."""
        reference = self._reference()
        if reference is None:
            return None
        with self._lock:
            found = self._held.pop(reference.number, None)
            if found is None or found.reference.left_out is not reference.left_out:
                found = self._counted(reference)
            self._hold(found)
        return found

    def listed(self, number: int) -> Counted | None:
        """Return what those of a head counted, for somebody who goes through its pictures; None where they are
        held no longer, or were never looked at."""
        self.now()
        with self._lock:
            found = self._held.pop(number, None)
            if found is not None:
                self._listed.add(number)
                self._hold(found)
        return found

    def _hold(self, counted: Counted) -> None:
        """Put one last. Of each kind, those that were looked at longest ago make room. Needs the lock."""
        self._held[counted.number] = counted
        listed = [number for number in self._held if number in self._listed]
        others = [number for number in self._held if number not in self._listed]
        for number in (*listed[:-LISTED], *others[:-HELD]):
            del self._held[number]
            self._listed.discard(number)

    def _counted(self, reference: Reference) -> Counted:
        samples = reference.left_out.samples
        kept = self._kept(samples)
        labelled = {sample: s for sample, s in kept.items() if s.status is SampleStatus.LABELLED}
        mine = [labelled.get(sample) for sample in samples]
        columns: dict[SliceKind, list[str | None]] = {
            "origin": [RELEASE if s is None else STATION for s in mine],
            "camera": _cameras(mine),
            "lot": [None if s is None else s.lot for s in mine],
            "shift": [None if s is None else self._shift(s.captured_utc) for s in mine],
        }
        return Counted(reference, columns, np.array([sample in kept for sample in samples], bool))


def _cameras(samples: Sequence[Sample | None]) -> list[str | None]:
    """Return the camera of each sample, as far as that is known: of a station with one, what its sources tell."""
    several = len({s.camera for s in samples if s is not None and s.camera}) > 1
    return [None if s is None else s.camera if several and s.camera else folder_of(s.source) for s in samples]


def folder_of(source: str) -> str | None:
    """Return what names the camera in a source: the folder of a file, or the whole of another name."""
    whole = _TILE.sub("", source)
    name = whole.rpartition("/")[2]
    return whole.rpartition("/")[0] if "." in name and "://" not in whole else whole or None
