"""What the device says of itself and of the shift, asked for or as it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from device_agent.page.access import Role
from device_agent.page.counts import ShiftCounter, ShiftReport
from device_agent.page.guard import may_stay, needs
from device_agent.report import State

EVENT_S: Final = 0.4
"""The page hears of a change within this; a state takes about a millisecond to make."""
ALIVE_S: Final = 5.0
"""A stream says something at least so often: a page that has heard nothing for twice as long asks whether the
device is still there (`base.js`). An event, since scripts hear of no comment."""
MAX_STREAMS: Final = 64

Seconds = Annotated[int, Query(ge=0, le=86_400)]


class States:
    """The routes for it.

    Args:
        state: What the device says of itself now.
        counter: What the shift has brought.
    """

    def __init__(self, state: Callable[[], State], counter: ShiftCounter) -> None:
        self._state = state
        self._counter = counter
        self._feed = _Feed(state)

    def router(self) -> APIRouter:
        """Return all routes."""
        api = APIRouter(prefix="/api")
        look = [Depends(needs(Role.OPERATOR))]
        api.add_api_route("/state", self.get_state, dependencies=look)
        api.add_api_route("/shift", self.get_shift, dependencies=look)
        api.add_api_route("/events", self.get_events, dependencies=look, response_class=StreamingResponse)
        return api

    def get_state(self) -> State:
        """Everything the device says of itself."""
        return self._state()

    def get_shift(self) -> ShiftReport:
        """What this shift has brought: frames, parts, rejects, unknown, labels."""
        return self._counter.report()

    async def get_events(self, request: Request, seconds: Seconds | None = None) -> StreamingResponse:
        """Server-sent events: `state` with what /api/state and /api/shift say, whenever that changes, and
        `alive` where nothing has for some seconds; until the session ends that asked, or for so many seconds."""
        return StreamingResponse(
            self._feed.events(request, self._counter, float("inf") if seconds is None else seconds),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )


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
                elif quiet_s >= ALIVE_S:
                    quiet_s = 0.0
                    yield b"event: alive\ndata: {}\n\n"
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
