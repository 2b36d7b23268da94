"""One shift on the line, replayed through a real station: images pass, some are labelled, the head is judged.

Real store, real queue, real learner with its trials; only the camera and the operator are stand-ins, and codes are
computed beforehand. The operator answers at once and waits for each trial, so a shift gives the same figures every
time. What is replayed, and what many shifts say together, is `rehearse`'s.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from device_agent.camera import Shot
from device_agent.evaluate import judge
from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.pipeline import Pipeline
from device_agent.station import Station
from device_agent.store import Store
from device_agent.trial import Base
from sdk.bundle import Bundle
from sdk.codes import Codes
from sdk.head import UNCALIBRATED, Head
from sdk.images import LabelledImage, read_bytes
from sdk.labels import Label
from sdk.preprocess import Frame
from sdk.score import calibrate
from sdk.shown import readable
from sdk.splits import drawn

DEVICE: Final = "rehearsal"
OPERATOR: Final = "oracle"
WITHDRAWN: Final = "Withdrawn before the shift began."
_NO_FRAME: Final[Frame] = np.zeros((0, 0, 3), np.uint8)  # the code is known already


class Policy(str, Enum):
    """Which images the operator labels.

    - queue: what the agent asks about, spread evenly over the shift;
    - random: as many at the same times, drawn from all that have passed;
    - all: every image in order, until the operator has given enough labels.
    """

    QUEUE = "queue"
    RANDOM = "random"
    ALL = "all"


class Point(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The head after so many labels, on the test part. "Unknown" is a miss.

    Attributes:
        labels: Given so far.
        balanced_accuracy: Mean recall over all classes of the test part, known to the head or not.
        new_class_recall: Mean over the classes that the device did not know at first; None without such.
        old_class_recall: Mean over the others.
        trial_balanced_accuracy: What the device itself says, by leaving groups out; None before its first trial.
        elsewhere_balanced_accuracy: On the test images of the other stations; absent without such.
    """

    labels: int
    balanced_accuracy: float
    new_class_recall: float | None
    old_class_recall: float | None
    trial_balanced_accuracy: float | None
    elsewhere_balanced_accuracy: float | None = None


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """What one shift showed.

    Attributes:
        seed: Decided the order of the images, which ones are random, and which labels are wrong.
        labels_given: As many as there was a question for.
        labels_by_class: Of the labelled images, by their true class.
        wrong_labels: How many of the labels were wrong, on purpose.
        taken_back: Heads that their trial took back.
        label_to_live_ms: Median from a label being durable to its head serving.
    """

    seed: int
    labels_given: int
    labels_by_class: dict[str, int]
    wrong_labels: int
    taken_back: int
    label_to_live_ms: float | None
    curve: list[Point]


@dataclass(frozen=True)
class Coded:
    """Images with their codes, row by row."""

    images: Sequence[LabelledImage]
    codes: Codes

    @property
    def labels(self) -> list[str]:
        """Class name per image."""
        return [image.label for image in self.images]

    @property
    def groups(self) -> list[str]:
        """Group id per image."""
        return [image.group for image in self.images]


@dataclass(frozen=True)
class Test:
    """What a head is judged on.

    Attributes:
        here: Test images of this station.
        elsewhere: Test images of the others; may be empty.
        new: Classes that the device does not know at first.
    """

    __test__ = False  # no test case of pytest's
    here: Coded
    elsewhere: Coded
    new: Sequence[str]

    def point(self, labels: int, head: Head, names: Callable[[bytes], str], own: float | None) -> Point:
        """Return what a head makes of it."""
        recall = _recall(head, names, self.here)

        def mean(values: list[float]) -> float | None:
            return float(np.mean(values)) if values else None

        return Point(
            labels=labels,
            balanced_accuracy=float(np.mean(list(recall.values()))),
            new_class_recall=mean([r for name, r in recall.items() if name in self.new]),
            old_class_recall=mean([r for name, r in recall.items() if name not in self.new]),
            trial_balanced_accuracy=own,
            elsewhere_balanced_accuracy=mean(list(_recall(head, names, self.elsewhere).values())),
        )


def _recall(head: Head, names: Callable[[bytes], str], of: Coded) -> dict[str, float]:
    if not of.images:
        return {}
    accuracy = judge(head, names, of.codes, of.labels, of.groups)
    return dict.fromkeys(of.labels, 0.0) | {c.name: c.recall.share for c in accuracy.classes}


@dataclass(frozen=True)
class Line:
    """All that every shift of a rehearsal has in common.

    Attributes:
        bundle: The release that the device starts with.
        pipeline: Of its precision.
        withdrawn: Base samples that the device must not know.
        stream: What passes, in any order.
        test: What heads are judged on.
        labels: The operator gives at most so many.
        noise: The share of labels that are wrong.
    """

    bundle: Bundle
    pipeline: Pipeline
    withdrawn: frozenset[bytes]
    stream: Coded
    test: Test
    labels: int
    noise: float = 0.0


def checkpoints(labels: int) -> list[int]:
    """Return the numbers of labels at which the head is judged.

    >>> checkpoints(30)
    [0, 1, 2, 3, 5, 10, 20, 30]
    """
    steps = chain((0, 1, 2, 3), (m * 10**e for e in range(9) for m in (5, 10, 20)))
    return sorted({step for step in steps if step < labels} | {labels})


def replay(line: Line, policy: Policy, seed: int, progress: Callable[[int], None] | None = None) -> Shift:
    """Replay one shift.

    Args:
        line: What passes, and what is known.
        policy: Which images the operator labels.
        seed: Another seed gives another order, other random images and other wrong labels.
        progress: Called with the labels given so far.
    """
    limits = StoreLimits(keep_samples=max(2000, len(line.stream.images)), reserve_bytes=0)
    with (
        tempfile.TemporaryDirectory(prefix="headway-rehearsal-") as folder,
        Store.open(Path(folder), DEVICE, limits=limits) as store,
    ):
        withdraw(store, line.bundle, line.pipeline.precision, line.withdrawn)
        with _open(store, line) as station:
            running = _Running(station, line, policy, seed, progress or (lambda _given: None))
            running.run()
            heads = running.learner.history(limits.keep_heads)
    return Shift(
        seed=seed,
        labels_given=running.given,
        labels_by_class=dict(running.by_class.most_common()),
        wrong_labels=running.wrong,
        taken_back=sum(row.outcome is Outcome.TAKEN_BACK for row in heads),
        label_to_live_ms=statistics.median(running.live_ms) if running.live_ms else None,
        curve=running.curve,
    )


@contextmanager
def _open(store: Store, line: Line) -> Iterator[Station]:
    station = Station(store, threads=False)
    try:
        station.serve(line.bundle, line.pipeline.precision, line.pipeline.runtime)
        yield station
    finally:
        station.close()


def withdraw(store: Store, bundle: Bundle, precision: str, samples: frozenset[bytes]) -> None:
    """Withdraw base samples from a new store, as an operator could, and count the head without them as confirmed.

    Its calibration is its own too. A trial would compare it with the head that knew the samples, and could take
    the withdrawal back.
    """
    if not samples:
        return
    base = Base.of(bundle, precision)
    records = store.log.append([Label(sample, None, OPERATOR) for sample in sorted(samples)])
    for record in records:
        base.fold.apply(record)
    live = base.fold.live_set()
    classes, left_out = len(set(live.class_ids)), base.left_out(live, lambda: False)
    if left_out is not None:
        calibration = calibrate(left_out, base.calibration.false_alarm_rate)
    elif (base.calibration.classes == 1) == (classes == 1):
        calibration = base.calibration
    else:
        calibration = replace(UNCALIBRATED, false_alarm_rate=base.calibration.false_alarm_rate, classes=classes)
    store.heads.put(
        HeadRow(
            number=store.heads.next_number(),
            created_utc=time.time(),
            space=base.fold.space,
            digest=live.digest,
            through=store.log.records_after(0, len(records))[-1][0],
            samples=len(live),
            outcome=Outcome.CONFIRMED,
            reason=WITHDRAWN,
            calibration=msgspec.msgpack.encode(calibration),
        )
    )


class _Running:
    """A shift under way."""

    def __init__(
        self, station: Station, line: Line, policy: Policy, seed: int, progress: Callable[[int], None]
    ) -> None:
        self.given = 0
        self.wrong = 0
        self.by_class: Counter[str] = Counter()
        self.curve: list[Point] = []
        self.live_ms: list[float] = []
        self._station, self._line, self._policy, self._seed = station, line, policy, seed
        self._progress = progress
        self._truth = {image.sample_id: image.label for image in line.stream.images}
        self._due = checkpoints(line.labels)
        self._unlabelled: list[bytes] = []  # passed so far
        self._random = np.random.default_rng(seed)

    @property
    def learner(self) -> Learner:
        return self._station.require().learner

    def run(self) -> None:
        self._settle()
        self._judge()
        stream, wanted = self._line.stream, self._line.labels
        for passed, row in enumerate(self._order(), 1):
            image = stream.images[row]
            group = readable(f"{DEVICE}/{image.group}")[:200]
            shot = Shot(_NO_FRAME, time.time(), group, readable(image.path.name), read_bytes(image.path))
            self._station.see(shot, stream.codes[row][None])
            self._unlabelled.append(image.sample_id)
            # The operator comes by at even intervals, however full the queue is; or stays and labels everything.
            self._label(wanted if self._policy is Policy.ALL else wanted * passed // len(stream.images))
        if self.curve[-1].labels != self.given:
            self._judge()

    def _order(self) -> list[int]:
        """Return the stream's rows in the order of the shift: pictures of one part pass one after the other."""

        def place(row: int) -> tuple[bytes, str]:
            image = self._line.stream.images[row]
            return drawn(self._seed, image.group), str(image.path)

        return sorted(range(len(self._line.stream.images)), key=place)

    def _label(self, allowed: int) -> None:
        while self.given < allowed:
            sample = self._next()
            if sample is None:
                return
            self._unlabelled.remove(sample)
            truth = self._truth[sample]
            name = self._answer(sample, truth)
            self._station.label(sample, self._class_id(name), OPERATOR)
            self.given += 1
            self.wrong += name != truth
            self.by_class[truth] += 1
            self._settle()
            live_ms = self.learner.status().label_to_live_ms
            if live_ms is not None:
                self.live_ms.append(live_ms)
            self._progress(self.given)
            if self.given in self._due:
                self._judge()

    def _next(self) -> bytes | None:
        if self._policy is Policy.QUEUE:
            questions = self._station.store.samples.queue(1)
            return questions[0].sample_id if questions else None
        if not self._unlabelled:
            return None
        at = 0 if self._policy is Policy.ALL else int(self._random.integers(len(self._unlabelled)))
        return self._unlabelled[at]

    def _answer(self, sample: bytes, truth: str) -> str:
        """Return what the operator says: at the rate of noise, another class that is on the page.

        The sample decides, so that all policies meet the same mistakes.
        """
        digest = hashlib.sha256(f"noise\0{self._seed}\0".encode() + sample).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 >= self._line.noise:
            return truth
        others = [each.name for each in self._station.classes() if each.labels and each.name != truth]
        return others[int.from_bytes(digest[8:16], "big") % len(others)] if others else truth

    def _class_id(self, name: str) -> bytes:
        for known in self._station.classes():
            if known.name == name:
                return known.class_id
        return self._station.define_class(name, OPERATOR)

    def _settle(self) -> None:
        """Learn and try what was labelled, as happens between two pictures without an operator noticing."""
        self.learner.run_until_idle()

    def _judge(self) -> None:
        active, score = self.learner.head, self.learner.status().score
        names = dict(zip(active.head.class_ids, active.names, strict=True))
        own = None if score is None else score.balanced_accuracy
        self.curve.append(self._line.test.point(self.given, active.head, names.__getitem__, own))
