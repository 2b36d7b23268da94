"""`headway agent update`: a release from a stick onto this device. Heavy imports happen inside the command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from device_agent.private import private_files
from sdk.errors import ConfigError, Incompatible
from sdk.owners import given_to_owner
from sdk.shown import say

if TYPE_CHECKING:
    from device_agent.config import Site
    from sdk.wire import ReleaseRef

ASK_EVERY_S: Final = 0.25
ASK_TIMEOUT_S: Final = 5.0


@click.command(short_help="Take a release from a stick.")
@click.argument("site_file", metavar="SITE.TOML", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "folder",
    metavar="STICK",
    required=True,
    type=click.Path(path_type=Path),
    help="What `headway bundle pack` wrote.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to watch the update; 0 returns when the stick may be taken out.",
)
def update(site_file: Path, folder: Path, wait_s: float) -> None:
    """Take a release from a stick, as from the fleet: same signatures, same versions, same trial.

    Copies it into the agent's data folder, so run this as the user who runs the agent. An agent that runs takes it
    from there at once, one that does not at its next start; the device needs no network for it, and never needs to
    have had one. Ends with exit code 2 when the release was refused or rolled back.
    """
    from device_agent.site_file import load_site
    from device_agent.stick import bring
    from sdk.stick import Stick

    site = load_site(site_file)
    with (
        private_files(),
        given_to_owner(site.data_dir),
        Stick(folder) as stick,
        click.progressbar(length=1, label=stick.index.release.name) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        ref = bring(stick, site.data_dir, site.channel, progress)
    say(f"{ref.name} is copied; the stick may be taken out")
    if not _runs(site):
        click.echo(f"no agent runs here: it takes it when it starts, headway agent run {site_file}")
    elif wait_s:
        _watch(site, ref, wait_s)


def _state(site: Site) -> dict[str, Any] | None:
    from device_agent.agent import running_state

    try:
        return running_state(site, ASK_TIMEOUT_S)
    except (OSError, ValueError):
        return None


def _runs(site: Site) -> bool:
    """Return whether an agent runs here; one that is too busy to answer in time does."""
    from device_agent.agent import running_state

    try:
        running_state(site, ASK_TIMEOUT_S)
    except (FileNotFoundError, ConnectionError, ValueError):
        return False
    except OSError as error:
        return not isinstance(getattr(error, "reason", None), ConnectionError)
    return True


def _watch(site: Site, ref: ReleaseRef, wait_s: float) -> None:
    """Say what becomes of an order, to its end.

    Raises:
        Incompatible: it was refused, rolled back, or something else was assigned.
        ConfigError: it takes longer than `wait_s`.
    """
    from device_agent.stick import is_ordered, refusal

    told = ""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        refused = refusal(site.data_dir)
        if refused is not None and refused.release_id == ref.release_id:
            raise Incompatible(f"{ref.name} is refused: {refused.reason}", hint=refused.hint)
        ordered = is_ordered(site.data_dir)
        state = _state(site) or {}
        update = state.get("update")
        # Rolled back while the order still waits: so ended an earlier attempt.
        earlier = ordered and update is not None and update["state"] == "rolled_back"
        if update and update["release_id"] == ref.release_id and not earlier:
            if update["state"] != told:
                told = update["state"]
                say(told)
            if told == "rolled_back":
                raise Incompatible(f"{ref.name} was rolled back: {update['reason']}", hint="Look at its reason.")
            if told == "committed":
                return
        elif state and not ordered:
            if (state.get("release") or {}).get("id") == ref.release_id:
                click.echo("runs already")
                return
            if refusal(site.data_dir) is None:
                raise Incompatible(
                    f"{ref.name} is not taken: something else was assigned meanwhile",
                    hint="See `headway agent status`; on a network the fleet has the last word.",
                )
        time.sleep(ASK_EVERY_S)
    raise ConfigError(
        f"{ref.name} is not in service after {wait_s:g} s", hint="It goes on: see `headway agent status`."
    )
