"""The fault matrix' long runs that no other module has, and controls of those that are elsewhere (docs/faults.md).

A few of each in the tests, many with `HEADWAY_SOAK=1`. A control takes the protection away and must see the fault.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdk.chunks import ChunkStore
from sdk.errors import BadSignature, BrokerError
from sdk.fetch import ChunkFetcher
from sdk.fleet.broker import BrokerLimits, Mosquitto
from sdk.labels import CodeRecord, Fold, Label, Record
from sdk.liveset import LiveSet
from sdk.moments import Moments
from sdk.mqtt import MqttSession, Publication
from tests.simulators import (
    FEATURE_SIZE,
    SPACE,
    LiveDevice,
    SimDevice,
    TcpRelay,
    make_release,
    same_files,
    wait_for,
)
from tests.soak import SOAK, tell, times
from tests.test_fleet_live import check_all_arrived, publish, serving, stored

long_run = pytest.mark.skipif(not SOAK, reason="the long run: HEADWAY_SOAK=1")


# -- T4 and T5: an acknowledgement by the broker proves nothing


class Trusting(LiveDevice):
    """A device that takes the broker's acknowledgement for the fleet's: the control."""

    def poll(self, now: float) -> list[Publication]:
        said = super().poll(now)
        self.acknowledged = len(self.log)
        return said


@pytest.mark.broker
@pytest.mark.parametrize("trusting", [False, True])
def test_labels_that_only_the_broker_had_are_lost_with_it_and_come_again(
    mosquitto: Mosquitto, tmp_path: Path, trusting: bool
) -> None:
    """The service is away, the broker acknowledges, and dies."""
    kind = Trusting if trusting else LiveDevice
    with kind(mosquitto.settings, "a") as device:
        wait_for(lambda: device.session.connected, what="the broker")
        device.label(1)
        wait_for(lambda: device.session.traffic().sent.get("up/label"), what="the label being sent")
        wait_for(lambda: device.session.pending_bytes == 0, what="the broker's acknowledgement")
        mosquitto.restart()
        with serving(tmp_path, mosquitto.settings) as events:
            wait_for(lambda: "registered" in [kind for kind, _ in events], what="the device being back")
            if trusting:
                device.label(2)
                wait_for(lambda: not device.outbox and device.session.pending_bytes == 0, what="it believing so")
                assert device.log[0] not in stored(tmp_path), "the control: it is lost"
            else:
                check_all_arrived([device], tmp_path)


# -- T6: the network


@long_run
@pytest.mark.broker
def test_a_line_that_breaks_again_and_again_loses_nothing(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Labels and a release over a line that is cut every second or so."""
    cuts, roll = times(5, 60), random.Random(6)
    release, chunks, source = make_release(tmp_path, {"backbone.int8.onnx": 10_000_000})
    publish(tmp_path / "fleet", release, chunks)
    with TcpRelay(mosquitto.port) as relay, serving(tmp_path / "fleet", mosquitto.settings):
        settings = replace(mosquitto.settings, port=relay.port)
        with LiveDevice(settings, "a") as device:
            fetcher = ChunkFetcher(settings, "a", "default", tmp_path / "chunks")
            thread = threading.Thread(target=fetcher.fetch, args=(release.ref, tmp_path / "slot"))
            thread.start()
            for number in range(cuts):
                device.label(number)
                time.sleep(roll.uniform(0.2, 1.5))  # until the next cut: the fault itself
                relay.cut()
            thread.join(120.0)
            assert not thread.is_alive()
            check_all_arrived([device], tmp_path / "fleet")
    assert same_files(source, tmp_path / "slot")
    tell("T6, flapping", cuts, 0)


@long_run
@pytest.mark.broker
def test_a_line_that_is_half_open_is_noticed_and_left(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """No word comes through and no end either: only the keep-alive tells."""
    runs = times(1, 5)
    with TcpRelay(mosquitto.port) as relay, serving(tmp_path, mosquitto.settings):
        settings = replace(mosquitto.settings, port=relay.port, keepalive_s=5)
        with LiveDevice(settings, "a") as device:
            for number in range(runs):
                device.label(2 * number)
                wait_for(lambda: not device.outbox, what="the control: the line carries labels")
                relay.freeze()
                device.label(2 * number + 1)
                assert device.outbox
                wait_for(lambda: not device.outbox, what="another line")
            check_all_arrived([device], tmp_path)
    tell("T6, half-open", runs, 0)


# -- T8: bits


def test_no_flipped_bit_and_no_swap_gets_past_a_chunks_name(tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, {"a": 200_000, "b": 60_000})
    store, rng, digests = ChunkStore(tmp_path / "store"), random.Random(8), release.digests()
    runs = times(200, 5000)
    changed = 0
    for _ in range(runs):
        digest = rng.choice(digests)
        chunk = bytearray(chunks[digest])
        if rng.random() < 0.2:
            chunk = bytearray(chunks[rng.choice([other for other in digests if other != digest])])
        else:
            chunk[rng.randrange(len(chunk))] ^= 1 << rng.randrange(8)
        changed += bytes(chunk) != chunks[digest]  # the control: without the digest every one would be taken
        with pytest.raises(BadSignature):
            store.put(digest, bytes(chunk))
    assert changed == runs
    assert not list((tmp_path / "store").iterdir())
    tell("T8, chunks", runs, 0)


# -- T13: twice, three times, in any order, a month late


def state_of(records: list[Record]) -> tuple[str, str]:
    """Return the digests of live set and moments."""
    fold = Fold(SPACE, FEATURE_SIZE)
    for record in records:
        fold.apply(record)
    live = fold.live_set()
    return live.digest, moments_of(live).digest()


def moments_of(live: LiveSet) -> Moments:
    moments = Moments(FEATURE_SIZE)
    moments.add(live.codes, live.class_ids)
    return moments


@pytest.fixture(scope="module")
def union() -> list[Record]:
    """Ten thousand entries of twenty devices that label each other's samples."""
    records: list[Record] = []
    roll = random.Random(13)
    for number in range(20):
        device = SimDevice(f"line-{number}")
        while len(device.log) < 500:
            device.label(roll.randrange(2000), roll.choice(("scratch", "pit", "good")))
        records += device.log
    return records


def test_ten_thousand_entries_three_times_in_any_order_are_one_state(union: list[Record]) -> None:
    in_order = state_of(union)
    for seed in range(times(1, 20)):
        rng = random.Random(seed)
        late = set(rng.sample(range(len(union)), len(union) // 20))
        again = [record for i, record in enumerate(union) if i not in late for _ in range(rng.randrange(1, 4))]
        rng.shuffle(again)
        again += [union[i] for i in late]  # a month after all others
        assert state_of(again) == in_order
    tell("T13", times(1, 20), 0, f"{len(union)} entries each")


def test_counted_as_they_come_they_are_not(union: list[Record]) -> None:
    """The control: a sum that adds a label's code whenever one arrives has learned another thing each time."""

    def summed(records: list[Record]) -> str:
        codes, naive = {}, Moments(FEATURE_SIZE)
        for record in records:
            body = record.entry.body
            if isinstance(body, CodeRecord) and record.code is not None:
                codes[body.sample] = np.frombuffer(record.code, np.int8)
            elif isinstance(body, Label) and body.class_id is not None and body.sample in codes:
                naive.add(codes[body.sample][None], [body.class_id])
        return naive.digest()

    assert summed(union) != summed([*union, *union[-50:]])


# -- T16: those who take more than their share

MEMORY_BYTES = 64 * 1024**2
FLOOD = 1500
"""Retained messages of 60 kB: 90 MB."""


@contextlib.contextmanager
def stalled(port: int, count: int) -> Iterator[None]:
    """Keep so many sessions that subscribe to everything and read nothing (MQTT 5, sections 3.1 and 3.8)."""
    lines: list[socket.socket] = []
    try:
        for number in range(count):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", port))
            name = f"stalled-{number}".encode()
            said = b"\x00\x04MQTT\x05\x02\x00\x00\x00" + len(name).to_bytes(2, "big") + name
            line.sendall(b"\x10" + bytes([len(said)]) + said)
            wanted = b"\x00\x01\x00" + b"\x00\x01#\x01"
            line.sendall(b"\x82" + bytes([len(wanted)]) + wanted)
            lines.append(line)
        yield
    finally:
        for line in lines:
            line.close()


def resident_bytes(pid: int) -> int:
    """Return a process' memory now."""
    words = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(words[0]) * 1024


@long_run
@pytest.mark.broker
def test_stalled_readers_take_no_more_than_the_broker_may_use(tmp_path: Path) -> None:
    """Fifty of them, and a retained flood: others' labels are acknowledged meanwhile, and memory has an end."""
    limits = BrokerLimits(memory_bytes=MEMORY_BYTES, queued_bytes=1024**2)
    waits: list[float] = []
    with (
        Mosquitto(limits=limits) as broker,
        serving(tmp_path, broker.settings),
        stalled(broker.port, 50),
        LiveDevice(broker.settings, "a") as device,
        MqttSession(broker.settings, "flood", on_message=lambda _message: None) as flood,
    ):
        flood.connect(30.0)
        for number in range(FLOOD):
            with contextlib.suppress(BrokerError):  # the broker throws it off where there is no more room
                flood.publish(f"headway/v1/flood/{number}", bytes(60_000), retain=True)
            wait_for(lambda: flood.pending_bytes < 1_000_000 or not flood.connected, what="room")
            if number % 20 == 0:
                began_s = time.monotonic()
                device.label(number)
                wait_for(lambda: not device.outbox, 60.0, "the label")
                waits.append(time.monotonic() - began_s)
        used = resident_bytes(broker.pid)
    assert used < MEMORY_BYTES
    slow = sorted(waits)[int(0.99 * (len(waits) - 1))]
    tell(
        "T16",
        len(waits),
        0,
        f"label p99 {slow:.2f} s; broker {used / 1024**2:.0f} of {MEMORY_BYTES / 1024**2:.0f} MiB",
    )
    assert slow < 2.0


@pytest.mark.broker
@pytest.mark.parametrize(
    ("size", "protected"),
    [
        (60_000, True),
        (60_000, False),
        pytest.param(1000, True, marks=long_run),
        pytest.param(100, True, marks=long_run),
    ],
)
def test_a_flood_of_retained_messages_ends_below_the_limit(size: int, protected: bool) -> None:
    """Small messages cost the allocator more than the broker counts. The control has no limit."""
    limit = 32 * 1024**2
    with (
        Mosquitto(limits=BrokerLimits(memory_bytes=limit if protected else 0)) as broker,
        MqttSession(broker.settings, "flood", on_message=lambda _message: None) as flood,
    ):
        flood.connect(30.0)
        thrown_off = False
        for number in range(limit // size):
            with contextlib.suppress(BrokerError):
                flood.publish(f"headway/v1/flood/{number}", bytes(size), retain=True)
            # Fewer than the session holds back, or it would throw away most of a flood of small messages itself.
            wait_for(lambda: flood.pending_bytes < min(500_000, 2000 * size) or not flood.connected, what="room")
            if not flood.connected:
                thrown_off = True  # there is no more room
                break
        used = resident_bytes(broker.pid)
    assert thrown_off == protected
    assert (used < limit) == protected


@long_run
@pytest.mark.broker
def test_without_limits_they_would(tmp_path: Path) -> None:
    """The control: the same flood and a broker without a limit on what waits for a reader."""
    limits = BrokerLimits(memory_bytes=0, queued_bytes=0, queued_messages=0)
    with (
        Mosquitto(limits=limits) as broker,
        stalled(broker.port, 50),
        MqttSession(broker.settings, "flood", on_message=lambda _message: None) as flood,
    ):
        flood.connect(30.0)
        for number in range(FLOOD):
            flood.publish(f"headway/v1/flood/{number}", bytes(60_000), retain=True)
            wait_for(lambda: flood.pending_bytes < 1_000_000, what="room")
            if resident_bytes(broker.pid) > MEMORY_BYTES:
                return
    raise AssertionError("it would not: the limit that the test above sees proves nothing")
