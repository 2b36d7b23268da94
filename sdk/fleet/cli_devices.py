"""`headway fleet devices`: who is there, what runs, and what wants a look. A plant's thousand devices too."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from sdk.fleet.cli_trust import dir_option

PLAIN_COLUMNS: Final = 240
"""Of a table that goes into a file or another program: wide enough that no cell is folded or cut."""
MUCH_BYTES: Final = 16 * 1024 * 1024
"""Said in a day: 9,000 codes of 1,584 numbers, more than most stations have labels."""
NAMED: Final = 5
"""Devices that are named of those whose labels count nowhere, or that run a build which few run."""


def troubles_of(device: dict[str, Any]) -> list[str]:
    """Return what somebody should look at on a device, in words.

    Args:
        device: As `sdk.fleet.cli.fleet_overview` says it.
    """
    found = [f"quarantined: {hold['words']}" for hold in device["quarantine"]]
    if device["said_bytes"] > MUCH_BYTES:
        found.append(
            f"it has said {device['said_bytes'] / 1e6:.0f} MB in the last 24 hours, which all devices keep: a new "
            "release's codes of very many labels, or look at who speaks with its certificate"
        )
    if device["merged"]:
        found.append(device["merged"])
    if device["foreign_codes"]:
        found.append(
            f"it has said codes of {device['foreign_codes']} samples that it has not labelled. They count "
            "nowhere, and no agent says such codes: look at who speaks with its certificate"
        )
    if device["revoked_utc"] is not None:
        return found
    if device["refused"]:
        found.append(f"its next label is refused: {device['refused']}")
    if any(word in device["trust"] for word in ("refused", "unverified", "certificate")):
        found.append(device["trust"])
    if device["taken_back"]:
        found.append(
            "labels that it has heard do not decide: its trial took the head with them back, and it decides by "
            f"{device['head_samples']} samples where it has heard of {device['live_samples']}"
        )
    if device["online"] and device["space"] is None:
        found.append("no release serves on it")
    if device["other_precision"]:
        found.append(_other_precision(device))
    if device["online"]:
        # What the fleet itself refuses it says too.
        found += [fault for fault in device["faults"] if not device["refused"] or device["refused"] not in fault]
    return found


def _other_precision(device: dict[str, Any]) -> str:
    named = device["precision"] or "another precision"
    why = (
        f"its site.toml names {named}: take `precision` out of it"
        if device["precision_fixed"]
        else "publish the release's bundle again, with --precision where it is not its first"
    )
    return f"it runs the release with {named}, the channel another, so that neither learns of the other; {why}"


def away_words(away: dict[str, Any]) -> str:
    """Return that a broker is away, in words.

    Args:
        away: As `sdk.fleet.cli.fleet_overview` says it.
    """
    if away["contested"]:
        return (
            f"another fleet service with this one's name came to the broker at {away['address']} "
            f"{_ago(away['since_utc'])}: each takes the other's session and labels; stop one of the two, which "
            "may be of a copy of the fleet's directory"
        )
    went = f"went away {_ago(away['since_utc'])}"
    return f"the broker at {away['address']} {went}: devices are shown as they were, and labels wait on them"


def refusal_words(refusal: dict[str, Any]) -> str:
    """Return that nothing is stored, in words.

    Args:
        refusal: As `sdk.fleet.cli.fleet_overview` says it.
    """
    began = _ago(refusal["since_utc"])
    return f"the fleet stores nothing; that began {began}: {refusal['error']}. What devices say waits on them"


def learned_words(device: dict[str, Any]) -> str:
    """Return how what a device decides by stands to all that its channel has learned; empty where nobody knows.

    Args:
        device: As `sdk.fleet.cli.fleet_overview` says it.
    """
    if device["revoked_utc"] is not None:
        return ""
    if device["other_precision"]:
        return "other precision"
    if device["in_sync"] is None:
        return ""
    if not device["in_sync"]:
        return "behind"
    if device["head_agrees"] is False:
        return "heard, taken back" if device["taken_back"] else "heard, not learned yet"
    return "=fleet"


def release_words(device: dict[str, Any]) -> str | None:
    """Return what a device runs, in words; None for nothing.

    Args:
        device: As `sdk.fleet.cli.fleet_overview` says it.
    """
    return device["release"] or (None if device["space"] is None else "its own bundle")


def without_effect(channel: dict[str, Any]) -> list[str]:
    """Return what of a channel's log its heads do not learn from, in words.

    Args:
        channel: As `sdk.fleet.cli.fleet_overview` says it.
    """
    found = []
    if channel["damaged"]:
        found.append(
            f"what the channel has learned is not known: its release cannot be read here: {channel['damaged']}. "
            f"Put its chunks back from the bundle of {channel['release']} (headway fleet doctor --mend-from "
            "BUNDLE) or from a backup"
        )
    if channel["unapplied_labels"]:
        found.append(
            "labels that change nothing, their samples being in the release's sums only: "
            f"{channel['unapplied_labels']}"
        )
    if channel["codeless_labels"]:
        by = sorted(channel["codeless_labels"].items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count} of {device}" for device, count in by[:NAMED])
        named += f" and {sum(count for _, count in by[NAMED:])} of others" if by[NAMED:] else ""
        found.append(
            f"labels that count nowhere, without a code in this release's feature space: {named}. A device "
            "says their codes when it runs the release, and where it has the pictures"
        )
    if channel["refused_records"]:
        found.append(f"records that contradict themselves and count nowhere: {channel['refused_records']}")
    return found


def builds(devices: Iterable[dict[str, Any]]) -> str:
    """Return which Headway these devices run, in words: the most common build first, of others who runs it.

    Too long for a column: what differs between two builds of a day is at the version's end.

    Args:
        devices: As `sdk.fleet.cli.fleet_overview` says them. Those that are revoked are left out.
    """
    by: dict[str, list[str]] = {}
    for device in devices:
        if device["revoked_utc"] is None and device["agent_version"]:
            by.setdefault(device["agent_version"], []).append(device["device"])
    ordered = sorted(by.items(), key=lambda item: (-len(item[1]), item[0]))
    told = []
    for place, (version, names) in enumerate(ordered):
        many = len(names) > NAMED or (place == 0 and len(names) > 1)
        told.append(f"{version} on {f'{len(names)} devices' if many else ', '.join(sorted(names))}")
    return "; ".join(told)


def wants_a_look(device: dict[str, Any]) -> bool:
    """Return whether a device is away, behind, or in trouble; one that was revoked is out of it."""
    if device["revoked_utc"] is not None:
        return False
    return not device["online"] or device["in_sync"] is False or bool(troubles_of(device))


@click.command(short_help="Show devices, and whether their heads agree.")
@dir_option
@click.option("--channel", help="Of this channel only.")
@click.option("--find", default="", metavar="TEXT", help="Those with this in their name only.")
@click.option("--look", is_flag=True, help="Those only that are away, behind or in trouble.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def devices(directory: Path, channel: str | None, find: str, look: bool, as_json: bool) -> None:
    """Show the fleet's devices and whether their heads rest on the same labels.

    The live-set digest names the labels that a device has heard of. "=fleet" says that they are the fleet's, bit
    for bit, and that the head which decides there has learned from all of them; "heard, taken back", that the
    device's trial took that head back, so that an earlier one decides.
    """
    from sdk.fleet.cli import fleet_overview, open_fleet

    with open_fleet(directory) as store:
        overview, served = fleet_overview(store, channel), store.served()
    everybody = overview["devices"]
    shown = [one for one in everybody if find in one["device"] and (not look or wants_a_look(one))]
    if as_json:
        click.echo(msgspec.json.encode({**overview, "devices": shown}))
        return
    from sdk.console import Console, plain

    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_COLUMNS)
    if not served:
        console.print("no fleet service runs on this directory: devices are shown as they were", highlight=False)
    elif overview["broker_away"] is not None:
        console.print(away_words(overview["broker_away"]), highlight=False, markup=False)
    if (refusal := overview["refusal"]) is not None:
        console.print(f"{plain(refusal_words(refusal))}\n  -> {plain(refusal['hint'])}", highlight=False)
    for one in overview["channels"]:
        digest = (one["live_set_digest"] or "-")[:12]
        own = [device for device in everybody if device["channel"] == one["channel"]]
        revoked = sum(device["revoked_utc"] is not None for device in own)
        console.print(
            f"channel {plain(one['channel'])}: release {plain(one['release'] or '-')}, "
            f"{one['log_length']} log records, live set {digest} ({one['live_samples']} samples)",
            highlight=False,
        )
        console.print(
            f"{len(own) - revoked} devices, {sum(device['presence'] == 'online' for device in own)} online, "
            f"{sum(map(wants_a_look, own))} want a look" + (f", {revoked} revoked" if revoked else ""),
            highlight=False,
        )
        if run := builds(own):
            console.print(f"Headway {plain(run)}", highlight=False)
        for note in without_effect(one):
            console.print(plain(note), highlight=False)
    console.print(_table(shown))
    if len(shown) < len(everybody):
        console.print(f"{len(shown)} of {len(everybody)} devices", highlight=False)
    for one in shown:
        for trouble in troubles_of(one):
            console.print(plain(f"{one['device']}: {trouble}"), highlight=False)
    for one in overview["ends"]:
        console.print(f"{plain(one['words'])}\n  -> {plain(one['renew'])}", highlight=False)


def _table(shown: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from sdk.console import plain

    table = Table()
    # Whatever else a narrow terminal folds: who a row is of must be readable.
    table.add_column("device", min_width=max((len(one["device"]) for one in shown), default=0))
    for name in ("", "channel", "release", "head", "live set", "outbox", "log", "last seen"):
        table.add_column(name)
    for one in shown:
        table.add_row(
            plain(one["device"]),
            one["presence"],
            plain(one["channel"]),
            plain(release_words(one) or "-"),
            plain(one["head_state"]),
            f"{(one['live_set_digest'] or '-')[:12]} {learned_words(one)}".rstrip(),
            str(one["outbox"]),
            str(one["log_position"]),
            _ago(one["last_seen_utc"]),
        )
    return table


def _ago(seconds_utc: float) -> str:
    return ago(time.time() - seconds_utc)


def ago(seconds: float) -> str:
    """Return how long ago that is, for people.

    >>> ago(5), ago(150), ago(7300), ago(200000)
    ('5 s ago', '2 min ago', '2 h ago', '2 d ago')
    """
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Return how long that is, for people; 0 s for less."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
