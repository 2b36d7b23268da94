"""A command that makes certificates and cannot write them leaves nothing in the way of the same command again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509

from device_agent.site_file import load_site
from sdk.fleet.certificates import Authority
from sdk.fleet.cli_enroll import tls_folder
from sdk.fleet.enrolment import read_place
from tests.commands import headway
from tests.disks import fill, small

__all__ = ["small"]

PAGE_BYTES = 4096
ENROLLED = ["ca.pem", "device-chunks.pem", "device-trigger.pem", "device.key", "device.pem", "site.toml"]


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    directory = tmp_path / "fleet"
    assert headway(capsys, "fleet", "tls", "--dir", directory, "--host", "127.0.0.1").code == 0
    return directory


def leave(folder: Path, files: int) -> Path:
    """Fill a disk but for room for so many small files; return what fills it."""
    hog = fill(folder)
    os.truncate(hog, hog.stat().st_size - files * PAGE_BYTES)
    return hog


@pytest.mark.parametrize("room_for", range(len(ENROLLED)))
def test_a_full_stick_enrols_nobody_and_the_same_command_does_once_it_has_space(
    small: Path, fleet: Path, capsys: pytest.CaptureFixture[str], room_for: int
) -> None:
    hog = leave(small, room_for)
    enrol = ("fleet", "enroll", "line-8", "--dir", fleet, "--out", small / "line-8")
    failed = headway(capsys, *enrol)
    assert failed.code == 2
    assert f"error: {small / 'line-8'}: No space left on device\n" in failed.err
    assert [file.name for file in small.iterdir()] == [hog.name]
    assert "line-8" not in read_place(tls_folder(fleet)).channels
    assert "line-8" not in (tls_folder(fleet) / "acl").read_text()
    hog.unlink()
    assert headway(capsys, *enrol).code == 0
    assert sorted(file.name for file in (small / "line-8").iterdir()) == ENROLLED
    assert load_site(small / "line-8" / "site.toml").device == "line-8"


def test_what_was_on_a_stick_that_failed_counts_for_nobody(
    small: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may still be read off it."""
    leave(small, 5)
    headway(capsys, "fleet", "enroll", "line-8", "--dir", fleet, "--out", small / "line-8")
    assert len(Authority(tls_folder(fleet)).revoked()) == 3


def test_a_path_that_can_be_no_folder_enrols_nobody(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").write_text("in the way")
    failed = headway(capsys, "fleet", "enroll", "line-9", "--dir", fleet, "--out", tmp_path / "afile" / "line-9")
    assert failed.code == 2
    assert f"error: {tmp_path / 'afile'}" in failed.err
    assert headway(capsys, "fleet", "enroll", "line-9", "--dir", fleet, "--out", tmp_path / "line-9").code == 0


def test_what_a_killed_command_left_is_not_in_the_way(
    tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".line-9.partial").mkdir()
    (tmp_path / ".line-9.partial" / "device.key").write_text("half a key")
    assert headway(capsys, "fleet", "enroll", "line-9", "--dir", fleet, "--out", tmp_path / "line-9").code == 0
    assert sorted(file.name for file in (tmp_path / "line-9").iterdir()) == ENROLLED
    assert not (tmp_path / ".line-9.partial").exists()


def test_certificates_that_were_not_written_are_not_taken_for_renewed(
    small: Path, tmp_path: Path, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the fleet would no longer say that the device's own are about to end."""
    headway(capsys, "fleet", "enroll", "line-1", "--dir", fleet, "--out", tmp_path / "line-1")
    kept = tls_folder(fleet) / "issued" / "line-1.pem"
    before = kept.read_bytes()
    hog = leave(small, 2)
    renew = ("fleet", "renew", "line-1", "--dir", fleet, "--out", small / "renewed")
    failed = headway(capsys, *renew)
    assert failed.code == 2
    assert f"error: {small / 'renewed'}: No space left on device\n" in failed.err
    assert kept.read_bytes() == before
    hog.unlink()
    assert headway(capsys, *renew).code == 0
    assert len(x509.load_pem_x509_certificates(kept.read_bytes())) == 6


@pytest.mark.parametrize("room_for", [0, 1, 2, 4, 7])
def test_a_full_disk_makes_no_authority_and_the_same_command_does_once_it_has_space(
    small: Path, capsys: pytest.CaptureFixture[str], room_for: int
) -> None:
    hog = leave(small, room_for)
    make = ("fleet", "tls", "--dir", small / "fleet", "--host", "127.0.0.1")
    failed = headway(capsys, *make)
    assert failed.code == 2
    assert f"error: {small / 'fleet' / 'tls'}" in failed.err
    assert "No space left on device" in failed.err
    hog.unlink()
    assert headway(capsys, *make).code == 0
