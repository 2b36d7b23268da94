"""What more labels would give, for the page, the command line and their JSON: plain values, made when asked for.

The mathematics is `sdk.outlook`'s. Decided here: which samples judge (not those that the backbone was trained on),
that pictures of one part are kept together, how long it may take, and that one answer serves until a label changes
it. Own labels count once in it, whatever weight the station's head gives them, and samples that a release knows by
their sums only have no say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from device_agent.learner import Learner
from sdk.errors import HeadError
from sdk.grouping import derive_groups
from sdk.head import Knobs
from sdk.layouts import names_picture
from sdk.outlook import Expected, Outlook, outlook
from sdk.shelf import CodeRows

BUDGET_S: Final = 10.0
"""Another round of heads is learned only if it ends within this: the cores have other work."""
SEED: Final = 0


@dataclass(frozen=True)
class StepReport:
    """What more labels would give: so many more of each class, or so many times what it has."""

    added: int | None
    times: int | None
    balanced_accuracy: Expected


@dataclass(frozen=True)
class ClassOutlookReport:
    """One class: its recall now and with more labels of all classes, and what more labels of it alone would give.

    `gain` is of balanced accuracy, by ten more; `recalls` are in the order of the steps.
    """

    id: str
    name: str
    groups: int
    recall: Expected
    recalls: list[Expected]
    gain: Expected


@dataclass(frozen=True)
class OutlookReport:
    """How many more labels?

    Attributes:
        advice: One sentence for an operator, also where nothing can be said yet.
        balanced_accuracy: Now; None where nothing can be said yet.
        steps: Labels more, fewest first.
        classes: Those of more than one group, the one that more labels help most first.
        one_group: Names of the others.
        few: Names of those of both of which too few groups may be judged to say that labels change little.
        helps_most: Name of the class to label next.
        groups_given, groups_found: Groups before and after those that show one part were joined.
        groups_note: What is to be said of that, if anything.
        heads: Learned to find out.
    """

    advice: str
    balanced_accuracy: Expected | None
    steps: list[StepReport]
    classes: list[ClassOutlookReport]
    one_group: list[str]
    few: list[str]
    helps_most: str | None
    groups_given: int
    groups_found: int
    groups_note: str | None
    heads: int


def look_ahead(
    codes: CodeRows,
    class_ids: Sequence[bytes],
    groups: Sequence[str],
    names: Callable[[bytes], str],
    *,
    knobs: Knobs,
    false_alarm_rate: float,
    only: npt.NDArray[np.bool_] | None = None,
    budget_s: float = BUDGET_S,
    settled: Set[str] = frozenset(),
) -> OutlookReport:
    """Return what more labels would give.

    Args:
        codes: (n, d) int8.
        class_ids: Class after merges, n.
        groups: Group id, n, as given.
        names: Class id to the name people use.
        knobs: Of the head.
        false_alarm_rate: Of its calibration.
        only: (n,) bool, which samples may judge.
        budget_s: See `sdk.outlook.outlook`.
        settled: Groups that the release names, which are left as they are (`sdk.grouping`).
    """
    grouping = derive_groups(codes, class_ids, groups, settled=settled, knobs=knobs)
    found: Outlook | None = None
    try:
        found = outlook(
            codes,
            class_ids,
            grouping.groups,
            seed=SEED,
            budget_s=budget_s,
            clock=time.monotonic,
            knobs=knobs,
            false_alarm_rate=false_alarm_rate,
            only=only,
        )
        advice = found.sentence(names)
    except HeadError as error:
        advice = f"Nothing can be said yet: {error}. {error.hint}"
    order = [] if found is None else sorted(enumerate(found.classes), key=lambda each: -each[1].gain.share)
    return OutlookReport(
        advice=advice,
        balanced_accuracy=None if found is None else found.balanced_accuracy,
        steps=[]
        if found is None
        else [StepReport(step.added, step.times, step.balanced_accuracy) for step in found.steps],
        classes=[]
        if found is None
        else [
            ClassOutlookReport(
                id=each.class_id.hex(),
                name=names(each.class_id),
                groups=each.groups,
                recall=each.recall,
                recalls=[step.recalls[i] for step in found.steps],
                gain=each.gain,
            )
            for i, each in order
        ],
        one_group=[] if found is None else sorted(names(class_id) for class_id in found.one_group),
        few=[] if found is None else sorted(names(class_id) for class_id in found.few),
        helps_most=None if found is None else names(found.helps_most().class_id),
        groups_given=grouping.given,
        groups_found=grouping.found,
        groups_note=grouping.note(none_given=all(map(names_picture, groups))),
        heads=0 if found is None else found.heads,
    )


class LookAhead:
    """The outlook of a device's live set, made when asked for and kept until a label changes it.

    Whoever asks meanwhile waits for the same answer: two at once would only take the cores from inspection.
    """

    def __init__(self, budget_s: float = BUDGET_S) -> None:
        self._budget_s = budget_s
        self._lock = threading.Lock()
        self._made: tuple[str, dict[bytes, str], OutlookReport] | None = None

    def of(self, learner: Learner) -> OutlookReport:
        """Return the outlook of what this learner has learned."""
        with self._lock:
            live, head = learner.live_set(), learner.head.head
            names = {each.class_id: each.name for each in learner.classes()}
            if self._made is None or self._made[:2] != (live.digest, names):
                report = look_ahead(
                    live.codes,
                    live.class_ids,
                    live.groups,
                    lambda class_id: names.get(class_id, f"class {class_id.hex()[:6]}"),
                    knobs=head.knobs,
                    false_alarm_rate=head.calibration.false_alarm_rate,
                    only=np.array(learner.scorable(live), bool),
                    budget_s=self._budget_s,
                    settled=learner.settled,
                )
                self._made = live.digest, names, report
            return self._made[2]
