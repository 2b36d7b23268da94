"""Devices that are gone for good: revoked, or forgotten. Nothing waits for them, and what they labelled stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client import generate_latest

from sdk.bundle import Bundle
from sdk.fleet.metrics import FleetMetrics
from sdk.fleet.rollout import Plan, RolloutState
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message
from sdk.wire import DeviceState, Topics, encode_json, last_will
from tests.builders import make_bundle
from tests.commands import headway
from tests.simulators import LiveDevice, SimDevice, wait_for
from tests.test_enroll import Plant, made
from tests.test_fleet_live import serving
from tests.test_fleet_rollout import Floor

__all__ = ["made"]
TOPICS = Topics()
PLAN = Plan(waves=["2", "100%"], soak_s=30, deadline_s=60)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(folder / name, backbone=name) for name in ("first", "second")}


@pytest.fixture
def floor(fleet_dir: Path, bundles: dict[str, Bundle]) -> Floor:
    """Three devices that run the first release."""
    floor = Floor(fleet_dir, ("a", "b", "c"))
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    return floor


def names(store: FleetStore, *, revoked: bool = False) -> list[str]:
    with store.read() as ledger:
        return [device.device for device in ledger.devices(revoked=revoked)]


def test_a_rollout_does_not_wait_for_a_device_that_was_revoked(floor: Floor, bundles: dict[str, Bundle]) -> None:
    """It stayed online for ever, its last will being refused, and failed every wave."""
    floor.store.publish(bundles["second"], channel="default", plan=PLAN)
    floor.turn()
    floor.turn()
    floor.away.add("b")  # as far as it can say
    floor.obey()
    with floor.store.write() as ledger:
        ledger.note_revoked("b", floor.now)
    floor.wait(PLAN.deadline_s)
    floor.wait(PLAN.soak_s)
    floor.obey()
    floor.wait(PLAN.soak_s)
    assert floor.stands() == (RolloutState.DONE, 2)
    with floor.store.read() as ledger:
        current = ledger.current("default")
        assert current is not None
        assert [one.device for one in ledger.assignments(current.id)] == ["a", "c"]
        ledger_devices = ledger.devices(revoked=True)
    assert [(one.device, one.revoked_utc is not None) for one in ledger_devices] == [
        ("a", False), ("b", True), ("c", False)
    ]  # fmt: skip


def test_a_device_that_was_revoked_is_not_heard_until_it_is_enrolled_again(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    with floor.store.write() as ledger:
        ledger.note_revoked("b", floor.now)
    floor.store.publish(bundles["second"], channel="default")
    floor.tell("b")  # its broker has not read the list yet
    assert names(floor.store) == ["a", "c"]
    shown = generate_latest(FleetMetrics(floor.store).registry).decode()
    assert 'headway_fleet_devices{channel="default",state="revoked"} 1.0' in shown
    assert 'headway_fleet_devices{channel="default",state="online"} 2.0' in shown
    with floor.store.write() as ledger:
        ledger.note_enrolled("b")
    assert names(floor.store) == ["a", "c"]
    floor.tell("b")
    floor.turn()
    floor.turn()
    assert floor.names()["b"] == "second"
    with floor.store.read() as ledger:
        current = ledger.current("default")
        assert current is not None
        assert "b" in [one.device for one in ledger.assignments(current.id)]


def test_what_is_forgotten_is_back_when_it_speaks_and_keeps_its_log(fleet_dir: Path) -> None:
    scrapped, state = SimDevice("scrapped"), DeviceState(device="scrapped", channel="default", online=True)
    scrapped.label(1)
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            ledger.note_state(state, seen_utc=1.0)
            ledger.take("scrapped", scrapped.log, {})
            ledger.forget("scrapped")
        assert names(store, revoked=True) == []
        with store.write() as ledger:
            ledger.note_state(state, seen_utc=None)  # what the broker has kept of it
        assert names(store) == []
        with store.write() as ledger:
            for left in (last_will("scrapped", "default", "of this run"), replace(state, online=False, outbox=1)):
                assert ledger.note_state(left, seen_utc=1.5)[1] is False, "it has only gone"
        assert names(store) == []
        with store.write() as ledger:
            device, new = ledger.note_state(state, seen_utc=2.0)
        assert (names(store), new, device.acknowledged) == (["scrapped"], True, 3)


def test_after_a_broker_that_forgot_nobody_is_online_who_does_not_say_so(floor: Floor) -> None:
    """The last will of a device that went with the broker never comes."""
    floor.core.broker_connected(remembered=True)
    with floor.store.read() as ledger:
        assert [device.state.online for device in ledger.devices()] == [True, True, True]
    floor.core.broker_connected(remembered=False)
    floor.turn(Message(TOPICS.state("a"), encode_json(_online("a")), retained=True))
    floor.turn(Message(TOPICS.state("c"), encode_json(_online("c"))))
    with floor.store.read() as ledger:
        assert [device.state.online for device in ledger.devices()] == [True, False, True]


def _online(device: str) -> DeviceState:
    return DeviceState(device=device, channel="default", online=True)


@pytest.mark.broker
def test_revoke_enroll_and_forget_are_seen_at_once(made: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: real broker, real certificates, the commands as a person gives them."""
    fleet, settings = made.fleet, made.enroll("line-9")

    def shown() -> dict[str, object]:
        ended = headway(capsys, "fleet", "devices", "--dir", fleet, "--json")
        found = {one["device"]: one for one in json.loads(ended.out)["devices"]}.get("line-9")
        return {} if found is None else dict(found)

    with serving(fleet, made.service):
        with LiveDevice(settings, "line-9"):
            wait_for(lambda: shown().get("online"), what="the device being online")
            ended = headway(capsys, "fleet", "forget", "line-9", "--dir", fleet)
            assert (ended.code, "revoke line-9" in ended.err) == (2, True)
            assert headway(capsys, "fleet", "revoke", "line-9", "--dir", fleet).code == 0
            assert (shown()["online"], shown()["revoked_utc"] is not None) == (False, True)
        made.broker.restart()
        text = headway(capsys, "fleet", "devices", "--dir", fleet).out
        assert "0 devices, 0 online, 0 want a look, 1 revoked" in text
        (made.folder / "line-9").rename(made.folder / "line-9.old")
        with LiveDevice(made.enroll("line-9"), "line-9"):
            wait_for(lambda: shown().get("online"), what="the device being back")
            assert shown()["revoked_utc"] is None
        assert headway(capsys, "fleet", "revoke", "line-9", "--dir", fleet).code == 0
        assert headway(capsys, "fleet", "forget", "line-9", "--dir", fleet).code == 0
        assert shown() == {}
        ended = headway(capsys, "fleet", "forget", "line-9", "--dir", fleet)
        assert (ended.code, "there is no device line-9" in ended.err) == (2, True)
