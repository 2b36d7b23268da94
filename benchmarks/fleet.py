"""A fleet of simulated devices on this machine: real protocol, real broker, real service; no cameras.

    python -m benchmarks.fleet --devices 125 250 500 1000 --minutes 2
    python -m benchmarks.fleet --devices 50 --minutes 0.2 --label-every 5       a first look

Each device keeps a session of its own at a real Mosquitto and writes a real label log: every minute a picture's
code (1280 numbers) and its label, sent again until the service's own commit is acknowledged. Its state follows
every ten seconds. Devices share channels (`--per-channel`), and each gets what the others of its channel learned.
Half-way a release is rolled out to the first channel in two waves; the devices say that they took it without
fetching it, since what a release costs is `benchmarks.transport`'s business.

For each number of devices it prints log records written, acknowledged, and in the service's database afterwards;
the time from a label's making to the service's commit being acknowledged; memory of service and broker; and their
processor time a device, which is what a larger machine is planned with. The devices run in this process, on the
same processors, and are not counted. Loopback only; it stops by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiomqtt
import msgspec
import numpy as np
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.process import cpu_s, taken
from sdk.fleet.broker import Mosquitto
from sdk.fleet.rollout import Plan, RolloutState
from sdk.fleet.store import FleetStore
from sdk.labels import Body, Chain, CodeRecord, DefineClass, Label, Record
from sdk.wire import (
    WIRE_VERSION,
    Ack,
    Desired,
    DeviceState,
    LabelBatch,
    LogSegment,
    Quality,
    Topics,
    UpdateEvent,
    UpdateState,
    batches,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)
from tests.builders import make_bundle

FEATURE_SIZE: Final = 1280
SPACE: Final = b"\x5b" * 32
"""Not the small release's: its codes are shorter than what a label costs in earnest."""
STATE_EVERY_S: Final = 10.0
RESEND_S: Final = 10.0
JOIN_S: Final = 0.01
"""Between two devices' first connections: a plant's power comes back to all at once, a benchmark's need not."""
LAST_WAIT_S: Final = 60.0


@dataclass
class Device:
    """One simulated device."""

    device: str
    channel: str
    label_every_s: float
    space: bytes
    topics: Topics
    made_at: dict[int, float] = field(default_factory=dict)
    waited_s: list[float] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    acknowledged: int = 0
    heard: int = 0
    release_id: str | None = None

    def __post_init__(self) -> None:
        self._chain = Chain(self.device)
        self._sent = 0
        self._sent_at = 0.0
        self._class_id = hashlib.sha256(b"scratch").digest()[:16]
        self._roll = np.random.default_rng(
            int.from_bytes(hashlib.sha256(self.device.encode()).digest()[:8], "big")
        )

    def _write(self, body: Body, code: bytes | None = None) -> None:
        self._chain, entry = self._chain.write(
            body, counter=self._chain.seq + 1, wall_time_us=time.time_ns() // 1000
        )
        self.log.append(Record(entry, code))

    def label(self, code: bytes | None = None) -> None:
        """An operator labels a picture of this code; by default of numbers at random, which are the dearest."""
        if not self.log:
            self._write(DefineClass(self._class_id, "scratch", "anna"))
        code = code or self._roll.integers(-127, 128, FEATURE_SIZE, np.int8).tobytes()
        sample = self._roll.bytes(32)
        self._write(
            CodeRecord(self.space, sample, f"{self.device}/{len(self.log)}", hashlib.sha256(code).digest()), code
        )
        self._write(Label(sample, self._class_id, "anna"))
        self.made_at[self._chain.seq] = time.monotonic()

    def state(self, *, online: bool = True) -> bytes:
        """Return what it says of itself."""
        quality = Quality(frames=self._chain.seq, latency_ms=20.0)
        return encode_json(
            DeviceState(
                device=self.device, channel=self.channel, online=online, release_id=self.release_id,
                outbox=len(self.log) - self.acknowledged, quality=quality,
            )
        )  # fmt: skip

    async def run(self, port: int, stop: asyncio.Event) -> None:
        """Keep the session until told to stop."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 600
        t, name = self.topics, self.device
        client = aiomqtt.Client(
            "127.0.0.1", port, identifier=name, protocol=aiomqtt.ProtocolVersion.V5, clean_start=False,
            properties=properties, keepalive=60, max_queued_outgoing_messages=0,
            will=aiomqtt.Will(t.state(name), self.state(online=False), 1, True),
        )  # fmt: skip
        async with client:
            topics = [t.ack(name), t.down_log(name), t.desired(name), t.log(self.channel)]
            await client.subscribe([(topic, 1) for topic in topics])
            await client.publish(t.state(name), self.state(), qos=1, retain=True)
            listening = asyncio.create_task(self._listen(client))
            speaking = asyncio.create_task(self._speak(client, stop))
            await speaking
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            topic, payload = str(message.topic), bytes(message.payload or b"")
            if topic == self.topics.ack(self.device):
                through = decode_json(payload, Ack).through
                now = time.monotonic()
                for seq in [seq for seq in self.made_at if seq <= through]:
                    self.waited_s.append(now - self.made_at.pop(seq))
                self.acknowledged = max(self.acknowledged, through)
            elif topic == self.topics.desired(self.device) and payload:
                await self._take(client, decode_json(payload, Desired).release.release_id)
            elif payload:
                self.heard += len(decode_msgpack(payload, LogSegment).records)

    async def _take(self, client: aiomqtt.Client, release_id: str) -> None:
        if release_id == self.release_id:
            return
        for state in (UpdateState.DOWNLOADING, UpdateState.VERIFIED, UpdateState.COMMITTED):
            event = encode_json(UpdateEvent(release_id=release_id, state=state))
            await client.publish(self.topics.up_event(self.device), event, qos=1)
        self.release_id = release_id
        await client.publish(self.topics.state(self.device), self.state(), qos=1, retain=True)

    async def _speak(self, client: aiomqtt.Client, stop: asyncio.Event) -> None:
        roll = random.Random(self.device)
        label_at = time.monotonic() + roll.uniform(0, self.label_every_s)
        state_at = time.monotonic() + roll.uniform(0, STATE_EVERY_S)
        while not stop.is_set() or self.acknowledged < len(self.log):
            now = time.monotonic()
            if now >= label_at and not stop.is_set():
                self.label()
                label_at += self.label_every_s
            if now >= state_at:
                state_at += STATE_EVERY_S
                await client.publish(self.topics.state(self.device), self.state(), qos=1, retain=True)
            if self._sent > self.acknowledged and now - self._sent_at > RESEND_S:
                self._sent = self.acknowledged
            if self._sent < len(self.log):
                self._sent_at = now
                for batch in batches(self.log[self._sent :]):
                    payload = encode_msgpack(LabelBatch(WIRE_VERSION, batch))
                    await client.publish(self.topics.up_label(self.device), payload, qos=1)
                self._sent = len(self.log)
            due = min(label_at, state_at, now + 1.0)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(stop.wait()), max(0.01, due - time.monotonic()))
            if stop.is_set():
                await asyncio.sleep(0.2)


class Run(msgspec.Struct):
    """What one number of devices came to."""

    devices: int
    seconds: float
    records: int
    acknowledged: int
    stored: int
    commit_ms_p50: float
    commit_ms_p99: float
    service_mib: float
    broker_mib: float
    service_cpu_ms_a_device_minute: float
    broker_cpu_ms_a_device_minute: float
    records_heard: int
    rollout: str


@contextlib.asynccontextmanager
async def _service(folder: Path, port: int, channels: list[str]) -> AsyncIterator[int]:
    words = [word for channel in channels for word in ("--channel", channel)]
    command = [
        sys.executable,
        "-m",
        "sdk.cli",
        "fleet",
        "serve",
        "--dir",
        folder,
        "--broker",
        f"127.0.0.1:{port}",
        *words,
    ]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readuntil(b"ready on")
        draining = asyncio.create_task(process.stdout.read())
        yield process.pid
        process.terminate()
        await process.wait()
        await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def measure(count: int, minutes: float, label_every_s: float, per_channel: int, folder: Path) -> Run:
    """Run so many devices for so long; return what came of it."""
    channels = [f"product-{i}" for i in range(-(-count // per_channel))]
    bundles = [make_bundle(folder / name, backbone=name) for name in ("first", "second")]
    fleet = folder / "fleet"
    with FleetStore(fleet) as store:
        for channel in channels:
            store.publish(bundles[0], channel=channel)
    with Mosquitto() as broker:
        async with _service(fleet, broker.port, channels) as service_pid:
            stop = asyncio.Event()
            devices = [
                Device(f"device-{i:04}", channels[i % len(channels)], label_every_s, SPACE, Topics())
                for i in range(count)
            ]
            tasks = []
            for device in devices:
                tasks.append(asyncio.create_task(device.run(broker.port, stop)))
                await asyncio.sleep(JOIN_S)
            _say(f"{count} devices are there")
            began_s = time.monotonic()
            before = [cpu_s(pid) for pid in (service_pid, broker.pid)]
            await asyncio.sleep(30 * minutes)
            with FleetStore(fleet) as store:
                plan = Plan(waves=["10%", "100%"], soak_s=5.0)
                store.publish(bundles[1], channel=channels[0], plan=plan)
            await asyncio.sleep(30 * minutes)
            seconds = time.monotonic() - began_s
            service_s, broker_s = (cpu_s(pid) for pid in (service_pid, broker.pid))
            service_mib, broker_mib = (taken(pid).peak_bytes / 1024**2 for pid in (service_pid, broker.pid))
            stop.set()
            done, late = await asyncio.wait(tasks, timeout=LAST_WAIT_S)
            for task in late:
                task.cancel()
            for task in done:
                task.result()
    with FleetStore(fleet) as store, store.read() as ledger:
        stored = sum(ledger.log_length(channel) for channel in channels)
        rollout = ledger.rollout(channels[0])
    waited = sorted(itertools.chain.from_iterable(device.waited_s for device in devices))
    state = RolloutState.HALTED if rollout is None else rollout[1].state
    a_device_minute = 60_000 / seconds / count
    return Run(
        devices=count,
        seconds=seconds,
        records=sum(len(device.log) for device in devices),
        acknowledged=sum(device.acknowledged for device in devices),
        stored=stored,
        commit_ms_p50=1000 * statistics.median(waited),
        commit_ms_p99=1000 * waited[int(0.99 * (len(waited) - 1))],
        service_mib=service_mib,
        broker_mib=broker_mib,
        service_cpu_ms_a_device_minute=(service_s - before[0]) * a_device_minute,
        broker_cpu_ms_a_device_minute=(broker_s - before[1]) * a_device_minute,
        records_heard=sum(device.heard for device in devices),
        rollout=f"{state.value}, wave {0 if rollout is None else rollout[1].wave} of 2",
    )


def _say(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[125, 250, 500, 1000], metavar="N")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long each number of them runs")
    parser.add_argument(
        "--label-every", type=float, default=60.0, metavar="SECONDS", help="a label of each device"
    )
    parser.add_argument(
        "--per-channel", type=int, default=100, metavar="N", help="devices that share what they learn"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    runs: list[Run] = []
    for count in options.devices:
        with tempfile.TemporaryDirectory(prefix="headway-fleet-") as folder:
            runs.append(
                asyncio.run(
                    measure(count, options.minutes, options.label_every, options.per_channel, Path(folder))
                )
            )
        for name, value in msgspec.to_builtins(runs[-1]).items():
            print(f"{name:32} {value:.1f}" if isinstance(value, float) else f"{name:32} {value}")
        lost = runs[-1].records - runs[-1].stored
        print(f"{'records lost':32} {lost}\n", flush=True)
        if options.json is not None:
            options.json.write_bytes(msgspec.json.encode(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
