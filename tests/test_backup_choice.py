"""What people chose on the page comes back with a backup: else a restored station would pass what it rejected."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from device_agent.accepting import KEPT_AS
from device_agent.backup import make_backup, restore_backup
from device_agent.report import OPERATING_LOST
from device_agent.store import STORE_NAME, read_kept
from sdk.bundle import Bundle
from tests.commands import headway
from tests.pages import Device, serving, write_stream
from tests.tiny import class_id, tiny_bundle

CHOSEN: Final = {"good": [class_id("good").hex()], "escape_rate": 0.0, "by_threshold": True}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("choice") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("choice") / "stream", {"rings": 2})


@pytest.fixture
def chosen(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    """A device on whose page somebody chose what is rejected, and put a class away."""
    with serving(tmp_path / "data", stream, bundle) as device:
        sent(device, "PUT", "/api/operating", CHOSEN)
        scribble = sent(device, "POST", "/api/classes", {"name": "scribble"})["class_id"]
        sent(device, "PUT", f"/api/classes/{scribble}/put-away", {"put_away": True})
        yield device


def sent(device: Device, method: str, path: str, body: dict[str, Any]) -> Any:
    return device.http.request(method, path, json=body).raise_for_status().json()


def operating(device: Device) -> dict[str, Any]:
    """Return what is chosen on a device's page, as it was put."""
    said = device.http.get("/api/operating").raise_for_status().json()
    assert said["chosen"], "nobody chose"
    return {name: said[name] for name in CHOSEN}


def put_away(device: Device) -> list[str]:
    return [each["name"] for each in device.http.get("/api/classes").json() if each["put_away"]]


def told(device: Device) -> bool:
    """Return whether the state says that nobody knows what is to be rejected."""
    return OPERATING_LOST in device.state()["faults"]


def without_a_choice(store: Path) -> None:
    """Make a store one of before it kept what people chose."""
    with contextlib.closing(sqlite3.connect(store)) as db:
        db.execute("DELETE FROM meta WHERE key = ?", (f"kept/{KEPT_AS}",))
        db.commit()


def site_of(folder: Path, data_dir: str) -> Path:
    site = folder / "site.toml"
    text = f'device = "line-1"\ndata_dir = "{data_dir}"\n[camera]\nkind = "opencv"\nindex = 0\n'
    site.write_text(text)
    return site


def test_a_restored_device_rejects_what_it_rejected(
    chosen: Device, tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    make_backup(tmp_path / "data", tmp_path / "backup")  # while it runs
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    for _ in range(2):  # and after a restart
        with serving(tmp_path / "new", stream, bundle) as restored:
            assert operating(restored) == CHOSEN
            assert put_away(restored) == ["scribble"]
            assert not told(restored)


@pytest.mark.usefixtures("chosen")
def test_a_backup_that_does_not_say_it_is_a_fault_until_somebody_chooses(
    tmp_path: Path, bundle: Bundle, stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_a_choice(tmp_path / "data" / STORE_NAME)
    make_backup(tmp_path / "data", tmp_path / "backup")
    restored = headway(capsys, "agent", "restore", site_of(tmp_path, "new"), tmp_path / "backup")
    assert (restored.code, "choose it again" in restored.err) == (0, True)
    for _ in range(2):
        with serving(tmp_path / "new", stream, bundle) as device:
            assert told(device)
    with serving(tmp_path / "new", stream, bundle) as device:
        sent(device, "PUT", "/api/operating", CHOSEN)
        assert not told(device)
        make_backup(tmp_path / "new", tmp_path / "second")
    with serving(tmp_path / "new", stream, bundle) as device:
        assert (operating(device), told(device)) == (CHOSEN, False)
    again = headway(capsys, "agent", "restore", site_of(tmp_path, "third"), tmp_path / "second")
    assert (again.code, "choose it again" in again.err) == (0, False)


def test_where_nobody_ever_chose_there_is_nothing_to_tell(
    tmp_path: Path, bundle: Bundle, stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "data", stream, bundle):
        make_backup(tmp_path / "data", tmp_path / "backup")
    restored = headway(capsys, "agent", "restore", site_of(tmp_path, "new"), tmp_path / "backup")
    assert (restored.code, restored.err) == (0, ""), "nor is the folder for pictures, empty as it is"
    with serving(tmp_path / "new", stream, bundle) as device:
        assert not device.http.get("/api/operating").json()["chosen"]
        assert not told(device)


def test_a_store_that_says_nothing_of_it_learns_it_at_the_next_start(
    tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    """As after an update of Headway, and where an older one ran in between."""
    with serving(tmp_path / "data", stream, bundle) as device:
        sent(device, "PUT", "/api/operating", CHOSEN)
    without_a_choice(tmp_path / "data" / STORE_NAME)
    with serving(tmp_path / "data", stream, bundle):
        make_backup(tmp_path / "data", tmp_path / "backup")
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    with serving(tmp_path / "new", stream, bundle) as restored:
        assert operating(restored) == CHOSEN


def test_the_choice_outlasts_the_pages_own_file(tmp_path: Path, bundle: Bundle, stream: Path) -> None:
    """Where that is damaged people are told to move it away."""
    with serving(tmp_path / "data", stream, bundle) as device:
        sent(device, "PUT", "/api/operating", CHOSEN)
    shutil.rmtree(tmp_path / "data" / "page")
    with serving(tmp_path / "data", stream, bundle) as device:
        assert operating(device) == CHOSEN


@pytest.mark.parametrize(
    "value",
    [b'{"\xff": 1}', b"\xff", b"{}x", b'{"good": ["rings"]}', b'{"escape_rate": 2}', b'{"release": "\xff"}'],
)
@pytest.mark.usefixtures("chosen")
def test_a_choice_that_cannot_be_one_is_told_and_nothing_falls(
    tmp_path: Path, bundle: Bundle, stream: Path, value: bytes
) -> None:
    """Whoever may write to a backup may write anything."""
    make_backup(tmp_path / "data", tmp_path / "backup")
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "new" / STORE_NAME)) as db:
        for name in ("operating", "operating-threshold", "classes"):
            db.execute("REPLACE INTO meta VALUES (?, ?)", (f"kept/{name}", value))
        db.commit()
    with serving(tmp_path / "new", stream, bundle) as device:
        assert told(device)
        assert put_away(device) == []
        sent(device, "PUT", "/api/operating", CHOSEN)
        assert not told(device)


def test_where_nobody_chose_a_version_of_before_can_read_that(
    tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    for _ in range(2):
        with serving(tmp_path / "data", stream, bundle):
            pass
    assert read_kept(tmp_path / "data" / STORE_NAME, KEPT_AS) == b"{}"
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "page" / "page.sqlite3")) as db:
        assert db.execute("SELECT value FROM settings WHERE key = ?", (KEPT_AS,)).fetchone() == ("{}",)
