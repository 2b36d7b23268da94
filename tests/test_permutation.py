"""Low scores beyond chance: against every possible draw, in its own terms, and at its limits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sdk.moments import Floats
from sdk.permutation import chance_as_low


def chance(
    values: list[float], asked: list[int], *, classes: list[int] | None = None, finest: float = 1e-3
) -> float:
    """Return the chance where every label is a part of its own."""
    n = len(values)
    return chance_as_low(
        np.array(values, float),
        np.arange(n),
        np.array(classes or [0] * n),
        np.isin(np.arange(n), asked),
        finest=finest,
    )


def test_it_is_the_share_of_all_draws_that_are_as_low() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.8, 0.7, 0.6, 0.95, 0.3]
    asked = (0, 1, 3)
    sums = [sum(values[i] for i in draw) for draw in combinations(range(9), 3)]
    exact = np.mean([each <= sum(values[i] for i in asked) + 1e-9 for each in sums])
    assert chance(values, [*asked], finest=1e-4) == pytest.approx(exact, rel=0.25)


def test_where_nothing_differs_few_are_as_low_as_the_chance_says() -> None:
    rng = np.random.default_rng(1)
    found = np.array([chance(list(rng.random(30)), [0, 1, 2, 3, 4], finest=0.01) for _ in range(400)])
    for level in (0.05, 0.1, 0.3):
        assert np.mean(found < level) < level + 3 * np.sqrt(level / 400)


def test_few_parts_that_are_lowest_of_many_are_beyond_chance() -> None:
    values = [0.1, 0.0, 0.2, 0.1, *[0.5 + i / 100 for i in range(40)]]
    assert chance(values, [0, 1, 2, 3]) < 1e-3
    assert chance(values, [10, 20, 30, 40]) > 0.1


def test_whoever_has_the_hard_class_is_not_low_by_that() -> None:
    """The control: without the classes it would be."""
    rng = np.random.default_rng(2)
    hard, easy = 0.2 + 0.1 * rng.random(20), 0.8 + 0.1 * rng.random(40)
    values, classes = [*hard, *easy], [0] * 20 + [1] * 40
    assert chance(values, [*range(10)], classes=classes) > 0.05
    assert chance(values, [*range(10)]) < 1e-3


def test_many_pictures_of_one_part_count_as_one() -> None:
    """The control: as parts of their own they would be beyond chance."""
    values: Floats = np.array([0.1] * 12 + [0.5] * 10)
    parts, asked = np.array([0] * 12 + [*range(1, 11)]), np.arange(22) < 12
    classes = np.zeros(22, np.int64)
    assert chance_as_low(values, parts, classes, asked, finest=1e-3) > 0.05
    assert chance_as_low(values, np.arange(22), classes, asked, finest=1e-3) < 1e-3


@pytest.mark.parametrize("asked", [[], [0, 1, 2]], ids=["nobody", "everybody"])
def test_without_anybody_to_compare_with_nothing_is_beyond_chance(asked: list[int]) -> None:
    assert chance([0.1, 0.2, 0.3], asked) == 1.0


def test_a_class_that_nobody_else_has_says_nothing() -> None:
    assert chance([0.0, 0.0, 0.0, 0.9, 0.9], [0, 1, 2], classes=[1, 1, 1, 0, 0]) == 1.0


def test_it_is_the_same_each_time() -> None:
    values = [i / 10 for i in range(10)]
    assert chance(values, [0, 3]) == chance(values, [0, 3])
