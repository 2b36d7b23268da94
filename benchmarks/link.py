"""A slow line for benchmarks: a relay that limits the rate and delays both ways, and counts what passes."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import Final

BLOCK_BYTES: Final = 8192


class Link:
    """A relay to a local port that passes at most so many bytes a second, each so many seconds late."""

    def __init__(self, port: int, bytes_per_s: float, delay_s: float) -> None:
        self._target, self._rate, self._delay_s = port, bytes_per_s, delay_s
        self._counting = threading.Lock()
        self.passed_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # What is on the link at once: its rate times its delay, and a router's queue of 100 ms.
                room = max(8, int(self._rate * (self._delay_s + 0.1) / BLOCK_BYTES))
                waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(room)
                threading.Thread(target=self._read, args=(source, waiting), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, waiting), daemon=True).start()

    def _read(self, source: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        free_at = time.monotonic()
        block = b"x"
        while block:
            try:
                block = source.recv(BLOCK_BYTES)
            except OSError:
                block = b""
            with self._counting:
                self.passed_bytes += len(block)
            free_at = max(free_at, time.monotonic()) + len(block) / self._rate
            waiting.put((free_at + self._delay_s, block))

    def _write(self, sink: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        while True:
            due, block = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with contextlib.suppress(OSError):
                if not block:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(block)
