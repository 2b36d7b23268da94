"""What somebody meets who sets a fleet up for the first time: a mistyped channel, an empty log, a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.fleet.cli_enroll import site_text
from sdk.fleet.enrolment import Place
from sdk.fleet.store import FleetStore
from sdk.wire import DeviceState
from tests.builders import make_bundle
from tests.test_fleet_live import headway


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("newcomer") / "bundle")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet with one device, on the channel `default`."""
    with FleetStore(tmp_path / "fleet") as store, store.write() as ledger:
        ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
    return tmp_path / "fleet"


@pytest.mark.parametrize(("channel", "says"), [("defualt", True), ("default", False)])
def test_publishing_on_a_channel_without_devices_names_those_that_have_some(
    fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], channel: str, says: bool
) -> None:
    code, out, _ = headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--channel", channel)
    assert code == 0
    told = f"no device is on channel {channel} yet; those of this fleet are on: default"
    assert (told in out) is says
    assert f"start one: headway fleet serve --dir {fleet}" in out


def test_the_first_release_of_a_new_fleet_is_published_without_such_a_remark(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = headway(capsys, "fleet", "publish", bundle.path, "--dir", tmp_path / "fleet")
    assert (code, "no device is on" in out) == (0, False)


def test_an_empty_log_says_that_it_is_empty(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headway(capsys, "fleet", "log", "--dir", fleet)[1] == "nothing was said on channel default yet\n"
    assert headway(capsys, "fleet", "log", "--dir", fleet, "--json")[1] == ""


def test_whoever_waits_for_a_release_is_told_what_keeps_a_device(
    fleet: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """It said "downloading", and "They take it when they connect" of a device that was there, its disk full."""
    why = "release 'b64' needs 5965696 bytes of disk"
    with FleetStore(fleet) as store, store.write() as ledger:
        for device, online in (("line-4", True), ("line-5", False)):
            state = DeviceState(device=device, channel="default", online=online, faults=[why])
            ledger.note_state(state, seen_utc=1.0)
    code, _, err = headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--wait", "0.1")
    assert code == 2
    assert f"line-1 (online), line-4 ({why}), line-5 (offline)" in err
    assert "Those that are online go on with it" in err
    shown = headway(capsys, "fleet", "devices", "--dir", fleet)[1]
    assert f"line-4: {why}" in shown
    assert f"line-5: {why}" not in shown  # what was, when it was last heard


def test_a_table_is_no_log_that_can_be_checked(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = fleet.parent / "log.csv"
    assert headway(capsys, "fleet", "labels", "export", "--dir", fleet, "--out", table)[0] == 0
    code, _, err = headway(capsys, "fleet", "labels", "check", table)
    assert (code, "as .jsonl" in err) == (2, True)


def test_an_enrolled_devices_settings_name_every_camera_and_what_passes(tmp_path: Path) -> None:
    text = site_text("line-2", "default", Place(host="192.0.2.10"), trusted=False)
    for kind in ("folder", "video", "watch", "opencv", "gstreamer"):
        assert kind in next(line for line in text.splitlines() if line.startswith("kind ="))
    (tmp_path / "site.toml").write_text(text)
    assert tuple(load_site(tmp_path / "site.toml").part.good) == ("good",)
    assert 'good = ["good"]' in text


def test_enrolling_before_there_is_a_broker_names_the_command(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = headway(capsys, "fleet", "enroll", "line-2", "--dir", fleet, "--out", fleet.parent / "line-2")
    assert (code, f"headway fleet tls --dir {fleet} --host HOST" in err) == (2, True)


def test_show_says_the_split_in_words(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = headway(capsys, "bundle", "show", bundle.path)
    assert code == 0
    (split,) = [line for line in out.splitlines() if line.startswith("split (seed ")]
    assert "{" not in split
    assert "train " in split
