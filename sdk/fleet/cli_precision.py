"""`headway fleet precision`: what devices measured of each precision, and moving a channel to another."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sdk.errors import FleetError
from sdk.fleet.cli_keep import lost_option, say_losses
from sdk.fleet.cli_progress import ONLINE_WORD
from sdk.fleet.cli_rollout import plan_of
from sdk.fleet.cli_trust import keys_option, passphrase_option, publish_bundle

if TYPE_CHECKING:
    from sdk.fleet.channel_ledger import Publication
    from sdk.fleet.precision import Measured
    from sdk.fleet.store import FleetStore

_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The fleet's directory.",
)
_channel = click.option("--channel", default="default", show_default=True, help="Which channel.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group(short_help="Show precisions as measured, or move to one.")
def precision() -> None:
    """Show what devices measured of each precision, or move a channel to another.

    Codes of two precisions do not mix: all devices of a channel run the same one. Which is fastest is measured on
    each device, never assumed: int8 is often slower than fp32.
    """


@precision.command(short_help="Show what each device measured.")
@_dir
@_channel
@_json
def show(directory: Path, channel: str, as_json: bool) -> None:
    """Show, by device, the time of one frame through the backbone in each precision of the channel's release."""
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.precision import faster, precisions_of

    with open_fleet(directory) as store:
        publication, rows = _table_of(store, channel)
        names = precisions_of(store, publication)
        with store.read() as ledger:
            heard = ledger.broker_away() is None
    if as_json:
        told = {
            "channel": channel,
            "release": publication.ref.name,
            "release_id": publication.ref.release_id,
            "precisions": names,
            "devices": rows,
            "time_as_share": {name: faster(name, rows) for name in names},
        }
        click.echo(msgspec.json.encode(told))
        return
    from rich.table import Table

    from sdk.console import Console, plain

    console = Console(soft_wrap=True)
    table = Table(
        "device", "", "serves", *(f"{plain(name)}, ms" for name in names), title=plain(publication.ref.name)
    )
    for row in rows:
        cells = ["no" if name in row.refused else _ms(row.frame_ms.get(name)) for name in names]
        serves = f"{row.serves or '-'}{' (site.toml)' if row.fixed else ''}"
        there = "unknown" if row.online and not heard else ONLINE_WORD[row.online]
        table.add_row(plain(row.device), there, plain(serves), *cells)
    console.print(table)
    for name in names:
        share = faster(name, rows)
        can = sum(name in row.frame_ms for row in rows)
        speed = "" if share is None else f"; takes {share:.2f} times as long as what serves (median)"
        console.print(f"{plain(name)}: {can} of {len(rows)} devices can run it{speed}", highlight=False)
    for row in rows:
        for name, why in row.refused.items():
            console.print(plain(f"{row.device} cannot run {name}: {why}"), highlight=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


@precision.command(short_help="Roll the release out in another precision.")
@click.argument("target", metavar="PRECISION")
@_dir
@_channel
@click.option("--waves", default="1,10%,100%", show_default=True, help="As with `headway fleet publish`.")
@click.option("--approve", is_flag=True, help="Each wave after the first waits for a person.")
@click.option(
    "--soak", "soak_minutes", type=float, default=10.0, show_default=True, metavar="MINUTES",
    help="How long a wave must do well before the next begins.",
)  # fmt: skip
@click.option("--deadline", "deadline_hours", type=float, default=24.0, show_default=True, metavar="HOURS")
@click.option("--max-failed", type=int, default=0, show_default=True)
@click.option("--max-recall-drop", type=float, default=5.0, show_default=True, metavar="POINTS")
@click.option("--max-unknown-rise", type=float, default=10.0, show_default=True, metavar="POINTS")
@click.option("--max-latency-ratio", type=float, default=2.0, show_default=True)
@click.option(
    "--unmeasured", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="So many devices may have no figure for it.",
)  # fmt: skip
@lost_option
@keys_option
@passphrase_option
@_json
def move(
    target: str,
    directory: Path,
    channel: str,
    waves: str,
    approve: bool,
    max_latency_ratio: float,
    unmeasured: int,
    max_lost_labels: int,
    keys_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Roll out the channel's release with PRECISION in the place of the one that serves.

    \b
      headway fleet precision show --dir fleet
      headway fleet precision move int8 --dir fleet --waves 1,10%,100%
      headway fleet rollout show --dir fleet --watch

    Refused where a device's own figures say that it cannot run it, or takes too long, or nobody has measured it;
    and where labels would count no more, since nobody has their pictures.
    On the way each device carries its labels into the other precision's feature space and compares itself with
    before; the rollout halts and goes back by itself as any other.
    """
    from sdk.fleet.cli import open_fleet
    from sdk.fleet.losing import check_losses, losses
    from sdk.fleet.precision import check_move, with_precision_first

    plan = plan_of(
        waves, approve=approve, max_latency_ratio=max_latency_ratio, max_lost_labels=max_lost_labels, **limits
    )
    with open_fleet(directory) as store, tempfile.TemporaryDirectory(prefix="headway-precision-") as scratch:
        publication, rows = _table_of(store, channel)
        bundle = with_precision_first(store, publication, target, Path(scratch) / "bundle")
        check_move(target, rows, max_latency_ratio=max_latency_ratio, unmeasured=unmeasured)
        lost = losses(store, channel, bundle, None)
        check_losses(lost, max_lost_labels)
        published = publish_bundle(
            store,
            bundle,
            channel=channel,
            keys_dir=keys_dir,
            passphrase_file=passphrase_file,
            plan=plan,
        )
        served = store.served()
    ref = published.ref
    if as_json:
        told: dict[str, Any] = {
            "release_id": ref.release_id,
            "name": ref.name,
            "channel": channel,
            "precision": target,
        }
        told["lost_labels"] = {loss.device: loss.labels for loss in lost}
        click.echo(msgspec.json.encode(told))
        return
    click.echo(
        f"{ref.name} with {target} is release {ref.release_id[:12]} on channel {channel}, in waves of {waves}"
    )
    say_losses(lost)
    click.echo(f"see: headway fleet rollout show --dir {directory}")
    if not served:
        click.echo("no fleet service runs on this directory; it begins when one starts")


def _table_of(store: FleetStore, channel: str) -> tuple[Publication, list[Measured]]:
    """Return a channel's release and what its devices measured of it.

    Raises:
        FleetError: it has none.
    """
    from sdk.fleet.precision import measured

    with store.read() as ledger:
        publication = ledger.current(channel)
        devices = ledger.devices(channel)
    if publication is None:
        raise FleetError(
            f"channel {channel} has no release", hint="Publish one: headway fleet publish BUNDLE --dir DIR."
        )
    return publication, measured(devices, publication.ref.release_id)
