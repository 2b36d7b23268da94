"""The page's application: routes, guard and errors, composed for one station."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from device_agent.config import LOOPBACK
from device_agent.courtesy import Courtesy
from device_agent.outlook import BUDGET_S, LookAhead
from device_agent.page.access import Access
from device_agent.page.asked import Unsure
from device_agent.page.behind import Behind
from device_agent.page.book import open_book
from device_agent.page.classes import Classes, PutAway
from device_agent.page.counts import ShiftCounter
from device_agent.page.desk import Desk
from device_agent.page.guard import Guard
from device_agent.page.history import LabelHistory
from device_agent.page.inspection import MAX_IMAGE_BYTES, Inspection
from device_agent.page.labels import Labels
from device_agent.page.learned import Learned
from device_agent.page.pages import Pages, Subjects
from device_agent.page.people import People
from device_agent.page.proxy import Proxy
from device_agent.page.quality import Quality
from device_agent.page.refusal import ErrorOut, Refusal
from device_agent.page.samples import Samples
from device_agent.page.state import States
from device_agent.report import State
from device_agent.station import Serving, Station
from sdk.errors import (
    AccessError,
    AccountRefused,
    BadImages,
    HeadwayError,
    InferenceFailed,
    LabelError,
    LastAdmin,
    LoginFailed,
    NameTaken,
    NoAccount,
    NoMaps,
    NoRelease,
    StoreFull,
    TooManyTries,
    TriggerRefused,
    UnknownClassError,
)
from sdk.web.bodies import SmallBodies
from sdk.web.server import mount_shared

_STATUS: Final[tuple[tuple[type[HeadwayError], int], ...]] = (
    (StoreFull, 507),
    (NoRelease, 503),
    (NoMaps, 404),
    (UnknownClassError, 404),
    (LabelError, 409),
    (BadImages, 422),
    (LoginFailed, 401),
    (TooManyTries, 429),
    (TriggerRefused, 429),
    (NoAccount, 404),
    (NameTaken, 409),
    (LastAdmin, 409),
    (AccountRefused, 422),
    (AccessError, 403),
    (InferenceFailed, 500),
    (HeadwayError, 400),
)
"""The first that fits."""
_ANSWERS: Final = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 507)
"""Other than well."""
SAVES: Final = frozenset({"/api/labels", "/api/labels/undo", "/api/classes"})
"""Somebody with a finger over the next button waits for these."""


def create_app(
    station: Station,
    state: Callable[[], State],
    *,
    host: str = "127.0.0.1",
    secure: bool = False,
    public_url: str = "",
    access: Access | None = None,
    counter: ShiftCounter | None = None,
    trigger: Callable[[str, str], str] | None = None,
    outlook_s: float = BUDGET_S,
) -> FastAPI:
    """Return the application for one station.

    Args:
        station: Decides, asks, takes labels.
        state: What the device says of itself now.
        host: Where it is bound. On loopback, requests for other host names are refused (DNS rebinding).
        secure: Whether it is served over TLS.
        public_url: What people call it behind a proxy on this machine, which has TLS; empty without.
        access: Its accounts; by default those in the store's folder.
        counter: What the shift has brought, in the accounts' file; by default one that nobody tells of parts.
        trigger: Takes the id of a part that stands before the cameras now, and its lot; returns the id.
        outlook_s: How long working out what more labels would give may take.
    """
    access = access or Access(open_book(station.store.folder))
    book = access.book
    counter = counter or ShiftCounter(book)
    app = FastAPI(
        title="Headway device",
        description="One device's decisions, questions and labels. docs/agent.md is the guide.",
        responses={status: {"model": ErrorOut} for status in _ANSWERS},
        docs_url=None,  # its assets come from a content network; /openapi.json is enough
        redoc_url=None,
        lifespan=_writing(counter),
    )
    mount_shared(app)
    app.mount("/static", StaticFiles(directory=str(files("device_agent.page") / "static")), name="static")
    _add_errors(app)
    app.add_middleware(SavesFirst, courtesy=station.courtesy)  # within the guard: not for whoever may not save
    # The login is for everybody: its body too is counted before it is read.
    app.add_middleware(SmallBodies, longer={"/api/inspect": MAX_IMAGE_BYTES})
    proxy = Proxy.at(public_url) if public_url else None
    secure = secure or proxy is not None
    app.middleware("http")(Guard(access, only_loopback=host in LOOPBACK, secure=secure, proxy=proxy))
    history = LabelHistory(station.store, _ReleaseClasses(station))
    put_away = PutAway(station, book, history)
    unsure = Unsure(book)
    desk = Desk(station, lambda: put_away.offered(state()), access)
    labels, samples = Labels(desk, history, unsure, counter), Samples(desk, history, unsure)
    quality = Quality(desk, book)
    subjects = Subjects(
        labels=labels,
        learned=Learned(desk, history, LookAhead(outlook_s)),
        classes=Classes(desk, put_away),
        quality=quality,
        behind=Behind(desk, quality.counted, history, labels, samples),
        people=People(access, secure=secure),
    )
    for router in (
        States(desk.state, counter).router(),
        samples.router(),
        labels.router(),
        subjects.learned.router(),
        Inspection(station, trigger).router(),
        subjects.classes.router(),
        quality.router(),
        subjects.behind.router(),
        subjects.people.router(),
        Pages(desk, history, subjects).router(),
    ):
        app.include_router(router)
    return app


def _writing(counter: ShiftCounter) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return what keeps the shift's counters for as long as the page is served; whoever stops it has stopped the
    frames before."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        writing = asyncio.create_task(counter.write_on())
        try:
            yield
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
            await run_in_threadpool(counter.flush)

    return lifespan


class SavesFirst:
    """Middleware: while a label is being saved, from the request to the answer, what can wait gives way."""

    def __init__(self, app: ASGIApp, *, courtesy: Courtesy) -> None:
        self._app = app
        self._courtesy = courtesy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        saves = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in SAVES
        with self._courtesy.saving() if saves else contextlib.nullcontext():
            await self._app(scope, receive, send)


class _ReleaseClasses:
    """What the serving release says of its own samples, read once for each release."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._read: tuple[Serving | None, dict[bytes, bytes]] = (None, {})

    def __call__(self, sample: bytes) -> bytes | None:
        serving = self._station.serving
        if serving is None:
            return None
        known = self._read
        if known[0] is not serving:
            base = serving.bundle.base(serving.pipeline.precision)
            known = self._read = serving, dict(zip(base.samples, base.class_ids, strict=True))
        return known[1].get(sample)


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
        assert isinstance(error, Refusal)
        return answer(error.status, str(error), error.hint)

    app.add_exception_handler(Refusal, own)
    app.add_exception_handler(HeadwayError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http)
