"""`headway fleet rollout`: watch a release reach its channel in waves, and have a say in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sdk.errors import FleetError
from sdk.fleet.cli_progress import ONLINE_WORD
from sdk.shown import say

if TYPE_CHECKING:
    from rich.table import Table

    from sdk.fleet.channel_ledger import Publication
    from sdk.fleet.rollout import Member, Plan, Rollout
    from sdk.fleet.store import FleetStore

_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The fleet's directory.",
)
_channel = click.option("--channel", default="default", show_default=True, help="Whose rollout.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
WATCH_S = 0.5


@click.group(short_help="Watch, advance, halt or resume a rollout.")
def rollout() -> None:
    """Watch a rollout, let its next wave begin, stop it, or go on with it.

    A rollout begins with `headway fleet publish BUNDLE --waves 1,10%,100%`. It goes on while devices do well and
    halts by itself when one does not: then what is out goes back to the channel's release before.
    """


def plan_of(
    waves: str | None,
    *,
    approve: bool,
    soak_minutes: float,
    deadline_hours: float,
    max_failed: int,
    max_recall_drop: float,
    max_unknown_rise: float,
    max_latency_ratio: float,
    max_lost_labels: int = 0,
) -> Plan | None:
    """Return the plan that the options of `headway fleet publish` say; None where they ask for no waves.

    Raises:
        FleetError: they make no sense.
    """
    from sdk.fleet.rollout import Plan, parse_waves

    if waves is None:
        if approve:
            raise FleetError("--approve is about waves", hint="Say which: --waves 1,10%,100%.")
        return None
    try:
        return msgspec.convert(
            {
                "waves": parse_waves(waves),
                "approve": approve,
                "soak_s": soak_minutes * 60,
                "deadline_s": deadline_hours * 3600,
                "max_failed": max_failed,
                "max_recall_drop": max_recall_drop / 100,
                "max_unknown_rise": max_unknown_rise / 100,
                "max_latency_ratio": max_latency_ratio,
                "max_lost_labels": max_lost_labels,
            },
            Plan,
        )
    except msgspec.ValidationError as error:
        raise FleetError(
            f"these waves make no sense: {error}", hint="See headway fleet publish --help."
        ) from error


@rollout.command(short_help="Show how far the newest rollout is.")
@_dir
@_channel
@click.option("--watch", is_flag=True, help="Go on showing it until it ends; Ctrl-C only stops the watching.")
@_json
def show(directory: Path, channel: str, watch: bool, as_json: bool) -> None:
    """Show how far a channel's newest rollout is, and how its devices do."""
    from sdk.fleet.cli import open_fleet

    with open_fleet(directory) as store:
        from rich.live import Live

        from sdk.console import Console

        console = Console()
        if as_json or not watch or not console.is_terminal:
            for report in changes(store, channel) if watch else [overview(store, channel)]:
                if as_json:
                    click.echo(msgspec.json.encode(report))
                else:
                    console.print(_table(report))
            return
        report = overview(store, channel)
        with Live(_table(report), console=console) as live:
            while report["open"]:
                time.sleep(WATCH_S)
                report = overview(store, channel)
                live.update(_table(report))


@rollout.command()
@_dir
@_channel
@_json
def approve(directory: Path, channel: str, as_json: bool) -> None:
    """Let the next wave of a rollout that waits for it begin."""
    _act(directory, channel, as_json, "approved: the next wave begins", lambda ledger: ledger.approve(channel))


@rollout.command(short_help="Stop a rollout and take the release back.")
@_dir
@_channel
@click.option("--reason", default="halted by a person", show_default=True, help="Why, for those who look later.")
@_json
def halt(directory: Path, channel: str, reason: str, as_json: bool) -> None:
    """Stop a rollout: devices that have the release go back to the channel's release before."""
    _act(directory, channel, as_json, "halted: what is out goes back", lambda ledger: ledger.halt(channel, reason))


@rollout.command(short_help="Go on with a rollout that halted.")
@_dir
@_channel
@_json
def resume(directory: Path, channel: str, as_json: bool) -> None:
    """Go on with a rollout that halted, from the wave that was out: what made it halt has been mended."""
    _act(directory, channel, as_json, "goes on", lambda ledger: ledger.resume(channel))


def _act(directory: Path, channel: str, as_json: bool, words: str, what: Any) -> None:
    from sdk.fleet.cli import open_fleet

    with open_fleet(directory) as store:
        with store.write() as ledger:
            what(ledger)
        if as_json:
            click.echo(msgspec.json.encode(overview(store, channel)))
        else:
            say(f"{channel}: {words}")
            if not store.served():
                click.echo("no fleet service runs on this directory; it is carried out when one starts")


def overview(store: FleetStore, channel: str) -> dict[str, Any]:
    """Return a channel's newest rollout and its devices, ready for JSON.

    Raises:
        FleetError: there was none.
    """
    with store.read() as ledger:
        found = ledger.rollout(channel)
        if found is None:
            raise FleetError(
                f"there was no rollout on channel {channel}",
                hint="Begin one: headway fleet publish BUNDLE --waves 1,10%,100%.",
            )
        publication, rollout = found
        members = ledger.members(publication.id)
        channel_size = len(ledger.devices(channel))
        current = ledger.current(channel)
        heard = ledger.broker_away() is None
    after = None if current is None or current.id < publication.id else current
    return {
        "channel": channel,
        "release": publication.ref.name,
        "release_id": publication.ref.release_id,
        "current": None if current is None else current.ref.name,
        "state": rollout.state.value,
        "open": rollout.open,
        "reason": rollout.reason,
        "wave": rollout.wave,
        "waves": rollout.plan.waves,
        "wave_began_utc": rollout.wave_began_utc or None,
        "well_since_utc": rollout.well_since_utc,
        "plan": msgspec.to_builtins(rollout.plan),
        "after": None if after is None or after.ref == publication.ref else after.ref.name,
        "devices": [_device(publication, rollout, member, after, heard=heard) for member in members],
        "not_reached": channel_size - len(members),
    }


def changes(store: FleetStore, channel: str) -> Iterator[dict[str, Any]]:
    """Yield a rollout's overview now, and each time that its state or wave has changed, until it has ended.

    Raises:
        FleetError: there was none.
    """
    before = None
    while True:
        report = overview(store, channel)
        now = report["release_id"], report["state"], report["wave"]
        if now != before:
            before = now
            yield report
        if not report["open"]:
            return
        time.sleep(WATCH_S)


def _device(
    publication: Publication, rollout: Rollout, member: Member, after: Publication | None, *, heard: bool
) -> dict[str, Any]:
    from sdk.fleet.registry import settled
    from sdk.fleet.rollout import failure

    release_id = publication.ref.release_id
    end = settled(release_id, member.state, member.running)
    state = member.state or end
    word = "assigned" if state is None else state.value
    return {
        "device": member.device,
        "wave": member.wave,
        "online": member.online,
        "presence": "unknown" if member.online and not heard else ONLINE_WORD[member.online],
        "state": word,
        "stands": _stands(word, rollout, member.running == release_id, after, release_id),
        "runs_it": member.running == release_id,
        "trouble": failure(rollout.plan, member, release_id),
        "faults": member.faults if member.online and end is None else (),
        "before": None if member.before is None else msgspec.to_builtins(member.before),
        "now": None if member.now is None else msgspec.to_builtins(member.now),
    }


def _stands(state: str, rollout: Rollout, runs_it: bool, after: Publication | None, release_id: str) -> str:
    """Return how far a device is with the release, in words.

    Args:
        state: The last that it said of it: that it took it, where it was taken back from it since.
        rollout: The release's.
        runs_it: Whether it runs the release now.
        after: What the channel has been given since; None where it is what it was before.
        release_id: The release's.
    """
    if after is not None and after.ref.release_id != release_id:
        return "runs another now" if state == "committed" and not runs_it else state
    if after is not None or rollout.state.value != "halted" or state == "rolled_back":
        return state
    if runs_it:
        return "still runs it"
    return "gone back" if state == "committed" else "not taken"


def _table(report: dict[str, Any]) -> Table:
    from rich.table import Table

    from sdk.console import plain

    title = (
        f"{report['release']} on {report['channel']}: {report['state']}, wave {report['wave']} of "
        f"{len(report['waves'])} ({', '.join(report['waves'])})"
    )
    table = Table("device", "wave", "", "update", "own labels", "unknown", "ms", "trouble", title=plain(title))
    for one in report["devices"]:
        before, now = one["before"] or {}, one["now"] or {}
        table.add_row(
            plain(one["device"]),
            str(one["wave"]),
            one["presence"],
            plain(one["stands"]),
            _change(_known(before), _known(now), "{}"),
            _change(before.get("unknown"), now.get("unknown"), "{:.0%}"),
            _change(before.get("latency_ms"), now.get("latency_ms"), "{:.0f}"),
            plain(one["trouble"] or "; ".join(one["faults"])),
        )
    left = report["not_reached"]
    under = [f"{left} device{'s' if left != 1 else ''} not reached yet"] if left else []
    if report["reason"]:
        under.insert(0, report["reason"])
    table.caption = plain("; ".join(under))
    return table


def _known(doing: dict[str, Any]) -> str | None:
    """Return how many of its own labels a device knows, and of how many that count; None where it has none."""
    if doing.get("recall") is None:
        return None
    count = doing.get("own_labels")
    return f"{doing['recall']:.0%}" + ("" if count is None else f" of {count}")


def _change(before: float | str | None, now: float | str | None, form: str) -> str:
    words = ["-" if value is None else form.format(value) for value in (before, now)]
    return words[1] if words[0] in ("-", words[1]) else " -> ".join(words)
