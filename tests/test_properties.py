"""The algebra that docs/head.md and docs/labels.md claim, for any samples, groups, logs and merges.

Order, batches and withdrawal of moments are in test_head.py, any order and duplication of entries in
test_labels.py; a thousand long histories in test_interleavings.py.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.codes import encode, fit_scale
from sdk.errors import HeadError, HeadwayError
from sdk.head import Calibration, solve
from sdk.labels import Chain, CodeRecord, DefineClass, Fold, Label, MergeClasses, Record, RenameClass
from sdk.moments import Moments
from sdk.operating import operating_point
from sdk.score import LeftOut, calibrate, leave_one_group_out, score, share
from sdk.splits import Part, split
from sdk.verdict import trial
from tests.test_head import A, B, C, clusters, moments_of, reference, ridge_of
from tests.test_labels import CLASSES, SAMPLES, SPACE, D, folded, logs

Codes = npt.NDArray[np.int8]
CODES, IDS, _ = clusters({A: 12, B: 9, C: 7}, d=16)
Y = np.array([(A, B, C).index(c) for c in IDS])
PROBE = np.random.default_rng(5).integers(-100, 100, (9, 16)).astype(np.int8)


# Moments and the solve


@given(st.lists(st.tuples(st.sampled_from(range(28)), st.booleans()), max_size=40))
@settings(max_examples=50, deadline=None)
def test_adding_and_subtracting_are_inverse_whatever_is_between(steps: list[tuple[int, bool]]) -> None:
    moments, held = Moments(16), [0] * 28
    for row, add in steps:
        if add:
            moments.add(CODES[[row]], [IDS[row]])
        elif held[row]:
            moments.subtract(CODES[[row]], [IDS[row]])
        held[row] += 1 if add else -bool(held[row])
    rows = [row for row, times in enumerate(held) for _ in range(times)]
    assert moments == moments_of(CODES[rows], [IDS[i] for i in rows])


@given(st.lists(st.tuples(st.sampled_from(range(6)), st.sampled_from(range(6))), max_size=8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_merging_classes_is_labelling_them_as_one(merges: list[tuple[int, int]], random: object) -> None:
    """In any order, and the Gram matrix is not touched by it."""
    ids = [bytes([i]) * 16 for i in range(6)]
    of = [ids[i % 6] for i in range(28)]
    fold, other = Fold(SPACE, D), Fold(SPACE, D)
    written = []
    chain = Chain("a")
    for one, two in merges:
        chain, entry = chain.write(MergeClasses(ids[one], ids[two], "op"), counter=chain.seq + 1, wall_time_us=0)
        written.append(Record(entry))
    for record in written:
        fold.apply(record)
    random.shuffle(written)  # type: ignore[attr-defined]
    for record in written:
        other.apply(record)
    assert [fold.canonical(c) for c in ids] == [other.canonical(c) for c in ids]
    assert all(fold.canonical(fold.canonical(c)) == fold.canonical(c) <= c for c in ids)
    moments = moments_of(CODES, of)
    relabelled = moments_of(CODES, [fold.canonical(c) for c in of])
    assert (moments.gram == relabelled.gram).all()
    merged, plain = solve(moments, canonical=fold.canonical), solve(relabelled)
    assert merged.class_ids == plain.class_ids
    assert (merged.scores(PROBE) == plain.scores(PROBE)).all()


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 27)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_an_update_taken_back_is_the_head_from_before(given_labels: list[tuple[bytes, int]]) -> None:
    before = solve(moments_of(CODES[:21], IDS[:21]))
    head = before
    for class_id, row in given_labels:
        head = head.with_sample(CODES[row], class_id)
    for class_id, row in reversed(given_labels):
        head = head.without_sample(CODES[row], class_id)
    assert (head.class_ids, head.counts) == (before.class_ids, before.counts)
    # The rounding of float32 in up to twelve steps, as in test_head.
    np.testing.assert_allclose(head.scores(PROBE), before.scores(PROBE), atol=2e-4)


@given(st.permutations(range(28)))
@settings(max_examples=20, deadline=None)
def test_heads_of_one_set_are_bit_identical(order: list[int]) -> None:
    one, other = solve(moments_of(CODES, IDS)), solve(moments_of(CODES[order], [IDS[i] for i in order]))
    assert (one.scores(PROBE) == other.scores(PROBE)).all()
    assert one.counts == other.counts


@given(st.floats(0.01, 100.0))
@settings(max_examples=30, deadline=None)
def test_codes_do_not_depend_on_how_bright_the_features_are(factor: float) -> None:
    features = np.random.default_rng(2).gamma(1.0, 1.0, (6, 16)).astype(np.float32)
    scale = fit_scale(features)
    other = encode((factor * features).astype(np.float32), scale)
    # A value half way between two codes may round to either.
    assert np.abs(encode(features, scale).astype(int) - other).max() <= 1


# Leave-one-group-out


@given(st.lists(st.integers(0, 6), min_size=28, max_size=28))
@settings(max_examples=25, deadline=None)
def test_left_out_scores_are_a_refit_for_groups_of_several_classes(group_of: list[int]) -> None:
    groups = [f"g{g}" for g in group_of]
    if len(set(groups)) < 2:
        with pytest.raises(HeadError):
            leave_one_group_out(CODES, IDS, groups)
        return
    left = leave_one_group_out(CODES, IDS, groups)
    ridge, delta = ridge_of(CODES, Y), solve(moments_of(CODES, IDS)).delta
    for group in set(groups):
        out = np.array([g == group for g in groups])
        kept = np.unique(Y[~out])
        assert (left.orphan[out] == ~np.isin(Y[out], kept)).all()
        gone = [c for c in range(3) if c not in kept]
        assert (left.scores[out][:, gone] == -np.inf).all()
        if len(kept) < 2:
            continue
        expected, _ = reference(CODES[~out], Y[~out], CODES[out], ridge=ridge, delta=delta)
        assert np.abs(left.scores[out][:, kept] - expected).max() < 1e-9


@given(st.permutations(range(28)), st.lists(st.integers(0, 9), min_size=28, max_size=28))
@settings(max_examples=12, deadline=None)
def test_left_out_scores_do_not_depend_on_order_or_on_names_of_groups(
    order: list[int], group_of: list[int]
) -> None:
    groups = [f"g{g}" for g in group_of]
    if len(set(groups)) < 2:
        return
    left = leave_one_group_out(CODES, IDS, groups)
    mixed = leave_one_group_out(CODES[order], [IDS[i] for i in order], [f"x{9 - group_of[i]}" for i in order])
    same = np.isfinite(left.scores[order])
    assert (np.isfinite(mixed.scores) == same).all()
    assert np.abs(mixed.scores[same] - left.scores[order][same]).max() < 1e-9


# Calibration, score, trial, operating point


@st.composite
def left_outs(draw: st.DrawFn) -> LeftOut:
    """Left-out scores of two to four classes, some of them of one group, some samples orphans."""
    k, n = draw(st.integers(2, 4)), draw(st.integers(8, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    truth = np.sort(rng.integers(0, k, n))
    scores = rng.normal(0, 0.3, (n, k)) + draw(st.floats(0, 1)) * np.eye(k)[truth]
    groups = rng.integers(0, draw(st.integers(2, n)), n)
    orphan = np.array([not ((truth == y) & (groups != g)).any() for y, g in zip(truth, groups, strict=True)])
    ids = tuple(bytes([i + 1]) * 16 for i in range(k))
    samples = tuple(hashlib.sha256(bytes([i])).digest() for i in range(n))
    return LeftOut(ids, truth, groups, scores, 1 - scores.max(1), orphan, samples)


@given(left_outs(), st.floats(0, 0.5), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_a_higher_false_alarm_rate_never_raises_the_threshold(left: LeftOut, one: float, other: float) -> None:
    low, high = sorted((one, other))
    strict, loose = calibrate(left, high), calibrate(left, low)
    assert strict.novelty_threshold <= loose.novelty_threshold
    assert strict.temperature == loose.temperature
    known = ~left.orphan
    if known.any():
        weight = 1 / np.bincount(left.groups[known])[left.groups[known]]
        above = left.novelty[known] > strict.novelty_threshold
        assert (weight * above).sum() / weight.sum() <= high + 1e-9, "the rate is kept on what set it"


@given(left_outs(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_score_does_not_depend_on_order_and_lies_in_its_interval(left: LeftOut, random: object) -> None:
    order = list(range(len(left.truth)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = LeftOut(
        left.class_ids, left.truth[order], left.groups[order], left.scores[order], left.novelty[order],
        left.orphan[order], tuple(left.samples[i] for i in order),
    )  # fmt: skip
    found, again = score(left, calibrate(left)), score(mixed, calibrate(mixed))
    assert found.balanced_accuracy == pytest.approx(again.balanced_accuracy, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((again.low, again.high), abs=1e-9)
    for each in found.classes:
        assert 0 <= each.low <= each.recall <= each.high <= 1
    if found.balanced_accuracy is None:
        assert left.orphan.all(), "no class has two groups"
        assert (found.low, found.high) == (0, 1)
    else:
        assert 0 <= found.low <= found.balanced_accuracy <= found.high <= 1


@given(left_outs())
@settings(max_examples=40, deadline=None)
def test_more_repeats_and_copies_of_parts_never_narrow_a_share(left: LeftOut) -> None:
    right = left.scores.argmax(1) == left.truth
    _, low, high = share(right, left.groups)
    _, lower, higher = share(right, left.groups, repeats=2.0)
    # With less than a tenth of a draw the prior's tails are all there is, and move by next to nothing.
    assert lower <= low + 1e-3
    assert higher >= high - 1e-3
    _, l2, h2 = share(np.concatenate([right, right]), np.concatenate([left.groups, left.groups]))
    assert (l2, h2) == pytest.approx((low, high), abs=1e-9), "pictures taken twice are no evidence"


@given(left_outs())
@settings(max_examples=40, deadline=None)
def test_a_head_is_never_taken_back_for_being_as_it_was(left: LeftOut) -> None:
    calibration = calibrate(left)
    assert trial((left, calibration), (left, calibration), names=lambda c: c.hex()).keep


@given(left_outs(), st.floats(0, 0.9), st.floats(0, 0.9))
@settings(max_examples=40, deadline=None)
def test_a_stricter_escape_rate_never_lets_more_pass(left: LeftOut, one: float, other: float) -> None:
    low, high = sorted((one, other))
    good, calibration = [left.class_ids[0]], Calibration(10.0, 2.0)
    try:
        strict = operating_point(left, calibration, good, escape_rate=low)
        loose = operating_point(left, calibration, good, escape_rate=high)
    except HeadwayError:
        return  # no good part, or no defect, that can be judged
    assert strict.threshold <= loose.threshold
    assert strict.escapes.share <= loose.escapes.share + 1e-12
    assert strict.overkill.share >= loose.overkill.share - 1e-12


# The label log


@given(logs(), logs(), logs())
@settings(max_examples=60, deadline=None)
def test_union_is_commutative_associative_and_idempotent(
    a: list[Record], b: list[Record], c: list[Record]
) -> None:
    """Of what three fleets saw, their devices apart."""

    def by(prefix: str, records: list[Record]) -> list[Record]:
        chains: dict[str, Chain] = {}
        out = []
        for record in records:
            chain = chains.get(record.entry.device, Chain(f"{prefix}{record.entry.device}"))
            chain, entry = chain.write(record.entry.body, counter=record.entry.counter, wall_time_us=0)
            chains[record.entry.device] = chain
            out.append(Record(entry, record.code))
        return out

    def state(records: list[Record]) -> tuple[object, ...]:
        fold = folded(records)
        return fold.digest(), fold.class_names(), fold.counter, [row[:4] for row in fold.rows()]

    x, y, z = by("x", a), by("y", b), by("z", c)
    assert state(x + y) == state(y + x)
    assert state((x + y) + z) == state(x + (y + z)) == state(z + y + x)
    assert state(x + y + x + y) == state(x + y)


@given(logs(), st.data())
@settings(max_examples=60, deadline=None)
def test_erasing_codes_keeps_every_chain_and_takes_just_those_samples(
    records: list[Record], data: st.DataObject
) -> None:
    fold = folded(records)
    live = {row.sample: row.code.tobytes() for row in fold.rows()}
    gone = data.draw(st.sets(st.sampled_from(SAMPLES)))
    erased = [
        Record(r.entry, None) if isinstance(r.entry.body, CodeRecord) and r.entry.body.sample in gone else r
        for r in records
    ]
    chains: dict[str, Chain] = {}
    for record in erased:
        chains[record.entry.device] = chains.get(record.entry.device, Chain(record.entry.device)).follow(
            record.entry
        )
    left = {row.sample: row.code.tobytes() for row in folded(erased).rows()}
    assert left == {sample: code for sample, code in live.items() if sample not in gone}


@given(logs(), st.lists(st.tuples(st.sampled_from(CLASSES), st.text("ab", min_size=1, max_size=3)), max_size=5))
@settings(max_examples=60, deadline=None)
def test_names_change_neither_live_set_nor_moments(records: list[Record], names: list[tuple[bytes, str]]) -> None:
    chain, renamed = Chain("names"), list(records)
    for class_id, name in names:
        for body in (DefineClass(class_id, name, "op"), RenameClass(class_id, f"{name}!", "op")):
            chain, entry = chain.write(body, counter=10_000 + chain.seq, wall_time_us=0)
            renamed.append(Record(entry))
    one, other = folded(records), folded(renamed)
    assert one.digest() == other.digest()
    assert [row[:3] for row in one.rows()] == [row[:3] for row in other.rows()]
    for class_id, name in dict(names).items():
        root = other.canonical(class_id)
        if [other.canonical(c) for c, _ in names].count(root) == 1:
            assert other.class_names()[root] == f"{name}!"


@given(logs(), st.sampled_from(SAMPLES), st.sampled_from(CLASSES))
@settings(max_examples=60, deadline=None)
def test_withdrawing_a_label_is_as_if_it_had_never_been_given(
    records: list[Record], sample: bytes, class_id: bytes
) -> None:
    """A sample that nobody else labelled: label, then withdraw, and the live set is the one from before."""
    without = [r for r in records if not (isinstance(r.entry.body, Label) and r.entry.body.sample == sample)]
    chain, written = Chain("late"), []
    for label in (class_id, None):
        chain, entry = chain.write(Label(sample, label, "op"), counter=10_000 + chain.seq, wall_time_us=0)
        written.append(Record(entry))
    assert folded(without + written).digest() == folded(without).digest()


# The split


@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from(["good", "pit", "crack"])), min_size=1, max_size=60),
    st.integers(0, 5),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_a_split_divides_no_group_whatever_the_order(
    images: list[tuple[int, str]], seed: int, random: object
) -> None:
    def parts(of: list[tuple[int, str]]) -> dict[int, set[Part]]:
        found: dict[int, set[Part]] = {}
        for (group, _), part in zip(of, split([f"g{g}" for g, _ in of], [c for _, c in of], seed), strict=True):
            found.setdefault(group, set()).add(part)
        return found

    straight = parts(images)
    random.shuffle(images)  # type: ignore[attr-defined]
    assert straight == parts(images)
    assert all(len(part) == 1 for part in straight.values())
