"""Enrolling and revoking leave a broker that refuses: the access list stays readable, whole and complete."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk.durable import write_whole
from sdk.errors import BrokerError, KeyRefused
from sdk.fleet.access import secure_config
from sdk.fleet.broker import Mosquitto, find_mosquitto, reload_broker
from sdk.fleet.certificates import write_for_broker
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import Topics
from tests.test_trust_live import headway

pytestmark = pytest.mark.broker
T = Topics()
SYSTEM_USER = "mosquitto"
NOBODY = 65534


@pytest.fixture(autouse=True)
def _needs_mosquitto() -> None:
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet's directory with certificates for a broker on loopback."""
    directory = tmp_path / "fleet"
    assert headway("fleet", "tls", "--dir", directory, "--host", "127.0.0.1") == 0
    return directory


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine may reach and write to."""
    folder = Path(tempfile.mkdtemp(prefix="headway-access-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def enroll(fleet: Path, device: str) -> Path:
    out = fleet.parent / device
    assert headway("fleet", "enroll", device, "--dir", fleet, "--out", out) == 0
    return out


def revoke(fleet: Path, device: str) -> int:
    return headway("fleet", "revoke", device, "--dir", fleet)


def refusals(device: str, folder: Path, broker: Mosquitto, topics: list[str]) -> list[str]:
    """Let a device say something on these topics; return those of them that the broker refused."""
    settings = MqttSettings(
        port=broker.port,
        ca_file=folder / "ca.pem",
        cert_file=folder / "device.pem",
        key_file=folder / "device.key",
        session_expiry_s=0,
    )
    session = MqttSession(settings, device, on_message=lambda _message: None)
    session.connect(30.0)
    refused: list[str] = []
    for topic in topics:
        session.publish(topic, b"x")
        assert session.wait_taken(60.0)
        if session.refusal is not None:
            refused.append(topic)
    session.close()
    return refused


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_what_the_broker_reads_keeps_its_mode(fleet: Path, mode: int) -> None:
    names = ("acl", "crl.pem", "place.json", "broker.pem")
    for name in names:
        (tls_folder(fleet) / name).chmod(mode)
    enroll(fleet, "line-1")
    assert revoke(fleet, "line-1") == 0
    assert headway("fleet", "tls", "--dir", fleet, "--renew") == 0
    assert {stat.S_IMODE((tls_folder(fleet) / name).stat().st_mode) for name in names} == {mode}


def test_what_is_new_is_its_owners_only(fleet: Path) -> None:
    assert {stat.S_IMODE((tls_folder(fleet) / name).stat().st_mode) for name in ("acl", "place.json")} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="runs a broker as another user: needs root")
@pytest.mark.parametrize("change", ["enroll", "revoke"])
def test_a_broker_of_the_systems_still_refuses_after_a_change(open_folder: Path, change: str) -> None:
    """It runs as another user, who was let into the folder as the guide says; then somebody enrols or revokes."""
    fleet = open_folder / "fleet"
    try:
        group = pwd.getpwnam(SYSTEM_USER).pw_gid
    except KeyError:
        pytest.skip(f"no user {SYSTEM_USER}: apt-get install mosquitto")
    assert headway("fleet", "tls", "--dir", fleet, "--host", "127.0.0.1") == 0
    folder, device = tls_folder(fleet), enroll(fleet, "line-1")
    enroll(fleet, "line-9")
    for path in (folder, *(folder / name for name in ("acl", "ca.pem", "crl.pem", "broker.pem", "broker.key"))):
        os.chown(path, -1, group)
        path.chmod(path.stat().st_mode | (0o050 if path.is_dir() else 0o040))
    allowed, others = T.up_want("line-1"), [T.trust(), T.meta("default"), T.up_label("line-2")]

    def config(port: int) -> str:
        (folder / "mosquitto.conf").write_text(secure_config(port, folder, host="127.0.0.1", user=SYSTEM_USER))
        return ""

    # With the configuration in the fleet's folder: our own brokers' is in one that no other user reads.
    binary = open_folder / "mosquitto"
    binary.write_text(f'#!/bin/sh\nexec {find_mosquitto()} -c "{folder}/mosquitto.conf"\n')
    binary.chmod(0o755)
    with Mosquitto(binary=binary, config=config, pid_file=open_folder / "pid") as broker:
        assert refusals("line-1", device, broker, [*others, allowed]) == others
        assert enroll(fleet, "line-2").is_dir() if change == "enroll" else revoke(fleet, "line-9") == 0
        with contextlib.suppress(BrokerError):  # as `systemctl reload mosquitto` does, and waits for it
            reload_broker(open_folder / "pid")
        assert refusals("line-1", device, broker, [*others, allowed]) == others
    acl = (folder / "acl").stat()
    assert (acl.st_uid, acl.st_gid, stat.S_IMODE(acl.st_mode)) == (os.geteuid(), group, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_what_cannot_be_left_to_its_owner_stays_as_it_was(open_folder: Path) -> None:
    file = open_folder / "acl"
    file.write_text("user a")
    os.seteuid(NOBODY)
    try:
        with pytest.raises(KeyRefused, match="cannot be given to its owner") as caught:
            write_for_broker(file, b"user b")
        with pytest.raises(PermissionError):
            write_whole(file, b"user b", keep_owner=True)
    finally:
        os.seteuid(0)
    assert "as root" in (caught.value.hint or "")
    assert [path.read_text() for path in open_folder.iterdir()] == ["user a"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("acl", None, "is OPEN: .*Unable to open acl_file"),
        ("acl", "user a\nnonsense b\n", "is OPEN: .*Invalid line in acl_file"),
        ("crl.pem", "no list", "could not read what was changed: .*crl.pem"),
    ],
)
def test_a_broker_that_cannot_read_what_was_changed_is_no_success(
    fleet: Path, name: str, content: str | None, told: str
) -> None:
    """With no access list it lets every device do everything; the log says so, and so does the command."""
    file, pid_file = tls_folder(fleet) / name, tls_folder(fleet) / "broker.pid"
    with secure_broker(fleet, port=0, host="127.0.0.1"):
        assert reload_broker(pid_file), "the control"
        file.unlink()
        if content is not None:
            file.write_text(content)
        with pytest.raises(BrokerError, match=told) as caught:
            reload_broker(pid_file)
        assert "then the same command again" in (caught.value.hint or "")
