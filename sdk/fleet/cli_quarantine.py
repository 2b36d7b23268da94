"""`headway fleet suspects`, `quarantine` and `release`: whose labels fit nobody else's, and holding them back."""

from __future__ import annotations

import dataclasses
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from sdk.errors import FleetError, UnknownDevice
from sdk.labels import MAX_COUNTER, Quarantine
from sdk.shown import say
from sdk.sources import ANYBODY, Hold

if TYPE_CHECKING:
    from sdk.fleet.store import FleetStore, Ledger
    from sdk.fleet.suspicion import Suspect

MAX_NAME: Final = 64
"""Of an operator, as `sdk.labels` takes it."""
MAX_REASON: Final = 200

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The fleet's directory.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
channel_option = click.option("--channel", default="default", show_default=True)
by_option = click.option(
    "--by", metavar="NAME", help="Who decides it, for the log; the user of this system by default."
)


def who(by: str | None) -> str:
    """Return who decides something, as the log takes it.

    Raises:
        FleetError: the name is too long.
    """
    name = by or getpass.getuser()
    if len(name) > MAX_NAME:
        raise FleetError(f"{name[:80]!r} is over {MAX_NAME} letters", hint="Give a shorter name with --by.")
    return name


@click.command(short_help="Show whose labels fit nobody else's.")
@dir_option
@channel_option
@json_option
def suspects(directory: Path, channel: str, as_json: bool) -> None:
    """Show devices and operators whose labels fit nobody else's, and who is quarantined.

    Every device's labels are compared with what a head says that has learned from everything but that device. What
    is listed agrees with it less than others of the same classes, beyond chance; a class that only this device
    knows is not judged. Nobody is accused by it: look at the labels, then decide.
    """
    from sdk.fleet.cli import open_fleet

    with open_fleet(directory) as store:
        found = suspicion_of(store, channel)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for one in found["quarantined"]:
        say(f"quarantined: {one['words']}")
    for one in found["foreign_codes"]:
        say(one["words"])
    for one in found["suspects"]:
        say(one["words"], f"  {one['command']}")
    if not found["suspects"]:
        click.echo(f"no source of channel {channel} labels against all others")


@click.command(short_help="Hold back what a device said and will say.")
@click.argument("device")
@dir_option
@click.option("--operator", default=ANYBODY, metavar="ID", help="Only what this operator labelled on it.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the log, the page and the device.")
@by_option
@json_option
def quarantine(device: str, directory: Path, operator: str, reason: str, by: str | None, as_json: bool) -> None:
    """Hold back what DEVICE has said and will say: its labels, codes, corrections, names and merges.

    Nothing is deleted. One event in the fleet's log says so; every device follows it, this one too, and learns as
    if DEVICE had never been there. What it still sends is kept, and does not count.
    `headway fleet release` lets it count again.
    """
    _decide(directory, device, operator, MAX_COUNTER, reason, by, as_json)


@click.command(short_help="Let a device count again.")
@click.argument("device")
@dir_option
@click.option("--operator", default=ANYBODY, metavar="ID", help="Only what this operator labelled on it.")
@click.option(
    "--from-now", is_flag=True, help="What it has said so far stays out; only what it says from now on counts."
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for the log.")
@by_option
@json_option
def release(
    device: str,
    directory: Path,
    operator: str,
    from_now: bool,
    reason: str,
    by: str | None,
    as_json: bool,
) -> None:
    """Let DEVICE count again: its labels are back as if it had never been quarantined.

    With --from-now the old ones stay out, for a camera that was mended or an operator who has been shown.
    """
    _decide(directory, device, operator, None if from_now else 0, reason, by, as_json)


def _decide(
    directory: Path,
    device: str,
    operator: str,
    through: int | None,
    reason: str,
    by: str | None,
    as_json: bool,
) -> None:
    """Write a quarantine up to a counter, 0 to end it; None means up to what the device has said so far."""
    from sdk.fleet.cli import open_fleet

    if len(reason) > MAX_REASON or len(operator) > MAX_NAME:
        raise FleetError(
            f"the reason takes {MAX_REASON} letters, an operator {MAX_NAME}", hint="Say it in fewer words."
        )
    decided_by = who(by)
    with open_fleet(directory) as store:
        with store.write() as ledger:
            known = ledger.device(device)
            if known is None:
                raise UnknownDevice(f"there is no device {device}", hint="`headway fleet devices` lists them.")
            before = _last(ledger, known.channel, device, operator)
            ends = through != MAX_COUNTER
            if ends and (before is None or not before.through):
                raise FleetError(
                    f"{_source(device, operator)} is not quarantined", hint="See: headway fleet suspects."
                )
            if not ends and before is not None and before.through == MAX_COUNTER:
                raise FleetError(
                    f"{_source(device, operator)} is quarantined already, by {before.by}: {before.reason}",
                    hint="Nothing needs to be done.",
                )
            upto = ledger.last_counter(device) if through is None else through
            body = Quarantine(device, operator, upto, reason, decided_by)
            ledger.decide(known.channel, [body])
        live, served = store.live_set(known.channel), store.served()
    if as_json:
        answer = {
            "device": device,
            "operator": operator or None,
            "channel": known.channel,
            "through": upto,
            "reason": reason,
            "by": decided_by,
            "live_set_digest": None if live is None else live.digest,
            "live_samples": 0 if live is None else len(live),
            "served": served,
        }
        click.echo(msgspec.json.encode(answer))
        return
    state = {0: "counts again", MAX_COUNTER: "is quarantined"}.get(upto, "counts again from now on")
    say(f"{_source(device, operator)} {state}; the fleet's live set is {live.digest[:12] if live else '-'}")
    if not served:
        click.echo("no fleet service runs on this directory: devices hear of it when one does")


def _last(ledger: Ledger, channel: str, device: str, operator: str) -> Hold | None:
    """Return the last decision about a source, as the fleet's own log has it."""
    found: Hold | None = None
    for entry in ledger.decisions(channel):
        body = entry.body
        if isinstance(body, Quarantine) and (body.device, body.source) == (device, operator):
            found = Hold(device, operator, body.through, body.reason, body.operator, entry.wall_time_us)
    return found


def _source(device: str, operator: str) -> str:
    return f"{operator} on {device}" if operator else device


def suspicion_of(store: FleetStore, channel: str) -> dict[str, Any]:
    """Return a channel's suspects and quarantines, ready for JSON.

    Raises:
        FleetError: there is no such channel, or it has no release.
    """
    from sdk.fleet.suspicion import find_suspects

    learned = store.learned(channel)
    if learned is None:
        raise FleetError(f"channel {channel} has no release", hint="Without one no codes can be compared.")
    found = find_suspects(learned.live, store.summed_moments(channel, learned.live))
    return {
        "channel": channel,
        "live_set_digest": learned.live.digest,
        "suspects": [
            {**dataclasses.asdict(each), "words": _words(each), "command": _command(each)} for each in found
        ],
        "quarantined": [hold_row(hold) for hold in learned.holds],
        "foreign_codes": [
            {
                "device": device,
                "samples": samples,
                "words": f"{device} has said codes of {samples} samples that it has not labelled; these count "
                "nowhere",
            }
            for device, samples in sorted(learned.foreign.items())
        ],
    }


def hold_row(hold: Hold) -> dict[str, Any]:
    """Return a quarantine that stands, ready for JSON."""
    open_end = hold.through == MAX_COUNTER
    words = f"{_source(hold.device, hold.operator)}, by {hold.by}: {hold.reason}"
    return {
        "device": hold.device,
        "operator": hold.operator or None,
        "reason": hold.reason,
        "by": hold.by,
        "utc": hold.wall_time_us / 1e6,
        "later_labels_count": not open_end,
        "words": words if open_end else f"{words} (what it says now counts)",
    }


def _words(suspect: Suspect) -> str:
    words = (
        f"{_source(suspect.device, suspect.operator)}: a head without it agrees with {suspect.agreement:.0%} of "
        f"{suspect.labels} labels ({suspect.low:.0%} to {suspect.high:.0%}); with the others' {suspect.others:.0%}"
    )
    if suspect.recall is not None and suspect.recall_without is not None:
        words += (
            f". It harms: parts that others labelled are recognised {suspect.recall:.0%} of the time, "
            f"{suspect.recall_without:.0%} without it"
        )
    return words


def _command(suspect: Suspect) -> str:
    operator = f" --operator {suspect.operator}" if suspect.operator else ""
    return f"headway fleet quarantine {suspect.device}{operator} --reason '...' --dir DIR"
