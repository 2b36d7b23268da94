"""What is said of a labelled set, as plain values: what `export.check` finds, for JSON, page and terminal."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sdk.shown import readable

LISTED_PAIRS: Final = 200
LISTED_LABELS: Final = 200


def encoded(report: msgspec.Struct) -> bytes:
    """Return a report as indented JSON with a newline at its end; a file's name in it may be no UTF-8."""
    told = _readable(msgspec.to_builtins(report))
    return msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"


def _readable(told: Any) -> Any:
    if isinstance(told, str):
        return readable(told)
    if isinstance(told, dict):
        return {readable(name): _readable(value) for name, value in told.items()}
    return [_readable(each) for each in told] if isinstance(told, list | tuple) else told


class RefusedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was not learned from."""

    path: str
    reason: str


class ClassLook(msgspec.Struct, frozen=True, kw_only=True):
    """A class of the set: how many images, and medians of how they look (see `ImageLook`)."""

    name: str
    images: int
    groups: int
    masks: int
    brightness: float
    contrast: float
    sharpness: float


class SizeCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many images have a size; zero by zero stands for all the rarer ones."""

    width: int
    height: int
    images: int


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """What lies between the 1st and the 99th percentile, and the median."""

    low: float
    median: float
    high: float


class SliceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The images with one value of a column.

    `score` is the balanced accuracy of those that were scored, on groups left out, with its 95 % interval; None
    before there is a score, and where too little of the slice was scored.
    """

    value: str
    images: int
    classes: dict[str, int]
    scored: int = 0
    score: float | None = None
    low: float | None = None
    high: float | None = None


class ColumnReport(msgspec.Struct, frozen=True, kw_only=True):
    """A column of the set, such as camera, shift or lot, and its values."""

    column: str
    slices: list[SliceReport]


class PairReport(msgspec.Struct, frozen=True, kw_only=True):
    """Two images that seem to show the same part. Paths are relative to the set."""

    first: str
    second: str
    likeness: float
    hash_distance: int
    labels: tuple[str, str]
    across_split: bool


class LeakReport(msgspec.Struct, frozen=True, kw_only=True):
    """Near-duplicates, and what they do to the score.

    Attributes:
        groups_from: given, derived or none: what the split kept together.
        groups: How many there are.
        groups_before: How many there are without near-duplicates being joined.
        pairs: Near-duplicates found.
        across_groups: Pairs whose images the set itself keeps in different groups (each in its own, without any).
        across_split: Pairs that the split would have divided, had nothing been joined.
        across_labels: Pairs under two labels: one of them may be wrong.
        threshold: Likeness that makes a pair.
        expected_false: Pairs of different parts to be expected among them.
        by_features: Further pairs among the learned images, that features proposed and pixels confirmed.
        largest: Images in the largest group.
        score_apart: Left-out balanced accuracy, had nothing been joined, on the same images; None before a score.
        score_joined: The same where near-duplicates are kept together.
        listed: At most 200 of the pairs, the most doubtful first: under two labels, in different groups, least
            alike.
    """

    groups_from: str
    groups: int
    groups_before: int
    pairs: int
    across_groups: int
    across_split: int
    across_labels: int
    threshold: float
    expected_false: float
    by_features: int = 0
    largest: int
    score_apart: float | None = None
    score_joined: float | None = None
    listed: list[PairReport]


class DoubtfulLabel(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is called something else without its group: look at its label again.

    Attributes:
        path: Relative to the set.
        label: As the set has it.
        looks_like: What the head without its group says.
        probability: Of `label`, by that head.
    """

    path: str
    label: str
    looks_like: str
    probability: float


class LabelsReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far the labels agree with what all other groups say.

    Attributes:
        learned: Images that the head has learned from.
        judged: Of these, those that were judged, each by the head without its group: not those that the backbone
            itself was trained on, of a class of one group, or of the only class.
        otherwise: Of these, those that it calls something else than they are labelled.
        doubtful: Of these, those whose label has a probability below `below`, and that nobody stands by.
        confirmed: Images learned from whose label somebody stands by after an audit: none is doubtful.
        below: See `sdk.audit.DOUBTFUL`.
        listed: At most 200 of the doubtful, the least probable first.
    """

    learned: int
    judged: int
    otherwise: int
    doubtful: int
    confirmed: int = 0
    below: float
    listed: list[DoubtfulLabel]

    @property
    def disagree(self) -> bool:
        """Whether head and labels disagree on more than a fifth."""
        return 5 * self.otherwise > self.judged


class SetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is said of a set. `labels` is None before there is a score."""

    folder: str
    layout: str
    found: str
    notes: list[str]
    usable: int
    refused: list[RefusedImage]
    classes: list[ClassLook]
    sizes: list[SizeCount]
    brightness: Range
    contrast: Range
    sharpness: Range
    columns: list[ColumnReport]
    leaks: LeakReport
    labels: LabelsReport | None = None

    @property
    def groups_named(self) -> bool:
        """Whether the set says that some of its images show one part."""
        return self.leaks.groups_before < self.usable


def kept_apart(report: SetReport) -> str:
    """Return what the score without joined near-duplicates counts by."""
    return "the set's own groups" if report.groups_named else "each image as a part of its own"


DISAGREE: Final = (
    "Head and labels disagree often: either many labels are wrong, or the head cannot tell these classes apart. "
    "The pictures show which."
)
"""What is said where `LabelsReport.disagree`."""


def pairs_said(count: int) -> str:
    """Return how many pairs.

    >>> pairs_said(1), pairs_said(7)
    ('1 pair', '7 pairs')
    """
    return "1 pair" if count == 1 else f"{count} pairs"
