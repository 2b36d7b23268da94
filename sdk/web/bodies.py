"""How large a request's body may be: said before the body is read, and before anybody needs to be known.

A framework that parses JSON holds all of it in memory first. Nothing that pages take is large, but
for one picture.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 64 * 1024
"""Of any request: the longest that a page sends, a thousand class ids, is 40 KB."""


class SmallBodies:
    """Middleware: a request with a longer body is answered 413, and no more than that much of it is handed on.

    What a request says of its length is believed where it is too much; what comes is counted all the same.

    Args:
        app: Answers the others.
        longer: Bytes for single paths that may have more.
    """

    def __init__(self, app: ASGIApp, *, longer: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._longer = longer or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._longer.get(scope["path"], MAX_BODY_BYTES)
        if _said(scope) > most:
            await _refuse(send, most)
            return
        came, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal came, refused
            message: Message = {"type": "http.disconnect"} if refused else await receive()
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                if came > most:
                    refused = True
                    if not begun:
                        await _refuse(send, most)
                    return {"type": "http.disconnect"}
            return message

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


async def _refuse(send: Send, most: int) -> None:
    body = json.dumps(
        {"error": f"the request has more than {most} bytes", "hint": "Send less at a time."}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
