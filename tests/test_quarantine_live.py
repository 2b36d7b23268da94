"""A quarantine reaches devices over a real broker, signed like everything that the fleet says of its union."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdk.fleet.broker import Mosquitto
from sdk.fleet.cli_trust import open_trust
from sdk.labels import Chain, MergeClasses, Quarantine, Record, fleet_log_of
from sdk.mqtt import MqttSession
from sdk.wire import WIRE_VERSION, LogSegment, encode_msgpack
from tests.simulators import TOPICS, LiveDevice, class_id, digest_of, wait_for
from tests.test_trust_live import headway, line, serving

pytestmark = pytest.mark.broker


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet's directory with keys."""
    asked = ("keys", "init", "--dir", tmp_path / "fleet", "--keys", tmp_path / "keys", "--no-passphrase")
    assert headway("fleet", *asked) == 0
    return tmp_path / "fleet"


def test_a_command_beside_the_running_service_reaches_every_device_signed(
    mosquitto: Mosquitto, tmp_path: Path, fleet: Path
) -> None:
    root, settings = open_trust(fleet).root_file(), mosquitto.settings
    with serving(fleet, settings), line(tmp_path / "a", settings, root) as guarded:
        wait_for(guarded.heard, what="the metadata")
        with LiveDevice(settings, "line-2") as bad, LiveDevice(settings, "line-3") as good:
            bad.label(1)
            good.label(2)
            made = len(bad.log) + len(good.log)
            wait_for(lambda: len(guarded.told) == made, what="all labels")
            asked = ("quarantine", "line-2", "--dir", fleet, "--reason", "flipped", "--by", "ann")
            assert headway("fleet", *asked) == 0
            wait_for(lambda: len(guarded.told) == made + 1, what="the quarantine")
            body = guarded.told[-1].entry.body
            assert isinstance(body, Quarantine)
            assert (body.device, body.reason, body.operator) == ("line-2", "flipped", "ann")
            assert digest_of(guarded.told) == digest_of(good.log)
            bad.label(3)  # kept, and of no account
            wait_for(lambda: not bad.outbox and len(guarded.told) == made + 3, what="its later label")
            assert digest_of(guarded.told) == digest_of(good.log)
            assert headway("fleet", "release", "line-2", "--dir", fleet) == 0
            wait_for(lambda: len(guarded.told) == made + 4, what="its release")
            assert digest_of(guarded.told) == digest_of([*good.log, *bad.log])
        assert guarded.refused == []


def test_what_a_device_merges_reaches_every_device_and_counts_on_none(
    mosquitto: Mosquitto, tmp_path: Path, fleet: Path
) -> None:
    """However its merge comes, the fleet's word on it is there before."""
    root, settings = open_trust(fleet).root_file(), mosquitto.settings
    with serving(fleet, settings), line(tmp_path / "a", settings, root) as guarded:
        wait_for(guarded.heard, what="the metadata")
        with LiveDevice(settings, "line-2") as bad, LiveDevice(settings, "line-3") as good:
            bad.label(1, "pit")
            good.label(2, "scratch")
            made = len(bad.log) + len(good.log)
            wait_for(lambda: len(guarded.told) == made, what="all labels")
            before = digest_of(guarded.told)
            bad.say(MergeClasses(class_id("pit"), class_id("scratch"), "eve"))
            bad.label(3, "pit")
            wait_for(lambda: not bad.outbox and len(guarded.told) == made + 4, what="the merge, and a label since")
            said = [record.entry.body for record in guarded.told[made : made + 2]]
            assert [type(body) for body in said] == [Quarantine, MergeClasses]
            assert digest_of(guarded.told[: made + 2]) == before
            assert digest_of(guarded.told) == digest_of([*good.log, *without_merges(bad)])
        assert (guarded.refused, bad.refusals) == ([], [])


def without_merges(device: LiveDevice) -> list[Record]:
    return [record for record in device.log if not isinstance(record.entry.body, MergeClasses)]


def test_one_that_the_fleet_has_not_signed_is_refused(mosquitto: Mosquitto, tmp_path: Path, fleet: Path) -> None:
    """Who owns the broker cannot silence a line."""
    root, settings = open_trust(fleet).root_file(), mosquitto.settings
    _, entry = Chain(fleet_log_of("default")).write(
        Quarantine("line-1", "", 2**62, "silence", "eve"), counter=1, wall_time_us=0
    )
    forged = encode_msgpack(LogSegment(WIRE_VERSION, "default", 1, [Record(entry)]))
    with line(tmp_path / "a", settings, root) as guarded:
        with serving(fleet, settings):
            wait_for(guarded.heard, what="the metadata")
        with MqttSession(settings, "attacker", on_message=lambda _message: None) as attacker:
            attacker.connect()
            attacker.publish(TOPICS.log("default"), forged)
            wait_for(lambda: guarded.refused, what="the refusal")
        assert guarded.told == []
        assert guarded.store.log.position("default") == 0
