"""How large a request's body may be, and how long in coming: before it is parsed, and before anybody is known.

A framework that parses JSON holds all of it in memory first. Nothing that pages take is large, but
for one picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 64 * 1024
"""Of any request: the longest that a page sends, a thousand class ids, is 40 KB."""
IN_TIME_S: Final = 30.0
"""For all of such a body: `connections` ends who asks nothing, and not who never ends a question."""


class SmallBodies:
    """Middleware: a request with a longer body is answered 413, and no more than that much of it is handed on.

    One whose body is not there in time is answered 408.

    What a request says of its length is believed where it is too much; what comes is counted all the same.

    Args:
        app: Answers the others.
        longer: Bytes for single paths that may have more, and take as long as they like.
        in_time_s: For the others.
    """

    def __init__(
        self, app: ASGIApp, *, longer: Mapping[str, int] | None = None, in_time_s: float = IN_TIME_S
    ) -> None:
        self._in_time_s = in_time_s
        self._app = app
        self._longer = longer or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._longer.get(scope["path"], MAX_BODY_BYTES)
        if _said(scope) > most:
            await _refuse(send, 413, f"the request has more than {most} bytes")
            return
        until_s = None if scope["path"] in self._longer else time.monotonic() + self._in_time_s
        came, begun, whole, refused = 0, False, False, False

        async def next_part() -> Message:
            if whole or until_s is None:
                return await receive()
            return await asyncio.wait_for(receive(), until_s - time.monotonic())

        async def counted() -> Message:
            nonlocal came, whole, refused
            if refused:
                return {"type": "http.disconnect"}
            status, error = 413, f"the request has more than {most} bytes"
            try:
                message = await next_part()
            except asyncio.TimeoutError:
                status, error = 408, "the request did not come in time"
            else:
                came += len(message.get("body", b""))
                whole = whole or not message.get("more_body", False)
                if came <= most:
                    return message
            refused = True
            if not begun:
                await _refuse(send, status, error)
            return {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            nonlocal begun
            if not refused:
                begun = True
                await send(message)

        # To the application the client is gone, which it may say by an exception of its framework's.
        try:
            await self._app(scope, counted, unless_refused)
        except Exception:
            if not refused:
                raise


def _said(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            with contextlib.suppress(ValueError):  # then the server has refused it
                return int(value)
    return 0


async def _refuse(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error, "hint": "Send less, all of it at once."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
