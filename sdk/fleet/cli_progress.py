"""How far a channel's devices are with a release that `headway fleet publish --wait` published."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from sdk.errors import FleetError, RolloutHalted

if TYPE_CHECKING:
    from rich.table import Table

    from sdk.fleet.channel_ledger import Device, Publication
    from sdk.fleet.store import FleetStore

ONLINE_WORD: Final = {True: "online", False: "offline"}


def presence(device: Device, *, heard: bool) -> str:
    """Return whether a device is there, in a word: online, offline, unknown or revoked.

    Args:
        device: It.
        heard: The service hears its broker: else nobody knows of one that was online.
    """
    if device.revoked_utc is not None:
        return "revoked"
    return "unknown" if device.state.online and not heard else ONLINE_WORD[device.state.online]


def wait_for_devices(
    store: FleetStore, publication: Publication, wait_s: float, *, quiet: bool
) -> list[dict[str, Any]]:
    """Wait until every device took a publication or gave up, or the time is up; return how far each is."""
    from rich.live import Live

    from sdk.console import Console

    console = Console(stderr=True, quiet=quiet)
    deadline = time.monotonic() + wait_s
    rows = _progress_rows(store, publication)
    watch = Live(_progress_table(rows), console=console) if console.is_terminal else contextlib.nullcontext()
    with watch as live:
        while time.monotonic() < deadline and not (rows and all(row["settled"] for row in rows)):
            time.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
            rows = _progress_rows(store, publication)
            if live is not None:
                live.update(_progress_table(rows))
    if not console.is_terminal:
        console.print(_progress_table(rows))
    return rows


def _progress_rows(store: FleetStore, publication: Publication) -> list[dict[str, Any]]:
    from sdk.fleet.registry import settled

    with store.read() as ledger:
        known = {device.device: device for device in ledger.devices(publication.channel)}
        assignments = ledger.assignments(publication.id)
        heard = ledger.broker_away() is None
    rows = []
    for one in assignments:
        device = known[one.device]
        end = settled(publication.ref.release_id, one.state, device.state.release_id)
        rows.append(
            {
                "device": one.device,
                "online": device.state.online,
                "presence": presence(device, heard=heard),
                "state": "assigned" if one.state is None else one.state.value,
                "settled": None if end is None else end.value,
                "reason": one.reason,
                "faults": device.state.faults if device.state.online else [],
            }
        )
    return rows


def _progress_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from sdk.console import plain

    table = Table("device", "", "update", "reason")
    for row in rows:
        table.add_row(
            plain(row["device"]),
            row["presence"],
            row["settled"] or row["state"],
            plain(row["reason"] or _what_keeps(row)),
        )
    return table


def _what_keeps(row: dict[str, Any]) -> str:
    """Return what a device that has not taken a publication says is wrong on it."""
    return "; ".join(row["faults"]) if row["settled"] is None else ""


def check_outcome(rows: list[dict[str, Any]], wait_s: float) -> None:
    """Look at how a publication ended.

    Raises:
        RolloutHalted: a device rolled it back.
        FleetError: a device did not come in time, or there is none.
    """
    back = [row for row in rows if row["settled"] == "rolled_back"]
    if back:
        raise RolloutHalted(
            f"{len(back)} of {len(rows)} devices rolled it back, {back[0]['device']}: {back[0]['reason']}",
            hint="They still run what they ran before. Look at the reason, mend the bundle, publish again.",
        )
    later = "They take it when they connect; see `headway fleet devices`."
    if not rows:
        raise FleetError(f"no device was registered within {wait_s:g} s", hint=later)
    waiting = [row for row in rows if row["settled"] is None]
    if waiting:
        who = ", ".join(f"{row['device']} ({_what_keeps(row) or row['presence']})" for row in waiting[:3])
        there = any(row["presence"] == "online" for row in waiting)
        raise FleetError(
            f"{len(waiting)} of {len(rows)} devices did not take it in {wait_s:g} s: {who}",
            hint="Those that are online go on with it; see `headway fleet devices`." if there else later,
        )
