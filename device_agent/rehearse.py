"""How many labels will be needed? A labelled image set replayed as shifts on the line, with an oracle to answer.

The stream part of the recorded split passes as a shift would (`shift`), and the head is judged on the test part,
which nothing ever learns from, at 0, 1, 2, 3, 5, 10, ... labels. Beside it stands the joint head: what all labels
of the stream at once would give. Decided here: which images pass and which judge, which shifts are replayed, and
what they say together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import msgspec
import numpy as np

from device_agent.evaluate import frames_of, judge
from device_agent.labelling import class_name
from device_agent.pipeline import Pipeline
from device_agent.runtime import Runtime
from device_agent.shift import DEVICE, Coded, Line, Point, Policy, Shift, Test, checkpoints, replay
from device_agent.unseen import LEARNED, Copies, find_copies, grouped_as_split, parts_of
from sdk.bundle import Bundle
from sdk.class_names import spelled
from sdk.errors import BadImages, LabelError
from sdk.grouping import derive_groups
from sdk.head import Knobs, solve
from sdk.images import ImageSet, LabelledImage
from sdk.labels import new_class_id
from sdk.layouts import INDEX_NAME, settled_groups
from sdk.moments import Moments
from sdk.score import calibrate, leave_one_group_out
from sdk.splits import Part, split

NEAR: Final = 0.01
"""As good as: within a point of what all labels give."""
WEAK_FEATURES: Final = 0.8
"""Below this even all labels do not make a head that people would trust: the features are the limit."""
FEWEST_LABELS: Final = 10
"""A head of fewer labels of a shift says little of what the features allow, however badly it does."""
FEWEST_PARTS: Final = 5
"""A class that rests on fewer groups says as little, however many images each has."""
FORGOTTEN: Final = 0.02
"""A loss elsewhere of more than this is worth a note; it is what a trial allows."""
_SHOWN: Final = 12
"""So many values of a column are named in an error."""

Measure = Callable[[Point], float | None]


class StationImages(msgspec.Struct, frozen=True):
    """Which images are this station's: those with one of these values in this column of the index."""

    column: str
    values: list[str]

    def __str__(self) -> str:
        return f"{self.column} {', '.join(self.values)}"

    def has(self, image: LabelledImage) -> bool:
        """Return whether an image is this station's."""
        return image.columns.get(self.column, "").strip() in self.values

    def check(self, images: ImageSet) -> None:
        """Refuse a column that the set does not have, and values that no image has.

        Raises:
            BadImages: the one or the other.
        """
        columns = sorted({column for image in images.images for column in image.columns})
        if self.column not in columns:
            raise BadImages(
                f"{images.folder}: no column {self.column!r} to tell stations apart",
                hint=f"Columns here: {', '.join(columns)}."
                if columns
                else f"Write an {INDEX_NAME} with path,label,group and a column of your own.",
            )
        there = sorted({image.columns.get(self.column, "").strip() for image in images.images})
        missing = [value for value in self.values if value not in there]
        if missing:
            more = "" if len(there) <= _SHOWN else f" and {len(there) - _SHOWN} more"
            raise BadImages(
                f"{images.folder}: no image has {self.column} {' or '.join(missing)}",
                hint=f"There is: {', '.join(there[:_SHOWN])}{more}.",
            )


@dataclass(frozen=True)
class Plan:
    """What to rehearse.

    Attributes:
        labels: The oracle gives at most so many in each shift.
        policies: Which images it labels; one after the other over the same shifts.
        seeds: One shift with each of them.
        hold_back: A class that the device must not know at first. Where the bundle knows it, its samples are
            withdrawn before the shift begins.
        station: The shift and its test are these images only, and the device must not know any of them at first.
        noise: The share of labels that are wrong on purpose.
    """

    labels: int
    policies: Sequence[Policy] = (Policy.QUEUE,)
    seeds: Sequence[int] = (0,)
    hold_back: str | None = None
    station: StationImages | None = None
    noise: float = 0.0


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the shifts of one policy showed.

    Attributes:
        labels_given: In the shift that had most questions.
        curve: Mean over the shifts. A shift that has no more questions stays as it is.
        low: Least over the shifts, point by point.
        high: Greatest over the shifts.
        shifts: Each of them.
    """

    policy: Policy
    labels_given: int
    curve: list[Point]
    low: list[Point]
    high: list[Point]
    shifts: list[Shift]


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal showed.

    Attributes:
        new_classes: Those that the device did not know at first.
        withdrawn: Samples that the bundle knew and the device must not.
        stream_images: Passed in each shift.
        test_images: Judged every head.
        elsewhere_images: Test images of other stations.
        labels_wanted: As many labels as the oracle was willing to give in each shift.
        noise: The share of labels that were to be wrong.
        label_to_live_ms: Median from a label being durable to its head serving.
        curve: The first policy's mean over the shifts.
        joint: All labels of the stream at once, all of them right; `labels` is their number.
        notes: What makes a figure better or worse than it seems.
        advice: One sentence.
    """

    bundle: str
    digest: str
    precision: str
    seeds: list[int]
    new_classes: list[str]
    hold_back: str | None
    station: StationImages | None
    withdrawn: int
    stream_images: int
    test_images: int
    elsewhere_images: int
    labels_wanted: int
    noise: float
    label_to_live_ms: float | None
    curve: list[Point]
    joint: Point
    policies: list[PolicyResult]
    notes: list[str]
    advice: str
    seconds: float


def rehearse(
    bundle: Bundle,
    images: ImageSet,
    runtime: Runtime,
    plan: Plan,
    *,
    precision: str | None = None,
    coding: Callable[[int, int], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Rehearsal:
    """Replay shifts and return how the head grew with its labels.

    Args:
        bundle: The release that the device starts with.
        images: Labelled images. Those that the bundle knows keep their part of its split, others are dealt out.
        runtime: Runs the bundle's backbone.
        plan: Which shifts.
        precision: The channel's own by default.
        coding: Called with (images coded, images in all).
        progress: Called with (which shift, labels given in all shifts, labels wanted in all shifts).

    Raises:
        BadImages: no image is left for the shift or the test, none is of the class held back or of the station, or
            the device would know nothing at all.
    """
    began_s = time.monotonic()
    known = [*bundle.class_names().values(), *bundle.manifest.split.held_back]
    images = grouped_as_split(bundle, images.spelled(known))
    _check_names(images, known)
    if plan.hold_back is not None:
        plan = replace(plan, hold_back=spelled(plan.hold_back, [*known, *images.classes]))
    parts = _parts(bundle, images, plan)
    pipeline = Pipeline(bundle, precision, runtime)
    withdrawn = _withdrawn(bundle, pipeline.precision, images, plan)
    chosen = [*parts.stream, *parts.test, *parts.elsewhere]
    codes = pipeline.codes(frames_of(chosen, coding))
    base, names, seen = bundle.base(pipeline.precision), bundle.class_names(), bundle.parts()
    found = find_copies(base, chosen, codes, np.array([i.sample_id not in seen for i in chosen], bool))
    parts, codes = parts.less(chosen, found), codes[found.left]
    _check_parts(parts, images, plan)
    ends = np.cumsum([len(parts.stream), len(parts.test)])
    stream, here, elsewhere = (
        Coded(some, part)
        for some, part in zip((parts.stream, parts.test, parts.elsewhere), np.split(codes, ends), strict=True)
    )
    rows = zip(base.samples, base.class_ids, strict=True)
    at_first = {names[class_id] for sample, class_id in rows if sample not in withdrawn}
    test = Test(here, elsewhere, sorted(set(here.labels) - at_first))
    line = Line(bundle, pipeline, withdrawn, stream, test, plan.labels, plan.noise)

    shifts = _Progress(plan, progress)
    policies = [
        together(
            policy, [replay(line, policy, seed, shifts.begin(policy, seed)) for seed in plan.seeds], plan.labels
        )
        for policy in plan.policies
    ]
    joint, basis = _joint(line)
    live = [s.label_to_live_ms for each in policies for s in each.shifts if s.label_to_live_ms is not None]
    return Rehearsal(
        bundle=bundle.manifest.name,
        digest=bundle.digest(),
        precision=pipeline.precision,
        seeds=list(plan.seeds),
        new_classes=list(test.new),
        hold_back=plan.hold_back,
        station=plan.station,
        withdrawn=len(withdrawn),
        stream_images=len(stream.images),
        test_images=len(here.images),
        elsewhere_images=len(elsewhere.images),
        labels_wanted=plan.labels,
        noise=plan.noise,
        label_to_live_ms=statistics.median(live) if live else None,
        curve=policies[0].curve,
        joint=joint,
        policies=policies,
        notes=_notes(bundle, plan, parts, len(withdrawn), policies, joint, summed=len(base.summed)),
        advice=advise(policies, joint, plan.labels, basis),
        seconds=time.monotonic() - began_s,
    )


def _check_names(images: ImageSet, known: Collection[str]) -> None:
    """Refuse classes that no operator could teach under their name, before the shift comes to one.

    Raises:
        BadImages: there is one.
    """
    for name in images.classes:
        try:
            wanted = name if name in known else class_name(name)
        except LabelError as error:
            raise BadImages(
                f"{images.folder}: {error}", hint="Rename that class's folder, or leave it out."
            ) from error
        if wanted != name:
            raise BadImages(
                f"{images.folder}: the class {name!r} has spaces that an operator would not type",
                hint=f"Call it {wanted!r}.",
            )


class _Progress:
    """Labels given over all shifts, for people who wait."""

    def __init__(self, plan: Plan, progress: Callable[[str, int, int], None] | None) -> None:
        self._plan, self._progress, self._shifts = plan, progress, 0

    def begin(self, policy: Policy, seed: int) -> Callable[[int], None]:
        """Return what is to be called with the labels given in the next shift."""
        before, total = self._shifts * self._plan.labels, self._plan.labels * len(self._plan.policies)
        what = f"{policy.value}, seed {seed}"
        self._shifts += 1

        def given(labels: int) -> None:
            if self._progress is not None:
                self._progress(what, before + labels, total * len(self._plan.seeds))

        given(0)
        return given


# -- which images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The images of the shift, of the test, of other stations' test; how many were of groups it learned from.

    `learned` are files that it learned from, `copies` new files of such pictures (`device_agent.unseen`).
    """

    stream: list[LabelledImage]
    test: list[LabelledImage]
    elsewhere: list[LabelledImage]
    siblings: int
    learned: int
    copies: int = 0

    def less(self, chosen: Sequence[LabelledImage], found: Copies) -> _Parts:
        """Return them without the copies found among those chosen, and other pictures of their groups."""
        left = {image.sample_id for image, kept in zip(chosen, found.left, strict=True) if kept}

        def of(some: Sequence[LabelledImage]) -> list[LabelledImage]:
            return [image for image in some if image.sample_id in left]

        siblings, copies = self.siblings + int(found.kin.sum()), int(found.copies.sum())
        return _Parts(of(self.stream), of(self.test), of(self.elsewhere), siblings, self.learned, copies)


def _parts(bundle: Bundle, images: ImageSet, plan: Plan) -> _Parts:
    if plan.station is not None:
        plan.station.check(images)
    seen, part_of = bundle.parts(), parts_of(bundle, images)
    fresh = [image for image in images.images if image.sample_id not in seen]
    alone = [image for image in fresh if image.sample_id not in part_of]
    dealt = split([i.group for i in alone], [i.label for i in alone], plan.seeds[0])
    for image, part in zip(alone, dealt, strict=True):
        part_of[image.sample_id] = Part.TEST if part is Part.TEST else Part.STREAM

    def of(part: Part, here: bool) -> list[LabelledImage]:
        return [i for i in images.images if part_of[i.sample_id] is part and _here(plan, i) == here]

    found = _Parts(
        stream=of(Part.STREAM, here=True),
        test=of(Part.TEST, here=True),
        elsewhere=of(Part.TEST, here=False),
        siblings=sum(part_of[i.sample_id] in LEARNED and _here(plan, i) for i in fresh),
        learned=sum(seen.get(i.sample_id) in LEARNED and _here(plan, i) for i in images.images),
    )
    _check_parts(found, images, plan)
    return found


def _check_parts(parts: _Parts, images: ImageSet, plan: Plan) -> None:
    """Refuse a set that leaves no image for the shift or the test, or none of the class held back.

    Raises:
        BadImages: it does.
    """
    for what, some in (("the shift", parts.stream), ("the test", parts.test)):
        where = "" if plan.station is None else f" at {plan.station}"
        if not some:
            known = f"; the bundle learned from {parts.learned} of them" if parts.learned else ""
            anew = f"; {parts.copies} that the bundle learned from are saved anew here" if parts.copies else ""
            raise BadImages(
                f"{images.folder}: no image{where} is left for {what}{known}{anew}",
                hint="Use the images that the bundle was exported from, or ones that it has never seen.",
            )
        if plan.hold_back is not None and plan.hold_back not in {i.label for i in some}:
            raise BadImages(
                f"{images.folder}: no image of class {plan.hold_back!r}{where} is left for {what}",
                hint=f"Classes here: {', '.join(images.classes)}.",
            )


def _here(plan: Plan, image: LabelledImage) -> bool:
    return plan.station is None or plan.station.has(image)


def _withdrawn(bundle: Bundle, precision: str, images: ImageSet, plan: Plan) -> frozenset[bytes]:
    """Return the bundle's own samples that the device must not know at first."""
    base, names = bundle.base(precision), bundle.class_names()
    here = set() if plan.station is None else {i.sample_id for i in images.images if plan.station.has(i)}
    gone = frozenset(
        sample
        for sample, class_id in zip(base.samples, base.class_ids, strict=True)
        if sample in here or names[class_id] == plan.hold_back
    )
    what = " and ".join(
        [*([repr(plan.hold_back)] if plan.hold_back else []), *([str(plan.station)] if plan.station else [])]
    )
    stuck = gone.intersection(base.samples[len(base.codes) :])
    if stuck:
        raise BadImages(
            f"the bundle cannot forget {what}: it has {len(stuck)} of these {len(gone)} samples in its sums only",
            hint="Export without them (--hold-back, or without this station), or with a larger --max-base-codes.",
        )
    if len(gone) < len(base.samples):
        return gone
    raise BadImages(
        f"the bundle knows nothing but {what}", hint="Start from a bundle that knows something else as well."
    )


# -- what the shifts say together --------------------------------------------------------------------------------


def together(policy: Policy, shifts: Sequence[Shift], labels: int) -> PolicyResult:
    """Return what several shifts of one policy say: mean and range at each checkpoint."""
    given = max(shift.labels_given for shift in shifts)
    steps = [step for step in checkpoints(labels) if step < given] + [given]

    def curve(summary: Callable[[list[float]], float]) -> list[Point]:
        return [_summed([_at(shift.curve, step) for shift in shifts], step, summary) for step in steps]

    return PolicyResult(
        policy=policy,
        labels_given=given,
        curve=curve(lambda values: float(np.mean(values))),
        low=curve(min),
        high=curve(max),
        shifts=list(shifts),
    )


def _at(curve: Sequence[Point], labels: int) -> Point:
    """Return how a shift stood after so many labels, or after its last."""
    return [point for point in curve if point.labels <= labels][-1]


def _summed(points: Sequence[Point], labels: int, summary: Callable[[list[float]], float]) -> Point:
    def of(measure: Measure) -> float | None:
        values = [value for value in map(measure, points) if value is not None]
        return summary(values) if values else None

    return Point(
        labels=labels,
        balanced_accuracy=summary([point.balanced_accuracy for point in points]),
        new_class_recall=of(lambda point: point.new_class_recall),
        old_class_recall=of(lambda point: point.old_class_recall),
        trial_balanced_accuracy=of(lambda point: point.trial_balanced_accuracy),
        elsewhere_balanced_accuracy=of(lambda point: point.elsewhere_balanced_accuracy),
    )


def _joint(line: Line) -> tuple[Point, Basis]:
    """Return what the device would know if every image of the shift had been labelled, and what that rests on.

    Of a class that no image of the shift taught, features may allow anything.
    """
    precision, names, stream = line.pipeline.precision, line.bundle.class_names(), line.stream
    base, entry = line.bundle.base(precision), line.bundle.precision(precision).head
    kept = [i for i, sample in enumerate(base.samples[: len(base.codes)]) if sample not in line.withdrawn]
    id_of = {name: class_id for class_id, name in names.items()}
    for name in stream.labels:
        id_of.setdefault(name, new_class_id())
    codes = np.concatenate([base.codes[kept], stream.codes])
    class_ids = [base.class_ids[i] for i in kept] + [id_of[name] for name in stream.labels]
    groups = [base.groups[i] for i in kept] + [f"{DEVICE}/{group}" for group in stream.groups]
    knobs = Knobs(entry.rho, entry.centre_damping, entry.lift_floor, entry.distance_weight)
    moments = Moments(codes.shape[1]) if base.rest is None else base.rest.copy()
    moments.add(codes, class_ids)
    settled = settled_groups(base.groups)
    together = derive_groups(codes, class_ids, groups, settled=settled, knobs=knobs).groups
    # As on the device: what the backbone was trained on says nothing of how far new parts lie.
    only = np.concatenate([~base.fitted[kept], np.ones(len(stream.codes), bool)])
    left_out = leave_one_group_out(codes, class_ids, together, knobs=knobs, only=only, learned=moments)
    calibration = calibrate(left_out, entry.false_alarm_rate)
    head = solve(moments, knobs=knobs, calibration=calibration)
    name_of = {class_id: name for name, class_id in id_of.items()}
    here = line.test.here
    accuracy = judge(head, name_of.__getitem__, here.codes, here.labels, here.groups)
    known, there = len(accuracy.classes), len(set(here.labels))
    high = 1.0 if accuracy.balanced_accuracy is None else accuracy.balanced_accuracy.high
    high = (known * high + there - known) / there
    parts_of_class: dict[bytes, set[str]] = {}
    summed = slice(len(base.codes), None)  # of these no group has a code, so that none is counted twice
    for class_id, group in chain(
        zip(class_ids, together, strict=True), zip(base.class_ids[summed], base.groups[summed], strict=True)
    ):
        parts_of_class.setdefault(class_id, set()).add(group)
    judged = {name: len(parts_of_class.get(id_of[name], ())) for name in sorted(set(here.labels)) if name in id_of}
    basis = Basis(
        high=high,
        images=len(here.images),
        groups=len(set(here.groups)),
        few=[name for name, n in judged.items() if 0 < n < FEWEST_PARTS],
    )
    return line.test.point(len(stream.images), head, name_of.__getitem__, None), basis


# -- words -------------------------------------------------------------------------------------------------------


def _notes(
    bundle: Bundle,
    plan: Plan,
    parts: _Parts,
    withdrawn: int,
    policies: Sequence[PolicyResult],
    joint: Point,
    *,
    summed: int,
) -> list[str]:
    notes: list[str] = []
    if summed:
        notes.append(
            f"The bundle has {summed} of its samples in sums only: learned from, and not scored by trials."
        )
    known = plan.hold_back is not None and plan.hold_back not in bundle.manifest.split.held_back
    if withdrawn:
        what = [f"with {plan.hold_back}"] if known else []
        what += [f"with images of this station ({plan.station})"] if plan.station is not None else []
        notes.append(
            f"The bundle was exported {' and '.join(what)}: {withdrawn} samples were withdrawn here. Scale and "
            "backbone had seen them; export without them for a stricter rehearsal."
        )
    if parts.learned:
        notes.append(f"{_images(parts.learned)} left out: the bundle learned from {_them(parts.learned)}.")
    if parts.copies:
        notes.append(
            f"{_images(parts.copies)} left out: the bundle learned from {_them(parts.copies)}, here saved anew."
        )
    if parts.siblings:
        notes.append(
            f"{_images(parts.siblings)} left out: the bundle learned from other pictures of the same groups."
        )
    for each in policies:
        given, there = each.labels_given, len(parts.stream)
        if given >= min(plan.labels, there) < plan.labels:
            notes.append(f"The shift has {counted(there, 'image')} only; it had no more to label.")
        elif each.policy is Policy.QUEUE and given < plan.labels:
            asked = f"{counted(given, 'label')} only; everything else" if given else "no label; everything"
            notes.append(f"The queue asked for {asked} was clear to the head.")
    if plan.noise:
        wrong, given = drawn(policies)
        notes.append(f"{wrong} of {given} labels were wrong on purpose; the upper bound has none.")
    cost = _cost_elsewhere(policies[0].curve, joint)
    return notes if cost is None else [*notes, cost]


def drawn(policies: Sequence[PolicyResult]) -> tuple[int, int]:
    """Return how many labels of all shifts were wrong on purpose, and how many there were."""
    shifts = [shift for each in policies for shift in each.shifts]
    return sum(shift.wrong_labels for shift in shifts), sum(shift.labels_given for shift in shifts)


def _cost_elsewhere(curve: Sequence[Point], joint: Point) -> str | None:
    """Return what the labels given, and all of the shift's at once, take from other stations; None: little."""
    before = curve[0].elsewhere_balanced_accuracy

    def lost(point: Point) -> float | None:
        after = point.elsewhere_balanced_accuracy
        return None if before is None or after is None or before - after <= FORGOTTEN else after

    after, at_once = lost(curve[-1]), lost(joint)
    if after is None and at_once is None:
        return None
    now = [] if after is None else [f"{after:.1%}"]
    now += [] if at_once is None else [f"{at_once:.1%} with {_every(joint)}"]
    return f"What is learned here costs elsewhere: {before:.1%} there becomes {' and '.join(now)}."


def counted(n: int, what: str) -> str:
    """Return a number of things.

    >>> counted(1, "image"), counted(0, "image")
    ('1 image', '0 images')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _images(n: int) -> str:
    return f"{counted(n, 'image')} {'was' if n == 1 else 'were'}"


def _them(n: int) -> str:
    return "it" if n == 1 else "them"


@dataclass(frozen=True)
class Basis:
    """What the score of the joint head rests on.

    Attributes:
        high: Upper end of its 95 % interval, for as many new groups.
        images, groups: That it was judged on.
        few: Classes judged that it knows from fewer than `FEWEST_PARTS` groups.
    """

    high: float
    images: int
    groups: int
    few: Sequence[str] = ()


def _every(joint: Point) -> str:
    return f"all {joint.labels} labels of the shift at once" if joint.labels != 1 else "the shift's one label"


def enough(curve: Sequence[Point], joint: Point) -> Point | None:
    """Return the point from which on a curve stays as good as all labels at once; None where it does not."""
    found = None
    for point in reversed(curve):
        if point.balanced_accuracy < joint.balanced_accuracy - NEAR:
            break
        found = point
    return found


def advise(policies: Sequence[PolicyResult], joint: Point, wanted: int, basis: Basis) -> str:
    """Return one sentence: how many labels, and what choosing them well is worth.

    That the features are the limit is said only where chance and a lack of labels or parts cannot explain it as
    well, and no head of fewer labels shows that they allow more. A best head of several is lucky too: it says so
    only in the features' favour, and of labels only where it lies beyond all that chance would give.
    """
    own, others = policies[0], policies[1:]
    curve, given, goal = own.curve, own.labels_given, joint.balanced_accuracy
    first, last = curve[0].balanced_accuracy, curve[-1].balanced_accuracy
    every, give = _every(joint), "gives" if joint.labels == 1 else "give"
    best = max(curve, key=lambda point: point.balanced_accuracy)
    ahead = best.balanced_accuracy - goal
    if ahead > NEAR and best.balanced_accuracy > basis.high:
        return (
            f"{_said(every)} {give} {goal:.1%}, {_fewer(best)}: labels of this shift do not fit what the device "
            f"knew. {_LOOK}"
        )
    if goal < WEAK_FEATURES and last < WEAK_FEATURES:
        beside = f"; {_fewer(best)}" if ahead > NEAR else ""
        if basis.high + max(ahead, 0) >= WEAK_FEATURES or joint.labels < FEWEST_LABELS or basis.few:
            rests = f", {' and '.join(basis.few)} known from fewer than {FEWEST_PARTS} parts" if basis.few else ""
            return (
                f"{_said(every)} {give} {goal:.1%}, judged on {counted(basis.images, 'image')} of "
                f"{counted(basis.groups, 'group')}{rests}{beside}: too few to say whether the features are the "
                f"limit. {_LOOK + ' ' if beside else ''}Rehearse with more images that the bundle has not learned "
                "from."
            )
        return (
            f"Even {every} reach {goal:.1%} only{beside}: the features are the limit, so try another backbone, a "
            "larger input or fine-tuning before labelling more."
        )
    if first >= goal - NEAR:
        return (
            f"The line starts at {first:.1%}, and {every} {give} {goal:.1%}: label only what the queue asks about."
        )
    there = enough(curve, joint)
    beside = "".join(f"; {_beside(other, joint, there)}" for other in others)
    if there is not None:
        labels = "1 label is" if there.labels == 1 else f"{there.labels} labels are"
        return (
            f"{labels} enough: {first:.1%} becomes {there.balanced_accuracy:.1%}, and {every} {give} "
            f"{goal:.1%}{beside}."
        )
    more = "plan for more labels than that" if given == wanted else "more shifts will bring more questions"
    turns = f"{counted(given, 'label')} {'turns' if given == 1 else 'turn'}"
    return f"{turns} {first:.1%} into {last:.1%}; {every} {give} {goal:.1%}, so {more}{beside}."


_LOOK: Final = (
    "Look at the labels first: `headway evaluate BUNDLE --data DIR --part stream --decisions FILE` says which the "
    "bundle would call otherwise."
)


def _said(words: str) -> str:
    return words[0].upper() + words[1:]


def _fewer(best: Point) -> str:
    """Return what a head of fewer labels reached."""
    who = f"{best.labels} gave" if best.labels else "the line starts at"
    return f"{who} {best.balanced_accuracy:.1%}"


def _beside(other: PolicyResult, joint: Point, there: Point | None) -> str:
    """Return what another policy would need for the same, or give for as much."""
    which = {
        Policy.QUEUE: "what the queue asks about",
        Policy.RANDOM: "images picked at random",
        Policy.ALL: "images as they come",
    }[other.policy]
    needed = enough(other.curve, joint)
    if there is not None and needed is not None:
        return f"with {which} it takes {needed.labels}"
    last = other.curve[-1]
    give = "gives" if last.labels == 1 else "give"
    return f"{counted(last.labels, 'label')} of {which} {give} {last.balanced_accuracy:.1%}"
