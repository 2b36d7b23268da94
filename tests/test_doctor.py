"""`headway doctor` finds what is wrong with machine, settings, disk and broker, and says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from device_agent import doctor as doctor_module
from device_agent.agent import Agent
from device_agent.backup import make_backup, restore_backup
from device_agent.cli_operations import doctor
from device_agent.config import WatchCamera
from device_agent.doctor import Machine, examine
from device_agent.limits import StoreLimits
from device_agent.report import UNREADABLE_S
from device_agent.site_file import load_site
from device_agent.store import Store
from device_agent.trust import Gate
from sdk.bundle import Bundle
from sdk.cli_findings import FAULT_EXIT
from sdk.errors import TensorRtMissing
from sdk.finding import Finding, Level
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.certificates import Authority
from sdk.images import sample_id
from sdk.tensorrt_api import Library
from sdk.trust.repository import Repository
from sdk.wire import UpdateState
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, flipped, images, running, site_file, site_of
from tests.test_update import id_of
from tests.tiny import class_id, other_id, picture, tiny_bundle

__all__ = ["bundle", "images"]

NOW = 1_800_000_000.0


def no_tensorrt() -> Library:
    raise TensorRtMissing("TensorRT for Python is not installed", hint="sudo apt-get install python3-libnvinfer")


GOOD = Machine(
    clock=lambda: NOW,
    synchronised=lambda: True,
    free_bytes=lambda _: 10 * 1024**3,
    tensorrt=no_tensorrt,
    user_id=lambda: 1000,
)
NOTHING_COMES: Final = replace(GOOD, camera_wait_s=0.5)
"""For a watched folder that nothing comes into while it is looked at."""


def faults(file: Path | None, machine: Machine = GOOD) -> list[Finding]:
    return [each for each in examine(file, machine) if each.level is Level.FAULT]


def test_a_machine_that_is_well_has_no_faults(images: Path, bundle: Bundle) -> None:
    found = list(examine(site_file(images, bundle), GOOD))
    assert [each for each in found if each.level is Level.FAULT] == []
    by_area = {each.area: each.what for each in found}
    assert "48 x 48" in by_area["camera"]
    assert "golden scores off by 0.0" in by_area["release"]
    assert any(each.what.startswith("fp32 by cpu, 1 thread: ") for each in found)
    assert by_area["broker"] == "no [mqtt] table: this device works alone"
    assert not (images.parent / "data").exists(), "looking changes nothing"


def test_no_picture_is_deleted_that_the_agent_has_not_seen(tmp_path: Path) -> None:
    (tmp_path / "left over.png").write_bytes(picture("pit", 0))
    watch = WatchCamera(path=tmp_path, poll_s=0.01, delete=True)
    (found,) = doctor_module._camera(NOTHING_COMES, watch, "line-1")
    assert found.level is Level.GOOD
    assert [file.name for file in tmp_path.iterdir()] == ["left over.png"]


def test_without_settings_the_machine_alone_is_looked_at() -> None:
    assert {each.area for each in examine(None, GOOD)} == {"machine", "runtime", "clock"}


def test_what_is_wrong_always_comes_with_what_to_do(images: Path, bundle: Bundle) -> None:
    for finding in examine(site_file(images, bundle), replace(GOOD, clock=lambda: 0.0, free_bytes=lambda _: 0)):
        assert bool(finding.fix) or finding.level is not Level.FAULT
        assert "\n" not in finding.what + finding.fix


Change = Callable[[Path, Bundle, Path], object]


def write_site(text: str) -> Change:
    def change(file: Path, _bundle: Bundle, _folder: Path) -> None:
        file.write_text(file.read_text() + text)

    return change


def damage_store(file: Path, _bundle: Bundle, _folder: Path) -> None:
    data = file.parent / "data"
    Store.open(data, "line-1", limits=StoreLimits(reserve_bytes=0)).close()
    raw = bytearray((data / "store.sqlite3").read_bytes())
    raw[4096:8192] = os.urandom(4096)
    (data / "store.sqlite3").write_bytes(raw)


def others_store(file: Path, _bundle: Bundle, _folder: Path) -> None:
    Store.open(file.parent / "data", "line-2", limits=StoreLimits(reserve_bytes=0)).close()


def empty_folder(file: Path, _bundle: Bundle, _folder: Path) -> None:
    for each in (file.parent / "images").iterdir():
        each.unlink()


def flip_release(file: Path, bundle: Bundle, folder: Path) -> None:
    file.write_text(file.read_text().replace(str(bundle.path), str(flipped(bundle, folder))))


def masked(shape: tuple[int, int], value: int) -> Change:
    def change(file: Path, _bundle: Bundle, _folder: Path) -> None:
        cv2.imwrite(str(file.parent / "mask.png"), np.full(shape, value, np.uint8))
        text = file.read_text().replace("[page]", '[camera.recipe]\nmask = "mask.png"\n[page]')
        file.write_text(text)

    return change


def open_data(file: Path, _bundle: Bundle, _folder: Path) -> None:
    (file.parent / "data").mkdir()
    (file.parent / "data").chmod(0o777)


@pytest.mark.parametrize(
    ("change", "area", "what", "fix"),
    [
        (write_site("[page]\nprot = 1\n"), "settings", "Cannot declare|unknown key", ""),
        (
            write_site('[mqtt]\nhost = "127.0.0.1"\npassword_file = "none"\n'),
            "permissions",
            "is missing",
            "Put the",
        ),
        (damage_store, "store", "is damaged", "headway agent restore"),
        (others_store, "store", "belongs to device 'line-2'", "Use that device id"),
        (empty_folder, "camera", "holds no images", "Put images there"),
        (flip_release, "release", "is not what the manifest says", ""),
        (open_data, "permissions", "anybody may write", "chmod 0700"),
        (masked((48, 48), 0), "camera", "has no white pixel", "Draw white"),
        (masked((24, 48), 255), "camera", "has 48 x 24 pixels, the frame 48 x 48", "a whole frame"),
        (
            lambda file, _, __: file.write_text(
                file.read_text().replace("[page]", '[camera.recipe]\nmask = "nope.png"\n[page]')
            ),
            "camera",
            "nope.png",
            "Draw white",
        ),
    ],
    ids=[
        "settings",
        "no-password",
        "damaged",
        "other-device",
        "no-images",
        "flipped",
        "open-data",
        "black-mask",
        "other-mask",
        "no-mask",
    ],
)
def test_what_the_settings_name_and_cannot_work_is_a_fault(
    images: Path, bundle: Bundle, tmp_path: Path, change: Change, area: str, what: str, fix: str
) -> None:
    file = site_file(images, bundle)
    change(file, bundle, tmp_path)
    found = [each for each in faults(file) if each.area == area]
    assert len(found) == 1
    assert any(part in found[0].what for part in what.split("|"))
    assert fix in found[0].fix


def test_a_good_class_that_is_written_almost_like_one_of_the_release_is_noted(
    images: Path, bundle: Bundle
) -> None:
    name = bundle.manifest.classes[1].name
    file = site_file(images, bundle)
    file.write_text(f'{file.read_text()}[part]\ngood = ["good", "{name}x", "something else"]\n')
    noted = [each for each in examine(file, GOOD) if each.area == "release" and each.level is Level.NOTE]
    assert [each.fix for each in noted] == [f"Did you mean {name!r}?"]
    assert f"what is {name!r} is rejected" in noted[0].what


@pytest.mark.parametrize(("mode", "told"), [(0o755, True), (0o750, False), (0o700, False)])
def test_a_folder_that_every_user_may_look_into_is_told(
    images: Path, bundle: Bundle, mode: int, told: bool
) -> None:
    file = site_file(images, bundle)
    data = file.parent / "data"
    data.mkdir()
    data.chmod(mode)
    notes = [each for each in examine(file, GOOD) if "every user" in each.what]
    assert [(each.level, each.fix) for each in notes] == [(Level.NOTE, f"chmod 0700 {data}")] * told


@pytest.mark.parametrize(
    ("machine", "area", "level", "fix"),
    [
        (replace(GOOD, clock=lambda: 0.0), "clock", Level.FAULT, "timedatectl set-ntp true"),
        (replace(GOOD, synchronised=lambda: False), "clock", Level.NOTE, "timesyncd.conf"),
        (replace(GOOD, free_bytes=lambda _: 1024**2), "disk", Level.FAULT, "journalctl --vacuum"),
        (replace(GOOD, user_id=lambda: 0), "permissions", Level.NOTE, "sudo -u headway"),
        (GOOD, "runtime", Level.NOTE, "apt-get install python3-libnvinfer"),
    ],
    ids=["1970", "unsynchronised", "full", "root", "no-tensorrt"],
)
def test_a_machine_that_is_not_well_is_told_what_to_do(
    images: Path, bundle: Bundle, machine: Machine, area: str, level: Level, fix: str
) -> None:
    found = [each for each in examine(site_file(images, bundle), machine) if each.area == area]
    assert any(each.level is level and fix in each.fix for each in found), found


def test_a_watched_folder_that_may_not_be_emptied_is_a_fault(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the answer is given for it."""
    file, may = site_file(images, bundle), os.access
    text = file.read_text()
    file.write_text(text.replace('kind = "folder"', 'kind = "watch"\ndelete = true'))
    assert not [each for each in examine(file, NOTHING_COMES) if "delete" in each.what]
    monkeypatch.setattr(
        os, "access", lambda path, how, **more: Path(path).name != "images" and may(path, how, **more)
    )
    (found,) = [each for each in examine(file, NOTHING_COMES) if "delete" in each.what]
    assert (found.area, found.level) == ("permissions", Level.FAULT)
    assert "delete = false" in found.fix
    file.write_text(file.read_text().replace("delete = true", "delete = false"))
    assert not [each for each in examine(file, NOTHING_COMES) if "delete" in each.what]


@pytest.mark.parametrize(("names", "odd"), [("{part}_top.png", False), ("{part}_side.png", True)])
def test_names_of_a_watched_folder_that_tell_no_part_are_noted(
    tmp_path: Path, bundle: Bundle, names: str, odd: bool
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "4711_top.png").write_bytes(picture("pit", 0))
    file = site_file(folder, bundle)
    file.write_text(file.read_text().replace('kind = "folder"', f'kind = "watch"\nnames = "{names}"'))
    found = [each for each in examine(file, NOTHING_COMES) if "tell no part" in each.what]
    assert [(each.area, each.level) for each in found] == [("camera", Level.NOTE)] * odd
    assert all("4711_top.png: its name is not like" in each.what for each in found)


def test_a_data_folder_that_is_missing_is_noted(images: Path, bundle: Bundle) -> None:
    """The agent makes it where it may; under systemd it may not."""
    found = [each for each in examine(site_file(images, bundle), GOOD) if "is not there" in each.what]
    assert [(each.level, "install -d" in each.fix) for each in found] == [(Level.NOTE, True)]


def test_the_release_of_a_restored_device_is_looked_at_before_it_has_run(images: Path, bundle: Bundle) -> None:
    """It was said that there is none yet: nothing had made the link to it."""
    old, release = images.parent / "old", id_of(bundle)
    with Store.open(old, "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        store.updates.put(replace(store.updates.begin(release, b"{}"), state=UpdateState.COMMITTED))
    shutil.copytree(bundle.path, old / "slots" / release)
    make_backup(old, images.parent / "backup")
    restore_backup(images.parent / "backup", images.parent / "data", "line-1", in_fleet=False)
    file = site_file(images, bundle)
    file.write_text(file.read_text().replace(f'bundle = "{bundle.path}"\n', ""))
    told = next(each for each in examine(file, GOOD) if each.area == "release")
    assert (told.level, "golden scores off by 0.0" in told.what) == (Level.GOOD, True)


def test_tensorrt_that_is_insisted_on_and_missing_is_a_fault(images: Path, bundle: Bundle) -> None:
    file = site_file(images, bundle)
    write_site('[runtime]\ntensorrt = "on"\n')(file, bundle, images)
    assert [each.area for each in faults(file)] == ["runtime"]


def test_a_port_in_use_is_a_fault(images: Path, bundle: Bundle) -> None:
    file = site_file(images, bundle)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file.write_text(file.read_text().replace("port = 0", f"port = {port}"))
        (found,) = faults(file)
    assert (found.area, f"sport = :{port}" in found.fix) == ("page", True)


@pytest.mark.parametrize(
    ("settings", "level"), [("", Level.NOTE), ("[camera.picture]\nblack_share = 0\n", Level.GOOD)]
)
def test_a_picture_that_would_reject_its_part_is_noted(
    tmp_path: Path, bundle: Bundle, settings: str, level: Level
) -> None:
    """As the agent judges it: a hot pixel behind a lens cap, and a line whose pictures are dark by design."""
    folder = tmp_path / "images"
    folder.mkdir()
    dark = np.full((64, 64, 3), 9, np.uint8)
    dark[0, 0] = 200
    (folder / "1.png").write_bytes(cv2.imencode(".png", dark)[1].tobytes())
    file = site_file(folder, bundle)
    file.write_text(file.read_text().replace("[page]", f"{settings}[page]"))
    (found,) = [each for each in examine(file, GOOD) if each.area == "camera"]
    assert (found.level, "the picture is black" in found.what) == (level, level is Level.NOTE)


def test_a_running_agent_is_asked_and_not_disturbed(images: Path, bundle: Bundle) -> None:
    file = site_file(images, bundle)
    with Agent(site_of(images, bundle.path)) as agent, running(agent):
        wait_for(lambda: agent.state().camera.state == "ended")
        found = list(examine(file, GOOD))
        assert [each for each in found if each.level is Level.FAULT] == []
        assert any("the agent runs and answers" in each.what for each in found)
        assert any("the agent has it open" in each.what for each in found)
        assert agent.state().errors == 0


def test_labels_of_other_classes_than_a_bundle_s_of_these_names_are_a_fault_before_it_serves(
    images: Path, bundle: Bundle, tmp_path: Path
) -> None:
    file = site_file(images, bundle)
    (images / "0.png").write_bytes(picture("good", 900))
    good = sample_id(picture("good", 900))
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        agent.station.require().learner.label(good, class_id("good"), "anna")
        wait_for(lambda: agent.state().own_labels == 1)
        assert not faults(file)
    assert not faults(file)
    other = tiny_bundle(tmp_path / "other", id_of=other_id)
    file.write_text(file.read_text().replace(f'"{bundle.path}"', f'"{other.path}"'))
    (fault,) = faults(file)
    twin = f"good ({class_id('good').hex()[:6]})"
    assert fault.what == f"1 label is of {twin!r}, another class than this release's 'good'"
    assert "--classes-from" in fault.fix
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        (told,) = faults(file)
        assert fault.what in told.what
        assert "--classes-from" in told.what


def test_pictures_that_cannot_be_read_are_a_fault_for_as_long_as_they_are_news(
    images: Path, bundle: Bundle
) -> None:
    (images / "0-bad.png").write_bytes(b"no image")
    file = site_file(images, bundle)
    (before,) = [each for each in examine(file, GOOD) if "bad file" in each.what]
    assert (before.area, before.level, "1 bad file, which" in before.what) == ("camera", Level.NOTE, True)
    assert "0-bad.png: not a JPEG" in before.what
    with Agent(site_of(images, bundle.path)) as agent, running(agent):
        wait_for(lambda: agent.state().camera.state == "ended")
        (found,) = faults(file)
        assert (found.area, "1 bad file; the newest: 0-bad.png: not a JPEG" in found.what) == ("camera", True)
        agent.sources[0].camera.tally.unreadable_s -= UNREADABLE_S
        (found,) = [each for each in examine(file, GOOD) if each.area == "camera"]
        assert (found.level, found.what.endswith(", 1 bad file")) == (Level.NOTE, True)


# The outputs


def with_outputs(file: Path, *ports: int) -> Path:
    http, modbus = ports
    file.write_text(
        f'{file.read_text()}[[output]]\nkind = "http"\nurl = "http://127.0.0.1:{http}/parts"\n'
        f'[[output]]\nkind = "modbus"\nhost = "127.0.0.1"\nport = {modbus}\npass_coil = 0\n'
    )
    return file


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_an_output_that_is_away_is_a_fault_and_one_that_is_there_is_sent_nothing(
    images: Path, bundle: Bundle
) -> None:
    pytest.importorskip("pymodbus", reason="needs the extra modbus")
    with socket.create_server(("127.0.0.1", 0)) as plc:
        port = plc.getsockname()[1]
        found = list(examine(with_outputs(site_file(images, bundle), free_port(), port), GOOD))
        away, there = [each for each in found if each.area == "output"]
        assert (away.level, away.what.endswith("refused")) == (Level.FAULT, True), away
        assert (there.level, there.what) == (
            Level.GOOD,
            f"modbus 127.0.0.1:{port} takes connections; nothing was sent",
        )
        link, _ = plc.accept()
        with link:
            assert link.recv(1) == b""


def test_a_running_agents_outputs_are_told_with_what_is_wrong(images: Path, bundle: Bundle) -> None:
    pytest.importorskip("pymodbus", reason="needs the extra modbus")
    file = with_outputs(site_file(images, bundle), free_port(), free_port())
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: len(agent.state().faults) == 2 and agent.state().camera.state == "ended")
        wait_for(lambda: agent.state().frames == COUNT)
        http, modbus = faults(file)
    assert [http.area, modbus.area] == ["output", "output"]
    assert http.what.startswith("http 127.0.0.1: 0 delivered, 0 not delivered,")
    assert "refused" in http.what
    assert modbus.what.endswith(": no connection")


# The broker


def with_broker(file: Path, port: int) -> Path:
    file.write_text(f'{file.read_text()}[mqtt]\nhost = "127.0.0.1"\nport = {port}\n')
    return file


def test_no_broker_is_a_fault(images: Path, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (found,) = faults(with_broker(site_file(images, bundle), port))
    assert found.area == "broker"
    assert "refused" in found.what


@pytest.mark.broker
def test_a_broker_as_we_configure_it_is_good(images: Path, bundle: Bundle, mosquitto: Mosquitto) -> None:
    found = list(examine(with_broker(site_file(images, bundle), mosquitto.port), GOOD))
    broker = [each for each in found if each.area == "broker"]
    assert [each.level for each in broker] == [Level.GOOD, Level.GOOD], broker


def careless(folder: Path, edit: str) -> Path:
    """Return a Mosquitto whose settings are changed by a sed command before it reads them."""
    binary = folder / "mosquitto"
    binary.write_text(f'#!/bin/sh\nsed -i \'{edit}\' "$2"\nexec {find_mosquitto()} "$@"\n')
    binary.chmod(0o755)
    return binary


@pytest.mark.broker
@pytest.mark.parametrize(
    ("edit", "fix"),
    [
        ("/set_tcp_nodelay/d", "set_tcp_nodelay true"),
        ("$ a retain_available false", "retain_available true"),
        ("s/^max_packet_size .*/max_packet_size 20000/", "max_packet_size"),
    ],
    ids=["nagle", "no-retain", "small-packets"],
)
def test_a_broker_that_would_hurt_is_a_fault_with_the_line_to_write(
    images: Path, bundle: Bundle, tmp_path: Path, edit: str, fix: str
) -> None:
    with Mosquitto(binary=careless(tmp_path, edit)) as broker:
        file = with_broker(site_file(images, bundle), broker.port)
        # What is told by its timing may need another look on a machine as busy as one that tests.
        until = time.monotonic() + 60
        while not (seen := faults(file)) and time.monotonic() < until:
            pass
        (found,) = seen
    assert found.area == "broker"
    assert fix in found.fix


# Signatures and certificates


def enrolled(images: Path, bundle: Bundle, *, now: datetime) -> Path:
    """Return a device's settings with what enrolment at that time writes."""
    file = site_file(images, bundle)
    Authority.create(file.parent / "tls", ["127.0.0.1"], clock=lambda: now)
    made = Authority(file.parent / "tls", clock=lambda: now).enroll("line-1")
    (file.parent / "device.pem").write_bytes(made.certificates[0])
    (file.parent / "device.key").write_bytes(made.key)
    (file.parent / "device.key").chmod(0o600)
    Repository.create(file.parent / "trust", file.parent / "keys", clock=lambda: now)
    root = "trust/1.root.json"
    file.write_text(
        file.read_text()
        + '[mqtt]\nhost = "127.0.0.1"\nport = 9\nca_file = "tls/ca.pem"\ncert_file = "device.pem"\n'
        + f'key_file = "device.key"\n[trust]\nroot = "{root}"\n'
    )
    return file


@pytest.mark.parametrize(
    ("age_days", "level"), [(0, Level.GOOD), (5 * 366 - 30, Level.NOTE), (5 * 366 + 1, Level.FAULT)]
)
def test_a_certificate_that_ends_is_told_in_time(
    images: Path, bundle: Bundle, age_days: int, level: Level
) -> None:
    now = datetime.fromtimestamp(NOW, timezone.utc) - timedelta(days=age_days)
    found = [each for each in examine(enrolled(images, bundle, now=now), GOOD) if each.area == "trust"]
    assert [each.level for each in found] == [Level.GOOD, level, level, Level.GOOD]
    assert found[0].what == "signed releases only, by root version 1"
    assert found[1].what.startswith("the root of signatures")
    if level is not Level.GOOD:
        assert "headway fleet keys renew --dir FLEET --keys KEYS" in found[1].fix
        assert "headway fleet renew line-1 --dir FLEET --out renewed" in found[2].fix


@pytest.mark.parametrize(
    ("later_days", "level"), [(0, Level.GOOD), (3 * 366 - 30, Level.NOTE), (3 * 366 + 1, Level.FAULT)]
)
def test_the_end_of_the_signatures_that_it_has_accepted_is_told_too(
    images: Path, bundle: Bundle, later_days: int, level: Level
) -> None:
    """Whether or not an agent has the store open."""
    now = datetime.fromtimestamp(NOW, timezone.utc)
    file = enrolled(images, bundle, now=now)
    site = load_site(file)
    trust = file.parent / "trust"
    later = replace(GOOD, clock=lambda: NOW + later_days * 86_400.0)
    with Store.open(site.data_dir, "line-1") as store:
        gate = Gate(store, trust / "1.root.json", channel="default", start=lambda _d: None, clock=lambda: NOW)
        gate.receive(Repository(trust, clock=lambda: now).message())
        found = [each for each in examine(file, later) if each.area == "trust"]
    targets = next(each for each in found if each.what.startswith("the signature of the releases"))
    assert targets.level is level
    assert sum(each.what.startswith("the signature that nothing newer exists") for each in found) == 1


def test_a_device_without_a_root_is_told_that_it_takes_anything(images: Path, bundle: Bundle) -> None:
    file = with_broker(site_file(images, bundle), 9)
    (found,) = [each for each in examine(file, GOOD) if each.area == "trust"]
    assert found.level is Level.NOTE
    assert found.what.startswith("unsigned")


def test_a_root_that_is_none_is_a_fault(images: Path, bundle: Bundle) -> None:
    file = enrolled(images, bundle, now=datetime.fromtimestamp(NOW, timezone.utc))
    (file.parent / "trust" / "1.root.json").write_text("{}")
    assert "not TUF metadata" in next(each.what for each in faults(file) if each.area == "trust")


# The command


def test_the_command_ends_with_1_where_something_is_to_fix(images: Path, bundle: Bundle) -> None:
    file = site_file(images, bundle)
    well = CliRunner().invoke(doctor, [str(file), "--json"])
    assert (well.exit_code, json.loads(well.output)["faults"]) == (0, 0)
    empty_folder(file, bundle, images)
    ill = CliRunner().invoke(doctor, [str(file)])
    assert ill.exit_code == FAULT_EXIT
    assert "-> Put images there" in ill.output
    assert ill.output.endswith("1 to fix\n")


def test_its_colours_are_for_terminals_and_never_shown_as_text(tmp_path: Path) -> None:
    missing = tmp_path / "si\x1b[2Jte.toml"
    command = [sys.executable, "-m", "sdk.cli", "doctor", str(missing)]
    piped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert piped.returncode == FAULT_EXIT, piped.stderr
    assert "\ngood  runtime" in piped.stdout
    assert piped.stdout.startswith("fault settings")
    assert "\x1b" not in piped.stdout
    assert "\\x1b" not in piped.stdout.replace("si\\x1b[2Jte.toml", ""), "but what a name brings"
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        on_terminal = terminal_output(ours)
    assert "\x1b[32mgood \x1b[0m runtime" in on_terminal
    assert "\x1b[31mfault\x1b[0m settings" in on_terminal
    assert "\x1b[2J" not in on_terminal
    assert process.returncode == FAULT_EXIT


def terminal_output(terminal: int) -> str:
    """Return what is written to a terminal until nobody has it open any more."""
    found = b""
    with open(terminal, "rb", buffering=0) as stream, contextlib.suppress(OSError):  # EIO is its end
        while more := stream.read(4096):
            found += more
    return found.decode()
