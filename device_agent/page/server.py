"""Uvicorn on a thread of its own, on a socket that is bound before anything else starts."""

from __future__ import annotations

import socket
import threading
from typing import Final

import uvicorn
from fastapi import FastAPI

from sdk.errors import ConfigError

STOP_TIMEOUT_S: Final = 5.0
"""Longer than any answer takes; a request that hangs beyond it is cut off when the process ends."""
BACKLOG: Final = 128


class PageServer:
    """The page's socket and the thread that serves it.

    Binding at once means that a port in use is told at the start, and that `url` is good from then on: whoever
    calls early waits in the socket's queue.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"the page cannot be served at {host}:{port}: {error.strerror or error}",
                hint="Set another [page] host or port; port 0 takes a free one.",
            ) from error
        # asyncio sets it on sockets whose protocol number is TCP's, which Python leaves 0 here. Without it every
        # answer waits 40 ms for the client's delayed acknowledgement. Accepted sockets inherit it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = host
        self.port = int(self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return (
            f"http://[{host}]:{self.port}/"
            if ":" in host and not host.startswith("[")
            else (f"http://{host}:{self.port}/")
        )

    def start(self, app: FastAPI) -> None:
        """Begin to answer."""
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="page", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Finish the answers under way and close the socket."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()
