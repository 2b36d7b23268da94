"""`headway fleet labels` and `retention`: the whole label log for others to keep, and codes that are not kept."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
import msgspec

from sdk.durable import appearing_output, sync_path
from sdk.errors import FleetError, LabelError
from sdk.fleet.cli_quarantine import by_option, channel_option, dir_option, json_option, who
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.fleet.retention import Erased, Found
    from sdk.logrows import Checked

RECORD_NAME: Final = "retention.jsonl"
"""In the fleet's directory: who let codes be erased, when, by which policy; a line before it and one after."""


@click.group(short_help="Export and check a channel's whole label log.")
def labels() -> None:
    """Export the whole label log of a channel, and check such an export."""


@labels.command(short_help="Write a channel's whole log to a file.")
@dir_option
@channel_option
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="The file to write. Its ending says what: .jsonl or .csv.",
)  # fmt: skip
@click.option("--no-codes", is_flag=True, help="Leave the codes out; their digests are there.")
@json_option
def export(directory: Path, channel: str, out: Path, no_codes: bool, as_json: bool) -> None:
    """Write every entry of a channel's log to a file, its hash chain checked from the first to the last.

    The file appears only when the whole log holds. Of .jsonl, `headway fleet labels check` needs no fleet to check
    it again.
    """
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.labellog import log_rows
    from sdk.logrows import Checked

    write = _writer_of(out)
    checked = Checked()
    with open_fleet(directory) as store:
        with store.read() as ledger:
            if channel not in ledger.channels():
                raise FleetError(f"there is no channel {channel}", hint="`headway fleet devices` shows them.")
        try:
            with appearing_output(out) as draft:
                write(draft, log_rows(store, channel, checked, codes=not no_codes))
        except OSError as error:
            raise FleetError(f"{out}: {error.strerror}", hint="Name a file that you may write.") from error
    _tell(checked, as_json, {"channel": channel, "file": str(out), "size_bytes": out.stat().st_size})


@labels.command(short_help="Check an exported log, every hash of it.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check an exported log, FILE.jsonl: every member of every line, every hash, every chain, every code.

    It says whether anything in the file was changed, moved, left out or put in between. No hash covers that a
    whole log is there, or the end of one, and codes may be erased: compare what it prints with a new export.
    """
    from sdk.logrows import Checked, check_rows

    checked = Checked()
    try:
        with file.open(encoding="utf-8") as stream:
            check_rows(stream, checked)
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{file} cannot be read: {error}", hint="Name a file of `labels export`.") from error
    except LabelError as error:
        raise LabelError(f"{file}: {error}", hint=error.hint) from error
    _tell(checked, as_json, {"file": str(file)})


def _tell(checked: Checked, as_json: bool, more: dict[str, Any]) -> None:
    chains = dict(sorted(checked.chains.items()))
    if as_json:
        answer = {
            **more,
            "entries": checked.entries,
            "codes": checked.codes,
            "codeless": checked.codeless,
            "chain": "holds",
            "logs": {device: {"seq": c.seq, "hash": c.last_hash.hex()} for device, c in chains.items()},
        }
        click.echo(msgspec.json.encode(answer))
        return
    logs = "1 log" if len(chains) == 1 else f"{len(chains)} logs"
    click.echo(
        f"{checked.entries} entries of {logs}, {checked.codes} with their codes and {checked.codeless} whose code "
        "was erased or left out; every hash chain holds"
    )
    width = max(map(len, chains), default=0)
    for device, chain in chains.items():
        click.echo(f"  {device:<{width}}  {chain.seq:>7} entries, the last is {chain.last_hash.hex()[:16]}")


Write = Callable[[Path, Iterator[dict[str, Any]]], None]


def _writer_of(out: Path) -> Write:
    """Return what writes a file of this ending."""
    found: dict[str, Write] = {".jsonl": _write_jsonl, ".csv": _write_csv}
    if out.suffix not in found:
        raise FleetError(f"{out.name} ends neither in .jsonl nor in .csv", hint="Name the file so.")
    return found[out.suffix]


def _write_jsonl(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        _csv_rows(stream, rows)


def _csv_rows(stream: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    from sdk.logrows import COLUMNS, cell, flat

    out = csv.writer(stream, lineterminator="\n")
    out.writerow(COLUMNS)
    for row in rows:
        out.writerow([cell(value) for value in flat(row).values()])


@click.command(short_help="Erase codes that are older than allowed.")
@dir_option
@channel_option
@click.option(
    "--older-than", "older_than_days", type=click.FloatRange(min=0), required=True, metavar="DAYS",
    help="Codes that came before that many days; 0 is all.",
)  # fmt: skip
@click.option("--live-too", is_flag=True, help="Also those that count now: nothing learns from these any more.")
@click.option(
    "--unread-too",
    is_flag=True,
    help="Also where a release cannot be read that may bring the samples itself.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@click.option("--empty-classes", is_flag=True, help="Also all samples of a class that the release brings.")
@by_option
@json_option
def retention(
    directory: Path,
    channel: str,
    older_than_days: float,
    live_too: bool,
    unread_too: bool,
    dry_run: bool,
    empty_classes: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Erase codes that are older than the plant's policy keeps them; events stay, and the hash chain still holds.

    A code reveals something of its picture. Without --live-too only those go that nothing rests on: of samples
    that were withdrawn, and of feature spaces that none of the last three releases has, nor a rollout that may go
    on, nor a device. With it the samples are erased for good: devices do not say their codes again by themselves.
    What is erased is said in the log, so that every device's live set stays the fleet's; devices keep their own
    copies.

    A release that the channel had and that cannot be read may bring the samples itself: with --live-too nothing
    goes then, and without it nothing of that release's feature space; --unread-too erases all the same.
    """
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.retention import DAY_S, Due, Erased, Policy, due, erase, missing

    decided_by, now_utc = who(by), time.time()
    policy = Policy(older_than_days * DAY_S, live_too, unread_too)
    with open_fleet(directory) as store:
        with store.read() as ledger:
            if channel not in ledger.channels():
                raise FleetError(f"there is no channel {channel}", hint="`headway fleet devices` shows them.")
        found, erased = due(store, channel, policy, now_utc), Erased()

        def told(what: list[Due]) -> dict[str, Any]:
            back = [] if live_too else missing(store, channel, what)
            return {
                "channel": channel,
                "older_than_days": older_than_days,
                "live_too": live_too,
                "samples": len({each.body.sample for each in what}),
                "live_samples": sum(each.live for each in what),
                "size_bytes": sum(each.size_bytes for each in what),
                "erased": erased.codes,
                "kept": len(erased.kept),
                "younger": found.younger,
                "ahead": found.ahead,
                "unread": [dataclasses.asdict(one) for one in found.unread],
                "held": found.held,
                "brought": found.brought,
                "emptied": list(found.emptied),
                "going_back": [dataclasses.asdict(one) for one in back],
            }

        answer = told(found.what)
        if not dry_run and found.what:
            found.check_read()  # before anything is noted
            if not empty_classes:
                found.check_emptied()
            line = {"utc": now_utc, "by": decided_by}
            _note(directory, {**line, "state": "begun", **answer}, "Nothing is erased; see to the disk first.")
            erased = erase(store, found, empty_classes=empty_classes)
            answer = told(erased.what)
            _note(directory, {**line, "state": "done", **answer}, "The codes are erased; note it by hand.")
    _warn(found)
    if as_json:
        click.echo(msgspec.json.encode(answer))
    else:
        _show(found, erased, answer, dry_run=dry_run)


def _warn(found: Found) -> None:
    if found.ahead:
        click.echo(
            f"this machine's clock is behind, or was ahead: by it {found.ahead} entries of the log came later "
            "than now. They count as no older than what came after them; set the clock right",
            err=True,
        )
    if found.unread:
        if found.policy.live_too:
            so = "what it brings of these samples counts again should the channel go back to it"
        elif found.policy.unread_too:
            so = "what it brings of these samples does not count should the channel go back to it"
        else:
            so = "nothing goes of its feature space, since it may bring the samples itself"
        named = ", ".join(map(str, found.unread))
        click.echo(
            f"cannot be read: {named}; {so}. Its bundle puts it back: headway fleet doctor --mend-from", err=True
        )


def _show(found: Found, erased: Erased, answer: dict[str, Any], *, dry_run: bool) -> None:
    counts = f"{answer['live_samples']} of them count"
    said = f"codes of {answer['samples']} samples ({counts}), {answer['size_bytes']} bytes"
    click.echo(f"would erase {said}" if dry_run else f"erased {said}")
    if found.brought:
        emptied = "".join(f"; class {name} would lose all" for name in found.emptied) if dry_run else ""
        say(f"of these {found.brought} the release brings itself{emptied}")
    if found.held:
        stay = "1 sample keeps" if found.held == 1 else f"{found.held} samples keep"
        click.echo(
            f"{stay} codes as old that do not count: of a source that is quarantined, or of a device that has not "
            "labelled them; see `headway fleet suspects`"
        )
    if found.younger:
        stay = "1 sample counts" if found.younger == 1 else f"{found.younger} samples count"
        click.echo(
            f"{stay} on until a younger code, in another release or precision, is as old: with that one "
            "there, devices would say this one anew"
        )
    if erased.kept:
        stay = "1 sample was" if len(erased.kept) == 1 else f"{len(erased.kept)} samples were"
        click.echo(f"{stay} labelled while this went on, or a code said, and kept all codes")
    for one in answer["going_back"]:
        named = "a release that never was on this channel"
        if one["release"]:
            named = f"{one['release']} ({one['precision']})"
        click.echo(
            f"{one['samples']} of these are labelled, with codes of {named}: should the channel go back to it, "
            "they count as soon as the devices that have their pictures have said the codes anew"
        )


def _note(directory: Path, line: dict[str, Any], hint: str) -> None:
    file = directory / RECORD_NAME
    try:
        with file.open("ab") as stream:
            stream.write(msgspec.json.encode(line) + b"\n")
        sync_path(file)
        sync_path(directory)
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint=hint) from error
