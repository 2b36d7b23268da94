"""What root makes in a data folder is the agent's user's; what is not is named, with the command that mends it."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.backup import make_backup
from device_agent.database import disk
from device_agent.doctor import examine
from device_agent.page.book import open_book
from device_agent.store import STORE_NAME, Store
from sdk.bundle import Bundle
from sdk.errors import StoreFull
from sdk.finding import Finding
from sdk.owners import given_to_owner
from tests.commands import headway
from tests.other_users import AGENT, as_user, device, needs_root
from tests.test_agent import bundle, images, site_file
from tests.test_doctor import GOOD
from tests.test_store import LIMITS, image_of, label, sample_of

__all__ = ["bundle", "device", "images"]


def owners(folder: Path) -> set[int]:
    return {each.lstat().st_uid for each in (folder, *folder.rglob("*"))}


@needs_root
@pytest.mark.parametrize("there", [True, False])
def test_what_root_restores_is_the_agents_and_opens(
    device: Path, tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path / "old", "line-1", limits=LIMITS) as store:
        store.samples.put(sample_of(1), image_of(1))
        label(store, sample_of(1))
    make_backup(tmp_path / "old", tmp_path / "backup")
    if there:
        (device / "data").mkdir()
        os.chown(device / "data", AGENT, AGENT)
    assert headway(capsys, "agent", "restore", device / "site.toml", tmp_path / "backup").code == 0
    assert owners(device / "data") == {AGENT}
    with as_user(AGENT), Store.open(device / "data", "line-1", limits=LIMITS) as store:
        assert store.samples.image(sample_of(1).sample_id) == image_of(1)


@needs_root
def test_the_first_account_that_root_makes_is_in_a_folder_of_the_agents(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (device / "secret").write_text("correct horse battery\n")
    add = ("agent", "user", "add", device / "site.toml", "Ann", "--role", "admin")
    assert headway(capsys, *add, "--secret-file", device / "secret").code == 0
    assert owners(device / "data") == {AGENT}
    with as_user(AGENT):
        open_book(device / "data").close()


@needs_root
def test_only_what_is_roots_and_lies_nowhere_else_is_given(device: Path) -> None:
    elsewhere = device / "elsewhere"
    elsewhere.write_text("root's own")
    data = device / "data"
    with given_to_owner(data):
        data.mkdir()
        os.link(elsewhere, data / "hard")
        os.symlink(elsewhere, data / "soft")
        (data / "others").write_text("")
        os.chown(data / "others", 54321, 54321)
    assert data.stat().st_uid == AGENT
    assert elsewhere.stat().st_uid == 0
    assert (data / "others").stat().st_uid == 54321


@needs_root
def test_in_a_folder_of_roots_nothing_changes_hands(device: Path) -> None:
    os.chown(device, 0, 0)
    with given_to_owner(device / "data"):
        (device / "data").mkdir()
    assert owners(device / "data") == {0}


@needs_root
@pytest.mark.parametrize("what", [STORE_NAME, "store.lock", "."])
def test_a_start_that_is_denied_names_the_file_and_its_owner(device: Path, what: str) -> None:
    data = device / "data"
    Store.open(data, "line-1", limits=LIMITS).close()
    shutil.chown(data, AGENT, AGENT)
    for each in data.rglob("*"):
        os.chown(each, AGENT, AGENT)
    os.chown(data / what, 0, 0)
    (data / what).chmod(0o600)
    with as_user(AGENT), pytest.raises(StoreFull) as refused:
        Store.open(data, "line-1", limits=LIMITS)
    assert f"{data / what} belongs to root, and {AGENT} may not use it" in str(refused.value)
    assert refused.value.hint.startswith(f"sudo chown -R {AGENT} '{data}'")
    assert "restart" not in refused.value.hint


@pytest.mark.parametrize(("opening", "says"), [(True, "then start it again"), (False, "no restart is needed")])
def test_only_what_goes_on_says_that_no_restart_is_needed(tmp_path: Path, opening: bool, says: str) -> None:
    with pytest.raises(StoreFull, match="the disk is full") as refused, disk(tmp_path, opening=opening):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert says in refused.value.hint


def permissions(file: Path, user: int) -> list[Finding]:
    return [
        each
        for each in examine(file, replace(GOOD, user_id=lambda: user, camera_wait_s=0.5))
        if each.area == "permissions"
    ]


@needs_root
def test_the_doctor_finds_what_the_agent_may_not_use_however_deep(images: Path, bundle: Bundle) -> None:
    data = images.parent / "data"
    (data / "page").mkdir(parents=True)
    for name in ("page.sqlite3", "store.lock"):
        (data / "page" / name).write_text("")
        (data / "page" / name).chmod(0o600)
    for each in (data, data / "page"):
        os.chown(each, AGENT, AGENT)
    file = site_file(images, bundle)
    told = [each for each in permissions(file, 0) if "belong" in each.what]
    assert len(told) == 1
    assert f"and 1 more belong to root: {AGENT} may not use them" in told[0].what
    assert told[0].fix == f"sudo chown -R {AGENT} {data}"
    for name in ("page.sqlite3", "store.lock"):
        os.chown(data / "page" / name, AGENT, AGENT)
    assert not [each for each in permissions(file, 0) if "belong" in each.what]


@needs_root
def test_the_doctor_of_the_agents_user_looks_through_a_folder_of_roots(device: Path) -> None:
    data = device / "data"
    Store.open(data, "line-1", limits=LIMITS).close()
    data.chmod(0o700)
    with as_user(AGENT):
        found = permissions(device / "site.toml", AGENT)
    assert [each.fix for each in found] == [f"sudo chown -R {AGENT} '{data}'"]
