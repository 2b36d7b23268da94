"""Inspection on demand: of an image that somebody posts, or of a part that stands before the cameras now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, BeforeValidator, Field

from device_agent.page.access import Role
from device_agent.page.fields import RequestBody
from device_agent.page.guard import needs
from device_agent.page.refusal import Refusal
from device_agent.station import Station
from device_agent.trigger import MAX_LOT_CHARS, MAX_PART_CHARS, as_text

MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""An image that somebody posts; a 50-megapixel PNG of a smooth surface stays below it."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a part id or lot is of printable characters")
    return text


Printable: Final = AfterValidator(_printable)
"""As a trigger over MQTT (`device_agent.trigger.part_of`)."""


class TriggerIn(RequestBody):
    """A part that stands before the cameras now. Without a part id one is made."""

    part: Annotated[str, Field(max_length=MAX_PART_CHARS), Printable, BeforeValidator(as_text)] = ""
    lot: Annotated[str, Field(max_length=MAX_LOT_CHARS), Printable, BeforeValidator(as_text)] = ""


@dataclass(frozen=True)
class TriggerOut:
    """The part's frames are being taken; its verdict goes to the outputs."""

    part: str


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


class Inspection:
    """The routes for it.

    Args:
        station: Decides.
        trigger: Takes the id of a part that stands before the cameras now, and its lot; returns the id. None where
            nothing here takes a trigger.
    """

    def __init__(self, station: Station, trigger: Callable[[str, str], str] | None) -> None:
        self._station = station
        self._trigger = trigger

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        label = [Depends(needs(Role.OPERATOR))]
        binary = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
        api.add_api_route(
            "/inspect",
            self.post_inspect,
            methods=["POST"],
            dependencies=label,
            openapi_extra={"requestBody": {**binary, "required": True}},
        )
        if self._trigger is not None:
            api.add_api_route("/trigger", self.post_trigger, methods=["POST"], status_code=202, dependencies=label)
        return api

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
        seen = await run_in_threadpool(self._station.inspect, data, keep=keep, part=part, lot=lot)
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
