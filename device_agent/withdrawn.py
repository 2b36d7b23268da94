"""What a person here has taken back of the head that was confirmed, and that head without it.

A trial may refuse a head, and the confirmed one then decides. It must not decide by a label that an operator or
engineer of this station has undone, corrected or rolled back since: so it goes on without these (decision 0052).
What comes from elsewhere is no such act. Another device's withdrawal, and a fleet's quarantine, are tried like any
label: labels that balance each other would else pass a trial together, and one half of them be withdrawn after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from device_agent.heads import Solved
from device_agent.heads_and_updates import HeadRow
from device_agent.trial import ALONE, Base, meanwhile
from sdk.head import solve
from sdk.liveset import LiveSet, without

Said = Iterable[tuple[bytes, bytes | None]]
"""Samples with the class that people here gave them; None for none."""


def taken_back_here(said: Said, confirmed: LiveSet, now: LiveSet) -> frozenset[bytes]:
    """Return the samples of a confirmed head that people here have given another class since, or none.

    Args:
        said: What they said since.
        confirmed: Live set of the head.
        now: All that is labelled now. What it says as the head has it was given again, and is not taken back.
    """

    def root(class_id: bytes | None) -> bytes | None:
        return None if class_id is None else now.merged.get(class_id, class_id)

    then = dict(zip(confirmed.samples, confirmed.class_ids, strict=True))
    otherwise = {sample for sample, class_id in said if sample in then and root(class_id) != root(then[sample])}
    if not otherwise:
        return frozenset()
    labelled = dict(zip(now.samples, now.class_ids, strict=True))
    return frozenset(sample for sample in otherwise if labelled.get(sample) != root(then[sample]))


def still_deciding(serving: LiveSet, now: LiveSet) -> int:
    """Return by how many labels a head decides that are not said any more.

    Args:
        serving: Live set of the head.
        now: All that is labelled now.
    """
    labelled = dict(zip(now.samples, now.class_ids, strict=True))
    then = zip(serving.samples, serving.class_ids, strict=True)
    return sum(labelled.get(sample) != now.merged.get(class_id, class_id) for sample, class_id in then)


def less(base: Base, confirmed: Solved, samples: frozenset[bytes]) -> LiveSet:
    """Return a confirmed head's live set less samples of it.

    Raises:
        StoreFull, StoreCorrupt: a code could not be read.
    """
    return without(confirmed.live, samples, base.fold.summed_rows())


def solved_less(base: Base, confirmed: Solved, live: LiveSet, row: HeadRow, device: str) -> Solved:
    """Return the head of `less`; own labels count in it as in the confirmed one. Cost: O(n d^2), and a solve.

    Raises:
        StoreFull, StoreCorrupt: a code could not be read.
    """
    station = base.labelled(live, device)
    head = solve(
        station.everything,
        knobs=base.knobs,
        own=station.moments(station.own),
        adaptation=confirmed.head.adaptation,
    )
    return Solved(head.recalibrated(meanwhile(confirmed.head.calibration, head)), live, row)


def is_alone(row: HeadRow) -> bool:
    """Return whether a head of the history is one before it without what was taken back here.

    Its `through` is that of the head before: no reading of the log as far as some place gives its live set.
    """
    return bool(row.why) and row.why[0] == ALONE
