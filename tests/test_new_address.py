"""A fleet's server gets another address, or its directory another place: what names them follows."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from device_agent.site_file import load_site
from sdk.errors import BrokerError
from sdk.fleet.access import adjusted, elsewhere
from sdk.fleet.broker import find_mosquitto
from sdk.fleet.cli_enroll import secure_broker, tls_folder
from sdk.fleet.enrolment import read_place
from sdk.mqtt import MqttSession, MqttSettings
from tests.commands import headway

CONFIG = "mosquitto.conf"
NEW = "127.0.0.2"
"""Loopback too, and in no certificate before."""


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    directory = tmp_path / "fleet"
    assert headway(capsys, "fleet", "tls", "--dir", directory, "--host", "old.plant.example").code == 0
    return directory


def names(fleet: Path) -> set[str]:
    """Return what the broker's certificate is for."""
    one = x509.load_pem_x509_certificate((tls_folder(fleet) / "broker.pem").read_bytes())
    found = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    assert all(isinstance(each, ipaddress.IPv4Address) for each in addresses)
    return {*found.get_values_for_type(x509.DNSName), *map(str, addresses)}


def settings(folder: Path, port: int) -> MqttSettings:
    mqtt = load_site(folder / "site.toml").mqtt
    assert mqtt is not None
    return replace(MqttSettings(**msgspec.structs.asdict(mqtt)), port=port, session_expiry_s=0)


@pytest.mark.broker
def test_devices_find_it_by_the_new_address_and_by_the_old(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    enrol = ("fleet", "enroll", "--dir", fleet, "--out")
    assert headway(capsys, *enrol, tmp_path / "line-1", "line-1").code == 0
    with secure_broker(fleet, port=0) as broker:
        old = replace(settings(tmp_path / "line-1", broker.port), host="127.0.0.1")
        with pytest.raises(BrokerError, match="does not hold"):
            MqttSession(replace(old, host=NEW), "line-1", on_message=lambda _message: None).connect(30.0)
        assert headway(capsys, "fleet", "tls", "--renew", "--dir", fleet, "--host", NEW).code == 0
        assert headway(capsys, *enrol, tmp_path / "line-2", "line-2").code == 0
        new = settings(tmp_path / "line-2", broker.port)
        assert new.host == NEW
        for one, device in ((old, "line-1"), (replace(old, host=NEW), "line-1"), (new, "line-2")):
            with MqttSession(one, device, on_message=lambda _message: None) as session:
                session.connect(30.0)


def test_address_and_port_are_where_they_are_looked_for(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(fleet)
    config = tls_folder(fleet) / CONFIG
    config.write_text(config.read_text() + "log_dest syslog\n")
    done = headway(
        capsys, "fleet", "tls", "--renew", "--dir", fleet, "--host", "10.9.8.7", "--host", "new", "--port", 9999
    )
    assert done.code == 0
    assert "site.toml" in done.out
    assert names(fleet) == before | {"10.9.8.7", "new"}
    place = read_place(tls_folder(fleet))
    assert (place.host, place.port) == ("10.9.8.7", 9999)
    text = config.read_text()
    assert "listener 9999\n" in text
    assert "8883" not in text
    assert "log_dest syslog" in text, "what the plant's people have written"
    assert headway(capsys, "fleet", "enroll", "line-1", "--dir", fleet, "--out", tmp_path / "line-1").code == 0
    mqtt = load_site(tmp_path / "line-1" / "site.toml").mqtt
    assert mqtt is not None
    assert (mqtt.host, mqtt.port) == ("10.9.8.7", 9999)


def test_without_another_address_it_keeps_the_one_it_has(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, config = names(fleet), (tls_folder(fleet) / CONFIG).read_bytes()
    place = read_place(tls_folder(fleet))
    assert headway(capsys, "fleet", "tls", "--renew", "--dir", fleet).code == 0
    assert (names(fleet), read_place(tls_folder(fleet))) == (known, place)
    assert (tls_folder(fleet) / CONFIG).read_bytes() == config


def test_given_twice_a_name_is_there_once(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert headway(capsys, "fleet", "tls", "--renew", "--dir", fleet, "--host", "10.9.8.7").code == 0
    one = x509.load_pem_x509_certificate((tls_folder(fleet) / "broker.pem").read_bytes())
    found = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len([*found]) == len({*found}) == 4


def test_a_directory_that_was_moved_is_said_and_named_anew(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "srv" / "my fleet"
    moved.parent.mkdir()
    fleet.rename(moved)
    enrolled = headway(capsys, "fleet", "enroll", "line-1", "--dir", moved, "--out", tmp_path / "line-1")
    assert f"names files elsewhere, such as {fleet / 'tls' / 'ca.pem'}" in enrolled.out
    assert "tls --renew --moved" in enrolled.out
    assert headway(capsys, "fleet", "tls", "--renew", "--moved", "--dir", moved).code == 0
    text = (tls_folder(moved) / CONFIG).read_text()
    assert text.count(f" {moved / 'tls'}/") == 5
    assert f"{fleet}/" not in text
    quiet = headway(capsys, "fleet", "enroll", "line-2", "--dir", moved, "--out", tmp_path / "line-2")
    assert "elsewhere, such as" not in quiet.out


def test_a_place_of_the_plants_own_is_not_taken_for_ours(tmp_path: Path) -> None:
    """A file of another name, a comment, a setting without a value."""
    folder = tmp_path / "tls"
    text = (
        f"cafile /etc/plant/root.pem\n# acl_file /x/acl\nkeyfile\n  crlfile {folder}/crl.pem\nacl_file /old/acl\n"
    )
    assert elsewhere(text, folder) == ["/old/acl"]
    assert adjusted(text, folder, (8883, 8883)) == text.replace("/old/acl", f"{folder}/acl")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--renew", "--prefix", "other/v1"], "--prefix cannot change"),
        (["--renew", "--host", "a b\u2028"], "is no host name"),
        (["--moved", "--host", "a"], "--moved is for --renew"),
        (["--host", "a"], "has certificates already"),
    ],
)
def test_what_cannot_change_is_refused_and_changes_nothing(
    fleet: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    before = {file.name: file.read_bytes() for file in tls_folder(fleet).iterdir() if file.is_file()}
    refused = headway(capsys, "fleet", "tls", "--dir", fleet, *arguments)
    assert refused.code == 2
    assert error in refused.err
    assert {file.name: file.read_bytes() for file in tls_folder(fleet).iterdir() if file.is_file()} == before


def test_who_is_refused_a_second_authority_is_told_how_to_change_the_address(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--renew" in headway(capsys, "fleet", "tls", "--dir", fleet, "--host", "a").err
