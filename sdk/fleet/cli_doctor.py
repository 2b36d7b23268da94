"""`headway fleet doctor`: what of a fleet ends soon or is lost, and the command that mends it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from sdk.expiry import Expiry, Standing
from sdk.fleet.cli_trust import dir_option
from sdk.shown import say, shown

if TYPE_CHECKING:
    from sdk.fleet.lost_chunks import Lacking

FAULT_EXIT: Final = 1
"""As of `headway doctor`."""
_COLOURS: Final = {Standing.GOOD: "green", Standing.SOON: "yellow", Standing.OVER: "red"}


@click.command(short_help="Say what ends soon or is lost, and how to mend it.")
@dir_option
@click.option(
    "--mend-from", "bundles", multiple=True, metavar="BUNDLE", type=click.Path(path_type=Path),
    help="First put back what releases of this fleet have lost of this bundle; may be given several times.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(directory: Path, bundles: Sequence[Path], as_json: bool) -> None:
    """Say until when the fleet's signatures and certificates count, whether the chunks of its releases are all
    there and whole, and the command that mends each.

    Exit code 0 when nothing is lost, has ended or will end soon, 1 otherwise: ninety days before for what takes
    people or a journey. `headway doctor` on a device looks at that device.

    It changes nothing, but for --mend-from: that publishes nothing either and needs no key, and a rollout that is
    under way goes on. A running service hands the chunks out as devices ask for them.
    """
    from sdk.bundle import Bundle
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.expiry import expiries, grouped, row
    from sdk.fleet.lost_chunks import lacking as lacking_of
    from sdk.fleet.lost_chunks import put_back

    menders = [Bundle.open(path) for path in bundles]
    with contextlib.closing(open_fleet(directory)) as store:
        mended = {str(bundle.path): put_back(store, bundle) for bundle in menders}
        lacking = lacking_of(store)
    now_utc = time.time()
    found = expiries(directory)
    wanting = [one for one in found if one.standing(now_utc) is not Standing.GOOD]
    if as_json:
        answer = {
            "wanting": len(wanting) + len(lacking),
            "ends": [row(one, now_utc) for one in found],
            "put_back": mended,
            "lacking": [dataclasses.asdict(one) for one in lacking],
        }
        click.echo(msgspec.json.encode(answer))
    else:
        if not found:
            click.echo("this fleet has neither keys nor certificates: nothing ends")
        for path, count in mended.items():
            say(f"{path}: {count} of its chunks were missing or damaged here, and are back")
        good = [one for one in found if one not in wanting]
        for line in [
            *_lost(directory, lacking),
            *_wanting(grouped(directory, wanting), now_utc),
            *_good(good, now_utc),
        ]:
            click.echo(line)
    if wanting or lacking:
        raise click.exceptions.Exit(FAULT_EXIT)


def _lost(directory: Path, lacking: Sequence[Lacking]) -> list[str]:
    lines = []
    for one in lacking:
        gone = click.style("gone", fg=_COLOURS[Standing.OVER])
        lines += [
            f"{gone} {one.missing} of {one.chunks} chunks of {shown(one.name)} (channel {one.channel}) are "
            "missing or damaged: a device that lacks them cannot fetch it",
            f"     -> headway fleet doctor --dir {directory} --mend-from BUNDLE, its very bundle",
        ]
    return lines


def _wanting(found: Sequence[Expiry], now_utc: float) -> list[str]:
    lines = []
    for one in found:
        lines += [_line(one, now_utc), f"     -> {one.renew}"]
    return lines


def _good(found: Sequence[Expiry], now_utc: float) -> list[str]:
    """Return what to print of those that want nothing: of each kind the first."""
    many = Counter(one.kind for one in found)
    first = {one.kind: one for one in reversed(found)}.values()
    return [
        _line(one, now_utc) + (f" (the first of {many[one.kind]})" if many[one.kind] > 1 else "")
        for one in sorted(first, key=lambda one: one.expires_utc)
    ]


def _line(one: Expiry, now_utc: float) -> str:
    standing = one.standing(now_utc)
    return click.style(f"{standing.value:4}", fg=_COLOURS[standing]) + f" {one.words(now_utc)}"
