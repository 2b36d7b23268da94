"""Routes of the HTTP interface (docs/agent.md): JSON in and out, ids in hex, errors as {error, hint}.

Everything here translates; what happens is the station's. Who may call is said at each route, and kept by `guard`.
OpenAPI is at /openapi.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from device_agent.camera import encode_png
from device_agent.heads import score_of
from device_agent.heads_and_updates import HeadRow
from device_agent.learned import Now, in_english
from device_agent.outlook import LookAhead, OutlookReport
from device_agent.page.access import Access, Role
from device_agent.page.alike import alike
from device_agent.page.asked import Question, Unsure, question_of
from device_agent.page.counts import ShiftCounter, ShiftReport
from device_agent.page.guard import address_of, may_stay, needs, who_of
from device_agent.page.history import LabelHistory, LabelRow
from device_agent.page.refusal import Refusal
from device_agent.report import ReasonReport, State, reason_reports
from device_agent.sample import Sample, SampleStatus
from device_agent.station import UNKNOWN, Station
from device_agent.trigger import MAX_LOT_CHARS, MAX_PART_CHARS
from sdk.errors import LabelError, StoreFull
from sdk.images import decode
from sdk.score import Score, score

MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""An image that somebody posts; a 50-megapixel PNG of a smooth surface stays below it."""
MAX_PAGE: Final = 200
MAX_TOGETHER: Final = 64
"""Labels of one go."""
MAX_COMPARED: Final = 100
"""So many of the queue are looked through for pictures that are alike: 5 ms at d = 1280."""
EVENT_S: Final = 0.4
"""The page hears of a change within this; a state takes about a millisecond to make."""
KEEPALIVE_S: Final = 15.0
"""A stream says something at least so often, so that the page notices a device that is gone."""
MAX_STREAMS: Final = 64
_IMAGE_KINDS: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
)
"""First bytes of what every browser shows; the rest (TIFF) is sent as PNG."""

HexClass = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]
HexSample = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
SampleField = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ClassField = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
OperatorName = Annotated[str, Field(max_length=64)]
ClassName = Annotated[str, Field(min_length=1, max_length=64)]
Seconds = Annotated[int, Query(ge=0, le=86_400)]
Seq = Annotated[int, Field(ge=1, le=2**62)]
HeadNumber = Annotated[int, Path(ge=1, le=2**62)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a part id or lot is of printable characters")
    return text


Printable: Final = AfterValidator(_printable)
"""As a trigger over MQTT (`device_agent.trigger.part_of`)."""


class LabelIn(_In):
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


class TriggerIn(_In):
    """A part that stands before the cameras now. Without a part id one is made."""

    part: Annotated[str, Field(max_length=MAX_PART_CHARS), Printable] = ""
    lot: Annotated[str, Field(max_length=MAX_LOT_CHARS), Printable] = ""


class UndoIn(_In):
    """The log entries of the labels to undo, as they were answered when the labels were saved."""

    first_seq: Seq
    seq: Seq
    operator: OperatorName = ""


class ByIn(_In):
    """Who asks for it; counts only where the device has no accounts."""

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
class ErasedOut:
    """A picture is gone from this device; whether a label of it was withdrawn first."""

    erased: bool
    withdrawn: bool


@dataclass(frozen=True)
class TriggerOut:
    """The part's frames are being taken; its verdict goes to the outputs."""

    part: str


@dataclass(frozen=True)
class NowOut:
    """What the head that serves now says of a sample; `class_id` is None for unknown."""

    class_id: str | None
    decision: str
    probability: float


@dataclass(frozen=True)
class SampleOut:
    """A sample as it was decided when it was last seen, and its label if it has one.

    Attributes:
        class_id: Of the decision shown, None for unknown.
        forced_class_id: Of the best class in any case.
        question: Why an operator is asked, None if not.
        alike: Other samples that the same answer settles; in the queue only.
        unsure: Somebody could not tell; it is asked again last.
        now: What the head that serves says of it; in the queue, and of one sample.
        good: Whether it speaks for its part: not `rejected`, or of a sample of before that was kept, whether what
            is shown is a good class; None where no class is known to be one.
        defect: Probability of a defect when it was decided, None where nobody can tell.
        rejected: Whether it spoke against its part then, by the operating point; None like `defect`.
        by_threshold: The threshold said otherwise than the class shown.
    """

    sample: str
    captured_utc: float
    source: str
    group: str
    lot: str
    decision: str
    class_id: str | None
    forced_class_id: str | None
    forced: str | None
    probability: float
    novelty: float
    unknown: bool
    status: str
    reason: str
    priority: float
    label_class_id: str | None
    label: str | None
    question: Question | None
    alike: list[str]
    unsure: bool
    now: NowOut | None
    good: bool | None
    defect: float | None
    rejected: bool | None
    by_threshold: bool


@dataclass(frozen=True)
class InspectOut:
    """The decision for a posted image. `rejected` is by the station's operating point, where it has good
    classes."""

    sample: str
    decision: str
    class_id: str | None
    forced_class: str
    forced_class_id: str
    probability: float
    novelty: float
    novelty_threshold: float | None
    unknown: bool
    scores: dict[str, float]
    head: int
    latency_ms: float
    kept: bool
    defect: float | None
    rejected: bool | None


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


@dataclass(frozen=True)
class LabelOut:
    """A label event. `current`: nobody has said anything about the sample since, so it can be undone."""

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


class Routes:
    """The interface of one station."""

    def __init__(
        self,
        station: Station,
        state: Callable[[], State],
        *,
        access: Access,
        unsure: Unsure,
        counter: ShiftCounter,
        history: LabelHistory,
        ahead: LookAhead,
        trigger: Callable[[str, str], str] | None = None,
    ) -> None:
        self.station = station
        self.state = state
        self.access = access
        self.unsure = unsure
        self.counter = counter
        self.history = history
        self._trigger = trigger
        self._ahead = ahead
        self._feed = _Feed(state)

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look, label = [Depends(needs(Role.OPERATOR))], [Depends(needs(Role.OPERATOR))]
        change = [Depends(needs(Role.ENGINEER))]
        binary = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
        for path, get in (
            ("/state", self.get_state),
            ("/shift", self.get_shift),
            ("/queue", self.get_queue),
            ("/samples", self.get_samples),
            ("/samples/{sample}", self.get_sample),
            ("/samples/{sample}/labels", self.get_sample_labels),
            ("/labels", self.get_labels),
            ("/heads", self.get_heads),
            ("/suspects", self.get_suspects),
            ("/outlook", self.get_outlook),
        ):
            api.add_api_route(path, get, dependencies=look)
        for path, binary_get in (
            ("/samples/{sample}/image", self.get_image),
            ("/samples/{sample}/heatmap", self.get_heatmap),
        ):
            api.add_api_route(path, binary_get, dependencies=look, response_class=Response)
        api.add_api_route("/events", self.get_events, dependencies=look, response_class=StreamingResponse)
        for path, post in (
            ("/labels", self.post_label),
            ("/labels/undo", self.post_undo),
        ):
            api.add_api_route(path, post, methods=["POST"], status_code=201, dependencies=label)
        api.add_api_route("/samples/{sample}/unsure", self.post_unsure, methods=["POST"], dependencies=label)
        api.add_api_route(
            "/inspect",
            self.post_inspect,
            methods=["POST"],
            dependencies=label,
            openapi_extra={"requestBody": {**binary, "required": True}},
        )
        if self._trigger is not None:
            api.add_api_route("/trigger", self.post_trigger, methods=["POST"], status_code=202, dependencies=label)
        api.add_api_route("/samples/{sample}", self.delete_sample, methods=["DELETE"], dependencies=change)
        api.add_api_route(
            "/heads/{number}/restore", self.post_restore, methods=["POST"], status_code=201, dependencies=change
        )
        return api

    # -- state ----------------------------------------------------------------------------------------------------

    def get_state(self) -> State:
        """Everything the device says of itself."""
        return self.state()

    def get_shift(self) -> ShiftReport:
        """What this shift has brought: frames, parts, rejects, unknown, labels."""
        return self.counter.report()

    async def get_events(self, request: Request, seconds: Seconds | None = None) -> StreamingResponse:
        """Server-sent events: `state` with what /api/state and /api/shift say, whenever that changes; until the
        session ends that asked, or for so many seconds."""
        return StreamingResponse(
            self._feed.events(request, self.counter, float("inf") if seconds is None else seconds),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    # -- samples --------------------------------------------------------------------------------------------------

    def get_queue(self, background: BackgroundTasks, limit: Limit = 20) -> list[SampleOut]:
        """Samples an operator is asked about, most important first; what somebody could not tell comes last."""
        # Not the whole queue, but as much that what comes last is known to come last.
        waiting = self.station.store.samples.queue(max(limit, MAX_COMPARED) + self.unsure.count())
        unsure = self.unsure.among([s.sample_id for s in waiting])
        waiting.sort(key=lambda s: s.sample_id in unsure)  # stable
        background.add_task(self._expect_labels, [s.sample_id for s in waiting[:limit]])
        return self.samples_out(waiting[:limit], alike(waiting[:MAX_COMPARED]), now=True)

    def _expect_labels(self, samples: list[bytes]) -> None:
        """Make pictures durable that will be labelled next, while somebody still looks at them."""
        with contextlib.suppress(StoreFull):  # the label itself will say so
            for sample in samples:
                self.station.courtesy.give_way()
                self.station.store.samples.make_durable([sample])

    def get_samples(
        self,
        limit: Limit = 24,
        status: Literal["seen", "queued", "labelled"] | None = None,
        offset: Offset = 0,
    ) -> list[SampleOut]:
        """Samples, newest first."""
        wanted = None if status is None else SampleStatus(status)
        return self.samples_out(self.station.store.samples.newest(limit=limit, status=wanted, offset=offset))

    def get_sample(self, sample: HexSample) -> SampleOut:
        """One sample, with others of its part that nobody has labelled."""
        found = self.station.store.samples.get(bytes.fromhex(sample))
        if found is None:
            raise _not_kept(sample)
        others = [
            s for s in self.station.store.samples.of_group(found.group, limit=12) if s.sample_id != found.sample_id
        ]
        return self.samples_out([found], {found.sample_id: [s.sample_id for s in others]}, now=True)[0]

    def get_sample_labels(self, sample: HexSample) -> list[LabelOut]:
        """What was said of a sample, the last word first."""
        return self.labels_out(self.history.of_sample(bytes.fromhex(sample)))

    def get_image(self, sample: HexSample) -> Response:
        """A sample's picture, as it was delivered where browsers show that."""
        data = self.station.store.samples.image(bytes.fromhex(sample))
        if data is None:
            raise _not_kept(sample)
        kind = next((kind for first, kind in _IMAGE_KINDS if data.startswith(first)), None)
        if kind is None:
            data, kind = encode_png(decode(data)), "image/png"
        # A sample's id is the digest of its bytes, so what was fetched once never changes.
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})

    def get_heatmap(
        self, sample: HexSample, class_id: HexClass | None = None, against: HexClass | None = None
    ) -> Response:
        """A sample's picture as PNG, the evidence for a class over it: the head's own decision by default.

        The evidence of the class `against` is taken off; by default that of the class that has most of the labels.
        404 where the picture is not kept, the class is not known, or the release gives no maps.
        """
        data = self.station.store.samples.image(bytes.fromhex(sample))
        if data is None:
            raise _not_kept(sample)
        of, other = (None if each is None else bytes.fromhex(each) for each in (class_id, against))
        return Response(encode_png(self.station.heatmap(data, of, other)), media_type="image/png")

    def samples_out(
        self, samples: list[Sample], together: dict[bytes, list[bytes]] | None = None, *, now: bool = False
    ) -> list[SampleOut]:
        """Return samples as the interface says them, `now` with what the head that serves says of them."""
        says = self._says(samples) if now else {}
        serving = self.station.serving
        names, called = self.names(), self.called()
        unsure = self.unsure.among([s.sample_id for s in samples])
        good = self.station.operating.good(names)
        out: list[SampleOut] = []
        for s in samples:
            label = (
                serving.learner.label_of(s.sample_id) if serving and s.status is SampleStatus.LABELLED else None
            )
            forced = None if s.class_id is None else s.class_id.hex()
            shown_good = None if not good else not s.unknown and s.class_id in good
            out.append(
                SampleOut(
                    sample=s.sample_id.hex(),
                    captured_utc=s.captured_utc,
                    source=s.source,
                    group=s.group,
                    lot=s.lot,
                    decision=s.decision,
                    class_id=None if s.unknown else forced,
                    forced_class_id=forced,
                    forced=None if s.class_id is None else called(s.class_id),
                    probability=s.probability,
                    novelty=s.novelty,
                    unknown=s.unknown,
                    status=s.status.value,
                    reason=s.reason,
                    priority=s.priority,
                    label_class_id=None if label is None else label.hex(),
                    label=None if label is None else called(label),
                    question=question_of(s.reason, list(names.values())),
                    alike=[each.hex() for each in (together or {}).get(s.sample_id, [])],
                    unsure=s.sample_id in unsure,
                    now=says.get(s.sample_id),
                    good=shown_good if s.rejected is None else not s.rejected,
                    defect=s.defect,
                    rejected=s.rejected,
                    by_threshold=s.rejected is not None and s.rejected == shown_good,
                )
            )
        return out

    def _says(self, samples: list[Sample]) -> dict[bytes, NowOut]:
        """Return what the head that serves says of those samples that are of its release."""
        serving = self.station.serving
        ours = [] if serving is None else [s for s in samples if s.space == serving.learner.space]
        if serving is None or not ours:
            return {}
        active = serving.learner.head
        decided = active.head.decide(np.stack([s.code for s in ours]))
        found = {}
        for row, s in enumerate(ours):
            best, unknown = int(decided.class_index[row]), bool(decided.unknown[row])
            class_id = None if unknown else active.head.class_ids[best].hex()
            name = UNKNOWN if unknown else active.names[best]
            found[s.sample_id] = NowOut(class_id, name, float(decided.probability[row]))
        return found

    # -- labels ---------------------------------------------------------------------------------------------------

    def get_labels(self, limit: Limit = 50, offset: Offset = 0) -> list[LabelOut]:
        """Label events, the newest first: who said what of which picture, and what was said before."""
        return self.labels_out(self.history.rows(limit, offset))

    def labels_out(self, rows: list[LabelRow], now: Now = in_english) -> list[LabelOut]:
        """Return label events as the interface says them, `now` as `called` does."""
        called, store = self.called(now), self.station.store

        def name(class_id: bytes | None) -> str | None:
            return None if class_id is None else called(class_id)

        return [
            LabelOut(
                device=row.event.device,
                seq=row.event.seq,
                at_utc=row.event.at_us / 1e6,
                who=self.access.name_of(row.event.operator),
                sample=row.event.sample.hex(),
                class_id=None if row.event.class_id is None else row.event.class_id.hex(),
                label=name(row.event.class_id),
                before_class_id=None if row.before is None else row.before.hex(),
                before=name(row.before),
                current=row.current,
                own=row.own,
                kept=store.samples.get(row.event.sample) is not None,
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
            class_id = self.station.class_named(label.class_name)
        wanted = label.samples if label.samples is not None else [label.sample or ""]
        ids = [bytes.fromhex(sample) for sample in dict.fromkeys(wanted)]
        seen = {
            bytes.fromhex(sample): None if each is None else bytes.fromhex(each)
            for sample, each in (label.seen or {}).items()
        }
        who = operator_of(request, label.operator)
        saved = self.station.label_all([(sample, class_id) for sample in ids], who, seen)
        self.counter.labelled(len(ids))
        self.unsure.forget(ids)
        first = saved.records[0].entry.seq
        return SavedOut(True, first, saved.seq, None if class_id is None else class_id.hex(), len(ids))

    def post_undo(self, undo: UndoIn, request: Request) -> SavedOut:
        """Undo labels: each sample is labelled again as it was before, or not at all; on disk when this
        answers."""
        plan = self.history.undoing(undo.first_seq, undo.seq)
        saved = self.station.label_all(plan, operator_of(request, undo.operator))
        class_ids = {class_id for _, class_id in plan}
        only = class_ids.pop() if len(class_ids) == 1 else None
        first = saved.records[0].entry.seq
        return SavedOut(True, first, saved.seq, None if only is None else only.hex(), len(plan))

    def post_unsure(self, sample: HexSample, request: Request, by: ByIn | None = None) -> dict[str, bool]:
        """Somebody cannot tell: nothing is learned, and the sample is asked about again after all others."""
        if self.station.store.samples.get(bytes.fromhex(sample)) is None:
            raise _not_kept(sample)
        self.unsure.mark(bytes.fromhex(sample), operator_of(request, "" if by is None else by.operator))
        return {"saved": True}

    def delete_sample(self, sample: HexSample, request: Request) -> ErasedOut:
        """Delete a picture for good, as one that shows a person; its label, if it has one, is withdrawn first."""
        sample_id = bytes.fromhex(sample)
        kept = self.station.store.samples.get(sample_id)
        withdrawn = kept is not None and kept.status is SampleStatus.LABELLED
        if withdrawn:
            self.station.label_all([(sample_id, None)], operator_of(request, ""))
        # A store that was begun anew knows no sample of a picture that its log has labelled: that one stays.
        said = [] if kept is not None else self.history.of_sample(sample_id)
        stays = bool(said) and said[0].event.class_id is not None
        if (stays or not self.station.store.samples.erase(sample_id)) and kept is None:
            raise _not_kept(sample)
        self.unsure.forget([sample_id])
        self.note(request, "picture erased", sample)
        return ErasedOut(True, withdrawn)

    # -- what was learned -----------------------------------------------------------------------------------------

    def get_heads(self, limit: Limit = 20) -> list[HeadOut]:
        """The heads that served on this device, newest first."""
        return [head_out(row) for row in self.station.store.heads.newest(limit=limit)]

    def post_restore(self, number: HeadNumber, request: Request, by: ByIn | None = None) -> RestoredOut:
        """Bring an earlier head back: this device's labels since it are taken back, all or none."""
        learner = self.station.require().learner
        row = next((r for r in learner.history(self.station.store.limits.keep_heads) if r.number == number), None)
        if row is None:
            raise Refusal(404, f"there is no head {number} in this device's history", "GET /api/heads lists them.")
        if row.space != learner.space:
            raise LabelError(
                f"head {number} was of an earlier release", hint="Publish that release again to go back to it."
            )
        plan = self.history.restoring(row)
        first = seq = None
        if plan:
            saved = self.station.label_all(plan, operator_of(request, "" if by is None else by.operator))
            first, seq = saved.records[0].entry.seq, saved.seq
        self.note(request, "head restored", str(number))
        return RestoredOut(True, len(plan), first, seq, learner.digest() == row.digest, row.digest)

    def get_suspects(self, limit: Limit = 20) -> list[SuspectOut]:
        """Labels that do not fit what all other parts say, the most suspicious first.

        Where somebody has looked again and said the same, it is not asked once more.
        """
        return self.suspects_out(limit)

    def suspects_out(self, limit: int, now: Now = in_english) -> list[SuspectOut]:
        """Return `get_suspects` with names as `called` gives them."""
        called, store = self.called(now), self.station.store
        found = self.station.suspects(MAX_PAGE)
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
            if not self.history.said_twice(each.sample)
        ][:limit]

    def get_outlook(self) -> OutlookReport:
        """What more labels would give; takes seconds after a label, on a thread of its own."""
        return self._ahead.of(self.station.require().learner)

    # -- images from elsewhere ------------------------------------------------------------------------------------

    def post_trigger(self, new: TriggerIn) -> TriggerOut:
        """Take frames of a part now; 429 where inspection cannot follow: the part is then rejected unseen."""
        if self._trigger is None:
            raise Refusal(404, "nothing here takes a trigger", "Set [part] trigger in site.toml.")
        return TriggerOut(self._trigger(new.part, new.lot))

    async def post_inspect(
        self,
        request: Request,
        keep: bool = False,
        part: Annotated[str, Query(max_length=MAX_PART_CHARS), Printable] = "",
        lot: Annotated[str, Query(max_length=MAX_LOT_CHARS), Printable] = "",
    ) -> InspectOut:
        """Decide about the image in the body; `keep` stores it as a sample, `part` says which part it shows, `lot`
        the lot that this is of."""
        data = await request.body()  # of at most `MAX_IMAGE_BYTES`: `SmallBodies`
        seen = await run_in_threadpool(self.station.inspect, data, keep=keep, part=part, lot=lot)
        decision = seen.decision
        finite = abs(decision.threshold) != float("inf")
        return InspectOut(
            sample=seen.sample_id.hex(),
            decision=decision.shown,
            class_id=None if decision.class_id is None else decision.class_id.hex(),
            forced_class=decision.forced,
            forced_class_id=decision.forced_id.hex(),
            probability=decision.probability,
            novelty=decision.novelty,
            novelty_threshold=decision.threshold if finite else None,
            unknown=decision.unknown,
            scores={class_id.hex(): score for class_id, score in decision.scores.items()},
            head=decision.head,
            latency_ms=seen.latency_ms,
            kept=keep,
            defect=decision.defect,
            rejected=decision.rejected,
        )

    def score(self) -> Score | None:
        """Return the honest score of the head that is confirmed; None before it is made."""
        reference = None if self.station.serving is None else self.station.serving.learner.reference
        return None if reference is None else score(reference.left_out, reference.calibration)

    def names(self) -> dict[bytes, str]:
        """Return the classes' names by id."""
        return {c.class_id: c.name for c in self.station.classes()}

    def called(self, now: Now = in_english) -> Callable[[bytes], str]:
        """Return what gives a class's name, also of one that was made part of another since.

        Args:
            now: Joins the last name of such a class and what it is called by now.
        """
        serving = self.station.serving
        return (lambda class_id: class_id.hex()[:8]) if serving is None else serving.learner.called(now)

    def note(self, request: Request, action: str, what: str) -> None:
        """Write a line of the audit log, where there are accounts."""
        if self.access.in_use:
            self.access.note(who_of(request).id, action, what, address_of(request))


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


def operator_of(request: Request, typed: str) -> str:
    """Return who the label log shall name: whoever is logged in, else what the page's user typed."""
    return who_of(request).id or typed


def _not_kept(sample: str) -> Refusal:
    return Refusal(404, f"sample {sample[:12]} is not kept here", "Only the newest unlabelled pictures are kept.")


class _Feed:
    """The state as server-sent events; made once for all who listen, and only while somebody does."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._made: tuple[float, bytes] = (-1e9, b"")
        self._streams = 0

    async def events(self, request: Request, counter: ShiftCounter, seconds: float) -> AsyncIterator[bytes]:
        if self._streams >= MAX_STREAMS:
            return
        self._streams += 1
        last, quiet_s, until_s = b"", 0.0, time.monotonic() + seconds
        app: FastAPI = request.app
        try:
            yield b"retry: 1000\n\n"
            while not getattr(app.state, "stopping", False) and await run_in_threadpool(may_stay, request):
                now = await self._now(counter)
                if now != last:
                    last, quiet_s = now, 0.0
                    yield b"event: state\ndata: " + now + b"\n\n"
                elif quiet_s >= KEEPALIVE_S:
                    quiet_s = 0.0
                    yield b": still here\n\n"
                if time.monotonic() >= until_s:
                    return
                await asyncio.sleep(EVENT_S)
                quiet_s += EVENT_S
        finally:
            self._streams -= 1

    async def _now(self, counter: ShiftCounter) -> bytes:
        at, made = self._made
        if time.monotonic() - at >= EVENT_S / 2:
            made = await run_in_threadpool(self._encode, counter)
            self._made = time.monotonic(), made
        return made

    def _encode(self, counter: ShiftCounter) -> bytes:
        return msgspec.json.encode({"state": self._state(), "shift": counter.report()})
