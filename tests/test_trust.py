"""Only what the fleet's keys signed is taken, and never anything older than what was taken before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from sdk.errors import (
    BadSignature,
    BundleError,
    ConfigError,
    Expired,
    KeyRefused,
    OlderVersion,
    RemoteWireError,
    Unsigned,
)
from sdk.fleet.core import FleetCore
from sdk.fleet.store import FleetStore
from sdk.labels import Chain, DefineClass, Record
from sdk.trust import verify
from sdk.trust.keys import load_key, make_key
from sdk.trust.metadata import COMPACT, SignedRelease, release_path, to_target
from sdk.trust.repository import (
    KEPT_RELEASES,
    ROOT_ROOM_BYTES,
    SIGNATURES_BYTES,
    TIMESTAMP_LIFE,
    OnlineTrust,
    Repository,
    rotate_root,
    rotate_targets,
    sign,
)
from sdk.wire import MAX_MESSAGE_BYTES, WIRE_VERSION, Ack, Desired, LogSegment, ReleaseRef, Topics
from tests.soak import tell, times
from tests.trust_builders import (
    DAY_S,
    NOW,
    GuardedDevice,
    Thief,
    TrustedFleet,
    assignment,
    files_of,
    message_of,
)

EVIL = assignment("evil")


@pytest.fixture
def fleet(tmp_path: Path) -> TrustedFleet:
    return TrustedFleet(tmp_path)


@pytest.fixture
def device(tmp_path: Path, fleet: TrustedFleet) -> Iterator[GuardedDevice]:
    """A device that was given the fleet's first root, and has heard nothing yet."""
    made = GuardedDevice(tmp_path / "device", fleet.repository.root_file())
    yield made
    made.store.close()


@pytest.fixture
def open_device(tmp_path: Path) -> Iterator[GuardedDevice]:
    """A device without a root: the control, with every protection removed."""
    made = GuardedDevice(tmp_path / "open", None)
    yield made
    made.store.close()


def segment(name: str = "scratch", first: int = 1) -> LogSegment:
    _, entry = Chain("line-9").write(DefineClass(b"c" * 16, name, "anna"), counter=1, wall_time_us=0)
    return LogSegment(WIRE_VERSION, "default", first, [Record(entry, None)])


# What is taken


def test_a_signed_release_is_taken(fleet: TrustedFleet, device: GuardedDevice) -> None:
    desired = fleet.release("one")
    assert device.takes(fleet.message(), desired)
    assert device.gate.standing(desired.release.release_id) == "signed"
    assert device.gate.fault is None


def test_an_assignment_waits_for_the_metadata_that_signs_it(fleet: TrustedFleet, device: GuardedDevice) -> None:
    desired = fleet.release("one")
    device.gate.desired(desired)
    assert device.begun == []
    assert "not signed for channel default" in str(device.gate.fault)
    device.gate.receive(fleet.message())
    assert device.begun == ["one"]
    assert device.gate.fault is None


def test_without_a_root_all_is_taken_and_it_says_so(open_device: GuardedDevice) -> None:
    open_device.gate.desired(EVIL)
    open_device.gate.check_signed(segment())
    assert open_device.begun == ["evil"]
    assert open_device.gate.standing(EVIL.release.release_id) == "unsigned"


def test_what_was_taken_is_remembered_after_a_restart(fleet: TrustedFleet, device: GuardedDevice) -> None:
    desired = fleet.release("one")
    assert device.takes(fleet.message(), desired)
    device.restart()
    assert device.gate.standing(desired.release.release_id) == "signed"
    device.gate.desired(desired)
    assert device.begun == ["one", "one"]


def test_another_root_in_the_settings_starts_anew(
    tmp_path: Path, fleet: TrustedFleet, device: GuardedDevice
) -> None:
    fleet.release("one")
    device.gate.receive(fleet.message())
    other = TrustedFleet(tmp_path / "other")
    device.root = other.repository.root_file()
    device.restart()
    assert not device.takes(fleet.message(), assignment("one"))
    assert (
        device.takes(other.message(), other.release("two")) is False
    )  # this message is from before it was signed
    device.gate.receive(other.message())
    assert device.begun == ["two"]


# What is refused: a stolen broker may send any message


def flip(name: str) -> Callable[[Thief, TrustedFleet], None]:
    """Change one digit of a file's signature."""

    def change(thief: Thief, _fleet: TrustedFleet) -> None:
        raw = thief.files[name]
        at = raw.index(b'"sig":"') + 7
        thief.files[name] = raw[:at] + (b"0" if raw[at : at + 1] != b"0" else b"1") + raw[at + 1 :]

    return change


def alter_content(thief: Thief, _fleet: TrustedFleet) -> None:
    thief.files["targets.json"] = thief.files["targets.json"].replace(b'"version":2', b'"version":3')


def sign_with_own_key(thief: Thief, fleet: TrustedFleet) -> None:
    thief.name_release(EVIL, CryptoSigner.generate_ed25519())
    thief.sign_online(CryptoSigner.generate_ed25519())


def own_root(thief: Thief, fleet: TrustedFleet) -> None:
    mine = CryptoSigner.generate_ed25519()
    thief.name_root([mine], mine)
    thief.name_release(EVIL, mine)
    thief.sign_online(mine)


def drop(name: str) -> Callable[[Thief, TrustedFleet], None]:
    def change(thief: Thief, _fleet: TrustedFleet) -> None:
        del thief.files[name]

    return change


def mix(thief: Thief, fleet: TrustedFleet) -> None:
    """Old targets under a new snapshot."""
    old = thief.files["targets.json"]
    fleet.release("two")
    thief.files = {**files_of(fleet.message()), "targets.json": old}


def deep(thief: Thief, _fleet: TrustedFleet) -> None:
    thief.files["targets.json"] = b"[" * 800 + b"]" * 800


BROKER = [
    *(flip(name) for name in ("timestamp.json", "snapshot.json", "targets.json")),
    alter_content,
    sign_with_own_key,
    own_root,
    *(drop(name) for name in ("timestamp.json", "snapshot.json", "targets.json")),
    mix,
    deep,
]


@pytest.mark.parametrize("attack", BROKER, ids=lambda attack: getattr(attack, "__qualname__", "").split(".")[0])
def test_a_stolen_broker_brings_nothing_unsigned(
    fleet: TrustedFleet,
    device: GuardedDevice,
    open_device: GuardedDevice,
    attack: Callable[[Thief, TrustedFleet], None],
) -> None:
    desired = fleet.release("one")
    honest = fleet.message()
    thief = Thief(honest)
    attack(thief, fleet)
    assert not device.takes(thief.message(), desired)
    assert not device.takes(thief.message(), EVIL)
    assert device.begun == []
    assert device.gate.fault is not None
    # The controls: the same device takes what was signed, and one without its root takes what was not.
    assert device.takes(honest, desired)
    assert open_device.takes(thief.message(), EVIL)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"v":1,"files":{}}', b"\xff" * 100, b'{"v":2,"files":{"a":1}}'])
def test_what_is_no_metadata_changes_nothing(fleet: TrustedFleet, device: GuardedDevice, payload: bytes) -> None:
    desired = fleet.release("one")
    device.gate.receive(fleet.message())
    device.gate.receive(payload)
    device.gate.desired(desired)
    assert device.begun == ["one"]


def test_no_flipped_bit_brings_anything_else(fleet: TrustedFleet) -> None:
    """It is refused with a declared error, or says what the honest message says."""
    fleet.release("one")
    honest = fleet.message()
    first = verify.Seen.first(fleet.repository.root_file().read_bytes())
    said = verify.accept(honest, first, NOW)
    chance = random.Random(7)
    refused, runs = 0, times(150, 5000)
    for _ in range(runs):
        at, bit = chance.randrange(len(honest)), chance.randrange(8)
        flipped = honest[:at] + bytes([honest[at] ^ 1 << bit]) + honest[at + 1 :]
        try:
            seen = verify.accept(flipped, first, NOW)
        except (BundleError, RemoteWireError):
            refused += 1
            continue
        # Such as a signature more than the threshold needs: the bytes differ, what is signed does not.
        assert (seen.versions, seen.floor_utc) == (said.versions, said.floor_utc)
        assert verify.signed_release(seen, assignment("one"), NOW) == verify.signed_release(
            said, assignment("one"), NOW
        )
    assert refused > runs / 3  # not a figure: keys are drawn, and about half of the bytes are spare
    tell("T8, metadata", runs, 0, f"{refused} refused, the others say what they said before")


def test_a_release_signed_for_another_channel_is_refused(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one", channel="castings")
    assert not device.takes(fleet.message(), assignment("one", "default"))
    assert device.takes(fleet.message(), fleet.release("one")) is False
    device.gate.receive(fleet.message())  # the control: signed for this channel too
    assert device.begun == ["one"]


# A stolen online key may say what is current, and nothing else


def test_a_stolen_online_key_signs_no_release(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one")
    device.gate.receive(fleet.message())
    thief = Thief(fleet.message())
    thief.name_release(EVIL, fleet.online)
    thief.sign_online(fleet.online)
    assert not device.takes(thief.message(), EVIL)
    # The control: with the targets key it would be one.
    thief = Thief(fleet.message())
    thief.name_release(EVIL, fleet.key("targets"))
    thief.sign_online(fleet.online)
    assert device.takes(thief.message(), EVIL)


def test_a_stolen_online_key_brings_back_no_older_targets(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one")
    old = files_of(fleet.message())["targets.json"]
    fleet.release("two")
    device.gate.receive(fleet.message())
    thief = Thief(fleet.message())
    thief.files["targets.json"] = old
    thief.sign_online(fleet.online)
    seen = device.gate._seen
    assert seen is not None
    with pytest.raises(OlderVersion):
        verify.accept(thief.message(), seen, NOW)
    # The control: a device that has not seen the newer ones believes it.
    assert verify.accept(thief.message(), verify.Seen.first(seen.root), NOW).versions["targets"] == 2


def test_what_a_stolen_online_key_signed_is_void_once_it_is_replaced(
    fleet: TrustedFleet, device: GuardedDevice
) -> None:
    """It may sign the highest version there is; after a rotation honest ones count again."""
    fleet.release("one")
    thief = Thief(fleet.message())
    thief.sign_online(fleet.online, version=2**31)
    device.gate.receive(thief.message())
    desired = fleet.release("two")
    assert not device.takes(fleet.message(), desired)  # what the thief signed is newer
    fleet.repository.rotate_online(fleet.root_keys(), fleet.key("targets"))
    device.gate.receive(fleet.message())
    assert device.begun == ["two"]


@pytest.mark.parametrize("version", [2**63, 2**70])
def test_a_version_that_no_device_can_keep_is_refused(
    fleet: TrustedFleet, device: GuardedDevice, version: int
) -> None:
    one = fleet.release("one")
    thief = Thief(fleet.message())
    thief.sign_online(fleet.online, version=version)
    device.gate.receive(thief.message())
    assert "a version that nobody counts to" in (device.gate.fault or "")
    with pytest.raises(BadSignature):
        device.gate.bring(thief.message(), one)
    device.restart()
    assert device.takes(fleet.message(), one)


# Replays


def test_a_replayed_old_assignment_is_refused(fleet: TrustedFleet, device: GuardedDevice) -> None:
    one, two = fleet.release("one"), fleet.release("two")
    assert device.takes(fleet.message(), two)
    assert not device.takes(fleet.message(), one)
    assert "version 1, and 2 was taken before" in str(device.gate.fault)
    device.restart()
    assert not device.takes(fleet.message(), one)
    # The controls: without that memory it is taken; and the fleet may go back, under a higher version.
    seen = device.gate._seen
    assert seen is not None
    assert verify.signed_release(msgspec.structs.replace(seen, taken={}), one, NOW).version == 1
    fleet.release("one")
    assert device.takes(fleet.message(), one)


def test_a_halted_rollout_goes_back_without_a_key_and_no_further(
    fleet: TrustedFleet, device: GuardedDevice
) -> None:
    one, two = fleet.release("one"), fleet.release("two")
    three = fleet.release("three", fallback=two)
    assert device.takes(fleet.message(), three)
    assert device.takes(fleet.message(), two)
    assert not device.takes(fleet.message(), one)
    # The control: published at once, three leaves no way back but a new signature.
    four = fleet.release("four")
    assert device.takes(fleet.message(), four)
    assert not device.takes(fleet.message(), three)


def test_replayed_old_metadata_is_refused_after_a_restart_too(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one")
    old = fleet.message()
    desired = fleet.release("two")
    device.gate.receive(fleet.message())
    device.restart()
    device.gate.receive(old)
    assert "backwards" in str(device.gate.fault)
    device.gate.desired(desired)
    assert device.begun == ["two"]


def test_lower_versions_are_refused_even_where_tufs_own_files_are_lost(fleet: TrustedFleet) -> None:
    fleet.release("one")
    old = fleet.message()
    fleet.release("two")
    seen = verify.accept(fleet.message(), verify.Seen.first(fleet.repository.root_file().read_bytes()), NOW)
    forgetful = msgspec.structs.replace(seen, files={})
    with pytest.raises(OlderVersion, match="is older than"):
        verify.accept(old, forgetful, NOW)
    # The control: without the versions nothing refuses it.
    verify.accept(old, msgspec.structs.replace(forgetful, versions={}), NOW)


# Time


def test_held_back_metadata_stops_new_releases_and_nothing_else(
    fleet: TrustedFleet, device: GuardedDevice
) -> None:
    one, two = fleet.release("one"), fleet.release("two")
    assert device.takes(fleet.message(), one)
    device.now = NOW + TIMESTAMP_LIFE.total_seconds() + DAY_S
    assert not device.takes(fleet.message(), two)
    assert "has expired" in str(device.gate.fault)
    assert device.gate.standing(one.release.release_id) == "signed"
    device.gate.check_signed(OnlineTrust(fleet.repository).sign(segment()))  # labels go on
    # The control: the service refreshes, and the same assignment is begun.
    fleet.now = device.now
    assert fleet.repository.refresh()
    device.gate.receive(fleet.message())
    assert device.begun == ["one", "two"]


@pytest.mark.parametrize("year", [1970, 2040])
def test_a_clock_that_cannot_be_right_blocks_nothing_newer_and_lets_nothing_older_in(
    fleet: TrustedFleet, device: GuardedDevice, year: int
) -> None:
    one = fleet.release("one")
    old = fleet.message()
    device.now = (year - 1970) * 365.25 * DAY_S
    assert device.takes(fleet.message(), one)
    assert device.gate.standing(one.release.release_id) == "signed; time unverified"
    two = fleet.release("two")
    fleet.now += 400 * DAY_S
    fleet.repository.refresh()
    assert device.takes(fleet.message(), two)
    device.gate.receive(old)
    assert "backwards" in str(device.gate.fault)
    assert not device.takes(old, one)


def test_time_is_verified_once_the_clock_is_right(fleet: TrustedFleet, device: GuardedDevice) -> None:
    one = fleet.release("one")
    device.now = 0.0
    device.gate.receive(fleet.message())
    device.now = NOW
    assert device.gate.standing(one.release.release_id) == "signed"


def run_ahead(fleet: TrustedFleet, days: int) -> None:
    """Let the service sign by a clock that is so far ahead, as an earlier Headway did, however far that was."""
    hops = 1 + days // 700
    for hop in range(1, hops + 1):
        fleet.now = NOW + days * DAY_S * hop / hops
        assert fleet.repository.refresh()


AHEAD = pytest.mark.parametrize("days", [30, 366, 6 * 366], ids=["a month", "a year", "six years"])


@AHEAD
def test_a_servers_clock_that_once_ran_ahead_stops_no_release_once_it_is_right(
    fleet: TrustedFleet, device: GuardedDevice, days: int
) -> None:
    one = fleet.release("one")
    assert device.takes(fleet.message(), one)
    run_ahead(fleet, days)
    ahead = fleet.message()
    device.gate.receive(ahead)
    assert device.gate.standing(one.release.release_id) == "signed; time unverified"
    fleet.now = device.now = NOW + DAY_S
    assert fleet.repository.refresh()  # what was signed ahead is not fresh
    device.gate.receive(fleet.message())
    assert device.gate.standing(one.release.release_id) == "signed"
    two = fleet.release("two")
    assert device.takes(fleet.message(), two)
    # Nothing is open that was shut: what is older does not come again, and what is held back is noticed.
    device.gate.receive(ahead)
    assert "backwards" in str(device.gate.fault)
    device.now += TIMESTAMP_LIFE.total_seconds() + DAY_S
    assert not device.takes(fleet.message(), two)
    assert "has expired" in str(device.gate.fault)


@AHEAD
def test_a_device_that_heard_nothing_yet_follows_a_server_whose_clock_ran_ahead(
    fleet: TrustedFleet, device: GuardedDevice, days: int
) -> None:
    run_ahead(fleet, days)
    fleet.now = device.now = NOW + DAY_S
    one = fleet.release("one")
    assert device.takes(fleet.message(), one)
    assert device.gate.standing(one.release.release_id) == "signed"


def test_a_wrong_clock_still_brings_nothing_older_after_the_server_ran_ahead(
    fleet: TrustedFleet, device: GuardedDevice
) -> None:
    """Where no clock can be believed, versions alone say what is older."""
    one, device.now = fleet.release("one"), 0.0
    old = fleet.message()
    two = fleet.release("two")
    run_ahead(fleet, 366)
    assert device.takes(fleet.message(), two)
    for day in (1, 2):
        fleet.now = NOW + day * DAY_S
        fleet.repository.refresh(force=True)
        device.gate.receive(fleet.message())
        assert device.gate.fault is None
    device.gate.receive(old)
    assert "backwards" in str(device.gate.fault)
    assert not device.takes(old, one)


def test_nothing_is_signed_years_after_the_last_signature_until_somebody_brings_a_key(fleet: TrustedFleet) -> None:
    fleet.release("one")
    before = fleet.message()
    fleet.now += 3 * 366 * DAY_S
    with pytest.raises(KeyRefused, match="clock says 2029-06-0") as caught:
        fleet.repository.refresh()
    assert "Set the clock" in caught.value.hint
    assert fleet.message() == before
    renewal = fleet.repository.stage_renewal()  # the clock is right, and somebody says so
    sign(renewal, [fleet.key("targets")])
    fleet.repository.put_into_force(renewal)
    fleet.now += 2 * DAY_S
    assert fleet.repository.refresh()


def test_a_servers_clock_that_is_behind_the_root_signs_nothing_by_itself(fleet: TrustedFleet) -> None:
    before = fleet.message()
    fleet.now -= 300 * DAY_S
    assert not fleet.repository.refresh()
    assert fleet.message() == before


@pytest.mark.parametrize("stamp", [b"1" + b"0" * 400, b"-1" + b"0" * 400, b"NaN", b"Infinity", b'"x"', b"true"])
def test_a_date_that_is_none_is_refused_as_any_altered_metadata(fleet: TrustedFleet, stamp: bytes) -> None:
    first = verify.Seen.first(fleet.repository.root_file().read_bytes())
    thief = Thief(fleet.message())
    at = f'"x-headway-signed-utc":{int(NOW)}'.encode()
    assert at in thief.files["timestamp.json"]
    altered = thief.files["timestamp.json"].replace(at, b'"x-headway-signed-utc":' + stamp)
    thief.files["timestamp.json"] = altered
    wrapped = b'{"files":{' + b",".join(b'"%s":%s' % (n.encode(), raw) for n, raw in thief.files.items())
    with pytest.raises((BundleError, RemoteWireError)):
        verify.accept(wrapped + b'},"v":1}', first, 0.0)


def test_an_update_that_waits_for_fresh_metadata_may_be_tried_again() -> None:
    assert Expired.retryable
    assert not Unsigned.retryable


# Keys


def test_a_device_follows_every_rotation_at_once(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one")
    device.gate.receive(fleet.message())
    fleet.repository.rotate_online(fleet.root_keys(), fleet.key("targets"))
    rotate_targets(fleet.repository, fleet.root_keys(), fleet.keys, None)
    rotate_root(fleet.repository, fleet.keys, "root-2.pem", None)
    lost = fleet.key("root-3").public_key.keyid
    (fleet.keys / "root-3.pem").unlink()
    rotate_root(fleet.repository, fleet.keys, lost[:10], None)
    assert device.takes(fleet.message(), fleet.release("two")) is False
    device.gate.receive(fleet.message())
    assert device.begun == ["two"]
    device.gate.check_signed(OnlineTrust(fleet.repository).sign(segment()))


def test_a_key_left_from_a_rotation_that_did_not_end_is_never_overwritten(fleet: TrustedFleet) -> None:
    left = fleet.keys / "targets.pem.next"
    make_key(left, None)
    before = left.read_bytes()
    with pytest.raises(KeyRefused, match="did not end"):
        rotate_targets(fleet.repository, fleet.root_keys(), fleet.keys, None)
    assert left.read_bytes() == before
    assert fleet.repository.root().signed.version == 1


def test_a_replaced_targets_key_signs_nothing_any_more(fleet: TrustedFleet, device: GuardedDevice) -> None:
    fleet.release("one")
    old = fleet.key("targets")
    rotate_targets(fleet.repository, fleet.root_keys(), fleet.keys, None)
    thief = Thief(fleet.message())
    thief.name_release(EVIL, old)
    thief.sign_online(fleet.online)
    assert not device.takes(thief.message(), EVIL)
    thief = Thief(fleet.message())
    thief.name_release(EVIL, fleet.key("targets"))  # the control: the new one does
    thief.sign_online(fleet.online)
    assert device.takes(thief.message(), EVIL)


@pytest.mark.parametrize(("signatures", "taken"), [(1, False), (2, True)])
def test_one_root_key_is_not_enough(
    fleet: TrustedFleet, device: GuardedDevice, signatures: int, taken: bool
) -> None:
    mine = CryptoSigner.generate_ed25519()
    thief = Thief(fleet.message())
    thief.name_root(fleet.root_keys()[:signatures], mine)
    thief.name_release(EVIL, mine)
    thief.sign_online(fleet.online)
    assert device.takes(thief.message(), EVIL) is taken


def test_what_is_not_signed_as_the_root_demands_does_not_come_into_force(fleet: TrustedFleet) -> None:
    staged = fleet.repository.stage_renewal()
    sign(staged, [fleet.online])
    with pytest.raises(KeyRefused, match="not signed as the root demands"):
        fleet.repository.put_into_force(staged)
    root = fleet.repository.stage_root()
    sign(root, fleet.root_keys()[:1])
    with pytest.raises(KeyRefused, match="not signed as the root demands"):
        fleet.repository.put_into_force(root)


def test_two_people_who_stage_at_once_do_not_overwrite_each_other(fleet: TrustedFleet) -> None:
    first, second = fleet.repository.stage_renewal(), fleet.repository.stage_renewal()
    for staged in (first, second):
        sign(staged, [fleet.key("targets")])
    fleet.repository.put_into_force(first)
    with pytest.raises(KeyRefused, match="does not follow"):
        fleet.repository.put_into_force(second)


def test_a_channel_keeps_its_newest_releases_and_the_message_stays_small(fleet: TrustedFleet) -> None:
    for number in range(KEPT_RELEASES + 3):
        fleet.release(f"r{number}")
    other = fleet.release("other", channel="castings")
    versions = [r.version for r in fleet.repository.releases().values() if r.channel == "default"]
    assert sorted(versions) == list(range(4, KEPT_RELEASES + 4))
    assert any(other.release.release_id in path for path in fleet.repository.releases())
    assert len(fleet.message()) < 16 * 1024


LONG = "casting line of the west hall " * 15


def signed_by_an_earlier_headway(fleet: TrustedFleet, many: int, channel_of: Callable[[int], str]) -> None:
    """Put so many releases into force, whatever their size."""
    targets = fleet.repository.targets()
    versions: Counter[str] = Counter()
    for number in range(many):
        channel = channel_of(number)
        versions[channel] += 1
        new = SignedRelease(channel=channel, version=versions[channel], name=LONG, space="ab" * 32, feature_size=8)
        target = to_target(f"{number:064x}", 1, new)
        targets.signed.targets[target.path] = target
    sign(targets, [fleet.key("targets")])
    (fleet.repository.folder / "targets.json").write_bytes(targets.to_bytes(COMPACT))


def test_the_oldest_releases_of_all_channels_give_way_before_the_message_is_full(fleet: TrustedFleet) -> None:
    channels = [f"line-{number}" for number in range(40)]
    signed_by_an_earlier_headway(fleet, 160, lambda number: channels[number % 40])
    back = Desired(release=ReleaseRef(release_id=f"{123:064x}", name=LONG, size_bytes=1), channel="line-3")
    for channel in channels[:12]:
        fleet.release(LONG + channel, channel, fallback=back if channel == "line-3" else None)
        assert len(fleet.message()) <= MAX_MESSAGE_BYTES - ROOT_ROOM_BYTES + SIGNATURES_BYTES
    kept = fleet.repository.releases()
    of = {channel: sorted(r.version for r in kept.values() if r.channel == channel) for channel in channels}
    assert {versions[-1] for versions in (of[c] for c in channels[:12])} == {5}
    assert {versions[-1] for versions in (of[c] for c in channels[12:])} == {4}
    assert of["line-3"][-2:] == [5, 5]  # the one to go back to
    assert kept[release_path("line-3", f"{123:064x}")].fallback
    assert len({len(versions) for c, versions in of.items() if c != "line-3"}) == 2
    assert 80 < len(kept) < 160
    for _ in range(6):  # there is room to change keys
        rotate_root(fleet.repository, fleet.keys, "root-2.pem", None)
    fleet.message()


def test_more_than_fits_a_message_is_refused_before_anything_is_signed(fleet: TrustedFleet) -> None:
    signed_by_an_earlier_headway(fleet, 130, lambda number: f"line-{number}")
    taken = 130

    def release_until_refused() -> None:
        nonlocal taken
        while taken < 200:
            fleet.release(f"{LONG}{taken}", f"line-{taken}")
            taken += 1

    with pytest.raises(KeyRefused, match="of a message") as caught:
        release_until_refused()
    assert "a fleet of their own" in caught.value.hint
    assert len(fleet.repository.releases()) == taken
    # Nor does anything else come into force that does not fit.
    staged = fleet.repository.stage_renewal()
    for number in range(9):
        new = SignedRelease(channel="more", version=number + 1, name=LONG, space="ab" * 32, feature_size=8)
        target = to_target(f"{number:064x}", 1, new)
        staged.signed.targets[target.path] = target
    sign(staged, [fleet.key("targets")])
    version = fleet.repository.targets().signed.version
    with pytest.raises(KeyRefused, match="of a message"):
        fleet.repository.put_into_force(staged)
    assert fleet.repository.targets().signed.version == version
    fleet.message()


def test_a_message_that_outgrew_its_limit_stops_no_labels_and_is_renewed(
    tmp_path: Path, fleet: TrustedFleet
) -> None:
    signed_by_an_earlier_headway(fleet, 200, lambda _number: "default")
    told: list[tuple[str, dict[str, Any]]] = []
    with FleetStore(tmp_path / "served") as store:
        trust = OnlineTrust(fleet.repository)
        core = FleetCore(store, Topics(), ["default"], lambda *what: told.append(what), trust)
        core.broker_connected(remembered=False)
        core.turn([], now=0.0, now_utc=NOW, room_bytes=0)
    assert [kind for kind, _ in told] == ["trust"]
    assert "of a message" in told[0][1]["error"]
    staged = fleet.repository.stage_renewal()
    sign(staged, [fleet.key("targets")])
    fleet.repository.put_into_force(staged)
    assert trust.poll() is not None
    assert max(one.version for one in fleet.repository.releases().values()) == 200


def test_metadata_is_signed_anew_a_day_later_and_not_before(fleet: TrustedFleet) -> None:
    trust = OnlineTrust(fleet.repository, monotonic=lambda: fleet.now)
    assert trust.poll() is not None
    fleet.now += 3600
    assert trust.poll() is None
    fleet.now += DAY_S
    assert trust.poll() is not None
    assert fleet.repository.timestamp().signed.expires.timestamp() > fleet.now + 13 * DAY_S


def test_a_service_without_the_roots_online_key_says_so(fleet: TrustedFleet) -> None:
    key = fleet.repository.folder / "online.pem"
    key.unlink()
    with pytest.raises(KeyRefused, match=r"online\.pem"):
        OnlineTrust(fleet.repository)
    make_key(key, None)
    with pytest.raises(KeyRefused, match="not the key that the root names"):
        fleet.repository.refresh(force=True)


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    file = tmp_path / "root-1.pem"
    made = make_key(file, b"correct horse")
    assert load_key(file, b"correct horse").public_key.keyid == made.public_key.keyid
    assert file.stat().st_mode & 0o077 == 0
    for wrong in (None, b"wrong"):
        with pytest.raises(KeyRefused):
            load_key(file, wrong)
    with pytest.raises(KeyRefused, match="is there already"):
        make_key(file, None)


@pytest.mark.parametrize(("keys", "threshold"), [(3, 0), (2, 3), (10, 2)])
def test_numbers_of_keys_that_make_no_sense_are_refused(tmp_path: Path, keys: int, threshold: int) -> None:
    with pytest.raises(KeyRefused):
        Repository.create(tmp_path / "trust", tmp_path / "keys", root_keys=keys, threshold=threshold)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json"])
def test_a_root_that_is_none_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    root = tmp_path / "root.json"
    if content is not None:
        root.write_bytes(content)
    with pytest.raises(ConfigError, match=r"root\.json"):
        GuardedDevice(tmp_path / "device", root)


def test_a_root_that_its_own_keys_did_not_sign_stops_the_start(tmp_path: Path, fleet: TrustedFleet) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(fleet.repository.root_file().read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(ConfigError, match="not signed by its own keys"):
        GuardedDevice(tmp_path / "device", root)


# The stream of labels


def test_labels_pass_with_the_fleets_signature_only(fleet: TrustedFleet, device: GuardedDevice) -> None:
    device.gate.receive(fleet.message())
    trust = OnlineTrust(fleet.repository)
    signed = trust.sign(segment())
    device.gate.check_signed(signed)
    own = CryptoSigner.generate_ed25519()
    forged = msgspec.structs.replace(
        segment(), signature=bytes.fromhex(own.sign(segment().signed_bytes()).signature)
    )
    altered = msgspec.structs.replace(segment("dent"), signature=signed.signature)
    moved = msgspec.structs.replace(segment(first=2), signature=signed.signature)
    for bad in (segment(), forged, altered, moved):
        with pytest.raises(RemoteWireError, match="not signed by the fleet"):
            device.gate.check_signed(bad)


def test_own_labels_leave_the_outbox_by_a_signed_acknowledgement_only(
    fleet: TrustedFleet, device: GuardedDevice, open_device: GuardedDevice
) -> None:
    device.gate.receive(fleet.message())
    trust = OnlineTrust(fleet.repository)
    said = Ack(through=7)
    signed = trust.sign_ack(said, "line-1")
    device.gate.check_signed(signed)
    for bad in (
        said,
        msgspec.structs.replace(said, signature="00" * 64),
        msgspec.structs.replace(signed, through=8),
        trust.sign_ack(said, "line-2"),
    ):
        with pytest.raises(RemoteWireError, match="not signed by the fleet"):
            device.gate.check_signed(bad)
        open_device.gate.check_signed(bad)  # the control


def test_a_message_is_the_same_bytes_that_were_written(fleet: TrustedFleet) -> None:
    found = files_of(fleet.message())
    assert found["targets.json"] == (fleet.repository.folder / "targets.json").read_bytes()
    assert files_of(message_of(found)) == found
