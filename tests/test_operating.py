"""The operating point: the target is kept on left-out defects, and overkill is what it costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdk.errors import HeadError
from sdk.head import Calibration, solve
from sdk.moments import Moments
from sdk.operating import by_class, defect_probability, judged, operating_point
from sdk.score import LeftOut, balanced_share, calibrate, leave_one_group_out
from tests.test_head import A, B, C, clusters

OPEN = Calibration(temperature=10.0, novelty_threshold=np.inf)


@pytest.mark.parametrize("target", [0.0, 0.02, 0.1])
def test_escapes_stay_within_the_target_and_overkill_falls_with_it(target: float) -> None:
    codes, ids, groups = clusters({A: 200, B: 80, C: 80}, spread=35.0)
    left_out = leave_one_group_out(codes, ids, groups)
    point = operating_point(left_out, calibrate(left_out), [A], escape_rate=target)
    assert point.escapes.share <= target + 1e-9
    assert point.escapes.low <= point.escapes.share <= point.escapes.high
    assert point.reachable
    stricter = operating_point(left_out, calibrate(left_out), [A], escape_rate=target / 2)
    assert stricter.threshold <= point.threshold
    assert stricter.overkill.share >= point.overkill.share


def test_the_target_holds_about_as_well_on_new_parts() -> None:
    codes, ids, groups = clusters({A: 300, B: 300}, spread=45.0)
    learned = [i for i in range(600) if i % 2]
    fresh = [i for i in range(600) if not i % 2]
    left_out = leave_one_group_out(codes[learned], [ids[i] for i in learned], [groups[i] for i in learned])
    point = operating_point(left_out, OPEN, [A], escape_rate=0.05)
    moments = Moments(codes.shape[1])
    moments.add(codes[learned], [ids[i] for i in learned])
    head = solve(moments)
    p = defect_probability(head.scores(codes[fresh]), np.array([True, False]), OPEN.temperature)
    passed = [p[j] < point.threshold for j, i in enumerate(fresh) if ids[i] == B]
    assert abs(np.mean(passed) - 0.05) < 0.05


@pytest.mark.parametrize("missed", [0, 1])
def test_a_rare_class_is_as_much_of_the_interval_as_of_the_escapes(missed: int) -> None:
    """Five pits beside a thousand scratches are half of the escape rate, and five parts say little."""
    truth = np.repeat([0, 1, 2], [200, 5, 1000])
    scores = np.where(np.arange(3) == truth[:, None], 0.9, -0.5)
    scores[200 : 200 + missed] = [0.9, -0.5, -0.5]  # pits that look good
    rows = np.arange(len(truth))
    found = LeftOut((A, B, C), truth, rows, scores, np.zeros(len(truth)), np.zeros(len(truth), bool))
    escapes = operating_point(found, OPEN, [A], escape_rate=0.1).escapes
    assert escapes.share == pytest.approx(missed / 10)
    assert escapes.low <= escapes.share
    assert escapes.high > 0.2


@pytest.mark.parametrize(("few", "often", "many", "seldom"), [(20, 0.1, 200, 0.01), (8, 0.05, 300, 0.005)])
def test_the_interval_of_escapes_holds_the_truth(few: int, often: float, many: int, seldom: float) -> None:
    rng = np.random.default_rng(0)
    truth, rows = np.repeat([0, 1], [few, many]), np.arange(few + many)
    held = []
    for _ in range(100):
        _, low, high = balanced_share(rng.random(few + many) < np.array([often, seldom])[truth], truth, rows)
        held.append(low <= (often + seldom) / 2 <= high)
    assert np.mean(held) >= 0.85


def test_unknown_parts_never_pass() -> None:
    codes, ids, groups = clusters({A: 40, B: 40})
    left_out = leave_one_group_out(codes, ids, groups)
    everything_unknown = Calibration(temperature=10.0, novelty_threshold=-1.0)
    point = operating_point(left_out, everything_unknown, [A])
    assert (point.escapes.share, point.overkill.share) == (0.0, 1.0)


def test_without_good_parts_or_defects_there_is_no_operating_point() -> None:
    codes, ids, groups = clusters({A: 10, B: 10})
    left_out = leave_one_group_out(codes, ids, groups)
    for good in ([], [A, B], [C]):
        with pytest.raises(HeadError, match="operating point"):
            operating_point(left_out, OPEN, good)


def test_deciding_by_class_costs_what_decisions_say_each_defect_class_weighing_the_same() -> None:
    truth = np.repeat([0, 1, 2], [10, 4, 20])
    said = truth.copy()
    said[:3] = 1  # good parts that look like a defect
    said[10] = 0  # of four defects one looks good
    said[14] = 1  # a defect taken for another goes out all the same
    scores = np.where(np.arange(3) == said[:, None], 0.9, -0.5)
    novelty = np.zeros(len(truth))
    novelty[9] = 2.0  # a good part that nobody knows goes out too
    found = LeftOut((A, B, C), truth, np.arange(len(truth)), scores, novelty, np.zeros(len(truth), bool))
    costs = by_class(found, Calibration(temperature=10.0, novelty_threshold=1.0), [A])
    assert (costs.escapes.share, costs.overkill.share) == pytest.approx(((1 / 4 + 0) / 2, 4 / 10))
    assert (costs.escapes.samples, costs.escapes.groups, costs.overkill.groups) == (24, 24, 10)
    assert costs.escapes.low < costs.escapes.share < costs.escapes.high
    with pytest.raises(HeadError, match="operating point"):
        by_class(found, OPEN, [C, B, A])


def test_what_is_counted_can_be_told_sample_by_sample() -> None:
    codes, ids, groups = clusters({A: 60, B: 30, C: 30}, spread=45.0)
    left_out = leave_one_group_out(codes, ids, groups)
    silent = np.zeros(len(ids), bool)
    silent[[0, -1]] = True  # of a head that told no classes apart: nothing here counts them
    left_out = replace(left_out, scores=np.where(silent[:, None], [[1.0, -np.inf, -np.inf]], left_out.scores))
    calibration = calibrate(left_out)
    point = operating_point(left_out, calibration, [A], escape_rate=0.1)
    for found, costs in (
        (judged(left_out, calibration, [A]), by_class(left_out, calibration, [A])),
        (judged(left_out, calibration, [A], threshold=point.threshold), point),
    ):
        assert (costs.escapes.count, costs.overkill.count) == (found.escapes.sum(), found.overkill.sum())
        assert (costs.escapes.samples, costs.overkill.samples) == (59, 59)
        assert not (found.escapes | found.overkill)[silent].any()
        assert 0 < found.escapes.sum() + found.overkill.sum() < 118
        goods = np.array(ids) == np.array(A)
        assert (found.escapes & goods).sum() == (found.overkill & ~goods).sum() == 0
