"""Uvicorn on a thread of its own, on a loopback socket that is bound before anything else starts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from sdk.errors import FleetError

HOST: Final = "127.0.0.1"
"""It asks nobody who they are. On a network a proxy with the plant's own log-in belongs before it."""
STOP_TIMEOUT_S: Final = 5.0


@contextlib.contextmanager
def serving_page(app: FastAPI, port: int) -> Iterator[str]:
    """Serve a page for the block; yield its address.

    Args:
        app: What to serve.
        port: 0 takes a free one.

    Raises:
        FleetError: the port is taken.
    """
    try:
        bound = socket.create_server((HOST, port))
    except OSError as error:
        raise FleetError(
            f"the page cannot be served at {HOST}:{port}: {error.strerror or error}",
            hint="Give another --page-port; 0 takes a free one.",
        ) from error
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="fleet-page", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(STOP_TIMEOUT_S)
        bound.close()
