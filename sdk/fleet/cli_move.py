"""`headway fleet move-store`: a fleet that has grown goes from the file in its directory to a PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from sdk.fleet.cli_database import address_of, database_options
from sdk.fleet.cli_trust import dir_option


@click.command("move-store", short_help="Move the fleet from SQLite to PostgreSQL.")
@dir_option
@database_options("An empty PostgreSQL database of its own")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def move_store(directory: Path, url: str | None, url_file: Path | None, as_json: bool) -> None:
    """Move the fleet from the SQLite in its directory to a PostgreSQL database: all of it, or nothing.

    Stop `headway fleet serve` first; devices notice nothing but a pause, and labels wait on them. Every hash chain
    is checked, all rows go over in one transaction and are compared there. Then the directory names the database,
    and `fleet.db` is kept as `fleet.db.moved`.
    """
    from sdk.fleet.moving import move_store as move

    address = address_of(url, url_file)
    if address is None:
        raise click.UsageError("Name the database: --database-file FILE, or --database URL.")
    moved = move(directory, address)
    if as_json:
        click.echo(msgspec.json.encode({"rows": moved.rows, "kept": str(moved.kept)}))
        return
    rows = moved.rows
    click.echo(
        f"moved {rows['devices']} devices, {rows['entries']} log records and {rows['publications']} publications; "
        "every row was compared"
    )
    click.echo(f"the file is kept as {moved.kept}; delete it when the fleet has been well for a while")
    click.echo(f"go on: headway fleet serve --dir {directory}")
