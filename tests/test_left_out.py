"""A group whose leaving out leaves one class: what its head says is on another scale, and counts nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdk.adaptation import _Judged
from sdk.audit import agreement
from sdk.drift import DriftWatch
from sdk.errors import HeadError
from sdk.fleet.suspicion import _Union
from sdk.margins import Margins
from sdk.operating import operating_point
from sdk.score import LeftOut, calibrate, decisions_right, leave_one_group_out, quadratic_score, score
from sdk.verdict import trial

A, B = b"a" * 16, b"b" * 16
D = 256
GOOD = 30
"""Good parts of one tile each; three more tiles are beside, or of the only part with a defect."""


def first_defect(*, apart: bool, classes: tuple[bytes, bytes] = (A, B)) -> LeftOut:
    """Return the left-out scores of good parts and one defect, the last good tiles of its part or of their own."""
    rng = np.random.default_rng(3)
    base = rng.integers(-40, 40, D)
    good = base + rng.normal(0, 10, (GOOD + 3, D))
    defect = base + rng.normal(0, 25, D) + rng.normal(0, 10, (1, D))
    codes = np.clip(np.vstack([good, defect]), -127, 127).astype(np.int8)
    last = ["q0", "q1", "q2", "part"] if apart else ["part"] * 4
    samples = [bytes([row]) * 32 for row in range(len(codes))]
    good_id, defect_id = classes
    ids = [good_id] * (GOOD + 3) + [defect_id]
    return leave_one_group_out(codes, ids, [f"g{i}" for i in range(GOOD)] + last, samples=samples)


@pytest.fixture
def mixed() -> LeftOut:
    """Of the part that has the only defect, the good tiles are scored by a head of one class."""
    found = first_defect(apart=False)
    assert found.tells.sum() == GOOD
    assert found.novelty[GOOD:-1].min() > found.novelty[found.tells].max() + 0.2, "distances among cosines"
    return found


def test_good_tiles_of_the_only_defect_do_not_switch_the_unknown_off(mixed: LeftOut) -> None:
    apart = calibrate(first_defect(apart=True))
    assert calibrate(mixed).novelty_threshold <= apart.novelty_threshold + 0.1


def test_they_are_not_counted_as_recognised_or_missed(mixed: LeftOut) -> None:
    found = score(mixed, calibrate(mixed))
    good, defect = found.classes
    assert (good.samples, good.groups, good.recall) == (GOOD, GOOD, 1.0)
    assert (defect.samples, found.one_group) == (1, (B,))
    assert decisions_right(mixed, calibrate(mixed)).sum() == GOOD + 3, "forced choice, not unknown by a distance"
    (said,) = agreement(mixed, ["ann"] * (GOOD + 4))
    assert said.labels == GOOD


def test_they_are_no_reference_for_drift(mixed: LeftOut) -> None:
    """A novelty above all that cosines give is the strangest there was."""
    evidence = [
        DriftWatch(each).see(1.8, A).evidence for each in (mixed, mixed.chosen(np.arange(GOOD + 4) < GOOD))
    ]
    assert evidence[0] == evidence[1]


def test_they_have_no_margins(mixed: LeftOut) -> None:
    rows = np.arange(GOOD + 3)
    margins = Margins.of(mixed, calibrate(mixed), rows)
    assert np.isinf(margins.of_known[GOOD:]).all()
    told = Margins.of(mixed, calibrate(mixed), rows[:GOOD])
    assert (margins.of_known[:GOOD] == told.of_known).all()


def test_they_are_no_evidence_for_an_adaptation_or_against_a_device(mixed: LeftOut) -> None:
    """Of one class left every label is certain."""
    assert (quadratic_score(mixed)[GOOD:-1] == 1).all()
    assert _Judged.of(mixed).known.sum() == GOOD
    first = np.arange(GOOD + 4) < GOOD // 2  # of the good parts, whose labels the others' heads do not give
    union = _Union(mixed, ~first, quadratic_score(mixed))
    assert union.gap(~first & mixed.known) == -1, "the tiles are not among the others either"


def test_a_defect_of_one_part_gives_no_operating_point(mixed: LeftOut) -> None:
    """Left out, it meets a head that knows good parts only: it neither passes nor is it found."""
    for left_out in (mixed, first_defect(apart=True)):
        with pytest.raises(HeadError, match="defects of more than one group"):
            operating_point(left_out, calibrate(left_out), [A])


def test_a_trial_compares_what_both_heads_tell(mixed: LeftOut) -> None:
    after = first_defect(apart=True)
    worse = replace(
        after, scores=np.where(np.arange(GOOD + 4)[:, None] >= GOOD, after.scores[:, ::-1], after.scores)
    )
    cautious = calibrate(after)
    verdict = trial((mixed, cautious), (worse, cautious), names=lambda c: c.decode())
    assert verdict.keep
    assert verdict.reason == trial((mixed, cautious), (after, cautious), names=lambda c: c.decode()).reason
