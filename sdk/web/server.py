"""Uvicorn on a thread of its own, on a socket that is bound before anything else starts.

Whom the socket lets in, and how long they may stay silent, is `connections`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from sdk.errors import ConfigError
from sdk.web.clients import CheckedClients
from sdk.web.connections import MOST, SILENT_S, Listener

STOP_TIMEOUT_S: Final = 5.0
"""Longer than any answer takes; a request that hangs beyond it is cut off when the process ends."""
BACKLOG: Final = 128


class PageServer:
    """The page's socket and the thread that serves it.

    Binding at once means that a port in use is told at the start, and that `url` is good from then on: whoever
    calls early waits in the socket's queue.

    Args:
        host: Where to bind.
        port: 0 takes a free one.
        tls: Certificate and private key, PEM; None serves plain HTTP.
        clients: With it only clients with a certificate are answered: the authority's PEM, and its list of those
            revoked, which may change at any time.
        most: Connections at a time, as `Listener` counts them.
        silent_s: After so long without a whole question one is ended.

    Raises:
        ConfigError: the address cannot be bound, or the certificate not be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: tuple[Path, Path] | None = None,
        *,
        clients: tuple[Path, Path] | None = None,
        most: int = MOST,
        silent_s: float = SILENT_S,
    ) -> None:
        if tls is not None:
            _check_certificate(*tls)
        self._tls = tls
        self._clients = clients
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"the page cannot be served at {host}:{port}: {error.strerror or error}",
                hint="Choose another host or port; port 0 takes a free one.",
            ) from error
        self._socket = Listener(bound, most, silent_s)
        # asyncio sets it on sockets whose protocol number is TCP's, which Python may leave 0. Without it every
        # answer waits 40 ms for the client's delayed acknowledgement. Accepted sockets inherit it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = host
        self.port = int(self._socket.getsockname()[1])
        self._app: FastAPI | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "https" if self.secure else "http"
        return f"{scheme}://[{host}]:{self.port}/" if ":" in host else f"{scheme}://{host}:{self.port}/"

    @property
    def secure(self) -> bool:
        """Whether it is served over TLS."""
        return self._tls is not None

    def start(self, app: FastAPI) -> None:
        """Begin to answer."""
        cert, key = self._tls or (None, None)
        config = uvicorn.Config(
            app,
            loop="asyncio",  # others do not ask the listening socket
            http="h11",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            server_header=False,
            proxy_headers=False,  # who asks is who connects; anybody can write a forwarding header
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
        clients = None
        if self._clients is not None and self._tls is not None:
            clients = CheckedClients(*self._tls, *self._clients)
            config.load()
            config.ssl = clients.context()
        self._app = app
        self._server = _Server(config, self._socket, clients)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="page", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Finish the answers under way and close the socket."""
        if self._app is not None:
            self._app.state.stopping = True  # streams of events end by themselves
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()


class _Server(uvicorn.Server):
    """Ends connections that ask nothing, and those of clients that were revoked since they connected."""

    def __init__(self, config: uvicorn.Config, listener: Listener, clients: CheckedClients | None) -> None:
        super().__init__(config)
        self._listener = listener
        self._clients = clients

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by Uvicorn in the loop that is to accept."""
        self._listener.take_errors(asyncio.get_running_loop())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called by Uvicorn ten times a second."""
        if self._clients is not None:
            for connection in list(self.server_state.connections):
                if not self._clients.may_stay(connection.transport.get_extra_info("peercert")):
                    connection.transport.abort()
        if counter % 10 == 0:
            self._listener.end_silent(self.server_state.connections)
        return await super().on_tick(counter)


@contextlib.contextmanager
def serving_page(app: FastAPI, host: str, port: int) -> Iterator[str]:
    """Serve a page for the block; yield its address.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server = PageServer(host, port)
    server.start(app)
    try:
        yield server.url
    finally:
        server.stop()


def mount_shared(app: FastAPI) -> None:
    """Serve what pages share at `/static/shared/`. To be called before `/static` is mounted."""
    app.mount("/static/shared", StaticFiles(directory=str(files("sdk.web") / "static")), name="shared")


def _check_certificate(cert: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the page's certificate {cert} cannot be used: {error.strerror or error}",
            hint="Certificate and key are PEM files that belong together, readable for this process.",
        ) from error
