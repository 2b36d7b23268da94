"""Time to fetch a release over MQTT against a plain HTTP download of the same file, on this machine.

    python -m benchmarks.transport                                    # all that the targets are about, 10 MB
    python -m benchmarks.transport --size-mb 14 --mbit 20 --rtt-ms 100
    python -m benchmarks.transport --devices 50

Both end with the same files on disk, synced and with their SHA-256 checked. Without a rate both are bound by the
processor: the figure says what chunks cost in work. With one a relay of our own limits the rate and delays both
ways, for both alike: what a plant's network would show. With no options at all: one device over two such lines,
fifty at once on loopback, and what one label costs every other device.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.crowd import crowd_seconds, over_mqtt, over_mqtt_on_threads
from benchmarks.features import NoImageSets
from benchmarks.fleet import FEATURE_SIZE
from benchmarks.label_cost import bytes_a_label, real_codes
from benchmarks.link import Link
from benchmarks.process import taken
from sdk.fetch import ChunkFetcher
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import MqttSession, MqttSettings
from sdk.release import Release, describe
from sdk.wire import Topics

FILE: Final = "backbone.int8.onnx"
SIZE_MB: Final = 10.0
LINES: Final = ((100.0, 20.0), (20.0, 100.0))
"""Mbit/s and round trip in ms: a plant's network, and a poor one between two sites."""
DEVICES: Final = 50
LABELS: Final = 20


WEB_SERVER: Final = """
import functools, http.server, sys
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = Server(("127.0.0.1", 0), handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""As `python -m http.server`, where only five connections may wait: of two hundred some were refused."""


@dataclass(frozen=True)
class Ratio:
    """MQTT against HTTP.

    Attributes:
        what: What was fetched by whom.
        mqtt_s: Of each run.
        http_s: Of each run.
    """

    what: str
    mqtt_s: list[float]
    http_s: list[float]

    def __str__(self) -> str:
        mqtt, http = statistics.median(self.mqtt_s), statistics.median(self.http_s)
        runs = f"MQTT {[round(s, 2) for s in self.mqtt_s]}  HTTP {[round(s, 2) for s in self.http_s]}"
        return f"{self.what}: MQTT {mqtt:.3f} s, HTTP {http:.3f} s, {mqtt / http:.2f} x\n  {runs}"


@dataclass(frozen=True)
class Servers:
    """A broker and a web server that have one release."""

    settings: MqttSettings
    broker_pid: int
    port: int
    release: Release
    folder: Path

    @property
    def sha256(self) -> str:
        """Of its one file."""
        return self.release.descriptor.files[0].sha256


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


def over_http(number: int, folder: Path, port: int, sha256: str) -> None:
    """Download as one of many."""
    http_seconds(port, sha256, folder / f"http-{number}")


@contextlib.contextmanager
def serving(size_mb: float) -> Iterator[Servers]:
    """Serve a release of one file by both."""
    with tempfile.TemporaryDirectory() as name, Mosquitto() as broker:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        (source / FILE).write_bytes(os.urandom(int(size_mb * 1e6)))
        chunks: dict[str, bytes] = {}
        release = describe(source, "benchmark", [FILE], put=chunks.__setitem__)
        with MqttSession(broker.settings, "server", on_message=lambda _message: None) as server:
            server.connect()
            for digest, chunk in chunks.items():
                server.publish(Topics().chunk(digest), chunk, retain=True)
            while server.pending_bytes:
                time.sleep(0.01)
        web = subprocess.Popen(
            [sys.executable, "-c", WEB_SERVER, str(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert web.stdout is not None
        port = int(web.stdout.readline())
        try:
            yield Servers(broker.settings, broker.pid, port, release, folder)
        finally:
            web.terminate()
            web.wait()


def one_device(size_mb: float, runs: int, mbit: float | None, rtt_ms: float) -> Ratio:
    """Return both ways' times for one device."""
    with serving(size_mb) as servers:
        settings, port = servers.settings, servers.port
        line = "loopback"
        if mbit:
            line = f"{mbit:g} Mbit/s, {rtt_ms:g} ms round trip"
            rate, delay_s = mbit * 1e6 / 8, rtt_ms / 2000
            port = Link(port, rate, delay_s).port
            settings = replace(settings, port=Link(settings.port, rate, delay_s).port)
        mqtt_s: list[float] = []
        http_s: list[float] = []
        for run in range(runs):
            http_s.append(http_seconds(port, servers.sha256, servers.folder / f"http-{run}"))
            fetcher = ChunkFetcher(settings, "device", "default", servers.folder / f"chunks-{run}")
            began = time.perf_counter()
            fetcher.fetch(servers.release.ref, servers.folder / f"slot-{run}")
            mqtt_s.append(time.perf_counter() - began)
    return Ratio(f"{size_mb:g} MB to one device, {line}, median of {runs}", mqtt_s, http_s)


def many_devices(size_mb: float, runs: int, devices: int, *, threads: bool = False, window: bool = True) -> Ratio:
    """Return both ways' times until the last of many devices has the release, on loopback.

    Args:
        size_mb: Of the release.
        runs: How often.
        devices: How many at once.
        threads: Each on threads of its own instead of in turns.
        window: Whether devices ask for a window at a time, or for everything at once.
    """
    mqtt_s: list[float] = []
    http_s: list[float] = []
    with serving(size_mb) as servers:
        for run in range(runs):
            folder = servers.folder / str(run)
            folder.mkdir()
            http_s.append(crowd_seconds(devices, over_http, folder, servers.port, servers.sha256))
            where = (folder, servers.settings, servers.release.ref)
            if threads:
                mqtt_s.append(crowd_seconds(devices, over_mqtt_on_threads, *where))
            else:
                mqtt_s.append(crowd_seconds(devices, over_mqtt, *where, window))
            assert all((folder / f"slot-{i}" / FILE).stat().st_size == size_mb * 1e6 for i in range(devices))
            shutil.rmtree(folder)
        peak = taken(servers.broker_pid).peak_bytes / 1024**2
    how = "on threads" if threads else "in turns" if window else "without a window"
    what = f"{size_mb:g} MB to {devices} devices at once {how}, loopback, broker {peak:.0f} MiB, median of {runs}"
    return Ratio(what, mqtt_s, http_s)


def label_cost(labels: int) -> str:
    """Return in words what one label costs every other device."""
    try:
        codes: list[bytes | None] = [*real_codes(labels)]
        of = "codes of NEU"
    except NoImageSets:
        codes, of = [None] * labels, "numbers at random"
    with tempfile.TemporaryDirectory() as name:
        cost = bytes_a_label(codes, Path(name))
    d = FEATURE_SIZE if codes[0] is None else len(codes[0])
    return f"one label (d = {d}, signed, {of}) costs every other device {cost:.0f} bytes, mean of {labels}"


def main() -> None:
    """Print medians and their ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transport",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size-mb", type=float, default=SIZE_MB)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mbit", type=float, help="limit both to this rate")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="and this round trip")
    parser.add_argument("--devices", type=int, help="so many at once, on loopback")
    parser.add_argument("--threads", action="store_true", help="each of them on two threads, not in turns")
    parser.add_argument("--no-window", action="store_true", help="each asks for all chunks at once")
    parser.add_argument("--label", action="store_true", help="what one label costs every other device")
    options = parser.parse_args()
    everything = not (options.mbit or options.devices or options.label)
    for mbit, rtt_ms in LINES if everything else [(options.mbit, options.rtt_ms)] * bool(options.mbit):
        print(one_device(options.size_mb, options.runs, mbit, rtt_ms), flush=True)
    if everything or options.devices:
        how = {"threads": options.threads, "window": not options.no_window}
        print(many_devices(options.size_mb, options.runs, options.devices or DEVICES, **how), flush=True)
    if everything or options.label:
        print(label_cost(LABELS))


if __name__ == "__main__":
    main()
