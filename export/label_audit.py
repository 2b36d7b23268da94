"""Which labels of a whole set do not fit: by a head that never saw the image's group, and by its near-duplicates.

    checked set, features -> left-out scores -> opinions -> labels to look at again, classes hard to tell apart

Two kinds of evidence are kept apart:

- What the head says that learned from all other groups. Near-duplicates with the same label are judged together:
  they were labelled together, and the mean of what is said of them is steadier than each of it.
- What near-duplicates are labelled. Only where they disagree: labels given in one go agree, right or wrong, and
  vouch for nothing.

Nobody is accused: the head may err. Where it does so often, the two classes are said to be hard to tell apart, and
what is listed because of it comes last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from export.check import Checked, left_out_together
from export.index_file import Table, below, index_table
from export.set_report import RefusedImage
from sdk.audit import DOUBTFUL
from sdk.codes import Codes, Features, encode, fit_scale
from sdk.errors import BadImages, ExportError
from sdk.head import Calibration, probabilities_of, solve
from sdk.images import LabelledImage
from sdk.layouts import AUDIT_PREFIX, CONFIRMED
from sdk.moments import TINY, Floats, Ints, Moments
from sdk.score import LeftOut, calibrate, leave_one_group_out

TWIN_TRUST: Final = 3.0
"""What a near-duplicate's label adds to the logarithm of a class's odds: right twenty times as often as wrong. On
magnetic tile with 30 labels planted wrong (seeds 0 to 4) 2 and 3 find the same ones."""
SUREST: Final = 1e-3
"""Beside near-duplicates, the least probability that a head gives a class: three of them outweigh any head."""
HARD_SHARE: Final = 0.1
"""Of a class's images that the head calls one other class, from which on these are hard to tell apart."""
HARD_GROUPS: Final = 3
"""In so many groups at least: in one or two it may be a part that is labelled wrongly."""
TYPICAL: Final = 4
"""So many images are shown of each class, for comparison."""

Mask = npt.NDArray[np.bool_]


class Why(str, Enum):
    """What speaks against a label, the strongest first."""

    COPY = "copy"
    NEAR_DUPLICATE = "near-duplicate"
    HEAD = "head"
    HARD = "hard"


SAID: Final = {
    Why.COPY: "the same picture stands under another label",
    Why.NEAR_DUPLICATE: "a near-duplicate is labelled otherwise",
    Why.HEAD: "looks like another class",
    Why.HARD: "looks like a class that is hard to tell from its own",
}


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """An image and its label. The path is relative to the set."""

    path: str
    label: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A label to look at again.

    Attributes:
        path: Relative to the set.
        label: As given.
        looks_like: What is proposed instead. Of a copy it may be the label itself.
        probability: Of `label`, in [0, 1], by all that is known.
        proposed_probability: Of `looks_like`.
        why: copy, near-duplicate, head or hard (see `Why`).
        group: What was left out of the head that judged it.
        against: Near-duplicates, or copies, that are labelled otherwise.
        unlike: It is unlike all that the head knows: perhaps none of the classes.
    """

    path: str
    label: str
    looks_like: str
    probability: float
    proposed_probability: float
    why: str
    group: str
    against: list[Labelled]
    unlike: bool


class HardPair(msgspec.Struct, frozen=True, kw_only=True):
    """A class that the head often takes for another: `called` of `judged` images, in `groups` groups."""

    label: str
    looks_like: str
    called: int
    judged: int
    groups: int


class ClassAudit(msgspec.Struct, frozen=True, kw_only=True):
    """A class: its images, how many of them were judged, agreed with and listed, and some that are typical."""

    name: str
    images: int
    judged: int
    agreed: int
    listed: int
    typical: list[str]


class LabelAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit of a set's labels found.

    Attributes:
        folder, layout, found: The set, and how it is kept.
        backbone, weights, licence: What the features are of.
        images: Usable ones.
        contradicted: Images beside these whose picture stands under several labels.
        groups: How many were left out in turn.
        groups_from: given, derived or none (see `export.check`).
        grouping_note: What people should know of how images were joined.
        judged: Images that a head without their group could judge.
        fitted: Images not judged because the backbone itself was trained on them.
        alone: Images not judged because no other group has their class.
        otherwise: Judged images that the head calls something else than they are labelled.
        confirmed: Images that somebody stands by: none is listed.
        below: A label less probable than this is listed.
        findings: The labels to look at again: copies first, then near-duplicates, then what the head says, and
            classes that are hard to tell apart last; of each the least probable first.
        hard: Classes that the head often takes for another.
        classes: Each class.
        notes: What somebody should know of the set.
        refused: Files that were not read.
        seconds: Of each stage.
    """

    folder: str
    layout: str
    found: str
    backbone: str
    weights: str
    licence: str
    images: int
    contradicted: int
    groups: int
    groups_from: str
    grouping_note: str | None
    judged: int
    fitted: int
    alone: int
    otherwise: int
    confirmed: int
    below: float
    findings: list[Finding]
    hard: list[HardPair]
    classes: list[ClassAudit]
    notes: list[str]
    refused: list[RefusedImage]
    seconds: dict[str, float]

    @property
    def disagree(self) -> bool:
        """Whether head and labels disagree on more than a fifth."""
        return 5 * self.otherwise > self.judged

    def count(self, why: Why) -> int:
        """Return how many labels are listed for a reason."""
        return sum(each.why == why.value for each in self.findings)


# --- Deciding


@dataclass(frozen=True)
class Opinions:
    """What is known of n labels, of k classes.

    Attributes:
        probabilities: (n, k), of each class, by head and near-duplicates.
        said: (n,) the head's own decision; the label itself where it could not judge.
        judged: (n,) bool, the head could.
        contested: (n,) bool, a near-duplicate is labelled otherwise.
        unlike: (n,) bool, unlike all that the head knows.
    """

    probabilities: Floats
    said: Ints
    judged: Mask
    contested: Mask
    unlike: Mask

    def doubtful(self, given: Ints, below: float = DOUBTFUL) -> Mask:
        """Return which labels are less probable than that, another class being the most probable: (n,) bool."""
        p = self.probabilities
        return np.asarray((p[np.arange(len(given)), given] < below) & (p.argmax(1) != given), bool)


def opinions(
    left_out: LeftOut,
    calibration: Calibration,
    rows: Ints,
    given: Ints,
    twins: Sequence[tuple[int, int]],
) -> Opinions:
    """Return what head and near-duplicates say of each label.

    Args:
        left_out: m images as a head sees them that never saw their group.
        calibration: Of these.
        rows: (m,) which of the n images they are.
        given: (n,) column of each image's label.
        twins: Pairs of images, of n, that are near-duplicates.
    """
    n, k = len(given), len(left_out.class_ids)
    judged, unlike, said = np.zeros(n, bool), np.zeros(n, bool), given.copy()
    known = left_out.known & (k > 1)
    judged[rows] = known
    said[rows] = np.where(known, left_out.scores.argmax(1), left_out.truth)
    unlike[rows] = known & left_out.unknown(calibration)
    logs = np.zeros((n, k))  # who was not judged has no opinion of the head
    p = probabilities_of(left_out.scores, calibration.temperature)
    logs[rows] = np.where(known[:, None], np.log(np.maximum(p, TINY)), 0.0)
    pooled, members, votes = logs.copy(), judged.astype(np.float64), np.zeros((n, k))
    for one, other in twins:
        votes[one, given[other]] += 1
        votes[other, given[one]] += 1
        if given[one] == given[other]:
            pooled[one] += logs[other]
            pooled[other] += logs[one]
            members[one] += judged[other]
            members[other] += judged[one]
    contested = votes.sum(1) > votes[np.arange(n), given]
    head = pooled / np.maximum(members, 1)[:, None]
    both = np.maximum(head, np.log(SUREST)) + TWIN_TRUST * votes
    logits = np.where(contested[:, None], both, head)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return Opinions(odds / odds.sum(1, keepdims=True), said, judged, contested, unlike)


def hard_pairs(found: Opinions, given: Ints, groups: Sequence[str]) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Return which classes the head often takes for which: images called so, judged ones of the class, groups."""
    of_class = Counter(given[found.judged].tolist())
    called: dict[tuple[int, int], list[str]] = defaultdict(list)
    for row in np.flatnonzero(found.judged & (found.said != given)).tolist():
        called[int(given[row]), int(found.said[row])].append(groups[row])
    return {
        pair: (len(where), of_class[pair[0]], len(set(where)))
        for pair, where in called.items()
        if len(where) >= HARD_SHARE * of_class[pair[0]] and len(set(where)) >= HARD_GROUPS
    }


def to_look_at(found: Opinions, given: Ints, hard: Container[tuple[int, int]]) -> list[tuple[int, Why]]:
    """Return the labels to look at again and what speaks against each, the strongest first.

    Args:
        found: What is known of n labels.
        given: (n,) column of each.
        hard: Pairs of `hard_pairs`.
    """
    proposed = found.probabilities.argmax(1)
    listed: list[tuple[int, Why]] = []
    for row in np.flatnonzero(found.doubtful(given)).tolist():
        why = Why.HARD if (int(given[row]), int(proposed[row])) in hard else Why.HEAD
        listed.append((row, Why.NEAR_DUPLICATE if found.contested[row] else why))
    order = list(Why)
    return sorted(listed, key=lambda one: (order.index(one[1]), found.probabilities[one[0], given[one[0]]]))


# --- A whole set


@dataclass(frozen=True)
class Source:
    """What features come from: for people, and the samples that it was trained on itself."""

    backbone: str
    weights: str
    licence: str
    fitted: frozenset[bytes] = frozenset()


def to_embed(checked: Checked) -> list[LabelledImage]:
    """Return the images to compute features of: the usable ones, then one of each contradicted picture.

    Raises:
        BadImages: there is one class, or one group: nothing to compare labels with.
    """
    images = checked.images
    if len(images.classes) < 2:
        raise BadImages(
            f"{images.folder} has one class, {images.classes[0]}, and an audit compares classes",
            hint="Name a set of at least two.",
        )
    if len(set(images.groups)) < 2:
        raise BadImages(
            f"{images.folder}: all images are of one group, and an audit judges each by the others",
            hint="Name groups in an index.csv, or try --groups none.",
        )
    first = {image.sample_id: image for image in reversed(images.contradicted)}
    return [*images.images, *first.values()]


def audit_labels(
    checked: Checked, features: Features, source: Source, seconds: Callable[[], dict[str, float]] = dict
) -> LabelAudit:
    """Return which labels of a set to look at again.

    Cost: as `sdk.score.leave_one_group_out` over the whole set.

    Args:
        checked: The set, with its groups and near-duplicates.
        features: (m, d) of `to_embed(checked)`.
        source: Of the features.
        seconds: Gives what each stage took.

    Raises:
        ExportError: all features are zero.
    """
    images, n = checked.images, len(checked.images.images)
    names = images.classes
    ids = {name: column.to_bytes(16, "big") for column, name in enumerate(names)}
    given = np.array([names.index(label) for label in images.labels], np.int64)
    class_ids = [ids[label] for label in images.labels]
    codes = _codes(features)
    groups, note = left_out_together(images, codes[:n], class_ids, images.groups)
    fitted = np.array([image.sample_id in source.fitted for image in images.images], bool)
    left_out = leave_one_group_out(codes[:n], class_ids, groups, only=~fitted if fitted.any() else None)
    calibration = calibrate(left_out)
    twins = [(pair.first, pair.second) for pair in checked.near.pairs]
    found = opinions(left_out, calibration, np.flatnonzero(~fitted), given, twins)
    hard = hard_pairs(found, given, groups)
    paths = [below(images.folder, image.path) for image in images.images]
    against: dict[int, list[int]] = defaultdict(list)
    for one, other in twins:
        if given[one] != given[other]:
            against[one].append(other)
            against[other].append(one)

    confirmed = np.array([image.confirmed for image in images.images], bool)
    proposed = found.probabilities.argmax(1)
    findings = sorted(_copies(checked, codes, class_ids, calibration), key=lambda each: each.probability)
    findings += [
        Finding(
            path=paths[row],
            label=names[given[row]],
            looks_like=names[proposed[row]],
            probability=float(found.probabilities[row, given[row]]),
            proposed_probability=float(found.probabilities[row, proposed[row]]),
            why=why.value,
            group=groups[row],
            against=[Labelled(path=paths[twin], label=names[given[twin]]) for twin in against[row]],
            unlike=bool(found.unlike[row]),
        )
        for row, why in to_look_at(found, given, hard)
        if not confirmed[row]
    ]
    agreed = found.judged & (found.said == given)
    return LabelAudit(
        folder=str(images.folder),
        layout=images.layout.value,
        found=images.said,
        backbone=source.backbone,
        weights=source.weights,
        licence=source.licence,
        images=n,
        contradicted=len(images.contradicted),
        groups=len(set(groups)),
        groups_from=checked.groups_from.value,
        grouping_note=note,
        judged=int(found.judged.sum()),
        fitted=int(fitted.sum()),
        alone=int((~found.judged & ~fitted).sum()),
        otherwise=int((found.judged & ~agreed).sum()),
        confirmed=int(confirmed.sum()),
        below=DOUBTFUL,
        findings=findings,
        hard=[
            HardPair(label=names[a], looks_like=names[b], called=called, judged=judged, groups=parts)
            for (a, b), (called, judged, parts) in sorted(hard.items(), key=lambda one: -one[1][0] / one[1][1])
        ],
        classes=[
            ClassAudit(
                name=name,
                images=int((given == column).sum()),
                judged=int((found.judged & (given == column)).sum()),
                agreed=int((agreed & (given == column)).sum()),
                listed=sum(each.label == name for each in findings),
                typical=[paths[row] for row in _typical(found, given, column, agreed, groups)],
            )
            for column, name in enumerate(names)
        ],
        notes=list(images.notes),
        refused=[RefusedImage(path=below(images.folder, r.path), reason=r.reason) for r in images.refused],
        seconds=seconds(),
    )


def _codes(features: Features) -> Codes:
    try:
        return encode(features, fit_scale(features))
    except ValueError as error:
        raise ExportError(
            f"the backbone gives the same for every image: {error}",
            hint="Use other weights, or check that the images are not all black.",
        ) from error


def _copies(checked: Checked, codes: Codes, class_ids: Sequence[bytes], calibration: Calibration) -> list[Finding]:
    """Return what a head that learned from all the others says of pictures that stand under several labels."""
    images, n = checked.images, len(class_ids)
    if not images.contradicted:
        return []
    moments = Moments(codes.shape[1])
    moments.add(codes[:n], class_ids)
    head = solve(moments, calibration=calibration)
    p = head.predict_proba(codes[n:])
    row_of = {image.sample_id: row for row, image in enumerate(to_embed(checked)[n:])}
    column = {name: at for at, name in enumerate(images.classes)}
    copies: dict[bytes, list[LabelledImage]] = defaultdict(list)
    for image in images.contradicted:
        copies[image.sample_id].append(image)
    unknown = head.decide(codes[n:]).unknown
    findings = []
    for sample, together in copies.items():
        row = row_of[sample]

        def probability(label: str, row: int = row) -> float:
            return float(p[row, column[label]]) if label in column else 0.0

        best = max(sorted({each.label for each in together}), key=probability)
        findings += [
            Finding(
                path=below(images.folder, each.path),
                label=each.label,
                looks_like=best,
                probability=probability(each.label),
                proposed_probability=probability(best),
                why=Why.COPY.value,
                group=each.group,
                against=[
                    Labelled(path=below(images.folder, other.path), label=other.label)
                    for other in together
                    if other.label != each.label
                ],
                unlike=bool(unknown[row]),
            )
            for each in together
        ]
    return findings


def _typical(found: Opinions, given: Ints, column: int, agreed: Mask, groups: Sequence[str]) -> list[int]:
    """Return the images that most look like their class, each of another group."""
    rows = np.flatnonzero(agreed & ~found.contested & ~found.unlike & (given == column))
    typical: dict[str, int] = {}
    for row in rows[np.argsort(-found.probabilities[rows, column], kind="stable")].tolist():
        typical.setdefault(groups[row], row)
        if len(typical) == TYPICAL:
            break
    return list(typical.values())


# --- To correct


def audit_table(checked: Checked, audit: LabelAudit) -> Table:
    """Return an index of the whole set with what the audit says beside each label: what is listed comes first."""
    images = checked.images
    every = {below(images.folder, image.path): image for image in (*images.images, *images.contradicted)}
    of_path = {each.path: each for each in audit.findings}
    order = [*of_path, *(path for path in every if path not in of_path)]
    said = [of_path.get(path) for path in order]
    return index_table(
        images.folder,
        [every[path] for path in order],
        {
            CONFIRMED.removeprefix(AUDIT_PREFIX): ["yes" if every[path].confirmed else "" for path in order],
            "looks_like": ["" if one is None else one.looks_like for one in said],
            "probability": ["" if one is None else f"{one.probability:.4f}" for one in said],
            "why": ["" if one is None else SAID[Why(one.why)] for one in said],
        },
    )
