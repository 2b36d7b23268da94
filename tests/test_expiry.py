"""What ends is told in time, and the command that is named with it renews it: run word for word."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from fastapi.testclient import TestClient
from prometheus_client import generate_latest

from device_agent.expiry import ending_words
from device_agent.site_file import load_site
from sdk.errors import BrokerError, KeyRefused
from sdk.expiry import DAY_S, NOTICE_DAYS, Expiry, Standing
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.certificates import AUTHORITY_LIFE, CERTIFICATE_LIFE, Authority
from sdk.fleet.cli import fleet as fleet_command
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.fleet.cli_trust import open_trust
from sdk.fleet.expiry import Watch, ending, expiries
from sdk.fleet.metrics import FleetMetrics
from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.store import FleetStore
from sdk.mqtt import MqttSettings
from sdk.trust.repository import ROOT_LIFE, TARGETS_LIFE, OnlineTrust, Repository
from sdk.wire import DeviceState
from tests.builders import make_bundle
from tests.simulators import wait_for
from tests.test_enroll import lets_in
from tests.test_trust_live import headway

LONG = timedelta(days=NOTICE_DAYS)
NOW = datetime.now(timezone.utc)
LATER = timedelta(days=1)


def made_at(folder: Path, then: datetime, *devices: str) -> Path:
    """Return a fleet whose keys and certificates were all made then."""
    directory = folder / "fleet"
    FleetStore(directory).close()
    Repository.create(directory / "trust", folder / "keys", clock=lambda: then)
    assert headway("fleet", "tls", "--dir", directory, "--host", "127.0.0.1") == 0
    for file in (directory / "tls").glob("*.*"):
        if file.suffix in {".pem", ".key"}:
            file.unlink()
    (directory / "tls" / "issued").rmdir()
    authority = Authority.create(directory / "tls", ["127.0.0.1"], clock=lambda: then)
    for device in devices:
        issued = authority.enroll(device)
        (folder / device).mkdir()
        for name, content in zip(("device.pem", "chunks.pem", "trigger.pem"), issued.certificates, strict=True):
            (folder / device / name).write_bytes(content)
        (folder / device / "device.key").write_bytes(issued.key)
        shutil.copy(directory / "tls" / "ca.pem", folder / device)
    return directory


@pytest.mark.parametrize(
    ("age", "wanting"),
    [
        (timedelta(days=1), []),
        (timedelta(days=8), ["timestamp"]),
        (TARGETS_LIFE - LONG + LATER, ["timestamp", "targets"]),
        (ROOT_LIFE - LONG + LATER, ["broker", "device", "root", "service", "targets", "timestamp"]),
        (AUTHORITY_LIFE, ["authority", "broker", "device", "root", "service", "targets", "timestamp"]),
    ],
)
def test_each_is_told_in_time(tmp_path: Path, age: timedelta, wanting: list[str]) -> None:
    directory = made_at(tmp_path, NOW - age, "line-1")
    assert sorted({one.kind for one in ending(directory, NOW.timestamp())}) == sorted(wanting)
    assert len(expiries(directory)) == 7


def test_each_command_that_is_named_renews_what_it_is_named_for(tmp_path: Path) -> None:
    """All was made five years ago, but for thirty days; the commands are run as they are printed."""
    directory = made_at(tmp_path, NOW - ROOT_LIFE + timedelta(days=30), "line-1", "line-2")
    told = CliRunner().invoke(fleet_command, ["doctor", "--dir", str(directory), "--json"])
    assert told.exit_code == 1
    rows = {row["what"]: row for row in json.loads(told.output)["ends"] if row["standing"] != "good"}
    assert rows["the root of signatures"]["days_left"] == pytest.approx(30, abs=0.2)
    assert rows["the signature of the releases"]["standing"] == "over"
    grouped = CliRunner().invoke(fleet_command, ["doctor", "--dir", str(directory)]).output
    assert "the first of 2 devices' certificates (line-1, line-2) ends on" in grouped
    assert f"headway fleet renew --ending --dir {directory} --out renewed" in grouped
    commands = {row["renew"] for row in rows.values() if row["kind"] != "timestamp"}
    assert len(commands) == 4  # keys, servers, and one a device
    for number, command in enumerate(sorted(commands)):
        places = command.replace("KEYS", f"{tmp_path}/keys").replace(" renewed", f" {tmp_path}/renewed-{number}")
        words = shlex.split(places)
        assert words[0] == "headway"
        assert headway(*words[1:]) == 0
    OnlineTrust(open_trust(directory)).poll()  # as `headway fleet serve` does
    after = CliRunner().invoke(fleet_command, ["doctor", "--dir", str(directory)])
    said = [line.split() for line in after.output.splitlines()]
    assert {words[0] for words in said if words[1] == "trust"} == {"good"}, after.output
    assert "(the first of 2)" in after.output
    assert CliRunner().invoke(fleet_command, ["devices", "--dir", str(directory)]).output.count("ends on") == 0


def test_the_root_is_renewed_by_those_of_its_keys_that_are_brought(tmp_path: Path) -> None:
    directory = made_at(tmp_path, NOW - ROOT_LIFE + timedelta(days=30))
    renew = ["keys", "renew", "--dir", str(directory), "--keys", str(tmp_path / "keys")]
    targets = (tmp_path / "keys" / "targets.pem").rename(tmp_path / "targets.pem")
    for away in ("root-2.pem", "root-3.pem"):
        (tmp_path / "keys" / away).rename(tmp_path / away)
    assert headway("fleet", *renew) != 0
    assert open_trust(directory).root().signed.version == 1
    targets.rename(tmp_path / "keys" / "targets.pem")
    told = CliRunner().invoke(fleet_command, renew)
    assert "not renewed, 1 of 2 keys are here" in told.output
    assert (open_trust(directory).root().signed.version, open_trust(directory).targets().signed.version) == (1, 2)
    (tmp_path / "root-3.pem").rename(tmp_path / "keys" / "root-3.pem")
    assert "not renewed" not in CliRunner().invoke(fleet_command, renew).output
    assert open_trust(directory).root().signed.expires > NOW + ROOT_LIFE - LATER


# With a real broker


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[Path, Mosquitto]]:
    """A plant of sixteen years' age: its broker's certificate ended long ago, its authority ends in four years."""
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    made_at(tmp_path, NOW - timedelta(days=16 * 366))
    folder = tls_folder(tmp_path / "fleet")
    for device in ("line-1", "line-2"):
        assert headway("fleet", "enroll", device, "--dir", tmp_path / "fleet", "--out", tmp_path / device) == 0
    assert (folder / "ca.pem").is_file()
    with secure_broker(tmp_path / "fleet", port=0, host="127.0.0.1") as broker:
        yield tmp_path, broker


def shown(port: int) -> datetime:
    """Return the end of the certificate that a broker shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=60.0) as line:
        secured = context.wrap_socket(line)
        raw = secured.getpeercert(binary_form=True)
        secured.close()
    assert raw is not None
    return x509.load_der_x509_certificate(raw).not_valid_after_utc


@pytest.mark.broker
def test_a_running_broker_takes_its_renewed_certificate_and_devices_of_both_ages_come_in(
    old: tuple[Path, Mosquitto],
) -> None:
    folder, broker = old
    fleet = folder / "fleet"

    def settings(files: Path) -> MqttSettings:
        return MqttSettings(
            host="127.0.0.1",
            port=broker.port,
            ca_file=files / "ca.pem",
            cert_file=files / "device.pem",
            key_file=folder / files.name / "device.key",
        )

    assert shown(broker.port) < NOW
    before = (folder / "line-1" / "ca.pem").read_bytes()
    assert headway("fleet", "tls", "--renew", "--dir", fleet) == 0
    wait_for(lambda: shown(broker.port) > NOW + CERTIFICATE_LIFE - LATER, 60.0, "the renewed certificate")
    assert headway("fleet", "renew", "line-1", "--dir", fleet, "--out", folder / "renewed") == 0
    renewed = folder / "renewed" / "line-1"
    assert sorted(path.name for path in renewed.iterdir()) == [
        "ca.pem",
        "device-chunks.pem",
        "device-trigger.pem",
        "device.pem",
    ]
    assert (renewed / "ca.pem").read_bytes() != before
    assert lets_in(settings(folder / "line-1")), "with what it was enrolled with"
    assert lets_in(settings(renewed)), "with what it was renewed with"
    assert lets_in(replace(settings(renewed), ca_file=folder / "line-1" / "ca.pem"))
    assert headway("fleet", "revoke", "line-1", "--dir", fleet) == 0
    wait_for(lambda: not lets_in(settings(renewed)), 60.0, "the refusal of what was renewed")
    assert not lets_in(settings(folder / "line-1")), "revoking ends both"
    assert lets_in(settings(folder / "line-2")), "and nobody else's"


# Where it is told


def test_it_is_on_the_page_in_the_metrics_and_in_the_services_log(tmp_path: Path) -> None:
    directory = made_at(tmp_path, NOW - ROOT_LIFE + timedelta(days=30, hours=1), "line-1")
    with FleetStore(directory) as store:
        client = TestClient(make_app(FleetView(store, NOW.timestamp)), base_url="http://127.0.0.1")
        text = client.get("/").text
        assert "the root of signatures ends on" in text
        assert f"headway fleet keys renew --dir {directory} --keys KEYS" in text
        ends = client.get("/api/fleet").json()["ends"]
        assert [one["kind"] for one in ends][:2] == ["timestamp", "targets"], "the first to end comes first"
        metrics = generate_latest(FleetMetrics(store, clock=NOW.timestamp).registry).decode()
        days = {
            line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("headway_fleet_expiry_days_left{")
        }
        assert days["root"] == days["device"] == pytest.approx(30.04, abs=0.01)
        assert days["targets"] < 0
    said: list[str] = []
    watch = Watch(directory, lambda kind, more: said.append(f"{kind} {more['what']}"))
    for hour in range(49):
        watch.look(NOW.timestamp() + 3600 * hour)
    assert len(said) == 3 * 6, "once a day"
    assert "ends the certificate of line-1 ends on" in "\n".join(said)
    watch.look(NOW.timestamp() - 3 * DAY_S)
    assert len(said) == 4 * 6, "a clock that was set back silences nothing"


def test_a_device_says_itself_that_its_certificate_ends_and_the_fleet_shows_it(tmp_path: Path) -> None:
    """A folder that was renewed and never carried: the server's copy is fresh, the device's is not."""
    words = "signed; this certificate ends on 2031-01-02, in 12 days; then the broker refuses this device"
    with FleetStore(tmp_path / "fleet") as store:
        state = DeviceState(device="line-1", channel="default", online=True, trust=words)
        with store.write() as ledger:
            ledger.note_state(state, seen_utc=1.0)
        client = TestClient(make_app(FleetView(store)), base_url="http://127.0.0.1")
        assert f"line-1: {words}" in client.get("/").text
    told = CliRunner().invoke(fleet_command, ["devices", "--dir", str(tmp_path / "fleet")])
    assert "in 12 days" in told.output


# Refusals


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["renew", "nobody", "--out", "{}/new"], "nobody is not enrolled here"),
        (["renew", "line-1", "nobody", "--out", "{}/new"], "nobody is not enrolled here"),
        (["renew", "line-1", "--out", "{}"], "is there already"),
        (["renew", "--out", "{}/new"], "name the devices, or give --ending"),
        (["tls"], "Missing option '--host'"),
    ],
)
def test_what_cannot_be_renewed_is_said_and_changes_nothing(
    tmp_path: Path, command: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = made_at(tmp_path, NOW, "line-1")
    before = (directory / "tls" / "issued" / "line-1.pem").read_bytes()
    assert headway("fleet", *(each.format(tmp_path) for each in command), "--dir", directory) != 0
    assert words in capsys.readouterr().err
    assert (directory / "tls" / "issued" / "line-1.pem").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_fleet_without_certificates_renews_none(tmp_path: Path) -> None:
    FleetStore(tmp_path / "fleet").close()
    assert headway("fleet", "tls", "--renew", "--dir", tmp_path / "fleet") != 0
    told = CliRunner().invoke(fleet_command, ["doctor", "--dir", str(tmp_path / "fleet")])
    assert "good  trust       this fleet has neither keys nor certificates: nothing ends" in told.output
    with pytest.raises(KeyRefused, match="no certificate authority"):
        Authority(tmp_path / "fleet" / "tls")


def test_a_damaged_file_is_a_fault_and_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = made_at(tmp_path, NOW - ROOT_LIFE + timedelta(days=30), "line-1")
    (directory / "tls" / "issued" / "line-1.pem").write_text("no certificate")
    (directory / "trust" / "targets.json").write_text("{}")
    found = expiries(directory)
    assert [one.kind for one in found] == ["device", "root", "broker", "service", "authority"]
    assert [bool(one.damaged) for one in found] == [True, True, False, False, False]
    capsys.readouterr()
    assert headway("fleet", "doctor", "--dir", directory) == 1
    said = capsys.readouterr().out
    assert "the certificate of line-1 cannot be read (line-1.pem:" in said
    assert "the signatures' metadata cannot be read" in said


def test_lost_chunks_are_found_and_publishing_again_brings_them_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, bundle = tmp_path / "fleet", make_bundle(tmp_path / "bundle")
    assert headway("fleet", "publish", bundle.path, "--dir", directory) == 0
    chunks = sorted(path for path in (directory / "chunks").rglob("*") if path.is_file())
    chunks[0].unlink()
    chunks[1].write_bytes(b"flipped")
    capsys.readouterr()
    assert headway("fleet", "doctor", "--dir", directory) == 1
    assert f"2 of {len(chunks)} chunks of {bundle.manifest.name} (channel default)" in capsys.readouterr().out
    assert headway("fleet", "doctor", "--dir", directory, "--json") == 1
    (lost,) = json.loads(capsys.readouterr().out)["lacking"]
    assert (lost["missing"], lost["chunks"]) == (2, len(chunks))
    assert chunks[1].read_bytes() == b"flipped", "it only looks"
    assert headway("fleet", "publish", bundle.path, "--dir", directory) == 0
    capsys.readouterr()
    headway("fleet", "doctor", "--dir", directory, "--json")
    assert json.loads(capsys.readouterr().out)["lacking"] == []


def test_days_are_counted_to_the_end_and_from_it() -> None:
    one = Expiry("root", "it", 1000 * DAY_S, "nothing", "renew")
    assert one.standing((1000 - NOTICE_DAYS) * DAY_S) is Standing.GOOD
    assert one.standing((1000 - NOTICE_DAYS) * DAY_S + 1) is Standing.SOON
    assert one.standing(1000 * DAY_S) is Standing.OVER
    assert time.gmtime(1000 * DAY_S).tm_year == 1972
    assert "1972-09-27" in one.words(0)


def test_a_device_tells_its_fleet_of_the_certificate_that_it_really_has(tmp_path: Path) -> None:
    directory = made_at(tmp_path, NOW)
    assert headway("fleet", "enroll", "line-1", "--dir", directory, "--out", tmp_path / "line-1") == 0
    table = load_site(tmp_path / "line-1" / "site.toml").mqtt
    assert table is not None
    end_utc = (NOW + CERTIFICATE_LIFE).timestamp()
    assert ending_words(table, end_utc - (NOTICE_DAYS + 1) * DAY_S) == ""
    assert "this device's certificate (device.pem) ends on" in ending_words(table, end_utc - 20.5 * DAY_S)
    assert "in 20 days; then the broker refuses this device" in ending_words(table, end_utc - 20.5 * DAY_S)
    (tmp_path / "line-1" / "device.pem").write_text("damaged")
    assert "(device-chunks.pem)" in ending_words(table, end_utc - DAY_S)
    assert ending_words(None, end_utc) == ""


def test_devices_that_end_together_are_renewed_together(tmp_path: Path) -> None:
    directory = made_at(tmp_path, NOW - CERTIFICATE_LIFE + timedelta(days=30), *(f"line-{n}" for n in range(7)))
    (one,) = [each for each in ending(directory, NOW.timestamp()) if each.kind == "device"]
    assert "7 devices' certificates (line-0, line-1, line-2, line-3, line-4 and 2 more)" in one.what
    words = shlex.split(one.renew.replace(" renewed", f" {tmp_path}/renewed"))
    assert headway(*words[1:]) == 0
    assert len(list((tmp_path / "renewed").iterdir())) == 7
    assert [each.kind for each in ending(directory, NOW.timestamp()) if each.kind == "device"] == []
    again = CliRunner().invoke(fleet_command, [*words[2:-1], str(tmp_path / "none")])
    assert (again.exit_code, again.output) == (0, "no device's certificate ends soon\n")


@pytest.mark.parametrize(
    ("left_days", "words"),
    [
        (2.1, "ends on 2026-01-01, in 2 days; then"),
        (1.9, "ends on 2026-01-01, in 1 day; then"),
        (0.5, "ends on 2026-01-01, in less than a day; then"),
        (-0.5, "has ended on 2026-01-01, less than a day ago:"),
        (-1.0, "has ended on 2026-01-01, 1 day ago:"),
    ],
)
def test_the_last_days_are_told_in_words(left_days: float, words: str) -> None:
    end_utc = 1_767_225_600.0
    assert words in Expiry("root", "the root", end_utc, "x", "y").words(end_utc - left_days * DAY_S)
