"""A broker that is away is seen at the fleet, and one of our own is started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import generate_latest

from sdk.errors import BrokerError, FleetError
from sdk.fleet import port_holder
from sdk.fleet.broker import REVIVE_EVERY_S, Mosquitto, Reviver
from sdk.fleet.hearing import PATIENCE_S, Hearing
from sdk.fleet.metrics import FleetMetrics
from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.rollout import Plan, RolloutState
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.mqtt import MqttSession, MqttSettings
from tests.builders import make_bundle
from tests.commands import headway
from tests.simulators import LiveDevice, wait_for
from tests.test_fleet_live import Served, free_address, serving
from tests.test_fleet_rollout import Floor


def test_what_is_away_is_noted_once_and_a_blip_never(fleet_dir: Path) -> None:
    events: list[tuple[str, str]] = []
    now = 100.0

    def look(connected: bool, at: float) -> float | None:
        nonlocal now
        now = at
        hearing.look(connected=connected)
        with store.read() as ledger:
            away = ledger.broker_away()
        return None if away is None else away.since_utc

    def report(_kind: str, more: Mapping[str, object]) -> None:
        events.append((str(more["broker"]), str(more["state"])))

    with FleetStore(fleet_dir) as store:
        hearing = Hearing(store, "broker:1883", report, lambda: now, lambda: 5000.0 + now)
        assert look(True, 100.0) is None
        assert look(False, 100.0) is None
        assert look(True, 101.9) is None
        assert look(False, 110.0) is None
        assert look(False, 110.0 + PATIENCE_S) == 5110.0
        assert look(False, 200.0) == 5110.0
        assert events == [("broker:1883", "away")]
        hearing = Hearing(store, "broker:1883", report, lambda: now, lambda: 5000.0 + now)  # started anew
        assert look(True, 300.0) is None
        assert events[1:] == [("broker:1883", "answers again")]


@pytest.mark.broker
def test_a_broker_that_died_is_said_everywhere_and_so_is_its_return(
    mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices were "2 online, 0 want a look" for as long as it was away."""
    with (
        serving(tmp_path, mosquitto.settings) as events,
        LiveDevice(mosquitto.settings, "a"),
        FleetStore(tmp_path) as store,
    ):

        def shown() -> str:
            return headway(capsys, "fleet", "devices", "--dir", tmp_path).out

        def said() -> list[object]:
            return [more["state"] for kind, more in events if kind == "broker"]

        wait_for(lambda: "1 devices, 1 online" in shown(), what="the device")
        assert "went away" not in shown()
        mosquitto.kill()
        wait_for(lambda: said() == ["away"], what="the loss")
        assert f"the broker at {mosquitto.settings.address} went away" in shown()
        assert ("1 devices, 0 online" in shown(), "unknown" in shown()) == (True, True)
        shown_metrics = generate_latest(FleetMetrics(store, hears_broker=lambda: False).registry).decode()
        assert "headway_fleet_broker_up 0.0" in shown_metrics
        assert 'headway_fleet_devices{channel="default",state="unknown"} 1.0' in shown_metrics
        page = FleetView(store).devices()
        assert "went away" in page["away"]
        assert page["devices"][0]["presence"] == "unknown"
        mosquitto.start()
        wait_for(lambda: said() == ["away", "answers again"], what="the return")
        wait_for(lambda: "1 devices, 1 online" in shown(), what="the device again")
        assert "headway_fleet_broker_up 1.0" in generate_latest(FleetMetrics(store).registry).decode()


@pytest.mark.broker
def test_of_two_services_of_one_name_one_ends_and_the_other_serves(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """They took the session from each other each second, for ever, and spoke of devices."""
    stop = threading.Event()

    def serve(store: FleetStore) -> None:
        FleetService(store, mosquitto.settings).run(stop, connect_timeout_s=60.0)

    with FleetStore(tmp_path / "one") as one, FleetStore(tmp_path / "two") as two, ThreadPoolExecutor(2) as pool:
        try:
            services = [pool.submit(serve, store) for store in (one, two)]
            wait_for(lambda: any(service.done() for service in services), what="one of them to end")
            with LiveDevice(mosquitto.settings, "a") as device:
                device.label(1)
                wait_for(lambda: not device.outbox, what="a label at the other one")
            (ended,) = [service for service in services if service.done()]
            with pytest.raises(FleetError, match="another fleet service with this one's name is at this broker"):
                ended.result()
        finally:
            stop.set()


def test_two_services_of_one_name_are_told_to_whoever_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Mapping[str, object]] = []
    with FleetStore(tmp_path) as store, store.serving():
        hearing = Hearing(store, "broker:1883", lambda _kind, more: events.append(more))
        hearing.look(connected=False, contested=True)
        hearing.look(connected=True, contested=True)
        told = headway(capsys, "fleet", "devices", "--dir", tmp_path).out
        assert "another fleet service with this one's name came to the broker at broker:1883" in told
        assert "went away" not in told
        away = json.loads(headway(capsys, "fleet", "devices", "--dir", tmp_path, "--json").out)["broker_away"]
        assert away["contested"] is True
        text = TestClient(make_app(FleetView(store)), base_url="http://127.0.0.1").get("/").text
        assert "Another fleet service came to the broker at broker:1883" in text
        assert "stop one of the two" in text
        hearing.look(connected=True)
        assert "another fleet service" not in headway(capsys, "fleet", "devices", "--dir", tmp_path).out
    assert [one["state"] for one in events] == ["contested", "answers again"]


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.broker
def test_a_broker_of_our_own_that_was_killed_is_started_anew(tmp_path: Path) -> None:
    """It was left dead, and the service was silent about it."""
    settings = MqttSettings.at(free_address())
    served = Served(tmp_path, settings, "--start-broker")
    (broker,) = children_of(served.process.pid)
    with LiveDevice(settings, "a") as device:
        device.label(1)
        wait_for(lambda: not device.outbox, what="the first label")
        os.kill(broker, signal.SIGKILL)
        device.label(2)
        wait_for(lambda: not device.outbox, what="the label that came while it was dead")
    events = [json.loads(line) for line in served.stop().splitlines()]
    (said,) = [event for event in events if event["event"] == "broker" and event["state"] == "started anew"]
    assert "ended with status -9" in said["reason"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((settings.host, settings.port), timeout=60)


@pytest.mark.broker
def test_a_service_that_was_killed_leaves_no_broker_in_the_way_of_the_next(tmp_path: Path) -> None:
    """Its orphan held the port, and the same command ended with "choose another port"."""
    settings = MqttSettings.at(free_address())
    killed = Served(tmp_path, settings, "--start-broker")
    (orphan,) = children_of(killed.process.pid)
    killed.kill()
    assert port_holder.holder(settings.port) == orphan
    served = Served(tmp_path, settings, "--start-broker")
    (broker,) = children_of(served.process.pid)
    assert port_holder.holder(settings.port) == broker != orphan
    with LiveDevice(settings, "a") as device:
        device.label(1)
        wait_for(lambda: not device.outbox, what="its label")
    served.stop()


@pytest.mark.broker
def test_a_broker_that_serves_somebody_is_left_to_them_and_named(mosquitto: Mosquitto) -> None:
    with pytest.raises(BrokerError, match="in use") as refused:
        Mosquitto(mosquitto.port).start()
    assert f"Process {mosquitto.pid} has it (" in refused.value.hint
    assert "mosquitto -c " in refused.value.hint
    assert port_holder.holder(mosquitto.port) == mosquitto.pid


def test_what_is_no_broker_of_ours_is_left_on_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert port_holder.end_abandoned(port, 1.0) is None
        assert port_holder.holder(port) == os.getpid()
    assert port_holder.holder(port) is None


@pytest.mark.broker
def test_a_broker_of_our_own_that_cannot_start_is_told_once_and_tried_again(mosquitto: Mosquitto) -> None:
    told: list[str] = []
    clock = iter([0.0, 1.0, 1.0, 1.0 + REVIVE_EVERY_S / 2, 1.0 + REVIVE_EVERY_S, 1.0 + REVIVE_EVERY_S, 99.0, 99.0])
    reviver = Reviver(mosquitto, lambda _kind, more: told.append(more["state"]), lambda: next(clock))
    reviver.look()
    assert told == []
    os.kill(mosquitto.pid, signal.SIGKILL)
    os.waitid(os.P_PID, mosquitto.pid, os.WEXITED | os.WNOWAIT)
    with socket.create_server(("127.0.0.1", mosquitto.port)):
        for _ in range(3):
            reviver.look()
    assert told == ["does not start"]
    reviver.look()
    assert told == ["does not start", "started anew"]
    with MqttSession(mosquitto.settings, "ear", on_message=lambda _message: None) as ear:
        ear.connect(60.0)


def test_no_rollout_decides_while_nobody_is_heard(fleet_dir: Path) -> None:
    floor = Floor(fleet_dir, ("a", "b"))
    for name in ("first", "second"):
        plan = None if name == "first" else Plan(waves=["1", "100%"], soak_s=30, deadline_s=60)
        floor.store.publish(make_bundle(fleet_dir.parent / name, backbone=name), channel="default", plan=plan)
        floor.turn()
        floor.turn()
    with floor.store.write() as ledger:
        ledger.note_broker("broker:1883", floor.now)
    floor.wait(3600)
    assert floor.stands() == (RolloutState.ROLLING, 1)
    with floor.store.write() as ledger:
        ledger.note_broker("broker:1883", None)
    floor.wait(1)
    assert floor.stands() == (RolloutState.HALTED, 1)
