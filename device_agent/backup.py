"""A device's labels in another place, and back again: `headway agent backup` and `restore`.

A backup is a directory: `store.sqlite3`, the labelled pictures under `images/`, the release in service under
`slots/`, and `backup.json`, which is written last. It is taken with SQLite's online backup while the agent runs.
Which release that is the copied store says: the link `current` may lead to one that it has not heard of. Where the
target takes no writes there is no backup at all; a release that cannot be read, of a disk that fails, is left out
and told, for labels are worth a backup without it.

A backup lies on shares and media that others write to, so a restore takes from it what a backup is and nothing
else: no accounts, no links, no file that is not named by the store or the release. What else lies there is left
out and told. That does not make labels true: whoever may write to a backup may give it another store. Nor does a
backup say what is signed: its release's files must be those that the release's id vouches for, and of what the
store has accepted from the fleet only the highest versions count (`trust.Gate`).

What people chose to be rejected, and which classes they put away, is in the store (`page.book.StationSetting`). A
backup of before that does not say it: then the restored device does, until somebody chooses.

A restored store is an old copy of its log, and the fleet may hold later entries. So it takes no label until it has
heard from the fleet once (`LabelLog.append`): writing on from the old end would make two logs of one device.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from device_agent.accepting import KEPT_AS, LOST_AS
from device_agent.database import disk, read_uri
from device_agent.label_log import AWAIT_FLEET
from device_agent.sample import SampleStatus
from device_agent.samples import IMAGES_NAME
from device_agent.store import STORE_NAME, StoreFacts, check_store, read_in_service
from device_agent.trust import COPY_KEY as TRUST_COPY
from device_agent.trust import KEY as TRUST_KEY
from sdk.bundle import MANIFEST_NAME, Bundle, decode_manifest
from sdk.damaged import DAMAGED
from sdk.durable import sync_path
from sdk.errors import BundleError, ConfigError, StoreCorrupt
from sdk.release import describe
from sdk.wire import UpdateState

BACKUP_NAME: Final = "backup.json"
FORMAT: Final = 1
SLOTS_NAME: Final = "slots"
_BLOCK: Final = 1024 * 1024
_MAX_FACTS_BYTES: Final = 64 * 1024
"""Of `backup.json`, which has 300."""


class BackupFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in `backup.json`.

    Attributes:
        format: Of the backup.
        device: Whose it is.
        made_utc: Seconds since 1970.
        entries: Of the device's own log.
        labelled: Samples with a label.
        images: Their pictures in the backup.
        release: The release that is in it; empty where none served, it was no slot, or it could not be read.
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


def make_backup(
    data_dir: Path,
    target: Path,
    *,
    on_no_release: Callable[[str], None] = lambda _why: None,
    clock: Callable[[], float] = time.time,
) -> BackupFacts:
    """Copy what a device cannot get back from anywhere else; return what was copied. What fails leaves nothing.

    Args:
        data_dir: The agent's data folder; the agent may run.
        target: The backup, which must not exist.
        on_no_release: Told why a release that may serve is not in it.
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
        try:
            _copy_store(store, draft / STORE_NAME)
            images = _copy_images(data_dir, draft)
            release, left_out = _copy_release(data_dir, draft)
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
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_path(target.resolve().parent)
    for why in left_out:
        on_no_release(why)
    return made


def restore_backup(
    backup: Path,
    data_dir: Path,
    device: str,
    *,
    in_fleet: bool,
    on_left_out: Callable[[str], None] = lambda _name: None,
    on_no_release: Callable[[str], None] = lambda _why: None,
) -> BackupFacts:
    """Make a data folder from a backup; return what is in it.

    Args:
        backup: The directory that `make_backup` wrote.
        data_dir: The data folder to make; must not exist, or be empty.
        device: The device's id by its settings.
        in_fleet: It has a broker: it must hear from its fleet before it takes labels.
        on_left_out: Told of each file or folder that is no part of a backup, and of a release that is not whole.
        on_no_release: Told why the backup's release was left out.

    Raises:
        ConfigError: the data folder holds something, or the backup is another device's.
        StoreCorrupt: the backup is damaged or none, or has links where files belong.
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
        draft.mkdir(parents=True)
        try:
            taken, no_release = _take(backup, facts, draft)
            found = check_store(draft / STORE_NAME, whole=True)
            _check_whole(backup, facts, found)
            _settle(draft / STORE_NAME, in_fleet=in_fleet)
            for path in sorted(draft.rglob("*")):
                sync_path(path)
            if data_dir.exists():
                data_dir.rmdir()
            draft.rename(data_dir)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_path(data_dir.resolve().parent)
    with contextlib.suppress(OSError):  # the share went away: what was to be taken is here
        for name in _left_out(backup, {*taken, BACKUP_NAME}):
            on_left_out(name)
    if no_release:
        on_no_release(no_release)
    return facts


def read_backup(backup: Path) -> BackupFacts:
    """Return what a backup says of itself, after its store's digest was found right.

    Raises:
        StoreCorrupt: it is damaged, unfinished or none, or has links where files belong.
    """
    try:
        with _open_plain(backup, BACKUP_NAME) as stream:
            facts = msgspec.json.decode(stream.read(_MAX_FACTS_BYTES), type=BackupFacts)
        with _open_plain(backup, STORE_NAME) as stream:
            digest = _digest_of(stream)
    except (OSError, *DAMAGED) as error:
        raise _no_backup(f"{backup} is no backup: {str(error)[:120]}") from error
    if facts.format != FORMAT:
        raise _no_backup(f"{backup} has format {facts.format}, this Headway knows {FORMAT}")
    if digest != facts.store_sha256:
        raise _no_backup(f"{backup / STORE_NAME} is not what {BACKUP_NAME} says")
    return facts


def release_words(folder: Path, release: str) -> str:
    """Return what people call a release that was copied into a backup, or from one to a data folder, and its id.

    Args:
        folder: The backup, or the data folder.
        release: Its id.
    """
    manifest = folder / SLOTS_NAME / release / MANIFEST_NAME
    return f"{decode_manifest(manifest.read_bytes()).name} ({release[:8]})"


def _no_backup(what: str) -> StoreCorrupt:
    return StoreCorrupt(
        what, hint="Use another backup, or start empty: the device fetches its log from the fleet."
    )


def _take(backup: Path, facts: BackupFacts, draft: Path) -> tuple[set[str], str]:
    """Copy a backup's store, the pictures that are labelled in it, and its release.

    Returns:
        Their names; and why the release was left out, empty where it was not.
    """
    if _copy_plain(backup, (STORE_NAME,), draft) != facts.store_sha256:
        raise _no_backup(f"{backup / STORE_NAME} changes while it is read")
    taken = {STORE_NAME}
    for name in _labelled(draft / STORE_NAME):
        parts = (IMAGES_NAME, name[:2], name)
        with contextlib.suppress(FileNotFoundError):  # the device itself may have lost it; `_check_whole` counts
            if _copy_plain(backup, parts, draft) != name:
                raise _no_backup(f"{backup.joinpath(*parts)} is not the picture that its name says")
            taken.add("/".join(parts))
    if facts.release:
        slot = f"{SLOTS_NAME}/{facts.release}"
        try:
            taken |= {f"{slot}/{name}" for name in _take_release(backup, facts.release, draft)}
        except FileNotFoundError:
            return taken, f"release {facts.release[:12]} is not in {backup}"
        except (StoreCorrupt, BundleError) as error:
            return taken, str(error)
    return taken, ""


def _take_release(backup: Path, release: str, draft: Path) -> list[str]:
    """Copy a backup's release, whole or not at all; return its files' names.

    The id is what was signed, and vouches for every byte. A bundle alone vouches for itself: with two of its
    classes' names swapped it is as good a bundle.

    Raises:
        StoreCorrupt, BundleError: it is not whole, is another one, or has links where files belong.
        FileNotFoundError: it is not there.
    """
    if re.fullmatch("[0-9a-f]{64}", release) is None:  # it becomes a folder's name
        raise _no_backup(f"{backup} names a release {release[:64]!r}")
    try:
        handle = _open_folder(backup, (SLOTS_NAME, release))
        try:
            names = os.listdir(handle)
        finally:
            os.close(handle)
        for name in names:
            _copy_plain(backup, (SLOTS_NAME, release, name), draft)
        bundle = Bundle.open(draft / SLOTS_NAME / release)
        made = describe(bundle.path, bundle.manifest.name, bundle.file_names()).ref.release_id
        if made != release:
            raise _no_backup(
                f"{backup / SLOTS_NAME} has files of release {made[:12]} in the place of {release[:12]}: "
                "somebody has changed them, or a Headway that cuts releases otherwise made this one"
            )
        return bundle.file_names()
    except BaseException:
        shutil.rmtree(draft / SLOTS_NAME, ignore_errors=True)
        raise


def _left_out(backup: Path, taken: set[str]) -> Iterator[str]:
    """Yield what else lies in a backup, a folder of which nothing was taken as one."""
    folders = {name.rsplit("/", depth)[0] for name in taken for depth in range(1, name.count("/") + 1)}
    folders.add(IMAGES_NAME)  # a backup without labels has it too, empty
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(backup / folder) as entries:
            for name, is_folder in sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries):
                path = f"{folder}/{name}" if folder else name
                if path in folders and is_folder:
                    waiting.append(path)
                elif path not in taken:
                    yield path


def _copy_plain(backup: Path, parts: tuple[str, ...], draft: Path) -> str:
    """Copy a file of a backup; return its SHA-256 as it was read.

    Raises:
        StoreCorrupt: it is no plain file, or there is a link on the way to it.
        FileNotFoundError: it is not there.
    """
    target = draft.joinpath(*parts)
    with _open_plain(backup, *parts) as stream:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as copy:
            return _digest_of(stream, copy)


def _open_plain(backup: Path, *parts: str) -> BinaryIO:
    """Open a file of a backup; raises as `_copy_plain`."""
    folder = _open_folder(backup, parts[:-1])
    try:
        # O_NONBLOCK: opening a pipe would wait for whoever writes to it.
        handle = _open_part(backup, parts, os.O_NONBLOCK, folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_plain(backup, parts)
    return os.fdopen(handle, "rb")


def _open_folder(backup: Path, parts: tuple[str, ...]) -> int:
    handle = os.open(backup, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    for depth in range(1, len(parts) + 1):
        outer = handle
        try:
            handle = _open_part(backup, parts[:depth], os.O_DIRECTORY, outer)
        finally:
            os.close(outer)
    return handle


def _open_part(backup: Path, parts: tuple[str, ...], flags: int, folder: int) -> int:
    try:
        return os.open(parts[-1], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise _not_plain(backup, parts) from error
        raise


def _not_plain(backup: Path, parts: tuple[str, ...]) -> StoreCorrupt:
    return _no_backup(f"{backup.joinpath(*parts)} is a link, or no plain file")


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
    copied = 0
    for name in _labelled(draft / STORE_NAME):
        source = data_dir / IMAGES_NAME / name[:2] / name
        if source.exists() and _digest(source) == name:
            target = draft / IMAGES_NAME / name[:2] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += 1
    return copied


def _labelled(store: Path) -> list[str]:
    """Return the names of the pictures that are labelled in a store.

    Raises:
        StoreCorrupt: it is none.
    """
    db = sqlite3.connect(store)
    try:
        return [row[0].hex() for row in db.execute("SELECT sample FROM samples WHERE status = 'labelled'")]
    except (sqlite3.DatabaseError, AttributeError) as error:
        raise _no_backup(f"{store} is no store: {error}") from error
    finally:
        db.close()


def _copy_release(data_dir: Path, draft: Path) -> tuple[str, list[str]]:
    """Copy the release that an agent with the copied store would serve, so that it inspects without a network.

    Returns:
        Its id, empty where there is none; and why one that comes first was left out.
    """
    left_out = []
    for release in read_in_service(draft / STORE_NAME):
        slot, target = data_dir / SLOTS_NAME / release, draft / SLOTS_NAME / release
        try:
            names = Bundle.open(slot).file_names()
        except (OSError, BundleError) as error:
            if slot.is_dir():  # else an update has replaced it, or taken it back, meanwhile
                left_out.append(f"release {release[:8]} cannot be read: {error}")
            continue
        target.mkdir(parents=True)
        try:
            for name in names:
                shutil.copyfile(slot / name, target / name)
            Bundle.open(target)
        except (FileNotFoundError, BundleError) as error:
            shutil.rmtree(target, ignore_errors=True)
            if slot.is_dir():
                left_out.append(f"release {release[:8]} is not copied whole: {error}")
            continue
        return release, left_out
    return "", left_out


def _settle(store: Path, *, in_fleet: bool) -> None:
    """Take out of a store what no backup vouches for, and note what is to be asked first.

    The samples whose pictures no backup has; updates under way, whose files none has either, and what is no id of
    a release: it would become a folder's name. What was accepted from the fleet is put where it counts as a copy.
    Noted: that the fleet is to be heard first, and whether the backup does not say what is to be rejected.
    """
    db = sqlite3.connect(store)
    try:
        said = db.execute("SELECT 1 FROM meta WHERE key = ?", (f"kept/{KEPT_AS}",)).fetchone()
        db.execute("REPLACE INTO meta VALUES (?, ?)", (f"kept/{LOST_AS}", b"" if said else b"1"))
        db.execute("DELETE FROM samples WHERE status != ?", (SampleStatus.LABELLED.value,))
        db.execute(
            "DELETE FROM updates WHERE length(release_id) != 64 OR release_id GLOB '*[^0-9a-f]*'"
            " OR state NOT IN (?, ?, ?)",
            [each.value for each in (UpdateState.PROVISIONAL, UpdateState.COMMITTED, UpdateState.ROLLED_BACK)],
        )
        db.execute("DELETE FROM meta WHERE key = ?", (f"kept/{TRUST_COPY}",))
        db.execute("UPDATE meta SET key = ? WHERE key = ?", (f"kept/{TRUST_COPY}", f"kept/{TRUST_KEY}"))
        if in_fleet:
            db.execute("REPLACE INTO meta VALUES (?, 1)", (AWAIT_FLEET,))
        db.commit()
    finally:
        db.close()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return _digest_of(opened)


def _digest_of(stream: BinaryIO, copy: BinaryIO | None = None) -> str:
    """Return the SHA-256 of all that a stream holds, and write it to another one."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
        if copy is not None:
            copy.write(block)
    return digest.hexdigest()
