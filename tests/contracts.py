"""One list of checks for everything that decides about codes: whatever solved, updated or fitted it.

`check_head` is for the product's heads, `check_scorer` for anything with scores, the benchmarks' rivals too. A new
kind of head is right when it passes; add it to `tests/test_contracts.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from sdk.errors import FeatureSizeError
from sdk.head import Calibration, Head

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float64]

ROUNDING: Final = 2e-5
"""Of scores in float32, which BLAS adds up in another order for another number of rows."""


class Scorer(Protocol):
    """Whatever gives scores (n, k) for codes (n, d): the largest is the decision."""

    def scores(self, codes: Codes) -> Floats: ...


def check_scorer(scorer: Scorer, codes: Codes, k: int) -> None:
    """Check what holds for anything that scores.

    Args:
        scorer: Under test.
        codes: (n, d) int8, n > 2, of its feature space.
        k: Number of columns.
    """
    before = codes.copy()
    scores = scorer.scores(codes)
    assert scores.shape == (len(codes), k)
    assert not np.isnan(scores).any()
    assert np.isfinite(scores.max(1)).all(), "some class must be possible"
    assert (np.isfinite(scores) == np.isfinite(scores[:1])).all(), "a class is possible for all codes or for none"
    assert (codes == before).all(), "what is asked about is not changed"
    assert (scorer.scores(codes) == scores).all(), "asking twice gives the same, bit for bit"
    there = np.isfinite(scores[0])
    scale = max(1.0, float(np.abs(scores[:, there]).max()))
    one_by_one = np.concatenate([scorer.scores(row[None]) for row in codes])
    assert np.abs(one_by_one[:, there] - scores[:, there]).max() <= ROUNDING * scale, (
        "a code's neighbours say nothing of it"
    )
    turned = scorer.scores(codes[::-1].copy())[::-1]
    assert np.abs(turned[:, there] - scores[:, there]).max() <= ROUNDING * scale, "nor does its place"


def check_head(head: Head, codes: Codes) -> None:
    """Check what holds for every head.

    Args:
        head: Under test.
        codes: (n, d) int8, n > 2, of its feature space.
    """
    k = len(head.class_ids)
    check_scorer(head, codes, k)
    _check_columns(head)
    _check_decisions(head, codes)
    _check_calibration(head, codes)
    _check_refusals(head, codes)


def _check_columns(head: Head) -> None:
    assert list(head.class_ids) == sorted(set(head.class_ids))
    assert len(head.counts) == len(head.class_ids)
    assert min(head.counts) > 0
    assert head.delta >= 0


def _check_decisions(head: Head, codes: Codes) -> None:
    scores, novelty, said = head.scores(codes), head.novelty(codes), head.decide(codes)
    rows, k = np.arange(len(codes)), len(head.class_ids)
    assert (said.class_index == scores.argmax(1)).all()
    assert (said.novelty == novelty).all()
    assert (said.unknown == (novelty > head.calibration.novelty_threshold)).all()
    assert said.probabilities.shape == (len(codes), k)
    assert (said.probabilities >= 0).all()
    np.testing.assert_allclose(said.probabilities.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(said.probabilities, head.predict_proba(codes), atol=1e-12)
    assert (said.probability == said.probabilities[rows, said.class_index]).all()
    assert (said.probability >= said.probabilities.max(1) - 1e-12).all()
    if k == 1:
        assert (novelty == -scores[:, 0]).all()
        assert (novelty >= 0).all()
    else:
        assert not np.isnan(novelty).any()
    empty = head.decide(codes[:0])
    assert empty.class_index.shape == (0,)
    assert empty.probabilities.shape == (0, k)


def _check_calibration(head: Head, codes: Codes) -> None:
    scores = head.scores(codes)
    soft, hard = (head.recalibrated(replace(head.calibration, temperature=t)) for t in (1.0, 20.0))
    assert (soft.scores(codes) == scores).all(), "a calibration changes no score"
    assert (soft.decide(codes).class_index == hard.decide(codes).class_index).all()
    assert (hard.decide(codes).probability >= soft.decide(codes).probability - 1e-12).all()
    novelty = np.sort(head.novelty(codes))
    strict, loose = (
        head.recalibrated(Calibration(10.0, float(at))).decide(codes).unknown for at in (novelty[0], novelty[-1])
    )
    assert not loose.any()
    assert (strict | ~loose).all()
    assert strict.sum() == (novelty > novelty[0]).sum()


def _check_refusals(head: Head, codes: Codes) -> None:
    wrong: list[npt.NDArray[np.int8] | npt.NDArray[np.float32]] = [
        codes[:, :-1],
        np.hstack([codes, codes[:, :1]]),
        codes[0],
        codes.astype(np.float32),
    ]
    for each in wrong:
        for ask in (head.scores, head.novelty, head.predict_proba, head.decide):
            with pytest.raises(FeatureSizeError):
                ask(each)  # type: ignore[arg-type]
