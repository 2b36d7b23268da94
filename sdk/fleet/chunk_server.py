"""The fleet's chunks over HTTP: what a server of static files on `DIR/chunks` does, with the fleet's certificates.

A chunk's name is its digest: there is no list, and who does not know a release cannot ask for it. After `headway
fleet tls` only devices with a certificate of this fleet are answered at all; without, it listens on loopback, for
a proxy of the plant's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, HTTPException
from fastapi import Path as FromPath
from fastapi.responses import FileResponse

from sdk.web.server import PageServer

LOOPBACK: Final = "127.0.0.1"
MOST_DEVICES: Final = 2048
"""Connections at a time, where the process may have four times as many files open. A device refused here asks the
broker."""
_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}

Digest = Annotated[str, FromPath(pattern=r"^[0-9a-f]{64}$")]


def make_chunk_app(folder: Path) -> FastAPI:
    """Return an application that serves a folder of chunks under `/chunks/`.

    Args:
        folder: Of a `ChunkStore`.
    """
    app = FastAPI(title="Headway chunks", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/chunks/{digest}", response_class=FileResponse)
    def chunk(digest: Digest) -> FileResponse:
        file = folder / digest
        if not file.is_file():
            raise HTTPException(404, "no such chunk")
        return FileResponse(file, media_type="application/octet-stream", headers=_FOR_EVER)

    return app


@contextlib.contextmanager
def serving_chunks(folder: Path, port: int, tls: Path | None) -> Iterator[str]:
    """Serve chunks for the block; yield the address that devices are to be given.

    Args:
        folder: Of a `ChunkStore`.
        port: 0 takes a free one.
        tls: Folder of the fleet's certificates: then HTTPS on all addresses, for its devices only.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if tls is None:
        server = PageServer(LOOPBACK, port, most=MOST_DEVICES)
    else:
        server = PageServer(
            "0.0.0.0",
            port,
            (tls / "broker.pem", tls / "broker.key"),
            clients=(tls / "ca.pem", tls / "crl.pem"),
            most=MOST_DEVICES,
        )
    server.start(make_chunk_app(folder))
    try:
        yield f"{server.url}chunks/"
    finally:
        server.stop()
