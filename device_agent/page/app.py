"""Routes of the HTTP interface (docs/agent.md): JSON in and out, ids in hex, errors as {error, hint}.

Everything here translates; what happens is the station's. OpenAPI is at /openapi.json.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import jinja2
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from device_agent.camera import encode_png
from device_agent.learner import score_of
from device_agent.outlook import LookAhead, OutlookReport
from device_agent.report import State
from device_agent.station import Station
from device_agent.store import Sample, SampleStatus
from device_agent.trigger import MAX_PART_CHARS
from sdk.errors import (
    BadImages,
    HeadwayError,
    InferenceFailed,
    LabelError,
    NoMaps,
    NoRelease,
    StoreFull,
    TriggerRefused,
    UnknownClassError,
)
from sdk.images import decode

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""An image that somebody posts; a 50-megapixel PNG of a smooth surface stays below it."""
MAX_PAGE: Final = 200

_STATUS: Final[tuple[tuple[type[HeadwayError], int], ...]] = (
    (StoreFull, 507),
    (TriggerRefused, 429),
    (NoRelease, 503),
    (NoMaps, 404),
    (UnknownClassError, 404),
    (LabelError, 409),
    (BadImages, 422),
    (InferenceFailed, 500),
    (HeadwayError, 400),
)
_IMAGE_KINDS: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
)
"""First bytes of what every browser shows; the rest (TIFF) is sent as PNG."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

HexClass = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]
HexSample = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
OperatorName = Annotated[str, Field(max_length=64)]


class LabelIn(BaseModel):
    """A label. One of `class_id` and `class_name`; `class_id` null withdraws the sample's label."""

    model_config = ConfigDict(extra="forbid")
    sample: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    class_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    class_name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    operator: OperatorName = ""


class ClassIn(BaseModel):
    """A new class."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=64)]
    operator: OperatorName = ""


@dataclass(frozen=True)
class SavedOut:
    """The label is on this device's disk. `seq` is its last entry in the device's log."""

    saved: bool
    seq: int
    class_id: str | None


@dataclass(frozen=True)
class ClassOut:
    """A class was defined, and is on this device's disk."""

    saved: bool
    class_id: str
    name: str


class TriggerIn(BaseModel):
    """A part that stands before the cameras now. Without a part id one is made."""

    model_config = ConfigDict(extra="forbid")
    part: Annotated[str, Field(max_length=MAX_PART_CHARS)] = ""


@dataclass(frozen=True)
class TriggerOut:
    """The part's frames are being taken; its verdict goes to the outputs."""

    part: str


@dataclass(frozen=True)
class SampleOut:
    """A sample as it was decided when it was last seen, and its label if it has one.

    `class_id` is of the decision shown, None for unknown; `forced_class_id` of the best class in any case.
    """

    sample: str
    captured_utc: float
    source: str
    group: str
    decision: str
    class_id: str | None
    forced_class_id: str | None
    probability: float
    novelty: float
    unknown: bool
    status: str
    reason: str
    priority: float
    label_class_id: str | None
    label: str | None


@dataclass(frozen=True)
class InspectOut:
    """The decision for a posted image."""

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


@dataclass(frozen=True)
class HeadOut:
    """A head that served on this device."""

    number: int
    created_utc: float
    digest: str
    samples: int
    outcome: str
    reason: str
    balanced_accuracy: float | None


@dataclass(frozen=True)
class SuspectOut:
    """A label that does not fit what all other parts say: look at it again; the head may be the one that errs."""

    sample: str
    labelled: str
    looks_like: str
    suspicion: float


@dataclass(frozen=True)
class ErrorOut:
    """What is wrong, and what to do."""

    error: str
    hint: str


def create_app(
    station: Station,
    state: Callable[[], State],
    *,
    host: str = "127.0.0.1",
    trigger: Callable[[str], str] | None = None,
) -> FastAPI:
    """Return the application for one station.

    Args:
        station: Decides, asks, takes labels.
        state: What the device says of itself now.
        host: Where it is bound. On loopback, requests for other host names are refused (DNS rebinding).
        trigger: Takes the id of a part that stands before the cameras now, and returns it.
    """
    app = FastAPI(
        title="Headway device",
        description="One device's decisions, questions and labels.",
        responses={status: {"model": ErrorOut} for status in (400, 403, 404, 409, 422, 500, 503, 507)},
        docs_url=None,  # its assets come from a content network; /openapi.json is enough
        redoc_url=None,
    )
    here = files("device_agent.page")
    template = jinja2.Environment(autoescape=True).from_string(
        (here / "templates" / "page.html").read_text(encoding="utf-8")
    )
    app.mount("/static", StaticFiles(directory=str(here / "static")), name="static")
    _add_errors(app)
    _add_guard(app, only_loopback=host in _LOOPBACK)
    routes = _Routes(station, state)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return template.render(device=station.store.device)

    app.get("/api/state")(routes.get_state)
    app.get("/api/queue")(routes.get_queue)
    app.get("/api/samples")(routes.get_samples)
    app.get("/api/samples/{sample}")(routes.get_sample)
    app.get("/api/samples/{sample}/image", response_class=Response)(routes.get_image)
    app.get("/api/samples/{sample}/heatmap", response_class=Response)(routes.get_heatmap)
    app.get("/api/heads")(routes.get_heads)
    app.get("/api/suspects")(routes.get_suspects)
    app.get("/api/outlook")(routes.get_outlook)
    app.post("/api/labels", status_code=201)(routes.post_label)
    app.post("/api/classes", status_code=201)(routes.post_class)
    if trigger is not None:

        @app.post("/api/trigger", status_code=202)
        def post_trigger(new: TriggerIn) -> TriggerOut:
            """Take frames of a part now; 429 where inspection cannot follow: the part is then rejected unseen."""
            return TriggerOut(trigger(new.part))

    binary = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    app.post("/api/inspect", openapi_extra={"requestBody": {**binary, "required": True}})(routes.post_inspect)
    return app


class _Routes:
    def __init__(self, station: Station, state: Callable[[], State]) -> None:
        self._station = station
        self._state = state
        self._ahead = LookAhead()

    def get_state(self) -> State:
        """Everything the device says of itself."""
        return self._state()

    def get_queue(self, limit: Limit = 20) -> list[SampleOut]:
        """Samples an operator is asked about, most important first."""
        return self._samples(self._station.store.queue(limit))

    def get_samples(
        self,
        limit: Limit = 24,
        status: Literal["seen", "queued", "labelled"] | None = None,
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    ) -> list[SampleOut]:
        """Samples, newest first."""
        wanted = None if status is None else SampleStatus(status)
        return self._samples(self._station.store.samples(limit=limit, status=wanted, offset=offset))

    def get_sample(self, sample: HexSample) -> SampleOut:
        """One sample."""
        found = self._station.store.sample(bytes.fromhex(sample))
        if found is None:
            raise _not_kept(sample)
        return self._samples([found])[0]

    def get_image(self, sample: HexSample) -> Response:
        """A sample's picture, as it was delivered where browsers show that."""
        data = self._station.store.image(bytes.fromhex(sample))
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
        data = self._station.store.image(bytes.fromhex(sample))
        if data is None:
            raise _not_kept(sample)
        of, other = (None if each is None else bytes.fromhex(each) for each in (class_id, against))
        return Response(encode_png(self._station.heatmap(data, of, other)), media_type="image/png")

    def get_heads(self, limit: Limit = 20) -> list[HeadOut]:
        """The heads that served on this device, newest first."""
        scored = [(row, score_of(row)) for row in self._station.store.heads(limit=limit)]
        return [
            HeadOut(
                number=row.number,
                created_utc=row.created_utc,
                digest=row.digest,
                samples=row.samples,
                outcome=row.outcome.value,
                reason=row.reason,
                balanced_accuracy=None if score is None else float(score.balanced_accuracy),
            )
            for row, score in scored
        ]

    def get_suspects(self, limit: Limit = 20) -> list[SuspectOut]:
        """Labels that do not fit what all other parts say, the most suspicious first."""
        names = {c.class_id: c.name for c in self._station.classes()}
        return [
            SuspectOut(
                sample=each.sample.hex(),
                labelled=names.get(each.labelled, each.labelled.hex()[:8]),
                looks_like=names.get(each.looks_like, each.looks_like.hex()[:8]),
                suspicion=each.suspicion,
            )
            for each in self._station.suspects(limit)
        ]

    def get_outlook(self) -> OutlookReport:
        """What more labels would give; takes seconds after a label, on a thread of its own."""
        return self._ahead.of(self._station.require().learner)

    def post_label(self, label: LabelIn) -> SavedOut:
        """Save a label; it is on disk when this answers, and learned within about a second."""
        if label.class_id is not None and label.class_name is not None:
            raise LabelError("both class_id and class_name are given", hint="Give one of them.")
        if label.class_name is None and "class_id" not in label.model_fields_set:
            raise _Refusal(422, "neither class_id nor class_name is given", "Withdraw with class_id null.")
        class_id = None if label.class_id is None else bytes.fromhex(label.class_id)
        if label.class_name is not None:
            class_id = self._station.class_named(label.class_name)
        saved = self._station.label(bytes.fromhex(label.sample), class_id, label.operator)
        return SavedOut(True, saved.seq, None if class_id is None else class_id.hex())

    def post_class(self, new: ClassIn) -> ClassOut:
        """Define a class; it is on disk when this answers."""
        class_id = self._station.define_class(new.name, new.operator)
        return ClassOut(True, class_id.hex(), " ".join(new.name.split()))

    async def post_inspect(
        self, request: Request, keep: bool = False, part: Annotated[str, Query(max_length=150)] = ""
    ) -> InspectOut:
        """Decide about the image in the body; `keep` stores it as a sample, `part` says which part it shows."""
        data = await _body(request)
        seen = await run_in_threadpool(self._station.inspect, data, keep=keep, part=part)
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
        )

    def _samples(self, samples: list[Sample]) -> list[SampleOut]:
        serving = self._station.serving
        names = {c.class_id: c.name for c in self._station.classes()}
        out: list[SampleOut] = []
        for s in samples:
            label = (
                serving.learner.label_of(s.sample_id) if serving and s.status is SampleStatus.LABELLED else None
            )
            forced = None if s.class_id is None else s.class_id.hex()
            out.append(
                SampleOut(
                    sample=s.sample_id.hex(),
                    captured_utc=s.captured_utc,
                    source=s.source,
                    group=s.group,
                    decision=s.decision,
                    class_id=None if s.unknown else forced,
                    forced_class_id=forced,
                    probability=s.probability,
                    novelty=s.novelty,
                    unknown=s.unknown,
                    status=s.status.value,
                    reason=s.reason,
                    priority=s.priority,
                    label_class_id=None if label is None else label.hex(),
                    label=None if label is None else names.get(label, label.hex()[:8]),
                )
            )
        return out


class _Refusal(Exception):
    """An answer of the interface's own that no error of the device stands for."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status, self.hint = status, hint


def _not_kept(sample: str) -> _Refusal:
    return _Refusal(404, f"sample {sample[:12]} is not kept here", "Only the newest unlabelled pictures are kept.")


async def _body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        _Refusal: it is too large.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _Refusal(413, f"over {MAX_BODY_BYTES} bytes", "Send one image, compressed.")
        parts.append(part)
    return b"".join(parts)


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, error: str, hint: str) -> JSONResponse:
        return JSONResponse({"error": error, "hint": hint}, status)

    def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HeadwayError)
        return answer(next(s for kind, s in _STATUS if isinstance(error, kind)), str(error), error.hint)

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
        return answer(422, f"{where}: {first.get('msg', 'invalid')}".removeprefix(": "), "See /openapi.json.")

    def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        return answer(error.status_code, str(error.detail), "See /openapi.json.")

    def own(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, _Refusal)
        return answer(error.status, str(error), error.hint)

    app.add_exception_handler(_Refusal, own)
    app.add_exception_handler(HeadwayError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http)


def _add_guard(app: FastAPI, *, only_loopback: bool) -> None:
    """Refuse what another site's script in the operator's browser could send, and set the page's headers."""

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        if only_loopback and urlsplit(f"//{host}").hostname not in _LOOPBACK:
            return _refused(f"this page is not {host[:80]!r}", "Open it as http://127.0.0.1 and its port.")
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            return _refused("another site's page may not write here", "Open the device's own page.")
        response = await go_on(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if request.url.path.startswith("/api/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def _refused(error: str, hint: str) -> JSONResponse:
    return JSONResponse({"error": error, "hint": hint}, 403)
