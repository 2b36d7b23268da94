"""What was learned: the heads that served, labels that do not fit, and what more labels would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from device_agent.heads import score_of
from device_agent.heads_and_updates import HeadRow
from device_agent.learned import Now, in_english
from device_agent.outlook import LookAhead, OutlookReport
from device_agent.page.access import Role
from device_agent.page.desk import Desk
from device_agent.page.fields import MAX_PAGE, ByIn, Limit
from device_agent.page.guard import needs, operator_of
from device_agent.page.history import LabelHistory
from device_agent.page.refusal import Refusal
from device_agent.report import ReasonReport, reason_reports
from sdk.errors import LabelError
from sdk.score import Score, score

HeadNumber = Annotated[int, Path(ge=1, le=2**62)]


@dataclass(frozen=True)
class HeadOut:
    """A head that served on this device, with the id of the feature space that it decides in: its release's.

    `balanced_accuracy`, `low` and `high` are None before a score, and where none of its classes has two groups.
    """

    number: int
    created_utc: float
    digest: str
    samples: int
    outcome: str
    reason: str
    why: list[ReasonReport]
    balanced_accuracy: float | None
    low: float | None
    high: float | None
    space: str


@dataclass(frozen=True)
class RestoredOut:
    """An earlier head's labels are back, on disk. `exact`: the live set has that head's digest, `digest`."""

    saved: bool
    labels: int
    first_seq: int | None
    seq: int | None
    exact: bool
    digest: str


@dataclass(frozen=True)
class SuspectOut:
    """A label that does not fit what all other parts say: look at it again; the head may be the one that errs.

    `kept`: its picture is here, so that it can be confirmed or corrected.
    """

    sample: str
    labelled: str
    labelled_class_id: str
    looks_like: str
    looks_like_class_id: str
    suspicion: float
    kept: bool


class Learned:
    """The routes for it.

    Args:
        desk: The station.
        history: Its label log.
        ahead: Works out what more labels would give.
    """

    def __init__(self, desk: Desk, history: LabelHistory, ahead: LookAhead) -> None:
        self._desk, self._station = desk, desk.station
        self._history = history
        self._ahead = ahead

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look, change = [Depends(needs(Role.OPERATOR))], [Depends(needs(Role.ENGINEER))]
        api.add_api_route("/heads", self.get_heads, dependencies=look)
        api.add_api_route("/suspects", self.get_suspects, dependencies=look)
        api.add_api_route("/outlook", self.get_outlook, dependencies=look)
        api.add_api_route(
            "/heads/{number}/restore", self.post_restore, methods=["POST"], status_code=201, dependencies=change
        )
        return api

    def get_heads(self, limit: Limit = 20) -> list[HeadOut]:
        """The heads that served on this device, newest first."""
        return [head_out(row) for row in self._station.store.heads.newest(limit=limit)]

    def post_restore(self, number: HeadNumber, request: Request, by: ByIn | None = None) -> RestoredOut:
        """Bring an earlier head back: this device's labels since it are taken back, all or none."""
        learner = self._station.require().learner
        row = next((r for r in learner.history(self._station.store.limits.keep_heads) if r.number == number), None)
        if row is None:
            raise Refusal(404, f"there is no head {number} in this device's history", "GET /api/heads lists them.")
        if row.space != learner.space:
            raise LabelError(
                f"head {number} was of an earlier release", hint="Publish that release again to go back to it."
            )
        plan = self._history.restoring(row)
        first = seq = None
        if plan:
            saved = self._station.label_all(plan, operator_of(request, "" if by is None else by.operator))
            first, seq = saved.records[0].entry.seq, saved.seq
        self._desk.note(request, "head restored", str(number))
        return RestoredOut(True, len(plan), first, seq, learner.digest() == row.digest, row.digest)

    def get_suspects(self, limit: Limit = 20) -> list[SuspectOut]:
        """Labels that do not fit what all other parts say, the most suspicious first.

        Where somebody has looked again and said the same, it is not asked once more.
        """
        return self.suspects_out(limit)

    def suspects_out(self, limit: int, now: Now = in_english) -> list[SuspectOut]:
        """Return `get_suspects` with names as `Desk.called` gives them."""
        called, store = self._desk.called(now), self._station.store
        found = self._station.suspects(MAX_PAGE)
        canonical = self._station.require().learner.canonical
        return [
            SuspectOut(
                sample=each.sample.hex(),
                labelled=called(each.labelled),
                labelled_class_id=each.labelled.hex(),
                looks_like=called(each.looks_like),
                looks_like_class_id=each.looks_like.hex(),
                suspicion=each.suspicion,
                kept=store.samples.get(each.sample) is not None,
            )
            for each in found
            if not self._history.said_twice(each.sample, canonical)
        ][:limit]

    def get_outlook(self) -> OutlookReport:
        """What more labels would give; takes seconds after a label, on a thread of its own."""
        return self._ahead.of(self._station.require().learner)

    def score(self) -> Score | None:
        """Return the honest score of the head that is confirmed; None before it is made."""
        reference = None if self._station.serving is None else self._station.serving.learner.reference
        return None if reference is None else score(reference.left_out, reference.calibration)


def head_out(row: HeadRow) -> HeadOut:
    """Return a row of the heads' history as the interface says it."""
    score = score_of(row)
    judged = None if score is None or score.balanced_accuracy is None else score
    return HeadOut(
        number=row.number,
        created_utc=row.created_utc,
        digest=row.digest,
        samples=row.samples,
        outcome=row.outcome.value,
        reason=row.reason,
        why=reason_reports(row.why),
        balanced_accuracy=None if judged is None else judged.balanced_accuracy,
        low=None if judged is None else float(judged.low),
        high=None if judged is None else float(judged.high),
        space=row.space,
    )
