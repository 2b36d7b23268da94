"""A release before it serves: this device's own labels carried into its feature space, and its score on them.

A new backbone changes every code and no label. So the pictures that operators labelled here are embedded anew and
their codes written to the log, from where the whole fleet learns them; then the candidate is scored on exactly
these samples beside the release that serves now, each on groups left out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_agent.former_names import FormerNames
from device_agent.master_folder import Masters
from device_agent.masters import MasterSide, judge
from device_agent.naming import Naming
from device_agent.pipeline import BATCH_FRAMES, Pipeline
from device_agent.sample import Sample
from device_agent.store import Store
from device_agent.trial import Base, meanwhile
from sdk.bundle import Bundle
from sdk.codes import Code, code_digest
from sdk.errors import BadImages
from sdk.head import Calibration, Head, solve
from sdk.images import decode
from sdk.labels import REFUSALS, Body, CodeRecord
from sdk.moments import Adaptation
from sdk.preprocess import Frame
from sdk.reason import Reason
from sdk.score import LeftOut, calibrate
from sdk.verdict import Verdict, trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Carried:
    """What became of this device's labels in a new feature space.

    Attributes:
        written: Codes.
        lost: Samples that get none, their pictures gone or damaged. Their labels count all the same where the
            release was made from them.
    """

    written: int = 0
    lost: frozenset[bytes] = frozenset()


def carry_labels(store: Store, pipeline: Pipeline, stop: Callable[[], bool]) -> Carried:
    """Write a code record for every own labelled sample that has none in a pipeline's feature space.

    Also where the fleet has erased it while no release in use had that space. May be repeated at will: what is
    written is not written again.

    Raises:
        InferenceFailed: the runtime failed.
        StoreFull: no room; what was written before stays.
        InterruptedError: `stop` said so.
    """
    written, lost = 0, set[bytes]()
    waiting = store.samples.labelled_without_code(pipeline.space)
    for start in range(0, len(waiting), BATCH_FRAMES):
        if stop():
            raise InterruptedError("embedding was asked to stop")
        some = waiting[start : start + BATCH_FRAMES]
        samples, frames = _readable(store, some)
        lost |= {sample.sample_id for sample in some} - {sample.sample_id for sample in samples}
        if not samples:
            continue
        # One by one, as the line's frames are: in a batch sums may round otherwise, and a label given before a new
        # backbone must count exactly as if it had been given under it.
        codes = np.concatenate([pipeline.code(frame) for frame in frames])
        space = bytes.fromhex(pipeline.space)
        by_sample: dict[bytes, Code] = {s.sample_id: code for s, code in zip(samples, codes, strict=True)}
        with store.held():  # what a person or the fleet erased meanwhile stays erased
            bodies: list[Body] = [
                CodeRecord(space, sample.sample_id, sample.group, code_digest(by_sample[sample.sample_id]))
                for sample in samples
                if store.samples.is_without_code(sample.sample_id, pipeline.space)
            ]
            store.log.append(bodies, by_sample)
        written += len(bodies)
    if lost:
        log.warning("%d labelled pictures are gone or damaged: they get no code of this release", len(lost))
    return Carried(written, frozenset(lost))


def _readable(store: Store, samples: list[Sample]) -> tuple[list[Sample], list[Frame]]:
    kept: list[Sample] = []
    frames: list[Frame] = []
    for sample in samples:
        image = store.samples.image(sample.sample_id)
        if image is None:
            continue
        try:
            frames.append(decode(image))
        except BadImages:
            continue
        kept.append(sample)
    return kept, frames


def compare(
    store: Store, old: tuple[Bundle, str | None], new: tuple[Bundle, str | None], stop: Callable[[], bool]
) -> Verdict | None:
    """Return whether a candidate knows this device's own labels as well as the release that serves now.

    Args:
        store: Whose log both are folded with.
        old: The release that serves, and its precision.
        new: The candidate, and its precision.
        stop: Asked between groups; true ends the work.

    Returns:
        None where there is nothing to compare: no own labels, or too few groups.

    Raises:
        BadFormat: a bundle's samples are not those its head was made from.
        InterruptedError: `stop` said so.
    """
    names: dict[bytes, str] = {}
    sides = [_own_score(store, bundle, precision, names, stop) for bundle, precision in (old, new)]
    before, after = sides
    if before is None or after is None:
        return None
    return trial(
        before,
        after,
        names=lambda class_id: names.get(class_id, f"class {class_id.hex()[:6]}"),
        one_space=len({bundle.space(precision) for bundle, precision in (old, new)}) == 1,
    )


def compare_masters(
    store: Store,
    masters: Path,
    old: tuple[Bundle, Pipeline],
    new: tuple[Bundle, Pipeline],
    stop: Callable[[], bool],
    confirmed: Head | None = None,
) -> Reason | None:
    """Return why a candidate may not serve: it tells the station's master parts worse than what serves now.

    The candidate's head is of all labels that the device has. None where it is as good, or cannot be compared.

    Args:
        store: Whose log both are folded with.
        masters: Folder of master parts.
        old: The release that serves.
        new: The candidate.
        stop: Asked between pictures; true ends the work.
        confirmed: The head that serves, without labels that a trial took back; None takes one of all labels.

    Raises:
        BadFormat: a bundle's samples are not those its head was made from.
        InferenceFailed: a runtime failed.
        InterruptedError: `stop` said so.
    """
    before = _mastered(store, masters, *old, stop, confirmed)
    after = _mastered(
        store, masters, *new, stop, None, 1 if confirmed is None else confirmed.adaptation.own_weight
    )
    return None if before is None or after is None else judge(before, after)


def _mastered(
    store: Store,
    masters: Path,
    bundle: Bundle,
    pipeline: Pipeline,
    stop: Callable[[], bool],
    head: Head | None,
    own_weight: int = 1,
) -> MasterSide | None:
    """Return the parts' codes and a head; None for the one that this device would have with a release, its own
    labels weighed as they are now."""

    def embed(image: bytes) -> Code:
        return np.asarray(pipeline.code(decode(image))[0], np.int8)

    codes = Masters(masters, embed).codes(stop)
    base = _folded(store, bundle, pipeline.precision)
    live, former = base.fold.live_set(), FormerNames(store).names
    names = Naming.of(base.fold, store.device, former).words(live.class_ids)
    if codes is None or not live.samples:
        return None
    if head is None:
        station = base.labelled(live, store.device, stop)
        own, weighed = station.moments(station.own), Adaptation(own_weight)
        head = solve(station.everything, knobs=base.knobs, own=own, adaptation=weighed)
        head = head.recalibrated(meanwhile(base.calibration, head))
    return MasterSide(codes, head, lambda class_id: names.get(class_id, ""), base.learned(live))


def _folded(store: Store, bundle: Bundle, precision: str | None) -> Base:
    """Return what a release brings, with all that the store's log says."""
    base = Base.of(bundle, precision, store.log.shelf)
    for record in store.log.records():
        with contextlib.suppress(*REFUSALS):  # it contradicts itself; the learner counts these
            base.fold.apply(record)
    return base


def _own_score(
    store: Store, bundle: Bundle, precision: str | None, names: dict[bytes, str], stop: Callable[[], bool]
) -> tuple[LeftOut, Calibration] | None:
    """Return left-out scores of own samples only, with the calibration that all samples give."""
    base = _folded(store, bundle, precision)
    names |= base.fold.class_names()
    live = base.fold.live_set()
    left_out = base.left_out(live, stop)
    scorable = np.array(base.scorable(live), bool)
    rows = np.array([device == store.device for device in live.devices], bool)[scorable]
    if left_out is None or not rows.any():
        return None
    return left_out.chosen(rows), calibrate(left_out, base.calibration.false_alarm_rate)
