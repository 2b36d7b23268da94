"""What there is to know of a labelled set before anything learns from it: checks, near-duplicates, groups, slices.

    files -> listing -> images that can be used -> near-duplicates -> groups -> report

`headway export --check` ends here; an export goes on with the images, in the groups that were settled on.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from export.index_file import below
from export.leaks import Look, NearDuplicates, by_features, find_near_duplicates, joined, look
from export.progress import Log
from export.set_report import (
    LISTED_LABELS,
    LISTED_PAIRS,
    ClassLook,
    ColumnReport,
    DoubtfulLabel,
    LabelsReport,
    LeakReport,
    PairReport,
    Range,
    RefusedImage,
    SetReport,
    SizeCount,
    SliceReport,
    pairs_said,
)
from sdk.audit import DOUBTFUL, suspects
from sdk.codes import Codes
from sdk.errors import BadImages
from sdk.grouping import derive_groups
from sdk.head import Calibration
from sdk.images import ImageSet, open_images
from sdk.layouts import Layout, settled_groups
from sdk.preprocess import Frame
from sdk.score import LeftOut, calibrate, leave_one_group_out, score
from sdk.splits import split

if TYPE_CHECKING:  # checking a set needs no torch
    from export.forms import Form
    from export.selection import Selection

MAX_SLICES: Final = 24
"""A column of more values than this names images rather than sorts them."""
LISTED_SIZES: Final = 8
SHARPNESS_PX: Final = 256
"""Sharpness is compared at this longest side, so that it does not depend on the camera's pixels."""
NAMED: Final = 4
"""So many classes are named in a note."""
NUMBERED_ANEW: Final = 0.5
"""Share of the groups that hold any class but the largest: where as many hold several, it is said. A part with two
defects now and then is nothing."""
WHOLESALE: Final = 0.5
"""A group with more than this share of a set is hardly one part."""
OUTSIDE: Final = 0.01
"""Share of images left off at each end where a range is told."""


class Groups(str, Enum):
    """Where groups come from. Values are those of `--groups`."""

    GIVEN = "given"
    DERIVED = "derived"
    NONE = "none"


# --- Checking


@dataclass(frozen=True)
class ImageLook:
    """How an image looks.

    Attributes:
        width, height: In pixels.
        brightness: Mean of its grey values, 0 to 255.
        contrast: Their standard deviation.
        sharpness: Standard deviation of their second differences, at `SHARPNESS_PX`.
    """

    width: int
    height: int
    brightness: float
    contrast: float
    sharpness: float


@dataclass(frozen=True)
class Checked:
    """A set that has been looked at.

    Attributes:
        images: The set, in the groups to go on with.
        own_groups: Group of each image as the set itself has it.
        groups_from: Where the groups to go on with come from.
        near: Its near-duplicates.
        looks: What each image is compared by.
        seen: How each image looks.
    """

    images: ImageSet
    own_groups: list[str]
    groups_from: Groups
    near: NearDuplicates
    looks: list[Look]
    seen: list[ImageLook]


def check(
    folder: Path,
    *,
    layout: Layout | None,
    unannotated: str | None,
    groups: Groups | None,
    index: Path | None = None,
    log: Log,
) -> Checked:
    """Return a set, looked at, with its groups settled.

    Args:
        folder, layout, unannotated, index: See `sdk.images.open_images`.
        groups: Where groups come from; None takes the set's own, or derives them where it has none.
        log: Told of stages, and what somebody should know.

    Raises:
        BadImages: there is no usable image, or no group where they should be given.
    """
    compared: dict[bytes, Look] = {}
    seen: dict[bytes, ImageLook] = {}

    def on_image(sample: bytes, frame: Frame) -> None:
        compared[sample], seen[sample] = look(frame), _image_look(frame)

    with log.stage("images", "Checking images"):
        images = open_images(
            folder,
            layout=layout,
            unannotated=unannotated,
            index=index,
            progress=log.listener.step,
            seen=on_image,
        )
    log.listener.say(f"Found {images.said}.")
    for note in images.notes:
        log.warn(note)
    if groups is Groups.GIVEN and not images.has_groups:
        raise BadImages(
            f"{folder} names no groups", hint="Add a group column to its index.csv, or --groups derived."
        )
    with log.stage("leaks", "Looking for near-duplicates"):
        near = find_near_duplicates(
            [compared[image.sample_id] for image in images.images], progress=log.listener.step
        )
    own = images.groups
    settled = groups or (Groups.GIVEN if images.has_groups else Groups.DERIVED)
    used = {
        Groups.GIVEN: own,
        Groups.DERIVED: joined(own, near.pairs),
        Groups.NONE: [image.path.relative_to(folder).as_posix() for image in images.images],
    }[settled]
    regrouped = dataclasses.replace(
        images,
        images=tuple(
            dataclasses.replace(image, group=group) for image, group in zip(images.images, used, strict=True)
        ),
        has_groups=settled is Groups.GIVEN or len(set(used)) < len(used),
    )
    ids = [image.sample_id for image in images.images]
    notes = [*_one_group_notes(regrouped), *(_shared_group_notes(images) if settled is Groups.GIVEN else [])]
    regrouped = dataclasses.replace(regrouped, notes=(*images.notes, *notes))
    for note in notes:
        log.warn(note)
    checked = Checked(regrouped, own, settled, near, [compared[one] for one in ids], [seen[one] for one in ids])
    _say(checked, log)
    return checked


def left_out_together(
    images: ImageSet, codes: Codes, class_ids: Sequence[bytes], groups: Sequence[str]
) -> tuple[tuple[str, ...], str | None]:
    """Return the groups that a head is judged without, and what people should know of them.

    Groups that somebody named stay as they are. All others are joined by codes too: neither a pair that pixels
    found nor none says that no further pictures show one part. An export's score and an audit take the same.

    Args:
        images: The set, in the groups of `check`.
        codes: (n, d) int8, of n images of it.
        class_ids: Class of each, n.
        groups: Group id of each, n.
    """
    grouping = derive_groups(codes, class_ids, groups, settled=settled_groups(groups))
    return grouping.groups, grouping.note(none_given=not images.has_groups)


def _one_group_notes(images: ImageSet) -> list[str]:
    """Return what it means that all images of a class are of one group."""
    groups: dict[str, set[str]] = {}
    for image in images.images:
        groups.setdefault(image.label, set()).add(image.group)
    alone = [name for name in images.classes if len(groups[name]) == 1]
    if not alone:
        return []
    return [
        f"{_named(alone)} {'has' if len(alone) == 1 else 'have'} one group only, which is learned or left for "
        "tests as a whole: nothing says how well it is told. Add images of other parts."
    ]


def _shared_group_notes(images: ImageSet) -> list[str]:
    """Return what it may mean that groups hold several classes: parts are often numbered anew in each.

    Then every class but the one of most groups has hardly a group for itself.
    """
    labels: dict[str, set[str]] = {}
    for image in images.images:
        labels.setdefault(image.group, set()).add(image.label)
    shared = [group for group in labels if len(labels[group]) > 1]
    counts = Counter(label for group in labels.values() for label in group)
    largest = max(counts, key=lambda label: counts[label])
    rest = [group for group in labels if labels[group] != {largest}]
    if not shared or len(shared) < NUMBERED_ANEW * len(rest):
        return []
    return [
        f"{len(shared)} of {len(labels)} groups hold images of several classes, as {shared[0]!r} those of "
        f"{_named(sorted(labels[shared[0]]))}. If parts are numbered anew in each class, these are different "
        "parts: give each a name of its own, such as class and number."
    ]


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _say(checked: Checked, log: Log) -> None:
    """Tell what near-duplicates mean for this set."""
    near, images = checked.near, checked.images
    across = sum(checked.own_groups[pair.first] != checked.own_groups[pair.second] for pair in near.pairs)
    wrong = sum(images.labels[pair.first] != images.labels[pair.second] for pair in near.pairs)
    if checked.groups_from is Groups.DERIVED and near.pairs:
        log.warn(
            f"{_show_one_part(len(near.pairs), 'images')}; each chain of them is one group: "
            f"{len(set(images.groups))} groups of {len(images.images)} images. Look at the pairs, and name groups "
            "in an index.csv where you know better."
        )
    elif across:
        log.warn(
            f"{_show_one_part(across, 'images in different groups')}: the score flatters. "
            "Look at the pairs; --groups derived joins their groups."
        )
    if wrong:
        stand = "stands" if wrong == 1 else "stand"
        log.warn(
            f"{wrong} of {pairs_said(len(near.pairs))} of near-duplicates {stand} under two labels: one of each "
            "may be wrong."
        )
    largest = Counter(images.groups).most_common(1)[0][1]
    if largest > max(WHOLESALE * len(images.images), 2) and checked.groups_from is Groups.DERIVED:
        log.warn(
            f"One group has {largest} of {len(images.images)} images, which is hardly one part: try --groups none."
        )


def _show_one_part(pairs: int, what: str) -> str:
    return f"{pairs_said(pairs)} of {what} {'shows' if pairs == 1 else 'show'} the same part, as it seems"


def _image_look(frame: Frame) -> ImageLook:
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    h, w = grey.shape
    shrink = min(1.0, SHARPNESS_PX / max(h, w))
    small = cv2.resize(grey, (max(1, round(w * shrink)), max(1, round(h * shrink))), interpolation=cv2.INTER_AREA)
    return ImageLook(w, h, float(grey.mean()), float(grey.std()), float(cv2.Laplacian(small, cv2.CV_32F).std()))


# --- The report


def set_report(checked: Checked, *, seed: int) -> SetReport:
    """Return what is known of a set before it is learned from; `seed` is the split's."""
    images, seen = checked.images, checked.seen
    labels = np.array(images.labels, object)
    figures = np.array([(one.brightness, one.contrast, one.sharpness) for one in seen])
    classes = []
    for name in images.classes:
        rows = labels == name
        brightness, contrast, sharpness = (round(float(v), 1) for v in np.median(figures[rows], axis=0))
        members = [image for image in images.images if image.label == name]
        classes.append(
            ClassLook(
                name=name,
                images=len(members),
                groups=len({image.group for image in members}),
                masks=sum(image.mask is not None for image in members),
                brightness=brightness,
                contrast=contrast,
                sharpness=sharpness,
            )
        )
    brightness_range, contrast_range, sharpness_range = (_range(column) for column in figures.T)
    return SetReport(
        folder=str(images.folder),
        layout=images.layout.value,
        found=images.said,
        notes=list(images.notes),
        usable=len(images.images),
        refused=[RefusedImage(path=below(images.folder, r.path), reason=r.reason) for r in images.refused],
        classes=classes,
        sizes=_sizes(seen),
        brightness=brightness_range,
        contrast=contrast_range,
        sharpness=sharpness_range,
        columns=[ColumnReport(column=name, slices=slices) for name, slices in _columns(images).items()],
        leaks=_leak_report(checked, seed),
    )


def _range(values: npt.NDArray[np.float64]) -> Range:
    low, median, high = (round(float(v), 1) for v in np.quantile(values, [OUTSIDE, 0.5, 1 - OUTSIDE]))
    return Range(low=low, median=median, high=high)


def _sizes(seen: Sequence[ImageLook]) -> list[SizeCount]:
    counted = Counter((one.width, one.height) for one in seen).most_common()
    listed = [SizeCount(width=w, height=h, images=n) for (w, h), n in counted[:LISTED_SIZES]]
    rest = sum(n for _, n in counted[LISTED_SIZES:])
    return listed + ([SizeCount(width=0, height=0, images=rest)] if rest else [])


def _columns(images: ImageSet) -> dict[str, list[SliceReport]]:
    """Return the slices of each column that sorts the images into a few kinds."""
    found: dict[str, list[SliceReport]] = {}
    for name in sorted({column for image in images.images for column in image.columns}):
        values = [image.columns.get(name, "") for image in images.images]
        kinds = sorted(set(values))
        if 1 < len(kinds) <= min(MAX_SLICES, len(values) // 2):
            found[name] = [
                SliceReport(
                    value=kind,
                    images=values.count(kind),
                    classes=dict(sorted(Counter(
                        image.label for image, value in zip(images.images, values, strict=True) if value == kind
                    ).items())),
                )
                for kind in kinds
            ]  # fmt: skip
    return found


def _leak_report(checked: Checked, seed: int) -> LeakReport:
    images, own, pairs = checked.images, checked.own_groups, checked.near.pairs
    parts = split(own, images.labels, seed)
    labels = images.labels
    paths = [below(images.folder, image.path) for image in images.images]
    ranked = sorted(
        pairs,
        key=lambda p: (labels[p.first] == labels[p.second], own[p.first] == own[p.second], p.likeness),
    )
    return LeakReport(
        groups_from=checked.groups_from.value,
        groups=len(set(images.groups)),
        groups_before=len(set(own)),
        pairs=len(pairs),
        across_groups=sum(own[p.first] != own[p.second] for p in pairs),
        across_split=sum(parts[p.first] is not parts[p.second] for p in pairs),
        across_labels=sum(labels[p.first] != labels[p.second] for p in pairs),
        threshold=round(checked.near.threshold, 3),
        expected_false=round(checked.near.expected_false, 1),
        largest=Counter(images.groups).most_common(1)[0][1],
        listed=[
            PairReport(
                first=paths[p.first],
                second=paths[p.second],
                likeness=p.likeness,
                hash_distance=p.hash_distance,
                labels=(labels[p.first], labels[p.second]),
                across_split=parts[p.first] is not parts[p.second],
            )
            for p in ranked[:LISTED_PAIRS]
        ],
    )


# --- With a score


def with_scores(report: SetReport, checked: Checked, learned: Selection, form: Form, log: Log) -> SetReport:
    """Return the report with recall per slice, and the score with and without near-duplicates joined.

    Args:
        report: Of the set before it was learned from.
        checked: The set.
        learned: What was learned from.
        form: The form of the backbone that comes first, with its left-out scores.
        log: Told where features show that the score still flatters.
    """
    images, near = checked.images, checked.near
    row_of = {image.sample_id: row for row, image in enumerate(images.images)}
    scored = [row_of[sample] for sample in form.left_out.samples]
    columns = [
        ColumnReport(
            column=column.column,
            slices=[
                _scored(one, column.column, images, scored, form.left_out, form.calibration)
                for one in column.slices
            ],
        )
        for column in report.columns
    ]
    rows = learned.rows
    place = {row: i for i, row in enumerate(rows)}
    known = {(place[p.first], place[p.second]) for p in near.pairs if p.first in place and p.second in place}
    further = [
        dataclasses.replace(pair, first=rows[pair.first], second=rows[pair.second])
        for pair in by_features([checked.looks[row] for row in rows], form.features, known, near.threshold)
    ]
    divided = sum(images.groups[pair.first] != images.groups[pair.second] for pair in further)
    if divided:
        log.warn(
            f"The backbone's features propose {divided} further pair{'s' if divided != 1 else ''} of one part in "
            "different groups: the score flatters a little. The report has the score with them joined."
        )
    apart, together = checked.own_groups, joined(checked.own_groups, [*near.pairs, *further])
    leaks = msgspec.structs.replace(report.leaks, by_features=len(further))
    if apart != together:
        scored_only = np.array([sample in set(form.left_out.samples) for sample in learned.samples], bool)

        def accuracy(groups: Sequence[str]) -> float | None:
            of_rows = [groups[row] for row in rows]
            if len(set(of_rows)) < 2:
                return None
            found = leave_one_group_out(form.codes, learned.ids, of_rows, only=scored_only)
            return score(found, calibrate(found)).balanced_accuracy

        with log.stage("leaks", "Scoring with and without near-duplicates"):
            leaks = msgspec.structs.replace(leaks, score_apart=accuracy(apart), score_joined=accuracy(together))
    return msgspec.structs.replace(
        report, columns=columns, leaks=leaks, labels=_doubtful(images, row_of, learned, form)
    )


def _doubtful(images: ImageSet, row_of: Mapping[bytes, int], learned: Selection, form: Form) -> LabelsReport:
    """Return which labels fit badly with what all other groups say, and nobody stands by."""
    left_out = form.left_out
    # Of all that was learned from: a class may have no image that is judged, and look like one all the same.
    label_of = {each: images.images[row].label for each, row in zip(learned.ids, learned.rows, strict=True)}
    judged = left_out.known & (len(left_out.class_ids) > 1)
    confirmed = {image.sample_id for image in (images.images[row] for row in learned.rows) if image.confirmed}
    suspected = suspects(left_out, form.calibration, below=DOUBTFUL, limit=len(left_out.truth))
    found = [each for each in suspected if each.sample not in confirmed]
    return LabelsReport(
        learned=len(learned.rows),
        judged=int(judged.sum()),
        otherwise=int((left_out.scores.argmax(1) != left_out.truth)[judged].sum()),
        doubtful=len(found),
        confirmed=len(confirmed),
        below=DOUBTFUL,
        listed=[
            DoubtfulLabel(
                path=below(images.folder, images.images[row_of[each.sample]].path),
                label=label_of[each.labelled],
                looks_like=label_of[each.looks_like],
                probability=math.exp(-each.suspicion),
            )
            for each in found[:LISTED_LABELS]
        ],
    )


def _scored(
    one: SliceReport,
    column: str,
    images: ImageSet,
    scored: Iterable[int],
    left_out: LeftOut,
    calibration: Calibration,
) -> SliceReport:
    inside = np.array([images.images[row].columns.get(column, "") == one.value for row in scored], bool)
    if not inside.any():
        return one
    found = score(left_out.chosen(inside), calibration)
    if found.balanced_accuracy is None:
        return one
    return msgspec.structs.replace(
        one, scored=found.samples, score=found.balanced_accuracy, low=found.low, high=found.high
    )
