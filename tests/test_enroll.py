"""At the plant's broker nobody speaks as another: certificates, access list, revocation, with a real Mosquitto."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from device_agent.site_file import load_site
from device_agent.store import Store
from device_agent.sync import Sync, SyncCore
from device_agent.trigger import MqttTrigger, PartLot
from sdk.errors import BrokerError, KeyRefused
from sdk.fetch import ChunkFetcher
from sdk.fleet.access import access_list, secure_config, trigger_topic
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.certificates import CERTIFICATE_LIFE, Authority
from sdk.fleet.cli_enroll import secure_broker, service_settings, tls_folder
from sdk.fleet.core import FleetCore
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message, MqttSession, MqttSettings
from sdk.wire import Ack, DeviceState, Topics, UpdateEvent, UpdateState, encode_json
from tests.simulators import LiveDevice, make_release, same_files, wait_for
from tests.test_fleet_live import publish as publish_release
from tests.test_fleet_live import serving, stored
from tests.test_trust_live import headway

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.broker
T = Topics()
ACK = encode_json(Ack(through=0))
EVIL = b"said by another"


@dataclass
class Plant:
    """A fleet's directory with certificates for a broker on loopback, and the devices enrolled there."""

    folder: Path
    broker: Mosquitto

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet"

    def enroll(self, device: str) -> MqttSettings:
        """Enrol a device as a newcomer would; return how its agent connects."""
        assert headway("fleet", "enroll", device, "--dir", self.fleet, "--out", self.folder / device) == 0
        mqtt = load_site(self.folder / device / "site.toml").mqtt
        assert mqtt is not None
        return MqttSettings(
            host=mqtt.host,
            port=self.broker.port,
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
            chunks_cert_file=mqtt.chunks_cert_file,
            trigger_cert_file=mqtt.trigger_cert_file,
        )

    @property
    def service(self) -> MqttSettings:
        settings = service_settings(self.fleet, here=True)
        assert settings is not None
        return replace(settings, port=self.broker.port)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    folder = tmp_path_factory.mktemp("plant")
    assert headway("fleet", "tls", "--dir", folder / "fleet", "--host", "127.0.0.1") == 0
    # b is also a controller that triggers a.
    own = f"user b\ntopic write {trigger_topic(T, 'a')}\n"
    (tls_folder(folder / "fleet") / "acl.local").write_text(own)
    with secure_broker(folder / "fleet", port=0, host="127.0.0.1") as broker:
        yield Plant(folder, broker)


@pytest.fixture(scope="module")
def settings(made: Plant) -> dict[str, MqttSettings]:
    """How devices a and b, the chunks' connection of b, and the service connect."""
    found = {name: made.enroll(name) for name in ("a", "b")}
    found["b.chunks"] = replace(found["b"], cert_file=found["b"].chunks_cert_file)
    return {**found, "service": made.service}


@dataclass
class Ear:
    """A session that remembers what it hears."""

    settings: MqttSettings
    name: str
    topics: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    evil: set[str] = field(default_factory=set)
    connects: int = 0

    def __enter__(self) -> Ear:
        self.session = MqttSession(
            replace(self.settings, session_expiry_s=0),
            self.name,
            on_message=self._hear,
            on_connect=self._connected,
        )
        self.session.subscribe(self.topics)
        self.session.connect(30.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _hear(self, message: Message) -> None:
        if message.payload == EVIL:
            self.evil.add(message.topic)
        else:
            self.heard.append(message.topic)

    def _connected(self, _remembered: bool) -> None:
        self.connects += 1

    def says(self, topic: str, payload: bytes = ACK) -> None:
        self.session.publish(topic, payload)


def without(line: str) -> Callable[[str], str]:
    """Return what takes one setting out of a configuration: the control."""
    return lambda text: "\n".join(each for each in text.splitlines() if not each.startswith(line)) + "\n"


@pytest.fixture
def weakened(made: Plant) -> Iterator[Callable[[str], Mosquitto]]:
    """Start the same broker beside it, with one protection removed."""
    started: list[Mosquitto] = []

    def start(line: str) -> Mosquitto:
        weaken = without(line)
        folder = tls_folder(made.fleet)

        def config(port: int) -> str:
            text = secure_config(port, folder, host="127.0.0.1", user="root")
            assert weaken(text) != text
            return weaken(text)

        broker = Mosquitto(config=config)
        broker.start()
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.stop()


CONNECT = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x03zzz"
"""MQTT 5, section 3.1: a clean session named zzz."""
CONNACK = 0x20


def lets_in(settings: MqttSettings) -> bool:
    """Return whether the broker answers a CONNECT, and does not hang up: after the handshake, with TLS 1.3."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    with socket.create_connection((settings.host, settings.port), timeout=60.0) as line:
        try:
            with context.wrap_socket(line, server_hostname=settings.host) as secured:
                secured.sendall(CONNECT)
                said = secured.recv(100)
        except (ssl.SSLError, ConnectionError):
            return False
    return len(said) > 3 and (said[0], said[3]) == (CONNACK, 0)


FORBIDDEN = [
    T.trust(),
    T.meta("default"),
    T.log("default"),
    T.chunk("ab" * 32),
    T.desired("b"),
    T.ack("b"),
    T.down_log("b"),
    T.up_label("b"),
    T.up_want("b"),
    T.up_event("b"),
    T.state("b"),
]
"""What device a may not say, each heard by device b, its second connection or the service if it could."""


def heard_of_a(settings: dict[str, MqttSettings], port: int) -> set[str]:
    """Let device a say all that it may not; return what anybody heard of it."""
    at = {name: replace(one, port=port) for name, one in settings.items()}
    down = [T.trust(), T.meta("default"), T.log("default"), T.desired("b"), T.ack("b"), T.down_log("b")]
    with (
        Ear(at["b"], "b", down) as b,
        Ear(at["b.chunks"], "b-chunks", [T.chunk("ab" * 32)]) as chunks,
        Ear(at["service"], "service", [T.up_label("+"), T.up_want("+"), T.up_event("+"), T.state("+")]) as service,
        Ear(at["a"], "a") as a,
    ):
        for topic in FORBIDDEN:
            a.says(topic, EVIL)
        # In the order of one connection: once this has come, what was said before it has come or never will.
        a.says(T.up_label("a"))
        wait_for(lambda: T.up_label("a") in service.heard, 60.0, "what a may say")
        service.says(T.ack("b"))
        service.says(T.chunk("ab" * 32))
        wait_for(lambda: T.ack("b") in b.heard and chunks.heard, 60.0, "what the service may say")
    return b.evil | chunks.evil | service.evil


def test_a_device_says_nothing_for_another_or_for_the_fleet(
    made: Plant, settings: dict[str, MqttSettings]
) -> None:
    assert heard_of_a(settings, made.broker.port) == set()


def test_without_the_access_list_it_would(
    settings: dict[str, MqttSettings], weakened: Callable[[str], Mosquitto]
) -> None:
    assert heard_of_a(settings, weakened("acl_file").port) >= set(FORBIDDEN)


@pytest.mark.parametrize("protected", [True, False])
def test_a_device_hears_nothing_that_is_for_another(
    made: Plant, settings: dict[str, MqttSettings], weakened: Callable[[str], Mosquitto], protected: bool
) -> None:
    port = made.broker.port if protected else weakened("acl_file").port
    at = {name: replace(one, port=port) for name, one in settings.items()}
    mine, others = T.ack("a"), [T.ack("b"), T.up_label("b"), T.state("b")]
    with (
        Ear(at["a"], "a", [mine, *others, "headway/v1/#", "#"]) as a,
        Ear(at["b"], "b") as b,
        Ear(at["service"], "service") as service,
    ):
        service.says(T.ack("b"))
        b.says(T.up_label("b"))
        b.says(T.state("b"))
        wait_for(lambda: b.session.pending_bytes == 0 and service.session.pending_bytes == 0, 60.0)
        service.says(mine)
        wait_for(lambda: mine in a.heard, 60.0, "what is for a")
        if protected:
            assert set(a.heard) == {mine}
        else:
            wait_for(lambda: set(a.heard) >= set(others), 60.0, "the control")


@pytest.mark.parametrize("protected", [True, False])
def test_a_device_does_not_throw_another_off_by_its_name(
    made: Plant, settings: dict[str, MqttSettings], weakened: Callable[[str], Mosquitto], protected: bool
) -> None:
    port = made.broker.port if protected else weakened("use_username_as_clientid").port
    at = {name: replace(one, port=port) for name, one in settings.items()}
    with Ear(at["b"], "b", [T.ack("b")]) as b, Ear(at["service"], "service") as service, Ear(at["a"], "b"):
        service.says(T.ack("b"))
        if protected:
            wait_for(lambda: b.heard, 60.0, "b hearing what is for it")
            assert b.connects == 1
        else:
            wait_for(lambda: b.connects > 1 or not b.session.connected, 60.0, "b being thrown off")


def test_nobody_comes_in_without_a_certificate_of_this_fleet(
    tmp_path: Path, made: Plant, settings: dict[str, MqttSettings]
) -> None:
    """No certificate, one by another authority, and another's certificate without its key."""
    good = settings["a"]
    other = Authority.create(tmp_path / "other", ["127.0.0.1"]).enroll("a")
    (tmp_path / "cert.pem").write_bytes(other.certificates[0])
    (tmp_path / "key.pem").write_bytes(other.key)
    bare = replace(good, cert_file=None, key_file=None, chunks_cert_file=None)
    forged = replace(good, cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    assert [lets_in(each) for each in (bare, forged, good)] == [False, False, True]


def test_an_expired_certificate_lets_nobody_in(made: Plant, settings: dict[str, MqttSettings]) -> None:
    """Of this fleet, never revoked, made so long ago that its time is over."""
    long_ago = datetime.now(timezone.utc) - CERTIFICATE_LIFE - timedelta(days=1)
    issued = Authority(tls_folder(made.fleet), clock=lambda: long_ago).enroll("retired")
    cert, key = made.folder / "retired.pem", made.folder / "retired.key"
    cert.write_bytes(issued.certificates[0])
    key.write_bytes(issued.key)
    assert not lets_in(replace(settings["a"], cert_file=cert, key_file=key))


def test_without_the_list_of_those_revoked_one_comes_in_again(
    made: Plant, weakened: Callable[[str], Mosquitto]
) -> None:
    """The control of the test below it: no `crlfile`, and a revoked certificate is one like any other."""
    gone = made.enroll("gone")
    assert headway("fleet", "revoke", "gone", "--dir", made.fleet) == 0
    with Ear(replace(gone, port=weakened("crlfile").port), "gone"):
        pass


def test_a_device_notices_a_broker_that_is_not_its_fleets(
    tmp_path: Path, made: Plant, settings: dict[str, MqttSettings]
) -> None:
    Authority.create(tmp_path / "other", ["127.0.0.1"])
    with pytest.raises(BrokerError):
        MqttSession(
            replace(settings["a"], ca_file=tmp_path / "other" / "ca.pem"), "a", on_message=lambda _m: None
        ).connect(20.0)


def test_a_revoked_device_is_out_at_once_and_may_be_enrolled_anew(made: Plant) -> None:
    stolen = made.enroll("stolen")
    with (
        Ear(made.service, "service", [T.up_label("+"), T.state("+")]) as service,
        Ear(stolen, "stolen") as thief,
    ):
        thief.says(T.up_label("stolen"))
        wait_for(lambda: service.heard == [T.up_label("stolen")], 60.0, "the control: it was heard before")
        assert headway("fleet", "revoke", "stolen", "--dir", made.fleet) == 0

        def refused() -> bool:
            """Return whether a new connection is refused: the broker has read its files again."""
            session = MqttSession(replace(stolen, session_expiry_s=0), "stolen", on_message=lambda _m: None)
            try:
                session.connect(5.0)
            except BrokerError:
                return True
            session.close()
            return False

        wait_for(refused, 60.0, "the refusal")
        before = len(service.heard)
        thief.says(T.up_label("stolen"))  # its old connection, if it still has one, is worth nothing
        service.says(T.ack("stolen"))
        wait_for(lambda: service.session.pending_bytes == 0, 60.0)
    (made.folder / "stolen").rename(made.folder / "stolen.old")
    renewed = made.enroll("stolen")
    with Ear(made.service, "service", [T.up_event("+"), T.up_label("+")]) as service:
        wait_for(lambda: _says(renewed, T.up_event("stolen"), service), 60.0, "the new certificate")
        assert service.heard.count(T.up_label("stolen")) == 0
    assert before == 1


def _says(settings: MqttSettings, topic: str, listener: Ear) -> bool:
    """Say something over a new connection; return whether it was heard. The broker may not have reloaded yet."""
    try:
        with Ear(settings, "stolen") as ear:
            ear.says(topic)
            wait_for(lambda: ear.session.pending_bytes == 0, 60.0)
            return topic in listener.heard
    except BrokerError:
        return False


def test_labels_and_a_release_move_over_the_secured_broker(
    tmp_path: Path, made: Plant, settings: dict[str, MqttSettings]
) -> None:
    """The whole protocol with what enrolment wrote: two sessions of a device, a label up, a release down."""
    release, chunks, source = make_release(tmp_path, {"backbone.int8.onnx": 2_000_000, "card.md": 17})
    publish_release(tmp_path / "fleet", release, chunks)
    with serving(tmp_path / "fleet", made.service), LiveDevice(settings["a"], "a") as device:
        device.label(1)
        fetched = ChunkFetcher(settings["a"], "a", "default", tmp_path / "chunks").fetch(
            release.ref, tmp_path / "slot"
        )
        wait_for(lambda: not device.outbox, 60.0, "the acknowledgement")
        assert device.session.connected
    assert fetched is not None
    assert same_files(source, tmp_path / "slot")
    assert stored(tmp_path / "fleet") == device.log


def test_the_sessions_of_one_device_do_not_throw_each_other_off(
    made: Plant, settings: dict[str, MqttSettings]
) -> None:
    fired: list[PartLot] = []
    refused: list[str] = []
    trigger = MqttTrigger(settings["a"], "a", trigger_topic(T, "a"), fired.append, refused.append)
    with LiveDevice(settings["a"], "a") as device, Ear(settings["b"], "b") as controller:
        trigger.start()
        try:
            wait_for(lambda: trigger.connected and device.session.connected, 60.0, "both sessions")
            controller.says(trigger_topic(T, "a"), b"4711")
            wait_for(lambda: fired, 60.0, "the trigger")
            assert device.session.connected
        finally:
            trigger.stop()
    assert {each.part for each in fired} == {"4711"}


# Without a broker


def test_what_enrolment_writes_is_a_devices_settings(made: Plant, settings: dict[str, MqttSettings]) -> None:
    folder = made.folder / "a"
    site = load_site(folder / "site.toml")
    assert (site.device, site.channel) == ("a", "default")
    assert site.trust is None  # this fleet has no keys
    assert folder.stat().st_mode & 0o077 == 0
    names = [x509.load_pem_x509_certificate((folder / name).read_bytes()).subject.rfc4514_string()
             for name in ("device.pem", "device-chunks.pem", "device-trigger.pem")]  # fmt: skip
    assert names == ["CN=a", "CN=a.chunks", "CN=a.trigger"]
    assert "[mqtt]" in (folder / "site.toml").read_text()
    assert tomllib.loads((folder / "site.toml").read_text())["mqtt"]["prefix"] == "headway/v1"


def test_an_enrolled_device_is_given_the_root(tmp_path: Path) -> None:
    fleet = ["--dir", tmp_path / "fleet"]
    assert headway("fleet", "keys", "init", *fleet, "--keys", tmp_path / "keys", "--no-passphrase") == 0
    assert headway("fleet", "tls", *fleet, "--host", "broker.plant.example") == 0
    assert headway("fleet", "enroll", "line-2", *fleet, "--channel", "castings", "--out", tmp_path / "line-2") == 0
    site = load_site(tmp_path / "line-2" / "site.toml")
    assert site.trust is not None
    assert site.trust.root.read_bytes() == (tmp_path / "fleet" / "trust" / "1.root.json").read_bytes()
    assert site.mqtt is not None
    assert (site.mqtt.host, site.mqtt.port, site.channel) == ("broker.plant.example", 8883, "castings")
    assert "topic read headway/v1/meta/castings" in (tmp_path / "fleet" / "tls" / "acl").read_text()


def test_the_access_list_names_every_topic_a_device_writes() -> None:
    """A pattern would let a device fill the broker with retained messages."""
    listed = access_list(T, {"line-1": "default"}).splitlines()
    writes = [line for line in listed if line.startswith(("topic write", "topic readwrite"))]
    of_devices = [line for line in writes if "/dev/line-1/" in line]
    assert len(of_devices) == 7
    assert not any("#" in line or "+" in line for line in of_devices)


def test_each_party_may_hear_what_its_code_listens_to(tmp_path: Path) -> None:
    """The access list follows the code: a topic added there and forgotten here would be silence."""
    blocks = access_list(T, {"line-1": "castings"}).split("user ")
    heard = {block.split("\n")[0]: block for block in blocks}
    with FleetStore(tmp_path / "fleet") as store:
        of_service = FleetCore(store, T, ["castings"]).subscriptions()
    with Store.open(tmp_path / "device", "line-1") as device:
        core = SyncCore(
            T,
            device,
            "castings",
            on_records=lambda _records: None,
            on_desired=lambda _desired: None,
            state=lambda: DeviceState(device="line-1", channel="castings", online=True),
        )
        of_device = core.subscriptions()
    for name, topics in (("fleet.service", of_service), ("line-1", of_device)):
        assert [topic for topic in topics if f"topic read {topic}\n" not in heard[name]] == []


def test_a_device_that_is_revoked_while_it_is_connected_says_so(made: Plant, tmp_path: Path) -> None:
    """A plant's own broker that is only told to reload keeps its connection, and refuses every message on it."""
    settings = made.enroll("retiring")
    pid_file, aside = tls_folder(made.fleet) / "broker.pid", tmp_path / "broker.pid"
    state = DeviceState(device="retiring", channel="default", online=True)
    with Store.open(tmp_path / "device", "retiring") as device:
        sync = Sync(
            settings,
            device,
            "default",
            on_records=lambda _records: None,
            on_desired=lambda _desired: None,
            state=lambda: state,
        )
        sync.start()
        try:
            wait_for(lambda: sync.status().connected, 60.0, "the connection")
            assert sync.status().fault is None, "the control"
            pid_file.rename(aside)  # it is not ours to start anew
            assert headway("fleet", "revoke", "retiring", "--dir", made.fleet) == 0
            os.kill(made.broker.pid, signal.SIGHUP)

            def told() -> bool:
                sync.publish_event(UpdateEvent(release_id="0" * 64, state=UpdateState.VERIFIED))
                return "it was revoked" in (sync.status().fault or "")

            wait_for(told, 60.0, "the refusal")
            assert sync.status().connected
        finally:
            sync.stop()
            aside.rename(pid_file)
            made.broker.restart()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["enroll", "a", "--dir", "FLEET", "--out", "NEW"], "a is enrolled already"),
        (["enroll", "c", "--dir", "FLEET", "--out", "FLEET"], "is there already"),
        (["enroll", "a.chunks", "--dir", "FLEET", "--out", "NEW"], "is no device id"),
        (["enroll", "fleet.service", "--dir", "FLEET", "--out", "NEW"], "is no device id"),
        (["enroll", "c", "--dir", "FLEET", "--out", "NEW", "--channel", "No!"], "is no channel name"),
        (["enroll", "c", "--dir", "NEW", "--out", "NEW"], "says no broker"),
        (["revoke", "nobody", "--dir", "FLEET"], "is not enrolled here"),
        (["tls", "--dir", "FLEET", "--host", "broker"], "has certificates already"),
        (["tls", "--dir", "NEW", "--host", "a b\u2028"], "is no host name"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_cannot_be_enrolled_is_one_line_with_a_hint(
    tmp_path: Path,
    made: Plant,
    settings: dict[str, MqttSettings],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
) -> None:
    known = {"FLEET": made.fleet, "NEW": tmp_path / "new"}
    assert headway("fleet", *(known.get(argument, argument) for argument in arguments)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(told) == 2
    assert error in told[0]


def test_a_folder_without_an_authority_enrols_nobody(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match="holds no certificate authority"):
        Authority(tmp_path)


def test_the_state_of_a_device_fits_its_topic() -> None:
    state = DeviceState(device="a", channel="default", online=True, trust="signed")
    assert b'"trust":"signed"' in encode_json(state)
