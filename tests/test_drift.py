"""Drift: quiet on an unchanged stream whatever its class mix, loud on a changed one, and it shows what it saw."""

from __future__ import annotations

import numpy as np
import pytest

from sdk.drift import DriftWatch
from sdk.score import LeftOut

A, B = b"a" * 16, b"b" * 16


def reference(n: int = 200, seed: int = 0) -> LeftOut:
    """Left-out samples of two classes; B is stranger than A by nature."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    scores = np.eye(2)[truth]
    novelty = rng.gamma(4, 0.05, n) + 0.3 * truth
    return LeftOut((A, B), truth, np.arange(n), scores, novelty, np.zeros(n, bool))


def stream(seed: int, n: int, *, share_b: float = 0.5, shift: float = 0.0) -> list[tuple[float, bytes]]:
    rng = np.random.default_rng(seed)
    of_b = rng.random(n) < share_b
    return [
        (float(v), B if b else A) for v, b in zip(rng.gamma(4, 0.05, n) + 0.3 * of_b + shift, of_b, strict=True)
    ]


@pytest.mark.parametrize("share_b", [0.5, 0.02, 0.98])
def test_false_alarms_stay_within_the_stated_rate(share_b: float) -> None:
    """One alarm in 200 parts or less often on average, whatever the mix: 60 streams of 200 parts, 60 alarms."""
    alarms = 0
    for seed in range(60):
        watch = DriftWatch(reference(seed=seed), rate=1 / 200, seed=seed)
        alarms += any(watch.see(*part).alarm for part in stream(1000 + seed, 200, share_b=share_b))
    assert alarms <= 30  # half of what the bound allows; 0 to 3 are seen


def test_a_small_reference_gives_no_false_alarm_in_the_long_run() -> None:
    """Earlier parts join the reference: against 60 samples alone, what is only their chance would add up."""
    alarms = 0
    for seed in range(20):
        watch = DriftWatch(reference(60, seed=seed), rate=1e-4, seed=seed)
        alarms += any(watch.see(*part).alarm for part in stream(1000 + seed, 3000))
    assert alarms <= 2  # 0 are seen; 6 without


def test_many_tiles_of_a_part_are_one_part_of_the_reference() -> None:
    """Thirty parts of twenty tiles: as 600 parts, they say that no part is stranger than these thirty."""
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        parts = np.repeat(np.arange(30), 20)
        novelty = rng.normal(size=30)[parts] + rng.normal(0, 0.3, 600)
        scores, nothing = np.tile([0.9, 0.0], (600, 1)), np.zeros(600, bool)
        watch = DriftWatch(LeftOut((A, B), np.zeros(600, np.int64), parts, scores, novelty, nothing), rate=1e-4)
        stream = rng.normal(size=300) + rng.normal(0, 0.3, 300)
        alarms += any(watch.see(float(each), A).alarm for each in stream)
    assert alarms <= 1  # 0 are seen; 4 with all tiles, where the bound is 0.9


def test_a_small_lasting_shift_is_found_and_shown() -> None:
    watch = DriftWatch(reference(), rate=1e-4)
    for i, part in enumerate(stream(7, 300)):
        assert not watch.see(*part, key=("before", i)).alarm
    for i, part in enumerate(stream(8, 300, shift=0.1)):  # one standard deviation
        drift = watch.see(*part, key=("after", i))
        if drift.alarm:
            break
    assert drift.alarm
    assert i < 100
    kinds = [str(key).split("'")[1] for key in drift.strangest]
    assert kinds.count("after") > 0.8 * len(kinds)
    watch.restart()
    assert (watch.now().alarm, watch.now().evidence) == (False, 1.0)


def test_a_decision_without_reference_is_compared_with_all() -> None:
    watch = DriftWatch(reference(), rate=0.01)
    assert watch.see(0.3, b"c" * 16).parts == 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        DriftWatch(reference(), rate=1.5)
    empty = LeftOut((A,), np.zeros(1, int), np.zeros(1, int), np.zeros((1, 1)), np.zeros(1), np.ones(1, bool))
    with pytest.raises(ValueError, match="reference"):
        DriftWatch(empty)
