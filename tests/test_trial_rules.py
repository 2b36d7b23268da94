"""What a trial compares, and under which names: labels that all came at once, and classes that were made one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_agent.trial import Base, _judged, judge
from sdk.bundle import BaseSamples, Bundle
from sdk.codes import Codes
from sdk.head import Calibration
from sdk.score import LeftOut, calibrate, leave_one_group_out
from tests.test_head import A, B, C, clusters
from tests.tiny import tiny_bundle

CODES, TRUE, GROUPS = clusters({A: 60, B: 60, C: 60})
SAMPLES = [bytes([i]) * 32 for i in range(len(TRUE))]
RELEASE = [i for i in range(len(TRUE)) if i % 3 == 0]
NAMES = {A: "a", B: "b", C: "c"}


def scored(rows: list[int], said: dict[int, bytes] | None = None) -> tuple[LeftOut, Calibration]:
    """Return left-out scores of these samples, some of them labelled otherwise than they are."""
    labels = [(said or {}).get(i, TRUE[i]) for i in rows]
    codes: Codes = np.asarray(CODES[rows])
    left_out = leave_one_group_out(codes, labels, [GROUPS[i] for i in rows], samples=[SAMPLES[i] for i in rows])
    return left_out, calibrate(left_out)


def test_of_labels_that_all_came_at_once_it_is_said_what_everybodys_parts_say() -> None:
    """A station's own labels come first, and a release may be the one that errs. But that there was nothing to
    compare with was untrue."""
    burst = [i for i in range(len(TRUE)) if i not in RELEASE]
    wrong = {i: {A: B, B: C, C: A}[TRUE[i]] for i in burst}
    own = frozenset(SAMPLES[i] for i in burst)
    found = judge(scored(RELEASE), scored([*RELEASE, *burst], wrong), names=NAMES.__getitem__, own=own)
    assert (found.keep, found.why.code) == (True, "own-alone")
    assert found.why.share < found.why.before - 0.2
    assert f"new parts of {found.why.name} would be recognised" in found.why.sentence()
    right = judge(scored(RELEASE), scored([*RELEASE, *burst]), names=NAMES.__getitem__, own=own)
    assert right.keep
    assert right.why.code in ("better", "as-good")


def burst_of(*shown: bytes, said: dict[bytes, bytes]) -> tuple[frozenset[bytes], tuple[LeftOut, Calibration]]:
    """Return parts of these classes that a station labels in one go, and scores of the head that learned them."""
    rows = [i for i in range(len(TRUE)) if i not in RELEASE and TRUE[i] in shown]
    labels = {i: said.get(TRUE[i], TRUE[i]) for i in rows}
    return frozenset(SAMPLES[i] for i in rows), scored([*RELEASE, *rows], labels)


def test_a_known_class_is_not_taken_for_a_new_one_where_a_station_labels_it_all_at_once() -> None:
    """None of its own samples were scored before, so it counted as new: with its recall for that of others."""
    own, after = burst_of(B, said={})
    right = judge(scored(RELEASE), after, names=NAMES.__getitem__, own=own)
    assert right.keep
    assert right.why.code in ("better", "as-good")
    own, after = burst_of(C, said={C: B})
    wrong = judge(scored(RELEASE), after, names=NAMES.__getitem__, own=own)
    assert (wrong.keep, wrong.why.code, wrong.why.name) == (False, "worse", "c")


def test_a_class_that_only_trained_the_backbone_is_known_and_not_new() -> None:
    before, calibration = scored(RELEASE)
    before = before.chosen(before.truth != before.class_ids.index(B))
    own, after = burst_of(C, said={C: B})
    wrong = judge((before, calibration), after, names=NAMES.__getitem__, own=own)
    assert (wrong.keep, wrong.why.code, wrong.why.name) == (False, "worse", "c")


@pytest.mark.parametrize("scored_before", [0, 2])
def test_beside_classes_that_everybody_judges_it_is_said_what_everybody_says_of_own_ones(
    scored_before: int,
) -> None:
    """Two classes are the station's own, one is not, and that is as good as before."""
    own, after = burst_of(B, C, said={B: C, C: B})
    older = [i for i in range(len(TRUE)) if SAMPLES[i] in own and TRUE[i] == B][:scored_before]
    before = scored([*RELEASE, *older], dict.fromkeys(older, C))
    found = judge(before, after, names=NAMES.__getitem__, own=own)
    assert (found.keep, found.why.code) == (True, "own-alone")
    assert found.why.name in ("b", "c")
    assert found.why.share < found.why.before - 0.2


def test_beside_a_new_class_it_is_said_what_everybody_says_of_own_ones() -> None:
    """That the others are as good as before would be untrue of them."""
    known = [i for i in RELEASE if TRUE[i] != C]
    own, _ = burst_of(B, C, said={})
    mine = [i for i in range(len(TRUE)) if SAMPLES[i] in own]
    after = scored([*known, *mine], {i: {B: C, C: B}[TRUE[i]] for i in mine})
    found = judge(scored(known), after, names=NAMES.__getitem__, own=own)
    assert (found.keep, found.why.code, found.why.name) == (True, "also-knows-price", "b")
    assert [name for name, _ in found.why.classes] == ["c"]
    assert [(each.code, each.name) for each in found.also] == [("own-alone", "b")]


def test_a_class_that_was_made_one_with_another_is_compared_and_not_taken_for_new() -> None:
    rows = list(range(len(TRUE)))
    before, (after, calibration) = scored(rows), scored(rows, {i: B for i in rows if TRUE[i] == C})

    def canonical(class_id: bytes) -> bytes:
        return B if class_id == C else class_id

    raw = judge(before, (after, calibration), names=NAMES.__getitem__)
    merged = judge(before, (after, calibration), names=NAMES.__getitem__, canonical=canonical)
    assert merged.why.code in ("better", "as-good")
    assert raw.keep
    one = before[0].merged(canonical)
    assert one.class_ids == (A, B)
    assert (one.truth[[i for i in rows if TRUE[i] == C]] == 1).all()
    assert one.scores[:, 1].tolist() == np.maximum(before[0].scores[:, 1], before[0].scores[:, 2]).tolist()
    # A sample of the one that was taken for the other was told rightly, as people speak now.
    assert (one.scores.argmax(1) == one.truth).sum() >= (before[0].scores.argmax(1) == before[0].truth).sum()


def test_a_class_is_not_judged_by_one_own_part() -> None:
    """Five own groups judge a class alone. Of these only one was scored before, and is told wrongly now."""
    burst = [i for i in range(len(TRUE)) if i not in RELEASE and TRUE[i] == A][:6]
    before, calibration = scored([*RELEASE, burst[0]])
    after, _ = scored([*RELEASE, *burst])
    row, a, b = after.samples.index(SAMPLES[burst[0]]), after.class_ids.index(A), after.class_ids.index(B)
    scores = after.scores.copy()
    scores[row, [a, b]] = scores[row, [b, a]]
    own = frozenset(SAMPLES[i] for i in burst)
    rows, alone = _judged(before, replace(after, scores=scores), own)
    assert alone
    assert rows == {SAMPLES[i] for i in RELEASE if TRUE[i] != A}
    worse = replace(after, scores=scores), calibration
    assert judge((before, calibration), worse, names=NAMES.__getitem__, own=own).keep
    scored_before, _ = scored([*RELEASE, *burst])
    rows, alone = _judged(scored_before, after, own)
    assert not alone
    assert rows == own | {SAMPLES[i] for i in RELEASE if TRUE[i] != A}


class Grouped(Bundle):
    """A bundle with groups of other names, in which each part shows twice."""

    def __init__(self, bundle: Bundle, group: str) -> None:
        super().__init__(bundle.path, bundle.manifest)
        self._group = group

    def base(self, precision: str | None = None) -> BaseSamples:
        """Return its samples."""
        base = super().base(precision)
        return replace(base, groups=[self._group.format(row) for row in range(len(base.groups))])


def test_a_device_leaves_out_the_groups_that_its_release_names(tmp_path: Path) -> None:
    """Joined by codes they would be calibrated on fewer and stranger parts than the release was, from the first
    label on, and fewer of the unknown ones be noticed."""
    bundle = tiny_bundle(tmp_path / "bundle")
    named, unnamed = (Base.of(Grouped(bundle, group), None) for group in ("part {}", "good/{}.png"))
    live = named.fold.live_set()
    assert named.settled == set(live.groups)
    assert unnamed.settled == frozenset()
    first = {class_id: live.class_ids.index(class_id) for class_id in live.class_ids}
    codes = np.array(live.codes[np.arange(len(live.samples))])
    for class_id, row in first.items():
        codes[max(i for i, other in enumerate(live.class_ids) if other == class_id)] = codes[row]
    scored = [
        base.left_out(replace(live, groups=groups, codes=codes), lambda: False)
        for base, groups in ((named, live.groups), (unnamed, unnamed.fold.live_set().groups))
    ]
    kept, joined = (0 if each is None else len(np.unique(each.groups)) for each in scored)
    assert kept == len(live.samples)
    assert joined < kept
