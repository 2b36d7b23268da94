"""`headway fleet doctor`: what of a fleet ends soon, and the command that renews it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from sdk.expiry import Expiry, Standing
from sdk.fleet.cli_trust import dir_option

FAULT_EXIT: Final = 1
"""As of `headway doctor`."""
_COLOURS: Final = {Standing.GOOD: "green", Standing.SOON: "yellow", Standing.OVER: "red"}


@click.command(short_help="Say what ends soon, and how to renew it.")
@dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(directory: Path, as_json: bool) -> None:
    """Say until when the fleet's signatures and certificates count, and the command that renews each.

    Exit code 0 when nothing has ended or will end soon, 1 when something has or will: ninety days before for what
    takes people or a journey. `headway doctor` on a device says the same of that device.
    """
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.expiry import expiries, grouped, row

    open_fleet(directory).close()
    now_utc = time.time()
    found = expiries(directory)
    wanting = [one for one in found if one.standing(now_utc) is not Standing.GOOD]
    if as_json:
        click.echo(msgspec.json.encode({"wanting": len(wanting), "ends": [row(one, now_utc) for one in found]}))
    else:
        if not found:
            click.echo("this fleet has neither keys nor certificates: nothing ends")
        good = [one for one in found if one not in wanting]
        for line in [*_wanting(grouped(directory, wanting), now_utc), *_good(good, now_utc)]:
            click.echo(line)
    if wanting:
        raise click.exceptions.Exit(FAULT_EXIT)


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
