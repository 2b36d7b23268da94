"""`headway agent user`: accounts of a device's page, from the command line. The agent may run meanwhile."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from device_agent.private import private_files
from sdk.errors import ConfigError
from sdk.owners import given_to_owner
from sdk.shown import say

if TYPE_CHECKING:
    from device_agent.page.access import Access

_SITE = click.argument("site_file", metavar="SITE.TOML", type=click.Path(path_type=Path))
_ROLE = click.option(
    "--role",
    type=click.Choice(["operator", "engineer", "admin"]),
    default="operator",
    show_default=True,
    help="Operators label; engineers also choose what is rejected and roll heads back; admins also make accounts.",
)

_SECRET_FILE = click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Its first line is the PIN or password. Default: ask.",
)


@click.group()
def user() -> None:
    """Who may use this device's page."""


@contextmanager
def _access(site_file: Path) -> Iterator[Access]:
    from device_agent.page.access import Access
    from device_agent.page.book import open_book
    from device_agent.site_file import load_site

    data_dir = load_site(site_file).data_dir
    with private_files(), given_to_owner(data_dir):
        book = open_book(data_dir)
        try:
            yield Access(book)
        finally:
            book.close()


def _note(access: Access, action: str, account_id: str) -> None:
    """Write a line of the audit log: somebody did this at the device itself."""
    from device_agent.page.access import SYSTEM

    try:
        name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, say
        name = str(os.getuid())
    access.note(f"{SYSTEM}{name[:32]}", action, account_id)


def _secret(role: str, file: Path | None) -> str:
    """Return a PIN or password: the first line of a file, or what is typed twice.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}", hint="It holds the PIN or password.") from error
    from device_agent.page.access import MIN_PASSWORD_CHARS, MIN_PIN_DIGITS

    what = f"password ({MIN_PASSWORD_CHARS} characters or more)"
    what = f"PIN ({MIN_PIN_DIGITS} digits or more) or {what}" if role == "operator" else what.capitalize()
    return str(click.prompt(what, hide_input=True, confirmation_prompt=True))


@user.command()
@_SITE
@click.argument("name")
@_ROLE
@_SECRET_FILE
def add(site_file: Path, name: str, role: str, secret_file: Path | None) -> None:
    """Make an account. The first must be an admin's; from then on everybody logs in.

    \b
      headway agent user add site.toml Ann --role admin
      headway agent user add site.toml Ben
    """
    from device_agent.page.access import Role

    with _access(site_file) as access:
        access.check_new(name, Role(role))
        account = access.add(name, Role(role), _secret(role, secret_file))
        _note(access, "account added", account.id)
    click.echo(f"{account.name} may log in as {account.role.value}")


@user.command("list")
@_SITE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(site_file: Path, as_json: bool) -> None:
    """Name the accounts."""
    with _access(site_file) as access:
        accounts = access.accounts()
    if as_json:
        click.echo(json.dumps([{"id": a.id, "name": a.name, "role": a.role.value} for a in accounts]))
        return
    for each in accounts:
        say(f"{each.name}  {each.role.value}  {each.id}")
    if not accounts:
        click.echo("no accounts: whoever sits at the device may do everything")


@user.command()
@_SITE
@click.argument("name")
@_SECRET_FILE
def secret(site_file: Path, name: str, secret_file: Path | None) -> None:
    """Give somebody another PIN or password; their sessions end."""
    with _access(site_file) as access:
        account = access.account(name)
        access.set_secret(account.name, _secret(account.role.value, secret_file))
        _note(access, "secret changed", account.id)
    click.echo(f"{name} has a new secret")


@user.command()
@_SITE
@click.argument("name")
@click.option("--erase", is_flag=True, help="Forget the name beside earlier labels and in the audit log too.")
@click.option("--open-again", is_flag=True, help="Remove the last account too: nobody has to log in any more.")
def remove(site_file: Path, name: str, erase: bool, open_again: bool) -> None:
    """End an account and its sessions.

    With --erase the name is forgotten too, also that of an account which was removed before. The last account goes
    only with --open-again: on loopback whoever reaches the page may do everything then; beyond it, and behind a
    proxy, nobody may do anything, and the agent does not start again before there is an account.
    """
    from device_agent.site_file import load_site

    with _access(site_file) as access:
        for account_id in access.remove(name, erase=erase, open_again=open_again):
            _note(access, "account erased" if erase else "account removed", account_id)
        closed, wiped = access.in_use, access.wipe()
    click.echo(f"{name} is {'erased' if erase else 'removed'}")
    if erase and not wiped:
        click.echo(
            "traces of the name are left in the page's file: there is no room to write it anew, or something"
            " keeps it busy; they go when the agent starts next"
        )
    page = load_site(site_file).page
    if not closed and page.for_this_machine:
        click.echo("that was the last account: whoever reaches the page may do everything from now on")
    elif not closed:
        where = page.public_url or page.host
        click.echo(f"that was the last account: nobody gets into the page at {where} until there is another")
