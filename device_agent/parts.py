"""From tiles and frames to one verdict for the part: pass or reject, why, and by which tile.

`Ledger` decides; it neither waits nor asks the time. Rules kept here, all on the safe side:

- Any tile of any frame that is not one of the good classes rejects the part; so does *unknown*, a frame that
  could not be inspected, a frame that is missing, and a picture that cannot be right.
- A part is passed only when all of its frames have been decided, in time. What is late is rejected when its
  time is over, not when it comes; what comes later changes nothing.
- When the agent stops, every part that is still open is rejected.
- A part gets one verdict, and verdicts are numbered without gaps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from device_agent.camera import Shot
from device_agent.station import Decision
from sdk.class_names import key_of
from sdk.wire import Result, Verdict

LATE: Final = "no decision in time"
MAX_TEXT_CHARS: Final = 500
"""As `sdk.wire` allows."""
STOPPING: Final = "the agent is stopping"
MISSING: Final = "frames are missing"
TOO_MANY: Final = "more frames of one camera than make a part"
MAX_WAITING: Final = 32
"""Parts without a deadline that wait for another camera's files, with the frames that were seen: a program that
has stopped would else fill the memory with them."""


@dataclass(frozen=True)
class Finding:
    """One tile, or one whole frame, and its decision."""

    shot: Shot
    decision: Decision


@dataclass(frozen=True)
class Part:
    """One part's verdict.

    Attributes:
        number: Counts the verdicts of this run from 1.
        name: The part id; empty where frames stand for themselves.
        verdict: Pass or reject.
        reason: In words: the class, "unknown", or what went wrong; "defect 14 %, shown good" where the threshold
            of the station's operating point says otherwise than the class.
        finding: The tile that decided: the worst; None where none was seen.
        frames: Frames decided.
        tiles: Tiles decided.
        rejected: Of those, how many speak against the part.
        captured_utc: When its first frame was taken, or it was announced.
        captured_s: The same by the monotonic clock.
        decided_s: When this verdict fell, by the monotonic clock.
        lot: The lot that it is of; empty where nobody said.
    """

    number: int
    name: str
    verdict: Verdict
    reason: str
    finding: Finding | None
    frames: int
    tiles: int
    rejected: int
    captured_utc: float
    captured_s: float
    decided_s: float
    lot: str = field(default="", kw_only=True)

    @property
    def latency_ms(self) -> float:
        """From the first frame, or the trigger, to the verdict."""
        return (self.decided_s - self.captured_s) * 1000

    def result(self) -> Result:
        """Return the verdict as it is told to others. Encodes the tile that decided, where nobody has yet."""
        shot = None if self.finding is None else self.finding.shot
        decision = None if self.finding is None else self.finding.decision
        return Result(
            sample=None if shot is None else shot.sample_id.hex(),
            decision="" if decision is None else decision.shown,
            probability=0.0 if decision is None else decision.probability,
            novelty=0.0 if decision is None else decision.novelty,
            unknown=decision is None or decision.unknown,
            captured_utc=self.captured_utc,
            latency_ms=self.latency_ms,
            part=self.name[:MAX_TEXT_CHARS],
            verdict=self.verdict,
            reason=self.reason[:MAX_TEXT_CHARS],
            tile=None if shot is None or shot.box is None else (shot.camera, *shot.box),
            frames=self.frames,
            tiles=self.tiles,
            rejected_tiles=self.rejected,
            lot=self.lot[:MAX_TEXT_CHARS],
        )


@dataclass(frozen=True)
class KeptPart(Part):
    """A verdict of an earlier run, as the history has it: without a picture, so without a finding.

    Attributes:
        id: Its place in the history.
        run: Names the run that decided it, which `number` counts in.
        told: What was, or was to be, told of it.
    """

    id: int
    run: str
    told: Result

    def result(self) -> Result:
        """Return the verdict as it is told to others."""
        return self.told


@dataclass
class _Open:
    """A part that has no verdict yet."""

    name: str
    wanted: int
    captured_utc: float
    captured_s: float
    deadline_s: float
    lot: str = ""
    frames: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Ledger:
    """Parts under way.

    Args:
        good: Names of the classes that pass, however written; all others are defects.
        cameras: How many look at each part.
        frames: How many frames each of them takes of it.
        unordered: Cameras whose frames do not come in the order of the parts: a later part's says nothing of those
            that a part before it lacks.
    """

    def __init__(
        self, good: Collection[str], *, cameras: int = 1, frames: int = 1, unordered: Collection[int] = ()
    ) -> None:
        self._good = frozenset(map(key_of, good))
        self._unordered = frozenset(unordered)
        self._frames, self._wanted = frames, cameras * frames
        self._open: dict[object, _Open] = {}
        self._number = 0
        self._stopped = False
        self.closed = Counter[Verdict]()

    @property
    def several(self) -> bool:
        """Return whether a part takes more than one frame."""
        return self._wanted > 1

    @property
    def depth(self) -> int:
        """Parts that have no verdict yet."""
        return len(self._open)

    def next_deadline_s(self) -> float | None:
        """Return when `expire` has something to do; None for never."""
        return min((part.deadline_s for part in self._open.values()), default=None)

    def expect(
        self, key: object, name: str, captured_utc: float, captured_s: float, deadline_s: float, lot: str = ""
    ) -> None:
        """A part, or a frame that stands for itself, is under way.

        Args:
            key: Names it here; a name that is open already stays as it is.
            name: The part id, or empty.
            captured_utc: Now, for the record.
            captured_s: Now, monotonic.
            deadline_s: It must be decided by then; infinity for whenever.
            lot: The lot that it is of, if anybody knows.
        """
        wanted = self._wanted if name else 1  # without a name nothing tells which frames belong together
        if not self._stopped:
            part = _Open(name, wanted, captured_utc, captured_s, deadline_s, lot)
            self._open.setdefault(key, part)

    def decided(
        self, key: object, camera: int, findings: Sequence[Finding], now_s: float, fault: str = ""
    ) -> list[Part]:
        """A frame was decided; return the verdicts that fall by it.

        Args:
            key: Of its part. One that is not open has had its verdict: nothing changes.
            camera: Which took it.
            findings: Its tiles.
            now_s: Monotonic time.
            fault: Why the frame cannot be trusted, if so.
        """
        done = self._passed_by(key, camera, now_s)
        part = self._open.get(key)
        if part is None:
            return done
        part.frames[camera] += 1
        part.findings += findings
        if fault or not findings:
            part.faults.append(fault or MISSING)
        if part.wanted > 1 and part.frames[camera] > self._frames:  # of another part under this one's name
            done.append(self._close(key, now_s, TOO_MANY))
        elif part.frames.total() >= part.wanted:
            done.append(self._close(key, now_s))
        return done + self._over(now_s)

    def _over(self, now_s: float) -> list[Part]:
        """Close the oldest of parts that wait for frames without an end, where they are too many."""
        if len(self._open) <= MAX_WAITING:
            return []
        waiting = [key for key, part in self._open.items() if part.wanted > 1 and part.deadline_s == math.inf]
        return [self._close(key, now_s, MISSING) for key in waiting[: max(0, len(waiting) - MAX_WAITING)]]

    def _passed_by(self, key: object, camera: int, now_s: float) -> list[Part]:
        """Close parts that this camera has left behind, whose frames come in the order of the parts."""
        left: list[Part] = []
        if camera in self._unordered:
            return left
        if key not in self._open:
            return left  # it has had its verdict, and says nothing of those behind it
        for other in list(self._open):
            if other == key:
                break  # what is behind it in the order came later
            part = self._open[other]
            if part.wanted > 1 and part.frames[camera] < self._frames:
                left.append(self._close(other, now_s, MISSING))
        return left

    def refuse(self, name: str, captured_utc: float, now_s: float, reason: str, lot: str = "") -> Part:
        """Reject a part that cannot even be looked at."""
        key = object()
        self._open[key] = _Open(name, self._wanted, captured_utc, now_s, now_s, lot)
        return self._close(key, now_s, reason)

    def expire(self, now_s: float) -> list[Part]:
        """Reject what has had its time."""
        late = [key for key, part in self._open.items() if part.deadline_s <= now_s]
        return [self._close(key, now_s, LATE) for key in late]

    def stop(self, now_s: float) -> list[Part]:
        """Reject everything that is open, and take nothing more."""
        self._stopped = True
        return [self._close(key, now_s, STOPPING) for key in list(self._open)]

    def bad(self, decision: Decision) -> bool:
        """Return whether a decision speaks against its part: by the station's operating point where it has one."""
        if decision.rejected is not None:
            return decision.rejected
        return decision.unknown or key_of(decision.shown) not in self._good

    def _close(self, key: object, now_s: float, fault: str = "") -> Part:
        part = self._open.pop(key)
        against = [each for each in part.findings if self.bad(each.decision)]
        worst = max(against or part.findings, key=lambda each: _badness(each, against), default=None)
        reason = fault or (part.faults[0] if part.faults else "")
        if not reason and worst is not None:
            reason = worst.decision.words
        verdict = Verdict.PASS if not (fault or part.faults or against) and worst is not None else Verdict.REJECT
        self._number += 1
        self.closed[verdict] += 1
        return Part(
            number=self._number,
            name=part.name,
            verdict=verdict,
            reason=reason,
            finding=worst,
            frames=part.frames.total(),
            tiles=len(part.findings),
            rejected=len(against),
            captured_utc=part.captured_utc,
            captured_s=part.captured_s,
            decided_s=now_s,
            lot=part.lot,
        )


def _badness(finding: Finding, against: Sequence[Finding]) -> tuple[bool, float]:
    """Order tiles: of those that reject, known ones first, the likeliest defect; of good ones the least sure."""
    decision = finding.decision
    if not against:
        return False, decision.doubt
    if decision.unknown:
        return False, decision.novelty
    return True, decision.probability if decision.defect is None else decision.defect
