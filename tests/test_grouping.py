"""Groups derived from codes: series of one part are found, unrelated parts stay apart, what is given holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.grouping import _REFERENCE_SAMPLES, MAX_CLASS_GROUPS, Grouping, derive_groups
from sdk.head import UNCALIBRATED
from sdk.layouts import settled_groups
from sdk.score import leave_one_group_out, score
from tests.test_head import A, B, C

Codes = npt.NDArray[np.int8]


def parts(
    count: int,
    pictures: int,
    *,
    d: int = 96,
    own: float = 25.0,
    noise: float = 5.0,
    apart: float = 3.0,
    seed: int = 0,
) -> tuple[Codes, list[bytes], list[str]]:
    """Codes of `count` parts of each of two classes, `pictures` of each part, with the part as group."""
    rng = np.random.default_rng(seed)
    codes, ids, groups = [], [], []
    for class_id in (A, B):
        centre = rng.normal(0, apart, d)
        for part in range(count):
            base = centre + rng.normal(0, own, d)
            codes.append(base + rng.normal(0, noise, (pictures, d)))
            ids += [class_id] * pictures
            groups += [f"{class_id.hex()[:2]}-{part:03}"] * pictures
    return np.clip(np.rint(np.concatenate(codes)), -127, 127).astype(np.int8), ids, groups


def alone(n: int) -> list[str]:
    return [f"image {i:04}" for i in range(n)]


def accuracy(codes: Codes, ids: list[bytes], groups: list[str] | tuple[str, ...]) -> float:
    found = score(leave_one_group_out(codes, ids, groups), UNCALIBRATED).balanced_accuracy
    assert found is not None
    return found


def partition(found: Grouping) -> set[frozenset[int]]:
    rows: dict[str, set[int]] = {}
    for row, group in enumerate(found.groups):
        rows.setdefault(group, set()).add(row)
    return {frozenset(each) for each in rows.values()}


@pytest.mark.parametrize("d", [48, 300], ids=["more samples than numbers", "fewer samples than numbers"])
def test_without_groups_the_score_is_as_honest_as_with_them(d: int) -> None:
    codes, ids, groups = parts(20, 4, d=d)
    found = derive_groups(codes, ids, alone(len(ids)))
    truth = accuracy(codes, ids, groups)
    assert accuracy(codes, ids, alone(len(ids))) > truth + 0.2  # what leaving out single images would claim
    assert abs(accuracy(codes, ids, found.groups) - truth) < 0.08
    together = [{groups[row] for row in rows} for rows in partition(found)]
    assert sum(len(of) == 1 for of in together) > 0.8 * len(together)


def test_unrelated_parts_keep_their_score() -> None:
    codes, ids, groups = parts(60, 1, own=10.0, apart=6.0)
    found = derive_groups(codes, ids, groups)
    assert abs(accuracy(codes, ids, found.groups) - accuracy(codes, ids, groups)) <= 0.02
    assert max(len(rows) for rows in partition(found)) <= 6


def test_parts_that_have_their_kinds_of_texture_are_not_taken_for_one_another() -> None:
    """More alike than parts of two classes ever are, and yet no two of them one part: each would only be missed.

    Where they were left out together, a new defect had to lie farther from all known parts to be called unknown.
    """
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 12.0, (2, 10, 96))
    rows = [kinds[label, part % 10] + rng.normal(0, 25.0, 96) for label in range(2) for part in range(100)]
    codes, ids = np.clip(np.rint(rows), -127, 127).astype(np.int8), [A] * 100 + [B] * 100
    found = derive_groups(codes, ids, alone(200))
    assert found.found >= 190
    twice = np.concatenate([codes, np.clip(codes + rng.integers(-9, 10, codes.shape), -127, 127).astype(np.int8)])
    both = derive_groups(twice, ids * 2, alone(400))
    assert both.groups[:200] == both.groups[200:]


def test_groups_that_somebody_named_are_joined_by_new_pictures_only() -> None:
    """A release names each of its pictures' parts; the same parts come again, on a device that names none."""
    codes, ids, _ = parts(20, 5)
    named = [f"tile {row:03}" if row % 5 else f"line-7/{row}" for row in range(len(ids))]
    released = np.arange(len(ids)) % 5 > 0
    settled = settled_groups(np.array(named)[released])
    assert derive_groups(codes, ids, named).found < 60
    found = derive_groups(codes, ids, named, settled=settled)
    assert len({group for group, old in zip(found.groups, released, strict=True) if old}) == released.sum()
    assert found.found == released.sum()  # each new picture is with one of its part
    alone_there = derive_groups(
        codes[released], [A] * 80 + [B] * 80, list(np.array(named)[released]), settled=settled
    )
    assert alone_there.found == released.sum()


def test_one_class_is_grouped_too() -> None:
    codes, ids, groups = parts(20, 3)
    here = [i for i, c in enumerate(ids) if c == A]
    found = derive_groups(codes[here], [A] * len(here), alone(len(here)))
    pure = [rows for rows in partition(found) if len({groups[here[row]] for row in rows}) == 1]
    assert sum(len(rows) == 3 for rows in pure) >= 15


@given(order=st.permutations(range(48)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_samples_changes_nothing(order: list[int]) -> None:
    codes, ids, _ = parts(8, 3)
    names = alone(48)
    straight = derive_groups(codes, ids, names)
    mixed = derive_groups(codes[order], [ids[i] for i in order], [names[i] for i in order])
    assert mixed.groups == tuple(straight.groups[i] for i in order)
    assert mixed.threshold == straight.threshold


def test_the_ids_of_the_classes_change_nothing() -> None:
    """Every export draws them anew. Of more samples than are compared with each other they chose which."""
    codes, ids, _ = parts(280, 2, d=24)
    names = alone(len(ids))
    found = derive_groups(codes, ids, names)
    assert len(ids) > _REFERENCE_SAMPLES
    assert derive_groups(codes, [B if c == A else A for c in ids], names) == found


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=20), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_a_given_group_is_never_divided_and_classes_are_joined_only_by_one(sizes: list[int], seed: int) -> None:
    codes, ids, _ = parts(10, 2, seed=seed)
    given_groups = [f"g{np.searchsorted(np.cumsum(sizes), row, side='right'):02}" for row in range(40)]
    found = derive_groups(codes, ids, given_groups)
    of: dict[str, set[str]] = {}
    for was, now in zip(given_groups, found.groups, strict=True):
        of.setdefault(was, set()).add(now)
    assert all(len(now) == 1 for now in of.values())
    assert set(found.groups) <= set(given_groups)
    apart = derive_groups(codes, ids, [f"{c.hex()[:2]}{g}" for c, g in zip(ids, given_groups, strict=True)])
    for rows in partition(apart):
        assert len({ids[row] for row in rows}) == 1


def test_groups_that_are_given_stay_as_they_are() -> None:
    codes, ids, groups = parts(20, 4)
    found = derive_groups(codes, ids, groups)
    assert found.groups == tuple(groups)
    assert (found.given, found.found, found.shared_given, found.joined_shared) == (40, 40, 40, 0)


def test_one_part_under_two_ids_is_found() -> None:
    """The second half of a part's pictures came the next day, under another part id."""
    codes, ids, groups = parts(20, 4)
    again = [f"{g}-again" if g == "61-003" and i % 2 else g for i, g in enumerate(groups)]
    found = derive_groups(codes, ids, again)
    assert found.groups == tuple(groups)
    assert (found.shared_given, found.joined_shared) == (41, 2)


def test_single_pictures_are_joined_where_few_are_in_groups() -> None:
    """A release without groups, and a few parts that a device has seen several times."""
    codes, ids, groups = parts(20, 4)
    some = [g if int(g[-3:]) < 5 else f"lost {i:03}" for i, g in enumerate(groups)]
    found = derive_groups(codes, ids, some)
    assert found.found < 60
    assert found.joined_shared == 0


def test_copies_under_two_labels_stay_apart() -> None:
    codes, ids, _ = parts(20, 2)
    wrong = [B if i % 2 and c == A else c for i, c in enumerate(ids)]
    found = derive_groups(codes, wrong, alone(80))
    assert all(len({wrong[row] for row in rows}) == 1 for rows in partition(found))


@pytest.mark.parametrize(
    "ids",
    [[A], [A, B], [A, A, B, B], [A, A, A, B], [A, B, C] * 2],
    ids=["one sample", "two", "two of each", "three of one", "two of three"],
)
def test_too_few_samples_stay_as_given(ids: list[bytes]) -> None:
    codes = np.random.default_rng(0).integers(-90, 90, (len(ids), 16)).astype(np.int8)
    found = derive_groups(codes, ids, alone(len(ids)))
    assert found.groups == tuple(alone(len(ids)))
    assert found.threshold is None


def test_codes_that_are_all_alike_stay_as_given() -> None:
    codes = np.full((60, 8), 7, np.int8)
    assert derive_groups(codes, [A, B] * 30, alone(60)).threshold is None


def test_a_class_beyond_the_limit_is_not_compared_and_said() -> None:
    n = MAX_CLASS_GROUPS + 1
    codes = np.random.default_rng(0).integers(-90, 90, (n + 40, 4)).astype(np.int8)
    found = derive_groups(codes, [A] * n + [B] * 40, alone(n + 40))
    assert found.skipped == (A,)
    assert found.groups[:n] == tuple(alone(n))


def test_grouping_stops_when_asked() -> None:
    codes, ids, groups = parts(20, 2)
    with pytest.raises(InterruptedError):
        derive_groups(codes, ids, groups, stop=lambda: True)


@pytest.mark.parametrize("wrong", ["ids", "groups"])
def test_lists_of_unequal_length_are_refused(wrong: str) -> None:
    codes, ids, groups = parts(4, 2)
    with pytest.raises(ValueError, match="for"):
        derive_groups(codes, ids[wrong == "ids" :], groups[wrong == "groups" :])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("given", None),
        ("none", "No groups were given: 160 groups became"),
        ("some", "Single images look like parts that others show"),
        ("twice", "2 of 41 groups of several images look like the same part"),
    ],
)
def test_people_are_told_when_much_was_joined(case: str, words: str | None) -> None:
    codes, ids, groups = parts(20, 4)
    names = {
        "given": groups,
        "none": alone(160),
        "some": [g if int(g[-3:]) < 5 else f"lost {i:03}" for i, g in enumerate(groups)],
        "twice": [f"{g}-again" if g == "61-003" and i % 2 else g for i, g in enumerate(groups)],
    }[case]
    note = derive_groups(codes, ids, names).note()
    assert note is None if words is None else note is not None and words in note


def test_nobody_who_named_groups_is_told_that_there_are_none() -> None:
    """A station's parts have ids, each of one picture."""
    codes, ids, _ = parts(20, 4)
    note = derive_groups(codes, ids, alone(160)).note(none_given=False) or ""
    assert note.startswith("Single images look like parts that others show: 160 groups became")
