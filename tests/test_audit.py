"""Suspects and agreement: wrong labels come first, sound operators score higher, orphans are not judged."""

from __future__ import annotations

import numpy as np

from sdk.audit import DOUBTFUL, agreement, suspects, suspicion
from sdk.moments import Moments
from sdk.score import calibrate, leave_one_group_out
from tests.test_head import A, B, C, clusters


def test_wrong_labels_are_the_first_suspects() -> None:
    codes, ids, groups = clusters({A: 60, B: 60, C: 60})
    rng = np.random.default_rng(3)
    wrong = set(rng.choice(180, 18, replace=False).tolist())
    given = [{A: B, B: C, C: A}[c] if i in wrong else c for i, c in enumerate(ids)]
    samples = [bytes([i]) * 32 for i in range(180)]
    left_out = leave_one_group_out(codes, given, groups, samples=samples)
    found = suspects(left_out, calibrate(left_out), limit=27)  # the top 15 %
    caught = {each.sample[0] for each in found} & wrong
    assert len(caught) >= 0.9 * len(wrong)
    for each in found:
        if each.sample[0] in wrong:
            assert each.looks_like == ids[each.sample[0]]
            assert each.labelled == given[each.sample[0]]
    assert [each.suspicion for each in found] == sorted((each.suspicion for each in found), reverse=True)
    doubtful = suspects(left_out, calibrate(left_out), limit=180, below=DOUBTFUL)
    assert {each.sample[0] for each in doubtful} <= wrong
    assert len(doubtful) >= 0.8 * len(wrong)
    # Withdrawing them is as if they had never been given.
    kept = [i for i in range(180) if i not in wrong]
    cleaned, clean = Moments(codes.shape[1]), Moments(codes.shape[1])
    cleaned.add(codes, given)
    cleaned.subtract(codes[sorted(wrong)], [given[i] for i in sorted(wrong)])
    clean.add(codes[kept], [ids[i] for i in kept])
    assert cleaned.digest() == clean.digest()


def test_a_class_of_one_group_is_not_judged() -> None:
    codes, ids, groups = clusters({A: 10, B: 10, C: 1})
    left_out = leave_one_group_out(codes, ids, groups, samples=[bytes([i]) * 32 for i in range(21)])
    calibration = calibrate(left_out)
    assert suspicion(left_out, calibration)[20] == 0
    assert all(each.labelled != C for each in suspects(left_out, calibration))


def test_a_careless_operator_agrees_less() -> None:
    codes, ids, groups = clusters({A: 40, B: 40})
    who = ["ann" if i % 2 else "bob" for i in range(80)]
    given = [{A: B, B: A}[c] if who[i] == "bob" and i % 8 == 0 else c for i, c in enumerate(ids)]
    found = agreement(leave_one_group_out(codes, given, groups), who)
    assert [each.who for each in found] == ["bob", "ann"]
    assert found[0].share < 0.85
    assert found[1].share > 0.9
    assert found[0].low < found[0].share < found[0].high
    assert agreement(leave_one_group_out(codes, given, groups), [""] * 80) == []
