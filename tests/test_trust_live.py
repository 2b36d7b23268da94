"""Signed releases and labels over a real broker that is an attacker's, and the commands that make and use keys."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from device_agent.limits import StoreLimits
from device_agent.store import Store
from device_agent.sync import Sync
from device_agent.trust import Gate
from sdk.bundle import Bundle
from sdk.cli import main
from sdk.errors import FleetError, RemoteWireError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.cli_trust import open_trust, publish_unsigned, put_into_force, stage, targets_signers
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.labels import Chain, DefineClass, Record
from sdk.mqtt import MqttSession, MqttSettings
from sdk.trust.keys import make_key
from sdk.trust.metadata import SignedRelease, to_target
from sdk.trust.repository import OnlineTrust, read_staged, sign, write_staged
from sdk.wire import (
    MAX_MESSAGE_BYTES,
    WIRE_VERSION,
    Ack,
    DeviceState,
    LogSegment,
    Topics,
    UpdateState,
    encode_json,
    encode_msgpack,
)
from tests.builders import make_bundle
from tests.simulators import LiveDevice, wait_for
from tests.test_sync import write_label
from tests.test_update import desired, rig_on
from tests.tiny import two_precisions
from tests.trust_builders import Thief, assignment

TOPICS = Topics()
EVIL = assignment("evil")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "surfaces")


def headway(*args: object) -> int:
    """Run the command line in this process; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return int(ended.value.code or 0)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet's directory with keys; the offline ones are in `keys` beside it."""
    assert headway("fleet", "keys", "init", "--dir", tmp_path / "fleet", "--keys", tmp_path / "keys",
                   "--no-passphrase") == 0  # fmt: skip
    return tmp_path / "fleet"


@contextlib.contextmanager
def serving(fleet: Path, settings: MqttSettings) -> Iterator[None]:
    stop = threading.Event()
    with FleetStore(fleet) as store:
        service = FleetService(store, settings, trust=OnlineTrust(open_trust(fleet)))
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@dataclass
class Line:
    """A device with its real store, sync and gate, and the assignments that it would begin."""

    store: Store
    begun: list[str] = field(default_factory=list)
    told: list[Record] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    gate: Gate | None = None
    sync: Sync | None = None

    def heard(self) -> int:
        """Return how many bytes of metadata have come."""
        assert self.sync is not None
        return self.sync.traffic().received.get("trust", 0)

    def check(self, message: LogSegment | Ack) -> None:
        """As the gate does, and remember what it refused."""
        assert self.gate is not None
        try:
            self.gate.check_signed(message)
        except RemoteWireError as error:
            self.refused.append(str(error))
            raise

    def fault(self) -> str:
        assert self.gate is not None
        return self.gate.fault or ""


@contextlib.contextmanager
def line(folder: Path, settings: MqttSettings, root: Path | None) -> Iterator[Line]:
    with Store.open(folder, "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        made = Line(store)
        made.gate = gate = Gate(
            store, root, channel="default", start=lambda desired: made.begun.append(desired.release.name)
        )
        made.sync = sync = Sync(
            settings,
            store,
            "default",
            on_records=made.told.extend,
            on_desired=gate.desired,
            on_trust=gate.receive,
            check_signed=made.check,
            state=lambda: DeviceState(
                device="line-1", channel="default", online=True, log_position=store.log.position("default"),
                trust=gate.standing(None),
            ),
        )  # fmt: skip
        sync.start()
        try:
            yield made
        finally:
            sync.stop()


def publish(fleet: Path, bundle: Bundle) -> None:
    assert headway("fleet", "publish", bundle.path, "--dir", fleet, "--keys", fleet.parent / "keys") == 0


@pytest.mark.broker
def test_who_owns_the_broker_publishes_no_release_and_no_labels(
    mosquitto: Mosquitto, tmp_path: Path, fleet: Path, bundle: Bundle
) -> None:
    root = open_trust(fleet).root_file()
    settings = mosquitto.settings
    _, entry = Chain("line-9").write(DefineClass(b"c" * 16, "evil", "nobody"), counter=1, wall_time_us=0)
    forged = encode_msgpack(LogSegment(WIRE_VERSION, "default", 1, [Record(entry, None)]))
    with (
        MqttSession(settings, "attacker", on_message=lambda _m: None) as attacker,
        line(tmp_path / "a", settings, root) as guarded,
    ):
        attacker.connect()
        with serving(fleet, settings):
            wait_for(guarded.heard, what="the metadata")
        # The service is gone, the broker is the attacker's.
        thief = Thief(open_trust(fleet).message())
        thief.name_release(EVIL, open_trust(fleet).online_signer())
        thief.sign_online(open_trust(fleet).online_signer())  # the online key was on that server too
        attacker.publish(TOPICS.trust(), thief.message(), retain=True)
        attacker.publish(TOPICS.desired("line-1"), encode_json(EVIL), retain=True)
        attacker.publish(TOPICS.log("default"), forged)
        wait_for(lambda: "is not signed for channel" in guarded.fault(), what="the refusal")
        # In the order of this connection: once this was heard, the labels before it were.
        attacker.publish(TOPICS.down_log("line-1"), forged)
        attacker.publish(TOPICS.ack("line-1"), encode_json(Ack(through=1)))
        attacker.publish(TOPICS.desired("line-1"), b"", retain=True)
        # The control: a device without the root, on the same broker, takes all of it.
        attacker.publish(TOPICS.desired("line-1"), encode_json(EVIL), retain=True)
        assert guarded.sync is not None
        wait_for(lambda: len(guarded.refused) >= 3, what="the labels and the acknowledgement being refused")
        guarded.sync.stop()
        with line(tmp_path / "b", settings, None) as trusting:
            wait_for(lambda: "evil" in trusting.begun, what="the control's assignment")
            attacker.publish(TOPICS.log("default"), forged)
            wait_for(lambda: trusting.told, what="the control's labels")
        assert guarded.begun == []
        assert guarded.told == []
        assert guarded.store.log.acknowledged() == 0
        assert guarded.store.log.position("default") == 0
    # And after the service is back, what is signed arrives.
    publish(fleet, bundle)
    with serving(fleet, settings), line(tmp_path / "a", settings, root) as guarded:
        # Told on registering and once more when it is announced, it is begun once or twice.
        wait_for(lambda: set(guarded.begun) == {bundle.manifest.name}, what="the signed release")
        with LiveDevice(settings, "line-2") as other:
            other.label(1)
            wait_for(lambda: guarded.told == other.log, what="the signed labels")
        assert guarded.sync is not None
        write_label(guarded.store, 1)
        guarded.sync.notify_outbox()
        wait_for(lambda: guarded.store.log.outbox_depth() == 0, what="the signed acknowledgement")


@pytest.mark.broker
def test_a_running_service_announces_new_keys(mosquitto: Mosquitto, tmp_path: Path, fleet: Path) -> None:
    root = open_trust(fleet).root_file()
    with serving(fleet, mosquitto.settings), line(tmp_path / "a", mosquitto.settings, root) as guarded:
        wait_for(guarded.heard, what="the metadata")
        assert headway("fleet", "keys", "rotate", "online", "--dir", fleet, "--keys", fleet.parent / "keys") == 0
        with LiveDevice(mosquitto.settings, "line-2") as other:
            assert guarded.gate is not None
            wait_for(lambda: guarded.gate is not None and guarded.gate.root_version() == 2, what="the new root")
            other.label(1)
            wait_for(lambda: guarded.told == other.log, what="labels signed with the new key")


# The commands


def test_a_release_is_signed_where_the_key_is(
    tmp_path: Path, fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared on the server, signed elsewhere, published on the server."""
    assert headway("fleet", "publish", bundle.path, "--dir", fleet, "--unsigned") == 0
    with FleetStore(fleet) as store, store.read() as ledger:
        assert ledger.current("default") is None
    told = capsys.readouterr().out
    assert f"carry it back, and here: headway fleet sign {fleet}/to-sign.json --dir {fleet}" in told
    staged = (fleet / "to-sign.json").rename(tmp_path / "to-sign.json")
    assert headway("fleet", "sign", staged, "--dir", fleet) == 2  # nobody has signed it
    assert "not signed as the root demands" in capsys.readouterr().err
    assert headway("fleet", "sign", staged, "--keys", tmp_path / "keys") == 0
    assert headway("fleet", "sign", staged, "--dir", fleet) == 0
    assert "signs 'surfaces' as version 1 of channel default" in capsys.readouterr().out
    with FleetStore(fleet) as store, store.read() as ledger:
        current = ledger.current("default")
        assert current is not None
        assert open_trust(fleet).releases()[f"release/default/{current.ref.release_id}"].space == bundle.space()


def test_a_signed_release_says_how_long_codes_are_in_each_of_its_spaces(tmp_path: Path, fleet: Path) -> None:
    both = two_precisions(tmp_path / "both")
    publish(fleet, both)
    with FleetStore(fleet) as store, store.read() as ledger:
        sizes = ledger.feature_sizes()
    assert sizes == {bytes.fromhex(one.space): one.feature_size for one in both.manifest.precisions}
    assert len(sizes) == 2


def test_publishing_an_older_bundle_again_gives_it_a_higher_version(
    tmp_path: Path, fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    for one in (bundle, newer, bundle):
        publish(fleet, one)
    capsys.readouterr()
    assert headway("fleet", "keys", "show", "--dir", fleet, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(release["name"], release["version"]) for release in shown["releases"]] == [
        (bundle.manifest.name, 3),
        (newer.manifest.name, 2),
    ]


def test_a_signed_rollout_begins_with_its_first_wave(tmp_path: Path, fleet: Path, bundle: Bundle) -> None:
    """The release that the channel runs stays what it is, and stays one that devices may go back to."""
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    publish(fleet, bundle)
    keys = ["--dir", fleet, "--keys", tmp_path / "keys"]
    assert headway("fleet", "publish", newer.path, *keys, "--waves", "1,100%") == 0
    signed = sorted(open_trust(fleet).releases().values(), key=lambda one: one.fallback)
    assert [(one.name, one.version, one.fallback) for one in signed] == [
        (newer.manifest.name, 2, False),
        (bundle.manifest.name, 2, True),
    ]
    with FleetStore(fleet) as store, store.read() as ledger:
        current, under_way = ledger.current("default"), ledger.rollout("default")
        assert current is not None
        assert under_way is not None
        assert (current.ref.name, under_way[0].ref.name) == (bundle.manifest.name, newer.manifest.name)


def test_what_is_refused_while_a_rollout_is_under_way_is_not_signed(
    tmp_path: Path, fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """In force it would lift the release to go back to above the one that is being rolled out."""
    second, third = (make_bundle(tmp_path / name, backbone=name) for name in ("seed-2", "seed-3"))
    publish(fleet, bundle)
    keys = ["--dir", fleet, "--keys", tmp_path / "keys"]
    assert headway("fleet", "publish", second.path, *keys, "--waves", "1,100%") == 0
    repository = open_trust(fleet)
    version, signed = repository.targets().signed.version, repository.releases()
    for plan in ([], ["--waves", "1,100%"]):
        capsys.readouterr()
        assert headway("fleet", "publish", third.path, *keys, *plan) == 2
        assert "a rollout of seed-2 is under way" in capsys.readouterr().err
    with FleetStore(fleet) as store:
        prepared = stage(repository, store.prepare(third), "default")
        sign(prepared, targets_signers(repository, tmp_path / "keys", None))
        with pytest.raises(FleetError, match="is under way"):
            put_into_force(store, repository, prepared)
    assert (repository.targets().signed.version, repository.releases()) == (version, signed)


def test_nobody_is_asked_for_a_passphrase_while_a_rollout_is_under_way(
    tmp_path: Path, fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["--dir", fleet, "--keys", tmp_path / "keys"]
    assert headway("fleet", "publish", bundle.path, *keys, "--waves", "1,100%") == 0
    make_key(tmp_path / "locked" / "targets.pem", b"a long enough one")
    capsys.readouterr()
    assert headway("fleet", "publish", bundle.path, "--dir", fleet, "--keys", tmp_path / "locked") == 2
    told = capsys.readouterr()
    assert "is under way" in told.err
    assert "Passphrase" not in told.out


def test_a_fleet_that_signed_too_much_is_renewed_root_and_all(tmp_path: Path, fleet: Path) -> None:
    repository = open_trust(fleet)
    targets = repository.targets()
    for number in range(400):
        new = SignedRelease(channel="default", version=number + 1, name="r", space="ab" * 32, feature_size=8)
        target = to_target(f"{number:064x}", 1, new)
        targets.signed.targets[target.path] = target
    sign(targets, targets_signers(repository, tmp_path / "keys", None))
    (repository.folder / "targets.json").write_bytes(targets.to_bytes())
    assert headway("fleet", "keys", "renew", "--dir", fleet, "--keys", tmp_path / "keys") == 0
    assert repository.root().signed.version == 2
    assert len(repository.message()) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize("elsewhere", [False, True], ids=["publish", "sign"])
def test_what_was_signed_when_the_power_went_is_published_by_the_same_command_again(
    tmp_path: Path, fleet: Path, bundle: Bundle, elsewhere: bool
) -> None:
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    publish(fleet, bundle)
    repository = open_trust(fleet)
    with FleetStore(fleet) as store:
        staged = read_staged(publish_unsigned(store, newer, channel="default", plan=None))
    sign(staged, targets_signers(repository, tmp_path / "keys", None))
    write_staged(fleet / "to-sign.json", staged)
    repository.put_into_force(staged)  # and here the power goes, before the commit
    if elsewhere:
        assert headway("fleet", "sign", fleet / "to-sign.json", "--dir", fleet) == 0
        assert headway("fleet", "sign", fleet / "to-sign.json", "--dir", fleet) == 2  # it is published now
    else:
        publish(fleet, newer)
    with FleetStore(fleet) as store, store.read() as ledger:
        current = ledger.current("default")
        assert current is not None
        assert current.ref.name == newer.manifest.name
        assert len(ledger.publications("default", cleared=False)) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["publish", "BUNDLE", "--dir", "FLEET"], "no keys are named"),
        (["publish", "BUNDLE", "--dir", "FLEET", "--keys", "NONE"], "holds no key of the role targets"),
        (["publish", "BUNDLE", "--dir", "OTHER", "--unsigned"], "holds no keys"),
        (["publish", "BUNDLE", "--dir", "FLEET", "--unsigned", "--waves", "1"], "with the key at hand"),
        (["keys", "init", "--dir", "FLEET", "--keys", "NONE", "--no-passphrase"], "holds keys already"),
        (["keys", "init", "--dir", "OTHER", "--keys", "OTHER/keys", "--no-passphrase"], "is inside"),
        (["keys", "show", "--dir", "OTHER"], "holds no keys"),
        (["keys", "rotate", "online", "--dir", "FLEET", "--keys", "NONE"], "holds no key of the role root"),
        (
            ["keys", "rotate", "root", "--dir", "FLEET", "--keys", "KEYS", "--replace", "zz"],
            "no root key in force",
        ),
        (["publish", "BUNDLE", "--dir", "OTHER", "--keys", "KEYS"], "other has no keys, so that nothing"),
        (["sign", "NONE", "--keys", "KEYS"], "No such file"),
        (["sign", "SNAPSHOT KEY", "--keys", "KEYS"], "holds nothing to sign"),
        (["sign", "TIMESTAMP", "--keys", "KEYS"], "not signed offline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_signed_is_one_line_with_a_hint(
    tmp_path: Path,
    fleet: Path,
    bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: str,
) -> None:
    known = {
        "FLEET": fleet,
        "BUNDLE": bundle.path,
        "KEYS": tmp_path / "keys",
        "NONE": tmp_path / "none",
        "OTHER": tmp_path / "other",
        "OTHER/keys": tmp_path / "other" / "keys",
        "TIMESTAMP": fleet / "trust" / "timestamp.json",
        "SNAPSHOT KEY": fleet / "trust" / "online.pem",
    }
    assert headway("fleet", *(known.get(argument, argument) for argument in arguments)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(told) == 2
    assert error in told[0]
    assert not known["OTHER"].exists(), "a mistyped --dir makes no fleet"


def test_the_keys_are_locked_with_a_passphrase_from_a_file(tmp_path: Path, bundle: Bundle) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    fleet, keys = tmp_path / "fleet", tmp_path / "keys"
    with_secret = ["--keys", keys, "--passphrase-file", secret]
    assert headway("fleet", "keys", "init", "--dir", fleet, *with_secret) == 0
    secret.write_text("battery staple\n")
    assert headway("fleet", "publish", bundle.path, "--dir", fleet, *with_secret) == 2
    secret.write_text("correct horse\n")
    assert headway("fleet", "publish", bundle.path, "--dir", fleet, *with_secret) == 0


def test_new_keys_are_not_locked_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    init = ["fleet", "keys", "init", "--dir", tmp_path / "fleet", "--keys", keys, "--passphrase-file", secret]
    secret.write_text("elf letters\n")
    assert headway(*init) == 2
    assert "At least 12 characters" in capsys.readouterr().err
    assert not keys.exists()
    assert not (tmp_path / "fleet" / "trust").exists()
    secret.write_text("zwölf  runen\n")
    assert headway(*init) == 0


def test_an_unsigned_fleet_publishes_as_before(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert headway("fleet", "publish", bundle.path, "--dir", tmp_path / "plain") == 0
    assert "unsigned: " in capsys.readouterr().out


def test_the_updater_fetches_nothing_that_the_gate_refuses(tmp_path: Path, fleet: Path, bundle: Bundle) -> None:
    """An update that was begun before the settings named a root does not go on unsigned."""
    with rig_on(tmp_path / "data", {"surfaces": bundle}) as rig:
        gate = Gate(rig.store, open_trust(fleet).root_file(), channel="default", start=rig.updater.start)
        rig.authorize = gate.authorize
        rig.updater.boot()
        assert "is not signed for channel default" in rig.ends(bundle)
        assert rig.fetched == []
        # The control: without the gate the same assignment, begun anew, is fetched.
        rig.authorize = lambda _desired: None
        rig.updater.start(desired(bundle, deadline_utc=2000.0))
        rig.reaches(bundle, UpdateState.COMMITTED)
        assert rig.fetched == [bundle.manifest.name]
