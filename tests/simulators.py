"""Stand-ins at the seams, for tests: they implement the real interfaces and misbehave on request, repeatably.

`SimBroker` is an MQTT broker in virtual time that drops, repeats, reorders, corrupts and forgets. `SimDevice` is
the smallest device that keeps the label protocol. `TcpRelay` stands between a client and a real broker, counts
bytes and cuts lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdk.download import Download, Receipt
from sdk.errors import RemoteWireError
from sdk.intake import Intake
from sdk.labels import Body, Chain, CodeRecord, DefineClass, Fold, Label, Record
from sdk.mqtt import Message, MqttSession, MqttSettings, Publication
from sdk.release import Release, describe
from sdk.wire import (
    Ack,
    ChannelMeta,
    DeviceState,
    LabelBatch,
    LogSegment,
    Topics,
    Want,
    batches,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)

TOPICS = Topics()


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0, what: str = "it") -> None:
    """Wait until a condition holds; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.005)


# A broker in virtual time


@dataclass(frozen=True)
class Faults:
    """What a simulated broker does to each message. Probabilities in [0, 1]; delays shuffle the order."""

    drop: float = 0.0
    repeat: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.0


@contextlib.contextmanager
def refusing() -> Iterator[MqttSettings]:
    """A broker that lets everybody in and grants nobody a topic, as one whose access list forgot them: Mosquitto
    does so only with a plug-in. It is there for one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    with line:
                        line.recv(1000)
                        line.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK
                        while packet := line.recv(1000):
                            if packet[0] == 0x82:  # SUBSCRIBE, answered with its id and "not authorized"
                                line.sendall(b"\x90\x04" + packet[2:4] + b"\x00\x87")

        threading.Thread(target=answer, daemon=True).start()
        yield MqttSettings(port=server.getsockname()[1])


@dataclass
class SimBroker:
    """A broker with retained messages and `+` wildcards. Messages wait in mailboxes until `collect`."""

    seed: int = 0
    faults: Faults = Faults()
    retained: dict[str, bytes] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._filters: dict[str, dict[str, re.Pattern[str]]] = {}
        self._mail: dict[str, list[tuple[float, Message]]] = {}

    def subscribe(self, client: str, topics: Iterable[str]) -> None:
        filters = self._filters.setdefault(client, {})
        for topic in topics:
            filters[topic] = re.compile(re.escape(topic).replace(r"\+", "[^/]+"))
            for name, payload in self.retained.items():
                if filters[topic].fullmatch(name):
                    self._deliver(client, Message(name, payload, retained=True))

    def unsubscribe(self, client: str, topics: Iterable[str]) -> None:
        for topic in topics:
            self._filters.get(client, {}).pop(topic, None)

    def publish(self, publication: Publication) -> None:
        p = publication
        if p.retain and p.payload:
            self.retained[p.topic] = p.payload
        elif p.retain:
            self.retained.pop(p.topic, None)
        for client, filters in self._filters.items():
            if any(pattern.fullmatch(p.topic) for pattern in filters.values()):
                self._deliver(client, Message(p.topic, p.payload))

    def _deliver(self, client: str, message: Message) -> None:
        roll, faults = self._random, self.faults
        copies = 1 if roll.random() >= faults.repeat else 3
        for _ in range(copies):
            if roll.random() < faults.drop:
                continue
            sent = message
            if roll.random() < faults.corrupt and message.payload:
                i = roll.randrange(len(message.payload))
                flipped = bytes([message.payload[i] ^ (1 << roll.randrange(8))])
                sent = Message(message.topic, message.payload[:i] + flipped + message.payload[i + 1 :])
            due = self.now + roll.random() * faults.delay_s
            self._mail.setdefault(client, []).append((due, sent))

    def collect(self, client: str) -> list[Message]:
        """Return what has arrived for a client by now."""
        mail = self._mail.pop(client, [])
        here = sorted((item for item in mail if item[0] <= self.now), key=lambda item: item[0])
        self._mail[client] = [item for item in mail if item[0] > self.now]
        return [message for _, message in here]

    def disconnect(self, client: str) -> dict[str, re.Pattern[str]]:
        """Drop what is under way to a client and its subscriptions; return those."""
        self._mail.pop(client, None)
        return self._filters.pop(client, {})

    def crash(self) -> None:
        """Forget everything, as a broker without persistence does when it is killed."""
        self.retained.clear()
        self._mail.clear()
        self._filters.clear()


# Releases


def make_release(folder: Path, sizes: dict[str, int], seed: int = 1) -> tuple[Release, dict[str, bytes], Path]:
    """Write random files of these sizes; return the release, its chunks by digest, and the directory."""
    source = folder / "source"
    source.mkdir(parents=True)
    roll = random.Random(seed)
    for name, size in sizes.items():
        (source / name).write_bytes(roll.randbytes(size))
    chunks: dict[str, bytes] = {}
    release = describe(source, "test release", list(sizes), put=chunks.__setitem__)
    return release, chunks, source


def leave_landed(folder: Path, release: Release, chunks: dict[str, bytes], came: Iterable[str]) -> None:
    """Leave a download's folder as one does that was cut off after these chunks, the descriptor among them."""
    intake = Intake(release.ref, folder, folder / "nowhere")
    for digest in came:
        intake.brought(digest, chunks[digest])
    intake.close()


def same_files(one: Path, other: Path) -> bool:
    """Return whether two flat directories hold the same files, byte for byte."""
    names = sorted(p.name for p in one.iterdir())
    return names == sorted(p.name for p in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


@dataclass
class SimDownload:
    """Drives a `Download` against a `SimBroker` and a server that answers wants."""

    download: Download
    broker: SimBroker
    chunks: dict[str, bytes]
    topics: Topics = TOPICS
    on_disk: dict[str, bytes] = field(default_factory=dict)
    most_in_flight: int = 0
    server_answers: bool = True
    cut_every_s: float | None = None

    def run(self, limit_s: float = 3600.0) -> None:
        """Run in virtual time until the download is complete; fail the test where it never is."""
        download, broker = self.download, self.broker
        asked: set[str] = set()
        next_cut = self.cut_every_s
        began = broker.now
        download.connected(broker.now)
        while not download.complete:
            assert broker.now - began < limit_s, f"not complete after {limit_s:g} s"
            if next_cut is not None and broker.now - began >= next_cut:
                broker.disconnect("device")
                download.disconnected()
                broker.now += 0.5
                broker.subscribe("device", [self.topics.chunk(d) for d in asked])
                download.connected(broker.now)
                next_cut = broker.now - began + (self.cut_every_s or 0.0)
            step = download.poll(broker.now)
            asked = (asked | set(step.subscribe)) - set(step.unsubscribe)
            assert not asked & set(self.on_disk), "asked for what is on disk"
            broker.unsubscribe("device", [self.topics.chunk(d) for d in step.unsubscribe])
            broker.subscribe("device", [self.topics.chunk(d) for d in step.subscribe])
            self.most_in_flight = max(self.most_in_flight, sum(len(self.chunks[d]) for d in asked))
            if self.server_answers:
                for digest in step.want:
                    broker.publish(Publication(self.topics.chunk(digest), self.chunks[digest], retain=True))
            for message in broker.collect("device"):
                self._take(message)
            broker.now += 0.02

    def _take(self, message: Message) -> None:
        digest = message.topic.rpartition("/")[2]
        receipt = self.download.receive(digest, message.payload, self.broker.now)
        if receipt is Receipt.NEW:
            assert hashlib.sha256(message.payload).hexdigest() == digest
            self.on_disk[digest] = message.payload
            if digest == self.download.ref.release_id:
                self.download.learn(message.payload)
                self.download.found(self.on_disk)


# Devices that label


SPACE = "5b" * 32
FEATURE_SIZE = 8


def class_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


class SimDevice:
    """A device that labels, keeps its log until it is acknowledged, and follows the channel's union.

    Give it what arrived, and publish what it returns; every wait of it has a timer.
    """

    def __init__(self, device: str, channel: str = "default", topics: Topics = TOPICS) -> None:
        self.device = device
        self.channel = channel
        self.topics = topics
        self.log: list[Record] = []
        self.acknowledged = 0
        self.refusals: list[str] = []
        self.union: list[Record] = []
        self.segments = 0
        self._early: dict[int, Record] = {}
        self._chain = Chain(device)
        self._counter = 0
        self._fleet_length = 0
        self._send_at = 0.0
        self._want_at = 0.0
        self._state_at = 0.0

    def subscriptions(self) -> list[str]:
        t = self.topics
        return [t.ack(self.device), t.down_log(self.device), t.log(self.channel), t.meta(self.channel)]

    def write(self, body: Body, code: bytes | None = None) -> Record:
        self._counter += 1
        self._chain, entry = self._chain.write(body, counter=self._counter, wall_time_us=0)
        self.log.append(Record(entry, code))
        return self.log[-1]

    def label(self, number: int, name: str = "scratch") -> None:
        """Label a sample: its class is defined, its code recorded, its label given."""
        sample = hashlib.sha256(f"sample {number}".encode()).digest()
        code = np.random.default_rng(number).integers(-127, 128, FEATURE_SIZE, np.int8).tobytes()
        if not any(isinstance(record.entry.body, DefineClass) for record in self.log):
            self.write(DefineClass(class_id(name), name, "anna"))
        digest = hashlib.sha256(code).digest()
        self.write(CodeRecord(bytes.fromhex(SPACE), sample, f"{self.device}/{number}", digest), code)
        self.write(Label(sample, class_id(name), "anna"))

    @property
    def outbox(self) -> int:
        return len(self.log) - self.acknowledged

    def state(self, *, online: bool = True) -> Publication:
        state = DeviceState(device=self.device, channel=self.channel, online=online, outbox=self.outbox)
        return Publication(self.topics.state(self.device), encode_json(state), retain=True)

    def batches(self) -> list[Publication]:
        """Return the whole outbox as messages."""
        return [
            Publication(self.topics.up_label(self.device), encode_msgpack(LabelBatch(1, batch)))
            for batch in batches(self.log[self.acknowledged :])
        ]

    def poll(self, now: float) -> list[Publication]:
        out: list[Publication] = []
        if now >= self._state_at:
            self._state_at = now + 10.0
            out.append(self.state())
        if self.outbox and now >= self._send_at:
            self._send_at = now + 1.0
            out += self.batches()
        if len(self.union) < self._fleet_length and now >= self._want_at:
            self._want_at = now + 2.0
            want = Want(channel=self.channel, log_from=len(self.union) + 1)
            out.append(Publication(self.topics.up_want(self.device), encode_json(want)))
        return out

    def hurry(self) -> None:
        """The connection is new: whatever was said may be lost, so say it again now."""
        self._send_at = self._want_at = self._state_at = 0.0

    def receive(self, message: Message) -> None:
        kind = self.topics.kind_of(message.topic)
        if kind == "down/ack":
            ack = decode_json(message.payload, Ack)
            self.acknowledged = max(self.acknowledged, ack.through)
            if ack.refused is not None:
                self.refusals.append(ack.refused.reason)
        elif kind == "meta":
            self._fleet_length = max(self._fleet_length, decode_json(message.payload, ChannelMeta).log_length)
        elif kind in ("log", "down/log"):
            segment = decode_msgpack(message.payload, LogSegment)
            self.segments += 1
            for i, record in enumerate(segment.records):
                self._early.setdefault(segment.first + i, record)
                self._counter = max(self._counter, record.entry.counter)
            self._fleet_length = max(self._fleet_length, segment.first + len(segment.records) - 1)
            while len(self.union) + 1 in self._early:
                self.union.append(self._early.pop(len(self.union) + 1))

    def digest(self) -> str:
        return digest_of(self.union)


class LiveDevice(SimDevice):
    """A simulated device on a real broker, with a thread of its own, for as long as the `with` block."""

    def __init__(self, settings: MqttSettings, device: str, channel: str = "default") -> None:
        super().__init__(device, channel, Topics(settings.prefix))
        self._arrivals: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.session = MqttSession(
            settings,
            device,
            on_message=self._arrivals.put,
            on_connect=lambda _present: self._arrivals.put(None),
            last_will=self.state(online=False),
        )
        self.session.subscribe(self.subscriptions())
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LiveDevice:
        self.session.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.session.close()

    def label(self, number: int, name: str = "scratch") -> None:
        with self._lock:
            super().label(number, name)

    def say(self, body: Body) -> None:
        """Write an entry while it runs."""
        with self._lock:
            self.write(body)

    def _run(self) -> None:
        while not self._stop.is_set():
            message: Message | None = None
            try:
                message = self._arrivals.get(timeout=0.02)
                reconnected = message is None
            except queue.Empty:
                reconnected = False
            with self._lock:
                if reconnected:
                    self.hurry()
                if message is not None:
                    with contextlib.suppress(RemoteWireError):  # as of a device: what is no message is passed over
                        self.receive(message)
                for publication in self.poll(time.monotonic()) if self.session.connected else []:
                    self.session.send(publication)


def digest_of(records: Iterable[Record]) -> str:
    """Return the live-set digest of records in the simulated devices' feature space."""
    fold = Fold(SPACE, FEATURE_SIZE)
    for record in records:
        fold.apply(record)
    return fold.digest()


# A line between a client and a real broker


class TcpRelay:
    """Relays TCP to a port of this machine, counts bytes each way and cuts lines on request."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.down_bytes = 0
        self.up_bytes = 0
        self._lines: list[socket.socket] = []
        self._frozen: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> TcpRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break all lines now, without goodbye."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def freeze(self) -> None:
        """Let nothing through on the lines of now, and close none: half-open, as behind a router that forgot."""
        with self._lock:
            self._frozen.update(self._lines)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            for line in (client, server):
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._lines += [client, server]
            threading.Thread(target=self._pump, args=(client, server, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    if source in self._frozen:
                        continue
                    if way == "down":
                        self.down_bytes += len(data)
                    else:
                        self.up_bytes += len(data)
                sink.sendall(data)
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
