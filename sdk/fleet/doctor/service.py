"""The fleet's one service: does it run, since when, what did it last do, and does it store what it hears?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from sdk.finding import Finding, Level
from sdk.fleet.cli_devices import ago, away_words, refusal_words, span
from sdk.fleet.core import SEEN_EVERY_S
from sdk.fleet.doctor.seen import Seen
from sdk.fleet.one_service import Holder
from sdk.fleet.refusal import Refusal
from sdk.owners import quote

DEAF_S: Final = 2 * SEEN_EVERY_S
"""Each device that is there asks for the union's end every half minute, which is written down once an hour."""
_STILL: Final = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE})
_LOOK: Final = "Look at its log (journalctl -u headway-fleet -n 50), then start it anew."


def judged(
    directory: Path,
    here: Holder | None,
    there: Holder | None,
    seen: Seen | None,
    refusal: Refusal | None,
    now_utc: float,
) -> Iterator[Finding]:
    """Yield how the service is.

    Args:
        directory: The fleet's.
        here: Who holds the directory, on this machine.
        there: Who holds its PostgreSQL; None in SQLite, or where that is not known.
        seen: What the database says; None where it cannot be read.
        refusal: What the service, or one that was killed, has noted that it cannot store.
        now_utc: Seconds since 1970.
    """
    wrote_utc = None if seen is None else seen.wrote_utc
    last = "" if wrote_utc is None else f"; the newest in the database is from {ago(now_utc - wrote_utc)}"
    serve = f"headway fleet serve --dir {quote(directory)}"
    if here is None and there is None:
        what = f"no service runs for {directory}: what lines learn waits on them{last}"
        yield Finding(
            "service", Level.FAULT, what, f"{serve}, with the options it had; or systemctl start headway-fleet"
        )
    elif here is None and there is not None:
        since = "" if there.since_utc is None else f" since {_utc(there.since_utc)}"
        yield Finding(
            "service",
            Level.NOTE,
            f"a service at {there.host or 'its own machine'} holds the database{since}, and none this "
            f"directory{last}",
            "One service serves a fleet. If that is the one, run this there; else stop it, and start it here.",
        )
    elif here is not None:
        yield from _running(here, seen, last, now_utc)
    if refusal is not None and here is not None:
        yield Finding(
            "service",
            Level.FAULT,
            refusal_words({"since_utc": refusal.since_utc, "error": refusal.error}),
            refusal.hint,
        )
    elif refusal is not None:
        what = f"a service that was killed stored nothing since {_utc(refusal.since_utc)}: {refusal.error}"
        yield Finding("service", Level.NOTE, what, refusal.hint)
    if seen is not None and (here or there) is not None and (away := seen.overview["broker_away"]) is not None:
        fix = (
            "Only you know which directory is the fleet's: stop the service of the other one."
            if away["contested"]
            else f"Does it run at {away['address']}? The service waits for it. Below is what it said to us."
        )
        yield Finding("service", Level.FAULT, away_words(away), fix)


def _running(here: Holder, seen: Seen | None, last: str, now_utc: float) -> Iterator[Finding]:
    who = "a process that is not listed here" if here.pid is None else f"process {here.pid}"
    since = "" if here.since_utc is None else f" since {_utc(here.since_utc)} ({span(now_utc - here.since_utc)})"
    if here.status in _STILL:
        yield Finding(
            "service",
            Level.FAULT,
            f"{who} serves{since}, and is {here.status}: it does nothing{last}",
            f"kill -CONT {here.pid}; or start it anew: systemctl restart headway-fleet",
        )
        return
    online = 0 if seen is None else sum(one["presence"] == "online" for one in seen.devices)
    wrote_utc = None if seen is None else seen.wrote_utc
    if online and wrote_utc is not None and wrote_utc < now_utc - DEAF_S:
        yield Finding(
            "service",
            Level.FAULT,
            f"{who} serves{since}, and has written nothing down of the {online} devices that are there{last}",
            _LOOK,
        )
        return
    yield Finding("service", Level.GOOD, f"{who} serves{since}{last}")


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
