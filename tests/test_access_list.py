"""Enrolling and revoking leave a broker that refuses: the access list stays readable, whole and complete."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from sdk.durable import write_whole
from sdk.errors import BrokerError, KeyRefused
from sdk.fleet.access import secure_config
from sdk.fleet.broker import Mosquitto, find_mosquitto, restart_broker
from sdk.fleet.certificates import Authority, changing, write_for_broker
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.fleet.enrolment import PLACE_NAME, Enrolled, read_place
from sdk.mqtt import MqttSession, MqttSettings, Publication
from sdk.wire import Topics
from tests.processes import Doomed
from tests.simulators import wait_for
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
        broker.restart()  # as `systemctl restart mosquitto` does
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


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_lock_that_root_has_made_is_one_for_others_too(open_folder: Path) -> None:
    with changing(open_folder):
        pass
    os.seteuid(NOBODY)
    try:
        with changing(open_folder):
            pass
    finally:
        os.seteuid(0)
    (open_folder / "lock").chmod(0o600)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(KeyRefused, match="lock: Permission denied"), changing(open_folder):
            pass
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("acl", None, "goes on as before.*acl_file"),
        ("acl", "user a\nnonsense b\n", "goes on as before.*acl_file"),
        ("crl.pem", "no list", "goes on as before.*crl.pem"),
    ],
)
def test_a_broker_that_could_not_be_started_with_what_was_changed_goes_on_as_before(
    fleet: Path, name: str, content: str | None, told: str
) -> None:
    file, pid_file = tls_folder(fleet) / name, tls_folder(fleet) / "broker.pid"

    def config(port: int) -> str:
        return secure_config(port, tls_folder(fleet), host="127.0.0.1", user="root")

    device, others = enroll(fleet, "line-1"), [T.trust(), T.up_label("line-2")]
    with secure_broker(fleet, port=0, host="127.0.0.1") as broker:
        assert restart_broker(pid_file, config, apart_s=0.0), "the control"
        before = broker.pid
        file.unlink()
        if content is not None:
            file.write_text(content)
        with pytest.raises(BrokerError, match=told) as caught:
            restart_broker(pid_file, config)
        assert "then the same command again" in (caught.value.hint or "")
        assert broker.pid == before
        assert refusals("line-1", device, broker, [*others, T.up_want("line-1")]) == others


@pytest.mark.parametrize("what", ["enroll", "revoke"])
def test_a_change_while_a_device_is_away_leaves_every_other_its_session(fleet: Path, what: str) -> None:
    """Told to reload, Mosquitto 2.0.11 ends the sessions of who is away, and from then on throws others out."""
    newcomers = ["line-3", "line-4", "line-5", "line-6"]
    names = ["line-1", "line-2", *newcomers, *([] if what == "enroll" else ["line-8", "line-9"])]
    folders = {name: enroll(fleet, name) for name in names}
    connects: Counter[str] = Counter()

    def session(device: str) -> MqttSession:
        settings = MqttSettings(
            port=broker.port,
            ca_file=folders[device] / "ca.pem",
            cert_file=folders[device] / "device.pem",
            key_file=folders[device] / "device.key",
        )

        def connected(_remembered: bool) -> None:
            connects[device] += 1

        will = Publication(T.state(device), b"gone", retain=True)
        made = MqttSession(
            settings, device, on_message=lambda _message: None, on_connect=connected, last_will=will
        )
        made.subscribe([T.ack(device)])
        return made

    with secure_broker(fleet, port=0, host="127.0.0.1") as broker, session("line-1") as stays:
        with session("line-2") as away:
            stays.connect(60.0)
            away.connect(60.0)
        if what == "enroll":
            folders |= {name: enroll(fleet, name) for name in ("line-8", "line-9")}
        else:
            assert [revoke(fleet, name) for name in ("line-8", "line-9")] == [0, 0]
        wait_for(lambda: stays.connected, 60.0, "its coming back by itself")
        pid, before = broker.pid, connects["line-1"]
        assert before == 3, "it came at first, and once after each change"
        # As time brings them. What the broker has freed by then is used again for who comes next.
        for _ in range(20):
            socket.create_connection(("127.0.0.1", broker.port), timeout=60.0).close()
        with contextlib.ExitStack() as others:
            back = others.enter_context(session("line-2"))
            back.connect(60.0)
            for name in newcomers:
                others.enter_context(session(name)).connect(60.0)
            # The broker throws out, or breaks, whom it looks at once a second: some of them.
            for _ in range(50):
                for one in (stays, back):
                    one.publish(T.state(one.client_id), b"x")
                    assert one.wait_taken(60.0)
                time.sleep(0.1)
        assert dict(connects) == {"line-1": before, "line-2": 2, **dict.fromkeys(newcomers, 1)}
        assert broker.pid == pid


# At once, and ended in between


def change(fleet: Path, what: str, device: str, tell: Callable[[Any], None]) -> None:
    """Enrol or revoke a device, in a process of its own; tell how it ended."""
    tell("there")
    tell(headway("fleet", what, device, "--dir", fleet, *(["--out", fleet.parent / device] * (what == "enroll"))))


def at_once(fleet: Path, what: str, devices: list[str]) -> None:
    """Let as many processes as devices each change one of them, all at the same time."""
    with changing(tls_folder(fleet)):  # so that all of them have begun before the first may go on
        processes = [Doomed(change, fleet, what, device) for device in devices]
        assert {process.told() for process in processes} == {"there"}
    assert [process.told() for process in processes] == [0] * len(devices)


def listed(fleet: Path) -> set[str]:
    """Return the users of the access list."""
    lines = (tls_folder(fleet) / "acl").read_text().splitlines()
    return {line.removeprefix("user ") for line in lines if line.startswith("user ")}


def serials(fleet: Path, device: str) -> set[int]:
    issued = (tls_folder(fleet) / "issued" / f"{device}.pem").read_bytes()
    return {one.serial_number for one in x509.load_pem_x509_certificates(issued)}


def test_devices_enrolled_and_revoked_at_once_are_all_in_and_all_out(fleet: Path) -> None:
    names = [f"line-{number}" for number in range(8)]
    at_once(fleet, "enroll", [*names, "stays"])
    assert {*read_place(tls_folder(fleet)).channels} == {*names, "stays"}
    assert listed(fleet) >= {*names, "stays"}
    gone = set[int]().union(*(serials(fleet, name) for name in names))
    assert len(gone) == 3 * len(names)
    at_once(fleet, "revoke", names)
    assert {*Authority(tls_folder(fleet)).revoked()} == gone
    assert {*read_place(tls_folder(fleet)).channels} == {"stays"}
    assert not listed(fleet) & {*names}


def break_list(folder: Path) -> Callable[[], None]:
    """Let the access list not be written."""
    (folder / "acl").rename(folder / "aside")
    (folder / "acl").mkdir()

    def mend() -> None:
        (folder / "acl").rmdir()
        (folder / "aside").rename(folder / "acl")

    return mend


def break_place(folder: Path) -> Callable[[], None]:
    """Let the list be written, and not which devices there are: the disk is full in between."""
    draft = folder / f".place.json.{os.getpid()}.partial"
    draft.mkdir()
    return draft.rmdir


def break_broker(folder: Path) -> Callable[[], None]:
    """Let all of it be written, and the broker not read it."""
    own = folder / "acl.local"
    own.write_text("nonsense b")
    return own.unlink


@pytest.mark.parametrize("fault", [break_list, break_place, break_broker])
def test_a_revocation_that_was_not_done_is_gone_on_with(
    fleet: Path, fault: Callable[[Path], Callable[[], None]]
) -> None:
    """Whatever failed: until the broker refuses the device, the same command is there to make it so."""
    folder = tls_folder(fleet)
    with secure_broker(fleet, port=0, host="127.0.0.1") as broker:
        device, own = enroll(fleet, "line-1"), serials(fleet, "line-1")
        enroll(fleet, "line-2")
        assert refusals("line-1", device, broker, [T.up_want("line-1")]) == [], "the control"
        mend = fault(folder)
        assert revoke(fleet, "line-1") == 2
        mend()
        assert revoke(fleet, "line-1") == 0
        assert {*Authority(folder).revoked()} == own
        assert "line-1" not in listed(fleet)
        with pytest.raises(BrokerError):
            refusals("line-1", device, broker, [T.up_want("line-1")])
    assert revoke(fleet, "line-1") == 2, "there is nothing left to revoke"
    assert headway("fleet", "enroll", "line-1", "--dir", fleet, "--out", fleet.parent / "new") == 0


def test_a_device_of_which_only_the_access_list_knows_is_taken_off_it(fleet: Path) -> None:
    """As a revocation by an earlier Headway left it that was ended in between."""
    enroll(fleet, "line-1")
    (tls_folder(fleet) / "issued" / "line-1.pem").unlink()
    assert revoke(fleet, "line-1") == 0
    assert "line-1" not in listed(fleet)
    assert revoke(fleet, "line-1") == 2


def test_what_cannot_be_listed_is_not_enrolled(fleet: Path) -> None:
    mend = break_list(tls_folder(fleet))
    out = fleet.parent / "line-1"
    assert headway("fleet", "enroll", "line-1", "--dir", fleet, "--out", out) == 2
    assert not out.exists()
    mend()
    enroll(fleet, "line-1")


@pytest.mark.parametrize("damaged", [b"{", b'{"host": "\xff"}'], ids=["cut off", "no text"])
def test_the_service_follows_what_is_enrolled_and_a_damaged_file_changes_nothing(
    fleet: Path, damaged: bytes
) -> None:
    enrolled = Enrolled(fleet)
    assert "line-7" not in enrolled()
    enroll(fleet, "line-7")
    assert enrolled()["line-7"] == "default"
    (tls_folder(fleet) / PLACE_NAME).write_bytes(damaged)
    assert enrolled()["line-7"] == "default"
    with pytest.raises(KeyRefused):
        Enrolled(fleet)


def test_a_fleet_without_certificates_has_nobody_enrolled(tmp_path: Path) -> None:
    assert Enrolled(tmp_path)() == {}
