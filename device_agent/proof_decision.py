"""A part's decision, made again by the head that a proof gives: on the proof's code, and on the part's picture.

The recorded decision must be what that head can have shown, but for what a device may round otherwise. Where it
cannot be made again, or two machines may differ on it, it is neither refused nor said to hold: `Made.unchecked`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from device_agent.proof_claim import MAKE_AGAIN, Claim, PartClaim
from device_agent.proof_names import Called, Named, Names
from device_agent.proof_picture import Picture, apart
from device_agent.runtime import SCORE_TOLERANCE
from device_agent.station import UNKNOWN
from device_agent.trial import Base
from sdk.codes import Code
from sdk.errors import LabelError
from sdk.head import Calibration, Decisions, Head, solve
from sdk.labels import Fold
from sdk.liveset import LiveSet
from sdk.moments import UNADAPTED, Adaptation

NOVELTY_OFF: Final = 0.02
"""A device decides with the factor in seven bits, which may put scores off by half a hundredth
(`device_agent.decider`): by so much the same code's novelty may differ from the canonical head's."""
PROBABILITY_OFF: Final = 0.05
"""The same for its probability, which is steeper."""
TIE: Final = 0.1
"""Two classes whose probabilities differ by no more may have changed places by the same rounding."""
MAX_ASKED: Final = 500
"""Learned samples that are asked whether they are unknown."""


@dataclass(frozen=True)
class Again:
    """The part's decision, made again by the head that the proof gives.

    Attributes:
        decision, probability, novelty: As of `PartClaim`.
        calibrated: By the head's own calibration; else it had none yet, and probability and *unknown*, by the
            bundle's, need not be those of then.
    """

    decision: str
    probability: float
    novelty: float
    calibrated: bool


@dataclass(frozen=True)
class Pictured:
    """A picture that is the part's by its SHA-256, and what is decided of it here.

    Attributes:
        sample: The SHA-256, hex, of what was decided.
        cut: That is a tile, and was cut out of the picture here.
        runtime: What made its code here.
        code_off: Mean absolute difference of that code and the one in the proof, of 127; None where that has none.
        score_off: Largest difference of a class's score by the two; None likewise.
        again: The decision by the code that was made here.
    """

    sample: str
    cut: bool
    runtime: str
    code_off: float | None
    score_off: float | None
    again: Again


@dataclass(frozen=True)
class Made:
    """What was made again of a part's decision.

    Attributes:
        again: By the code in the proof; None where it holds none.
        unadapted: What the head would decide if it counted this station's own samples as any other; None where it
            does. Of the code in the proof, else of the picture's.
        picture: By the part's picture; None where none was given.
        named: The entry that gave the decision's class its name; None where the bundle has it, or no entry.
        unchecked: Why the decision is the word of the file alone, in words; empty where it was checked.
    """

    again: Again | None = None
    unadapted: Again | None = None
    picture: Pictured | None = None
    named: Named | None = None
    unchecked: str = ""


@dataclass
class Judge:
    """Compares a part's recorded decision with what the head of a proof makes of it.

    Args:
        part: What is recorded.
        solve_head: Gives the head, with own samples counted so.
        adaptation: As the claim says.
        fold: What it had learned.
        names: What classes are called.
        compared: The logs are the fleet's.
    """

    part: PartClaim
    solve_head: Callable[[Adaptation], Head]
    adaptation: Adaptation
    fold: Fold
    names: Names
    compared: bool
    _head: Head = field(init=False)
    _calibrated: bool = field(init=False)

    def made(self, live: LiveSet, picture: Picture | None, *, calibrated: bool) -> Made:
        """Return the decision, made again.

        Args:
            live: What the head was solved from.
            picture: The part's, if somebody gave it.
            calibrated: The head has a calibration of its own.

        Raises:
            LabelError: it is another decision than the recorded one, or the picture is not the part's.
            BadImages: the picture is none.
            InferenceFailed: this machine does not run the bundle's backbone right.
        """
        if self.part.code is None and picture is None:
            return Made(unchecked="the part's code is not in the file")
        self._head, self._calibrated = self.solve_head(self.adaptation), calibrated
        if self.part.decision == UNKNOWN and self._most_are_unknown(live):
            self._refuse("by its calibration most of what it has learned is unknown too")
        recorded = None if self.part.code is None else _code_of(self.part.code, self.fold.feature_size)
        again, called = None, Called()
        if recorded is not None:
            again, called = self._by_code(recorded)
        if picture is None:
            return Made(again, self._unadapted(recorded), None, called.named, called.doubt)
        code, cut = picture.code_of(self.part)
        codes_off, scores_off = (None, None) if recorded is None else apart(self._head, recorded, code)
        seen, called_here = self._by_picture(code, again)
        pictured = Pictured(self.part.sample, cut, picture.runtime, codes_off, scores_off, seen)
        first = called_here if again is None else called
        unadapted = self._unadapted(code if recorded is None else recorded)
        return Made(again, unadapted, pictured, first.named, first.doubt or called_here.doubt)

    def _unadapted(self, code: Code | None) -> Again | None:
        if code is None or self.adaptation == UNADAPTED:
            return None
        return self._decide(code, self.solve_head(UNADAPTED))[0]

    def _by_code(self, code: Code) -> tuple[Again, Called]:
        """Return the decision on the recorded code, and how its class came by its recorded name."""
        again, decided = self._decide(code)
        wrong = _figures_wrong(self.part, again, self._head.calibration.novelty_threshold)
        if wrong:
            self._refuse(wrong)
        p = decided.probabilities[0]
        called = self._called(np.flatnonzero(p >= p[decided.class_index[0]] - TIE), p)
        self._check(again, called)
        return again, called

    def _by_picture(self, code: Code, again: Again | None) -> tuple[Again, Called]:
        """Return the decision on the code that was made here, and what it says of the recorded one.

        Args:
            code: As this machine makes it, which may round otherwise than the device.
            again: The decision on the recorded code, if that is there.
        """
        seen, decided = self._decide(code)
        doubt = (
            f"this machine decides {seen.decision or 'otherwise'} by the picture, and the device may have rounded "
            "otherwise"
        )
        was = self.part.decision if again is None else again.decision
        if (seen.decision == UNKNOWN) != (was == UNKNOWN):
            off = abs(seen.novelty - self._head.calibration.novelty_threshold)
            if seen.calibrated and off > SCORE_TOLERANCE * max(1.0, abs(seen.novelty)):
                self._refuse(f"{seen.decision} by its picture, recorded {self.part.decision[:64]!r}")
            return seen, Called(doubt=doubt)
        best, scores = int(decided.class_index[0]), self._head.scores(code[None])[0]
        called = self._called(np.array([best]), scores)
        if not called.wrong:
            return seen, called
        # The scores of both classes may be off, by as much each.
        near = self._called(np.flatnonzero(scores >= scores[best] - 2 * SCORE_TOLERANCE), scores)
        self._check(seen, near)
        return seen, Called(near.named, doubt=doubt)

    def _decide(self, code: Code, by: Head | None = None) -> tuple[Again, Decisions]:
        head = by or self._head
        decided = head.decide(code[None])
        best = self.fold.canonical(head.class_ids[int(decided.class_index[0])])
        again = Again(
            decision=UNKNOWN if decided.unknown[0] else self.fold.class_names().get(best, ""),
            probability=float(decided.probability[0]),
            novelty=float(decided.novelty[0]),
            calibrated=self._calibrated,
        )
        return again, decided

    def _called(self, rows: npt.NDArray[np.int64], by: npt.NDArray[np.float64]) -> Called:
        """Return how one of some classes, given by their rows, came by the recorded name."""
        if self.part.decision == UNKNOWN:
            return Called()
        likely = [self._head.class_ids[i] for i in sorted(rows, key=lambda i: -by[i])]
        return self.names.called(self.part.decision, likely, self.fold.canonical, self.compared)

    def _check(self, made: Again, called: Called) -> None:
        if called.wrong:
            shown = made.decision or "no class that has a name"
            self._refuse(f"{shown}, recorded {self.part.decision[:64]!r}, {called.wrong}")

    def _refuse(self, wrong: str) -> NoReturn:
        raise LabelError(
            f"the head does not decide part {self.part.part[:64]!r} as the history has it: {wrong}",
            hint="Its line of the history was changed, its code, or a class's name. Make the proof again, on the "
            "device.",
        )

    def _most_are_unknown(self, live: LiveSet) -> bool:
        """Whether the head calls half of what it was made from unknown: by left-out scores none does."""
        some = np.unique(np.linspace(0, max(0, len(live.samples) - 1), MAX_ASKED).astype(np.int64))
        return len(live.samples) > 0 and bool(self._head.decide(live.codes[some]).unknown.mean() > 0.5)


def adaptation_of(claim: Claim) -> Adaptation:
    """Return how a head counts own samples, as the claim says.

    Raises:
        LabelError: that is no adaptation.
    """
    if claim.adaptation is None:
        return UNADAPTED
    try:
        return msgspec.msgpack.decode(bytes.fromhex(claim.adaptation), type=Adaptation)
    except (ValueError, msgspec.DecodeError) as error:
        raise LabelError(f"the proof's first line is damaged: {error}", hint=MAKE_AGAIN) from error


def head_of(claim: Claim, base: Base, live: LiveSet, adaptation: Adaptation) -> Head:
    """Return the head of a live set. How sure it is, and how it counts own samples, the claim says.

    Raises:
        LabelError: the claim has no calibration that a head can have.
    """
    calibration = base.calibration
    try:
        if claim.calibration is not None:
            calibration = msgspec.msgpack.decode(bytes.fromhex(claim.calibration), type=Calibration)
    except (ValueError, msgspec.DecodeError) as error:
        raise LabelError(f"the proof's first line is damaged: {error}", hint=MAKE_AGAIN) from error
    if not 0 < calibration.temperature < math.inf or not -math.inf < calibration.novelty_threshold:
        raise LabelError("the proof's first line has a calibration that no head has", hint=MAKE_AGAIN)
    station = base.labelled(live, claim.device)
    return solve(
        station.everything,
        knobs=base.knobs,
        calibration=calibration,
        own=station.moments(station.own),
        adaptation=adaptation,
    )


def _code_of(hex_code: str, feature_size: int) -> Code:
    try:
        code = np.frombuffer(bytes.fromhex(hex_code), np.int8)
    except ValueError as error:
        raise LabelError(f"the part's code is damaged: {error}", hint=MAKE_AGAIN) from error
    if len(code) != feature_size:
        raise LabelError(f"the part's code has {len(code)} numbers", hint=MAKE_AGAIN)
    return code


def _figures_wrong(part: PartClaim, again: Again, threshold: float) -> str:
    """Return what of a recorded decision's figures cannot be of this head, in words; empty where all can."""
    # Below nought a code lies at the mean of a class, and the logarithm tells rounding apart.
    then, now = max(part.novelty, 0.0), max(again.novelty, 0.0)
    near = NOVELTY_OFF * max(1.0, abs(then))
    if not abs(now - then) <= near:  # so that what is no number is refused too
        return f"novelty {again.novelty:.4f}, recorded {part.novelty:.4f}"
    if not again.calibrated:
        return ""
    if not abs(again.probability - part.probability) <= PROBABILITY_OFF:
        return f"{again.probability:.1%} sure, recorded {part.probability:.1%}"
    if (again.decision == UNKNOWN) != (part.decision == UNKNOWN) and abs(now - threshold) > near:
        return f"{again.decision}, recorded {part.decision[:64]!r}"
    return ""
