"""The operating point: the target is kept on left-out defects, and overkill is what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from sdk.errors import HeadError
from sdk.head import Calibration, solve
from sdk.moments import Moments
from sdk.operating import defect_probability, operating_point
from sdk.score import calibrate, leave_one_group_out
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
