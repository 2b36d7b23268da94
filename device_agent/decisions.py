"""Which pictures were wrong: one line for each picture that an evaluation judged, for its JSON and as a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from sdk.head import Decisions
from sdk.images import ImageSet, LabelledImage
from sdk.shown import readable
from sdk.spreadsheet import harmless
from sdk.wire import Verdict

UNKNOWN: Final = "unknown"
"""What is shown for a frame unlike anything the head knows."""


class JudgedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One picture, and what was shown for it.

    Attributes:
        path: Below the set's folder, with "/".
        label: What it is.
        shown: The class that was shown, or "unknown".
        best: The head's best class, also where "unknown" was shown.
        probability: Of the best class.
        novelty: How unlike all that the head knows.
        group: That it counts with in the intervals.
        verdict: pass or reject, where somebody said which classes are good.
        label_probability: Of `label`; None where the head lacks that class.
    """

    path: str
    label: str
    shown: str
    best: str
    probability: float
    novelty: float
    group: str
    verdict: str | None
    label_probability: float | None


def told(
    images: ImageSet,
    judged: Sequence[LabelledImage],
    groups: Sequence[str],
    names: Sequence[str],
    decided: Decisions,
    rejected: npt.NDArray[np.bool_] | None,
) -> list[JudgedImage]:
    """Return a line for each picture.

    Args:
        images: The set.
        judged: n pictures of it.
        groups: That they count with, n.
        names: Of the head's classes, in its order.
        decided: What the head said of the n pictures.
        rejected: (n,) bool; None where nobody said what is good.
    """
    column = {name: at for at, name in enumerate(names)}
    own = [column.get(image.label) for image in judged]
    return [
        JudgedImage(
            path=name_of(images, image),
            label=readable(image.label),
            shown=UNKNOWN if decided.unknown[i] else names[decided.class_index[i]],
            best=names[decided.class_index[i]],
            probability=float(decided.probability[i]),
            novelty=float(decided.novelty[i]),
            group=readable(group),
            verdict=None if rejected is None else (Verdict.REJECT if rejected[i] else Verdict.PASS).value,
            label_probability=None if (at := own[i]) is None else float(decided.probabilities[i, at]),
        )
        for i, (image, group) in enumerate(zip(judged, groups, strict=True))
    ]


def by_name(images: ImageSet) -> Mapping[str, LabelledImage]:
    """Return the pictures of a set by the `path` of their decision."""
    return {name_of(images, image): image for image in images.images}


def name_of(images: ImageSet, image: LabelledImage) -> str:
    """Return a picture's path below its set's folder."""
    return readable(image.path.relative_to(images.folder).as_posix())


def as_csv(decisions: Sequence[JudgedImage]) -> str:
    """Return them as CSV with a first line of names; no text is one that a spreadsheet would compute."""
    out = io.StringIO(newline="")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(JudgedImage.__struct_fields__)
    for each in decisions:
        rows.writerow([_cell(value) for value in msgspec.structs.astuple(each)])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return harmless(value) if isinstance(value, str) else ""
