"""Labels: who said what of which sample, saying it, and undoing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from device_agent.learned import Now, in_english
from device_agent.page.access import Role
from device_agent.page.asked import Unsure
from device_agent.page.counts import ShiftCounter
from device_agent.page.desk import Desk
from device_agent.page.fields import (
    ClassField,
    ClassName,
    Limit,
    Offset,
    OperatorName,
    RequestBody,
    SampleField,
    SamplePath,
)
from device_agent.page.guard import needs, operator_of
from device_agent.page.history import LabelHistory, LabelRow
from device_agent.page.refusal import Refusal
from sdk.errors import LabelError

MAX_TOGETHER: Final = 64
"""Labels of one go."""

Seq = Annotated[int, Field(ge=1, le=2**62)]


class LabelIn(RequestBody):
    """A label for `sample`, or the same label for all of `samples` at once.

    One of `class_id` and `class_name`; `class_id` null withdraws the label. `operator` counts only where the
    device has no accounts; otherwise it is whoever is logged in. `seen` says what samples were labelled as when
    they were looked at, null for not at all: where somebody has said otherwise since, nothing is saved (409).
    """

    sample: SampleField | None = None
    samples: Annotated[list[SampleField], Field(min_length=1, max_length=MAX_TOGETHER)] | None = None
    class_id: ClassField | None = None
    class_name: ClassName | None = None
    operator: OperatorName = ""
    seen: Annotated[dict[SampleField, ClassField | None], Field(max_length=MAX_TOGETHER)] | None = None


class UndoIn(RequestBody):
    """The log entries of the labels to undo, as they were answered when the labels were saved."""

    first_seq: Seq
    seq: Seq
    operator: OperatorName = ""


@dataclass(frozen=True)
class SavedOut:
    """The labels are on this device's disk, as entries `first_seq` to `seq` of its log."""

    saved: bool
    first_seq: int
    seq: int
    class_id: str | None
    labels: int


@dataclass(frozen=True)
class LabelOut:
    """A label event.

    `current`: nobody has said anything about the sample since, so it can be undone. `confirmed`: it says what was
    said before, where classes have been made one since too.
    """

    device: str
    seq: int
    at_utc: float
    who: str
    sample: str
    class_id: str | None
    label: str | None
    before_class_id: str | None
    before: str | None
    current: bool
    own: bool
    kept: bool
    confirmed: bool


class Labels:
    """The routes for labels.

    Args:
        desk: The station.
        history: Its label log.
        unsure: Which samples somebody could not tell.
        counter: Counts what the shift has brought.
    """

    def __init__(self, desk: Desk, history: LabelHistory, unsure: Unsure, counter: ShiftCounter) -> None:
        self._desk, self._station = desk, desk.station
        self._history = history
        self._unsure = unsure
        self._counter = counter

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look, label = [Depends(needs(Role.OPERATOR))], [Depends(needs(Role.OPERATOR))]
        api.add_api_route("/labels", self.get_labels, dependencies=look)
        api.add_api_route("/samples/{sample}/labels", self.get_sample_labels, dependencies=look)
        api.add_api_route("/labels", self.post_label, methods=["POST"], status_code=201, dependencies=label)
        api.add_api_route("/labels/undo", self.post_undo, methods=["POST"], status_code=201, dependencies=label)
        return api

    def get_labels(self, limit: Limit = 50, offset: Offset = 0) -> list[LabelOut]:
        """Label events, the newest first: who said what of which picture, and what was said before."""
        return self.labels_out(self._history.rows(limit, offset))

    def get_sample_labels(self, sample: SamplePath) -> list[LabelOut]:
        """What was said of a sample, the last word first."""
        return self.labels_out(self._history.of_sample(bytes.fromhex(sample)))

    def labels_out(self, rows: list[LabelRow], now: Now = in_english) -> list[LabelOut]:
        """Return label events as the interface says them, `now` as `Desk.called` does."""
        called, store = self._desk.called(now), self._station.store
        serving = self._station.serving

        def name(class_id: bytes | None) -> str | None:
            return None if class_id is None else called(class_id)

        def same(one: bytes | None, other: bytes | None) -> bool:
            if one is None or other is None or serving is None:
                return one is not None and one == other
            return serving.learner.canonical(one) == serving.learner.canonical(other)

        return [
            LabelOut(
                device=row.event.device,
                seq=row.event.seq,
                at_utc=row.event.at_us / 1e6,
                who=self._desk.access.name_of(row.event.operator),
                sample=row.event.sample.hex(),
                class_id=None if row.event.class_id is None else row.event.class_id.hex(),
                label=name(row.event.class_id),
                before_class_id=None if row.before is None else row.before.hex(),
                before=name(row.before),
                current=row.current,
                own=row.own,
                kept=store.samples.get(row.event.sample) is not None,
                confirmed=same(row.before, row.event.class_id),
            )
            for row in rows
        ]

    def post_label(self, label: LabelIn, request: Request) -> SavedOut:
        """Save a label, or one for several samples; on disk when this answers, learned within about a second."""
        if (label.sample is None) == (label.samples is None):
            raise Refusal(422, "give either sample or samples", "One picture, or several that are the same.")
        if label.class_id is not None and label.class_name is not None:
            raise LabelError("both class_id and class_name are given", hint="Give one of them.")
        if label.class_name is None and "class_id" not in label.model_fields_set:
            raise Refusal(422, "neither class_id nor class_name is given", "Withdraw with class_id null.")
        class_id = None if label.class_id is None else bytes.fromhex(label.class_id)
        if label.class_name is not None:
            class_id = self._station.class_named(label.class_name)
        wanted = label.samples if label.samples is not None else [label.sample or ""]
        ids = [bytes.fromhex(sample) for sample in dict.fromkeys(wanted)]
        seen = {
            bytes.fromhex(sample): None if each is None else bytes.fromhex(each)
            for sample, each in (label.seen or {}).items()
        }
        who = operator_of(request, label.operator)
        saved = self._station.label_all([(sample, class_id) for sample in ids], who, seen)
        self._counter.labelled(len(ids))
        self._unsure.forget(ids)
        first = saved.records[0].entry.seq
        return SavedOut(True, first, saved.seq, None if class_id is None else class_id.hex(), len(ids))

    def post_undo(self, undo: UndoIn, request: Request) -> SavedOut:
        """Undo labels: each sample is labelled again as it was before, or not at all; on disk when this
        answers."""
        plan = self._history.undoing(undo.first_seq, undo.seq)
        saved = self._station.label_all(plan, operator_of(request, undo.operator))
        class_ids = {class_id for _, class_id in plan}
        only = class_ids.pop() if len(class_ids) == 1 else None
        first = saved.records[0].entry.seq
        return SavedOut(True, first, saved.seq, None if only is None else only.hex(), len(plan))
