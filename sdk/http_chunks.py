"""Chunks by digest from a plain HTTP(S) server, beside the broker: the only importer of urllib3.

`BASE/<sha256>` is a chunk. Any server of static files will do, a cache of the plant's too: the name says what
the bytes must be, so nothing about it has to be trusted. Rules this module keeps:

- A server that does not answer as it should costs little time and nothing else: what does not come from there
  comes from the broker. Every wait ends, however slowly it drips.
- No more than a chunk is read of any answer. No redirect is followed, nothing is unpacked, no name is guessed.
- Only bytes that have the digest are handed on.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from sdk.errors import ConfigError
from sdk.wire import MAX_CHUNK_BYTES

OK: Final = 200
BLOCK_BYTES: Final = 16 * 1024
HEARTBEAT_S: Final = 0.25
"""How soon a request to stop is seen."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HttpLimits:
    """How a server is asked.

    Attributes:
        connections: Chunks asked for at once: at 100 ms round trip four carry 2.5 MB/s.
        connect_s: To connect, TLS included.
        silent_s: Between two blocks.
        chunk_s: For one chunk, however it drips; at 112 KiB in ten seconds the broker is faster.
        misses: So many chunks in a row that did not come end the attempt.
    """

    connections: int = 4
    connect_s: float = 3.0
    silent_s: float = 5.0
    chunk_s: float = 10.0
    misses: int = 3


class Missed(Exception):
    """A chunk did not come, and why: for the log."""


class HttpChunks:
    """A server of chunks.

    Args:
        url: What stands before a digest, as in `https://fleet.plant:8443/chunks/`.
        ca_file: PEM of the authority that signed the server's certificate; the system's without.
        cert_file: Our own certificate, PEM, where the server asks for one.
        key_file: Its private key.
        limits: Sizes and times.

    Raises:
        ConfigError: no http or https address, or a file that cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        limits: HttpLimits = HttpLimits(),
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"chunks.url: {url!r} is no http address", hint="https://fleet.plant:8443/chunks/")
        if parts.username is not None:
            raise ConfigError(
                "chunks.url holds a user name", hint="Secrets stand in files: use cert_file and key_file."
            )
        for file in (ca_file, cert_file, key_file):
            if file is not None and not file.is_file():
                raise ConfigError(f"chunks: {file} is no file", hint="`headway fleet enroll` writes them.")
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._base = url if url.endswith("/") else f"{url}/"
        self._limits = limits
        self._files = [None if file is None else str(file) for file in (ca_file, cert_file, key_file)]

    def _open(self) -> urllib3.PoolManager:
        ca_file, cert_file, key_file = self._files
        return urllib3.PoolManager(
            num_pools=1,
            maxsize=self._limits.connections,
            retries=False,
            timeout=urllib3.Timeout(connect=self._limits.connect_s, read=self._limits.silent_s),
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )

    def fetch(self, digests: Iterable[str], take: Callable[[str, bytes], None], stop: threading.Event) -> int:
        """Ask for chunks, several at once; return how many came.

        Ends early when `stop` is set, or when the server does not seem to have them.

        Args:
            digests: Which.
            take: Given each that came, on this thread, in any order.
            stop: Set it to end.
        """
        rest = iter(digests)
        asks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        told: queue.SimpleQueue[tuple[str, bytes | Missed]] = queue.SimpleQueue()
        pool = self._open()
        # Daemons: one that waits for a server that drips its headers, which no timeout of a socket ends, is left
        # behind when the patience below is over.
        for number in range(self._limits.connections):
            threading.Thread(
                target=self._work, args=(pool, asks, told), name=f"http-chunks-{number}", daemon=True
            ).start()
        came = misses = asked = 0
        until = time.monotonic() + self._patience_s
        try:
            while True:
                if misses < self._limits.misses and not stop.is_set():
                    for digest in islice(rest, self._limits.connections - asked):
                        asks.put(digest)
                        asked += 1
                if not asked or stop.is_set() or time.monotonic() > until:
                    return came
                try:
                    digest, found = told.get(timeout=HEARTBEAT_S)
                except queue.Empty:
                    continue
                asked -= 1
                until = time.monotonic() + self._patience_s
                if isinstance(found, Missed):
                    misses += 1
                    log.info("chunk %s: %s", digest[:12], found)
                    continue
                take(digest, found)
                came += 1
                misses = 0
        finally:
            for _ in range(self._limits.connections):
                asks.put(None)
            pool.clear()

    @property
    def _patience_s(self) -> float:
        return self._limits.connect_s + self._limits.chunk_s

    def _work(
        self,
        pool: urllib3.PoolManager,
        asks: queue.SimpleQueue[str | None],
        told: queue.SimpleQueue[tuple[str, bytes | Missed]],
    ) -> None:
        while (digest := asks.get()) is not None:
            try:
                told.put((digest, self._get(pool, digest)))
            except Missed as error:
                told.put((digest, error))

    def _get(self, pool: urllib3.PoolManager, digest: str) -> bytes:
        """Return a chunk.

        Raises:
            Missed: it did not come.
        """
        until = time.monotonic() + self._limits.chunk_s
        try:
            answer = pool.request(
                "GET",
                self._base + digest,
                headers={"Accept-Encoding": "identity"},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                chunk = b"".join(self._blocks(answer, until))
            except Missed:
                answer.close()  # what is still on its way is not waited for
                raise
            finally:
                answer.release_conn()
        except (HTTPError, OSError) as error:
            raise Missed(f"{self.name}: {error}") from error
        if hashlib.sha256(chunk).hexdigest() != digest:
            raise Missed(f"{self.name} has other bytes under this name")
        return chunk

    def _blocks(self, answer: urllib3.BaseHTTPResponse, until: float) -> Iterator[bytes]:
        if answer.status != OK:
            raise Missed(f"{self.name} answers {answer.status}")
        size = 0
        while block := answer.read1(BLOCK_BYTES):
            size += len(block)
            if size > MAX_CHUNK_BYTES:
                raise Missed(f"{self.name} sends more than a chunk has")
            if time.monotonic() > until:
                raise Missed(f"{self.name} is too slow")
            yield block
