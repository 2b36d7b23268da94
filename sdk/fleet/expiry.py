"""What of a fleet ends when: its signed metadata, its authority, everybody's certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sdk.errors import KeyRefused
from sdk.expiry import DAY_S, NOTICE_DAYS, Expiry, Standing
from sdk.fleet.enrolment import TLS_FOLDER
from sdk.fleet.reports import Report
from sdk.pem import ends_utc

TIMESTAMP_NOTICE_DAYS: Final = 7.0
"""A running service signs it anew every day, for 14 days: at half of that it has failed for a week."""
NAMED: Final = 5
"""Devices named of those that end soon; `headway fleet doctor --json` names all."""
LOOK_EVERY_S: Final = DAY_S
_NO_RELEASE: Final = "devices take no new release"


def expiries(directory: Path) -> list[Expiry]:
    """Return what of a fleet ends, the first to end first; nothing where it has neither keys nor certificates.

    Cost: what changed since the last time is read; else a look at each file's age.
    """
    found = [*_signed(directory), *_certified(directory)]
    return sorted(found, key=lambda one: (one.expires_utc, one.kind, one.what))


def ending(directory: Path, now_utc: float) -> list[Expiry]:
    """Return what of a fleet has ended, or will before long; all devices together as one."""
    return grouped(directory, [one for one in expiries(directory) if one.standing(now_utc) is not Standing.GOOD])


def grouped(directory: Path, found: Sequence[Expiry]) -> list[Expiry]:
    """Return these with one for all devices, enrolled together and ending together, in the first one's place."""
    devices = [one for one in found if one.device]
    if len(devices) < 2:
        return list(found)
    names = ", ".join(one.device for one in devices[:NAMED])
    more = f" and {len(devices) - NAMED} more" if len(devices) > NAMED else ""
    first = replace(
        devices[0],
        what=f"the first of {len(devices)} devices' certificates ({names}{more})",
        then="the broker refuses the device, and its labels wait on it",
        renew=f"headway fleet renew --ending --dir {directory} --out renewed",
    )
    return [first if one is devices[0] else one for one in found if not one.device or one is devices[0]]


def row(one: Expiry, now_utc: float) -> dict[str, Any]:
    """Return one of them, ready for JSON."""
    return {
        "kind": one.kind,
        "device": one.device or None,
        "what": one.what,
        "expires_utc": one.expires_utc,
        "days_left": round(one.days_left(now_utc), 1),
        "standing": one.standing(now_utc).value,
        "words": one.words(now_utc),
        "renew": one.renew,
    }


class Watch:
    """Tells once a day what ends soon.

    Args:
        directory: The fleet's.
        report: Told of each.
    """

    def __init__(self, directory: Path, report: Report) -> None:
        self._directory = directory
        self._report = report
        self._due_utc = 0.0

    def look(self, now_utc: float) -> None:
        """Look, where it is time to."""
        # A clock that was set back must not keep it silent for years.
        if self._due_utc - LOOK_EVERY_S <= now_utc < self._due_utc:
            return
        self._due_utc = now_utc + LOOK_EVERY_S
        for one in ending(self._directory, now_utc):
            self._report("ends", {"what": one.words(now_utc), "renew": one.renew})


def _signed(directory: Path) -> list[Expiry]:
    from sdk.trust.repository import TRUST_FOLDER, Repository, exists

    if not exists(directory / TRUST_FOLDER):
        return []
    repository = Repository(directory / TRUST_FOLDER)
    renew = f"headway fleet keys renew --dir {directory} --keys KEYS"
    serve = f"headway fleet serve --dir {directory} signs it anew every day while it runs"
    try:
        until = {
            "root": repository.root().signed.expires.timestamp(),
            "targets": repository.targets().signed.expires.timestamp(),
            "timestamp": min(
                repository.timestamp().signed.expires.timestamp(),
                repository.snapshot().signed.expires.timestamp(),
            ),
        }
    except KeyRefused as error:
        hint = error.hint or renew
        return [Expiry("root", "the signatures' metadata", 0.0, _NO_RELEASE, hint, damaged=str(error))]
    return [
        Expiry("root", "the root of signatures", until["root"], _NO_RELEASE, renew),
        Expiry("targets", "the signature of the releases", until["targets"], _NO_RELEASE, renew),
        Expiry(
            "timestamp",
            "the signature that nothing newer exists",
            until["timestamp"],
            _NO_RELEASE,
            serve,
            TIMESTAMP_NOTICE_DAYS,
        ),
    ]


def _certified(directory: Path) -> list[Expiry]:
    from sdk.fleet.certificates import CERTIFICATE_LIFE

    folder = directory / TLS_FOLDER
    servers = f"headway fleet tls --renew --dir {directory}"
    # A device takes over what its authority was renewed to when its own certificates are renewed.
    whole_round = CERTIFICATE_LIFE.total_seconds() / DAY_S + NOTICE_DAYS
    parties = [
        Expiry("authority", "the certificate authority", 0.0, "nobody is let in", servers, whole_round),
        Expiry("broker", "the broker's certificate", 0.0, "no device connects", servers),
        Expiry("service", "the fleet service's certificate", 0.0, "the broker refuses the service", servers),
    ]
    files = [folder / name for name in ("ca.pem", "broker.pem", "service.pem")]
    for file in sorted((folder / "issued").glob("*.pem")):
        renew = f"headway fleet renew {file.stem} --dir {directory} --out renewed"
        then = "the broker refuses it, and its labels wait on it"
        parties.append(Expiry("device", f"the certificate of {file.stem}", 0.0, then, renew, device=file.stem))
        files.append(file)
    found = []
    for file, party in zip(files, parties, strict=True):
        try:
            found.append(replace(party, expires_utc=ends_utc(file)))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            found.append(replace(party, damaged=f"{file.name}: {reason}"))
    return found
