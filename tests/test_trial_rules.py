"""What a trial compares, and under which names: labels that all came at once, and classes that were made one."""

from __future__ import annotations

import numpy as np

from device_agent.trial import judge
from sdk.codes import Codes
from sdk.head import Calibration
from sdk.score import LeftOut, calibrate, leave_one_group_out
from tests.test_head import A, B, C, clusters

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
    assert f"By everybody else's parts {found.why.name} is recognised only" in found.why.sentence()
    right = judge(scored(RELEASE), scored([*RELEASE, *burst]), names=NAMES.__getitem__, own=own)
    assert right.keep
    assert right.why.code in ("better", "as-good")


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
