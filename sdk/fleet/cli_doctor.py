"""`headway fleet doctor`: the ground a fleet stands on, what ends soon or is lost, and what mends each."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sdk.cli_findings import FAULT_EXIT, show
from sdk.fleet.cli_broker import broker_options, broker_settings
from sdk.fleet.cli_trust import dir_option
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.fleet.doctor.broker import Way


@click.command(short_help="Judge database, service, broker, disk, clock, keys; say what to fix.")
@dir_option
@click.option(
    "--mend-from", "bundles", multiple=True, metavar="BUNDLE", type=click.Path(path_type=Path),
    help="First put back what releases of this fleet have lost of this bundle; may be given several times.",
)  # fmt: skip
@broker_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(directory: Path, bundles: Sequence[Path], as_json: bool, **way: Any) -> None:
    """Judge the ground on which a fleet's service stands, and say what to fix.

    Looks at permissions, database, service, broker, disk, clock, at the ends of signatures and certificates, the
    chunks of the releases in use, and the devices. Each finding is good, a note or a fault, with what to do. Give
    the options for the broker that `headway fleet serve` is given.

    Exit code 0 when nothing is to fix; 1 when something is, or when a signature or certificate ends soon: ninety
    days before for what takes people or a journey. `headway doctor` on a device looks at that device.

    It changes nothing, beside a running service as well as without one, but for --mend-from: that publishes
    nothing either and needs no key, and a rollout that is under way goes on. A running service hands the chunks
    out as devices ask for them.
    """
    from sdk.bundle import Bundle
    from sdk.expiry import Standing
    from sdk.finding import Level
    from sdk.fleet.cli import check_fleet, open_fleet
    from sdk.fleet.database import left_by_fleet
    from sdk.fleet.doctor.examine import Examination
    from sdk.fleet.expiry import row
    from sdk.fleet.lost_chunks import put_back

    if left_by_fleet(directory) is None:
        check_fleet(directory)
    menders = [Bundle.open(path) for path in bundles]
    mended: dict[str, int] = {}
    if menders:
        with contextlib.closing(open_fleet(directory)) as store:
            mended = {str(bundle.path): put_back(store, bundle) for bundle in menders}
    for path, count in mended.items() if not as_json else ():
        say(f"{path}: {count} of its chunks were missing or damaged here, and are back")
    looked = Examination(directory, lambda: _way(directory, **way))
    found = []
    for finding in looked:
        found.append(finding)
        if not as_json:
            show(finding)
    now_utc = time.time()
    faults = sum(each.level is Level.FAULT for each in found)
    ending = sum(one.standing(now_utc) is not Standing.GOOD for one in looked.ends)
    if as_json:
        answer = {
            "faults": faults,
            "wanting": ending + len(looked.lost),
            "findings": [dataclasses.asdict(each) for each in found],
            "ends": [row(one, now_utc) for one in looked.ends],
            "put_back": mended,
            "lacking": [dataclasses.asdict(one) for one in looked.lost],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=1))
    else:
        notes = sum(each.level is Level.NOTE for each in found)
        click.echo(f"{faults} to fix, {notes} to look at" if faults or notes else "nothing to fix")
    if faults or ending:
        raise click.exceptions.Exit(FAULT_EXIT)


def _way(directory: Path, **way: Any) -> Way:
    from sdk.fleet.broker import runs
    from sdk.fleet.cli_enroll import PID_NAME, tls_folder
    from sdk.fleet.doctor.broker import Way
    from sdk.fleet.enrolment import read_place

    folder = tls_folder(directory)
    settings, secured = broker_settings(directory, here=runs(folder / PID_NAME), **way)
    return Way(settings, read_place(folder).host if secured else None)
