"""Which samples of a large set keep their codes: whole groups, spread over the classes, always the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.exemplars import exemplars
from sdk.errors import ExportError

Images = list[tuple[str, str]]
"""Label and group of each."""

SETS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123456789")), min_size=4, max_size=60)


def chosen(images: Images, limit: int, fitted: Collection[str] = ()) -> list[int]:
    labels, groups = [label for label, _ in images], [group for _, group in images]
    return exemplars(labels, groups, np.array([group in fitted for group in groups]), limit)


@given(images=SETS, limit=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_exemplars_are_whole_groups_within_the_limit_whatever_the_order(images: Images, limit: int) -> None:
    try:
        rows = chosen(images, limit)
    except ExportError:
        sizes = sorted(Counter(group for _, group in images).values())
        assert len(images) > limit
        assert len(sizes) < 2 or sizes[1] > limit // 2
        return
    kept = {images[row][1] for row in rows}
    assert len(rows) <= limit
    assert len(kept) > 1 or len(rows) == len(images)
    assert rows == [i for i, (_, group) in enumerate(images) if group in kept]
    other = sorted(images, reverse=True)
    assert {other[row][1] for row in chosen(other, limit)} == kept


def test_a_set_that_fits_keeps_all_codes() -> None:
    assert chosen([("a", "1")] * 3, 3) == [0, 1, 2]


def test_classes_share_the_codes_evenly_and_rare_ones_keep_all() -> None:
    images = [("good", f"g{i}") for i in range(900)]
    images += [("pit", f"p{i}") for i in range(60)] + [("crack", f"c{i}") for i in range(5)]
    count = Counter(images[row][0] for row in chosen(images, 85))
    assert count == {"good": 40, "pit": 40, "crack": 5}


def test_what_the_backbone_was_not_trained_on_comes_first() -> None:
    images = [("a", f"{i}") for i in range(100)]
    fitted = {f"{i}" for i in range(80)}
    assert chosen(images, 20, fitted) == list(range(80, 100))
    assert set(range(80, 100)) < set(chosen(images, 40, fitted))


def test_a_group_too_large_is_passed_over() -> None:
    images = [("a", "huge")] * 50 + [("a", f"{i}") for i in range(10)]
    assert chosen(images, 8)
    assert "huge" not in {images[row][1] for row in chosen(images, 55)}


@pytest.mark.parametrize(
    ("images", "limit", "hint"),
    [
        ([("a", "1")] * 30 + [("b", "2")] * 30, 40, "needs 60"),
        ([("a", "1")] * 30 + [("b", "2")] * 3, 3, "needs 60"),
        ([("a", f"{i}") for i in range(9)], 1, "needs 2 "),
        ([("a", "1")] * 30, 20, "finer"),
    ],
    ids=["one fits", "the smaller one only", "a limit of one", "one group"],
)
def test_too_few_codes_to_score_are_refused(images: Images, limit: int, hint: str) -> None:
    with pytest.raises(ExportError, match="whole groups") as caught:
        chosen(images, limit)
    assert hint in caught.value.hint
