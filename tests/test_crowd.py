"""T17: many devices fetch a release at once; what the broker holds for them is bounded by their own windows."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from benchmarks.crowd import ENDLESS, crowd_seconds, over_mqtt
from benchmarks.process import taken
from benchmarks.transport import FILE, over_http
from benchmarks.transport import serving as both_serving
from sdk.download import Download, FetchLimits
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import MqttSession
from sdk.release import Release
from sdk.wire import Topics
from tests.simulators import make_release, wait_for
from tests.soak import SOAK, tell, times
from tests.test_faults import resident_bytes

pytestmark = pytest.mark.broker
long_run = pytest.mark.skipif(not SOAK, reason="the long run: HEADWAY_SOAK=1")

T: Final = Topics()
SIZE: Final = 10_000_000
MORE_BYTES: Final = 50 * 1024**2
"""What the broker may hold beside the release."""
STALLED: Final = 20


def with_length(kind: int, body: bytes) -> bytes:
    """Return an MQTT packet (MQTT 5, sections 1.5.5 and 2.1)."""
    length, rest = b"", len(body)
    while True:
        rest, seven = divmod(rest, 128)
        length += bytes([seven | 128 * (rest > 0)])
        if not rest:
            return bytes([kind]) + length + body


def text(words: str) -> bytes:
    return len(words).to_bytes(2, "big") + words.encode()


@contextlib.contextmanager
def stalled(port: int, topics: Sequence[str]) -> Iterator[None]:
    """Keep sessions that ask for topics and read nothing (MQTT 5, sections 3.1 and 3.8)."""
    with contextlib.ExitStack() as stack:
        for number in range(STALLED):
            line = stack.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", port))
            line.sendall(with_length(0x10, text("MQTT") + b"\x05\x02\x00\x00\x00" + text(f"stalled-{number}")))
            line.sendall(with_length(0x82, b"\x00\x01\x00" + b"".join(text(topic) + b"\x01" for topic in topics)))
        yield


def first_asked(release: Release, limits: FetchLimits) -> list[str]:
    """Return the topics that a device asks for once it knows what a release consists of."""
    download = Download(release.ref, limits)
    download.connected(0.0)
    download.learn(release.encoded)
    return [T.chunk(digest) for digest in download.poll(0.0).subscribe]


def held_bytes(broker: Mosquitto, topics: Sequence[str]) -> int:
    """Return the broker's memory after stalled devices have asked for topics."""
    heard: list[str] = []
    with (
        stalled(broker.port, topics),
        MqttSession(broker.settings, "ear", on_message=lambda message: heard.append(message.topic)) as ear,
    ):
        ear.subscribe(["fence"])
        ear.connect(30.0)
        ear.publish("fence", b"")
        wait_for(lambda: heard, what="the broker having served all that came before")
        return resident_bytes(broker.pid)


@pytest.mark.parametrize("limits", [FetchLimits(), ENDLESS], ids=["window", "no window"])
def test_devices_that_stall_hold_a_window_each_at_the_broker_and_no_more(
    mosquitto: Mosquitto, tmp_path: Path, limits: FetchLimits
) -> None:
    """Twenty that ask and then read nothing. The control has no window, and the broker holds too much."""
    release, chunks, _ = make_release(tmp_path, {FILE: SIZE})
    with MqttSession(mosquitto.settings, "server", on_message=lambda _message: None) as server:
        server.connect(30.0)
        for digest, chunk in chunks.items():
            server.publish(T.chunk(digest), chunk, retain=True)
        assert server.wait_taken(60.0)
    held = held_bytes(mosquitto, first_asked(release, limits))
    if limits is ENDLESS:
        assert held > SIZE + MORE_BYTES
    else:
        assert held < SIZE + MORE_BYTES


@pytest.mark.parametrize("window", [True, pytest.param(False, marks=long_run)], ids=["window", "no window"])
def test_many_devices_at_once_all_have_it(tmp_path: Path, window: bool) -> None:
    """Few in the tests, two hundred in the long run: there the control without a window takes much memory."""
    devices, size_mb = (times(8, 200), SIZE / 1e6) if SOAK else (8, 1.0)
    with both_serving(size_mb) as servers:
        http_s = crowd_seconds(devices, over_http, tmp_path, servers.port, servers.sha256) if SOAK else 0.0
        seconds = crowd_seconds(devices, over_mqtt, tmp_path, servers.settings, servers.release.ref, window)
        assert all((tmp_path / f"slot-{i}" / FILE).stat().st_size == size_mb * 1e6 for i in range(devices))
        peak = taken(servers.broker_pid).peak_bytes
    took = f"{seconds:.1f} s, HTTP {http_s:.1f}; broker at most {peak / 1024**2:.0f} MiB"
    tell(f"T17, {'a' if window else 'no'} window", devices, 0, took)
    if window:
        assert peak < size_mb * 1e6 + MORE_BYTES
    elif devices == 200:
        assert peak > size_mb * 1e6 + MORE_BYTES, "the control"
