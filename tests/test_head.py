"""The head: exact moments, the solve, and leave-one-group-out against refitting without the group."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk import score as score_module
from sdk.errors import FeatureSizeError, HeadError, UnknownClassError
from sdk.head import UNCALIBRATED, Calibration, Knobs, probabilities_of, shrinkage, solve
from sdk.moments import Adaptation, Moments, same
from sdk.score import LeftOut, calibrate, leave_one_group_out, score, share
from sdk.verdict import trial
from tests.builders import random_codes

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
D, E = b"d" * 16, b"e" * 16


def clusters(
    counts: dict[bytes, int], *, d: int = 24, seed: int = 0, spread: float = 8.0, per_group: int = 1
) -> tuple[npt.NDArray[np.int8], list[bytes], list[str]]:
    """Codes around one random centre per class, with group ids of `per_group` samples each."""
    rng = np.random.default_rng(seed)
    codes, ids, groups = [], [], []
    for class_id, n in sorted(counts.items()):
        centre = rng.normal(40, 25, d)
        codes.append(centre + rng.normal(0, spread, (n, d)))
        ids += [class_id] * n
        groups += [f"{class_id.hex()[:2]}-{i // per_group}" for i in range(n)]
    return np.clip(np.rint(np.concatenate(codes)), -127, 127).astype(np.int8), ids, groups


def moments_of(codes: npt.NDArray[np.int8], ids: Sequence[bytes]) -> Moments:
    moments = Moments(codes.shape[1])
    moments.add(codes, ids)
    return moments


def reference(
    train: npt.NDArray[np.int8],
    y: npt.NDArray[np.int64],
    test: npt.NDArray[np.int8],
    *,
    ridge: npt.NDArray[np.float64],
    delta: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores and novelty of docs/head.md, written down plainly in float64, with Lambda and delta given.

    No code shared with the head.
    """
    x = train.astype(float)
    classes = np.unique(y)
    n = np.array([(y == c).sum() for c in classes], float)
    m = np.stack([x[y == c].mean(0) for c in classes])
    W = sum((x[y == c] - m[i]).T @ (x[y == c] - m[i]) for i, c in enumerate(classes))
    return scored_plainly(n, m, np.linalg.inv(W + np.diag(ridge)), test, delta)


def scored_plainly(
    n: npt.NDArray[np.float64],
    m: npt.NDArray[np.float64],
    P: npt.NDArray[np.float64],
    test: npt.NDArray[np.generic],
    delta: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores and novelty from counts (k,), means (k, d) and P (d, d): equations 7 to 11."""
    w = n / (n + 15)
    w /= w.sum()
    mu = w @ m
    v = m - mu
    plain = np.array([v_c @ P @ v_c for v_c in v])
    shares = np.eye(len(n)) - w
    own = np.array([plain[c] - delta * (shares[c] ** 2 / n).sum() for c in range(len(n))])
    typical = sum(w[c] * max(own[c], plain[c] / 4) for c in range(len(n)))
    scores = np.empty((len(test), len(n)))
    novelty = np.empty(len(test))
    for j, row in enumerate(test):
        q = row - mu
        distances = []
        for c in range(len(n)):
            squared = (n[c] * max(own[c], 0) + delta) / (n[c] + delta / typical)
            length = np.sqrt(max(squared, plain[c] / 4))
            lost = delta * (shares[c] * w / n).sum()
            scores[j, c] = (q @ P @ v[c] + lost) / np.sqrt(q @ P @ q) / length
            off = row - m[c]
            distances.append(off @ P @ off / (1 + 1 / n[c]))
        novelty[j] = 1 - scores[j].max() + 0.05 * np.log(min(distances) / delta)
    return scores, novelty


def ridge_of(codes: npt.NDArray[np.int8], y: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Lambda (d,): half the scatter of each feature, half the mean of all, and more of both for few samples."""
    x = codes.astype(float)
    diagonal = np.array([((x[y == c] - x[y == c].mean(0)) ** 2).sum(0) for c in np.unique(y)]).sum(0)
    return np.asarray((1 + x.shape[1] / (10 * len(x))) * (diagonal + diagonal.mean()) / 2)


# Moments: exact, whatever the way


@given(order=st.permutations(range(30)), cuts=st.lists(st.integers(0, 30), max_size=5))
@settings(max_examples=50, deadline=None)
def test_moments_do_not_depend_on_order_or_batches(order: list[int], cuts: list[int]) -> None:
    codes, ids, _ = clusters({A: 12, B: 10, C: 8})
    moments = Moments(codes.shape[1])
    for rows in np.split(np.array(order), sorted(cuts)):
        moments.add(codes[rows], [ids[i] for i in rows])
    assert moments == moments_of(codes, ids)


@given(st.sets(st.integers(0, 29), max_size=29))
@settings(max_examples=50, deadline=None)
def test_withdrawing_is_as_if_never_learned(taken: set[int]) -> None:
    codes, ids, _ = clusters({A: 12, B: 10, C: 8})
    moments = moments_of(codes, ids)
    for i in sorted(taken):
        moments.subtract(codes[[i]], [ids[i]])
    kept = [i for i in range(30) if i not in taken]
    assert moments == moments_of(codes[kept], [ids[i] for i in kept])


def test_moments_are_the_integer_sums_at_full_scale() -> None:
    codes = np.full((3000, 4), -127, np.int8)
    moments = moments_of(codes, [A] * 3000)
    assert moments.gram[1, 2] == 3000 * 127 * 127


def test_a_copy_does_not_change_with_the_original() -> None:
    codes, ids, _ = clusters({A: 3, B: 3})
    moments = moments_of(codes, ids)
    twin = moments.copy()
    moments.subtract(codes[:1], ids[:1])
    assert twin == moments_of(codes, ids)
    assert twin != moments


Sums = dict[str, npt.NDArray[np.int64]]


def sums_of(moments: Moments) -> tuple[tuple[bytes, ...], Sums]:
    ids, n, s, squares = moments.per_class(same)
    return ids, {"n": n, "s": s, "squares": squares, "gram": moments.gram.copy()}


@given(per_class=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99), scale=st.booleans())
@settings(max_examples=40, deadline=None)
def test_moments_are_made_again_from_their_sums(per_class: list[int], seed: int, scale: bool) -> None:
    """Fewer samples than features, so the scatter has no full rank; at full scale too."""
    ids = [bytes([c]) * 16 for c, n in enumerate(per_class) for _ in range(n)]
    codes = random_codes(len(ids), 9, seed)
    moments = moments_of(np.where(codes < 0, -127, 127).astype(np.int8) if scale else codes, ids)
    classes, sums = sums_of(moments)
    assert Moments.of_sums(classes, **sums) == moments


def test_merged_moments_are_those_of_merged_classes() -> None:
    codes, ids, _ = clusters({A: 5, B: 4, C: 3})
    merged = moments_of(codes, ids).merged(lambda c: A if c == C else c)
    assert merged == moments_of(codes, [A if c == C else c for c in ids])


def changed(sums: Sums, what: str, at: tuple[int, ...], by: int) -> Sums:
    other = sums[what].copy()
    other[at] += by
    return sums | {what: other}


def narrowed(sums: Sums) -> Sums:
    """Squared lengths and diagonal are shorter than the class means allow."""
    gram = sums["gram"].copy()
    gram[np.diag_indices(len(gram))] //= 2
    share = sums["squares"] // 2
    share[0] += np.trace(gram) - share.sum()
    return sums | {"gram": gram, "squares": share}


def twisted(sums: Sums) -> Sums:
    """Two features vary together more than each does alone."""
    gram = sums["gram"].copy()
    gram[0, 1] = gram[1, 0] = 2 * max(gram[0, 0], gram[1, 1])
    return sums | {"gram": gram}


IMPOSSIBLE: dict[str, tuple[Callable[[Sums], Sums], str]] = {
    "no sample of a class": (lambda s: changed(s, "n", (0,), -int(s["n"][0])), "counts"),
    "a negative count": (lambda s: changed(s, "n", (1,), -99), "counts"),
    "more than there may be": (lambda s: changed(s, "n", (0,), 10**8), "counts"),
    "the largest count": (lambda s: changed(s, "n", (0,), 2**63 - 20), "counts"),
    "a sum beyond int8": (lambda s: changed(s, "s", (0, 0), 127 * 20), "larger"),
    "the smallest integer": (lambda s: s | {"s": np.full_like(s["s"], -(2**63))}, "larger"),
    "a negative squared length": (lambda s: changed(s, "squares", (0,), -(10**9)), "larger"),
    "a huge squared length": (lambda s: changed(s, "squares", (0,), 10**9), "larger"),
    "a huge Gram matrix": (lambda s: s | {"gram": np.full_like(s["gram"], 2**62)}, "Gram matrix is larger"),
    "half of a symmetric pair": (lambda s: changed(s, "gram", (0, 1), 1), "symmetric"),
    "a trace off by one": (lambda s: changed(s, "gram", (2, 2), 1), "squared lengths"),
    "squares moved between classes": (
        lambda s: changed(changed(s, "squares", (0,), -8000), "squares", (1,), 8000),
        "longer than its samples",
    ),
    "too short for their means": (narrowed, "longer than its samples"),
    "a correlation above one": (twisted, "negative in some direction"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_sums_that_no_codes_have_are_refused(case: str) -> None:
    codes, ids, _ = clusters({A: 12, B: 9}, d=5, spread=4)
    change, why = IMPOSSIBLE[case]
    classes, sums = sums_of(moments_of(codes, ids))
    with pytest.raises(HeadError, match=why):
        Moments.of_sums(classes, **change(sums))


def test_sums_with_a_class_twice_are_refused() -> None:
    codes, ids, _ = clusters({A: 12, B: 9}, d=5)
    _, sums = sums_of(moments_of(codes, ids))
    with pytest.raises(HeadError, match="twice"):
        Moments.of_sums((A, A), **sums)


@pytest.mark.parametrize(
    "codes",
    [np.zeros((1, 5), np.int8), np.zeros(4, np.int8), np.zeros((1, 4), np.float32)],
    ids=["another size", "one-dimensional", "floats"],
)
def test_moments_refuse_codes_that_do_not_fit(codes: npt.NDArray[np.int8]) -> None:
    moments = Moments(4)
    with pytest.raises(FeatureSizeError):
        moments.add(codes, [A])
    assert moments == Moments(4)


def test_taking_out_what_is_not_in_is_refused_and_changes_nothing() -> None:
    codes, ids, _ = clusters({A: 2, B: 2})
    moments = moments_of(codes, ids)
    with pytest.raises(UnknownClassError):
        moments.subtract(codes[:3], [A, A, A])
    with pytest.raises(UnknownClassError):
        moments.subtract(codes[:1], [C])
    assert moments == moments_of(codes, ids)


# The solve


@pytest.mark.parametrize("counts", [{A: 20, B: 15}, {A: 30, B: 20, C: 1}, {A: 5, B: 4, C: 3}])
def test_scores_are_those_of_the_definition(counts: dict[bytes, int]) -> None:
    codes, ids, _ = clusters(counts)
    test, _, _ = clusters({A: 5, B: 5, C: 5}, seed=0)
    head = solve(moments_of(codes, ids))
    y = np.array([sorted(counts).index(c) for c in ids])
    expected, novelty = reference(codes, y, test, ridge=ridge_of(codes, y), delta=head.delta)
    # The head serves in float32: 1e-5 is its rounding, decisions differ by far more.
    np.testing.assert_allclose(head.scores(test), expected, atol=2e-5)
    np.testing.assert_allclose(head.novelty(test), novelty, atol=2e-5)


@pytest.mark.parametrize(("counts", "floored"), [({A: 20, B: 15}, 0), ({A: 2, B: 2}, 1), ({A: 2, B: 1, C: 3}, 1)])
def test_delta_is_that_of_the_definition(counts: dict[bytes, int], floored: int) -> None:
    """Equation 6: what one or two samples leave of themselves is at least a tenth."""
    codes, ids, _ = clusters(counts)
    x, y = codes.astype(float), np.array([sorted(counts).index(c) for c in ids])
    own = [x[y == c] - x[y == c].mean(0) for c in range(len(counts))]
    W, ridge = np.sum([u.T @ u for u in own], axis=0), ridge_of(codes, y)
    total = len(W) - np.trace(np.linalg.inv(W + np.diag(ridge)) @ np.diag(ridge))
    h = np.array([total * np.square(u).sum() / np.trace(W) / len(u) for u in own if len(u) > 1])
    left = 1 - 1 / np.array([len(u) for u in own if len(u) > 1]) - h
    assert (left < 0.1).sum() == floored
    assert solve(moments_of(codes, ids)).delta == pytest.approx(np.mean(h / np.maximum(left, 0.1)), rel=1e-5)


def test_heads_of_the_same_set_are_the_same_whatever_its_order() -> None:
    codes, ids, _ = clusters({A: 20, B: 15, C: 2})
    order = np.random.default_rng(1).permutation(len(ids))
    one = solve(moments_of(codes, ids)).scores(codes)
    other = solve(moments_of(codes[order], [ids[i] for i in order])).scores(codes)
    assert (one == other).all()


def test_merged_classes_solve_like_one() -> None:
    codes, ids, _ = clusters({A: 20, B: 15, C: 10})
    merged = solve(moments_of(codes, ids), canonical=lambda c: A if c == B else c)
    relabelled = solve(moments_of(codes, [A if c == B else c for c in ids]))
    assert merged.class_ids == relabelled.class_ids == (A, C)
    assert (merged.scores(codes) == relabelled.scores(codes)).all()


def test_a_class_of_one_label_is_recognised_and_the_others_stay() -> None:
    codes, ids, _ = clusters({A: 40, B: 40, C: 40}, d=64)
    keep = [i for i in range(120) if ids[i] != C] + [ids.index(C)]
    head = solve(moments_of(codes[keep], [ids[i] for i in keep]))
    shown = head.decide(codes).class_index
    truth = np.array([head.class_ids.index(c) for c in ids])
    assert (shown == truth)[truth == 2].mean() > 0.9
    assert (shown == truth)[truth < 2].mean() > 0.97


def test_a_threshold_of_distances_judges_no_cosines() -> None:
    """With the second class, and with the last but one gone, nothing is unknown until it is calibrated anew."""
    codes, ids, groups = clusters({A: 40, B: 40})
    first = codes[:40]
    far = calibrate(leave_one_group_out(first, ids[:40], groups[:40]), 0.1)
    one = solve(moments_of(first, ids[:40]), calibration=far)
    assert one.decide(codes[40:]).unknown.all()
    uncalibrated = Calibration(UNCALIBRATED.temperature, np.inf, 0.1, classes=2)
    two = one.with_sample(codes[40], B)
    assert two.calibration == uncalibrated
    assert solve(moments_of(codes, ids), calibration=far).calibration == uncalibrated
    assert solve(moments_of(codes, ids)).recalibrated(far).calibration == uncalibrated
    near = calibrate(leave_one_group_out(codes, ids, groups), 0.1)
    assert solve(moments_of(first, ids[:40]), calibration=near).calibration.novelty_threshold == np.inf
    several = solve(moments_of(codes, ids), calibration=near)
    assert several.with_sample(codes[0], C).calibration == near  # errs towards asking
    unsaid = Calibration(10.0, 3.0)
    assert solve(moments_of(codes, ids), calibration=unsaid).calibration == unsaid


def test_without_scatter_the_head_is_the_plain_cosine() -> None:
    codes = np.array([[100, 0, 0], [0, 100, 0], [0, 0, 100]], np.int8)
    head = solve(moments_of(codes, [A, B, C]))
    assert head.delta == 0.0
    assert head.decide(codes).class_index.tolist() == [0, 1, 2]


def test_no_samples_cannot_be_solved() -> None:
    with pytest.raises(HeadError, match="no labelled samples"):
        solve(Moments(4))


def test_damaged_moments_are_refused() -> None:
    codes, ids, _ = clusters({A: 9, B: 9})
    moments = moments_of(codes, ids)
    moments.gram -= 10**9 * np.eye(len(moments.gram), dtype=np.int64)
    with pytest.raises(HeadError):
        solve(moments)


def test_a_head_refuses_codes_of_another_size() -> None:
    codes, ids, _ = clusters({A: 9, B: 9})
    head = solve(moments_of(codes, ids))
    with pytest.raises(FeatureSizeError):
        head.decide(codes[:, :5])
    with pytest.raises(FeatureSizeError):
        head.decide(codes.astype(np.float32))


# Serving at once: the head updated by one sample, without a solve


def updated(
    moments: Moments, change: int, x: npt.NDArray[np.int8], class_id: bytes
) -> tuple[npt.NDArray[np.float64], tuple[bytes, ...]]:
    head = solve(moments)
    head = head.with_sample(x, class_id) if change > 0 else head.without_sample(x, class_id)
    probe = np.random.default_rng(5).integers(-100, 100, (9, moments.feature_size)).astype(np.int8)
    return head.scores(probe), head.class_ids


@pytest.mark.parametrize(
    ("change", "class_id"),
    [(+1, A), (+1, C), (+1, b"0" * 16), (-1, A), (-1, C)],
    ids=["one more", "a new class, last", "a new class, first", "one less", "the last of a class"],
)
def test_an_updated_head_is_the_refit_with_lambda_and_delta_held(change: int, class_id: bytes) -> None:
    counts = {A: 12, B: 9} | ({C: 1} if change < 0 else {})
    codes, ids, _ = clusters(counts)
    y = np.array([sorted(counts).index(c) for c in ids])
    delta = solve(moments_of(codes, ids)).delta
    if change > 0:
        x = clusters({A: 1}, seed=7)[0][0]
        after, after_ids = np.vstack([codes, x]), [*ids, class_id]
    else:
        row = ids.index(class_id)
        x = codes[row]
        after, after_ids = np.delete(codes, row, 0), ids[:row] + ids[row + 1 :]
    names = tuple(sorted(set(after_ids)))
    probe = np.random.default_rng(5).integers(-100, 100, (9, codes.shape[1])).astype(np.int8)
    expected, _ = reference(
        after, np.array([names.index(c) for c in after_ids]), probe, ridge=ridge_of(codes, y), delta=delta
    )
    scores, found = updated(moments_of(codes, ids), change, x, class_id)
    assert found == names
    np.testing.assert_allclose(scores, expected, atol=2e-4)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.booleans()), min_size=1, max_size=15), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_updates_stay_near_the_canonical_solve(changes: list[tuple[bytes, bool]], seed: int) -> None:
    """The stated tolerance: 0.15 of a score after up to 15 outlying changes to 120 samples."""
    codes, ids, _ = clusters({A: 60, B: 60}, seed=seed)
    fresh, _, _ = clusters({A: 15, B: 15, C: 15}, seed=seed)
    moments = moments_of(codes, ids)
    head = solve(moments)
    given: list[tuple[npt.NDArray[np.int8], bytes]] = []
    for i, (class_id, add) in enumerate(changes):
        if add or not given:
            x = fresh[15 * (A, B, C).index(class_id) + i]
            given.append((x, class_id))
            head = head.with_sample(x, class_id)
            moments.add(x[None], [class_id])
        else:
            x, of = given.pop()
            head = head.without_sample(x, of)
            moments.subtract(x[None], [of])
    canonical = solve(moments)
    assert head.class_ids == canonical.class_ids
    assert head.counts == canonical.counts
    ours, theirs = head.scores(fresh), canonical.scores(fresh)
    assert np.abs(ours - theirs).max() < 0.15
    clear = np.sort(theirs, 1)[:, -1] - np.sort(theirs, 1)[:, -2] > 0.3
    assert (ours.argmax(1) == theirs.argmax(1))[clear].all()


def test_an_update_is_refused_where_it_makes_no_sense() -> None:
    codes, ids, _ = clusters({A: 5, B: 5})
    head = solve(moments_of(codes, ids))
    with pytest.raises(FeatureSizeError):
        head.with_sample(codes[0][:-1], A)
    with pytest.raises(UnknownClassError):
        head.without_sample(codes[0], C)
    single = solve(moments_of(codes[[0, 5]], [A, B]))
    assert not single.updatable  # nothing to whiten by
    with pytest.raises(HeadError, match="scatter"):
        single.with_sample(codes[1], A)


# The first day: good parts only


def test_one_class_says_known_or_unknown() -> None:
    codes, ids, groups = clusters({A: 60, B: 30}, d=32)
    good = np.array([c == A for c in ids])
    left = leave_one_group_out(codes[good], [A] * 60, [g for g, ok in zip(groups, good, strict=True) if ok])
    head = solve(moments_of(codes[good], [A] * 60), calibration=calibrate(left, 0.05))
    assert head.decide(codes[good]).unknown.mean() < 0.15
    assert head.decide(codes[~good]).unknown.all()
    np.testing.assert_allclose(head.decide(codes).probability, 1.0)


def test_the_first_defect_label_makes_a_classifier() -> None:
    codes, ids, _ = clusters({A: 60, B: 30}, d=64)
    keep = [i for i in range(90) if ids[i] == A] + [ids.index(B)]
    head = solve(moments_of(codes[keep], [ids[i] for i in keep]))
    shown = head.decide(codes).class_index
    assert (shown[60:] == 1).mean() > 0.9
    assert (shown[:60] == 0).mean() > 0.8


# Leave-one-group-out


@pytest.mark.parametrize("per_group", [1, 3, 7, 13])
@pytest.mark.parametrize("counts", [{A: 14, B: 9, C: 7}, {A: 14, B: 9}, {A: 14, B: 9, C: 1}])
def test_left_out_scores_equal_refitting_without_the_group(counts: dict[bytes, int], per_group: int) -> None:
    codes, ids, groups = clusters(counts, per_group=per_group)
    left = leave_one_group_out(codes, ids, groups)
    delta = solve(moments_of(codes, ids)).delta
    y = np.array([sorted(counts).index(c) for c in ids])
    worst = 0.0
    for group in sorted(set(groups)):
        out = np.array([g == group for g in groups])
        kept = np.unique(y[~out])
        if len(kept) < 2:
            continue
        expected, novelty = reference(codes[~out], y[~out], codes[out], ridge=ridge_of(codes, y), delta=delta)
        worst = max(worst, float(abs(left.scores[out][:, kept] - expected).max()))
        worst = max(worst, float(abs(left.novelty[out] - novelty).max()))
        assert (left.orphan[out] == ~np.isin(y[out], kept)).all()
    assert worst < 1e-9


def test_left_out_distance_of_one_class_equals_refitting() -> None:
    codes, ids, groups = clusters({A: 25}, per_group=2)
    left = leave_one_group_out(codes, ids, groups)
    ridge = ridge_of(codes, np.zeros(25, np.int64))
    for group in sorted(set(groups)):
        out = np.array([g == group for g in groups])
        x = codes[~out].astype(float)
        centred = x - x.mean(0)
        P = np.linalg.inv(centred.T @ centred + np.diag(ridge))
        q = codes[out] - x.mean(0)
        np.testing.assert_allclose(left.novelty[out] ** 2, np.einsum("nd,de,ne->n", q, P, q), rtol=1e-9)


def test_images_of_one_part_do_not_vouch_for_each_other() -> None:
    """Copies of a sample in other groups would raise the score; in its own group they must not."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-60, 60, (40, 128)).astype(np.int8)  # nothing to learn at all
    ids = [A, B] * 20
    twice, ids2 = np.concatenate([codes, codes]), ids + ids
    alone = leave_one_group_out(twice, ids2, [f"g{i}" for i in range(80)])
    by_part = leave_one_group_out(twice, ids2, [f"g{i % 40}" for i in range(80)])
    flattered, honest = (score(each, UNCALIBRATED).balanced_accuracy for each in (alone, by_part))
    assert flattered is not None
    assert flattered > 0.9
    assert honest is not None
    assert honest < 0.7


def _decided(right: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> LeftOut:
    """Return left-out scores of k classes: `right` (g, k, m) by group, class and image."""
    k, n = right.shape[1], right.size
    truth = np.broadcast_to(np.arange(k)[:, None], right.shape).ravel()
    scores = np.eye(k)[np.where(right.ravel(), truth, (truth + 1) % k)]
    ids = tuple(bytes([65 + c]) * 16 for c in range(k))
    return LeftOut(ids, truth, groups.ravel(), scores, np.zeros(n), np.zeros(n, bool))


def test_parts_that_are_hard_as_a_whole_widen_the_interval() -> None:
    """The same decisions, once of parts that show both classes and once of parts that show one."""
    hard = np.random.default_rng(5).random(30) < 0.4
    right = np.repeat(~hard, 4).reshape(30, 2, 2)
    part = np.broadcast_to(np.arange(30)[:, None, None], right.shape)
    both = score(_decided(right, part), UNCALIBRATED)
    one = score(_decided(right, part * 2 + np.arange(2)[None, :, None]), UNCALIBRATED)
    assert both.balanced_accuracy == one.balanced_accuracy == np.mean(~hard)
    assert both.high - both.low == pytest.approx((one.high - one.low) * np.sqrt(2))
    assert [(c.low, c.high) for c in both.classes] == [(c.low, c.high) for c in one.classes]


def test_the_interval_covers_new_parts_that_are_hard_as_a_whole() -> None:
    """Without what parts have in common 84 % of the intervals hold what as many new parts show."""
    rng = np.random.default_rng(0)
    part = np.broadcast_to(np.arange(6)[:, None, None], (6, 4, 2))

    def draw() -> npt.NDArray[np.bool_]:
        easy = 1 / (1 + np.exp(-1 - 2 * rng.normal(size=(6, 1, 1))))
        return np.asarray(rng.random((6, 4, 2)) < easy)

    shown = [(score(_decided(draw(), part), UNCALIBRATED), float(draw().mean())) for _ in range(300)]
    assert np.mean([found.low <= new <= found.high for found, new in shown]) > 0.92


def test_one_part_that_shows_all_classes_says_little() -> None:
    right, part = np.ones((1, 2, 2), bool), np.zeros((1, 2, 2), np.int64)
    both = score(_decided(right, part), UNCALIBRATED)
    one = score(_decided(right, part + np.arange(2)[None, :, None]), UNCALIBRATED)
    assert both.high == one.high == 1
    assert 1 - both.low == pytest.approx((1 - one.low) * np.sqrt(2))


@pytest.mark.parametrize(("k", "g"), [(2, 2), (2, 3), (6, 2), (6, 4)])
def test_the_interval_covers_new_parts_where_few_were_seen(k: int, g: int) -> None:
    """Half the parts are told rightly. With half widths around the mean alone 70 to 92 % held the new share."""
    rng, part = np.random.default_rng(0), np.arange(g * k).reshape(g, k, 1)

    def draw() -> npt.NDArray[np.bool_]:
        return np.asarray(rng.random((g, k, 1)) < 0.5)

    shown = [(score(_decided(draw(), part), UNCALIBRATED), float(draw().mean())) for _ in range(300)]
    inside = np.mean([found.low - 1e-9 <= new <= found.high + 1e-9 for found, new in shown])
    assert inside > 0.9


def test_few_parts_that_were_all_right_promise_little() -> None:
    """Each class's interval reaches down to nothing; the mean's did to 58 % only."""
    found = score(_decided(np.ones((1, 2, 1), bool), np.arange(2).reshape(1, 2, 1)), UNCALIBRATED)
    assert [c.low for c in found.classes] == pytest.approx([0, 0], abs=0.01)
    assert found.low == pytest.approx(1 - np.sqrt(2) / 2, abs=0.01)
    assert found.high == 1


@pytest.mark.parametrize("right", [[True] * 6, [True] * 4 + [False] * 2])
def test_one_class_has_one_interval(right: list[bool]) -> None:
    found = score(_decided(np.array(right).reshape(6, 1, 1), np.arange(6).reshape(6, 1, 1)), UNCALIBRATED)
    assert (found.classes[0].low, found.classes[0].high) == (found.low, found.high)


def test_only_scores_the_asked_rows_but_learns_from_all() -> None:
    codes, ids, groups = clusters({A: 14, B: 9, C: 7})
    rows = np.arange(30) % 2 == 0
    part = leave_one_group_out(codes, ids, groups, only=rows)
    whole = leave_one_group_out(codes, ids, groups)
    np.testing.assert_allclose(part.scores, whole.scores[rows], atol=1e-12)


@pytest.mark.parametrize("counts", [{A: 14, B: 9, C: 7}, {A: 14, B: 9, C: 3}])
def test_samples_known_by_their_sums_are_learned_from_and_not_scored(counts: dict[bytes, int]) -> None:
    """A class may be among the sums only, as C is in the second case."""
    codes, ids, groups = clusters(counts, per_group=3)
    summed = np.isin(groups, sorted(set(groups))[::2])
    learned = moments_of(codes, ids)
    before = learned.digest()
    left = leave_one_group_out(
        codes[~summed], list(compress(ids, ~summed)), list(compress(groups, ~summed)), learned=learned
    )
    whole = leave_one_group_out(codes, ids, groups)
    assert left.class_ids == whole.class_ids
    np.testing.assert_allclose(left.scores, whole.scores[~summed], atol=1e-9)
    np.testing.assert_array_equal(left.orphan, whole.orphan[~summed])
    assert (left.summed, score(left, UNCALIBRATED).summed) == (summed.sum(), summed.sum())
    assert learned.digest() == before


def test_groups_are_scored_in_one_go_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several sizes, of several classes, and one that is all there is of a class."""
    codes, ids, _ = clusters({A: 30, B: 30, C: 2})
    order = [*np.random.default_rng(1).permutation(60).tolist(), 60, 61]
    codes, ids = codes[order], [ids[i] for i in order]
    groups = [f"{size}-{number}" for number in range(4) for size in range(1, 6) for _ in range(size)] + ["C", "C"]
    sizes = set(Counter(groups).values())
    calls: list[int] = []

    def count(*_: object) -> bool:
        calls.append(1)
        return False

    monkeypatch.setattr(score_module, "_STACK_BYTES", 1)
    one_by_one = leave_one_group_out(codes, ids, groups, stop=count)
    assert len(calls) == len(set(groups))
    monkeypatch.undo()
    calls.clear()
    at_once = leave_one_group_out(codes, ids, groups, stop=count)
    assert len(calls) <= 2 * len(sizes)
    np.testing.assert_allclose(at_once.scores, one_by_one.scores, rtol=0, atol=1e-12)
    np.testing.assert_allclose(at_once.novelty, one_by_one.novelty, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(at_once.orphan, np.equal(ids, C))


def test_one_group_is_scored_against_sums_of_others() -> None:
    codes, ids, groups = clusters({A: 12, B: 12}, per_group=24)
    left = leave_one_group_out(codes[:4], ids[:4], groups[:4], learned=moments_of(codes, ids))
    assert len(left.truth) == 4


def test_scoring_what_was_not_learned_is_refused() -> None:
    codes, ids, groups = clusters({A: 4, B: 4})
    with pytest.raises(HeadError, match="not learned"):
        leave_one_group_out(codes, ids, groups, learned=moments_of(codes[1:], ids[1:]))


def test_scoring_holds_few_samples_in_memory_at_a_time() -> None:
    """All 20,000 projected would take 20.5 MB; with 2048 at a time it is the same scores from a third of it."""
    codes, ids, groups = clusters({A: 10_000, B: 10_000}, d=128, per_group=50)
    tracemalloc.start()
    leave_one_group_out(codes, ids, groups)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 9e6


@pytest.mark.parametrize("weight", [1, 3])
def test_a_large_group_is_left_out_within_memory_of_the_scatter(weight: int) -> None:
    """The Gram matrix of 4,000 samples that are left out together would take 128 MB, several times."""
    codes, ids, groups = clusters({A: 4_000, B: 2_000}, d=48, per_group=50)
    groups[:4_000] = ["all of one day"] * 4_000
    own, adaptation = np.arange(6_000) < 5_000, Adaptation(weight)
    tracemalloc.start()
    left = leave_one_group_out(codes, ids, groups, own=own, adaptation=adaptation)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 9e6
    assert left.orphan[:4_000].all()
    assert not left.orphan[4_000:].any()


def test_groups_just_below_and_above_the_bound_are_scored_alike() -> None:
    """Twelve of d = 24 go one way and thirteen another: a copy of one sample more changes little."""
    codes, ids, groups = clusters({A: 30, B: 30}, per_group=12)
    more = np.concatenate([codes, codes[:1]])
    one = leave_one_group_out(codes, ids, groups)
    other = leave_one_group_out(more, [*ids, A], [*groups, groups[0]])
    assert abs(one.scores[:12] - other.scores[:12]).max() < 0.01


def test_a_head_of_moments_that_nobody_needs_any_more_is_the_same() -> None:
    codes, ids, _ = clusters({A: 30, B: 20})
    moments = moments_of(codes, ids)
    expected = solve(moments).scores(codes)
    assert moments == moments_of(codes, ids)
    assert np.array_equal(solve(moments, overwrite=True).scores(codes), expected)


def test_learning_holds_few_samples_in_memory_at_a_time() -> None:
    """20,000 codes of one class as 64-bit integers would take 20.5 MB."""
    codes = random_codes(20_000, 128)
    moments = Moments(128)
    tracemalloc.start()
    moments.add(codes, [A] * len(codes))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4e6
    assert np.array_equal(moments.per_class(same)[2][0], codes.astype(np.int64).sum(0))


def test_one_group_cannot_be_scored() -> None:
    codes, ids, _ = clusters({A: 4, B: 4})
    with pytest.raises(HeadError, match="two groups"):
        leave_one_group_out(codes, ids, ["same"] * 8)


def test_scoring_stops_when_asked() -> None:
    codes, ids, groups = clusters({A: 4, B: 4})
    with pytest.raises(InterruptedError):
        leave_one_group_out(codes, ids, groups, stop=lambda: True)


# Calibration and score


def test_the_threshold_keeps_its_false_alarm_rate_on_new_samples() -> None:
    codes, ids, groups = clusters({A: 400, B: 400, C: 400}, d=16, spread=20)
    half = np.arange(1200) % 2 == 0
    train = [i for i in range(1200) if half[i]]
    left = leave_one_group_out(codes[half], [ids[i] for i in train], [groups[i] for i in train])
    head = solve(moments_of(codes[half], [ids[i] for i in train]), calibration=calibrate(left, 0.1))
    # 600 draws: a 10 % rate has a standard error of 1.2 points, twice (threshold and test) 1.7.
    assert abs(head.decide(codes[~half]).unknown.mean() - 0.1) < 0.05


def novelties(values: npt.ArrayLike, groups: npt.ArrayLike) -> LeftOut:
    novelty = np.asarray(values, np.float64)
    n = len(novelty)
    scores = np.tile([1.0, 0.0], (n, 1))
    return LeftOut((A, B), np.zeros(n, np.int64), np.asarray(groups), scores, novelty, np.zeros(n, bool))


def test_a_new_part_is_called_unknown_at_most_at_the_stated_rate() -> None:
    """Parts are alike but for chance: on average over reference sets and new parts, the promise holds."""
    rng = np.random.default_rng(2)
    above = []
    for _ in range(300):
        parts, new = rng.normal(size=60), rng.normal(size=50)
        found = novelties(np.repeat(parts, 3) + rng.normal(0, 0.1, 180), np.repeat(np.arange(60), 3))
        above.append((new > calibrate(found, 0.05).novelty_threshold).mean())
    assert 0.03 < np.mean(above) <= 0.055


def test_many_pictures_of_one_part_do_not_move_the_threshold() -> None:
    alone = novelties(np.arange(100.0), np.arange(100))
    often = novelties([*np.arange(100.0), *[99.0] * 50], [*range(100), *[99] * 50])
    assert calibrate(alone, 0.05).novelty_threshold == calibrate(often, 0.05).novelty_threshold == 95.0


@pytest.mark.parametrize("groups", [2, 10, 18])
def test_too_few_groups_for_the_rate_call_nothing_unknown_that_was_seen(groups: int) -> None:
    found = novelties(np.arange(float(groups)), np.arange(groups))
    assert calibrate(found, 0.05).novelty_threshold == groups - 1


def test_what_is_like_no_class_may_be_any() -> None:
    p = probabilities_of(np.array([[1.0, 0.0, -np.inf], [-0.8, -0.9, -np.inf], [0.2, 0.2, 0.2]]), 20.0)
    np.testing.assert_allclose(p.sum(1), 1)
    assert p[0, 0] > 0.99
    assert abs(p[1, 0] - 0.5) < 1e-6, "the larger of two bad scores says nothing"
    assert (p[:2, 2] == 0).all(), "a class that is not there has no share"
    np.testing.assert_allclose(p[2], 1 / 3)


def test_an_odd_first_label_is_not_taken_for_a_far_class() -> None:
    """Of a class's first label, half is noise: the direction is corrected to about the length of the others."""
    codes, ids, _ = clusters({A: 60, B: 60, C: 60}, d=64, spread=25.0, seed=4)
    first = ids.index(C)
    keep = [i for i in range(180) if ids[i] != C]
    odd = np.clip(codes[first] + np.random.default_rng(1).normal(0, 45, 64), -127, 127).astype(np.int8)
    head = solve(moments_of(np.vstack([codes[keep], odd]), [*(ids[i] for i in keep), C]))
    shown = head.decide(codes).class_index
    assert (shown[120:] == 2).mean() > 0.8
    assert (shown[:120] < 2).mean() > 0.9


def test_a_class_seen_in_one_group_is_reported_apart() -> None:
    codes, ids, groups = clusters({A: 20, B: 20, C: 3})
    groups[-3:] = ["c", "c", "c"]
    result = score(leave_one_group_out(codes, ids, groups), UNCALIBRATED)
    assert result.one_group == (C,)
    assert result.balanced_accuracy is not None
    assert result.balanced_accuracy > 0.9
    assert (result.samples, result.groups, result.unjudged) == (40, 40, 3)


def test_nothing_is_known_where_no_class_has_two_groups() -> None:
    codes, ids, _ = clusters({A: 3, B: 4})
    result = score(leave_one_group_out(codes, ids, [class_id.hex() for class_id in ids]), UNCALIBRATED)
    assert (result.balanced_accuracy, result.low, result.high) == (None, 0, 1)
    assert (result.samples, result.groups, result.unjudged) == (0, 0, 7)


def test_intervals_count_groups_not_images() -> None:
    right = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1] * 4)
    scores = np.stack([1.0 - right, right], 1)
    truth = np.ones(40, np.int64)
    novelty, orphan = np.zeros(40), np.zeros(40, bool)
    images = LeftOut((A, B), truth, np.arange(40), scores, novelty, orphan)
    parts = LeftOut((A, B), truth, np.arange(40) // 5, scores, novelty, orphan)
    by_image, by_part = (score(x, UNCALIBRATED).classes[0] for x in (images, parts))
    assert by_image.recall == by_part.recall == 0.5
    assert by_part.high - by_part.low > 1.8 * (by_image.high - by_image.low)


# The trial


def left_out(right: dict[bytes, float], *, n: int = 40) -> LeftOut:
    """n samples a class in groups of their own, of which this share is decided right."""
    ids = tuple(sorted(right))
    truth = np.repeat(np.arange(len(ids)), n)
    scores = np.zeros((len(truth), len(ids)))
    for i, c in enumerate(ids):
        shown = np.where(np.arange(n) < round(right[c] * n), i, (i + 1) % len(ids))
        scores[np.arange(i * n, (i + 1) * n), shown] = 1
    samples = tuple(ids[c] + bytes([i % n]) for i, c in enumerate(truth))
    return LeftOut(
        ids, truth, np.arange(len(truth)), scores, np.zeros(len(truth)), np.zeros(len(truth), bool), samples
    )


OPEN = Calibration(temperature=1.0, novelty_threshold=1.0)


@pytest.mark.parametrize(
    ("before", "after", "keep", "words"),
    [
        (None, {A: 0.5, B: 0.5}, True, "first head"),
        ({A: 0.9, B: 0.9}, {A: 0.9, B: 0.9}, True, "as good as before"),
        ({A: 0.9, B: 0.9}, {A: 0.95, B: 0.95}, True, "better"),
        ({A: 0.98}, {A: 0.85, B: 0.9}, True, "tells a from other classes; a itself is recognised 85% of the time"),
        ({A: 0.9, B: 0.9}, {A: 0.9, B: 0.9, C: 0.8}, True, "now also knows c (80%)"),
        (
            {A: 0.9, B: 0.9},
            {A: 0.9, B: 0.75, C: 0.9},
            True,
            "knows c (90%); the price is b, recognised 75% of the time (before: 90%)",
        ),
        ({A: 0.9, B: 0.9}, {A: 0.9, B: 0.9, C: 0.4}, True, "now also knows c (40%)"),
        (
            {A: 0.9, B: 0.9},
            {A: 0.9, B: 0.9, C: 0.0},
            True,
            "Known classes are as good as before. Not recognised yet: c (0%); more labels are needed.",
        ),
        (
            {A: 0.9, B: 0.9},
            {A: 0.9, B: 0.75, C: 0.9, D: 0.1},
            True,
            "the price is b, recognised 75% of the time (before: 90%). Not recognised yet: d (10%);",
        ),
        (
            {A: 1.0, B: 1.0, D: 1.0},
            {A: 1.0, B: 0.9, D: 1.0, C: 0.0, E: 0.05},
            True,
            "b is recognised 90% of the time (before: 100%). Not recognised yet: c (0%) and e (5%);",
        ),
        (
            {A: 0.9, B: 0.9},
            {A: 0.9, B: 0.6, C: 1.0},
            False,
            "b would be recognised only 60% of the time (before: 90%)",
        ),
        ({A: 0.9, B: 0.9}, {A: 0.8, B: 0.7, C: 0.2}, False, "Taken back: b"),
        ({A: 1.0, B: 1.0}, {A: 0.9, B: 0.9}, False, "Taken back"),
    ],
)
def test_the_trial_takes_back_what_costs_known_classes(
    before: dict[bytes, float] | None, after: dict[bytes, float], keep: bool, words: str
) -> None:
    old = None if before is None else (left_out(before), OPEN)
    verdict = trial(old, (left_out(after), OPEN), names=lambda c: c.decode()[0])
    assert verdict.keep is keep
    assert words in verdict.reason


def test_a_head_that_knew_classes_it_was_not_scored_on_is_compared_all_the_same() -> None:
    """A fine-tuned release whose defects all trained the backbone: scores are of its good parts only."""
    before, after = (left_out({A: share, B: 1.0, C: 1.0}).chosen(np.arange(120) < 40) for share in (1.0, 0.3))
    assert before.class_ids == (A, B, C)
    verdict = trial((before, OPEN), (after, OPEN), names=lambda c: c.decode()[0])
    assert not verdict.keep
    assert "a would be recognised only 30% of the time" in verdict.reason


def test_a_hard_new_sample_does_not_count_against_the_head_that_learned_it() -> None:
    """Two labels of a new class, both right; then two harder ones that are wrong when left out."""
    two, four = left_out({A: 0.9, B: 0.9, C: 1.0}, n=2), left_out({A: 0.9, B: 0.9, C: 0.5}, n=4)
    verdict = trial((two, OPEN), (four, OPEN), names=lambda c: c.decode()[0])
    assert verdict.keep


def test_two_groups_that_change_sides_are_no_evidence() -> None:
    verdict = trial(
        (left_out({A: 1.0, B: 1.0}, n=20), OPEN), (left_out({A: 1.0, B: 0.9}, n=20), OPEN), names=lambda _: "x"
    )
    assert verdict.keep


def test_knobs_are_part_of_the_head() -> None:
    codes, ids, _ = clusters({A: 9, B: 9})
    head = solve(moments_of(codes, ids), knobs=Knobs(rho=2.0))
    assert head.knobs.rho == 2.0
    assert not np.allclose(head.scores(codes), solve(moments_of(codes, ids)).scores(codes), atol=1e-3)


# Intervals and temperature count groups, and say what new groups will show


def test_the_interval_holds_for_as_many_new_groups() -> None:
    """Parts of one class, half of them of wholly alike images: the share of twelve others lies inside, mostly."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 4)
    inside = narrow = 0
    for _ in range(400):
        parts, others = (np.repeat(rng.random(12) < 0.75, 4) for _ in range(2))
        _, low, high = share(parts, groups, repeats=2.0)
        inside += bool(low <= others.mean() <= high)
        _, low, high = share(parts, groups)
        narrow += bool(low <= others.mean() <= high)
    assert inside >= 0.95 * 400
    assert narrow < inside


def test_a_score_states_the_interval_of_new_groups() -> None:
    codes, ids, groups = clusters({A: 60, B: 60}, spread=60.0, per_group=3)
    found = leave_one_group_out(codes, ids, groups)
    right = (found.scores.argmax(1) == found.truth)[found.truth == 0]
    of_class = found.groups[found.truth == 0]
    shown = score(found, OPEN, unknown_is_miss=False).classes[0]
    assert (shown.recall, shown.low, shown.high) == share(right, of_class, repeats=2.0)
    assert shown.low < share(right, of_class)[1]


def test_more_pictures_of_one_part_do_not_move_the_temperature() -> None:
    codes, ids, groups = clusters({A: 40, B: 40}, spread=60.0)
    found = leave_one_group_out(codes, ids, groups)
    rows = np.concatenate(
        [np.arange(80), np.repeat(np.flatnonzero(found.scores.argmax(1) != found.truth)[:1], 30)]
    )
    assert len(rows) == 110
    repeated = LeftOut(
        found.class_ids, found.truth[rows], found.groups[rows], found.scores[rows], found.novelty[rows],
        found.orphan[rows],
    )  # fmt: skip
    assert calibrate(repeated).temperature == pytest.approx(calibrate(found).temperature, rel=1e-3)


def test_samples_that_are_all_right_do_not_make_it_certain() -> None:
    truth = np.repeat([0, 1], 20)
    found = LeftOut((A, B), truth, np.arange(40), np.eye(2)[truth], np.zeros(40), np.zeros(40, bool))
    assert 1 < calibrate(found).temperature < 20


def test_few_samples_are_shrunk_more_than_many_and_the_more_numbers_a_code_has() -> None:
    assert shrinkage(1.0, 1280, 30) > shrinkage(1.0, 1280, 3000) > 1.0
    assert shrinkage(1.0, 1280, 30) > shrinkage(1.0, 128, 30)
    assert shrinkage(2.0, 1280, 640) == pytest.approx(2.4)


@pytest.mark.parametrize("d", [16, 96, 100, 256, 384, 1280, 1584])
def test_one_code_is_decided_as_among_many(d: int) -> None:
    """One alone reads the factor in strips, the last of them narrower; sizes that do not divide (100), whole."""
    codes = random_codes(40, d)
    moments = Moments(d)
    moments.add(codes, [A, B] * 20)
    head = solve(moments)
    together, novelty = head.scores(codes), head.novelty(codes)
    for i in range(3):
        np.testing.assert_allclose(head.scores(codes[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)
        assert head.novelty(codes[i : i + 1])[0] == pytest.approx(novelty[i], rel=1e-5, abs=1e-6)
