"""A station's own samples: weighed and shifted exactly, and only where its own left-out groups gain by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk import adaptation as adaptation_module
from sdk.adaptation import MIN_STREAM, Choice, Labelled, choose, harmful_source, stream_shifts
from sdk.errors import FeatureSizeError, HeadError
from sdk.head import Head, solve
from sdk.moments import MAX_OWN_WEIGHT, UNADAPTED, Adaptation, Moments, sums_of
from sdk.score import LeftOut, leave_one_group_out, quadratic_score
from tests.test_head import A, B, C, clusters, moments_of, ridge_of, scored_plainly

Bytes = npt.NDArray[np.int8]
D = 24


def labelled(
    codes: Bytes, ids: list[bytes], groups: list[str], own: npt.NDArray[np.bool_], other: str = "release"
) -> Labelled:
    return Labelled(codes, ids, groups, ["me" if mine else other for mine in own], own)


def every(n: int) -> npt.NDArray[np.bool_]:
    return np.ones(n, bool)


CENTRES = np.random.default_rng(7).normal(40, 18, (3, D))


def parts(count: int, seed: int, by: npt.NDArray[np.float64] | float = 0.0) -> tuple[Bytes, list[bytes]]:
    """So many parts of each of three near classes, seen where `by` moves them."""
    noise = np.random.default_rng(seed).normal(0, 14, (3 * count, D))
    codes = np.repeat(CENTRES, count, axis=0) + noise + by
    return np.clip(np.rint(codes), -127, 127).astype(np.int8), [c for c in (A, B, C) for _ in range(count)]


def station(
    own: dict[bytes, int], *, by: npt.NDArray[np.float64] | float = 0.0
) -> tuple[Labelled, Bytes, Bytes, list[bytes]]:
    """A release and a station that sees the same parts elsewhere: live set, stream, test codes, their classes."""
    codes, ids = parts(60, 1)
    theirs, their_ids = parts(20, 2, by)
    rows = [i for c, n in own.items() for i in np.flatnonzero([x == c for x in their_ids])[:n]]
    live = labelled(
        np.concatenate([codes, theirs[rows]]),
        ids + [their_ids[i] for i in rows],
        [f"release/{i}" for i in range(len(codes))] + [f"me/{i}" for i in rows],
        np.arange(len(codes) + len(rows)) >= len(codes),
    )
    return live, parts(40, 3, by)[0], *parts(40, 4, by)


def head_of(live: Labelled, adaptation: Adaptation) -> Head:
    return solve(live.moments(every(len(live.own))), own=live.moments(live.own), adaptation=adaptation)


def recall(head: Head, codes: Bytes, truth: list[bytes]) -> float:
    right = [head.class_ids[i] == t for i, t in zip(head.decide(codes).class_index, truth, strict=True)]
    return float(np.mean(right))


# The algebra


@settings(max_examples=40, deadline=None)
@given(weight=st.integers(1, MAX_OWN_WEIGHT), seed=st.integers(0, 10**6), own=st.integers(1, 12))
def test_counting_own_samples_often_is_adding_them_often(weight: int, seed: int, own: int) -> None:
    codes, ids, _ = clusters({A: 6, B: 5, C: 4}, d=7, seed=seed)
    rows = np.random.default_rng(seed).permutation(15)[:own]
    everything, mine = moments_of(codes, ids), moments_of(codes[rows], [ids[i] for i in rows])
    repeated = moments_of(codes, ids)
    for _ in range(weight - 1):
        repeated.add(codes[rows], [ids[i] for i in rows])
    found, expected = sums_of(everything, own=mine, adaptation=Adaptation(weight)), sums_of(repeated)
    assert found.class_ids == expected.class_ids
    for one, other in (
        (found.n, expected.n),
        (found.s, expected.s),
        (found.squares, expected.squares),
        (found.gram, expected.gram),
    ):
        assert (one == other).all()
    assert (found.samples == sums_of(everything).n).all(), "there are no more samples than before"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.integers(1, 4))
def test_a_shift_is_as_if_the_own_codes_lay_elsewhere(seed: int, weight: int) -> None:
    codes, ids, _ = clusters({A: 6, B: 5}, d=7, seed=seed)
    codes = np.clip(codes, -90, 90).astype(np.int8)
    shift = np.random.default_rng(seed).integers(-30, 31, 7)
    own = np.arange(11) % 3 == 0
    elsewhere = np.where(own[:, None], codes - shift, codes).astype(np.int8)
    own_ids = [c for c, mine in zip(ids, own, strict=True) if mine]
    found = sums_of(
        moments_of(codes, ids),
        own=moments_of(codes[own], own_ids),
        adaptation=Adaptation(weight, tuple(int(s) for s in shift)),
    )
    expected = sums_of(
        moments_of(elsewhere, ids), own=moments_of(elsewhere[own], own_ids), adaptation=Adaptation(weight)
    )
    for name in ("n", "s", "squares", "gram", "effective"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name


def test_heavy_samples_make_a_mean_no_surer_than_their_number() -> None:
    codes, ids, _ = clusters({A: 10, B: 4}, d=7)
    own = np.array([i < 2 for i in range(14)])
    found = sums_of(moments_of(codes, ids), own=moments_of(codes[own], [A, A]), adaptation=Adaptation(16))
    # 8 of weight 1 and 2 of weight 16: (8 + 32)^2 / (8 + 512)
    assert found.effective == pytest.approx([40**2 / 520, 4.0])


@pytest.mark.parametrize("weight", [1, 3, 16])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("per_group", [3, 13])
def test_left_out_scores_with_weights_equal_refitting_without_the_group(
    weight: int, shifted: bool, per_group: int
) -> None:
    codes, ids, groups = clusters({A: 14, B: 9, C: 1}, per_group=per_group)
    own = np.arange(24) % 4 != 0
    shift = np.random.default_rng(3).integers(-9, 10, D) if shifted else np.zeros(D, np.int64)
    adaptation = Adaptation(weight, tuple(int(s) for s in shift) if shifted else ())
    left = leave_one_group_out(codes, ids, groups, own=own, adaptation=adaptation)
    x = codes.astype(np.int64) - np.where(own[:, None], shift, 0)
    w = np.where(own, float(weight), 1.0)
    y = np.array([(A, B, C).index(c) for c in ids])
    delta = head_of(labelled(codes, ids, groups, own), adaptation).delta
    ridge = weighted_ridge(x, y, w)
    worst = 0.0
    for group in sorted(set(groups)):
        out = np.array([g == group for g in groups])
        kept = np.unique(y[~out])
        expected, novelty = weighted_reference(x[~out], y[~out], w[~out], x[out], ridge, delta)
        worst = max(worst, float(abs(left.scores[out][:, kept] - expected).max()))
        worst = max(worst, float(abs(left.novelty[out] - novelty).max()))
    assert worst < 1e-9


def weighted_ridge(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], w: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    diagonal, effective = np.zeros(x.shape[1]), 0.0
    for c in np.unique(y):
        own = y == c
        mean = np.average(x[own], axis=0, weights=w[own])
        diagonal += (w[own, None] * (x[own] - mean) ** 2).sum(0)
        effective += w[own].sum() ** 2 / (w[own] ** 2).sum()
    return np.asarray((1 + x.shape[1] / (10 * effective)) * (diagonal + diagonal.mean()) / 2)


def weighted_reference(
    x: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    w: npt.NDArray[np.float64],
    test: npt.NDArray[np.int64],
    ridge: npt.NDArray[np.float64],
    delta: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """docs/head.md, section 7, written down plainly: no shared code with the head."""
    classes = np.unique(y)
    effective = np.array([w[y == c].sum() ** 2 / (w[y == c] ** 2).sum() for c in classes])
    m = np.stack([np.average(x[y == c], axis=0, weights=w[y == c]) for c in classes])
    centred = x - m[np.searchsorted(classes, y)]
    P = np.linalg.inv((w[:, None] * centred).T @ centred + np.diag(ridge))
    return scored_plainly(effective, m, P, test, delta)


def test_the_head_decides_own_codes_where_it_learned_them() -> None:
    codes, ids, groups = clusters({A: 20, B: 20}, d=D)
    own = np.arange(40) % 2 == 0
    shift = tuple(int(s) for s in np.random.default_rng(1).integers(-9, 10, D))
    live = labelled(codes, ids, groups, own)
    found = head_of(live, Adaptation(2, shift)).scores(codes[own])
    elsewhere = labelled((codes - np.where(own[:, None], shift, 0)).astype(np.int8), ids, groups, own)
    expected = head_of(elsewhere, Adaptation(2)).scores(elsewhere.codes[own])
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("own", [False, True])
def test_an_update_with_weights_is_near_the_solve_and_taken_back_exactly(own: bool) -> None:
    codes, ids, groups = clusters({A: 60, B: 60, C: 1}, d=D)
    adaptation = Adaptation(4, tuple(int(s) for s in np.random.default_rng(1).integers(-9, 10, D)))
    before = labelled(codes[:-1], ids[:-1], groups[:-1], np.arange(120) % 3 == 0)
    head = head_of(before, adaptation)
    updated = head.with_sample(codes[-1], C, own=own)
    after = labelled(codes, ids, groups, np.append(before.own, own))
    np.testing.assert_allclose(updated.scores(codes), head_of(after, adaptation).scores(codes), atol=0.05)
    again = updated.with_sample(codes[0], C, own=own).without_sample(codes[0], C, own=own)
    np.testing.assert_allclose(again.scores(codes), updated.scores(codes), atol=2e-4)
    back = updated.without_sample(codes[-1], C, own=own)
    np.testing.assert_allclose(back.scores(codes), head.scores(codes), atol=2e-5)
    assert back.counts == head.counts


@pytest.mark.parametrize("weight", [0, -1, MAX_OWN_WEIGHT + 1])
def test_a_weight_outside_its_bounds_is_refused(weight: int) -> None:
    with pytest.raises(HeadError, match="cannot count"):
        Adaptation(weight)


def test_a_shift_that_no_code_can_have_is_refused() -> None:
    with pytest.raises(HeadError, match="more than codes can differ"):
        Adaptation(1, (255, 0))


def test_a_shift_of_another_feature_space_is_refused() -> None:
    codes, ids, _ = clusters({A: 5, B: 5}, d=D)
    with pytest.raises(FeatureSizeError, match="a shift of 2 numbers"):
        solve(moments_of(codes, ids), own=moments_of(codes[:1], ids[:1]), adaptation=Adaptation(1, (1, 2)))


def test_own_samples_that_are_not_among_all_are_refused() -> None:
    codes, ids, _ = clusters({A: 5, B: 5}, d=D)
    with pytest.raises(HeadError, match="missing among all"):
        sums_of(moments_of(codes[:5], ids[:5]), own=moments_of(codes[5:], ids[5:]), adaptation=Adaptation(2))
    with pytest.raises(FeatureSizeError, match="own samples of 5 numbers"):
        sums_of(moments_of(codes, ids), own=moments_of(codes[:, :5], ids), adaptation=Adaptation(2))


def test_unadapted_own_samples_change_nothing() -> None:
    codes, ids, _ = clusters({A: 5, B: 5}, d=D)
    one = solve(moments_of(codes, ids), own=moments_of(codes[:5], ids[:5])).scores(codes)
    assert (one == solve(moments_of(codes, ids)).scores(codes)).all()


# The choice


def far() -> npt.NDArray[np.float64]:
    """So far that parts of the first class come to lie where the second's were."""
    return np.asarray(CENTRES[1] - CENTRES[0])


def test_a_shifted_station_is_better_known_with_what_is_chosen() -> None:
    live, stream, test, truth = station({A: 4, B: 4, C: 4}, by=far())
    plain = recall(head_of(live, UNADAPTED), test, truth)
    choice = choose(live, stream)
    assert choice.adaptation.shift
    assert choice.gain > choice.error
    assert recall(head_of(live, choice.adaptation), test, truth) > plain + 0.03


def test_a_station_like_the_release_loses_nothing() -> None:
    live, stream, test, truth = station({A: 6, B: 6, C: 6})
    plain = recall(head_of(live, UNADAPTED), test, truth)
    assert recall(head_of(live, choose(live, stream).adaptation), test, truth) > plain - 0.01


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({}, "no own label"),
        ({A: 2, B: 1, C: 1}, "four groups"),
    ],
)
def test_too_few_own_groups_choose_nothing(own: dict[bytes, int], why: str) -> None:
    live, stream, _, _ = station(own, by=far())
    assert choose(live, stream) == Choice(), why


def test_own_labels_of_some_classes_only_never_count_more() -> None:
    """They would draw everything that looks like the station into their classes, and no own label would say so."""
    live, _, _, _ = station({A: 10, B: 10, C: 1}, by=far())
    assert choose(live, np.zeros((0, D), np.int8)) == Choice(tried=1)


def test_a_short_stream_is_no_reason_to_shift() -> None:
    live, stream, _, _ = station({A: 4, B: 4, C: 4}, by=far())
    assert not choose(live, stream[: MIN_STREAM - 1]).adaptation.shift


def test_the_search_ends_when_it_is_told_to() -> None:
    live, stream, _, _ = station({A: 4, B: 4, C: 4}, by=far())
    left = iter([False, True])
    choice = choose(live, stream, enough=lambda: next(left))
    assert choice.tried == 2, "the plain head and one more"


def test_each_adaptation_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    live, stream, _, _ = station({A: 4, B: 4, C: 4}, by=far())
    scored: list[Adaptation] = []

    def left_out(*args: Any, **options: Any) -> LeftOut:
        scored.append(options["adaptation"])
        return leave_one_group_out(*args, **options)

    monkeypatch.setattr(adaptation_module, "leave_one_group_out", left_out)
    assert choose(live, stream).tried == len(scored) == len(set(scored)) > 2


def test_a_stream_of_other_parts_is_not_taken_for_a_shift() -> None:
    """Of the two estimates the one in the shares that the head finds stays near zero."""
    live, _, test, truth = station({A: 4, B: 4, C: 4})
    of_one = test[[t == A for t in truth]].repeat(2, axis=0)
    naive, by_shares = stream_shifts(live, of_one)
    assert np.abs(by_shares).mean() < np.abs(naive).mean() / 3


def test_everybody_elses_samples_are_needed_to_weigh_against() -> None:
    live, stream, _, _ = station({A: 6, B: 6, C: 6})
    alone = replace(live, own=every(len(live.own)), devices=["me"] * len(live.own))
    assert choose(alone, stream) == Choice()


# Sources


def with_source(flipped: bool) -> Labelled:
    live, _, _, _ = station({A: 8, B: 8, C: 8})
    codes, ids = parts(50, 5)
    swap = {A: B, B: C, C: A}
    n = len(codes)
    return Labelled(
        np.concatenate([live.codes, codes]),
        [*live.class_ids, *(swap[c] if flipped else c for c in ids)],
        [*live.groups, *(f"line-3/{i}" for i in range(n))],
        [*live.devices, *["line-3"] * n],
        np.append(live.own, np.zeros(n, bool)),
    )


def test_a_source_whose_labels_are_wrong_here_is_named() -> None:
    harm = harmful_source(with_source(flipped=True))
    assert harm is not None
    assert (harm.source, harm.samples) == ("line-3", 150)
    assert harm.recall_without > harm.recall + 0.1


def test_a_source_that_agrees_is_not() -> None:
    assert harmful_source(with_source(flipped=False)) is None


def test_the_release_is_never_asked_about_and_a_late_trial_asks_nobody() -> None:
    live, _, _, _ = station({A: 6, B: 6, C: 6}, by=far())
    assert harmful_source(live) is None
    assert harmful_source(with_source(flipped=True), enough=lambda: True) is None


def test_no_single_label_outweighs_the_others() -> None:
    codes, ids, groups = clusters({A: 14, B: 9, C: 1})
    quality = quadratic_score(leave_one_group_out(codes, ids, groups))
    assert (quality <= 1).all()
    assert (quality >= -1).all()


def test_moments_of_some_rows_are_those_rows() -> None:
    live, _, _, _ = station({A: 1, B: 1, C: 1})
    assert live.moments(~live.own) == moments_of(live.codes[:180], list(live.class_ids[:180]))
    assert live.moments(live.own) != Moments(D)
    assert ridge_of(live.codes[:180], np.repeat([0, 1, 2], 60)).min() > 0
