"""Time to fetch a release over MQTT against a plain HTTP download of the same file, on this machine.

    python -m benchmarks.transport --size-mb 14 --runs 3
    python -m benchmarks.transport --size-mb 14 --runs 3 --mbit 20 --rtt-ms 100

Both end with the same files on disk, synced and with their SHA-256 checked. Without the last two options both are
bound by the processor: the figure says what chunks cost in work. With them a relay of our own limits the rate and
delays both ways, for both alike: what a plant's network would show.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

from sdk.chunks import ChunkFetcher, describe
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import MqttSession
from sdk.wire import Topics

FILE = "backbone.int8.onnx"
BLOCK_BYTES = 8192


class Link:
    """A relay to a local port that passes at most so many bytes a second, each so many seconds late."""

    def __init__(self, port: int, bytes_per_s: float, delay_s: float) -> None:
        self._target, self._rate, self._delay_s = port, bytes_per_s, delay_s
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


def http_seconds(port: int, sha256: str, target: Path) -> float:
    """Return the time to download, check and sync the file over HTTP."""
    began, digest = time.perf_counter(), hashlib.sha256()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{FILE}") as answer, target.open("wb") as stream:
        while block := answer.read(65536):
            stream.write(block)
            digest.update(block)
        stream.flush()
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - began
    assert digest.hexdigest() == sha256
    return seconds


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=float, default=14.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mbit", type=float, help="limit both to this rate")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="and this round trip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Mosquitto() as broker:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        (source / FILE).write_bytes(os.urandom(int(options.size_mb * 1e6)))
        chunks: dict[str, bytes] = {}
        release = describe(source, "benchmark", [FILE], put=chunks.__setitem__)
        with MqttSession(broker.settings, "server", on_message=lambda _message: None) as server:
            server.connect()
            for digest, chunk in chunks.items():
                server.publish(Topics().chunk(digest), chunk, retain=True)
            while server.pending_bytes:
                time.sleep(0.01)
        web = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert web.stdout is not None
        port = int(web.stdout.readline().split(" port ")[1].split()[0])
        settings = broker.settings
        if options.mbit:
            rate, delay_s = options.mbit * 1e6 / 8, options.rtt_ms / 2000
            port = Link(port, rate, delay_s).port
            settings = replace(settings, port=Link(settings.port, rate, delay_s).port)
        mqtt_s: list[float] = []
        http_s: list[float] = []
        try:
            for run in range(options.runs):
                http_s.append(http_seconds(port, release.descriptor.files[0].sha256, folder / f"http-{run}"))
                fetcher = ChunkFetcher(settings, "device", "default", folder / f"chunks-{run}")
                began = time.perf_counter()
                fetcher.fetch(release.ref, folder / f"slot-{run}")
                mqtt_s.append(time.perf_counter() - began)
        finally:
            web.terminate()
            web.wait()
    mqtt, http = statistics.median(mqtt_s), statistics.median(http_s)
    what = f"{options.size_mb:g} MB, median of {options.runs}"
    print(f"{what}: MQTT {mqtt:.3f} s, HTTP {http:.3f} s, {mqtt / http:.2f} x")
    print(f"  MQTT {[round(s, 3) for s in mqtt_s]}  HTTP {[round(s, 3) for s in http_s]}")


if __name__ == "__main__":
    main()
