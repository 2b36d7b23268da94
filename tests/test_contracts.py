"""Every head-like class against one contract, and the contract against heads that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from sdk.head import Calibration, Head, Knobs, solve
from sdk.moments import Adaptation, Moments
from sdk.score import calibrate, leave_one_group_out
from tests.contracts import check_head, check_scorer
from tests.test_head import A, B, C, clusters, moments_of

Codes = npt.NDArray[np.int8]

CODES, IDS, GROUPS = clusters({A: 14, B: 10, C: 6})
PROBE = np.concatenate([CODES[::3], np.random.default_rng(5).integers(-127, 128, (8, CODES.shape[1]), np.int8)])


def of(*classes: bytes) -> Moments:
    rows = [i for i, c in enumerate(IDS) if c in classes]
    return moments_of(CODES[rows], [IDS[i] for i in rows])


def solved() -> Head:
    return solve(of(A, B, C))


def adapted(adaptation: Adaptation) -> Head:
    own = moments_of(CODES[:6], IDS[:6])
    return solve(of(A, B, C), own=own, adaptation=adaptation)


def labelled_in_turn() -> Head:
    """Three labels, one of a class that is new, and one withdrawn."""
    head = solve(of(A, B))
    for row in (25, 26, 3):
        head = head.with_sample(CODES[row], IDS[row])
    return head.without_sample(CODES[3], IDS[3])


HEADS: dict[str, Callable[[], Head]] = {
    "solved": solved,
    "calibrated": lambda: solved().recalibrated(calibrate(leave_one_group_out(CODES, IDS, GROUPS))),
    "two classes": lambda: solve(of(A, B)),
    "one class": lambda: solve(of(A)),
    "one sample": lambda: solve(moments_of(CODES[:1], IDS[:1])),
    "each class one sample": lambda: solve(moments_of(CODES[[0, 14, 24]], [A, B, C])),
    "a class of one label": lambda: solve(moments_of(CODES[:25], IDS[:25])),
    "the first defect": lambda: solve(of(A)).with_sample(CODES[14], B),
    "merged": lambda: solve(of(A, B, C), canonical=lambda c: A if c == B else c),
    "other knobs": lambda: solve(of(A, B, C), knobs=Knobs(rho=3.0, centre_damping=1e9, lift_floor=1.0)),
    "updated": labelled_in_turn,
    "a class gone": lambda: solve(moments_of(CODES[:25], IDS[:25])).without_sample(CODES[24], C),
    "own labels weigh more": lambda: adapted(Adaptation(own_weight=4)),
    "shifted": lambda: adapted(Adaptation(shift=(3,) * CODES.shape[1])),
    "copies only": lambda: solve(moments_of(np.repeat(CODES[[0, 14]], 5, 0), [A] * 5 + [B] * 5)),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_keeps_the_contract(name: str) -> None:
    check_head(HEADS[name](), PROBE)


def test_a_rival_keeps_what_holds_for_anything_that_scores() -> None:
    pytest.importorskip("sklearn", reason="needs the dev extra")
    from benchmarks.learners import PLAIN, Logistic, Ours, Ridge

    labels = np.array([(A, B, C).index(c) for c in IDS], np.int64)
    groups = np.array(GROUPS)
    for learner in (Ours(), Ours("plain", PLAIN), Ridge(penalty=0.1), Logistic(C=10.0)):
        check_scorer(learner.fit(CODES, labels, groups, 4), PROBE, 4)  # the fourth class has no sample


@dataclass(frozen=True)
class Broken:
    """Scores that break one line of the contract."""

    head: Head
    how: str

    def scores(self, codes: Codes) -> npt.NDArray[np.float64]:
        found = self.head.scores(codes)
        if self.how == "depends on the batch":
            return np.asarray(found - found.mean(0))
        if self.how == "depends on the place":
            return found + 0.01 * np.arange(len(codes))[:, None]
        if self.how == "not a number":
            return np.where(found == found.max(), np.nan, found)
        if self.how == "a column less":
            return found[:, 1:]
        if self.how == "changes its input":
            codes[0, 0] ^= 1
            return found
        return np.full_like(found, -np.inf)


@pytest.mark.parametrize(
    "how",
    [
        "depends on the batch",
        "depends on the place",
        "not a number",
        "a column less",
        "changes its input",
        "nothing possible",
    ],
)
def test_the_contract_finds_what_breaks_it(how: str) -> None:
    with pytest.raises(AssertionError):
        check_scorer(Broken(solved(), how), PROBE.copy(), 3)


def test_the_contract_finds_a_head_with_columns_out_of_order() -> None:
    head = solved()
    object.__setattr__(head, "class_ids", head.class_ids[::-1])
    with pytest.raises(AssertionError):
        check_head(head, PROBE)


def test_the_contract_finds_a_threshold_that_is_not_kept() -> None:
    class Deaf(Head):
        def recalibrated(self, calibration: Calibration) -> Head:  # noqa: ARG002
            return self

    head = solved()
    deaf = Deaf(**{name: getattr(head, name) for name in Head.__dataclass_fields__})
    with pytest.raises(AssertionError):
        check_head(deaf, PROBE)
