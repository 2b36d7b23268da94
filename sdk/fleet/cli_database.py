"""How a command is told which PostgreSQL: in a file or the environment, where nobody else reads its password."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from sdk.errors import FleetError

VARIABLE: Final = "HEADWAY_DATABASE"
MAX_FILE_BYTES: Final = 10_000
"""An address is one line."""
_ON_THE_LINE: Final = (
    "note: the password stands on the command line, where every user of this machine reads it while this runs; "
    f"--database-file or {VARIABLE} keeps it from them"
)


def database_options(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `--database` and `--database-file`, for `address_of`; `what` says which database."""
    by_address = click.option(
        "--database", "url", metavar="URL", envvar=VARIABLE,
        help=f"{what}: postgresql://user@host/name, its password in ~/.pgpass. Or in the environment: {VARIABLE}.",
    )  # fmt: skip
    by_file = click.option(
        "--database-file", "url_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
        help="A file with that address in its first line: postgresql://user:password@host/name. Others do not see "
        "the password there, as they do on a command line.",
    )  # fmt: skip

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        return by_address(by_file(command))

    return added


def address_of(url: str | None, url_file: Path | None) -> str | None:
    """Return the address that the running command was given, None without one; say so where others can read it.

    Raises:
        FleetError: it has two, or the file cannot be read.
    """
    from sdk.fleet.database import has_password

    typed = click.get_current_context().get_parameter_source("url") is ParameterSource.COMMANDLINE
    if url_file is None:
        if url is not None and typed and has_password(url):
            click.echo(_ON_THE_LINE, err=True)
        return url
    if typed:
        raise FleetError("--database and --database-file both name a database", hint="Give one of them.")
    try:
        with url_file.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
        found = content.decode().partition("\n")[0].strip()
    except OSError as error:
        raise FleetError(f"--database-file {url_file}: {error.strerror}", hint="Let this user read it.") from error
    except UnicodeDecodeError as error:
        raise FleetError(f"--database-file {url_file} is no text", hint="Write the address into it.") from error
    if not found:
        raise FleetError(f"--database-file {url_file} is empty", hint="Write the address into its first line.")
    return found
