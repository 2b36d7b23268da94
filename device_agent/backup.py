"""A device's labels in another place, and back again: `headway agent backup` and `restore`.

A backup is a directory: `store.sqlite3`, the labelled pictures under `images/`, the release in service under
`slots/`, and `backup.json`, which is written last. It is taken with SQLite's online backup while the agent runs.

A restored store is an old copy of its log, and the fleet may hold later entries. So it takes no label until it has
heard from the fleet once (`LabelLog.append`): writing on from the old end would make two logs of one device.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from device_agent.database import disk, read_uri
from device_agent.label_log import AWAIT_FLEET
from device_agent.sample import SampleStatus
from device_agent.samples import IMAGES_NAME
from device_agent.store import STORE_NAME, StoreFacts, check_store
from sdk.bundle import Bundle
from sdk.durable import sync_path
from sdk.errors import BundleError, ConfigError, StoreCorrupt

BACKUP_NAME: Final = "backup.json"
FORMAT: Final = 1
SLOTS_NAME: Final = "slots"
_BLOCK: Final = 1024 * 1024


class BackupFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in `backup.json`.

    Attributes:
        format: Of the backup.
        device: Whose it is.
        made_utc: Seconds since 1970.
        entries: Of the device's own log.
        labelled: Samples with a label.
        images: Their pictures in the backup.
        release: The release that served; empty where none did, or it was no slot.
        store_sha256: Of `store.sqlite3`.
    """

    format: int
    device: str
    made_utc: float
    entries: int
    labelled: int
    images: int
    release: str
    store_sha256: str


def make_backup(data_dir: Path, target: Path, *, clock: Callable[[], float] = time.time) -> BackupFacts:
    """Copy what a device cannot get back from anywhere else; return what was copied.

    Args:
        data_dir: The agent's data folder; the agent may run.
        target: The backup, which must not exist.
        clock: UTC seconds.

    Raises:
        ConfigError: the target exists, or there is no store.
        StoreCorrupt: the store is damaged: an older backup is better than this one.
        StoreFull: the target takes no writes.
    """
    store = data_dir / STORE_NAME
    if target.exists():
        raise ConfigError(f"{target} exists", hint="Name a new folder for each backup, such as backup-2026-05-01.")
    if not store.exists():
        raise ConfigError(f"there is no store in {data_dir}", hint="Has the agent run with this site.toml yet?")
    draft = target.with_name(f"{target.name}.partial")
    with disk(target.parent):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _copy_store(store, draft / STORE_NAME)
        images = _copy_images(data_dir, draft)
        release = _copy_release(data_dir, draft)
        facts = check_store(draft / STORE_NAME, whole=True)
        made = BackupFacts(
            format=FORMAT,
            device=facts.device,
            made_utc=clock(),
            entries=facts.entries,
            labelled=facts.labelled,
            images=images,
            release=release,
            store_sha256=_digest(draft / STORE_NAME),
        )
        (draft / BACKUP_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1))
        for path in sorted(draft.rglob("*")):
            sync_path(path)
        sync_path(draft)
        draft.rename(target)
        sync_path(target.resolve().parent)
    return made


def restore_backup(backup: Path, data_dir: Path, device: str, *, in_fleet: bool) -> BackupFacts:
    """Make a data folder from a backup; return what is in it.

    Args:
        backup: The directory that `make_backup` wrote.
        data_dir: The data folder to make; must not exist, or be empty.
        device: The device's id by its settings.
        in_fleet: It has a broker: it must hear from its fleet before it takes labels.

    Raises:
        ConfigError: the data folder holds something, or the backup is another device's.
        StoreCorrupt: the backup is damaged or none.
        StoreFull: the disk takes no writes.
    """
    facts = read_backup(backup)
    if facts.device != device:
        raise ConfigError(
            f"{backup} is of device {facts.device!r}, not of {device!r}",
            hint="Two devices must never write one log: set device, or take that device's own backup.",
        )
    with disk(data_dir.parent):
        if data_dir.exists() and any(data_dir.iterdir()):
            raise ConfigError(
                f"{data_dir} is not empty",
                hint=f"Stop the agent and move it away first: mv {data_dir} {data_dir}.old",
            )
        draft = data_dir.with_name(f"{data_dir.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(backup, draft, ignore=shutil.ignore_patterns(BACKUP_NAME))
        found = check_store(draft / STORE_NAME, whole=True)
        _check_whole(backup, facts, found)
        _settle(draft / STORE_NAME, in_fleet=in_fleet)
        for path in sorted(draft.rglob("*")):
            sync_path(path)
        if data_dir.exists():
            data_dir.rmdir()
        draft.rename(data_dir)
        sync_path(data_dir.resolve().parent)
    return facts


def read_backup(backup: Path) -> BackupFacts:
    """Return what a backup says of itself, after its store's digest was found right.

    Raises:
        StoreCorrupt: it is damaged, unfinished or none.
    """
    try:
        facts = msgspec.json.decode((backup / BACKUP_NAME).read_bytes(), type=BackupFacts)
        digest = _digest(backup / STORE_NAME)
    except (OSError, msgspec.MsgspecError) as error:
        raise _no_backup(f"{backup} is no backup: {str(error)[:120]}") from error
    if facts.format != FORMAT:
        raise _no_backup(f"{backup} has format {facts.format}, this Headway knows {FORMAT}")
    if digest != facts.store_sha256:
        raise _no_backup(f"{backup / STORE_NAME} is not what {BACKUP_NAME} says")
    return facts


def _no_backup(what: str) -> StoreCorrupt:
    return StoreCorrupt(
        what, hint="Use another backup, or start empty: the device fetches its log from the fleet."
    )


def _check_whole(backup: Path, facts: BackupFacts, found: StoreFacts) -> None:
    lost = facts.labelled - facts.images
    if found.entries != facts.entries or found.labelled != facts.labelled or (found.lost or 0) > lost:
        raise _no_backup(f"{backup} holds {found}, not what {BACKUP_NAME} says")


def _copy_store(source: Path, target: Path) -> None:
    # All pages in one step: it reads one moment of the log-structured file, and a writer need not wait for it.
    reader = sqlite3.connect(read_uri(source), uri=True)
    try:
        writer = sqlite3.connect(target)
        try:
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        finally:
            writer.close()
    finally:
        reader.close()


def _copy_images(data_dir: Path, draft: Path) -> int:
    """Copy the pictures that are labelled in the copied store; return how many are there."""
    db = sqlite3.connect(draft / STORE_NAME)
    try:
        names = [row[0].hex() for row in db.execute("SELECT sample FROM samples WHERE status = 'labelled'")]
    finally:
        db.close()
    copied = 0
    for name in names:
        source = data_dir / IMAGES_NAME / name[:2] / name
        if source.exists() and _digest(source) == name:
            target = draft / IMAGES_NAME / name[:2] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += 1
    return copied


def _copy_release(data_dir: Path, draft: Path) -> str:
    """Copy the slot in service, so that a restored device inspects without a network; return its id."""
    current = data_dir / "current"
    if not current.is_symlink():
        return ""
    slot = current.resolve()
    target = draft / SLOTS_NAME / slot.name
    try:
        shutil.copytree(slot, target)
        Bundle.open(target)
    except (FileNotFoundError, shutil.Error, BundleError):
        shutil.rmtree(target, ignore_errors=True)  # an update replaced it meanwhile; the fleet has it
        return ""
    return slot.name


def _settle(store: Path, *, in_fleet: bool) -> None:
    """Take out the samples whose pictures no backup has, and note that the fleet is to be heard first."""
    db = sqlite3.connect(store)
    try:
        db.execute("DELETE FROM samples WHERE status != ?", (SampleStatus.LABELLED.value,))
        if in_fleet:
            db.execute("REPLACE INTO meta VALUES (?, 1)", (AWAIT_FLEET,))
        db.commit()
    finally:
        db.close()


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
