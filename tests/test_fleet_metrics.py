"""What Prometheus is told of a fleet is what its database says, and what passed by."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest

from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.core import FleetCore
from sdk.fleet.metrics import DEAD_LETTERS, HOST, FleetMetrics
from sdk.fleet.rollout import Plan
from sdk.fleet.store import FleetStore
from sdk.labels import MAX_COUNTER_JUMP
from sdk.mqtt import Message
from sdk.wire import DeviceState, encode_json
from tests.builders import make_bundle
from tests.simulators import TOPICS, SimDevice
from tests.test_fleet_rollout import Floor


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(folder / name, backbone=name) for name in ("first", "second")}


def value(metrics: FleetMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"headway_fleet_{name}", labels)


def test_devices_logs_and_rollouts_are_as_the_database_says(fleet_dir: Path, bundles: dict[str, Bundle]) -> None:
    floor = Floor(fleet_dir)
    metrics = FleetMetrics(floor.store, lambda: 7)
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    floor.away.add("c")
    floor.tell("c")
    assert value(metrics, "devices", channel="default", state="online") == 3
    assert value(metrics, "devices", channel="default", state="offline") == 1
    assert value(metrics, "devices_on_release", channel="default") == 4
    assert value(metrics, "heads", channel="default", head_state="none") == 4
    assert value(metrics, "queue_depth") == 7
    assert value(metrics, "rollout_wave", channel="default") is None
    floor.store.publish(bundles["second"], channel="default", plan=Plan(waves=["1", "100%"], soak_s=60))
    floor.turn()
    floor.turn()
    assert value(metrics, "rollout", channel="default", state="rolling") == 1
    assert value(metrics, "rollout", channel="default", state="halted") == 0
    assert value(metrics, "rollout_wave", channel="default") == 1


def test_labels_commits_and_what_was_not_taken_are_counted(fleet_dir: Path) -> None:
    with FleetStore(fleet_dir) as store:
        metrics = FleetMetrics(store)
        store.on_commit = metrics.committed
        told: list[str] = []
        core = FleetCore(store, TOPICS, ("default",), metrics.before(lambda kind, _more: told.append(kind)))

        def turn(*messages: Message) -> None:
            core.turn(messages, now=0.0, now_utc=0.0, room_bytes=1)

        device = SimDevice("a")
        device.label(1)
        device.label(2)
        batch = Message(TOPICS.up_label("a"), device.batches()[0].payload)
        turn(batch)  # before its state
        turn(Message(TOPICS.state("a"), device.state().payload))
        turn(batch)
        turn(batch)  # twice is once
        device._counter += MAX_COUNTER_JUMP + 1
        device.label(3)
        turn(Message(TOPICS.up_label("a"), device.batches()[0].payload))
        elsewhere = DeviceState(device="b", channel="other", online=True)
        turn(Message(TOPICS.state("b"), encode_json(elsewhere)), Message(TOPICS.up_label("b"), b"rubbish"))
        assert value(metrics, "labels_total", channel="default") == 2
        assert value(metrics, "records_total", channel="default") == 5
        assert value(metrics, "log_length", channel="default") == 5
        assert value(metrics, "devices_refused", channel="default") == 1
        dead = {reason: value(metrics, "dead_letters_total", reason=reason) for reason in DEAD_LETTERS}
        assert dead == {"unknown_device": 1, "refused": 1, "stranger": 1, "bad_message": 1}
        assert value(metrics, "commit_seconds_count") == 6
        assert set(DEAD_LETTERS) <= set(told)


def test_a_database_that_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    import sqlite3

    with FleetStore(tmp_path / "fleet") as store:
        metrics = FleetMetrics(store)
        with store.write() as ledger:
            ledger.note_state(
                DeviceState(device="a", channel="default", online=True, faults=["no camera"]), seen_utc=1.0
            )
        assert value(metrics, "database_up") == 1
        assert value(metrics, "devices_with_faults", channel="default") == 1
        with sqlite3.connect(tmp_path / "fleet" / "fleet.db") as raw:
            raw.execute("ALTER TABLE devices RENAME TO hidden")
        assert value(metrics, "database_up") == 0
        assert value(metrics, "queue_depth") == 0
        assert value(metrics, "devices", channel="default", state="online") is None


def test_it_is_answered_on_this_machine_only_while_it_is_served(tmp_path: Path) -> None:
    with FleetStore(tmp_path / "fleet") as store, FleetMetrics(store).serving(0) as port:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60) as answer:
            assert b"headway_fleet_database_up" in answer.read()
        with socket.create_server((HOST, 0)) as taken:
            busy = taken.getsockname()[1]
            with pytest.raises(FleetError, match="metrics cannot be served"), FleetMetrics(store).serving(busy):
                pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60)
