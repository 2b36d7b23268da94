"""`headway doctor`, `headway agent unit`, `backup` and `restore`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from device_agent.private import private_files
from sdk.cli_findings import FAULT_EXIT, show
from sdk.owners import given_to_owner
from sdk.shown import say

if TYPE_CHECKING:
    from sdk.finding import Finding

_LEFT_OUT_SHOWN: Final = 10
_SITE = click.argument("site_file", metavar="SITE.TOML", type=click.Path(path_type=Path))


@click.command()
@click.argument("site_file", metavar="[SITE.TOML]", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(site_file: Path | None, as_json: bool) -> None:
    """Say what this machine can run, and what to fix.

    Looks at runtimes and clock; with a SITE.TOML also at its camera, release, broker, disk, store and permissions.
    Exit code 0 when nothing keeps the agent from working, 1 when something does.
    """
    from device_agent.doctor import examine
    from sdk.finding import Level

    found: list[Finding] = []
    for finding in examine(site_file):
        found.append(finding)
        if not as_json:
            show(finding)
    faults = sum(finding.level is Level.FAULT for finding in found)
    if as_json:
        click.echo(json.dumps({"faults": faults, "findings": [asdict(each) for each in found]}, indent=1))
    else:
        click.echo(f"{faults} to fix" if faults else "nothing to fix")
    if faults:
        raise click.exceptions.Exit(FAULT_EXIT)


@click.command(short_help="Print a hardened systemd unit.")
@_SITE
@click.option("--user", metavar="NAME", help="Who runs the agent. Default: headway, or who is not root.")
def unit(site_file: Path, user: str | None) -> None:
    """Print a systemd unit for this device: hardened, watched, restarted.

    \b
      headway agent unit site.toml | sudo tee /etc/systemd/system/headway.service
    """
    from device_agent.site_file import load_site
    from device_agent.systemd import UnitPlan, default_user, headway_command, unit_text

    plan = UnitPlan(site_file, load_site(site_file), user or default_user(), headway_command())
    click.echo(unit_text(plan), nl=False)
    data_dir = plan.site.data_dir.resolve()
    if not data_dir.is_dir():
        click.echo(f"first: sudo install -d -o {plan.user} -m 0700 {data_dir}", err=True)


@click.command(short_help="Copy labels, pictures and release to a new folder.")
@_SITE
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
def backup(site_file: Path, target: Path) -> None:
    """Copy the labels, their pictures and the release in service to a new folder; the agent may run."""
    from device_agent.backup import make_backup
    from device_agent.site_file import load_site

    site = load_site(site_file)
    left_out: list[str] = []
    with private_files():
        made = make_backup(site.data_dir, target, on_no_release=left_out.append)
    click.echo(f"{target}: {made.entries} log entries, {made.labelled} labelled samples, {made.images} pictures")
    own = site.bundle
    none = "none has come to this device" if own is None else f"what serves is {own}, which is no part of a backup"
    _say_release(target, made.release, left_out, none)


def _say_release(folder: Path, release: str, left_out: list[str], none: str) -> None:
    """Print which release is in a backup, or came out of it; where none did, why."""
    from device_agent.backup import release_words

    if release:
        say(f"release {release_words(folder, release)}")
        for why in left_out:
            say(f"left out: {why}", err=True)
    else:
        say(f"no release: {'; '.join(left_out) or none}")


@click.command()
@_SITE
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
def restore(site_file: Path, source: Path) -> None:
    """Make this device's data folder from a backup. The agent must not run, and the folder be empty or missing.

    Takes the labels, their pictures and the release; what else lies in DIR is left out, and named. Run by root it
    makes files of the user whose the folder is, or the one above it.
    """
    from device_agent.accepting import LOST_AS
    from device_agent.backup import restore_backup
    from device_agent.site_file import load_site
    from device_agent.store import STORE_NAME, read_kept

    site = load_site(site_file)
    left_out: list[str] = []
    no_release: list[str] = []
    with private_files(), given_to_owner(site.data_dir):
        facts = restore_backup(
            source,
            site.data_dir,
            site.device,
            in_fleet=site.mqtt is not None,
            on_left_out=left_out.append,
            on_no_release=no_release.append,
        )
    click.echo(f"{site.data_dir}: {facts.entries} log entries, {facts.labelled} labelled samples")
    for name in left_out[:_LEFT_OUT_SHOWN]:
        click.echo(f"left out, no part of a backup or not whole: {name!r}", err=True)
    if len(left_out) > _LEFT_OUT_SHOWN:
        click.echo(f"left out also: {len(left_out) - _LEFT_OUT_SHOWN} more", err=True)
    _say_release(site.data_dir, "" if no_release else facts.release, no_release, "the backup has none")
    if read_kept(site.data_dir / STORE_NAME, LOST_AS):
        click.echo(
            "it does not say what people chose to be rejected: choose it again on the page (Quality)", err=True
        )
    if site.mqtt is not None:
        click.echo("labels are taken as soon as the device has heard from its fleet")
