"""The fleet with real processes and a real broker: kill -9 of each, and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdk.bundle import Bundle
from sdk.cli import main
from sdk.download import FetchLimits
from sdk.errors import BrokerError
from sdk.fetch import ChunkFetcher, Fetched
from sdk.fleet import port_holder
from sdk.fleet.broker import Mosquitto, find_mosquitto, mosquitto_config, restart_broker
from sdk.fleet.cli import fleet_overview
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.labels import KeepApart, Record
from sdk.mqtt import MAX_PENDING_MESSAGES, Message, MqttSession, MqttSettings
from sdk.release import Release
from sdk.wire import Desired, DeviceState, Topics, UpdateEvent, UpdateState, decode_json, encode_json
from tests.builders import make_bundle
from tests.processes import Doomed
from tests.simulators import LiveDevice, make_release, same_files, wait_for
from tests.soak import tell, times

pytestmark = pytest.mark.broker
TOPICS = Topics()


HEADWAY = (sys.executable, "-m", "sdk.cli")


def headway(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, output and errors."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


class Served:
    """`headway fleet serve` as a process."""

    def __init__(self, directory: Path, broker: MqttSettings, *more: str) -> None:
        self.command = [*HEADWAY, "fleet", "serve", "--dir", str(directory)]
        self.command += ["--broker", broker.address, "--json", *more]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert json.loads(first)["event"] == "ready", first

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return out


@contextmanager
def serving(directory: Path, settings: MqttSettings) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Run the service on a thread; yield what it reports."""
    events: list[tuple[str, dict[str, Any]]] = []
    stop = threading.Event()
    with FleetStore(directory) as store:
        service = FleetService(store, settings, report=lambda kind, more: events.append((kind, more)))
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        try:
            wait_for(lambda: ("ready" in [kind for kind, _ in events]) or not thread.is_alive())
            yield events
        finally:
            stop.set()
            thread.join()


def stored(directory: Path) -> list[Record]:
    with FleetStore(directory) as store, store.read() as ledger:
        records: list[Record] = []
        while page := ledger.records("default", len(records) + 1):
            records += page
        return records


def publish(directory: Path, release: Release, chunks: dict[str, bytes]) -> None:
    """Publish a release that is no bundle: the service does not look inside."""
    with FleetStore(directory) as store:
        for digest, chunk in chunks.items():
            store.chunks.put(digest, chunk)
        with store.write() as ledger:
            ledger.publish(release, channel="default", space="0" * 64, feature_size=8)


def check_all_arrived(devices: list[LiveDevice], directory: Path) -> None:
    """Every label made is stored once, in its device's order, and every device has the whole union."""
    total = sum(len(device.log) for device in devices)
    wait_for(lambda: not any(device.outbox for device in devices), what="all labels acknowledged")
    wait_for(lambda: all(len(device.union) == total for device in devices), what="the union everywhere")
    union = stored(directory)
    for device in devices:
        assert [r for r in union if r.entry.device == device.device] == device.log
        assert device.union == union
    assert len(union) == total
    assert len({device.digest() for device in devices}) == 1


# Kill -9


def test_broker_killed_under_label_load_no_label_is_lost_or_doubled(mosquitto: Mosquitto, tmp_path: Path) -> None:
    kills = times(3, 50)  # T4
    with serving(tmp_path, mosquitto.settings):
        devices = [LiveDevice(mosquitto.settings, name) for name in ("a", "b")]
        with devices[0], devices[1]:
            for number in range(40 * kills):
                devices[number % 2].label(number)
                if number % 40 == 20:
                    wait_for(lambda: any(device.acknowledged for device in devices))
                    mosquitto.restart()
                time.sleep(0.005)  # the pace of the load, not a wait for anything
            began = time.monotonic()
            check_all_arrived(devices, tmp_path)
            drained_s = time.monotonic() - began
            assert drained_s < 15
    tell("T4", kills, 0, f"{sum(len(device.log) for device in devices)} entries, drained in {drained_s:.1f} s")


def test_service_killed_under_label_load_no_label_is_lost_or_doubled(mosquitto: Mosquitto, tmp_path: Path) -> None:
    served = Served(tmp_path, mosquitto.settings)
    devices = [LiveDevice(mosquitto.settings, name) for name in ("a", "b")]
    with devices[0], devices[1]:
        kills = times(2, 50)  # T5
        for kill in range(kills):
            for number in range(60):
                devices[number % 2].label(100 * kill + number)
            wait_for(lambda: any(device.outbox < 90 for device in devices))
            served.kill()
            served.start()
        check_all_arrived(devices, tmp_path)
        served.stop()
    tell("T5", kills, 0, f"{sum(len(device.log) for device in devices)} entries")


def test_broker_killed_in_the_middle_of_a_release_it_completes_byte_for_byte(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """The broker keeps nothing: the service seeds the chunks again, and the download goes on where it was."""
    release, chunks, source = make_release(tmp_path, {"backbone.int8.onnx": 8_000_000, "card.md": 17})
    publish(tmp_path / "fleet", release, chunks)
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if not killed and done > total // 3:
            killed.append(done)
            mosquitto.restart()

    with serving(tmp_path / "fleet", mosquitto.settings), LiveDevice(mosquitto.settings, "a"):
        fetcher = ChunkFetcher(mosquitto.settings, "a", "default", tmp_path / "chunks")
        fetched = fetcher.fetch(release.ref, tmp_path / "slot", progress=progress)
    assert killed
    assert same_files(source, tmp_path / "slot")
    assert fetched is not None
    assert fetched.received_bytes < 1.5 * release.ref.size_bytes


def test_chunks_wiped_from_the_broker_are_seeded_again_on_demand(mosquitto: Mosquitto, tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, {"backbone.int8.onnx": 6_000_000})
    publish(tmp_path / "fleet", release, chunks)
    wipes = times(2, 25)  # T19
    with serving(tmp_path / "fleet", mosquitto.settings) as events, LiveDevice(mosquitto.settings, "a") as device:
        wait_for(lambda: "registered" in [kind for kind, _ in events])
        wait_for(lambda: device.session.traffic().received.get("meta"), what="the announcement")
        for wipe in range(wipes):
            for digest in chunks:
                device.session.publish(TOPICS.chunk(digest), b"", retain=True)
            wait_for(lambda: device.session.pending_bytes == 0)
            limits = FetchLimits(stall_s=0.5, stall_max_s=2.0)
            folder = tmp_path / f"chunks-{wipe}"
            fetched = ChunkFetcher(mosquitto.settings, "a", "default", folder, limits=limits).fetch(
                release.ref, tmp_path / f"slot-{wipe}"
            )
            assert same_files(source, tmp_path / f"slot-{wipe}")
            assert fetched is not None
            assert fetched.wanted > 0
    assert "reseeding" in [kind for kind, _ in events]
    tell("T19", wipes, 0)


def test_without_wants_a_download_of_wiped_chunks_never_ends(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """T19's control: the broker has nothing, and a device that may not say so waits until it is stopped."""
    release, chunks, _ = make_release(tmp_path, {"backbone.int8.onnx": 600_000})
    publish(tmp_path / "fleet", release, chunks)
    stop, beats = threading.Event(), []

    def progress(done: int, _total: int) -> None:
        beats.append(done)
        if len(beats) > 6:
            stop.set()

    with serving(tmp_path / "fleet", mosquitto.settings) as events, LiveDevice(mosquitto.settings, "a") as device:
        wait_for(lambda: device.session.traffic().received.get("meta"), what="the announcement")
        for digest in chunks:
            device.session.publish(TOPICS.chunk(digest), b"", retain=True)
        wait_for(lambda: device.session.pending_bytes == 0)
        never = FetchLimits(stall_s=3600.0, stall_max_s=3600.0)
        fetcher = ChunkFetcher(mosquitto.settings, "a", "default", tmp_path / "chunks", limits=never)
        assert fetcher.fetch(release.ref, tmp_path / "slot", progress=progress, stop=stop) is None
        assert "reseeding" not in [kind for kind, _ in events]


def test_labels_are_acknowledged_while_a_release_is_on_its_way(mosquitto: Mosquitto, tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, {"backbone.int8.onnx": 20_000_000})
    with serving(tmp_path / "fleet", mosquitto.settings), LiveDevice(mosquitto.settings, "a") as device:
        device.label(0)
        wait_for(lambda: not device.outbox)
        publish(tmp_path / "fleet", release, chunks)
        fetcher = ChunkFetcher(mosquitto.settings, "a", "default", tmp_path / "chunks")
        done: list[Fetched | None] = []
        thread = threading.Thread(target=lambda: done.append(fetcher.fetch(release.ref, tmp_path / "slot")))
        thread.start()
        waits: list[float] = []
        while thread.is_alive():
            began = time.monotonic()
            device.label(len(waits) + 1)
            wait_for(lambda: not device.outbox)
            waits.append(time.monotonic() - began)
        assert done[0] is not None
        assert max(waits) < 2.0, waits


def test_no_device_of_a_large_plant_is_left_out_because_the_way_to_the_broker_is_full(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """The session takes 4,096 messages at once, and always the same devices came last."""
    devices = {f"line-{number:04d}" for number in range(MAX_PENDING_MESSAGES + 300)}
    release, chunks, _ = make_release(tmp_path, {"backbone.int8.onnx": 1000})
    directory = tmp_path / "fleet"
    told: set[str] = set()
    store = FleetStore(directory)
    with store.write() as ledger:
        for device in devices:
            ledger.note_state(DeviceState(device=device, channel="default", online=False), seen_utc=1.0)

    def announced() -> bool:
        with store.read() as ledger:
            current = ledger.current("default")
            return current is not None and current.announced

    with (
        store,
        MqttSession(mosquitto.settings, "ear", on_message=lambda m: told.add(TOPICS.device_of(m.topic))) as ear,
        serving(directory, mosquitto.settings) as events,
    ):
        ear.subscribe([TOPICS.desired("+")])
        ear.connect()
        ear.publish(TOPICS.desired("fence"), b"")
        wait_for(lambda: "fence" in told, what="the ear")
        os.kill(mosquitto.pid, signal.SIGSTOP)  # so that all of it comes to a full way
        try:
            publish(directory, release, chunks)
            wait_for(announced, what="the announcement")
            with store.write() as ledger:
                ledger.decide("default", [KeepApart(bytes(16), bytes([1] * 16), "ann")])
            wait_for(lambda: "decided" in [kind for kind, _ in events], what="the turn after it")
        finally:
            os.kill(mosquitto.pid, signal.SIGCONT)
        wait_for(lambda: told >= devices, what="every device's assignment")


# The command line


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "surfaces")


def test_a_fleet_from_the_command_line(
    mosquitto: Mosquitto, tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Serve, publish, take it on a device, look at devices and log, stop."""
    directory = tmp_path / "fleet"
    served = Served(directory, mosquitto.settings)
    heard: list[Message] = []
    with (
        LiveDevice(mosquitto.settings, "line-1") as device,
        MqttSession(mosquitto.settings, "ear", on_message=heard.append) as ear,
    ):
        ear.subscribe([TOPICS.desired("line-1")])
        ear.connect()
        device.label(1)
        wait_for(lambda: not device.outbox)
        waiting = subprocess.Popen(
            [*HEADWAY, "fleet", "publish", bundle.path, "--dir", directory, "--wait", "30", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: heard, what="the assignment")
        desired = decode_json(heard[0].payload, Desired)
        fetcher = ChunkFetcher(mosquitto.settings, "line-1", "default", tmp_path / "chunks")
        fetcher.fetch(desired.release, tmp_path / "slot")
        assert Bundle.open(tmp_path / "slot").digest() == bundle.digest()
        for state in (UpdateState.PROVISIONAL, UpdateState.COMMITTED):
            event = UpdateEvent(release_id=desired.release.release_id, state=state)
            device.session.publish(TOPICS.up_event("line-1"), encode_json(event))
        published = json.loads(waiting.communicate(timeout=60)[0])
        assert waiting.returncode == 0
        assert published["devices"][0]["settled"] == "committed"
        assert published["served"]
        digest = bundle.precision().head.live_set_digest
        running = DeviceState(
            device="line-1",
            channel="default",
            online=True,
            release_id=desired.release.release_id,
            space=bundle.space(),
            live_set_digest=digest,
            log_position=3,
        )
        ear.publish(TOPICS.state("line-1"), encode_json(running), retain=True)

        with FleetStore(directory) as store:
            wait_for(lambda: fleet_overview(store)["devices"][0]["in_sync"])
    _, out, _ = headway(capsys, "fleet", "devices", "--dir", directory, "--json")
    found = json.loads(out)
    assert found["channels"][0]["live_set_digest"] == digest
    assert found["channels"][0]["log_length"] == 3
    assert (found["devices"][0]["device"], found["devices"][0]["release"]) == ("line-1", "surfaces")
    _, table, _ = headway(capsys, "fleet", "devices", "--dir", directory)
    assert "line-1" in table
    assert digest[:12] in table
    _, lines, _ = headway(capsys, "fleet", "log", "--dir", directory, "--last", "2", "--json")
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == ["code", "label"]
    assert "define" in headway(capsys, "fleet", "log", "--dir", directory)[1]
    kinds = [json.loads(line)["event"] for line in served.stop().splitlines()]
    assert {"registered", "stored", "release", "update", "stopped"} <= set(kinds)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def flipped(bundle: Bundle, folder: Path) -> Path:
    out = folder / "flipped"
    out.mkdir()
    for name in bundle.file_names():
        raw = bytearray((bundle.path / name).read_bytes())
        if name.startswith("backbone"):
            raw[len(raw) // 2] ^= 1
        (out / name).write_bytes(raw)
    return out


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["serve", "--dir", "FLEET", "--broker", "FREE"], "no MQTT broker at", "--start-broker"),
        (["serve", "--dir", "FLEET", "--broker", "h:x"], "no broker address", "host:port"),
        (["serve", "--dir", "FLEET", "--broker", "10.0.0.1", "--start-broker"], "cannot listen at", "127.0.0.1"),
        (["serve", "--dir", "FLEET", "--channel", "No!"], "no channel name", "a-z"),
        (["serve", "--dir", "FLEET", "--prefix", "a/#"], "not a plain topic", "headway/v1"),
        (["serve", "--dir", "FLEET", "--ca-file", "/none"], "TLS files", "ca_file"),
        (["publish", "FLIPPED", "--dir", "FLEET"], "not what the manifest says", "Copy the bundle again"),
        (["publish", "/none", "--dir", "FLEET"], "is not a bundle", "headway export"),
        (["publish", "BUNDLE", "--dir", "FLEET", "--precision", "int8"], "has no int8", "--precision"),
        (["publish", "BUNDLE", "--dir", "FLEET", "--wait", "0.1"], "no device was registered", "fleet devices"),
        (["devices", "--dir", "/none"], "holds no fleet", "fleet serve"),
        (["log", "--dir", "FLEET", "--channel", "none"], "there is no channel none", "none yet"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_with_a_hint(
    tmp_path: Path,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
    hint: str,
) -> None:
    if arguments[0] == "log":
        FleetStore(tmp_path / "fleet").close()
    known = {"FLEET": tmp_path / "fleet", "BUNDLE": bundle.path, "FREE": free_address()}
    known["FLIPPED"] = flipped(bundle, tmp_path)
    code, _, err = headway(capsys, "fleet", *(known.get(argument, argument) for argument in arguments))
    told = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert (code, len(told)) == (2, 2), err
    assert error in told[0]
    assert hint in told[1]


def test_without_a_broker_serving_ends_with_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run(
        [*HEADWAY, "fleet", "serve", "--dir", tmp_path, "--broker", free_address()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: no MQTT broker at 127.0.0.1:")
    assert "Traceback" not in result.stderr


def test_a_rollout_that_is_rolled_back_is_an_error(mosquitto: Mosquitto, tmp_path: Path, bundle: Bundle) -> None:
    with FleetStore(tmp_path) as store:
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="a", channel="default", online=True), seen_utc=1.0)
        publication = store.publish(bundle, channel="default")
        waiting = subprocess.Popen(
            [*HEADWAY, "fleet", "publish", bundle.path, "--dir", tmp_path, "--wait", "30"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def second() -> bool:
            with store.read() as ledger:
                return ledger.newest_publication() > publication.id

        wait_for(second)
        with store.write() as ledger:
            event = UpdateEvent(
                release_id=publication.ref.release_id, state=UpdateState.ROLLED_BACK, reason="recall fell"
            )
            ledger.note_event("a", event, 1.0)
        out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 2
    assert "no fleet service runs" in out
    assert "1 of 1 devices rolled it back, a: recall fell" in err


WITHOUT_VISION = """
import sys
for name in ("cv2", "PIL", "onnxruntime", "torch", "fastapi", "uvicorn"):
    sys.modules[name] = None
import sdk.fleet.cli, sdk.fleet.service, sdk.fleet.broker, sdk.bundle
assert not [name for name in sys.modules if name.startswith(("device_agent", "export"))]
"""


def test_a_fleet_needs_no_vision_library() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_VISION], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


# The broker


def test_our_own_broker_starts_and_stops_with_the_service(tmp_path: Path) -> None:
    settings = MqttSettings.at(free_address())
    served = Served(tmp_path, settings, "--start-broker")
    with MqttSession(settings, "ear", on_message=lambda _message: None) as ear:
        ear.connect()
    served.stop()
    with pytest.raises(BrokerError), MqttSession(settings, "ear", on_message=lambda _message: None) as ear:
        ear.connect()


def test_the_brokers_configuration_limits_what_one_client_can_take() -> None:
    config = mosquitto_config(1234)
    assert "listener 1234 127.0.0.1" in config
    for line in ("set_tcp_nodelay true", "persistence false", "max_packet_size", "memory_limit", "max_queued_"):
        assert line in config


def test_a_broker_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="does not start"):
        Mosquitto(binary=tmp_path / "mosquitto").start()


SLOW = r"""
import re, signal, socket, sys, time
from pathlib import Path
users = Path(__file__).with_name("users").read_text()
port = int(re.search(r"listener (\d+)", Path(sys.argv[2]).read_text())[1])
time.sleep(TAKES)
with socket.create_server(("127.0.0.1", port)):
    Path(__file__).with_name("read").write_text(users)
    time.sleep(0.1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0) if IT_ENDS else None)
    while True:
        time.sleep(60)
"""
"""Reads what there is at its start, and listens for a moment before it minds signals, as Mosquitto does."""


def slow(folder: Path, takes_s: float, *, ends: bool = True) -> Path:
    binary = folder / "mosquitto"
    text = SLOW.replace("TAKES", str(takes_s)).replace("IT_ENDS", str(ends))
    binary.write_text(f"#!{sys.executable}{text}")
    binary.chmod(0o755)
    (folder / "users").write_text("")
    return binary


@pytest.mark.parametrize("takes_s", [0.0, 0.3])
def test_what_is_written_before_a_restart_is_read_by_the_broker_after_it(tmp_path: Path, takes_s: float) -> None:
    """Again and again: as soon as it is there, and before it minds signals."""
    pid_file = tmp_path / "pid"
    with Mosquitto(binary=slow(tmp_path, takes_s), pid_file=pid_file) as broker:
        for change in range(3):
            (tmp_path / "users").write_text(str(change))
            assert restart_broker(pid_file, mosquitto_config, apart_s=0.0)
            assert (tmp_path / "read").read_text() == str(change)
        assert pid_file.read_text() == str(broker.pid)
    assert not restart_broker(pid_file, mosquitto_config, apart_s=0.0)


def test_a_broker_that_does_not_end_is_told(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Mosquitto(binary=slow(tmp_path, 0.0, ends=False), pid_file=pid_file) as broker:
        wait_for(lambda: _minds_sigterm(broker.pid), 60.0, "its being deaf to it")
        with pytest.raises(BrokerError, match="is not back") as caught:
            restart_broker(pid_file, mosquitto_config, apart_s=0.0, timeout_s=0.5)
    assert "started anew" in (caught.value.hint or "")


def _minds_sigterm(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_broker_whose_service_was_killed_is_ended(tmp_path: Path) -> None:
    """Nobody would start it again, and whoever is revoked would stay."""
    pid_file = tmp_path / "pid"
    doomed = Doomed(_serve_for_ever, pid_file)
    pid = int(str(doomed.told()))
    doomed.kill()
    assert restart_broker(pid_file, mosquitto_config, apart_s=0.0)
    wait_for(lambda: not port_holder.is_mosquitto(pid), 60.0, "its end")
    assert not restart_broker(pid_file, mosquitto_config, apart_s=0.0)


def _serve_for_ever(pid_file: Path, tell: Callable[[object], None]) -> None:
    with Mosquitto(pid_file=pid_file) as broker:
        tell(broker.pid)
        time.sleep(600.0)


def test_a_missing_broker_names_the_package() -> None:
    with pytest.raises(BrokerError, match="not installed") as caught:
        find_mosquitto("/none")
    assert caught.value.hint == "apt-get install mosquitto"


def test_a_port_that_is_taken_is_told(mosquitto: Mosquitto) -> None:
    second = Mosquitto(mosquitto.port)
    with pytest.raises(BrokerError, match="in use"), second:
        pass
    assert second._folder is None


def test_a_packet_over_the_limit_is_cut_off(mosquitto: Mosquitto) -> None:
    raw = socket.create_connection(("127.0.0.1", mosquitto.port))
    with raw:
        raw.sendall(bytes.fromhex("101000044d5154540502003c0000037a7a7a"))
        assert raw.recv(100)[:1] == b"\x20"
        raw.sendall(b"\x30\xff\xff\xff\x7f\x00\x01a")
        with contextlib.suppress(ConnectionResetError):
            while data := raw.recv(1000):
                assert data[:1] == b"\xe0"  # DISCONNECT
