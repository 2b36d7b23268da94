"""How a doctor's findings are printed, of a device or of a fleet, one as the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from sdk.shown import say, shown

if TYPE_CHECKING:
    from sdk.finding import Finding

FAULT_EXIT: Final = 1
"""How a doctor ends that has found something to fix."""
_COLOURS: Final = {"good": "green", "note": "yellow", "fault": "red"}


def show(finding: Finding) -> None:
    """Print a finding, and below it what to do."""
    level = click.style(f"{finding.level.value:5}", fg=_COLOURS[finding.level.value])
    click.echo(f"{level} {finding.area:11} {shown(finding.what)}")  # `say` would show the colour's codes as text
    if finding.fix:
        say(f"{'':17} -> {finding.fix}")
