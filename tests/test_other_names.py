"""A device that a broker refuses, or whose name another one uses, says so: with a real, secured Mosquitto."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from device_agent.agent import Agent
from device_agent.broker_check import check_broker
from device_agent.config import Site
from device_agent.site_file import load_site
from device_agent.store import Store
from device_agent.sync import Sync
from sdk.errors import BrokerError
from sdk.finding import Finding, Level
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.mqtt import MqttSession, MqttSettings
from sdk.session_ends import MANY_SHORT, SHORT_S, SessionEnds
from sdk.wire import DeviceState
from tests.commands import headway
from tests.simulators import wait_for

Run = Callable[..., int]


@dataclass
class Plant:
    """A fleet with a secured broker on loopback, and what is enrolled there."""

    folder: Path
    broker: Mosquitto
    run: Run

    def enroll(self, device: str) -> Path:
        """Enrol a device; return its settings, with this broker's port and an image for its camera."""
        out = self.folder / device
        assert self.run("fleet", "enroll", device, "--dir", self.folder / "fleet", "--out", out) == 0
        (out / "images").mkdir()
        cv2.imwrite(str(out / "images" / "a.png"), np.zeros((8, 8, 3), np.uint8))
        self.edit(out / "site.toml", "port = 8883", f"port = {self.broker.port}")
        return out / "site.toml"

    @staticmethod
    def edit(file: Path, before: str, after: str) -> Site:
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
        return load_site(file)


@pytest.fixture
def plant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Plant]:
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")

    def run(*words: object) -> int:
        return headway(capsys, *words).code

    assert run("fleet", "tls", "--dir", tmp_path / "fleet", "--host", "127.0.0.1") == 0
    with secure_broker(tmp_path / "fleet", port=0, host="127.0.0.1") as broker:
        yield Plant(tmp_path, broker, run)


def looked_at(site: Site) -> list[Finding]:
    assert site.mqtt is not None
    return list(check_broker(site, site.mqtt))


def settings_of(site: Site) -> MqttSettings:
    mqtt = site.mqtt
    assert mqtt is not None
    return MqttSettings(
        host=mqtt.host, port=mqtt.port, ca_file=mqtt.ca_file, cert_file=mqtt.cert_file, key_file=mqtt.key_file
    )


def syncing(site: Site, store: Store) -> Sync:
    state = DeviceState(device=site.device, channel=site.channel, online=True)
    return Sync(
        settings_of(site),
        store,
        site.channel,
        on_records=lambda _records: None,
        on_desired=lambda _desired: None,
        state=lambda: state,
    )


# Another's certificate


@pytest.mark.broker
def test_the_doctor_says_whose_certificate_it_is_and_leaves_that_one_alone(plant: Plant) -> None:
    file = plant.enroll("line-4")
    other = MqttSession(settings_of(load_site(file)), "line-4", on_message=lambda _message: None)
    with other:
        other.connect()
        site = plant.edit(file, 'device = "line-4"', 'device = "line-x"')
        (found,) = looked_at(site)
        assert found.level is Level.FAULT
        assert "device.pem is the certificate of line-4, and this device is line-x" in found.what
        assert other.connected


@pytest.mark.broker
def test_an_agent_with_anothers_certificate_says_so_inspects_and_does_not_connect(plant: Plant) -> None:
    file = plant.enroll("line-4")
    site = plant.edit(file, 'device = "line-4"', 'device = "line-x"')
    with Agent(site) as agent:
        state = agent.state()
        assert any("is the certificate of line-4" in fault for fault in state.faults)
        assert state.mqtt is None


@pytest.mark.broker
def test_certificates_that_were_mixed_up_among_sessions_are_told(plant: Plant) -> None:
    file = plant.enroll("line-4")
    site = plant.edit(file, 'chunks_cert_file = "device-chunks.pem"', 'chunks_cert_file = "device.pem"')
    (found,) = looked_at(site)
    assert "is the certificate of line-4, and this device is line-4.chunks" in found.what


# Revoked


@pytest.mark.broker
def test_the_doctor_says_that_a_broker_takes_nothing_from_a_device(plant: Plant) -> None:
    """Revoked, and the broker was not told to read its list of those revoked: it lets the device in."""
    file = plant.enroll("line-4")
    acl = tls_folder(plant.folder / "fleet") / "acl"
    acl.write_text(acl.read_text().replace("/dev/line-4/", "/dev/line-9/"))
    assert (
        plant.run("fleet", "enroll", "line-5", "--dir", plant.folder / "fleet", "--out", plant.folder / "5") == 0
    )
    control = looked_at(load_site(file))
    assert [each.level for each in control] == [Level.GOOD, Level.GOOD], "enrolling has written the list anew"
    acl.write_text(acl.read_text().replace("/dev/line-4/", "/dev/line-9/"))
    plant.broker.restart()
    good, fault = looked_at(load_site(file))
    assert (good.level, fault.level) == (Level.GOOD, Level.FAULT)
    assert "takes nothing from it" in fault.what
    assert "Not authorized" in fault.what
    assert "Was line-4 revoked?" in fault.fix


@pytest.mark.broker
def test_a_revoked_certificate_is_called_so_by_doctor_and_agent(
    plant: Plant, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = load_site(plant.enroll("line-4"))
    assert [each.level for each in looked_at(site)] == [Level.GOOD, Level.GOOD], "the control"
    assert plant.run("fleet", "revoke", "line-4", "--dir", plant.folder / "fleet") == 0
    (found,) = looked_at(site)
    assert found.level is Level.FAULT
    assert "device.pem: certificate revoked" in found.what
    assert "enroll" in found.fix
    with Store.open(tmp_path / "data", "line-4") as store, caplog.at_level(logging.WARNING):
        sync = syncing(site, store)
        sync.start()
        try:
            wait_for(lambda: "certificate revoked" in (sync.status().fault or ""), 60.0, "the reason")
        finally:
            sync.stop()
    assert any("certificate revoked" in record.getMessage() for record in caplog.records)


@pytest.mark.broker
def test_a_broker_whose_certificate_is_for_another_address_is_called_so(plant: Plant) -> None:
    file = plant.enroll("line-4")
    site = plant.edit(file, 'host = "127.0.0.1"', 'host = "0.0.0.0"')
    (found,) = looked_at(site)
    assert "does not hold" in found.what
    assert "0.0.0.0" in found.what
    assert "tls --renew --host" in found.fix


# Two of one name


@pytest.mark.broker
def test_two_machines_of_one_name_say_so_themselves(
    plant: Plant, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto 2.0 closes the older session without a reason, and each comes back in half a second."""
    site = load_site(plant.enroll("line-2"))
    with (
        Store.open(tmp_path / "one", "line-2") as one,
        Store.open(tmp_path / "two", "line-2") as two,
        caplog.at_level(logging.WARNING),
    ):
        first, second = syncing(site, one), syncing(site, two)
        first.start()
        wait_for(lambda: first.status().connected, 60.0, "the first")
        assert first.status().fault is None, "the control"
        second.start()
        try:
            said = "most likely another machine has this name"
            wait_for(lambda: said in (first.status().fault or ""), 60.0, "the first's word")
            wait_for(lambda: said in (second.status().fault or ""), 60.0, "the second's word")
        finally:
            second.stop()
        wait_for(lambda: first.status().connected and first.status().fault is None, 60.0, "the first, left alone")
        first.stop()
    assert any(f"within seconds: {said}" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("lasted_s", "told"),
    [
        ([0.1] * (MANY_SHORT - 1), False),
        ([0.1] * MANY_SHORT, True),
        ([0.1] * (MANY_SHORT - 1) + [SHORT_S, 0.1], False),
        ([SHORT_S] * 100, False),
    ],
)
def test_only_many_short_sessions_in_a_row_tell_of_another(lasted_s: list[float], told: bool) -> None:
    ends, now = SessionEnds("a"), 0.0
    for each_s in lasted_s:
        ends.began(now)
        now += each_s
        ends.ended(now)
    assert (ends.words(now) is not None) is told
    ends.began(now)
    assert (ends.words(now) is not None) is told, "it may be thrown off again"
    assert ends.words(now + SHORT_S) is None


def test_sessions_that_end_for_a_reason_tell_of_nobody() -> None:
    ends = SessionEnds("a")
    for second in range(100):
        ends.began(second)
        ends.ended(second + 0.1, unexplained=False)
    assert ends.words(100.0) is None


@pytest.mark.broker
def test_who_was_there_first_stays_and_who_came_later_leaves(mosquitto: Mosquitto) -> None:
    def session(yields_within_s: float) -> MqttSession:
        return MqttSession(
            mosquitto.settings, "same", on_message=lambda _message: None, yields_within_s=yields_within_s
        )

    with session(0.0) as first, session(math.inf) as second:  # the one lasted for long, the other never
        first.connect(60.0)
        second.start()
        wait_for(lambda: second.gave_way, what="the one that came later to leave")
        wait_for(lambda: first.connected and not first.contested, what="the first, left alone")
        assert (first.gave_way, second.connected) == (False, False)


def test_sessions_that_a_stopped_broker_ended_tell_of_nobody() -> None:
    ends = SessionEnds("a")
    for second in range(2 * MANY_SHORT):
        ends.began(second)
        assert not ends.ended(second + 0.1)
        assert ends.contested(second + 0.1) is False
        ends.nobody_there()


def test_a_few_short_sessions_are_contested_before_anybody_is_accused() -> None:
    ends, told = SessionEnds("a"), []
    for second in range(MANY_SHORT):
        ends.began(second)
        ends.ended(second + 0.1)
        told.append((ends.contested(second + 0.1), ends.words(second + 0.1) is not None))
    assert told == [(False, False)] * 2 + [(True, False)] * 2 + [(True, True)]


def test_a_connection_that_never_came_is_no_session() -> None:
    ends = SessionEnds("a")
    assert not any(ends.ended(second) for second in range(100))
    assert ends.words(100.0) is None
