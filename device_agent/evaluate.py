"""How good a bundle is on images that it did not train on. Figures only; `cli.py` prints them.

Recall counts the decision shown, so "unknown" is a miss; forced-choice recall is reported beside it. Classes that
the bundle never heard of are no errors of its head: of them it is asked whether they were noticed. Every share
comes with a 95 % interval that counts groups, since images of one part are no independent evidence.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from device_agent.decisions import UNKNOWN, JudgedImage, told
from device_agent.outlook import OutlookReport, look_ahead
from device_agent.pipeline import Pipeline
from device_agent.runtime import Runtime, base_head
from device_agent.unseen import LEARNED, find_copies, grouped_as_split, none_left, not_learned, parts_of
from sdk.audit import DOUBTFUL
from sdk.bundle import Bundle
from sdk.class_ids import CLASS_ID_BYTES
from sdk.class_names import spelled
from sdk.errors import UnknownClassError
from sdk.grouping import derive_groups
from sdk.head import Head
from sdk.images import ImageSet, LabelledImage, read
from sdk.layouts import settled_groups
from sdk.operating import Rate, defect_probability, operating_point
from sdk.preprocess import Frame
from sdk.score import (
    LeftOut,
    balanced_share,
    calibration_error,
    decisions_right,
    leave_one_group_out,
    score,
    share,
)
from sdk.shown import readable
from sdk.splits import Part

OUTLOOK_S: Final = 60.0
"""No line waits for these cores: the outlook has time for all its rounds, and says the same each time."""


class Share(msgspec.Struct, frozen=True):
    """A share in [0, 1] with its 95 % interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.0%} to {self.high:.0%})"

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> Share | None:
        """Return the share that is right; None of nothing."""
        return cls(*(float(x) for x in share(right, groups))) if len(right) else None


class ClassResult(msgspec.Struct, frozen=True, kw_only=True):
    """One class that the bundle knows.

    Attributes:
        recall: Of the decision shown.
        forced_recall: Of the best class, unknown or not.
        called: How often each decision was shown for this class.
    """

    name: str
    images: int
    groups: int
    recall: Share
    forced_recall: Share
    called: dict[str, int]


class NovelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One class that the bundle never heard of: how often it was noticed, and what it was called otherwise."""

    name: str
    images: int
    groups: int
    noticed: Share
    called: dict[str, int]


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """What would pass as good, and what would not.

    Attributes:
        good: Classes that are no defects.
        target: Escape rate asked for; None: a part passes when its decision is one of the good classes.
        threshold: Probability of a defect from which on a part is rejected; unknown parts always are.
        expected_escapes, expected_overkill: On left-out samples of the bundle, where the threshold was chosen.
        expected_on: So many samples; those that are in the bundle's sums only are not among them.
        reachable: The target could be met there.
        escapes: Defects that passed, here, each class weighing the same as in `expected_escapes`; classes the
            bundle never heard of are defects.
        overkill: Good parts that were rejected, here.
    """

    good: list[str]
    target: float | None
    threshold: float | None
    expected_escapes: Share | None
    expected_overkill: Share | None
    expected_on: int | None
    reachable: bool | None
    escapes: Share | None
    overkill: Share | None


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What a head makes of labelled images."""

    images: int
    groups: int
    balanced_accuracy: Share | None
    forced_balanced_accuracy: float | None
    unknown_rate: Share | None
    """Of images of known classes: false alarms."""
    classes: list[ClassResult]
    novel: list[NovelResult]
    novel_noticed: Share | None
    calibration_error: float | None
    """Expected, of the probabilities shown for images of known classes."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's figures on a set of images. Images it learned from are left out and counted."""

    bundle: str
    digest: str
    precision: str
    runtime: str
    part: str
    left_out_learned: int
    left_out_siblings: int
    """Images that are new to it, of parts that it learned from in other pictures."""
    left_out_copies: int
    """Images that it learned from, saved anew: other bytes, and the code of a learned one."""
    left_out_other_part: int
    summed: int
    """Samples that the bundle learned from and has in its sums only, so that nothing here could leave them out."""
    unknown_to_the_bundle: int
    """Evaluated images that were not in the exporter's set."""
    refused: dict[str, str]
    frames_per_s: float
    groups_note: str | None
    """How images that no group is named for were put together, where many were."""
    accuracy: Accuracy
    acceptance: Acceptance | None
    decisions: list[JudgedImage]
    """Each evaluated image."""
    doubtful: list[JudgedImage]
    """Those of known classes that the head calls something else, and whose label it gives less than `DOUBTFUL` and
    nobody stands by: the least probable first."""
    confirmed: int
    """Evaluated images whose label somebody stands by after an audit: none is doubtful."""
    outlook: OutlookReport
    """What more labels than the bundle's own would give, by these alone; the images have no say in it."""


def judge(
    head: Head,
    names: Callable[[bytes], str],
    codes: npt.NDArray[np.int8],
    labels: Sequence[str],
    groups: Sequence[str],
) -> Accuracy:
    """Return what a head makes of codes (n, d) whose true class names and groups are given."""
    column = {names(class_id): i for i, class_id in enumerate(head.class_ids)}
    truth = np.array([column.get(label, -1) for label in labels], np.int64)
    group = np.unique(np.array(groups, object).astype(str), return_inverse=True)[1].astype(np.int64)
    scores, novelty = head.scores(codes), head.novelty(codes)
    decided = head.decide(codes)
    shown = [
        UNKNOWN if unknown else names(head.class_ids[i])
        for i, unknown in zip(decided.class_index, decided.unknown, strict=True)
    ]
    known = truth >= 0
    left = LeftOut(
        head.class_ids, truth[known], group[known], scores[known], novelty[known], np.zeros(known.sum(), bool)
    )
    right = decisions_right(left, head.calibration)
    forced = decisions_right(left, head.calibration, unknown_is_miss=False)

    def called(rows: npt.NDArray[np.bool_]) -> dict[str, int]:
        return dict(Counter(shown[i] for i in np.flatnonzero(rows)).most_common())

    classes: list[ClassResult] = []
    for name, i in sorted(column.items()):
        of_class = left.truth == i
        recall, forced_recall = Share.of(right[of_class], left.groups[of_class]), None
        if recall is not None:
            forced_recall = Share.of(forced[of_class], left.groups[of_class])
        if recall is not None and forced_recall is not None:
            count, parts = int(of_class.sum()), len(np.unique(left.groups[of_class]))
            classes.append(
                ClassResult(
                    name=name,
                    images=count,
                    groups=parts,
                    recall=recall,
                    forced_recall=forced_recall,
                    called=called(truth == i),
                )
            )
    novel: list[NovelResult] = []
    for name in sorted({label for label, t in zip(labels, truth, strict=True) if t < 0}):
        rows = np.array([label == name for label in labels])
        noticed = Share.of(decided.unknown[rows], group[rows])
        if noticed is not None:
            count, parts = int(rows.sum()), len(np.unique(group[rows]))
            novel.append(NovelResult(name=name, images=count, groups=parts, noticed=noticed, called=called(rows)))
    overall = score(left, head.calibration) if known.any() else None
    return Accuracy(
        images=len(labels),
        groups=len(np.unique(group)),
        balanced_accuracy=None
        if overall is None or overall.balanced_accuracy is None
        else Share(overall.balanced_accuracy, overall.low, overall.high),
        forced_balanced_accuracy=float(np.mean([c.forced_recall.share for c in classes])) if classes else None,
        unknown_rate=Share.of(decided.unknown[known], group[known]),
        classes=classes,
        novel=novel,
        novel_noticed=Share.of(decided.unknown[~known], group[~known]),
        calibration_error=calibration_error(decided.probabilities[known], truth[known]) if known.any() else None,
    )


def accept(
    bundle: Bundle,
    head: Head,
    precision: str | None,
    images: Sequence[LabelledImage],
    codes: npt.NDArray[np.int8],
    groups: Sequence[str],
    good: Sequence[str],
    escape_rate: float | None,
) -> Acceptance:
    """Return what passes as good of images with codes (n, d).

    Args:
        bundle: Its own left-out samples choose the threshold; the images do not.
        head: Of the bundle.
        precision: Of the codes.
        images: n labelled images.
        codes: Their codes.
        groups: Group id, n.
        good: Names of the classes that are no defects.
        escape_rate: Target; None judges by the decision shown.

    Raises:
        UnknownClassError: the bundle has no such class.
        HeadError: too few left-out samples to choose a threshold.
    """
    names = bundle.class_names()
    ids = {name: class_id for class_id, name in names.items()}
    missing = [name for name in good if name not in ids]
    if missing:
        raise UnknownClassError(
            f"the bundle has no class {missing[0]!r}", hint=f"It has: {', '.join(sorted(ids))}."
        )
    is_good = np.array([names[class_id] in good for class_id in head.class_ids])
    point, expected_on = None, None
    if escape_rate is None:
        rejected = rejected_by(head, codes, is_good, None)
    else:
        base = bundle.base(precision)
        e = len(base.codes)
        fitted = base.fitted[:e]
        together = derive_groups(
            base.codes,
            base.class_ids[:e],
            base.groups[:e],
            settled=settled_groups(base.groups),
            knobs=head.knobs,
        ).groups
        left_out = leave_one_group_out(
            base.codes,
            base.class_ids[:e],
            together,
            knobs=head.knobs,
            only=~fitted if fitted.any() and not fitted.all() else None,
            learned=base.moments(),
        )
        expected_on = len(left_out.truth)
        point = operating_point(left_out, head.calibration, [ids[name] for name in good], escape_rate=escape_rate)
        rejected = rejected_by(head, codes, is_good, point.threshold)
    label = np.unique([image.label for image in images], return_inverse=True)[1].astype(np.int64)
    truly_good = np.array([image.label in good for image in images])
    group = np.unique(list(groups), return_inverse=True)[1].astype(np.int64)

    defect = ~truly_good
    passed = balanced_share(~rejected[defect], label[defect], group[defect]) if defect.any() else None

    def rate(found: Rate | None) -> Share | None:
        return None if found is None else Share(found.share, found.low, found.high)

    return Acceptance(
        good=list(good),
        target=escape_rate,
        threshold=None if point is None else point.threshold,
        expected_escapes=rate(None if point is None else point.escapes),
        expected_overkill=rate(None if point is None else point.overkill),
        expected_on=expected_on,
        reachable=None if point is None else point.reachable,
        escapes=None if passed is None else Share(*passed),
        overkill=Share.of(rejected[truly_good], group[truly_good]),
    )


def rejected_by(
    head: Head, codes: npt.NDArray[np.int8], is_good: npt.NDArray[np.bool_], threshold: float | None
) -> npt.NDArray[np.bool_]:
    """Return which of the codes (n, d) are rejected, (n,).

    Args:
        head: Decides.
        codes: Of n pictures.
        is_good: (k,) bool, of the head's classes.
        threshold: Probability of a defect; None rejects by the decision shown.
    """
    decided = head.decide(codes)
    if threshold is None:
        return np.asarray(decided.unknown | ~is_good[decided.class_index], bool)
    p = defect_probability(head.scores(codes), is_good, head.calibration.temperature)
    return np.asarray(decided.unknown | (p >= threshold), bool)


def _doubtful(images: Sequence[LabelledImage], decisions: Sequence[JudgedImage]) -> list[JudgedImage]:
    """Return the decisions on images, n each, that speak against labels which nobody stands by."""
    open_ones = [each for image, each in zip(images, decisions, strict=True) if not image.confirmed]
    found = [(each.label_probability, each) for each in open_ones if each.best != each.label]
    low = [(p, each) for p, each in found if p is not None and p < DOUBTFUL]
    return [each for _, each in sorted(low, key=lambda one: (one[0], one[1].path))]


def _as_id(label: str) -> bytes:
    """Return an id for a class that may have none in the bundle."""
    return sha256(label.encode()).digest()[:CLASS_ID_BYTES]


def _groups_note(given: int, after_export: int, by_codes: int, note: str | None) -> str | None:
    """Return how groups were joined: as the export's split has them, which looked at pixels, then by codes.

    Args:
        given: So many there were.
        after_export: So many are left by the split.
        by_codes: So many are left by their codes too.
        note: What is to be said of these.
    """
    if after_export == given:
        return note
    said = f"{given} groups became {after_export}: the export found that some show one part."
    if note is None and by_codes < after_export:
        note = f"By how alike their codes are, they are {by_codes}."
    return said if note is None else f"{said} {note}"


def frames_of(images: Sequence[LabelledImage], progress: Callable[[int, int], None] | None) -> Iterator[Frame]:
    """Yield the images' frames, saying how many are done."""
    for i, image in enumerate(images):
        yield read(image.path)[1]
        if progress is not None:
            progress(i + 1, len(images))


def evaluate(
    bundle: Bundle,
    images: ImageSet,
    runtime: Runtime,
    *,
    precision: str | None = None,
    part: str = Part.TEST.value,
    good: Sequence[str] = (),
    escape_rate: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return a bundle's figures on the images that it did not learn from.

    Args:
        bundle: Its recorded split says which images it learned from, by sample id.
        images: Labelled images; ones of parts that the bundle has never seen are evaluated whatever the part.
        runtime: Runs the bundle's backbone.
        precision: The channel's own by default.
        part: test, stream, or all that was not learned from.
        good: Names of the classes that are no defects; escapes and overkill are reported with them.
        escape_rate: Target for a threshold, see `accept`.
        progress: Called with (images done, images in all).

    Raises:
        BadImages: no image is left.
        UnknownClassError: the bundle has no such good class.
    """
    class_names, base = bundle.class_names(), bundle.base(precision)
    images = images.spelled([*class_names.values(), *bundle.manifest.split.held_back])
    given = {image.sample_id: image.group for image in images.images}
    images = grouped_as_split(bundle, images)
    good = [spelled(name, class_names.values()) for name in good]
    seen, part_of = bundle.parts(), parts_of(bundle, images)
    learned = sum(seen.get(i.sample_id) in LEARNED for i in images.images)
    siblings = sum(part_of.get(i.sample_id) in LEARNED for i in images.images) - learned
    chosen = not_learned(bundle, images, part)
    pipeline = Pipeline(bundle, precision, runtime)
    began_s = time.monotonic()
    codes = pipeline.codes(frames_of(chosen, progress))
    took_s = time.monotonic() - began_s
    coded = len(chosen)
    found = find_copies(base, chosen, codes, np.array([i.sample_id not in seen for i in chosen], bool))
    copies, kin = int(found.copies.sum()), int(found.kin.sum())
    if not found.left.any():
        raise none_left(images, learned + siblings + copies + kin, copies)
    chosen, codes = [i for i, kept in zip(chosen, found.left, strict=True) if kept], codes[found.left]
    head = base_head(bundle, precision)
    labels, groups = [readable(i.label) for i in chosen], [i.group for i in chosen]
    ids, settled = [_as_id(label) for label in labels], settled_groups(groups)
    # as at export: several pictures of one part are not as much evidence as of several
    grouping = derive_groups(codes, ids, groups, settled=settled, knobs=head.knobs)
    groups, note = list(grouping.groups), grouping.note(none_given=not images.has_groups)
    note = _groups_note(
        len({given[i.sample_id] for i in chosen}), len({i.group for i in chosen}), len(set(groups)), note
    )
    acceptance, rejected = None, None
    of_head = [class_names[class_id] for class_id in head.class_ids]
    if good:
        acceptance = accept(bundle, head, precision, chosen, codes, groups, good, escape_rate)
        rejected = rejected_by(head, codes, np.array([name in good for name in of_head]), acceptance.threshold)
    decisions = told(images, chosen, groups, of_head, head.decide(codes), rejected)
    return Evaluation(
        bundle=bundle.manifest.name,
        digest=bundle.digest(),
        precision=pipeline.precision,
        runtime=runtime.name,
        part=part,
        left_out_learned=learned,
        left_out_siblings=siblings + kin,
        left_out_copies=copies,
        left_out_other_part=len(images.images) - learned - siblings - coded,
        summed=len(base.summed),
        unknown_to_the_bundle=sum(i.sample_id not in seen for i in chosen),
        refused={readable(str(r.path)): r.reason for r in images.refused},
        frames_per_s=coded / max(took_s, 1e-9),
        groups_note=note,
        accuracy=judge(head, lambda class_id: class_names[class_id], codes, labels, groups),
        acceptance=acceptance,
        decisions=decisions,
        doubtful=_doubtful(chosen, decisions),
        confirmed=sum(image.confirmed for image in chosen),
        outlook=look_ahead(
            base.codes,
            base.class_ids[: len(base.codes)],
            base.groups[: len(base.codes)],
            lambda class_id: class_names[class_id],
            knobs=head.knobs,
            false_alarm_rate=head.calibration.false_alarm_rate,
            only=~base.fitted[: len(base.codes)],
            budget_s=OUTLOOK_S,
            settled=settled_groups(base.groups),
        ),
    )
