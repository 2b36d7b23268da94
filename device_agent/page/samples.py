"""The samples that are kept here: their pictures, what was decided of them, and which wait for an answer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, Request, Response

from device_agent.camera import encode_png
from device_agent.page.access import Role
from device_agent.page.alike import MAX_ALIKE, alike
from device_agent.page.asked import Question, Unsure, question_of
from device_agent.page.desk import Desk
from device_agent.page.fields import ByIn, ClassQuery, Limit, Offset, SamplePath
from device_agent.page.guard import needs, operator_of
from device_agent.page.history import LabelHistory
from device_agent.page.refusal import Refusal
from device_agent.sample import Sample, SampleStatus
from device_agent.station import UNKNOWN
from sdk.errors import StoreFull
from sdk.images import decode

MAX_COMPARED: Final = 100
"""So many of the queue are looked through for pictures that are alike: 5 ms at d = 1280."""
_IMAGE_KINDS: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
)
"""First bytes of what every browser shows; the rest (TIFF) is sent as PNG."""


@dataclass(frozen=True)
class ErasedOut:
    """A picture is gone from this device; whether a label of it was withdrawn first."""

    erased: bool
    withdrawn: bool


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


class Samples:
    """The routes for samples.

    Args:
        desk: The station.
        history: What was said of them.
        unsure: Which of them somebody could not tell.
    """

    def __init__(self, desk: Desk, history: LabelHistory, unsure: Unsure) -> None:
        self._desk, self._station = desk, desk.station
        self._history = history
        self._unsure = unsure

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look = [Depends(needs(Role.OPERATOR))]
        change = [Depends(needs(Role.ENGINEER))]
        api.add_api_route("/queue", self.get_queue, dependencies=look)
        api.add_api_route("/samples", self.get_samples, dependencies=look)
        api.add_api_route("/samples/{sample}", self.get_sample, dependencies=look)
        api.add_api_route("/samples/{sample}/image", self.get_image, dependencies=look, response_class=Response)
        api.add_api_route(
            "/samples/{sample}/heatmap", self.get_heatmap, dependencies=look, response_class=Response
        )
        api.add_api_route("/samples/{sample}/unsure", self.post_unsure, methods=["POST"], dependencies=look)
        api.add_api_route("/samples/{sample}", self.delete_sample, methods=["DELETE"], dependencies=change)
        return api

    def get_queue(self, background: BackgroundTasks, limit: Limit = 20) -> list[SampleOut]:
        """Samples an operator is asked about, most important first; what somebody could not tell comes last."""
        # Not the whole queue, but as much that what comes last is known to come last.
        waiting = self._station.store.samples.queue(max(limit, MAX_COMPARED) + self._unsure.count())
        unsure = self._unsure.among([s.sample_id for s in waiting])
        waiting.sort(key=lambda s: s.sample_id in unsure)  # stable
        background.add_task(self._expect_labels, [s.sample_id for s in waiting[:limit]])
        return self.samples_out(waiting[:limit], alike(waiting[:MAX_COMPARED]), now=True)

    def _expect_labels(self, samples: list[bytes]) -> None:
        """Make pictures durable that will be labelled next, while somebody still looks at them."""
        with contextlib.suppress(StoreFull):  # the label itself will say so
            for sample in samples:
                self._station.courtesy.give_way()
                self._station.store.samples.make_durable([sample])

    def get_samples(
        self,
        limit: Limit = 24,
        status: Literal["seen", "queued", "labelled"] | None = None,
        offset: Offset = 0,
    ) -> list[SampleOut]:
        """Samples, newest first."""
        wanted = None if status is None else SampleStatus(status)
        return self.samples_out(self._station.store.samples.newest(limit=limit, status=wanted, offset=offset))

    def get_sample(self, sample: SamplePath) -> SampleOut:
        """One sample, with others of its part that nobody has labelled."""
        found = self._station.store.samples.get(bytes.fromhex(sample))
        if found is None:
            raise _not_kept(sample)
        return self.with_others([found])[0]

    def get_image(self, sample: SamplePath) -> Response:
        """A sample's picture, as it was delivered where browsers show that."""
        data = self._station.store.samples.image(bytes.fromhex(sample))
        if data is None:
            raise _not_kept(sample)
        kind = next((kind for first, kind in _IMAGE_KINDS if data.startswith(first)), None)
        if kind is None:
            data, kind = encode_png(decode(data)), "image/png"
        # A sample's id is the digest of its bytes, so what was fetched once never changes.
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})

    def get_heatmap(
        self, sample: SamplePath, class_id: ClassQuery | None = None, against: ClassQuery | None = None
    ) -> Response:
        """A sample's picture as PNG, the evidence for a class over it: the head's own decision by default.

        The evidence of the class `against` is taken off; by default that of the class that has most of the labels.
        404 where the picture is not kept, the class is not known, or the release gives no maps.
        """
        data = self._station.store.samples.image(bytes.fromhex(sample))
        if data is None:
            raise _not_kept(sample)
        of, other = (None if each is None else bytes.fromhex(each) for each in (class_id, against))
        return Response(encode_png(self._station.heatmap(data, of, other)), media_type="image/png")

    def post_unsure(self, sample: SamplePath, request: Request, by: ByIn | None = None) -> dict[str, bool]:
        """Somebody cannot tell: nothing is learned, and the sample is asked about again after all others."""
        if self._station.store.samples.get(bytes.fromhex(sample)) is None:
            raise _not_kept(sample)
        self._unsure.mark(bytes.fromhex(sample), operator_of(request, "" if by is None else by.operator))
        return {"saved": True}

    def delete_sample(self, sample: SamplePath, request: Request) -> ErasedOut:
        """Delete a picture for good, as one that shows a person; its label, if it has one, is withdrawn first."""
        sample_id = bytes.fromhex(sample)
        kept = self._station.store.samples.get(sample_id)
        withdrawn = kept is not None and kept.status is SampleStatus.LABELLED
        if withdrawn:
            self._station.label_all([(sample_id, None)], operator_of(request, ""))
        # A store that was begun anew knows no sample of a picture that its log has labelled: that one stays.
        said = [] if kept is not None else self._history.of_sample(sample_id)
        stays = bool(said) and said[0].event.class_id is not None
        if (stays or not self._station.store.samples.erase(sample_id)) and kept is None:
            raise _not_kept(sample)
        self._unsure.forget([sample_id])
        self._desk.note(request, "picture erased", sample)
        return ErasedOut(True, withdrawn)

    def with_others(self, samples: list[Sample]) -> list[SampleOut]:
        """Return samples as the interface says them, with others of the part of each that nobody has labelled."""
        of_part = self._station.store.samples.of_group
        others = {
            s.sample_id: [o.sample_id for o in of_part(s.group, limit=MAX_ALIKE) if o.sample_id != s.sample_id]
            for s in samples
        }
        return self.samples_out(samples, others, now=True)

    def samples_out(
        self, samples: list[Sample], together: dict[bytes, list[bytes]] | None = None, *, now: bool = False
    ) -> list[SampleOut]:
        """Return samples as the interface says them, `now` with what the head that serves says of them."""
        says = self._says(samples) if now else {}
        serving = self._station.serving
        names, called = self._desk.names(), self._desk.called()
        unsure = self._unsure.among([s.sample_id for s in samples])
        good = self._station.operating.good(names)
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
        serving = self._station.serving
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


def _not_kept(sample: str) -> Refusal:
    return Refusal(404, f"sample {sample[:12]} is not kept here", "Only the newest unlabelled pictures are kept.")
