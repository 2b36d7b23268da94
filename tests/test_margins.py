"""What margins let expect, and the trial that goes by it before anything has been counted wrong."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.head import Calibration
from sdk.margins import Margins, fell
from sdk.score import LeftOut
from sdk.verdict import trial

A, B, C = (bytes([code]) * 16 for code in b"abc")
OPEN = Calibration(temperature=1.0, novelty_threshold=1.0)
EACH = 12


def normal(mean: float, count: int = EACH) -> np.ndarray:
    """Return numbers spread like a normal distribution of deviation 1, without chance."""
    return mean + np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def told(
    *means: float,
    ids: tuple[bytes, ...] = (A, B),
    scale: float = 1.0,
    least: float = -np.inf,
    per_group: int = 1,
) -> LeftOut:
    """Return left-out scores of `EACH` samples a class.

    Args:
        means: Of the margins of each class, in standard deviations.
        ids: Class ids, of which the first have samples.
        scale: Of all scores.
        least: No margin is smaller.
        per_group: So many samples in a row are of one part.
    """
    truth = np.repeat(np.arange(len(means)), EACH)
    rows, other = np.arange(len(truth)), (truth + 1) % len(ids)
    scores = np.full((len(truth), len(ids)), -100.0)
    scores[rows, other] = 0
    scores[rows, truth] = scale * np.concatenate([normal(mean) for mean in means]).clip(min=least)
    samples = tuple(ids[c] + bytes([row]) for row, c in enumerate(truth))
    nothing = np.zeros(len(truth))
    return LeftOut(ids, truth, rows // per_group, scores, nothing - 9, nothing.astype(bool), samples)


def margins(left_out: LeftOut) -> Margins:
    return Margins.of(left_out, OPEN, np.arange(len(left_out.truth)))


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_recall_is_what_a_normal_distribution_of_these_margins_gives(mean: float) -> None:
    found = margins(told(mean, mean)).expected_recall(np.repeat([0, 1], EACH))
    assert found is not None
    assert found == pytest.approx([NormalDist().cdf(mean)] * 2, abs=0.03)


@given(st.floats(0.5, 3), st.floats(0.5, 3), st.floats(0.01, 100))
def test_recall_does_not_depend_on_the_scale_of_scores(first: float, second: float, scale: float) -> None:
    classes = np.repeat([0, 1], EACH)
    plain, scaled = (margins(told(first, second, scale=by)).expected_recall(classes) for by in (1.0, scale))
    assert plain is not None
    assert plain == pytest.approx(scaled)


def test_what_comes_near_the_threshold_of_the_unknown_is_expected_to_cross_it() -> None:
    classes, rng = np.repeat([0, 1], EACH), np.random.default_rng(0)
    sure = told(9, 9)
    near = rng.normal(0.9, 0.1, len(sure.truth)).clip(max=0.99)
    found = Margins(margins(sure).of_class, 1.0 - near).expected_recall(classes)
    assert found is not None
    assert all(0.7 < share < 0.95 for share in found)


def test_one_sample_a_class_lets_nothing_be_expected() -> None:
    of_class, of_known = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    assert Margins(of_class, of_known).expected_recall(np.array([0, 1])) is None


def test_margins_fall_by_groups_not_by_images() -> None:
    """Five images of a part that all look alike are one piece of evidence."""
    before, groups = np.zeros(40), np.arange(40) // 5
    after = before - np.random.default_rng(1).normal(1, 2, 8)[groups]
    ones = np.ones(40)
    by_part = fell(Margins(before, ones), Margins(after, ones), groups)
    by_image = fell(Margins(before, ones), Margins(after, ones), np.arange(40))
    assert 0 < by_part < by_image / 2


def test_where_no_other_class_can_be_told_nothing_has_fallen() -> None:
    alone = np.full(10, np.inf)
    assert fell(Margins(alone, alone), Margins(alone, alone), np.arange(10)) == 0


NAMES = {A: "good", B: "scratch", C: "pit"}


def test_a_head_is_taken_back_before_a_part_is_lost() -> None:
    """All are right still, but so narrowly that new parts will not be."""
    verdict = trial((told(5, 5), OPEN), (told(1.8, 1.8, least=0.05), OPEN), names=NAMES.__getitem__)
    assert not verdict.keep
    assert verdict.why.code == "less-clear"
    assert "told less clearly; about 9" in verdict.reason
    assert verdict.why.before > 0.99
    assert all(c.recall == 1 for c in verdict.after.classes)  # the control: counted, nothing is lost


def test_smaller_scores_of_the_same_shape_are_as_good() -> None:
    verdict = trial((told(2, 2), OPEN), (told(2, 2, scale=0.1), OPEN), names=NAMES.__getitem__)
    assert verdict.keep


def test_what_few_parts_show_is_no_evidence() -> None:
    """Of six images of each of four parts the same head is kept that images of parts of their own take back."""

    def keep(per_group: int) -> bool:
        after = told(1.8, 1.8, least=0.05, per_group=per_group)
        return trial((told(5, 5), OPEN), (after, OPEN), names=NAMES.__getitem__).keep

    assert [keep(1), keep(6)] == [False, True]


def test_a_new_class_pays_for_narrower_margins() -> None:
    """Known classes would be right in 94 of 100 instead of all; a third class is known besides."""
    before, after = told(5, 5), told(1.6, 1.6, 4, ids=(A, B, C), least=0.05)
    verdict = trial((before, OPEN), (after, OPEN), names=NAMES.__getitem__)
    assert verdict.keep
    assert verdict.why.code == "also-knows"


def test_between_two_feature_spaces_margins_say_nothing() -> None:
    """As between two releases: a fleet that goes back to one must not be refused for the scale of its scores."""
    before, after = told(5, 5), told(1.8, 1.8, least=0.05)
    assert trial((before, OPEN), (after, OPEN), names=NAMES.__getitem__, one_space=False).keep
