"""A release's own samples, and the trial of a head on groups left out. No threads, no store, no clock.

What a head is and how it is scored are `sdk.head`'s and `sdk.score`'s. Decided here: which samples may be scored
(not those that the backbone itself was trained on), what happens where there are too few, and which calibration
serves meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from device_agent.heads import Solved, ended, pack
from device_agent.heads_and_updates import Outcome
from device_agent.masters import Best, MasterCodes, MasterSide, price_of
from device_agent.masters import judge as judge_masters
from sdk.adaptation import Choice, Harm, Labelled, choose, harmful_source
from sdk.bundle import Bundle
from sdk.codes import Codes
from sdk.errors import BadFormat, HeadError
from sdk.grouping import derive_groups
from sdk.head import UNCALIBRATED, Calibration, Head, Knobs, solve
from sdk.labels import Fold
from sdk.layouts import settled_groups
from sdk.liveset import LiveSet
from sdk.moments import UNADAPTED, Adaptation, Moments
from sdk.reason import Reason, price
from sdk.score import LeftOut, Score, calibrate, leave_one_group_out
from sdk.shelf import MemoryShelf, Shelf, at_hand
from sdk.verdict import Verdict, trial

TOO_FEW: Final = Reason("too-few")
OWN_GROUPS: Final = 5
"""As many own groups of a class judge it alone: fewer are too easily won or lost by chance."""
FIRST_SCORE: Final = Reason("first-score")
UNDONE: Final = Reason("undone")
ALONE: Final = Reason("undone-alone")


@dataclass(frozen=True)
class Base:
    """What a release brings to a device in one precision.

    Attributes:
        fold: Its own samples and class names, to fold a device's log into.
        rest: Moments of those samples that are in the release's sums only; empty where all have codes.
        fitted: Those samples that its backbone was trained on: scores on them flatter.
        knobs: The head's constants.
        calibration: Of the head of its own samples.
        settled: Its groups that somebody named.
    """

    fold: Fold
    rest: Moments
    fitted: frozenset[bytes]
    knobs: Knobs
    calibration: Calibration
    settled: frozenset[str]

    @classmethod
    def of(cls, bundle: Bundle, precision: str | None, shelf: Callable[[int], Shelf] = MemoryShelf) -> Base:
        """Return what a bundle brings.

        Args:
            bundle: The release.
            precision: Which of its precisions; None for its only one.
            shelf: Makes the place where codes of so many numbers lie.

        Raises:
            BadFormat: its samples are not those its head was made from.
        """
        entry = bundle.precision(precision)
        base, head = bundle.base(entry.precision), entry.head
        fold = Fold(entry.space, entry.feature_size, shelf(entry.feature_size))
        fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names(), base.summed)
        if fold.digest() != head.live_set_digest:
            raise BadFormat(
                f"{bundle.path}: the samples are not those the head was made from", hint="Export the bundle again."
            )
        return cls(
            fold=fold,
            rest=base.rest or Moments(entry.feature_size),
            fitted=frozenset(compress(base.samples, base.fitted[: len(base.codes)])),
            knobs=Knobs(head.rho, head.centre_damping, head.lift_floor, head.distance_weight),
            calibration=Calibration(
                temperature=head.temperature,
                novelty_threshold=head.novelty_threshold,
                false_alarm_rate=head.false_alarm_rate,
                classes=len(set(base.class_ids)),
            ),
            settled=settled_groups(base.groups),
        )

    def scorable(self, live: LiveSet) -> list[bool]:
        """Return for each sample with a code of a live set whether it may be scored."""
        return [sample not in self.fitted for sample in live.samples]

    def learned(self, live: LiveSet) -> frozenset[bytes]:
        """Return all samples that a head of a live set has learned from, those too that are in the sums only."""
        return frozenset(live.samples).union(sample for sample, _, _ in self.fold.summed_rows())

    def rest_of(self, live: LiveSet) -> Moments | None:
        """Return the moments of a live set's summed samples, class ids after merges; None where it has none."""
        return self.rest.merged(lambda c: live.merged.get(c, c)) if live.summed else None

    def labelled(self, live: LiveSet, device: str, stop: Callable[[], bool] | None = None) -> Labelled:
        """Return a live set as one station sees it; what is made of it ends where `stop` says so."""
        own = owned(live, device)
        return Labelled(live.codes, live.class_ids, live.groups, live.devices, own, self.rest_of(live), stop)

    def left_out(
        self,
        live: LiveSet,
        stop: Callable[[], bool],
        *,
        device: str = "",
        adaptation: Adaptation = UNADAPTED,
        learned: Moments | None = None,
    ) -> LeftOut | None:
        """Return the left-out scores of the samples that may be scored; None where nothing can be left out yet.

        Groups that show one part are left out together (`sdk.grouping`). Summed samples are learned from and
        cannot be left out: `LeftOut.summed` says how many.

        Args:
            live: The live set.
            stop: Asked between groups.
            device: Whose labels `adaptation` is about.
            adaptation: How these count.
            learned: Moments of the live set, class ids after merges, where they are at hand.

        Raises:
            InterruptedError: `stop` said so.
        """
        only = np.array(self.scorable(live), bool)
        if not only.any():
            return None
        together = derive_groups(
            live.codes, live.class_ids, live.groups, settled=self.settled, knobs=self.knobs, stop=stop
        )
        try:
            return leave_one_group_out(
                live.codes,
                live.class_ids,
                together.groups,
                knobs=self.knobs,
                only=only,
                own=owned(live, device),
                adaptation=adaptation,
                samples=live.samples,
                learned=learned or self.labelled(live, device).everything,
                stop=stop,
            )
        except HeadError:
            return None  # fewer than two groups


def owned(live: LiveSet, device: str) -> npt.NDArray[np.bool_]:
    """Return (n,) bool: which samples of a live set this device's operators labelled."""
    return np.array([each == device for each in live.devices], bool)


@dataclass(frozen=True)
class Judgement:
    """How a trial ended: whether the head stays, why, its honest score where it has one, and its calibration.

    `also`: What more there is to say of one that stays.
    """

    keep: bool
    why: Reason
    score: Score | None
    calibration: Calibration
    also: tuple[Reason, ...] = ()


def judge(
    confirmed: tuple[LeftOut | None, Calibration],
    provisional: tuple[LeftOut | None, Calibration],
    *,
    names: Callable[[bytes], str],
    own: frozenset[bytes] = frozenset(),
    canonical: Callable[[bytes], bytes] = lambda class_id: class_id,
) -> Judgement:
    """Return whether a provisional head stays, by left-out scores of both heads.

    A station's own labels come first: a class of which it has labelled `OWN_GROUPS` groups or more is compared on
    these alone, the other classes on everybody's. Where the head before was scored on fewer than that of them, the
    class is not compared, since nobody can say whether they or the others are right: where everybody's parts would
    have a head taken back that stays, its reasons say so.

    Args:
        confirmed: Of the head that would serve again.
        provisional: Of the head on trial, with the calibration it has served with.
        names: Class id to the name people use.
        own: Samples that the station's own operators labelled.
        canonical: Gives the id that stands for a class by now: classes may have been made one since the confirmed
            head was scored.
    """
    (before, confirmed_calibration), (after, meanwhile) = confirmed, provisional
    if after is None or not after.known.any():
        return Judgement(True, TOO_FEW, None, meanwhile)
    before = None if before is None else before.merged(canonical)
    calibration = calibrate(after, confirmed_calibration.false_alarm_rate)
    old = None if before is None else (before, confirmed_calibration)
    judged, alone = _judged(before, after, own) if own else (None, False)
    verdict = trial(old, (after, calibration), names=names, judged=judged)
    if alone and verdict.keep:
        verdict = _beside(verdict, trial(old, (after, calibration), names=names))
    why = FIRST_SCORE if old is None else verdict.why
    return Judgement(verdict.keep, why, verdict.after, calibration, verdict.also)


def _judged(before: LeftOut | None, after: LeftOut, own: frozenset[bytes]) -> tuple[frozenset[bytes], bool]:
    """Return the samples that known classes are compared on, and whether some class stands alone with its own.

    Of a class these are the station's own where it has enough of them, else everybody's. It stands alone, compared
    on nothing, where too few of its own groups were scored before: they came since, or were called otherwise.
    """
    mine = np.array([sample in own for sample in after.samples], bool)
    labels = [after.class_ids[column] for column in after.truth]
    was: dict[bytes, bytes] = {}
    if before is not None:
        called = (before.class_ids[column] for column in before.truth)
        was = dict(compress(zip(before.samples, called, strict=True), before.known))
    told = mine & after.tells & [was.get(s) == c for s, c in zip(after.samples, labels, strict=True)]
    rows = np.ones(len(mine), bool)
    alone = False
    for column in range(len(after.class_ids)):
        of_class = after.truth == column
        if len(np.unique(after.groups[of_class & mine])) >= OWN_GROUPS:
            enough = len(np.unique(after.groups[of_class & told])) >= OWN_GROUPS
            rows &= ~of_class | (mine & enough)
            alone |= not enough
    return frozenset(sample for sample, stays in zip(after.samples, rows, strict=True) if stays), alone


def _beside(own: Verdict, everybody: Verdict) -> Verdict:
    """Return that a head stays by a station's own labels, and what everybody's parts say of that."""
    if everybody.keep:
        return everybody if own.why.code == "nothing-to-compare" else own
    told = everybody.why
    alone = Reason("own-alone", name=told.name, share=told.share, before=told.before)
    if own.why.code in ("nothing-to-compare", "better", "as-good"):  # not so by everybody's parts
        return replace(own, why=alone)
    why = msgspec.structs.replace(alone, code="also-knows-price", classes=own.why.classes)
    return replace(own, why=why if own.why.code == "also-knows" else own.why, also=(alone, *own.also))


def meanwhile(calibration: Calibration, head: Head) -> Calibration:
    """Return the calibration for a head that has none of its own yet, from the head before.

    A distance to one class and a cosine to several are not on one scale. From several to one more the old
    threshold errs, if at all, towards asking the operator.
    """
    if (calibration.classes == 1) == (len(head.class_ids) == 1):
        return calibration
    return replace(UNCALIBRATED, false_alarm_rate=calibration.false_alarm_rate, classes=len(head.class_ids))


def try_out(
    base: Base,
    candidate: Solved,
    confirmed: Solved,
    *,
    device: str,
    stream: Codes,
    names: Callable[[bytes], str],
    obsolete: Callable[[], bool],
    enough: Callable[[], bool],
    masters: MasterCodes | None = None,
    best: Best | None = None,
    asked: Reason | None = None,
) -> Solved:
    """Return a head as its trial leaves it: outcome and reasons, left-out scores, and how own labels count in it.

    Args:
        base: The release.
        candidate: On trial.
        confirmed: Would serve again, with its left-out scores.
        device: Whose station this is.
        stream: Newest codes (n, d) of it, labelled or not.
        names: Class id to the name people use.
        obsolete: Asked between steps; true ends the trial.
        enough: Asked by the searches; true ends these with the best so far.
        masters: The station's, in this release's space; a head that tells them worse goes, whatever its score.
        best: Of the heads that these have judged; None compares with the confirmed one.
        asked: A person here asked for this head, under this reason: it stays, and its reasons say at what price.

    Raises:
        InterruptedError: `obsolete` said so.
    """
    live = replace(candidate.live, codes=at_hand(candidate.live.codes))
    station = base.labelled(live, device, obsolete)
    choice = choose(station, stream, knobs=base.knobs, enough=enough)
    left_out = base.left_out(
        live, obsolete, device=device, adaptation=choice.adaptation, learned=station.everything
    )
    harm = harmful_source(station, choice.adaptation.shift, knobs=base.knobs, enough=enough)
    end = judge(
        (confirmed.left_out, confirmed.head.calibration),
        (left_out, candidate.head.calibration),
        names=names,
        own=frozenset(s for s, own in zip(live.samples, station.own, strict=True) if own),
        canonical=base.fold.canonical,
    )
    head = candidate.head
    if head.adaptation != choice.adaptation:
        own = station.moments(station.own)
        head = solve(station.everything, knobs=base.knobs, own=own, adaptation=choice.adaptation)
    head = head.recalibrated(end.calibration)
    why = [end.why if end.keep or asked is None else price(end.why), *end.also]
    if masters is not None and (end.keep or asked is not None):
        learned = base.learned(live)
        before, after = (MasterSide(masters, each, names, learned) for each in (confirmed.head, head))
        missed = judge_masters(before, after, best) if asked is None else price_of(before, after, best)
        end = end if missed is None else replace(end, keep=False)
        why = why if missed is None else [missed] if asked is None else [*why, missed]
    if asked is not None:
        end, why = replace(end, keep=True), [asked, *why]
    row = replace(
        ended(candidate.row, Outcome.CONFIRMED if end.keep else Outcome.TAKEN_BACK, *why, *_more(choice, harm)),
        score=None if end.score is None else pack(end.score),
        calibration=pack(end.calibration),
        adaptation=None if choice.adaptation == UNADAPTED else pack(choice.adaptation),
    )
    return replace(candidate, head=head, row=row, left_out=left_out, harm=harm)


def _more(choice: Choice, harm: Harm | None) -> list[Reason]:
    """Return what else an operator should know of a trial."""
    found = []
    if choice.adaptation.shift:
        found.append(Reason("shifted"))
    if choice.adaptation.own_weight > 1:
        found.append(Reason("own-weight", times=choice.adaptation.own_weight))
    if harm is not None:
        found.append(Reason("harm", name=harm.source, share=harm.recall_without, before=harm.recall))
    return found
