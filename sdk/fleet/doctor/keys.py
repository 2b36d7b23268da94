"""Who may read what is secret in a fleet's directory, and whether the service may."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sdk.finding import Finding, Level
from sdk.fleet.database import DATABASE_FILES, URL_NAME
from sdk.fleet.enrolment import TLS_FOLDER
from sdk.owners import quote, user_name

_ONLINE: Final = "trust/online.pem"
SECRETS: Final = {
    f"{TLS_FOLDER}/ca.key": "who has it enrols devices",
    f"{TLS_FOLDER}/service.key": "who has it is the fleet's service to every device",
    f"{TLS_FOLDER}/broker.key": "who has it is the fleet's broker to every device",
    _ONLINE: "who has it says what is newest, and which labels come from the fleet",
    URL_NAME: "it may hold the database's password",
}
"""What is for the service's user alone, and what it is to somebody else."""
SERVED: Final = (f"{TLS_FOLDER}/service.key", _ONLINE, URL_NAME)
"""Of these, what the service reads."""
FOR_A_GROUP: Final = f"{TLS_FOLDER}/broker.key"
"""A Mosquitto of the system reads it by its group (docs/fleet.md)."""
BELIEVED: Final = (
    ".",
    "trust",
    "trust/*.json",
    TLS_FOLDER,
    f"{TLS_FOLDER}/issued",
    *(
        f"{TLS_FOLDER}/{name}"
        for name in ("acl", "acl.local", "ca.pem", "crl.pem", "mosquitto.conf", "place.json")
    ),
    "chunks",
    "decisions",
    *DATABASE_FILES,
)
"""What the fleet goes by: who may write there, or put another file in its place, decides what it believes."""
_OTHERS: Final = stat.S_IROTH | stat.S_IWOTH
_GROUP: Final = stat.S_IRGRP | stat.S_IWGRP


def examine(directory: Path) -> Iterator[Finding]:
    """Yield who may read and change what, where that is not as it should be; else that it is."""
    owner = directory.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        yield Finding(
            "permissions",
            Level.NOTE,
            "this is root, who may read what the service later may not",
            f"Run it as the service's user: sudo -u {user_name(owner)} headway fleet doctor --dir "
            f"{quote(directory)}",
        )
    wrong = list(_wrong(directory, user_name(os.geteuid())))
    yield from wrong
    if not wrong:
        kept = sum((directory / name).is_file() for name in SECRETS)
        what = f"{kept} secret files, none for others" if kept else "no secret files"
        what += f"; not everybody may write to {directory}, nor to what it goes by there"
        yield Finding("permissions", Level.GOOD, what)


def _wrong(directory: Path, me: str) -> Iterator[Finding]:
    believed = [
        place
        for name in BELIEVED
        for place in (sorted(directory.glob(name)) if "*" in name else [directory / name])
    ]
    if open_ones := [place for place in believed if (_mode(place) or 0) & stat.S_IWOTH]:
        more = f" and {len(open_ones) - 1} more that it goes by" if len(open_ones) > 1 else ""
        what = f"every user of this machine may write to {open_ones[0]}{more}"
        yield Finding("permissions", Level.FAULT, what, f"chmod o-w {' '.join(map(quote, open_ones))}")
    for name, then in SECRETS.items():
        file = directory / name
        mode = _mode(file)
        if mode is None:
            continue
        if mode & _OTHERS:
            how = "o-rwx" if name == FOR_A_GROUP else "0600"
            what = f"every user of this machine may read {file}: {then}"
            yield Finding("permissions", Level.FAULT, what, f"chmod {how} {quote(file)}")
        elif mode & _GROUP and name != FOR_A_GROUP:
            yield Finding(
                "permissions", Level.NOTE, f"its group may read {file}: {then}", f"chmod 0600 {quote(file)}"
            )
        if name in SERVED and not os.access(file, os.R_OK, effective_ids=True):
            what = f"{me} may not read {file}, which the service needs"
            fix = f"Run this as the service's user. If that is {me}: sudo chown {me} {quote(file)}"
            yield Finding("permissions", Level.FAULT, what, fix)
    shown = [file for name in DATABASE_FILES if (_mode(file := directory / name) or 0) & stat.S_IROTH]
    if shown:
        yield Finding(
            "permissions",
            Level.NOTE,
            f"every user of this machine may read {shown[0]}: people's names and labels",
            f"chmod 0600 {' '.join(map(quote, shown))}",
        )


def _mode(file: Path) -> int | None:
    """Return a file's mode; None where it is not there, or its folder is closed to us."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return None
