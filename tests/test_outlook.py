"""What more labels would give: the curve is measured by real heads, honest on drawn sets, and says which class."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from sdk.errors import HeadError
from sdk.head import DEFAULT_KNOBS, solve
from sdk.moments import Moments
from sdk.outlook import HELP, MORE_ROUNDS, ROUNDS, Outlook, _Heads, _Misses, outlook
from tests.test_head import A, B, C

Codes = npt.NDArray[np.int8]
IDS = (A, B, C)
NAMES = {A: "good", B: "scratch", C: "pit"}


def surfaces(
    counts: tuple[int, ...], *, seed: int = 0, d: int = 40, spread: float = 20.0, near: float = 0.0
) -> tuple[Codes, list[bytes]]:
    """Codes of three classes; one world, drawn anew by each seed. The third is `near` the first, in [0, 1]."""
    centres = np.random.default_rng(77).normal(0, 9, (3, d))
    centres[2] += near * (centres[0] - centres[2])
    y = np.repeat([0, 1, 2], counts)
    noise = np.random.default_rng(seed).normal(0, spread, (len(y), d))
    return np.clip(np.rint(centres[y] + noise), -127, 127).astype(np.int8), [IDS[c] for c in y]


def looked(codes: Codes, ids: list[bytes], groups: list[str] | None = None, **more: float) -> Outlook:
    names = [f"part {i:03}" for i in range(len(ids))] if groups is None else groups
    return outlook(codes, ids, names, seed=0, budget_s=0.0, clock=time.monotonic, **more)  # type: ignore[arg-type]


def truth(codes: Codes, ids: list[bytes]) -> float:
    moments = Moments(codes.shape[1])
    moments.add(codes, ids)
    head = solve(moments)
    test, wanted = surfaces((400, 400, 400), seed=999)
    shown = np.array([head.class_ids[i] for i in head.decide(test).class_index], object)
    right = shown == np.array(wanted, object)
    return float(np.mean([right[i : i + 400].mean() for i in (0, 400, 800)]))


@pytest.mark.parametrize(
    ("n", "d"), [(30, 12), (12, 60)], ids=["more samples than numbers", "fewer samples than numbers"]
)
def test_heads_of_some_samples_decide_as_solved_heads_do(n: int, d: int) -> None:
    codes, ids = surfaces((n, n, 3), d=d)
    y = np.array([IDS.index(c) for c in ids])
    rng = np.random.default_rng(1)
    for learn in (0.2, 0.5, 0.9):
        learned = rng.random(len(y)) < learn
        learned[[0, n]] = True
        moments = Moments(d)
        moments.add(codes[learned], [c for c, of in zip(ids, learned, strict=True) if of])
        head = solve(moments)
        shown = np.array([IDS.index(head.class_ids[i]) for i in head.decide(codes[~learned]).class_index])
        assert (_Heads(codes).missed(y, learned, ~learned, DEFAULT_KNOBS) == (shown != y[~learned])).all()


def test_heads_without_scatter_decide_too() -> None:
    codes, _ = surfaces((1, 1, 1), d=60)
    learned = np.ones(3, bool)
    assert not _Heads(codes).missed(np.arange(3), learned, learned, DEFAULT_KNOBS).any()


def test_the_forecast_holds_for_twice_the_labels() -> None:
    inside = 0
    for seed in range(6):
        codes, ids = surfaces((16, 16, 16), seed=seed)
        half = [i for i in range(48) if i % 16 < 8]
        step = looked(codes[half], [ids[i] for i in half], false_alarm_rate=0.0).steps[3].balanced_accuracy
        inside += step.low <= truth(codes, ids) <= step.high
    assert inside >= 5


def test_more_labels_never_make_it_worse() -> None:
    found = looked(*surfaces((20, 12, 5)))
    shares = [found.balanced_accuracy.share, *(step.balanced_accuracy.share for step in found.steps[:3])]
    assert shares == sorted(shares)
    for i, each in enumerate(found.classes):
        assert 0 <= each.recall.low <= each.recall.share <= each.recall.high <= 1
        assert each.recall.share <= found.steps[0].recalls[i].share <= found.steps[2].recalls[i].share
        assert each.gain.low >= 0
    assert [step.added for step in found.steps] == [5, 10, 20, None, None]


def test_the_rare_hard_class_is_the_one_to_label() -> None:
    found = looked(*surfaces((60, 60, 4), near=0.7))
    assert found.helps_most().class_id == C
    said = found.sentence(NAMES.__getitem__)
    assert said.startswith(f"Label pit next: {HELP} more are worth about")
    assert "twice the labels of every class" in said


def test_where_all_is_right_more_labels_change_little() -> None:
    found = looked(*surfaces((60, 60, 60), spread=3.0))
    assert found.sentence(NAMES.__getitem__).startswith("10 more labels of any one class would change little: ")
    assert found.balanced_accuracy.high > 0.97
    assert found.few == ()


@pytest.mark.parametrize("few", [3, 1])
def test_a_class_of_few_parts_is_not_said_to_need_no_labels(few: int) -> None:
    """All are right however few they are; of three parts that says little."""
    found = looked(*surfaces((60, 60, few), spread=3.0))
    assert found.few == (C,)
    said = found.sentence(NAMES.__getitem__)
    assert said.startswith("Label pit first, of which there are fewer than 5 parts to judge by: too few to say")
    assert "would change little" not in said


def test_parts_that_cannot_judge_make_no_class_well_known() -> None:
    codes, ids = surfaces((60, 60, 60), spread=3.0)
    only = np.array([c != C or i % 20 == 0 for i, c in enumerate(ids)])
    found = outlook(codes, ids, [str(i) for i in range(180)], seed=0, budget_s=0, clock=time.monotonic, only=only)
    assert found.few == (C,)


def test_few_parts_leave_it_open() -> None:
    few, many = looked(*surfaces((4, 4, 4))), looked(*surfaces((40, 40, 40)))
    width = [x.balanced_accuracy.high - x.balanced_accuracy.low for x in (few, many)]
    assert width[0] > 2 * width[1]


def test_pictures_of_one_part_are_learned_or_judged_together() -> None:
    codes, ids = surfaces((30, 30, 30), spread=40.0)
    again, twice = np.concatenate([codes, codes]), ids + ids
    parts = [f"part {i % 90:03}" for i in range(180)]
    found, alone = looked(again, twice, parts), looked(again, twice)
    assert [each.groups for each in found.classes] == [30, 30, 30]
    assert alone.balanced_accuracy.share > found.balanced_accuracy.share + 0.1


def test_the_same_seed_gives_the_same_forecast() -> None:
    codes, ids = surfaces((12, 12, 12))
    assert looked(codes, ids) == looked(codes, ids)


@pytest.mark.parametrize("groups", ["parts", "mixed"])
def test_the_ids_of_the_classes_change_nothing(groups: str) -> None:
    """Every export draws them anew: who exports again must not see progress that is not there."""
    codes, ids = surfaces((14, 12, 9))
    # Mixed: all three classes are on the same five parts, so that only their codes tell them apart.
    names = [f"part {i % 5 if groups == 'mixed' else i:03}" for i in range(len(ids))]
    found = looked(codes, ids, names)
    for order in ((B, C, A), (C, A, B), (B, A, C)):
        other = dict(zip(IDS, order, strict=True))
        back = {theirs: ours for ours, theirs in other.items()}
        again = looked(codes, [other[c] for c in ids], names)
        assert (again.balanced_accuracy, again.steps) == (found.balanced_accuracy, found.steps)
        assert [replace(each, class_id=back[each.class_id]) for each in again.classes] == list(found.classes)
        assert back[again.helps_most().class_id] == found.helps_most().class_id


def test_a_new_part_is_dealt_out_among_the_others() -> None:
    """As in a split: what one more part does to a forecast is its own doing, not that of other divisions."""
    codes, ids = surfaces((12, 12, 12))
    groups = [f"part {i:03}" for i in range(36)]
    every = np.ones(36, bool)
    (_, few), (_, all_of) = (
        next(_Misses.of(codes[n:], ids[n:], groups[n:], every[n:]).divisions(0, 0)) for n in (1, 0)
    )
    assert (few != all_of[1:]).sum() <= 1


def test_few_groups_are_divided_more_often() -> None:
    rounds = []
    for count in (5, 20, 40):
        codes, ids = surfaces((count, count, count), d=8)
        found = outlook(codes, ids, [str(i) for i in range(len(ids))], seed=0, budget_s=1e9, clock=time.monotonic)
        rounds.append(found.heads // 11)
    assert rounds == [MORE_ROUNDS, ROUNDS, ROUNDS]


def test_a_class_of_one_part_is_named_apart() -> None:
    found = looked(*surfaces((20, 20, 1)))
    assert found.one_group == (C,)
    assert [each.class_id for each in found.classes] == [A, B]


def test_what_the_backbone_was_trained_on_judges_nothing() -> None:
    codes, ids = surfaces((20, 20, 20))
    only = np.array([c != C for c in ids])
    found = outlook(codes, ids, [str(i) for i in range(60)], seed=0, budget_s=0, clock=time.monotonic, only=only)
    assert found.one_group == (C,)


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 1), (2.5, 2), (1000.0, 8)])
def test_rounds_stop_before_the_budget(budget_s: float, rounds: int) -> None:
    """A clock by which each round of 11 heads lasts a second."""
    ticks = iter(range(1000))
    codes, ids = surfaces((6, 6, 6))
    names = [str(i) for i in range(18)]
    found = outlook(codes, ids, names, seed=0, budget_s=budget_s, clock=lambda: float(next(ticks)))
    assert found.heads == rounds * 11


@pytest.mark.parametrize(
    ("counts", "groups"),
    [((5, 0, 0), None), ((5, 1, 0), None), ((1, 1, 1), None), ((4, 4, 0), ["one"] * 8)],
    ids=["one class", "a class of one part", "one part each", "one group"],
)
def test_too_little_for_a_curve_is_refused(counts: tuple[int, ...], groups: list[str] | None) -> None:
    codes, ids = surfaces(counts)
    with pytest.raises(HeadError, match="two classes of two groups") as refused:
        looked(codes, ids, groups)
    assert "another group" in refused.value.hint


def test_it_stops_when_asked() -> None:
    codes, ids = surfaces((5, 5, 5))
    with pytest.raises(InterruptedError):
        outlook(
            codes, ids, [str(i) for i in range(15)], seed=0, budget_s=9, clock=time.monotonic, stop=lambda: True
        )
